"""Findings written back as reports, and read again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import DataElement, Dataset, dcmread
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, write_lesions
from data_prep.merge import merge
from data_prep.readers import dicom_kind, dicom_sr
from data_prep.writers.report import report
from tests.data_prep.files import rows_of

if TYPE_CHECKING:
    from tests.conftest import Judges

CT = "1.2.840.10008.5.1.4.1.1.2"


def series(folder: Path, number: int = 1, slices: int = 3, uids: bool = True) -> list[str]:
    """A small CT series; returns its SOP instance UIDs in file order."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for index in range(slices):
        header = Dataset()
        header.SOPClassUID, header.SOPInstanceUID = CT, f"2.25.{number}00{index}"
        header.StudyInstanceUID, header.SeriesInstanceUID = ("2.25.1", f"2.25.2{number}") if uids else ("", "")
        header.PatientID, header.PatientName, header.PatientSex, header.PatientBirthDate = "P1", "Doe^Jane", "F", ""
        header.AccessionNumber, header.StudyID, header.StudyDate, header.StudyTime = "", "", "20200101", "120000"
        header.Modality, header.SeriesNumber, header.InstanceNumber = "CT", number, index + 1
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 5.0 * index], [1, 0, 0, 0, 1, 0]
        header.FrameOfReferenceUID = f"2.25.3{number}"
        header.PixelSpacing, header.Rows, header.Columns = [0.8, 0.5], 64, 64
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        header.PixelData = bytes(64 * 64 * 2)
        header.preamble, header.file_meta = bytes(128), FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = UID(CT)
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        made.append(str(header.SOPInstanceUID))
        if not uids:
            header.SOPClassUID = header.SOPInstanceUID = ""
        header.save_as(folder / f"{index}.dcm", enforce_file_format=False)
    return made


def detections(
    path: Path, *found: tuple[str | None, int, list[float], float], series_uid: str | None = "2.25.21"
) -> Path:
    findings = [
        {
            "image_uid": uid, "slice_index": index, "box_px": box, "score": score, "label": 2, "category": "liver",
            "centre_lps_mm": [0, 0, 0], "size_mm": [5, 5],
        }
        for uid, index, box, score in found
    ]  # fmt: skip
    grid = {"rows": 64, "columns": 64, "slices": 3, "affine_lps": np.diag([0.5, 0.8, 5, 1]).tolist()}
    one = {
        "series_uid": series_uid, "study_uid": "2.25.1", "patient_id": "P1", "source": {"origin": "x"},
        "grid": grid, "findings": findings,
    }  # fmt: skip
    value = {"schema_version": 1, "model": {"name": "detector", "version": "0.1"}, "series": [one]}
    path.write_text(json.dumps(value))
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


def read_all(folder: Path) -> list[Bookmark]:
    found = [mark for path in sorted(folder.glob("*.dcm")) for mark in dicom_sr.read(path)]
    assert all(isinstance(mark, Bookmark) for mark in found), found
    return [mark for mark in found if isinstance(mark, Bookmark)]


