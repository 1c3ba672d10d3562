"""16-bit slices: written and read, damaged ones refused, neighbours found."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from data_prep.archive.png import HU_OFFSET, neighbours, read_hu, write_hu
from data_prep.errors import UnreadableError


def slice_hu(rows: int = 40, columns: int = 60) -> np.ndarray:
    hu = np.full((rows, columns), -1024.0)
    hu[5:9, 30:50] = 77.0  # off centre: a turned or mirrored picture is noticed
    return hu


def test_comes_back_to_the_bit(tmp_path: Path) -> None:
    write_hu(tmp_path / "s" / "001.png", slice_hu())
    found = read_hu(tmp_path / "s" / "001.png")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, slice_hu())


def test_another_reader_sees_the_same(tmp_path: Path) -> None:
    write_hu(tmp_path / "001.png", slice_hu())
    with PIL.Image.open(tmp_path / "001.png") as image:
        np.testing.assert_array_equal(np.asarray(image).astype(int) - HU_OFFSET, slice_hu())


def test_values_beyond_16_bits_are_clipped(tmp_path: Path) -> None:
    write_hu(tmp_path / "a.png", [[-1e6, 1e6, 0.4, -0.6]])
    np.testing.assert_array_equal(read_hu(tmp_path / "a.png"), [[-32768, 32767, 0, -1]])


def test_only_two_axes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two axes"):
        write_hu(tmp_path / "a.png", np.zeros((2, 3, 4)))


def test_truncated(tmp_path: Path) -> None:
    write_hu(tmp_path / "a.png", slice_hu())
    data = (tmp_path / "a.png").read_bytes()
    for length in (0, 7, 20, len(data) // 2, len(data) - 12):
        (tmp_path / "a.png").write_bytes(data[:length])
        with pytest.raises(UnreadableError, match=r"a\.png"):
            read_hu(tmp_path / "a.png")


def test_missing_eight_bit_and_colour(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_hu(tmp_path / "none.png")
    cv2.imwrite(str(tmp_path / "8.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(UnreadableError, match="8-bit"):
        read_hu(tmp_path / "8.png")
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((4, 4, 3), np.uint16))
    with pytest.raises(UnreadableError, match="3 channel"):
        read_hu(tmp_path / "c.png")


def test_neighbours(tmp_path: Path) -> None:
    for number in (3, 4, 5, 7, 8):
        write_hu(tmp_path / "s" / f"{number:03d}.png", [[0]])
    assert neighbours(tmp_path, "s/004.png", 1) == ["s/004.png"]
    assert neighbours(tmp_path, "s/004.png", 3) == ["s/003.png", "s/004.png", "s/005.png"]
    assert neighbours(tmp_path, "s/003.png", 3) == ["s/003.png", "s/003.png", "s/004.png"]
    # 006 is missing: the nearest that is there, towards the key slice, stands in
    assert neighbours(tmp_path, "s/005.png", 5) == ["s/003.png", "s/004.png", "s/005.png", "s/005.png", "s/007.png"]
    assert neighbours(tmp_path, "s/005.png", 3, step=2) == ["s/003.png", "s/005.png", "s/007.png"]
    with pytest.raises(ValueError, match="odd"):
        neighbours(tmp_path, "s/004.png", 2)


def test_real_slices_have_29_neighbours(shared_data: Path) -> None:
    images = shared_data / "deeplesion" / "full_range" / "Images_png"
    stored = sorted((images / "000062_01_01").iterdir())
    key = stored[len(stored) // 2]
    found = neighbours(images, f"000062_01_01/{key.name}", len(stored))
    assert found == [f"000062_01_01/{path.name}" for path in stored]
