"""What kind of DICOM object a file holds, and a careful way to load it: shared by all DICOM readers."""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.uid import RE_VALID_UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pydicom.values import converters

from data_prep.errors import UnreadableError
from data_prep.quiet import quiet_pydicom

SR_PREFIX = "1.2.840.10008.5.1.4.1.1.88."
KEY_OBJECT_SELECTION = SR_PREFIX + "59"

MAX_BYTES = 64 * 2**20
"""Larger than any object that holds marks rather than pixels."""

MAX_ITEMS = 50_000
"""Sequence items that are parsed; each costs about 50 µs, so this bounds the time a hostile file can take."""

HEAD_BYTES = 4096
"""As much of a file as nearly always holds its file meta information."""

MAX_META_BYTES = 64 * 2**10
"""Longer than any file meta information; some 300 bytes are usual."""

_MAGIC_AT, _MAGIC = 128, b"DICM"
_DEFLATED = DeflatedExplicitVRLittleEndian.encode()
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_UNDEFINED = 0xFFFFFFFF
_UID = re.compile(RE_VALID_UID)
_SOP_CLASS = 0x00080016
_META_SOP_CLASS = 0x00020002
_META_TRANSFER_SYNTAX = 0x00020010

# What pydicom raises on damaged bytes, as met with truncated, bit-flipped and ill-typed files.
DAMAGE = (
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    struct.error,
    TypeError,
    UnicodeError,
    ValueError,
    zlib.error,
)