def test_detections_come_back_as_the_same_boxes(tmp_path: Path) -> None:
    uids = series(tmp_path / "ct")
    boxes = [[10.123456, 20.654321, 30.98765, 40.1], [-3.3, 5.5, 12.25, 17.75], [1.0, 2.0, 3.0, 4.0]]
    source = detections(
        tmp_path / "detections.json",
        (uids[0], 0, boxes[0], 0.91), (uids[2], 2, boxes[1], 0.5), (uids[2], 2, boxes[2], 0.25),
    )  # fmt: skip
    assert report(source, tmp_path / "ct", tmp_path / "out", progress=False) == 1
    marks = sorted(read_all(tmp_path / "out"), key=lambda mark: -(mark.score or 0))
    assert [mark.score for mark in marks] == pytest.approx([0.91, 0.5, 0.25])
    for mark, box, uid in zip(marks, boxes, (uids[0], uids[2], uids[2]), strict=True):
        assert (mark.form, mark.image_uid, mark.text) == ("box", uid, "liver")
        assert mark.finding_code == "52988006^SCT^Lesion"
        np.testing.assert_allclose(mark.points_px, box, rtol=0, atol=2e-5)
        assert mark.source == "detector"
    (path,) = (tmp_path / "out").glob("*.dcm")
    text = str(dcmread(path))
    assert "Algorithm Name" in text
    assert "detector" in text
    assert not (tmp_path / "out" / "rejected.csv").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("PatientBirthDate", "19470000"), ("PatientBirthDate", "19470231x"), ("StudyDate", "1947.03.17"),
     ("StudyTime", "256199"), ("PatientAge", "62")],
)  # fmt: skip
def test_a_header_with_an_odd_date_makes_a_report_and_is_not_quoted(
    tmp_path: Path, name: str, value: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    uids = series(tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        dataset = dcmread(path)
        dataset[name] = DataElement(name, dictionary_VR(name), value, validation_mode=IGNORE)
        dataset.save_as(path)
    source = detections(tmp_path / "detections.json", (uids[0], 0, [1, 2, 30, 40], 0.9))
    assert report(source, tmp_path / "ct", tmp_path / "out", progress=False) == 1
    (path,) = (tmp_path / "out").glob("*.dcm")
    assert not dcmread(path).get(name)
    assert value not in "".join(capfd.readouterr()) + "".join(str(warning.message) for warning in recwarn)


def test_a_detection_that_nobody_accepted_is_not_written_as_a_person_s(tmp_path: Path) -> None:
    (image, *_) = series(tmp_path / "ct")
    place = {"image_uid": image, "x0": 1.0, "y0": 2.0, "x1": 30.0, "y1": 40.0, "bookmark_ids": ("b",)}
    write_lesions(
        [Lesion(lesion_id=name, source="detector", review=state, **place)  # type: ignore[arg-type]
         for name, state in (("a", "accepted"), ("b", "unreviewed"))],
        tmp_path / "lesions.parquet",
    )  # fmt: skip
    report(tmp_path / "lesions.parquet", tmp_path / "ct", tmp_path / "out", progress=False)
    assert len(read_all(tmp_path / "out")) == 1
    assert [row["row"] for row in rows_of(tmp_path / "out" / "rejected.csv")] == ["b"]


def test_findings_sent_to_the_archive_leave_a_person_s_marks_alone(tmp_path: Path) -> None:
    uids = series(tmp_path / "ct")
    pair = Bookmark(
        bookmark_id="b", source="dicom-sr", form="bidirectional", image_uid=uids[0], patient_id="P1",
        points_px=(12.0, 30.0, 28.0, 30.0, 20.0, 25.0, 20.0, 35.0),
    )  # fmt: skip
    (alone,) = merge([pair])
    assert alone.box_px is not None
    larger = [alone.box_px[0] - 1, alone.box_px[1] - 1, alone.box_px[2] + 1, alone.box_px[3] + 1]
    report(
        detections(tmp_path / "detections.json", (uids[0], 0, larger, 0.9)),
        tmp_path / "ct", tmp_path / "out", progress=False,
    )  # fmt: skip
    found = {lesion.source: lesion for lesion in merge([pair, *read_all(tmp_path / "out")])}
    assert found["dicom-sr"] == alone
    assert found["detector"].awaits_review
    assert found["detector"].box_px == pytest.approx(larger, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "expected"),
    [({"version": "0.1"}, "0.1"), ({"file": "model.pt", "sha256": "ab" * 32}, "abababababab"), ({}, "unknown")],
)
def test_the_report_says_which_weights_found_it(tmp_path: Path, model: dict[str, str], expected: str) -> None:
    uids = series(tmp_path / "ct")
    source = detections(tmp_path / "detections.json", (uids[0], 0, [1, 2, 3, 4], 0.5))
    source.write_text(json.dumps({**json.loads(source.read_text()), "model": model}))
    report(source, tmp_path / "ct", tmp_path / "out", progress=False)
    (path,) = (tmp_path / "out").glob("*.dcm")
    versions: list[str] = []

    def look(_: Dataset, element: DataElement) -> None:
        if element.keyword == "ContentSequence":
            versions.extend(
                item.TextValue
                for item in element.value
                if item.ConceptNameCodeSequence[0].CodeMeaning == "Algorithm Version"
            )

    dcmread(path).walk(look)
    assert set(versions) == {expected}


def test_same_input_same_files(tmp_path: Path) -> None:
    uids = series(tmp_path / "ct")
    source = detections(tmp_path / "detections.json", (uids[0], 0, [1, 2, 3, 4], 0.5))
    for name in ("a", "b"):
        report(source, tmp_path / "ct", tmp_path / name, progress=False)
    (first,), (second,) = (list((tmp_path / name).iterdir()) for name in "ab")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def lesion(number: int, uid: str, **fields: object) -> Lesion:
    values = {"lesion_id": f"lesion{number}", "bookmark_ids": ("b",), "source": "dicom-sr", "image_uid": uid, **fields}
    return Lesion(**values)  # type: ignore[arg-type]


def test_lesions_of_two_series(tmp_path: Path) -> None:
    first, second = series(tmp_path / "ct" / "1"), series(tmp_path / "ct" / "2", number=2)
    pair = (10.0, 10.0, 30.0, 12.5, 20.0, 5.0, 19.0, 15.0)
    lesions = [
        lesion(1, first[1], recist_px=pair, long_diameter_mm=10.5, short_diameter_mm=8.0, tracking_uid="2.25.55"),
        lesion(2, second[0], recist_px=pair[:4], site="10200004^SCT^Liver", long_diameter_mm=10.5),
        lesion(3, second[0], x0=1.0, y0=2.0, x1=30.0, y1=40.0, score=0.5, source="detector", review="accepted"),
        lesion(4, second[2], centre_x=7.0, centre_y=8.0, text="look"),
        lesion(5, second[2], x0=1.0, y0=2.0, x1=30.0, y1=40.0, review="rejected"),
        lesion(6, "2.25.404", x0=1.0, y0=2.0, x1=30.0, y1=40.0),
    ]
    write_lesions(lesions, tmp_path / "lesions.parquet")
    assert report(tmp_path / "lesions.parquet", tmp_path / "ct", tmp_path / "out", progress=False) == 2
    found = {mark.form: mark for mark in read_all(tmp_path / "out")}
    assert set(found) == {"bidirectional", "length", "box", "point"}
    assert found["bidirectional"].points_px == pair
    assert (found["bidirectional"].stated_long_mm, found["bidirectional"].stated_short_mm) == (10.5, 8.0)
    assert found["bidirectional"].tracking_uid == "2.25.55"
    assert found["length"].site == "10200004^SCT^Liver"
    assert (found["point"].points_px, found["point"].text) == ((7.0, 8.0), "look")
    assert {row["row"]: row["reason"] for row in rows_of(tmp_path / "out" / "rejected.csv")} == {
        "lesion5": "a person rejected it",
        "lesion6": "its image is not in the DICOM folder",
    }


def test_a_series_without_uids_gets_derived_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uids = series(tmp_path / "ct", uids=False)
    source = detections(tmp_path / "detections.json", (uids[1], 1, [1, 2, 30, 40], 0.5), series_uid=None)
    assert report(source, tmp_path / "ct", tmp_path / "out", progress=False) == 1
    (mark,) = read_all(tmp_path / "out")
    assert (mark.image_uid, mark.points_px) == (uids[1], (1, 2, 30, 40))
    assert (mark.series_uid or "").startswith("2.25.")
    assert "derived" in caplog.text
    source = detections(tmp_path / "detections.json", (None, 1, [1, 2, 30, 40], 0.5), series_uid=None)
    assert report(source, tmp_path / "ct", tmp_path / "by-slice", progress=False) == 1
    assert read_all(tmp_path / "by-slice")[0].image_uid == uids[1]


def report_on_a_real_slice(shared_data: Path, out: Path) -> str:
    """Report one box on a slice without UIDs; its SOP instance UID."""
    folder = shared_data / "ct" / "totalsegmentator_dicom"
    path = sorted(path for path in folder.rglob("*") if path.is_file() and dicom_kind.sop_class_uid(path))[4]
    uid = str(dcmread(path, stop_before_pixels=True).file_meta.MediaStorageSOPInstanceUID)
    out.mkdir()
    source = detections(out / "detections.json", (uid, 4, [100.5, 200.25, 130, 240], 0.5), series_uid=None)
    assert report(source, folder, out, progress=False) == 1
    return uid


def test_real_slices_without_uids(shared_data: Path, tmp_path: Path) -> None:
    uid = report_on_a_real_slice(shared_data, tmp_path / "out")
    (mark,) = read_all(tmp_path / "out")
    assert (mark.image_uid, mark.points_px) == (uid, (100.5, 200.25, 130, 240))


def test_dciodvfy_finds_no_error(shared_data: Path, tmp_path: Path, judges: Judges) -> None:
    report_on_a_real_slice(shared_data, tmp_path / "out")
    (written,) = (tmp_path / "out").glob("*.dcm")
    assert judges.dciodvfy(written, "ComprehensiveSR") == []


def test_bad_input(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    source = detections(tmp_path / "detections.json", ("2.25.404", 0, [1, 2, 3, 4], 0.5))
    with pytest.raises(DataPrepError, match="none of the images"):
        report(source, tmp_path / "ct", tmp_path / "out", progress=False)
    with pytest.raises(DataPrepError, match="no such folder"):
        report(source, tmp_path / "nowhere", tmp_path / "out", progress=False)
    other = tmp_path / "other.txt"
    other.write_text("hello")
    with pytest.raises(DataPrepError, match="neither a detections"):
        report(other, tmp_path / "ct", tmp_path / "out", progress=False)
    with pytest.raises(DataPrepError, match="cannot be read"):
        report(tmp_path / "missing.json", tmp_path / "ct", tmp_path / "out", progress=False)
    empty = detections(tmp_path / "empty.json")
    assert report(empty, tmp_path / "ct", tmp_path / "out", progress=False) == 0
