"""``DL_info.csv``: the real one, and rows that nobody should have written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import frames
from data_prep.bookmark import BOOKMARK_SCHEMA, Bookmark, records_to_table
from data_prep.errors import UnreadableError
from data_prep.harvest import harvest
from data_prep.readers import Rejection, deeplesion_csv
from data_prep.readers._deeplesion_columns import plain_rows
from data_prep.readers.deeplesion_csv import COLUMNS, read, read_tables, recognise

GOOD = {
    "File_name": "000001_02_03_109.png",
    "Patient_index": "1",
    "Study_index": "2",
    "Series_ID": "3",
    "Key_slice_index": "109",
    "Measurement_coordinates": "233.537, 95.0204, 234.057, 106.977, 231.169, 101.605, 236.252, 101.143",
    "Bounding_boxes": "226.169, 90.0204, 241.252, 111.977",
    "Lesion_diameters_Pixel_": "11.9677, 5.10387",
    "Normalized_lesion_location": "0.44666, 0.283794, 0.434454",
    "Coarse_lesion_type": "3",
    "Possibly_noisy": "0",
    "Slice_range": "103, 115",
    "Spacing_mm_px_": "0.488281, 0.488281, 5",
    "Image_size": "512, 512",
    "DICOM_windows": "-175, 275",
    "Patient_gender": "F",
    "Patient_age": "62.0",
    "Train_Val_Test": "3",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_rows(*changes: dict[str, str]) -> Path:
        path = tmp_path / "DL_info.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(GOOD | change for change in changes)
        return path

    return write_rows


def one(path: Path) -> Bookmark:
    (found,) = read(path)
    assert isinstance(found, Bookmark), found
    return found


def test_all_18_columns_are_kept(write: Write) -> None:
    found = one(write({}))
    assert (found.image, found.slice_index) == ("000001_02_03/109.png", 109)
    assert (found.patient_id, found.study_uid, found.series_uid) == ("000001", "000001_02", "000001_02_03")
    expected = (233.037, 94.5204, 233.557, 106.477, 230.669, 101.105, 235.752, 100.643)
    assert found.points_px == pytest.approx(expected, abs=1e-9)
    assert found.stated_box_px == pytest.approx((225.169, 89.0204, 241.252, 111.977), abs=1e-9)
    assert found.stated_long_mm == pytest.approx(11.9677 * 0.488281)
    assert found.stated_short_mm == pytest.approx(5.10387 * 0.488281)
    assert (found.norm_x, found.norm_y, found.norm_z) == (0.44666, 0.283794, 0.434454)
    assert (found.coarse_type, found.possibly_noisy, found.split) == (3, False, "test")
    assert (found.slice_first, found.slice_last) == (103, 115)
    assert (found.spacing_x_mm, found.spacing_y_mm, found.spacing_z_mm) == (0.488281, 0.488281, 5.0)
    assert (found.columns, found.rows) == (512, 512)
    assert (found.window_min_hu, found.window_max_hu) == (-175.0, 275.0)
    assert (found.patient_sex, found.patient_age) == ("F", 62.0)
    assert (found.form, found.modality, found.note) == ("bidirectional", "CT", None)


def test_size_is_columns_then_rows(write: Write) -> None:
    found = one(write({"Image_size": "600, 400"}))
    assert (found.columns, found.rows) == (600, 400)


@pytest.mark.parametrize(("stated", "kept"), [("NaN", None), ("-1.5", -1.5), ("inf", None)])
def test_spacing_is_kept_as_stated(write: Write, stated: str, kept: float | None) -> None:
    assert one(write({"Spacing_mm_px_": f"0.5, 0.5, {stated}"})).spacing_z_mm == kept


def test_what_is_not_known_is_none(write: Write) -> None:
    found = one(
        write(
            {
                "Patient_age": "NaN",
                "Patient_gender": "",
                "Coarse_lesion_type": "-1",
                "Possibly_noisy": "1",
                "Normalized_lesion_location": "NaN, NaN, NaN",
                "Slice_range": "NaN, NaN",
                "DICOM_windows": "NaN, NaN",
                "Spacing_mm_px_": "NaN, NaN, NaN",
                "Image_size": "NaN, NaN",
            }
        )
    )
    assert (found.patient_age, found.patient_sex, found.coarse_type, found.norm_z) == (None, None, None, None)
    assert (found.slice_first, found.window_min_hu, found.spacing_x_mm, found.rows) == (None, None, None, None)
    assert found.stated_long_mm is None
    assert found.possibly_noisy


def test_pixels_that_are_not_square(write: Write) -> None:
    """The long axis here runs mostly along y: its millimetres come mostly from the y step."""
    found = one(write({"Spacing_mm_px_": "0.5, 1.0, 5"}))
    dx, dy = (234.057 - 233.537) * 0.5, (106.977 - 95.0204) * 1.0
    assert found.stated_long_mm == pytest.approx(np.hypot(dx, dy), rel=1e-4)


def test_a_row_with_only_a_long_axis(write: Write) -> None:
    found = one(write({"Lesion_diameters_Pixel_": "11.9677, NaN"}))
    assert (found.form, len(found.points_px)) == ("length", 4)
    assert found.stated_box_px == pytest.approx((225.169, 89.0204, 241.252, 111.977))


def test_odd_rows_are_kept_and_say_so(write: Write) -> None:
    assert "index columns differ" in (one(write({"Key_slice_index": "7"})).note or "")
    assert "stated box was kept" in (one(write({"Bounding_boxes": "200, 90, 241, 111"})).note or "")
    assert "Train_Val_Test" in (one(write({"Train_Val_Test": "4"})).note or "")
    assert one(write({"Train_Val_Test": "4"})).split is None
    assert "Coarse_lesion_type" in (one(write({"Coarse_lesion_type": "9"})).note or "")


@pytest.mark.parametrize(
    "change",
    [
        {"File_name": "../../etc/passwd"},
        {"File_name": "000001_02_03_109.png/../../x"},
        {"File_name": "/000001_02_03_109.png"},
        {"File_name": "000001_02_03_109.png\x00"},
        {"File_name": "٠٠٠٠٠١_٠٢_٠٣_١٠٩.png"},
        {"File_name": ""},
        {"Measurement_coordinates": "NaN, 95.0204, 234.057, 106.977, 231.169, 101.605, 236.252, 101.143"},
        {"Measurement_coordinates": "inf, 95.0204, 234.057, 106.977, 231.169, 101.605, 236.252, 101.143"},
        {"Measurement_coordinates": "1, 2, 3"},
        {"Measurement_coordinates": ""},
        {"Bounding_boxes": "241, 90, 226, 111"},
        {"Bounding_boxes": "a, b, c, d"},
        {"Bounding_boxes": "600, 600, 620, 620"},
        {"Bounding_boxes": "-50, -50, -10, -10"},
        {"Image_size": "1e30, 512"},
        {"Image_size": "-5, 512"},
        {"Image_size": "512"},
    ],
)
def test_a_bad_row_is_rejected_with_its_number(write: Write, change: dict[str, str]) -> None:
    first, second, third = read(write({}, change, {"File_name": "000001_02_03_110.png"}))
    found = {type(item) for item in (first, second, third)}
    assert found == {Bookmark, Rejection}
    (rejection,) = (item for item in (first, second, third) if isinstance(item, Rejection))
    assert rejection.row == "3"
    assert rejection.reason


def test_a_missing_column(write: Write) -> None:
    path = write({})
    path.write_text(path.read_text().replace("Spacing_mm_px_", "Spacing"))
    with pytest.raises(UnreadableError, match="the column Spacing_mm_px_ is missing"):
        list(read(path))


def test_columns_in_another_order_and_more_of_them(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "turned.csv"
    names = ["extra", *reversed(COLUMNS)]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerow(GOOD | {"extra": "x, y"})
    assert recognise(path.read_bytes()[:4096], path)
    assert one(path) == one(write({}))


def test_short_rows_open_quotes_and_long_lines(write: Write) -> None:
    path = write({}, {"File_name": "000001_02_03_110.png"}, {"File_name": "000001_02_03_111.png"})
    lines = path.read_text().splitlines()
    damaged = [lines[0], "000001_02_03_112.png,1,2", lines[1], lines[2].replace('"', "", 1), "x" * 50_000, "", lines[3]]
    path.write_text("\n".join(damaged))
    found = list(read(path))
    images = {item.image for item in found if isinstance(item, Bookmark)}
    assert images == {"000001_02_03/109.png", "000001_02_03/111.png"}
    assert {item.row for item in found if isinstance(item, Rejection)} == {"2", "4", "5"}


def test_ids_do_not_depend_on_path_or_order(write: Write, tmp_path: Path) -> None:
    first = {item.image: item.bookmark_id for item in read(write({}, {"File_name": "000001_02_03_110.png"}))}  # type: ignore[union-attr]
    second = {item.image: item.bookmark_id for item in read(write({"File_name": "000001_02_03_110.png"}, {}))}  # type: ignore[union-attr]
    assert first == second
    assert len(set(first.values())) == 2


def test_recognised_by_content(write: Write) -> None:
    path = write({})
    assert recognise(path.read_bytes()[:4096], path)
    assert not recognise(b"form,points_px,image\n", path)
    assert not recognise(b"\x89PNG\r\n\x1a\n", path)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.binary(max_size=400), at=st.integers(0, 900), cut=st.booleans())
def test_damage_never_escapes(tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, cut: bool) -> None:
    text = ",".join(COLUMNS) + "\n" + ",".join(f'"{GOOD[name]}"' for name in COLUMNS) + "\n"
    raw = text.encode()
    path = tmp_path_factory.mktemp("damaged") / "a.csv"
    path.write_bytes(raw[:at] + data + (b"" if cut else raw[at:]))
    try:
        found = list(read(path))
    except UnreadableError:
        return
    for item in found:
        assert isinstance(item, Bookmark | Rejection)


def test_the_real_file(shared_data: Path) -> None:
    """All 29,280 rows; boxes and points are the CSV's own once the frame is changed back."""
    path = shared_data / "deeplesion" / "DL_info.csv"
    found = {item.bookmark_id: item for item in read(path) if isinstance(item, Bookmark)}
    assert len(found) == 29_280
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    boxes = np.array([row["Bounding_boxes"].split(",") for row in rows], dtype=float)
    marks = list(found.values())
    ours = frames.px_to_deeplesion_box([mark.stated_box_px or () for mark in marks])
    np.testing.assert_allclose(ours, boxes, rtol=0, atol=1e-9)
    ruled = np.array([frames.box_from_recist(mark.points) for mark in marks])
    np.testing.assert_allclose(frames.px_to_deeplesion_box(ruled), boxes, rtol=0, atol=0.01)
    sticking_out = [m for m, b in zip(marks, ours, strict=True) if (b < 1).any() or b[2] > m.columns or b[3] > m.rows]
    assert len(sticking_out) == 8
    assert sum(mark.possibly_noisy for mark in marks) == 31
    assert {s: sum(m.split == s for m in marks) for s in ("train", "validation", "test")} == {
        "train": 19_464,
        "validation": 4_889,
        "test": 4_927,
    }


