"""Key-object notes: the images that were flagged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import Dataset
from pydicom.sr.codedict import codes

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.harvest import harvest
from data_prep.lesion import read_lesions
from data_prep.readers import Rejection, dicom_sr, key_object


def image(number: int) -> Dataset:
    header = Dataset()
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    header.SOPInstanceUID = f"2.25.100{number}"
    header.StudyInstanceUID, header.SeriesInstanceUID = "2.25.1", "2.25.2"
    header.PatientID = header.PatientName = header.PatientBirthDate = header.PatientSex = ""
    header.AccessionNumber = header.StudyID = header.StudyDate = header.StudyTime = ""
    header.Rows, header.Columns = 8, 8
    return header


def note(path: Path, *images: Dataset, description: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    content = KeyObjectSelection(codes.DCM.ForSurgery, list(images), description=description)
    document = KeyObjectSelectionDocument(list(images), content, "2.25.3", 1, "2.25.4", 1, manufacturer="x")
    document.save_as(path, enforce_file_format=True)
    return path


def changed_note(path: Path, *, frames: Any = None, title: tuple[str, str] | None = None) -> Path:
    """A note of two images, with these frames of the first and this code and meaning as its title."""
    document = pydicom.dcmread(note(path, image(1), image(2)))
    if frames is not None:
        first = next(item for item in document.ContentSequence if item.ValueType == "IMAGE")
        first.ReferencedSOPSequence[0].ReferencedFrameNumber = frames
    if title is not None:
        document.ConceptNameCodeSequence[0].CodeValue, document.ConceptNameCodeSequence[0].CodeMeaning = title
    document.save_as(path)
    return path


def flagged(path: Path) -> list[tuple[str | None, str | None]]:
    found = list(key_object.read(path))
    assert all(isinstance(mark, Bookmark) and mark.form == "text" and not mark.points_px for mark in found)
    return [(mark.image_uid, mark.text) for mark in found if isinstance(mark, Bookmark)]


def test_a_note_of_foreign_software(shared_data: Path) -> None:
    path = shared_data / "bookmarks" / "gsps" / "real0X.ko.dcm"
    assert key_object.recognise(path.read_bytes()[:4096], path)
    assert not dicom_sr.recognise(path.read_bytes()[:4096], path)
    images = flagged(path)
    assert len(images) == 6
    assert {title for _, title in images} == {"key image: Of Interest"}
    assert images[0][0] == "1.3.6.1.4.1.25403.2200303521616.3496.20090914123854.1"


def test_a_written_note_with_a_description(tmp_path: Path) -> None:
    path = note(tmp_path / "note", image(1), image(2), description="both lungs")
    assert key_object.recognise(path.read_bytes()[:4096], path)
    title = "key image: For Surgery: both lungs"
    assert flagged(path) == [("2.25.1001", title), ("2.25.1002", title)]


@pytest.mark.parametrize(
    ("frames", "expected"), [([3, 7, 9], [3, 7, 9]), ([3, 3, 7], [3, 7]), (5, [5]), ([0, 2], [1, 2]), (None, [None])]
)
def test_every_flagged_frame_is_a_mark(tmp_path: Path, frames: Any, expected: list[int | None]) -> None:
    marks = list(key_object.read(changed_note(tmp_path / "note", frames=frames)))
    assert all(isinstance(mark, Bookmark) for mark in marks)
    found = [(mark.image_uid, mark.frame_number) for mark in marks if isinstance(mark, Bookmark)]
    assert found == [*(("2.25.1001", frame) for frame in expected), ("2.25.1002", None)]
    assert len({mark.bookmark_id for mark in marks if isinstance(mark, Bookmark)}) == len(marks)


def test_more_frames_than_a_note_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_object, "MAX_ITEMS", 4)
    assert len(list(key_object.read(changed_note(tmp_path / "note", frames=[1, 2, 3])))) == 4
    with pytest.raises(UnreadableError, match="note: more than 4 images and frames"):
        list(key_object.read(changed_note(tmp_path / "note", frames=[1, 2, 3, 4])))


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("113001", "Rejected for Quality Reasons"),
        ("113037", "Rejected for Patient Safety Reasons"),
        ("113038", "Incorrect Modality Worklist Entry"),
        ("113039", "Data Retention Policy Expired"),
    ],
)
def test_a_rejection_note_withdraws_its_images(tmp_path: Path, code: str, meaning: str) -> None:
    (found,) = key_object.read(changed_note(tmp_path / "note", title=(code, "wrong patient: Doe")))
    reason = f"withdrawn by a rejection note ({code} {meaning}); images it names: 2"
    assert found == Rejection("", "", reason)


def test_a_quality_issue_is_no_rejection(tmp_path: Path) -> None:
    path = changed_note(tmp_path / "note", title=("113010", "Quality Issue"))
    assert {title for _, title in flagged(path)} == {"key image: Quality Issue"}


def test_a_note_joins_the_lesions_of_its_image(tmp_path: Path) -> None:
    note(tmp_path / "in" / "note", image(1), image(2))
    (tmp_path / "in" / "marks.csv").write_text(
        "form,points_px,image_uid\nlength,10 10 40 10,2.25.1001\nlength,60 60 60 90,2.25.1001\n"
    )
    harvest([tmp_path / "in"], tmp_path / "out", progress=False)
    lesions = read_lesions(tmp_path / "out" / "lesions.parquet")
    on_first = [lesion for lesion in lesions if lesion.image_uid == "2.25.1001"]
    assert len(on_first) == 2
    assert all(lesion.box_px is not None and lesion.text == "key image: For Surgery" for lesion in on_first)
    (alone,) = (lesion for lesion in lesions if lesion.image_uid == "2.25.1002")
    assert alone.box_px is None
    assert alone.text == "key image: For Surgery"


def test_a_note_that_flags_nothing(tmp_path: Path) -> None:
    path = note(tmp_path / "note", image(1))
    document = pydicom.dcmread(path)
    del document.ContentSequence
    document.save_as(path)
    (found,) = key_object.read(path)
    assert isinstance(found, Rejection)
    assert "flags no image" in found.reason


def test_damage(tmp_path: Path) -> None:
    path = note(tmp_path / "note", image(1))
    data = path.read_bytes()
    for end in range(200, len(data), 97):
        path.write_bytes(data[:end])
        try:
            list(key_object.read(path))
        except UnreadableError as error:
            assert str(path) in str(error)  # noqa: PT017 - a part of a note may also be readable
    path.write_text("nothing")
    with pytest.raises(UnreadableError, match="not a DICOM file"):
        next(key_object.read(path))
