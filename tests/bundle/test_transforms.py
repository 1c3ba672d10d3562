"""From PNG to network input: a bright off-centre lesion stays where its box says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.contract import make
from scripts.transforms import ApplyContractd, LoadSlicesd, RandAugmentLesiond, affine, read_slice, window_and_resize

BOX = [150.0, 40.0, 190.0, 64.0]  # x0, y0, x1, y1: off-centre and not square


def write_slice(path: Path, columns: int = 256, rows: int = 192, box: list[float] = BOX) -> None:
    hu = np.full((rows, columns), -100, dtype=np.int32)
    hu[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), (hu + 32768).astype(np.uint16))


def bounds(image: torch.Tensor) -> list[float]:
    """x0, y0, x1, y1 of what is brighter than half, with the corner frame."""
    x, y = torch.nonzero(image > 0.5 * image.max(), as_tuple=True)
    return [float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1]


def test_read_slice_is_hu_with_x_first(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.png")
    hu = read_slice(tmp_path / "a.png")
    assert hu.shape == (256, 192)
    assert bounds(torch.from_numpy(hu) + 100) == BOX
    assert set(np.unique(hu)) == {-100.0, 200.0}


@pytest.mark.parametrize("kind", ["missing", "truncated", "8-bit", "colour"])
def test_a_bad_slice_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.png"
    if kind == "truncated":
        write_slice(path)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "8-bit":
        cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    elif kind == "colour":
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint16))
    with pytest.raises(ValueError, match=r"bad\.png"):
        read_slice(path)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_box_and_pixels_are_resized_alike(tmp_path: Path, size: int) -> None:
    write_slice(tmp_path / "s" / "001.png")
    contract = make(1, [[-100, 200]], size)
    item = {"image": ["s/001.png"], "box": [BOX], "label": [0]}
    out = ApplyContractd(["image"], contract)(LoadSlicesd(["image"], tmp_path, 1)(item))
    assert out["image"].shape == (1, size, size)
    assert bounds(out["image"][0].float()) == pytest.approx(out["box"][0].tolist(), abs=0.51)
    weight = out["image"][0].double()
    centre_x = (weight.sum(1) * (torch.arange(size) + 0.5)).sum() / weight.sum()
    assert float(centre_x) == pytest.approx(float(out["box"][0, 0] + out["box"][0, 2]) / 2, abs=0.02)


def test_channels_are_slices_within_windows(tmp_path: Path) -> None:
    hu = torch.stack([torch.full((64, 64), v) for v in (-50.0, 0.0, 50.0)])
    out = window_and_resize(hu, make(3, [[-50, 50], [0, 200]], 64))
    assert out[:, 0, 0].tolist() == [0, 128, 255, 0, 0, 64]


def test_the_key_slice_stands_in_for_one_of_another_size(tmp_path: Path) -> None:
    for number, columns in ((1, 100), (2, 256), (3, 256)):
        write_slice(tmp_path / f"{number}.png", columns=columns, box=[10, 10, 20, 20])
    out = LoadSlicesd(["image"], tmp_path, 3)({"image": ["1.png", "2.png", "3.png"]})
    assert out["image"].shape == (3, 256, 192)
    with pytest.raises(ValueError, match="--slices 5"):
        LoadSlicesd(["image"], tmp_path, 5)({"image": ["1.png", "2.png", "3.png"]})


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    scale=st.floats(0.7, 1.4),
    shift=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)),
    flip=st.tuples(st.booleans(), st.booleans()),
)
def test_augmentation_moves_pixels_and_boxes_alike(
    scale: float, shift: tuple[float, float], flip: tuple[bool, bool]
) -> None:
    # A smooth blob: a hard edge would alias when made smaller, and that is not what is tested here.
    x, y = torch.arange(160.0)[:, None] + 0.5 - 72, torch.arange(128.0)[None] + 0.5 - 58
    image = (255 * torch.exp(-(x**2) / (2 * 6**2) - y**2 / (2 * 4**2))).round().to(torch.uint8)[None]
    out, boxes = affine(image, torch.tensor([[60.0, 50.0, 84.0, 66.0]]), scale, shift, flip)
    weight = out[0].double()
    for axis, size in ((0, 160), (1, 128)):
        position = torch.arange(size).double() + 0.5
        centre = (weight.sum(1 - axis) * position).sum() / weight.sum()
        assert float(centre) == pytest.approx(float(boxes[0, axis] + boxes[0, axis + 2]) / 2, abs=0.1)
    assert float(weight.sum()) == pytest.approx(float(image.sum()) / 255 * scale**2, rel=0.02)


def test_augmentation_is_repeatable_and_drops_boxes_outside() -> None:
    transform = RandAugmentLesiond(["image"], shift=0.4, scale=(1.0, 1.0), flip=(0, 0))
    item = {
        "image": torch.zeros(1, 64, 64, dtype=torch.uint8),
        "box": torch.tensor([[0.0, 0, 8, 8]]),
        "label": torch.tensor([0]),
    }
    runs = []
    for _ in range(2):
        transform.set_random_state(seed=1)
        runs.append([len(transform(item)["box"]) for _ in range(30)])
    assert runs[0] == runs[1]
    assert 0 < sum(runs[0]) < 30
    assert item["box"].tolist() == [[0, 0, 8, 8]]  # the cached item is not changed


@pytest.mark.parametrize(
    ("slices", "windows", "size", "message"),
    [(2, [[0, 1]], 64, "odd"), (1, [[1, 1]], 64, "low < high"), (1, [], 64, "low < high"), (1, [[0, 1]], 100, "32")],
)
def test_a_contract_refuses_nonsense(slices: int, windows: list[list[float]], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(slices, windows, size)
