"""AIM documents that are damaged or hostile."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection, aim_json, aim_xml
from tests.data_prep.aim_objects import (
    aim3,
    calculation,
    collection,
    damaged,
    read_json,
    read_xml,
    refused,
    shape,
    shape3,
    tie,
)
from tests.data_prep.tolerance import assert_tolerant

BOMB = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">{}]>
<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM" comment="&e9;"/>"""
ENTITIES = "".join(f'<!ENTITY e{i} "{("&a;" if i == 0 else "&e" + str(i - 1) + ";") * 10}">' for i in range(10))
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM"><a>&x;</a></ImageAnnotation>"""


@pytest.mark.parametrize("document", [BOMB.format(ENTITIES), OUTSIDE], ids=["bomb", "external"])
def test_entities_are_refused(tmp_path: Path, document: str) -> None:
    with pytest.raises(UnreadableError, match="entities"):
        read_xml(document, tmp_path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    root = '<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM">'
    with pytest.raises(UnreadableError):
        read_xml(root + "<a>" * 50_000 + "</a>" * 50_000 + "</ImageAnnotation>", tmp_path)
    path = tmp_path / "deep"
    path.write_text('{"ImageAnnotationCollection": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(UnreadableError, match="nested"):
        list(aim_json.read(path))


def test_sizes_and_counts_are_limited(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.write(b'{"ImageAnnotationCollection": ')
        file.truncate(10**9)  # sparse
    for reader in (aim_json, aim_xml):
        with pytest.raises(UnreadableError, match="larger than"):
            list(reader.read(huge))
    crowd = collection(shape("TwoDimensionPolyline", [(0, 0)] * 100_001))
    assert "100001 points" in refused(read_json(crowd, tmp_path)).reason


# --- many markups in one annotation ----------------------------------------------------------------------------------


def lines_of_one_length(count: int) -> Any:
    """Lines with a stated length each."""
    lines = [shape("TwoDimensionMultiPoint", [(0, 5), (20, 5)], f"2.25.{i}") for i in range(count)]
    lengths = [calculation("Length", 20, uid=f"2.26.{i}") for i in range(count)]
    return collection(*lines, calculations=lengths, ties=[tie(f"2.26.{i}", f"2.25.{i}") for i in range(count)])


def pairs_on_many_frames(count: int) -> Any:
    """Long axes on the frames from the first to the last, then short axes the other way; lengths with no markup too."""
    frames = [*range(1, count // 2 + 1), *range(count // 2, 0, -1)]
    lines = [
        shape("TwoDimensionMultiPoint", [(0, 5), (20, 5)], f"2.25.{i}", referencedFrameNumber={"value": frame})
        for i, frame in enumerate(frames)
    ]
    names = ["LongAxis"] * (count // 2) + ["ShortAxis"] * (count // 2)
    stated = [calculation(name, "?", uid=f"2.26.{i}") for i, name in enumerate(names)]
    stated += [calculation("LongAxis", 20, uid=f"2.27.{i}") for i in range(count // 2)]
    return collection(*lines, calculations=stated, ties=[tie(f"2.26.{i}", f"2.25.{i}") for i in range(count)])


def lengths_of_one_identifier(count: int) -> Any:
    """Every length tied to every line."""
    lines = [shape("TwoDimensionMultiPoint", [(0, 5), (20, 5)], f"2.25.{i}") for i in range(count)]
    lengths = [calculation("Length", i, uid="0") for i in range(count)]
    return collection(*lines, calculations=lengths, ties=[tie("0", f"2.25.{i}") for i in range(count)])


@pytest.mark.parametrize("made", [lines_of_one_length, pairs_on_many_frames, lengths_of_one_identifier])
def test_time_is_linear_in_the_number_of_markups(tmp_path: Path, made: Callable[[int], Any]) -> None:
    path = tmp_path / "aim"

    def seconds(count: int) -> float:
        path.write_text(json.dumps(made(count)))
        times = []
        for _ in range(3):
            began = time.process_time()  # of this process alone, however busy the machine
            assert len(list(aim_json.read(path))) >= count // 2
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(2_400) < 8 * seconds(600)  # about 4 times; were it quadratic, 16


def test_pairs_are_found_on_their_frame_whatever_the_order(tmp_path: Path) -> None:
    found = read_json(pairs_on_many_frames(8), tmp_path)
    marks = [mark for mark in found if isinstance(mark, Bookmark)]
    assert [(mark.form, mark.frame_number) for mark in marks] == [("bidirectional", frame) for frame in (1, 2, 3, 4)]


def test_many_lengths_of_one_identifier_are_nobodys(tmp_path: Path) -> None:
    first, *marks = read_json(lengths_of_one_identifier(17), tmp_path)
    assert isinstance(first, Rejection)
    assert first.reason == "17 stated lengths share one identifier: which mark each is about is not known"
    assert len(marks) == 17
    assert all(isinstance(mark, Bookmark) and mark.stated_long_mm is None for mark in marks)
    few = read_json(lengths_of_one_identifier(16), tmp_path)
    assert ["16 different values" in (mark.note or "") for mark in few if isinstance(mark, Bookmark)] == [True] * 16


@pytest.mark.parametrize("content", [b"", b"<", b"{}", b"[]", b"null", b"<a/>", b"\xff\xfe<", b"{" * 9, b"\0" * 99])
def test_what_is_no_aim_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    for reader in (aim_json, aim_xml):
        assert not reader.recognise(content, path)
        with pytest.raises(UnreadableError, match="other"):
            list(reader.read(path))
        with pytest.raises(UnreadableError):
            list(reader.read(tmp_path))


def test_damaged_version_3_gives_a_reason_and_no_crash(tmp_path: Path) -> None:
    document = aim3(shape3("Circle", [(5, 5), (8, 5)])).encode()
    assert_tolerant(aim_xml, damaged(document), tmp_path / "aim", secret="Jörg")


def test_damaged_json_gives_a_reason_and_no_crash(tmp_path: Path) -> None:
    made = collection(
        shape("TwoDimensionMultiPoint", [(0, 5), (20, 5)]),
        calculations=[calculation("Length", 20)],
        ties=[tie("2.25.9", "2.25.1")],
    )
    mistyped = [json.dumps(tree).encode() for tree in _mistyped(made)]
    assert_tolerant(aim_json, damaged(json.dumps(made).encode()), tmp_path / "aim", secret="Jörg")
    assert_tolerant(aim_json, [*mistyped, b"{"], tmp_path / "aim", secret="Jörg")


def _mistyped(tree: Any) -> list[Any]:
    """Copies of a tree with, at every place in turn, a value of another type."""
    made = []

    def walk(node: Any, path: list[Any]) -> None:
        values: list[Any] = [None, 7, "x", [], {}, [[]], True, 10**400]
        for value in values:
            changed = copy.deepcopy(tree)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if path:
                place[path[-1]] = value
                made.append(changed)
        if path and len(made) > 800:
            return
        for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            walk(child, [*path, key])

    walk(tree, [])
    return made
