"""CT slices and marks on them, from which the tests make segmentations."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from data_prep.bookmark import Bookmark
from data_prep.readers import dicom_seg

CREATED = datetime.datetime(2021, 3, 4, 5, 6, 7)
UIDS: dict[str, Any] = {"sop_instance_uid": "1.2.4.1", "series_instance_uid": "1.2.4", "created": CREATED}
ROWS, COLUMNS = 130, 121  # neither is a multiple of 8: frames of packed bits begin within a byte
SPACING = 0.8


def ct_slice(number: int, step_mm: float = 2.0, **changes: Any) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.3.{number + 1}",
        "StudyInstanceUID": "1.2.9",
        "SeriesInstanceUID": "1.2.8",
        "FrameOfReferenceUID": "1.2.7",
        "PatientID": "P1",
        "PatientName": "Canary^Name",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyDate": "20200101",
        "StudyTime": "000000",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "",
        "Modality": "CT",
        "PositionReferenceIndicator": "",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "PixelSpacing": [SPACING, SPACING],
        "ImagePositionPatient": [-50.0, -60.0, number * step_mm],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": step_mm,
        "InstanceNumber": number + 1,
        "SeriesNumber": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
    }
    for keyword, value in (values | changes).items():
        setattr(image, keyword, value)
    return image


EVIDENCE = [ct_slice(number) for number in range(8)]


@dataclasses.dataclass
class FakeImage:
    position_lps_mm: tuple[float, ...] | None = (-50.0, -60.0, 0.0)
    orientation: tuple[float, ...] | None = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    spacing_x_mm: float | None = SPACING
    spacing_y_mm: float | None = SPACING
    spacing_z_mm: float | None = 2.0
    rows: int | None = ROWS
    columns: int | None = COLUMNS
    slice_index: int | None = 0


class FakeImages(dict[str, FakeImage]):
    def find(self, sop_instance_uid: str, frame_number: int | None = None, /) -> FakeImage | None:
        return self.get(sop_instance_uid)


def fake_images(**changes: Any) -> FakeImages:
    images = FakeImages()
    for k in range(8):
        values: dict[str, Any] = {"position_lps_mm": (-50.0, -60.0, 2.0 * k), "slice_index": k}
        images[f"1.2.3.{k + 1}"] = FakeImage(**(values | changes))
    return images


def mark(form: str, points: Any, image: int = 2, **fields: Any) -> Bookmark:
    values: dict[str, Any] = {
        "bookmark_id": "0123456789abcdef",
        "source": "dicom-sr",
        "image_uid": f"1.2.3.{image + 1}",
        "spacing_x_mm": SPACING,
        "spacing_y_mm": SPACING,
    }
    flat = tuple(float(value) for value in np.asarray(points, float).ravel())
    return Bookmark(form=form, points_px=flat, **(values | fields))


def save(segmentation: Dataset, folder: Path, name: str = "seg.dcm") -> Path:
    path = folder / name
    segmentation.save_as(path, enforce_file_format=True)
    return path


def bookmarks_in(path: Path, images: Any = None) -> list[Bookmark]:
    found = list(dicom_seg.read(path, images))
    assert all(isinstance(item, Bookmark) for item in found), found
    return [item for item in found if isinstance(item, Bookmark)]
