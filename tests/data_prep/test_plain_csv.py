"""The CSV for those who have only a spreadsheet, and our own detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection, detections_json, plain_csv
from data_prep.readers.registry import recognise

HEADER = "form,points_px,image,patient_id,frame,text,split,spacing_x_mm,frame_number\n"


def write(folder: Path, text: str, name: str = "marks.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def only(path: Path) -> Bookmark:
    (found,) = plain_csv.read(path)
    assert isinstance(found, Bookmark), found
    return found


def test_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + 'length,1 2 3.5 4,S/001.png,P7,px,"a, ""b""",test,0.7,1\n')
    assert recognise(path) is not None
    found = only(path)
    assert found.points_px == (1, 2, 3.5, 4)
    assert (found.image, found.patient_id, found.text, found.split) == ("S/001.png", "P7", 'a, "b"', "test")
    assert (found.spacing_x_mm, found.frame_number, found.source_frame, found.source) == (0.7, 1, "declared", "csv")


@pytest.mark.parametrize(
    ("frame", "form", "points", "expected"),
    [
        ("px", "length", "1 2 3 4", (1, 2, 3, 4)),
        ("", "length", "1 2 3 4", (1, 2, 3, 4)),
        ("index", "length", "1 2 3 4", (1.5, 2.5, 3.5, 4.5)),
        ("deeplesion", "length", "1 2 3 4", (0.5, 1.5, 2.5, 3.5)),
        ("deeplesion", "box", "1 1 512 512", (0, 0, 512, 512)),
        ("px", "box", "0 0 512 512", (0, 0, 512, 512)),
        ("px", "point", "[5, 6]", (5, 6)),
        ("px", "text", "", ()),
    ],
)
def test_frames(tmp_path: Path, frame: str, form: str, points: str, expected: tuple[float, ...]) -> None:
    found = only(write(tmp_path, f'form,points_px,image,frame\n{form},"{points}",S/1.png,{frame}\n'))
    assert found.points_px == expected
    assert found.source_frame == ("declared" if frame else "assumed")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_separators_and_bom(tmp_path: Path, delimiter: str) -> None:
    text = delimiter.join(["\ufeffimage", "points_px", "form"]) + "\r\n" + delimiter.join(["a/1.png", "1 2", "point"])
    assert only(write(tmp_path, text)).points_px == (1, 2)


@pytest.mark.parametrize(
    "row",
    [
        "blob,1 2,S/1.png",
        "segmentation,1 2 3 4 5 6,S/1.png",
        "point,1 2,",
        "point,1 2,../1.png",
        "point,1 2,/etc/1.png",
        "point,1 2,C:\\1.png",
        "point,1,S/1.png",
        "point,1 2 3 4,S/1.png",
        "point,nan 2,S/1.png",
        "point,a b,S/1.png",
        "point,,S/1.png",
        "box,1 2 3,S/1.png",
        "point,1 2,S/1.png,,corner",
        "point,1 2,S/1.png,,,,future",
        "point,1 2,S/1.png,,,,,wide",
        "point,1 2,S/1.png,,,,,,1.5",
        "point,1 2,S/1.png,,,,,,99999999999",
        "length",
    ],
)
def test_bad_rows_are_rejected_with_their_number(tmp_path: Path, row: str) -> None:
    first, second, third = plain_csv.read(write(tmp_path, f"{HEADER}point,1 2,S/1.png\n{row}\npoint,3 4,S/1.png\n"))
    assert isinstance(first, Bookmark)
    assert isinstance(third, Bookmark)
    assert isinstance(second, Rejection)
    assert second.row == "3"


@pytest.mark.parametrize(
    ("damaged", "rejected"),
    [
        ('point,1 2,S/1.png,P-SECRET,px,"seen', ["3"]),
        ('point,1 2,S/1.png,P-SECRET,px,5" wide', []),  # inches within a cell quote nothing
        ('point,1 2,S/1.png,P-SECRET,5" wide,"seen', ["3"]),  # an even number, but the first is no quotation
        ('point,1 2,S/1.png,P-SECRET,px,"seen\nbefore"', ["3", "4"]),
        ('point,1 2,S/1.png,P-SECRET,px,"seen\n\npoint,9 9,S/9.png\n"', ["3", "6"]),
    ],
)
def test_a_quotation_mark_swallows_no_row(tmp_path: Path, damaged: str, rejected: list[str]) -> None:
    path = write(tmp_path, f'{HEADER}point,1 2,S/1.png,P1\n{damaged}\npoint,3 4,S/2.png,P2,px,"a ""b"""\n')
    found = list(plain_csv.read(path))
    marks = [item for item in found if isinstance(item, Bookmark)]
    assert [marks[0].patient_id, marks[-1].patient_id, marks[-1].text] == ["P1", "P2", 'a "b"']
    refused = [item for item in found if isinstance(item, Rejection)]
    assert [item.row for item in refused] == rejected
    assert all(item.reason == "a quotation mark is not closed on its line" for item in refused[:1])
    assert not any("SECRET" in item.reason or "SECRET" in (mark.text or "") for item in refused for mark in marks)
    assert len(found) == sum(bool(line) for line in path.read_text().splitlines()[1:])


