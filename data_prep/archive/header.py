"""The header of one DICOM image file: what is needed to find it, place it and sort it; no pixel data."""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass, replace
from datetime import date
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from data_prep.errors import UnreadableError
from data_prep.quiet import quiet_pydicom
from data_prep.readers.dicom_kind import HEAD_BYTES, inflated, looks_like_dicom, sop_class_uid

NOT_IMAGES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
        "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    }
)
"""SOP classes that have rows and columns without being images somebody marks."""

MAX_HEADER_BYTES = 256 * 2**20
"""A deflated object that inflates to more than this is damage or an attack."""

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SpecificCharacterSet",
    "StudyDate",
    "Modality",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "GantryDetectorTilt",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "WindowCenter",
    "WindowWidth",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """One frame of one file. UIDs and the patient's ID are None where the file leaves them out or empty.

    ``frame_number`` is 1-based. A multi-frame image without functional groups is one header of ``frame_count`` frames.
    ``position_lps_mm`` is the centre of the first pixel, ``orientation`` the six cosines along a row and a column.
    """

    sop_instance_uid: str | None = None
    sop_class_uid: str | None = None
    series_uid: str | None = None
    study_uid: str | None = None
    patient_id: str | None = None
    modality: str | None = None
    rows: int
    columns: int
    spacing_x_mm: float | None = None
    spacing_y_mm: float | None = None
    frame_number: int = 1
    frame_count: int = 1
    instance_number: int | None = None
    acquisition: str | None = None
    position_lps_mm: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    frame_of_reference_uid: str | None = None
    gantry_tilt_deg: float | None = None
    window_min_hu: float | None = None
    window_max_hu: float | None = None
    patient_sex: str | None = None
    patient_age: float | None = None


def read_headers(path: str | os.PathLike[str]) -> list[ImageHeader]:
    """The frames of one file; empty where it is not a DICOM image (a report, a text file).

    Raises:
        UnreadableError: it is DICOM, but damaged. The message quotes nothing from the header.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would be waited on for ever
            return []
        with path.open("rb") as file:
            if not _is_dicom(file.read(HEAD_BYTES), path):
                return []
            with quiet_pydicom():
                expanded = inflated(path, file, MAX_HEADER_BYTES)
                file.seek(0)
                source = file if expanded is None else BytesIO(expanded)
                dataset = pydicom.dcmread(source, force=True, stop_before_pixels=True, specific_tags=_TAGS)
                headers = _headers(dataset)
                if not headers and _should_be_image(dataset):
                    raise UnreadableError(f"{path}: an image without rows and columns: the file is cut off")
                return headers
    except UnreadableError:
        raise
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from error
    except Exception as error:  # a damaged header raises nearly anything, and its text may quote the header
        raise UnreadableError(f"{path}: the DICOM header is damaged ({type(error).__name__})") from None


def _is_dicom(head: bytes, path: Path) -> bool:
    """The Part 10 magic; or a data set without preamble, whose first bytes may be chance: it must state a SOP class."""
    return head[128:132] == b"DICM" or (looks_like_dicom(head) and sop_class_uid(path) is not None)


def _headers(dataset: Dataset) -> list[ImageHeader]:
    rows, columns = _int(dataset, "Rows"), _int(dataset, "Columns")
    meta = getattr(dataset, "file_meta", Dataset())
    sop_class = _text(dataset, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")
    if not rows or not columns or sop_class in NOT_IMAGES:
        return []
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    first = ImageHeader(
        sop_instance_uid=_text(dataset, "SOPInstanceUID") or _text(meta, "MediaStorageSOPInstanceUID"),
        sop_class_uid=sop_class,
        series_uid=_text(dataset, "SeriesInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        patient_id=_text(dataset, "PatientID"),
        modality=_text(dataset, "Modality"),
        rows=rows,
        columns=columns,
        frame_count=max(len(per_frame) or _int(dataset, "NumberOfFrames") or 1, 1),
        instance_number=_int(dataset, "InstanceNumber"),
        acquisition=_text(dataset, "AcquisitionNumber"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        gantry_tilt_deg=(_floats(dataset, "GantryDetectorTilt", 1) or (None,))[0],
        patient_sex=_text(dataset, "PatientSex"),
        patient_age=_age_years(dataset),
    )
    first = _placed(first, dataset, dataset, dataset, dataset)
    if not per_frame:
        return [first]
    frames = []
    for number, own in enumerate(per_frame, start=1):
        measures, orientation, position, window, content = (
            _group(own, shared, name)
            for name in (
                "PixelMeasuresSequence",
                "PlaneOrientationSequence",
                "PlanePositionSequence",
                "FrameVOILUTSequence",
                "FrameContentSequence",
            )
        )
        frame = replace(
            first,
            frame_number=number,
            instance_number=number,
            # Stacks and phases of one object are told apart as acquisitions of one series are.
            acquisition="/".join(
                _text(content, name) or "" for name in ("StackID", "FrameAcquisitionNumber", "TemporalPositionIndex")
            ),
        )
        frames.append(_placed(frame, measures, orientation, position, window))
    return frames


def _should_be_image(dataset: Dataset) -> bool:
    """Whether the SOP class is one of images, or missing altogether, as in a file of which only the start is left."""
    meta = getattr(dataset, "file_meta", Dataset())
    sop_class = _text(dataset, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")
    return sop_class is None or "Image Storage" in UID(sop_class).name


def _placed(
    header: ImageHeader, measures: Dataset, orientation: Dataset, position: Dataset, window: Dataset
) -> ImageHeader:
    """``header`` with what the given data sets say of spacing, place and window."""
    spacing = _floats(measures, "PixelSpacing", 2)
    if spacing is not None and min(spacing) <= 0:
        spacing = None
    centre, width = (_floats(window, name, 1) for name in ("WindowCenter", "WindowWidth"))
    return replace(
        header,
        spacing_x_mm=spacing[1] if spacing else header.spacing_x_mm,
        spacing_y_mm=spacing[0] if spacing else header.spacing_y_mm,
        position_lps_mm=_floats(position, "ImagePositionPatient", 3) or header.position_lps_mm,
        orientation=_unit_orientation(orientation) or header.orientation,
        window_min_hu=centre[0] - width[0] / 2 if centre and width else header.window_min_hu,
        window_max_hu=centre[0] + width[0] / 2 if centre and width else header.window_max_hu,
    )


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """The first item of a functional group, the frame's own before the shared one."""
    item: Dataset = (own.get(name) or shared.get(name) or [Dataset()])[0]
    return item


