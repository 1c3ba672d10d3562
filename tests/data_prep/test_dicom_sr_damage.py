"""Structured reports that are damaged or hostile, and files that are none."""

from __future__ import annotations

import time
import warnings
import zlib
from pathlib import Path

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection, dicom_kind, dicom_sr
from tests.data_prep.damage import each_way
from tests.data_prep.dicom_objects import encoded
from tests.data_prep.sr_objects import content, mark, read_bytes, read_document, report, scoord


def survives(data: bytes, folder: Path) -> None:
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = read_bytes(data, folder)
        except UnreadableError:
            found = [Rejection("", "", "unreadable")]
    assert found
    assert time.process_time() - began < 10


def test_damaged_reports_of_ours(tmp_path: Path) -> None:
    marks = [mark("bidirectional", 10, 20, 50, 60, 20, 50, 40, 30, text="x"), mark("circle", 9, 9, 12, 9)]
    for data in each_way(encoded(report(marks)), 40, seed=1):
        survives(data, tmp_path)


def test_damaged_reports_of_others(shared_data: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((shared_data / "bookmarks").glob("sr/*.dcm"))):
        for data in each_way(path.read_bytes(), 10, seed=number):
            survives(data, tmp_path)


@pytest.mark.parametrize("depth", [200, 5000])
def test_deep_nesting(tmp_path: Path, depth: int) -> None:
    header = encoded(report([mark("point", 1, 1)]))[:400]
    meta = header[: 144 + int.from_bytes(header[140:144], "little")]
    level = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    close = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    data = meta + level * depth + close * depth
    try:
        (found,) = read_bytes(data, tmp_path)
    except UnreadableError as error:
        assert "nested" in str(error)  # noqa: PT017 - either way of saying so is right
    else:
        assert isinstance(found, Rejection)
        assert "nested deeper" in found.reason


def test_too_many_items_and_an_absurd_length(tmp_path: Path) -> None:
    data = encoded(report([mark("point", 1, 1)]))
    with pytest.raises(UnreadableError, match="sequence items"):
        read_bytes(data + b"\xfe\xff\x00\xe0\0\0\0\0" * (dicom_kind.MAX_ITEMS + 1), tmp_path)
    path = tmp_path / "large.dcm"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="larger than"):
        dicom_kind.load_dataset(path, max_bytes=1024 * 2 if len(data) > 2048 else len(data) - 1)


def test_many_marks_in_one_container_take_linear_time() -> None:
    items = [content("TEXT", concept="121106^DCM^Comment", TextValue="x") for _ in range(1500)]
    shapes = [scoord("POINT", i, 1) for i in range(700)]
    began = time.process_time()
    found = read_document(content("CONTAINER", concept="125007^DCM^Measurement Group", children=[*items, *shapes]))
    assert len(found) == 700
    assert time.process_time() - began < 10


def test_a_deflated_report_and_a_deflate_bomb(tmp_path: Path) -> None:
    dataset = report([mark("length", 1, 2, 30, 40)])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = encoded(dataset)
    (found,) = read_bytes(data, tmp_path)
    assert isinstance(found, Bookmark)
    assert found.points_px == (1.0, 2.0, 30.0, 40.0)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(100 * 2**20)) + packer.flush()  # 100 MiB in 100 KiB
    start = 144 + int.from_bytes(data[140:144], "little")
    survives(data[:start] + bomb, tmp_path)


# --- what kind of file ---------------------------------------------------------------------------------------------


def test_sop_class_of_every_sort_of_file(tmp_path: Path) -> None:
    dataset = report([mark("point", 1, 1)])
    path = tmp_path / "no-suffix"
    path.write_bytes(encoded(dataset))
    assert dicom_kind.sop_class_uid(path) == "1.2.840.10008.5.1.4.1.1.88.33"
    assert dicom_sr.recognise(path.read_bytes()[:4096], path)
    del dataset.file_meta.MediaStorageSOPClassUID
    dataset.save_as(path, enforce_file_format=False)
    assert dicom_kind.sop_class_uid(path) == "1.2.840.10008.5.1.4.1.1.88.33"  # from the data set
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[144 + int.from_bytes(path.read_bytes()[140:144], "little") :])
    assert dicom_kind.sop_class_uid(bare) == "1.2.840.10008.5.1.4.1.1.88.33"  # no preamble, no file meta
    assert isinstance(next(dicom_sr.read(bare)), Bookmark)
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM at all")
    assert dicom_kind.sop_class_uid(text) is None
    assert not dicom_sr.recognise(b"no DICOM", text)
    assert dicom_kind.sop_class_uid(tmp_path / "missing") is None
    assert dicom_kind.sop_class_uid(tmp_path) is None
    with pytest.raises(UnreadableError, match="not a DICOM file"):
        next(dicom_sr.read(text))