# --- by rows and by columns ----------------------------------------------------------------------------------------


def assert_both_ways_agree(path: Path) -> pa.Table:
    """The same bookmarks, ids, notes and rejections in the same order; returns the bookmarks."""
    by_row = list(read(path))
    by_column = list(read_tables(path))
    marks = (item for item in by_row if isinstance(item, Bookmark))
    tables = [item for item in by_column if isinstance(item, pa.Table)]
    assert all(table.num_rows for table in tables)
    table = pa.concat_tables([BOOKMARK_SCHEMA.empty_table(), *tables])
    assert table.schema.equals(BOOKMARK_SCHEMA, check_metadata=True)
    assert table.equals(records_to_table(marks, Bookmark, BOOKMARK_SCHEMA))
    table.validate(full=True)
    assert [i for i in by_column if isinstance(i, Rejection)] == [i for i in by_row if isinstance(i, Rejection)]
    return table


def test_both_ways_agree_on_the_real_file(shared_data: Path) -> None:
    path = shared_data / "deeplesion" / "DL_info.csv"
    assert assert_both_ways_agree(path).num_rows == 29_280
    with path.open(newline="") as file:
        plain, _ = plain_rows(list(csv.reader(file))[1:])
    assert 0 < (~plain).sum() < 20  # those that stick out of their image, and no more, take the slow way


