"""Presentation states for the tests, put together by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import Dataset

from data_prep.bookmark import Bookmark
from data_prep.readers import Rejection, dicom_gsps
from tests.data_prep.dicom_objects import file_item, item

GSPS = "1.2.840.10008.5.1.4.1.1.11.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMAGE_UID, SERIES_UID, STUDY_UID = "2.25.11", "2.25.12", "2.25.13"


def reference(uid: str = IMAGE_UID, frames: list[int] | None = None) -> Dataset:
    made = item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=uid)
    if frames:
        made.ReferencedFrameNumber = frames
    return made


def graphic(kind: str, points: Any, units: str = "PIXEL", **more: Any) -> Dataset:
    return item(
        GraphicAnnotationUnits=units,
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(points) // 2,
        GraphicData=points,
        GraphicType=kind,
        **more,
    )


def compound(kind: str, points: Any, number: int = 1, **more: Any) -> Dataset:
    return item(
        CompoundGraphicInstanceID=number,
        CompoundGraphicUnits="PIXEL",
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(points) // 2,
        GraphicData=points,
        CompoundGraphicType=kind,
        **more,
    )


def words(value: str, anchor: Any, units: str = "PIXEL", **more: Any) -> Dataset:
    return item(UnformattedTextValue=value, AnchorPoint=anchor, AnchorPointAnnotationUnits=units, **more)


def annotation(*, graphics: Any = (), compounds: Any = (), texts: Any = (), images: Any = ()) -> Dataset:
    made = item(GraphicLayer="LAYER")
    for keyword, members in (
        ("GraphicObjectSequence", graphics),
        ("CompoundGraphicSequence", compounds),
        ("TextObjectSequence", texts),
        ("ReferencedImageSequence", images),
    ):
        if members:
            setattr(made, keyword, list(members))
    return made


def state(*annotations: Dataset, images: Any = None, sop_class: str = GSPS, **more: Any) -> Dataset:
    made = file_item(
        SOPClassUID=sop_class,
        SOPInstanceUID="2.25.1",
        StudyInstanceUID=STUDY_UID,
        SeriesInstanceUID="2.25.2",
        PatientID="P1",
        PatientName="Canary^Name",
        ReferencedSeriesSequence=[item(SeriesInstanceUID=SERIES_UID, ReferencedImageSequence=images or [reference()])],
        GraphicAnnotationSequence=list(annotations),
        **more,
    )
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def read(dataset: Dataset, folder: Path) -> list[Bookmark | Rejection]:
    path = folder / "state"
    dataset.save_as(path, enforce_file_format=True)
    assert dicom_gsps.recognise(path.read_bytes()[:4096], path)
    return list(dicom_gsps.read(path))


def only(dataset: Dataset, folder: Path) -> Bookmark:
    (mark,) = read(dataset, folder)
    assert isinstance(mark, Bookmark), mark
    return mark