def _unit_orientation(dataset: Dataset) -> tuple[float, ...] | None:
    """ImageOrientationPatient where its two directions are unit vectors at right angles, else None."""
    values = _floats(dataset, "ImageOrientationPatient", 6)
    if values is None:
        return None
    row, column = values[:3], values[3:]
    products = math.hypot(*row), math.hypot(*column), sum(a * b for a, b in zip(row, column, strict=True)) + 1.0
    return values if all(abs(product - 1.0) < 0.01 for product in products) else None


def _text(dataset: Dataset, name: str) -> str | None:
    """The value as stripped text; None where missing or empty: archives hold elements that are there but empty."""
    value = dataset.get(name)
    return None if value is None else str(value).strip("\0 ") or None


def _int(dataset: Dataset, name: str) -> int | None:
    values = _floats(dataset, name, 1)
    return int(values[0]) if values and abs(values[0]) < 2**31 else None


def _floats(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """``count`` finite values, or None; for a count of 1, the first of several."""
    try:
        value = dataset.get(name)
        listed = list(value) if hasattr(value, "__iter__") and not isinstance(value, str | bytes) else [value]
        numbers = tuple(float(item) for item in listed)
    except (TypeError, ValueError, OverflowError):
        return None
    if len(numbers) < count or (count > 1 and len(numbers) != count):
        return None
    return numbers[:count] if all(map(math.isfinite, numbers[:count])) else None


def _age_years(dataset: Dataset) -> float | None:
    """PatientAge in years, else the years from the birth date to the study date, else None."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", _text(dataset, "PatientAge") or "")
    if match:
        return round(int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]], 2)
    try:
        born, studied = (
            date.fromisoformat((_text(dataset, name) or "")[:8]) for name in ("PatientBirthDate", "StudyDate")
        )
    except ValueError:
        return None
    years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    return float(years) if 0 <= years < 130 else None