ODD = {
    "File_name": ["000001_02_03_1090.png", " 000001_02_03_109.png ", "00000001_02_03_109.png", "../../etc/passwd", ""],
    "Patient_index": ["1.0", "7", "x", ""],
    "Key_slice_index": ["109.0", "110", "1_09"],
    "Measurement_coordinates": [
        "233.537,95.0204,234.057,106.977,231.169,101.605,236.252,101.143",
        "NaN, 95.0204, 234.057, 106.977, 231.169, 101.605, 236.252, 101.143",
        "1e308, 95.0204, 234.057, 106.977, 231.169, 101.605, 236.252, 101.143",
        "1, 2, 3",
        "1, 2, 3, 4, 5, 6, 7, 8, 9",
        "",
    ],
    "Bounding_boxes": [
        "226.169, 90.0204, 241.252, 111.978",
        "226.2, 90.0204, 241.252, 111.977",
        "241, 90, 226, 111",
        "600, 600, 620, 620",
        "1e300, 0, 1e300, 5",
        "-inf, 0, 3, inf",
        "a, b, c, d",
    ],
    "Lesion_diameters_Pixel_": ["11.9677, NaN", "NaN, NaN", "NaN, 5", "inf, 5", "-3, -0.0", "11.9677", "1e308, 1e308"],
    "Normalized_lesion_location": ["NaN, NaN, NaN", "inf, 0, -1", "0.1, 0.2", "1_0, 2, 3"],
    "Coarse_lesion_type": ["-1", "9", "3.0", "", "NaN", "2.5", "inf"],
    "Possibly_noisy": ["1", "", "2", "NaN", "yes"],
    "Slice_range": ["NaN, NaN", "103.7, -5.5", "1e7, 115", "inf, -inf", "103"],
    "Spacing_mm_px_": [
        "0.5, 1.0, 5",
        "-0.5, -0.5, NaN",
        "NaN, NaN, NaN",
        "0, 0, 0",
        "inf, inf, inf",
        "1e308, 1e308, 1",
        "1",
    ],
    "Image_size": ["NaN, NaN", "512.9, 512.2", "240, 110", "65535, 65536", "0.5, 512", "-5, 512", "512", "1e30, 1"],
    "DICOM_windows": ["NaN, 275", "inf, -inf", "-175"],
    "Patient_gender": ["", " M ", "x" * 17, "é", "\u2003F", "\x00"],
    "Patient_age": ["", "NaN", "-3", "inf", "1_0", "old"],
    "Train_Val_Test": ["1", "2.0", "4", "", "NaN"],
}
"""Cells that are wrong, or right in an unusual way."""


