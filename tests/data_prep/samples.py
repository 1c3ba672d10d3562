"""A small CT series and one object of every kind of mark on it, with a patient's name planted: seeds for tests."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from highdicom import sr
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RTStructureSetStorage

from data_prep import frames
from data_prep.bookmark import Bookmark
from data_prep.lesion import Lesion
from data_prep.writers.aim_xml import build_annotations
from data_prep.writers.deeplesion import write_dl_info
from data_prep.writers.dicom_gsps import build_presentation_state
from data_prep.writers.dicom_seg import build_segmentation
from data_prep.writers.dicom_sr import build_report
from tests.data_prep.dicom_objects import ct_header, encoded
from tests.data_prep.rtstruct_objects import contour, with_rois

NAME, PATIENT_ID = "Zyxwv^Qwyrtl", "JKQX-4711"
"""Planted wherever a file has a place for them; they must never be told."""

ROWS, COLUMNS = 72, 64
SPACING = (0.7, 0.8)  # x, y
STEP_MM = 3.0
ORIGIN = (-20.0, -30.0, 100.0)
CREATED = datetime.datetime(2020, 1, 2, 3, 4, 5)
STUDY, SERIES, FRAME_OF_REFERENCE = "2.25.71", "2.25.72", "2.25.73"


def image_uid(k: int) -> str:
    """SOP Instance UID of slice k."""
    return f"2.25.7400{k}"


def ct_slice(k: int, **changes: Any) -> Dataset:
    """Slice k of an axial CT series, with pixels."""
    values: dict[str, Any] = {
        "SOPInstanceUID": image_uid(k),
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "FrameOfReferenceUID": FRAME_OF_REFERENCE,
        "PatientName": NAME,
        "PatientID": PATIENT_ID,
        "Rows": ROWS,
        "Columns": COLUMNS,
        "PixelSpacing": [SPACING[1], SPACING[0]],
        "ImagePositionPatient": [*ORIGIN[:2], ORIGIN[2] + k * STEP_MM],
        "SliceThickness": STEP_MM,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": bytes(2 * ROWS * COLUMNS),
    }
    return ct_header(k, **(values | changes))


def write_ct(folder: Path, slices: int = 5) -> list[Path]:
    """The series as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k}.dcm" for k in range(slices)]
    for k, path in enumerate(paths):
        path.write_bytes(encoded(ct_slice(k)))
    return paths


def to_lps(points_px: Sequence[Sequence[float]], k: int) -> np.ndarray:
    """(N, 2) px on slice k -> (N, 3) LPS mm."""
    origin = (*ORIGIN[:2], ORIGIN[2] + k * STEP_MM)
    affine = frames.dicom_affine(origin, (1, 0, 0, 0, 1, 0), (SPACING[1], SPACING[0]), (0, 0, STEP_MM))
    return frames.px_to_lps(np.column_stack([points_px, np.full(len(points_px), 0.5)]), affine)


def circle_px(x: float, y: float, radius: float, count: int = 24) -> list[tuple[float, float]]:
    """A closed outline in px; the first point is not repeated."""
    turns = 2 * np.pi * np.arange(count) / count
    return [(float(x + radius * np.cos(t)), float(y + radius * np.sin(t))) for t in turns]


def mark(form: str, points: Sequence[float], k: int = 2, **more: Any) -> Bookmark:
    """A mark on slice k."""
    facts: dict[str, Any] = {"bookmark_id": "b", "source": "csv", "image_uid": image_uid(k), "patient_id": PATIENT_ID}
    return Bookmark(form=form, points_px=tuple(map(float, points)), **(facts | more))


PAIR = (20, 30, 40, 31, 29, 24, 30, 38)
LINE = (10, 50, 30, 60)


