"""Key-object notes: the images that were flagged."""

from __future__ import annotations

from pathlib import Path

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
