"""Deflated DICOM files and bombs, whatever their file meta information looks like; with every way to read a file."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from data_prep.archive import header as header_module
from data_prep.archive import volume as volume_module
from data_prep.archive.header import read_headers
from data_prep.archive.volume import read_slice_hu
from data_prep.errors import UnreadableError
from data_prep.readers import dicom_kind
from data_prep.readers.dicom_kind import load_dataset
from tests.data_prep.dicom_objects import encoded
from tests.data_prep.samples import ct_slice

LIMIT = 8 * 2**20
PREAMBLE = bytes(128) + b"DICM"


def load_limited(path: Path) -> Dataset:
    return Dataset(load_dataset(path, max_bytes=LIMIT))  # without the file meta information


READERS: list[Callable[[Path], object]] = [load_limited, read_headers, read_slice_hu]
every_reader = pytest.mark.parametrize("reader", READERS, ids=["load_dataset", "read_headers", "read_slice_hu"])


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (header_module, volume_module):
        monkeypatch.setattr(module, "MAX_HEADER_BYTES", LIMIT)


def deflate(data: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(data) + squeeze.flush()


def element(number: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 0002."""
    if vr in (b"OB", b"UN"):
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


SYNTAX = element(0x10, b"UI", DeflatedExplicitVRLittleEndian.encode())
BEFORE = {
    "nothing": b"",
    "a length that is wrong": element(0, b"UL", struct.pack("<I", 9)),
    "a UID padded to 5 KiB": element(3, b"UI", b"1.2.3".ljust(5000, b"\0")),
    "private information of 20 KiB": element(0x102, b"OB", bytes(20_000)),
    "a header across the end of the head": element(3, b"UI", bytes(4096 - 132 - 8 - 10)) + element(0x102, b"OB", b"xx"),
}


def body() -> bytes:
    """The data set of a CT image in explicit VR, little endian."""
    data = encoded(ct_slice(0))
    return data[144 + struct.unpack("<I", data[140:144])[0] :]


BOMB = deflate(bytes(LIMIT + 2**20))


@every_reader
@pytest.mark.parametrize("start", [PREAMBLE, b""], ids=["preamble", "no preamble"])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_bomb_is_not_inflated(before: bytes, start: bytes, reader: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    # Without preamble nothing else says that it is DICOM.
    named = b"" if start else element(2, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0")
    path.write_bytes(start + named + before + SYNTAX + BOMB)
    with pytest.raises(UnreadableError, match="inflates to more than 8 MiB"):
        reader(path)


@every_reader
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_deflated_image_is_read(before: bytes, reader: Callable[[Path], object], tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "deflated"
    plain.write_bytes(PREAMBLE + element(0x10, b"UI", ExplicitVRLittleEndian.encode() + b"\0") + body())
    path.write_bytes(PREAMBLE + before + SYNTAX + deflate(body()))
    assert str(reader(path)) == str(reader(plain))


@every_reader
def test_a_deflated_image_that_is_cut_off(reader: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "deflated"
    path.write_bytes(PREAMBLE + SYNTAX + deflate(body())[:-9])
    with pytest.raises(UnreadableError, match="cut off within its deflated content"):
        reader(path)


@every_reader
def test_file_meta_information_of_any_length_is_not_searched(reader: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(PREAMBLE + element(0x102, b"OB", bytes(2**16)) + SYNTAX + BOMB)
    with pytest.raises(UnreadableError, match="file meta information is longer than 64 KiB") as caught:
        reader(path)
    assert str(path) in str(caught.value)


@every_reader
@pytest.mark.parametrize(
    "before",
    [
        # pydicom reads all elements again, as implicit VR, where the VR of the first is unknown.
        element(0, b"AB", b"\0" * 4),
        # An element of undefined length that ends beyond the head; what it begins with is not group 0002.
        struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, 0xFFFFFFFF) + b"\x08\0" * 5000 + b"\xfe\xff\xdd\xe0\0\0\0\0",
    ],
    ids=["unknown VR", "undefined length"],
)
def test_what_pydicom_reads_in_two_ways_is_refused(
    before: bytes, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(PREAMBLE + before + SYNTAX + BOMB)
    with pytest.raises(UnreadableError, match="ValueError"):
        reader(path)


@every_reader
def test_a_command_does_not_hide_a_bomb(reader: Callable[[Path], object], tmp_path: Path) -> None:
    """pydicom takes group 0000 after the file meta information for a command set, and inflates what is behind it."""
    command = struct.pack("<HHI", 0, 0, 4) + bytes(4)
    path = tmp_path / "command"
    path.write_bytes(PREAMBLE + SYNTAX + command + BOMB)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError):
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def test_the_sop_class_of_a_bomb_is_looked_for_in_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(PREAMBLE + BEFORE["a UID padded to 5 KiB"] + SYNTAX + deflate(bytes(64 * 2**20)))
    tracemalloc.start()
    try:
        assert dicom_kind.sop_class_uid(path) is None
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
    path.write_bytes(PREAMBLE + BEFORE["a UID padded to 5 KiB"] + SYNTAX + deflate(body()))
    assert dicom_kind.sop_class_uid(path) == "1.2.840.10008.5.1.4.1.1.2"


def test_of_an_ordinary_file_one_head_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ct.dcm"
    path.write_bytes(encoded(ct_slice(0)))
    monkeypatch.setattr(dicom_kind, "MAX_META_BYTES", -1)  # what a second look would use: all of the file
    with path.open("rb", buffering=0) as file:
        assert dicom_kind.inflated(path, file, LIMIT) is None
        assert file.tell() == dicom_kind.HEAD_BYTES


def test_a_small_file_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "ct.dcm"
    path.write_bytes(encoded(ct_slice(0)))
    tracemalloc.start()
    try:
        load_dataset(path, max_bytes=2**30)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