def structure_set(contours: dict[int, Sequence[Sequence[float]]], uid: str = "2.25.75") -> Dataset:
    """An RT Structure Set of one ROI; slice -> outline in px."""
    file = ct_slice(0, SOPClassUID=RTStructureSetStorage, SOPInstanceUID=uid, Modality="RTSTRUCT")
    for keyword in ("PixelData", "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        del file[keyword]
    drawn = {image_uid(k): contour(to_lps(contours[k], k), image_uid(k)) for k in sorted(contours)}
    return with_rois(file, {"GTV": list(drawn.values())}, series_uid=SERIES, image_uids=drawn)


def spatial_report(points_px: Sequence[Sequence[float]], k: int = 3, uid: str = "2.25.76") -> Dataset:
    """A Comprehensive 3D SR with one SCOORD3D outline on slice k."""
    points = to_lps([*points_px, points_px[0]], k)
    region = sr.ImageRegion3D(sr.GraphicTypeValues3D.POLYGON, points, frame_of_reference_uid=FRAME_OF_REFERENCE)
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier("2.25.761", "x1"), referenced_region=region
    )
    person = sr.PersonObserverIdentifyingAttributes(name="A^")
    context = sr.ObservationContext(sr.ObserverContext(codes.DCM.Person, person))
    content = sr.MeasurementReport(context, codes.LN.CTUnspecifiedBodyRegion, [group])
    return _dated(sr.Comprehensive3DSR([ct_slice(k)], content[0], "2.25.762", 1, uid, 1, manufacturer="x"))


def key_object_note(k: int = 1) -> Dataset:
    """A note that flags slice k."""
    content = KeyObjectSelection(codes.DCM.ForSurgery, [ct_slice(k)], description="see here")
    return _dated(KeyObjectSelectionDocument([ct_slice(k)], content, "2.25.77", 1, "2.25.771", 1, manufacturer="x"))


def _dated(document: Dataset) -> Dataset:
    """With fixed dates, so that the same call gives the same bytes."""
    for keyword in ("ContentDate", "InstanceCreationDate", "SeriesDate"):
        if keyword in document:
            setattr(document, keyword, "20200102")
    for keyword in ("ContentTime", "InstanceCreationTime", "SeriesTime"):
        if keyword in document:
            setattr(document, keyword, "030405.000000")
    for equipment in document.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = "20200102030405.000000"
    return document