def test_long_lines_and_many_cells(tmp_path: Path) -> None:
    rows = ["point,1 2,S/1.png", "point,1 2,S/1.png," + "x" * 9_000_000, "point,1 2,S/1.png" + "," * 20_000]
    found = list(plain_csv.read(write(tmp_path, HEADER + "\n".join([*rows, "point,3 4,S/2.png"]))))
    assert [(item.row, item.reason) for item in found if isinstance(item, Rejection)] == [
        ("3", "the line is longer than 4000000 characters"),
        ("4", "the row has 20003 cells, the header 9"),
    ]
    assert [item.image for item in found if isinstance(item, Bookmark)] == ["S/1.png", "S/2.png"]


def test_an_outline_of_many_points(tmp_path: Path) -> None:
    points = " ".join(f"{100 + i / 1000:.3f} {200 + i % 7:.3f}" for i in range(20_000))
    assert len(only(write(tmp_path, f"form,points_px,image\npolygon,{points},S/1.png\n")).points) == 20_000


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ('form,points_px,image,"text', "not closed"),
        ("form,points_px,image," + "x" * 4_000_000, "longer than"),
        ("form,points_px,image" + ",x" * 20_000, "20003 cells"),
    ],
)
def test_a_first_line_that_is_no_header(tmp_path: Path, header: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        list(plain_csv.read(write(tmp_path, f"{header}\npoint,1 2,S/1.png\n")))


def test_no_column_says_which_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="image"):
        list(plain_csv.read(write(tmp_path, "form,points_px\npoint,1 2\n")))


def test_empty_lines_are_not_rows(tmp_path: Path) -> None:
    assert len(list(plain_csv.read(write(tmp_path, HEADER + "\npoint,1 2,S/1.png\n,,,\n\n")))) == 1


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.binary(max_size=300))
def test_damage_never_escapes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.csv"
    path.write_bytes(HEADER.encode() + data)
    assert all(isinstance(item, Bookmark | Rejection) for item in plain_csv.read(path))


# --- detections.json -------------------------------------------------------------------------------------------------


def detections(**changes: Any) -> dict[str, Any]:
    finding = {
        "image_uid": "1.2.3.4",
        "slice_index": 3,
        "box_px": [10.0, 20.0, 30.0, 50.0],
        "score": 0.75,
        "label": 1,
        "category": "liver",
        "centre_lps_mm": [1.0, 2.0, 3.0],
        "size_mm": [10.0, 15.0],
    } | changes
    series = {
        "series_uid": "1.2.3",
        "study_uid": "1.2",
        "patient_id": None,
        "source": {"origin": "series"},
        "grid": {
            "rows": 400,
            "columns": 512,
            "slices": 9,
            "affine_lps": [[0, -0.5, 0, 0], [0.7, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]],
        },
        "findings": [finding],
    }
    return {"schema_version": 1, "model": {"name": "m"}, "series": [series]}


def test_detections(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(detections()), "found.txt")
    assert recognise(path) is detections_json
    (found,) = detections_json.read(path)
    assert isinstance(found, Bookmark)
    assert (found.source, found.form, found.points_px) == ("detector", "box", (10, 20, 30, 50))
    assert (found.score, found.text, found.image_uid, found.slice_index) == (0.75, "liver", "1.2.3.4", 3)
    assert (found.spacing_x_mm, found.spacing_y_mm, found.spacing_z_mm) == (0.7, 0.5, 3)
    assert (found.rows, found.columns, found.patient_id) == (400, 512, None)


def test_png_slices_are_told_apart_by_their_path(tmp_path: Path) -> None:
    content = detections(image_uid=None, image="S/003.png")
    content["series"][0]["findings"].append(content["series"][0]["findings"][0] | {"image": "T/003.png"})
    first, second = detections_json.read(write(tmp_path, json.dumps(content), "d.json"))
    assert isinstance(first, Bookmark)
    assert isinstance(second, Bookmark)
    assert (first.image, second.image) == ("S/003.png", "T/003.png")
    assert first.bookmark_id != second.bookmark_id


@pytest.mark.parametrize("change", [{"box_px": [30.0, 20.0, 10.0, 50.0]}, {"image": "../x.png"}])
def test_a_bad_detection_is_rejected(tmp_path: Path, change: dict[str, Any]) -> None:
    (found,) = detections_json.read(write(tmp_path, json.dumps(detections(**change)), "d.json"))
    assert isinstance(found, Rejection)
    assert found.row == "0/0"


@pytest.mark.parametrize(
    "text",
    [
        '{"schema_version": 1, "series": [}',
        '{"schema_version": 2, "series": []}',
        json.dumps(detections(score=1.5)),
        json.dumps(detections(label=-1)),
        json.dumps(detections(box_px=[1, 2, 3])),
        '{"schema_version": 1, "series": ' + "[" * 100_000,
    ],
)
def test_a_file_that_is_not_after_the_schema(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnreadableError, match=r"d\.json"):
        list(detections_json.read(write(tmp_path, text, "d.json")))
