"""DICOM data sets put together by hand, and images as an index gives them: what the tests of several formats share."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian


def item(**elements: Any) -> Dataset:
    """A data set of these elements."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def file_item(**elements: Any) -> Dataset:
    """The same with what makes it a file: explicit VR, little endian."""
    made = item(**elements)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def encoded(dataset: Dataset) -> bytes:
    """A data set as the bytes of a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def ct_header(number: int, **own: Any) -> Dataset:
    """Slice ``number`` (0-based) of an axial CT series; UIDs, patient and grid are its ``own``, pixels it has none."""
    shared: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
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
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "InstanceNumber": number + 1,
        "SeriesNumber": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
    }
    return file_item(**(shared | own))


@dataclass
class FakeImage:
    """An image as :class:`data_prep.archive.index.ImageIndex` gives it; axial unless told."""

    position_lps_mm: tuple[float, ...] | None
    spacing_x_mm: float | None
    spacing_y_mm: float | None
    spacing_z_mm: float | None
    rows: int | None
    columns: int | None
    slice_index: int | None = 0
    frame_count: int = 1
    orientation: tuple[float, ...] | None = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class FakeImages(dict[str, FakeImage]):
    """SOP Instance UID -> image."""

    def find(self, sop_instance_uid: str, frame_number: int | None = None, /) -> FakeImage | None:
        return self.get(sop_instance_uid)
