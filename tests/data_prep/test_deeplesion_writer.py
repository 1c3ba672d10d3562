"""DL_info.csv: written, then read by pandas, and the release's own rows given back as they are."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.frames import box_from_recist, deeplesion_box_to_px, deeplesion_point_to_px
from data_prep.lesion import Lesion
from data_prep.merge import merge
from data_prep.readers.deeplesion_csv import COLUMNS
from data_prep.writers.deeplesion import dl_info_row, write_dl_info


def numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def lesion(**changes: Any) -> Lesion:
    recist = (100.25, 80.5, 120.75, 90.125, 108.0, 92.5, 112.5, 79.0)
    x0, y0, x1, y1 = box_from_recist(np.reshape(recist, (-1, 2)))
    values: dict[str, Any] = {
        "lesion_id": "a",
        "bookmark_ids": ("b",),
        "source": "dicom-sr",
        "image": "000012_03_01/045.png",
        "rows": 400,
        "columns": 512,
        "recist_px": recist,
        "x0": float(x0),
        "y0": float(y0),
        "x1": float(x1),
        "y1": float(y1),
        "split": "validation",
    }
    return Lesion(**{**values, **changes})


def from_release(row: dict[str, str]) -> Lesion:
    """What reading one row of the release gives, written out here so that the reader's faults cannot hide ours."""
    points = deeplesion_point_to_px(np.reshape(numbers(row["Measurement_coordinates"]), (-1, 2)))
    box = [float(value) for value in deeplesion_box_to_px(numbers(row["Bounding_boxes"]))]
    location, spacing = numbers(row["Normalized_lesion_location"]), numbers(row["Spacing_mm_px_"])
    size, window, slices = numbers(row["Image_size"]), numbers(row["DICOM_windows"]), numbers(row["Slice_range"])
    folder, _, number = row["File_name"].rpartition("_")
    return lesion(
        image=f"{folder}/{number}",
        recist_px=tuple(points.ravel().tolist()),
        **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
        norm_x=location[0],
        norm_y=location[1],
        norm_z=location[2],
        spacing_x_mm=spacing[0],
        spacing_y_mm=spacing[1],
        spacing_z_mm=spacing[2],
        columns=int(size[0]),
        rows=int(size[1]),
        window_min_hu=window[0],
        window_max_hu=window[1],
        slice_first=int(slices[0]),
        slice_last=int(slices[1]),
        coarse_type=int(row["Coarse_lesion_type"]) if int(row["Coarse_lesion_type"]) > 0 else None,
        possibly_noisy=row["Possibly_noisy"] == "1",
        patient_sex=row["Patient_gender"] or None,
        patient_age=float(row["Patient_age"]) if row["Patient_age"] else None,
        split={"1": "train", "2": "validation", "3": "test"}[row["Train_Val_Test"]],
    )


def test_the_release_is_given_back_as_it_is(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "deeplesion" / "DL_info.csv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[::7]
    assert write_dl_info(map(from_release, rows), tmp_path / "DL_info.csv") == len(rows)
    with (tmp_path / "DL_info.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == source.open(encoding="utf-8").readline().strip().split(",")
        written = list(reader)
    for ours, theirs in zip(written, rows, strict=True):
        # The release measured its diameters before it rounded its points: they agree as numbers, not as text.
        assert numbers(ours.pop("Lesion_diameters_Pixel_")) == pytest.approx(
            numbers(theirs.pop("Lesion_diameters_Pixel_")), abs=2e-3
        )
        assert ours == theirs


def test_unknown_values_and_single_lines(tmp_path: Path) -> None:
    single = lesion(recist_px=(100.0, 50.0, 120.0, 50.0), x0=94.5, y0=37.0, x1=125.5, y1=63.0, split="train")
    assert write_dl_info([lesion(), single], tmp_path / "a.csv") == 2
    table = pd.read_csv(tmp_path / "a.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["Normalized_lesion_location"].tolist() == ["NaN, NaN, NaN"] * 2
    assert table["Image_size"].tolist() == ["512, 400"] * 2
    assert table["Patient_age"].isna().all()
    assert table["Coarse_lesion_type"].tolist() == [-1, -1]
    assert table["Train_Val_Test"].tolist() == [2, 1]
    assert [table[name][0] for name in COLUMNS[1:5]] == [12, 3, 1, 45]
    assert table["Lesion_diameters_Pixel_"][1] == "20, NaN"
    points_px = deeplesion_point_to_px(np.reshape(numbers(table["Measurement_coordinates"][1]), (-1, 2)))
    np.testing.assert_allclose(box_from_recist(points_px), [94.5, 37.0, 125.5, 63.0], atol=1e-6)


def test_no_rows_is_a_header(tmp_path: Path) -> None:
    assert write_dl_info([], tmp_path / "a.csv") == 0
    assert (tmp_path / "a.csv").read_text().splitlines() == [",".join(COLUMNS)]


@pytest.mark.parametrize(
    "changes",
    [
        {"image": None},
        {"image": "../000012_03_01/045.png"},
        {"image": "12_3_1/45.png"},
        {"recist_px": None},
        {"x0": None, "y0": None, "x1": None, "y1": None},
        {"split": None},
    ],
)
def test_what_cannot_be_a_row_is_refused_and_nothing_is_written(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="lesion a"):
        write_dl_info([lesion(), lesion(**changes)], tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


coordinate = st.floats(-20, 2100, allow_nan=False)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(coordinate, min_size=8, max_size=8))
def test_points_and_box_survive_the_file(recist: list[float]) -> None:
    box = box_from_recist(np.reshape(recist, (-1, 2)))
    row = dl_info_row(lesion(recist_px=tuple(recist), **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))))
    read = deeplesion_point_to_px(np.array(numbers(row["Measurement_coordinates"])))
    np.testing.assert_allclose(read, recist, atol=1e-6)
    np.testing.assert_allclose(deeplesion_box_to_px(numbers(row["Bounding_boxes"])), box, atol=1e-6)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(coordinate, min_size=4, max_size=4), st.floats(0.3, 1.0), st.floats(0.3, 1.0))
def test_a_single_line_is_written_with_the_axis_its_box_came_from(line: list[float], sx: float, sy: float) -> None:
    mark = Bookmark(
        bookmark_id="b", source="csv", form="length", points_px=tuple(line), spacing_x_mm=sx, spacing_y_mm=sy
    )
    (merged,) = merge([mark])
    if merged.recist_px is None:  # a line of no length is a location
        return
    assert len(merged.recist_px) == 4
    row = dl_info_row(replace(merged, image="000001_01_01/001.png", split="train"))
    points_px = deeplesion_point_to_px(np.reshape(numbers(row["Measurement_coordinates"]), (-1, 2)))
    assert merged.box_px is not None
    np.testing.assert_allclose(box_from_recist(points_px), np.array(merged.box_px), atol=1e-5)
    assert row["Lesion_diameters_Pixel_"].endswith(", NaN")