def test_both_ways_agree_on_odd_cells(write: Write) -> None:
    """One odd cell a row, among plain rows."""
    changes = [{name: cell} for name, cells in ODD.items() for cell in cells]
    table = assert_both_ways_agree(write(*(row for change in changes for row in ({}, change))))
    assert len(changes) < table.num_rows < 2 * len(changes)
    assert table["note"].null_count < table.num_rows


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    changes=st.lists(st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in ODD.items()}), max_size=8),
    noise=st.lists(st.tuples(st.integers(0, 9), st.text('a," \r\n\ufeff\x1c1', max_size=6)), max_size=4),
    batch=st.integers(1, 4),
)
def test_both_ways_agree_on_odd_rows(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[dict[str, str]],
    noise: list[tuple[int, str]],
    batch: int,
) -> None:
    """Odd cells together, lines that are no rows among them, and batches that end anywhere."""
    path = tmp_path_factory.mktemp("odd") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(GOOD | change for change in changes)
    lines = path.read_text(encoding="utf-8").split("\n")
    for at, text in noise:
        lines.insert(1 + at, text)
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deeplesion_csv, "_BATCH", batch)
        in_batches = assert_both_ways_agree(path)
    assert assert_both_ways_agree(path).equals(in_batches)


def test_a_quotation_mark_swallows_no_row(write: Write) -> None:
    """Two marks on a line may still leave one open: the first is inside a bare cell and counts for nothing."""
    path = write({}, {"File_name": "000001_02_03_110.png"}, {"File_name": "000001_02_03_111.png"})
    lines = path.read_text().splitlines()
    lines[2:3] = ['000001_02"03_110.png,1,2,3,"' + lines[2].replace('"', ""), lines[2]]
    path.write_text("\n".join(lines))
    found = list(read(path))
    images = [item.image for item in found if isinstance(item, Bookmark)]
    assert images == [f"000001_02_03/{number}.png" for number in (109, 110, 111)]
    assert [item.row for item in found if isinstance(item, Rejection)] == ["3"]
    assert_both_ways_agree(path)


def test_line_numbers_go_on_from_batch_to_batch(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeplesion_csv, "_BATCH", 2)
    path = write(*({"Bounding_boxes": "a"} if i % 3 == 0 else {} for i in range(10)))
    assert [item.row for item in read(path) if isinstance(item, Rejection)] == ["2", "5", "8", "11"]
    assert_both_ways_agree(path)


def test_a_harvest_is_the_same_both_ways(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand real rows with odd ones among them: the tables to the byte, and rejected.csv."""
    with (shared_data / "deeplesion" / "DL_info.csv").open() as file:
        lines = [next(file) for _ in range(6_000)]
    lines[100] = lines[100].replace("512, 512", "9e9, 512")
    lines[200] = lines[200].replace(".png", ".jpg")
    lines[5_500] = lines[5_500].rstrip("\n")[:-1] + "7\n"
    source = tmp_path / "DL_info.csv"
    source.write_text("".join(lines))
    harvest([source], tmp_path / "columns", progress=False)
    monkeypatch.delattr(deeplesion_csv, "read_tables")
    harvest([source], tmp_path / "rows", progress=False)
    for name in ("bookmarks.parquet", "lesions.parquet", "rejected.csv"):
        assert (tmp_path / "rows" / name).read_bytes() == (tmp_path / "columns" / name).read_bytes()
    assert (tmp_path / "rows" / "rejected.csv").read_text().count("\n") == 3