def looks_like_dicom(head: bytes) -> bool:
    """The Part 10 magic, or a data set that starts without a preamble (group 0002 or 0008, little endian)."""
    return head[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC or head[:2] in (b"\x02\x00", b"\x08\x00")


def sop_class_uid(path: Path) -> str | None:
    """The SOP Class UID of a DICOM file, or None where it is not DICOM or does not say.

    Reads no more than the file meta and, where those are silent, the first elements of the data set. Answers are
    remembered by path, size and modification time, since several readers ask about one file.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return None
    return _sop_class_uid(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _sop_class_uid(path: Path, _mtime_ns: int, _size: int) -> str | None:
    try:
        head = _load(path, HEAD_BYTES)
        if not looks_like_dicom(head):
            return None
        with quiet_pydicom():
            # A file that puts more than 4 KiB before its class is looked at again.
            return _find_sop_class(head) or _find_sop_class(_load(path, 2**20))
    except DAMAGE:
        return None


def _load(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        # Python allocates as much as it is asked to read.
        return file.read(min(limit, os.fstat(file.fileno()).st_size))


def _find_sop_class(head: bytes) -> str | None:
    try:
        uid = _text(_file_meta(BytesIO(head)), _META_SOP_CLASS)
        if uid and _UID.fullmatch(uid):
            return uid
        part = read_partial(
            BytesIO(_beginning(head)),
            stop_when=lambda tag, _vr, _length: int(tag) > _SOP_CLASS,
            specific_tags=[_SOP_CLASS],
            force=True,
        )
        uid = _text(part, _SOP_CLASS)
        return uid if uid and _UID.fullmatch(uid) else None  # damage may put anything here, a name too
    except DAMAGE:
        return None


def _text(dataset: Dataset, tag: int) -> str | None:
    element = dataset.get(tag)
    return str(element.value).strip(" \0") or None if element is not None and element.value else None


def _file_meta(buffer: BytesIO) -> Dataset:
    """The elements of group 0002, as ``dcmread`` finds them; leaves ``buffer`` at the first byte after them.

    Raises:
        ValueError: an element of an unknown VR or of undefined length; the standard has neither there.
    """
    read_preamble(buffer, force=True)
    return read_dataset(buffer, False, True, stop_when=_after_file_meta)


def _after_file_meta(tag: int, vr: str | None, length: int) -> bool:
    if int(tag) >> 16 != 2:
        return True
    # With such an element ``dcmread`` may go on elsewhere than here: a second time as implicit VR, or within the
    # element where the end of the element is missing.
    if length == _UNDEFINED or (vr is not None and vr not in converters):
        raise ValueError("damaged file meta information")
    return False


def inflated(path: Path, file: BinaryIO, max_bytes: int) -> bytes | None:
    """The whole of an open file whose data set is deflated, as one whose data set is not; None where it is not.

    pydicom inflates whatever comes, a terabyte of zeros too: who gives it a file must ask here before. Of a file that
    is not deflated no more than the file meta information is read. ``file`` is left anywhere.

    Raises:
        UnreadableError: the file meta information is longer than :data:`MAX_META_BYTES`, or the data set inflates to
            more than ``max_bytes`` or is cut off.
        Exception: one of :data:`DAMAGE`: the file meta information or what is deflated is damaged.
    """
    meta = _meta_bytes(path, file)
    if _deflated_at(meta) is None:
        return None
    file.seek(len(meta))
    inflater, body = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    while not inflater.eof and (block := file.read(2**16)):
        body += inflater.decompress(block, max_bytes + 1 - len(body))
        if len(body) > max_bytes:
            raise UnreadableError(f"{path}: inflates to more than {max_bytes >> 20} MiB; no such object is as large")
    if not inflater.eof:
        raise UnreadableError(f"{path}: cut off within its deflated content")
    return _undeclared(meta) + body


def _meta_bytes(path: Path, file: BinaryIO) -> bytes:
    """The beginning of a file, up to the end of its file meta information."""
    for limit in (HEAD_BYTES, MAX_META_BYTES):
        file.seek(0)
        buffer = BytesIO(head := file.read(limit))
        try:
            _file_meta(buffer)
        except DAMAGE:
            if limit == MAX_META_BYTES or len(head) < limit:
                raise
            continue  # perhaps only because an element's header is cut in two
        if buffer.tell() < len(head) or len(head) < limit:
            return head[: buffer.tell()]
    raise UnreadableError(
        f"{path}: the file meta information is longer than {MAX_META_BYTES >> 10} KiB; not a plausible DICOM file"
    )


def load_dataset(path: Path, *, max_bytes: int = MAX_BYTES, max_items: int = MAX_ITEMS) -> Dataset:
    """A whole DICOM file as a data set, with limits that a hostile file cannot pass.

    The file is read once into memory, so a stated length beyond its end allocates nothing. A deflated data set is
    inflated to at most ``max_bytes``. Elements are still converted when they are first used: use the result within
    :data:`DAMAGE`.

    Raises:
        UnreadableError: not DICOM, larger than ``max_bytes``, more than ``max_items`` sequence items, nested too
            deep, cut off, or damaged.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError(f"{path}: not a regular file")
        data = _load(path, max_bytes + 1)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > max_bytes:
        raise UnreadableError(f"{path}: larger than {max_bytes // 2**20} MiB; no such object holds only marks")
    if not looks_like_dicom(data[:HEAD_BYTES]):
        raise UnreadableError(f"{path}: not a DICOM file")
    try:
        with quiet_pydicom():
            data = inflated(path, BytesIO(data), max_bytes) or data
            if data.count(_ITEM_TAG) > max_items:
                raise UnreadableError(f"{path}: more than {max_items} sequence items; not a plausible document")
            dataset = pydicom.dcmread(BytesIO(data), force=True)
    except RecursionError:
        raise UnreadableError(f"{path}: sequences are nested too deep") from None
    except DAMAGE as error:  # whose text may quote the header
        raise UnreadableError(f"{path}: damaged DICOM file ({type(error).__name__} while parsing)") from None
    if is_cut_off(dataset):
        raise UnreadableError(f"{path}: cut off or damaged: an element is said to be longer than what is left")
    return dataset


def is_cut_off(dataset: Dataset) -> bool:
    """Whether an element states more bytes than there are.

    pydicom takes what is left of it without a word, so marks would be lost in silence. Elements that were converted
    already are not looked at.
    """
    return any(
        isinstance(element, RawDataElement)
        and element.value is not None
        and len(element.value) < element.length != _UNDEFINED
        for element in dataset.values()
    )


def _beginning(head: bytes) -> bytes:
    """The head of a file, of a deflated data set as much as one head's length expanded."""
    start = _deflated_at(head)
    if start is None:
        return head
    return _undeclared(head[:start]) + zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[start:], len(head))


def _deflated_at(head: bytes) -> int | None:
    """Where the deflated data set begins; None where it is not deflated."""
    if _DEFLATED not in head:
        return None
    buffer = BytesIO(head)
    syntax = _text(_file_meta(buffer), _META_TRANSFER_SYNTAX)
    return buffer.tell() if syntax == DeflatedExplicitVRLittleEndian else None


def _undeclared(meta: bytes) -> bytes:
    """File meta that say explicit little endian instead of deflated; padded, so that no length changes."""
    return meta.replace(_DEFLATED, ExplicitVRLittleEndian.encode().ljust(len(_DEFLATED), b"\0"))
