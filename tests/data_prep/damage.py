"""Ways to damage a file: by chance, and by malice. Same seed, same bytes."""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.dataelem import RawDataElement

PATHS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows\\win.ini",
    "file:///etc/passwd",
    "S/../../x.png",
    "S/x\0.png",
    "S/" + "A" * 5_000 + ".png",
)
"""Image paths and addresses that lead out of the images folder, or nowhere."""

FILE_NAMES = (
    "../../etc/passwd_1_1_1.png",
    "/etc/000001_01_01_001.png",
    "000001_01_01_../../001.png",
    "000001_01_01_001.png\0.txt",
    "..\\000001_01_01_001.png",
    "0" * 10_000 + "_01_01_001.png",
)
"""The same for ``File_name`` of a DeepLesion CSV."""


@dataclass(frozen=True)
class Damaged:
    """A damaged file. ``hopeless``: it cannot be harmless, so it must be listed with a reason."""

    name: str
    data: bytes
    hopeless: bool


Way = Callable[[bytes, random.Random], bytes]


def damaged(seeds: dict[str, bytes], count: int, seed: int) -> Iterator[Damaged]:
    """``count`` files: each hostile one first, then the seeds in turn, each damaged in every way in turn."""
    made = 0
    for name, data in hostile(seeds):
        if made < count:
            yield Damaged(f"{made:04d}-{name}", data, True)
            made += 1
    names = sorted(seeds)
    number = 0
    while made < count:
        name = names[number % len(names)]
        ways = ways_of(seeds[name])
        way, hopeless = ways[number // len(names) % len(ways)]
        data = way(seeds[name], random.Random(f"{seed}/{number}"))
        number += 1
        if data != seeds[name]:
            yield Damaged(f"{made:04d}-{way.__name__}-{name}", data, hopeless)
            made += 1


def ways_of(data: bytes) -> list[tuple[Way, bool]]:
    """What can be done to a file of this kind, and whether that is hopeless."""
    if data[128:132] == b"DICM":
        return _DICOM
    if data.startswith(b"<"):
        return _XML
    if data.startswith((b"{", b"[")):
        return _JSON
    return _NIFTI if data[344:347] == b"n+1" else _CSV


def each_way(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """``count`` copies of one file, damaged in every way in turn."""
    ways, chance = ways_of(data), random.Random(seed)
    for number in range(count):
        way, _ = ways[number % len(ways)]
        yield way(data, chance)


def cut_or_overwritten(
    data: bytes,
    count: int,
    seed: int,
    times: Sequence[int] = (1, 10, 100),
    reach: Callable[[int], int] | None = None,
) -> Iterator[bytes]:
    """Copies with some chance bytes in place of their own and, every other one, with the end missing.

    The bytes are among the first ``reach(number)`` of copy ``number``, or among all.
    """
    chance = random.Random(seed)
    for number in range(count):
        made = bytearray(data)
        if number % 2:
            del made[chance.randrange(len(made)) :]
        else:
            for _ in range(chance.choice(times)):
                made[chance.randrange(reach(number) if reach else len(made))] = chance.randrange(256)
        yield bytes(made)


def beginnings_and_overwritten(data: bytes, count: int, new: Callable[[random.Random], int]) -> Iterator[bytes]:
    """Twenty beginnings of a file, then copies in which some bytes are ``new(chance)``."""
    yield from (data[: len(data) * part // 20] for part in range(20))
    chance = random.Random(4)
    for _ in range(20, count):
        made = bytearray(data)
        for _ in range(chance.choice((1, 3, 30))):
            made[chance.randrange(len(made))] = new(chance)
        yield bytes(made)


# --- any file ------------------------------------------------------------------------------------------------------


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(1, len(data) - 1)]


def flip(data: bytes, chance: random.Random) -> bytes:
    """Some bits are wrong."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        made[chance.randrange(128 if data[128:132] == b"DICM" else 0, len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def overwrite(data: bytes, chance: random.Random) -> bytes:
    """Some bytes in a row are chance or zero."""
    length = chance.choice((1, 8, 64))
    start = chance.randrange(132 if data[128:132] == b"DICM" else 0, len(data) - length)
    return data[:start] + chance.choice((chance.randbytes(length), bytes(length))) + data[start + length :]


# --- DICOM ---------------------------------------------------------------------------------------------------------


def _elements(data: bytes) -> list[RawDataElement]:
    """The data set's own elements with a stated length, in file order."""
    found = pydicom.dcmread(BytesIO(data), force=True).values()
    return [element for element in found if isinstance(element, RawDataElement) and element.length != 0xFFFFFFFF]


def cut_in_element(data: bytes, chance: random.Random) -> bytes:
    """The end is missing, from the middle of an element's value on."""
    start, length = chance.choice([(e.value_tell, e.length) for e in _elements(data) if e.length > 1])
    return data[: start + chance.randrange(1, length)]


def absurd_length(data: bytes, chance: random.Random) -> bytes:
    """An element says that it is much longer than the file."""
    wide = ("OB", "OD", "OF", "OL", "OW", "SQ", "UC", "UN", "UR", "UT", None)
    places = [e.value_tell - 4 for e in _elements(data) if e.is_implicit_VR or e.VR in wide]
    if not places:
        return cut_in_element(data, chance)
    place = chance.choice(places)
    stated = struct.pack("<I", chance.choice((0x7FFFFFFE, 0xFFFFFFFE, 0x10000000)))
    return data[:place] + stated + data[place + 4 :]


def any_length(data: bytes, chance: random.Random) -> bytes:
    """Four bytes anywhere become a large number."""
    place = chance.randrange(140, len(data) - 4)
    return data[:place] + struct.pack("<I", chance.choice((0xFFFFFFFF, 0x7FFFFFFF, 0xFFFF))) + data[place + 4 :]


def wrong_vr(data: bytes, chance: random.Random) -> bytes:
    """Some elements are said to be of another kind."""
    made = bytearray(data)
    places = [m.start() for m in re.finditer(rb"CS|SQ|FL|DS|IS|UI|US|LO|PN", data) if m.start() > 140]
    for place in chance.sample(places, min(chance.choice((1, 4)), len(places))):
        made[place : place + 2] = chance.choice((b"UN", b"SQ", b"FL", b"US", b"PN", b"DS", b"OB", b"ZZ"))
    return bytes(made)


def deep_sequences(data: bytes, chance: random.Random) -> bytes:
    """Thousands of sequences, each in an item of the one before."""
    depth = chance.randrange(2_000, 5_000)
    kind = b"" if any(element.is_implicit_VR for element in _elements(data)) else b"SQ\0\0"
    level = b"\xff\xff\x01\x00" + kind + b"\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    close = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return data + level * depth + close * depth


_DICOM: list[tuple[Way, bool]] = [
    (cut_in_element, True), (flip, False), (wrong_vr, False), (absurd_length, True), (overwrite, False),
    (any_length, False), (cut, False), (deep_sequences, True), (flip, False), (wrong_vr, False),
]  # fmt: skip


# --- text ----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(rb'(?<=[": ,])\d+(?:\.\d+)?(?=[",} ])')


def cut_document(data: bytes, chance: random.Random) -> bytes:
    """The end is missing; what is left is no whole document."""
    return data[: chance.randrange(1, len(data.rstrip()) - 1)]


def _swapped(data: bytes, chance: random.Random, new: bytes) -> bytes:
    places = list(_NUMBER.finditer(data))
    place = chance.choice(places)
    return data[: place.start()] + new + data[place.end() :]


def absurd_number(data: bytes, chance: random.Random) -> bytes:
    """A number is none, or too large for any column."""
    new = (b"1e999", b"9" * 6_000, b"-1e308", b"1e308", b"99999999999", b"NaN", b"-5", b"")
    return _swapped(data, chance, chance.choice(new))


def wrong_type(data: bytes, chance: random.Random) -> bytes:
    """A JSON value is of another type."""
    return _swapped(data, chance, chance.choice((b"null", b"[]", b"{}", b'"x"', b"true", b"[[1]]", b'{"a":1}')))


_XML: list[tuple[Way, bool]] = [
    (cut_document, True), (flip, False), (absurd_number, False), (overwrite, False), (flip, False),
]  # fmt: skip
_JSON: list[tuple[Way, bool]] = [
    (cut_document, True), (flip, False), (absurd_number, False), (wrong_type, False), (overwrite, False),
]  # fmt: skip
_CSV: list[tuple[Way, bool]] = [(cut, False), (flip, False), (absurd_number, False), (overwrite, False)]


# --- NIfTI ---------------------------------------------------------------------------------------------------------


def flip_header(data: bytes, chance: random.Random) -> bytes:
    """Some bytes of the header are wrong."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 5))):
        made[chance.randrange(348)] = chance.randrange(256)
    return bytes(made)


def absurd_size(data: bytes, chance: random.Random) -> bytes:
    """The header states far more voxels than there are."""
    return data[:42] + struct.pack("<3h", *(chance.randrange(5_000, 32_768) for _ in range(3))) + data[48:]


def packed_cut(data: bytes, chance: random.Random) -> bytes:
    """Compressed, and the end is missing."""
    packed = gzip.compress(data, mtime=0)
    return packed[: chance.randrange(1, len(packed) - 9)]


_NIFTI: list[tuple[Way, bool]] = [
    (cut, True), (flip_header, False), (absurd_size, True), (packed_cut, True), (flip, False),
]  # fmt: skip


# --- malice --------------------------------------------------------------------------------------------------------


def hostile(seeds: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Files that somebody made to do harm; none of them is a mark."""
    for name in ("aim3.xml", "aim4.xml"):
        prologue, document = re.fullmatch(rb"(<\?xml[^>]*>)?(.*)", seeds[name], re.DOTALL).groups()  # type: ignore[union-attr]
        root = re.match(rb"\s*<([\w:]+)", document).group(1)  # type: ignore[union-attr]
        for kind, entities in (("bomb", _BOMB), ("outside", _OUTSIDE), ("parameter", _PARAMETER)):
            words = document.replace(b"</" + root + b">", b"<comment value='x'>&z;</comment></" + root + b">")
            yield f"{kind}-{name}", (prologue or b"") + b"<!DOCTYPE " + root + b" [" + entities + b"]>" + words
        yield f"deep-{name}", document.replace(b"</" + root, b"<a>" * 5_000 + b"</a>" * 5_000 + b"</" + root)
        for number, path in enumerate(PATHS):
            if "\0" not in path:
                yield f"path{number}-{name}", seeds[name].replace(b"2.25.74002", path.encode())
    for number, path in enumerate(PATHS):
        yield f"path{number}-aim.json", seeds["aim.json"].replace(b'"2.25.74002"', json.dumps(path).encode())
        found = seeds["detections.json"].replace(b'"S/002.png"', json.dumps(path).encode())
        yield f"path{number}-detections.json", found
        table = seeds["marks.csv"].splitlines()[:2]
        yield f"path{number}-marks.csv", b"\n".join(table).replace(b"S/002.png", path.encode())
    for number, name in enumerate(FILE_NAMES):
        yield f"name{number}-DL_info.csv", seeds["DL_info.csv"].replace(b"000001_01_01_002.png", name.encode())
    for name in ("aim.json", "detections.json"):
        yield f"deep-{name}", seeds[name].rstrip()[:-1] + b',"x":' + b"[" * 10**5 + b"]" * 10**5 + b"}"
    head, _, row = seeds["DL_info.csv"].partition(b"\n")
    yield "long-DL_info.csv", head + b"\n" + row.replace(b"000001_01", b"1" * 10**5 + b"_01", 1)
    yield "long-marks.csv", seeds["marks.csv"].splitlines()[0] + b"\nlength," + b"1 " * 10**6 + b",S/1.png,,,,\n"
    yield "items-report.dcm", seeds["report.dcm"] + b"\xfe\xff\x00\xe0\0\0\0\0" * 60_000


_BOMB = b'<!ENTITY a0 "ha">' + b"".join(
    b'<!ENTITY a%d "%s">' % (k + 1, b"&a%d;" % k * 10) for k in range(12)
) + b'<!ENTITY z "&a12;">'  # fmt: skip
_OUTSIDE = b'<!ENTITY z SYSTEM "file:///etc/passwd">'
_PARAMETER = b'<!ENTITY % p SYSTEM "file:///etc/passwd"> %p; <!ENTITY z "x">'