def aim3() -> bytes:
    """An AIM 3 XML with one line on slice 2."""
    xy = "".join(
        f'<SpatialCoordinate coordinateIndex="{i}" imageReferenceUID="{image_uid(2)}" referencedFrameNumber="1" '
        f'x="{LINE[2 * i]}" y="{LINE[2 * i + 1]}" xsi:type="TwoDimensionSpatialCoordinate"/>'
        for i in range(2)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM" aimVersion="AIM.3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" uniqueIdentifier="2.25.78">
<geometricShapeCollection><GeometricShape xsi:type="MultiPoint" shapeIdentifier="0"><spatialCoordinateCollection>
{xy}</spatialCoordinateCollection></GeometricShape></geometricShapeCollection>
<person><Person id="{PATIENT_ID}" name="{NAME}" sex="O"/></person></ImageAnnotation>""".encode()


def aim_json() -> bytes:
    """An AIM 4 JSON with one line on slice 2."""
    points = [{"coordinateIndex": {"value": i}, "x": {"value": 9.5 + i}, "y": {"value": 8.25}} for i in (0, 20)]
    shape = {
        "xsi:type": "TwoDimensionMultiPoint",
        "uniqueIdentifier": {"root": "2.25.791"},
        "imageReferenceUid": {"root": image_uid(2)},
        "referencedFrameNumber": {"value": 1},
        "twoDimensionSpatialCoordinateCollection": {"TwoDimensionSpatialCoordinate": points},
    }
    series = {
        "instanceUid": {"root": SERIES},
        "imageCollection": {"Image": [{"sopInstanceUid": {"root": image_uid(2)}}]},
    }
    study = {"instanceUid": {"root": STUDY}, "imageSeries": series}
    annotation = {
        "uniqueIdentifier": {"root": "2.25.79"},
        "name": {"value": "Lesion 1"},
        "markupEntityCollection": {"MarkupEntity": [shape]},
        "imageReferenceEntityCollection": {"ImageReferenceEntity": [{"imageStudy": study}]},
    }
    person = {"name": {"value": NAME}, "id": {"value": PATIENT_ID}}
    collection = {"person": person, "imageAnnotations": {"ImageAnnotation": [annotation]}}
    return json.dumps({"ImageAnnotationCollection": collection}).encode()


def label_map() -> bytes:
    """A NIfTI-1 label map of one lesion."""
    volume = np.zeros((20, 24, 6), dtype=np.uint8)
    volume[5:12, 8:14, 2:4] = 1
    return bytes(nib.Nifti1Image(volume, np.diag([-0.7, -0.8, 3.0, 1.0])).to_bytes())


def detections() -> bytes:
    """A detections.json of one finding."""
    finding = {
        "image_uid": image_uid(2), "slice_index": 2, "box_px": [14.5, 18.5, 45.5, 43.5], "score": 0.9, "label": 0,
        "category": "lesion", "centre_lps_mm": [0.0, 0.0, 106.0], "size_mm": [21.7, 20.0], "image": "S/002.png",
    }  # fmt: skip
    grid = {"rows": ROWS, "columns": COLUMNS, "slices": 5, "affine_lps": np.eye(4).tolist()}
    series = {
        "series_uid": SERIES, "study_uid": STUDY, "patient_id": PATIENT_ID, "source": {"origin": "ct"},
        "grid": grid, "findings": [finding],
    }  # fmt: skip
    return json.dumps({"schema_version": 1, "series": [series]}).encode()


def plain_csv() -> bytes:
    """A plain CSV of two rows."""
    head = "form,points_px,image,image_uid,patient_id,rows,columns"
    rows = [f"{form},{points},S/002.png,,{PATIENT_ID},{ROWS},{COLUMNS}" for form, points in
            (("length", "10 50 30 60"), ("bidirectional", "20 30 40 31 29 24 30 38"))]  # fmt: skip
    return "\n".join([head, *rows, ""]).encode()


def deeplesion_csv(path: Path) -> bytes:
    """A DeepLesion CSV of one row."""
    lesion = Lesion(
        lesion_id="l", bookmark_ids=("b",), source="csv", image="000001_01_01/002.png", patient_id="000001",
        rows=ROWS, columns=COLUMNS, spacing_x_mm=0.7, spacing_y_mm=0.8, spacing_z_mm=3.0, slice_index=2,
        x0=14.5, y0=18.5, x1=45.5, y1=43.5, recist_px=tuple(map(float, PAIR)), split="train",
    )  # fmt: skip
    write_dl_info([lesion], path)
    return path.read_bytes()


def every_kind(folder: Path) -> dict[str, bytes]:
    """File name -> content: one object of every kind that a harvest reads."""
    images = [ct_slice(k) for k in range(5)]
    pair, line = mark("bidirectional", PAIR), mark("length", LINE, text="a lesion", tracking_uid="2.25.7711")
    uids: dict[str, Any] = {"series_instance_uid": "2.25.70", "created": CREATED}
    state = build_presentation_state([pair, line], images, sop_instance_uid="2.25.701", **uids)
    segmentation = build_segmentation([mark("circle", (30, 30, 38, 30))], images, sop_instance_uid="2.25.702", **uids)
    return {
        "report.dcm": encoded(build_report([pair, line], images, sop_instance_uid="2.25.700", **uids)),
        "state.dcm": encoded(state),
        "segmentation.dcm": encoded(segmentation),
        "structures.dcm": encoded(structure_set({k: circle_px(40, 30, 5 + k) for k in (1, 2, 3)})),
        "spatial.dcm": encoded(spatial_report(circle_px(20, 40, 9))),
        "note.dcm": encoded(key_object_note()),
        "aim3.xml": aim3(),
        "aim4.xml": build_annotations([pair, line], images, created=CREATED, uid="2.25.703"),
        "aim.json": aim_json(),
        "mask.nii": label_map(),
        "detections.json": detections(),
        "marks.csv": plain_csv(),
        "DL_info.csv": deeplesion_csv(folder / "DL_info.csv"),
    }
