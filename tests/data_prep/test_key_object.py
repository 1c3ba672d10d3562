"""Key-object notes: the images that were flagged."""

from __future__ import annotations

from pathlib import Path

import pytest
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import Dataset
from pydicom.sr.codedict import codes

from data_prep.errors import UnreadableError
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
    content = KeyObjectSelection(codes.DCM.ForSurgery, list(images), description=description)
    document = KeyObjectSelectionDocument(list(images), content, "2.25.3", 1, "2.25.4", 1, manufacturer="x")
    document.save_as(path, enforce_file_format=True)
    return path


def test_a_note_of_foreign_software(shared_data: Path) -> None:
    path = shared_data / "bookmarks" / "gsps" / "real0X.ko.dcm"
    assert key_object.recognise(path.read_bytes()[:4096], path)
    assert not dicom_sr.recognise(path.read_bytes()[:4096], path)
    flagged = key_object.flagged_images(path)
    assert len(flagged) == 6
    assert {title for _, title in flagged} == {"Of Interest"}
    assert flagged[0][0] == "1.3.6.1.4.1.25403.2200303521616.3496.20090914123854.1"
    (found,) = key_object.read(path)
    assert found == Rejection("", "", "a key-object note: it flags 6 images and carries no mark")


def test_a_written_note_with_a_description(tmp_path: Path) -> None:
    path = note(tmp_path / "note", image(1), image(2), description="both lungs")
    assert key_object.recognise(path.read_bytes()[:4096], path)
    title = "For Surgery: both lungs"
    assert key_object.flagged_images(path) == [("2.25.1001", title), ("2.25.1002", title)]


def test_one_image(tmp_path: Path) -> None:
    path = note(tmp_path / "note", image(1))
    assert key_object.flagged_images(path) == [("2.25.1001", "For Surgery")]
    (found,) = key_object.read(path)
    assert isinstance(found, Rejection)
    assert "flags 1 image and" in found.reason


def test_damage(tmp_path: Path) -> None:
    path = note(tmp_path / "note", image(1))
    data = path.read_bytes()
    for end in range(200, len(data), 97):
        path.write_bytes(data[:end])
        try:
            key_object.flagged_images(path)
        except UnreadableError as error:
            assert str(path) in str(error)  # noqa: PT017 - a part of a note may also be readable
    path.write_text("nothing")
    with pytest.raises(UnreadableError, match="not a DICOM file"):
        next(key_object.read(path))
