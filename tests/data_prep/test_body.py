"""The bounds of the body, on made slices and against the release's own relative positions."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from data_prep.archive.body import body_box_px
from data_prep.archive.png import read_hu
from data_prep.frames import deeplesion_box_to_px


def test_the_largest_dense_region_counts_and_the_table_does_not() -> None:
    hu = np.full((60, 80), -1000, np.float32)
    hu[10:40, 5:70] = 40  # body
    hu[15:35, 20:40] = -850  # lung
    hu[40:50, 30:31] = 40  # what joins it to the table
    hu[50:55, 2:78] = 100  # table
    assert body_box_px(hu) == (5, 10, 70, 40)


def test_air_has_no_body() -> None:
    assert body_box_px(np.full((20, 30), -1000, np.float32)) is None


def test_it_is_near_the_release_normalised_location(shared_data: Path) -> None:
    folder = shared_data / "deeplesion"
    differences = []
    with (folder / "DL_info.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            series, _, name = row["File_name"].rpartition("_")
            path = folder / "full_range" / "Images_png" / series / name
            if not path.is_file():
                continue
            x0, y0, x1, y1 = deeplesion_box_to_px([float(value) for value in row["Bounding_boxes"].split(",")])
            left, top, right, bottom = body_box_px(read_hu(path)) or (0, 0, 1, 1)
            stated = [float(value) for value in row["Normalized_lesion_location"].split(",")]
            ours = ((x0 + x1) / 2 - left) / (right - left), ((y0 + y1) / 2 - top) / (bottom - top)
            differences.append(np.abs(np.array(ours) - stated[:2]))
    assert len(differences) == 27
    # The figures of docs/archive.md.
    np.testing.assert_array_equal(np.mean(differences, axis=0).round(2), [0.04, 0.05])
