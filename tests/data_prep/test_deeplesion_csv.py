"""``DL_info.csv``: the real one, and rows that nobody should have written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import frames
from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection
from data_prep.readers.deeplesion_csv import COLUMNS, read, recognise

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
