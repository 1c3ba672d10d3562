"""Structured reports for the tests: written by our writer, or put together by hand."""

from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from data_prep.bookmark import Bookmark
from data_prep.readers import Rejection, dicom_sr
from data_prep.writers.dicom_sr import build_report
from tests.data_prep.dicom_objects import encoded

CT = "1.2.840.10008.5.1.4.1.1.2"
CREATED = datetime.datetime(2020, 1, 2, 3, 4, 5)
CANARY = "Zyxwv^Canary"


def image(number: int = 1, **changes: object) -> Dataset:
    """A CT header."""
    header = Dataset()
    header.SOPClassUID = CT
    header.SOPInstanceUID = f"2.25.100{number}"
    header.StudyInstanceUID, header.SeriesInstanceUID = "2.25.1", "2.25.2"
    header.PatientID, header.PatientName, header.PatientSex = "P1", CANARY, "F"
    header.PatientBirthDate = header.AccessionNumber = header.StudyID = ""
    header.PatientAge = "061Y"
    header.StudyDate, header.StudyTime = "20200101", "120000"
    header.Modality = "CT"
    header.Rows, header.Columns = 512, 512
    header.PixelSpacing = [0.8, 0.5]  # 0.8 mm between rows, 0.5 mm between columns
    for name, value in changes.items():
        setattr(header, name, value)
    return header


def mark(form: str, *points: float, **fields: object) -> Bookmark:
    values = {"bookmark_id": "0123456789abcdef", "source": "csv", "image_uid": "2.25.1001", **fields}
    return Bookmark(form=form, points_px=tuple(points), **values)  # type: ignore[arg-type]


def report(marks: list[Bookmark], *images: Dataset, **options: object) -> Dataset:
    return build_report(
        marks,
        images or [image()],
        sop_instance_uid="2.25.10",
        series_instance_uid="2.25.11",
        created=CREATED,
        **options,  # type: ignore[arg-type]
    )


def read_bytes(data: bytes, folder: Path) -> list[Bookmark | Rejection]:
    path = folder / "report.dcm"
    path.write_bytes(data)
    return list(dicom_sr.read(path))


def read_back(dataset: Dataset) -> list[Bookmark]:
    found = list(dicom_sr.read_dataset(dcmread(io.BytesIO(encoded(dataset)))))
    assert all(isinstance(item, Bookmark) for item in found), found
    return [item for item in found if isinstance(item, Bookmark)]


def content(
    value_type: str, relationship: str = "CONTAINS", concept: str = "", children: object = (), **more: object
) -> Dataset:
    """A content item by hand; ``concept`` is ``value^scheme^meaning``."""
    item = Dataset()
    item.ValueType, item.RelationshipType = value_type, relationship
    if concept:
        item.ConceptNameCodeSequence = [code(concept)]
    for name, value in more.items():
        setattr(item, name, value)
    if children:
        item.ContentSequence = list(children)  # type: ignore[call-overload]
    return item


def code(stated: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = stated.split("^")
    return item


def on_image(uid: str = "2.25.1001") -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CT, uid
    return content("IMAGE", "SELECTED FROM", ReferencedSOPSequence=[reference])


def scoord(kind: str, *points: float, children: object = None, **more: Any) -> Dataset:
    below = [on_image()] if children is None else children
    return content("SCOORD", "INFERRED FROM", children=below, GraphicType=kind, GraphicData=list(points), **more)


def num(concept: str, value: object, unit: str, *children: Dataset) -> Dataset:
    measured = Dataset()
    measured.NumericValue = value
    measured.MeasurementUnitsCodeSequence = [code(f"{unit}^UCUM^{unit}")]
    return content("NUM", concept=concept, children=children, MeasuredValueSequence=[measured])


def document(*children: Dataset) -> Dataset:
    root = content("CONTAINER", concept="121111^DCM^Summary", children=children)
    root.SOPClassUID, root.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", "2.25.5"
    return root


def read_document(*children: Dataset) -> list[Bookmark | Rejection]:
    return list(dicom_sr.read_dataset(document(*children)))
