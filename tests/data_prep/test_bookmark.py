"""Bookmarks and lesions: bad ones are refused when they are made, good ones come back from Parquet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.bookmark import Bookmark, make_id, positive_or_none, read_bookmarks, write_bookmarks
from data_prep.errors import DataPrepError
from data_prep.lesion import LESION_SCHEMA, Lesion, read_lesions, write_lesions

FULL = Bookmark(
    bookmark_id="a" * 16,
    source="dicom-sr",
    form="bidirectional",
    points_px=(10.25, 20.5, 30.125, 20.5, 20.0, 15.0, 20.0, 25.0),
    source_file="a/b.dcm",
    source_frame="assumed",
    text="words — ümlaut",
    finding_code="108369006^SCT^Neoplasm",
    tracking_uid="1.2.3",
    patient_id="p",
    site="10200004^SCT^Liver",
    modality="CT",
    study_uid="1.2",
    series_uid="1.2.1",
    image_uid="1.2.1.7",
    frame_number=1,
    image="000001_01_01/007.png",
    slice_index=6,
    rows=512,
    columns=500,
    spacing_x_mm=0.5,
    spacing_y_mm=0.75,
    spacing_z_mm=-5.0,
    stated_long_mm=10.0,
    stated_short_mm=5.0,
    window_min_hu=-175.0,
    window_max_hu=275.0,
    norm_x=0.1,
    norm_y=0.2,
    norm_z=0.3,
    slice_first=0,
    slice_last=12,
    laterality="left",
    observer="A",
    patient_sex="F",
    patient_age=61.5,
    split="train",
    coarse_type=4,
    possibly_noisy=True,
    stated_box_px=(1.0, 2.0, 3.0, 4.0),
    score=0.5,
    note="note",
)
BARE = Bookmark(bookmark_id="b" * 16, source="dicom-gsps", form="text", points_px=())


def test_every_field_comes_back(tmp_path: Path) -> None:
    assert not [f.name for f in dataclasses.fields(FULL) if getattr(FULL, f.name) in (None, "")]  # a whole example
    write_bookmarks([FULL, BARE], tmp_path / "b.parquet")
    assert read_bookmarks(tmp_path / "b.parquet") == [FULL, BARE]


def test_no_bookmark_is_a_file_too(tmp_path: Path) -> None:
    write_bookmarks([], tmp_path / "b.parquet")
    assert read_bookmarks(tmp_path / "b.parquet") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "blob"}, "unknown form"),
        ({"source": "fax"}, "unknown source"),
        ({"source_frame": "guessed"}, "unknown source_frame"),
        ({"points_px": (1.0,) * 7}, "cannot have 7 coordinates"),
        ({"points_px": (1.0,) * 6}, "cannot have 6 coordinates"),
        ({"points_px": (float("nan"), *(1.0,) * 7)}, "not finite"),
        ({"points_px": (float("inf"), *(1.0,) * 7)}, "not finite"),
        ({"points_px": (1e7, *(1.0,) * 7)}, "outside any image"),
        ({"stated_box_px": (1.0, 2.0, 1.0, 4.0)}, "not a box"),
        ({"stated_box_px": (1.0, 2.0, float("nan"), 4.0)}, "not a box"),
        ({"stated_box_px": (1.0, 2.0, 1e300, 4.0)}, "not a box"),
    ],
)
def test_a_bad_bookmark_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FULL, **change)  # type: ignore[arg-type]


def test_points_in_pairs() -> None:
    assert FULL.points == [(10.25, 20.5), (30.125, 20.5), (20.0, 15.0), (20.0, 25.0)]


def test_ids_depend_on_content_and_its_bounds() -> None:
    assert make_id("a", 1) == make_id("a", 1)
    assert len(make_id("x")) == 16
    assert len({make_id("ab", "c"), make_id("a", "bc"), make_id("abc"), make_id("a", "b", "c")}) == 4


@pytest.mark.parametrize(("stated", "used"), [(5.0, 5.0), (-5.0, 5.0), (0.0, None), (float("nan"), None), (None, None)])
def test_spacing_is_kept_as_stated_and_used_as_a_magnitude(stated: float | None, used: float | None) -> None:
    assert positive_or_none(stated) == used


def test_lesions_come_back(tmp_path: Path) -> None:
    lesions = [
        Lesion(
            lesion_id="a", bookmark_ids=("x", "y"), source="csv", x0=1.0, y0=2.0, x1=3.0, y1=4.0, recist_px=(1.0,) * 8
        ),
        Lesion(lesion_id="b", bookmark_ids=("z",), source="csv", centre_x=5.0, centre_y=6.0, review="rejected"),
    ]
    write_lesions(lesions, tmp_path / "l.parquet")
    assert read_lesions(tmp_path / "l.parquet") == lesions
    assert [lesion.box_px for lesion in lesions] == [(1.0, 2.0, 3.0, 4.0), None]


@pytest.mark.parametrize(
    "bad",
    [
        {"x0": 1.0},
        {"x0": 3.0, "y0": 2.0, "x1": 1.0, "y1": 4.0},
        {"x0": 1.0, "y0": 2.0, "x1": float("inf"), "y1": 4.0},
        {"review": "perhaps"},
    ],
)
def test_a_bad_lesion_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not a box|review"):
        Lesion(lesion_id="a", bookmark_ids=(), source="csv", **bad)  # type: ignore[arg-type]


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="no such file"):
        read_lesions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataPrepError, match="not a readable Parquet"):
        read_lesions(tmp_path / "text.parquet")
    pq.write_table(pa.table({"lesion_id": ["a"]}), tmp_path / "short.parquet")
    with pytest.raises(DataPrepError, match="'schema_version' is missing"):
        read_lesions(tmp_path / "short.parquet")
    write_lesions([Lesion(lesion_id="a", bookmark_ids=("x",), source="csv")], tmp_path / "new.parquet")
    table = pq.read_table(tmp_path / "new.parquet")
    newer = table.set_column(1, LESION_SCHEMA.field("schema_version"), pa.array([99], pa.int32()))
    pq.write_table(newer, tmp_path / "new.parquet")
    with pytest.raises(DataPrepError, match="schema_version"):
        read_lesions(tmp_path / "new.parquet")
