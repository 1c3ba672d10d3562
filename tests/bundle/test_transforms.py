"""From PNG to network input: a bright off-centre lesion stays where its box says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.apps.detection.transforms.dictionary import FlipBoxd, ZoomBoxd
from PIL import Image, ImageEnhance
from scripts.contract import bracket, make, resized_shape
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
    degrees=st.floats(-30, 30),
)
def test_augmentation_moves_pixels_and_boxes_alike(
    scale: float, shift: tuple[float, float], flip: tuple[bool, bool], degrees: float
) -> None:
    # A smooth blob: a hard edge would alias when made smaller, and that is not what is tested here.
    x, y = torch.arange(160.0)[:, None] + 0.5 - 72, torch.arange(128.0)[None] + 0.5 - 58
    image = (255 * torch.exp(-(x**2) / (2 * 6**2) - y**2 / (2 * 4**2))).round().to(torch.uint8)[None]
    out, boxes, _ = affine(image / 255, torch.tensor([[60.0, 50.0, 84.0, 66.0]]), scale, shift, flip, degrees)
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


def test_sharpness_varies_as_pillow_s_does() -> None:
    still = {"flip": (0, 0), "scale": (1.0, 1.0), "shift": 0.0, "contrast": 0.0, "brightness": 0.0}
    transform = RandAugmentLesiond(["image"], sharpness=1.0, **still)  # type: ignore[arg-type]
    transform.set_random_state(seed=3)
    pixels = torch.randint(60, 190, (6, 40, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    item = {"image": pixels, "box": torch.tensor([[4.0, 4, 20, 20]]), "label": torch.tensor([0])}
    factors = []
    for _ in range(8):
        out = transform(item)
        factors.append(transform._sharpness)
        for channel, result in zip(pixels, out["image"], strict=True):
            expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(channel.numpy())).enhance(factors[-1]))
            # Pillow rounds twice and leaves the border as it is, torchvision too.
            assert np.abs(result.numpy() * 255 - expected).max() <= 2
        assert out["box"].tolist() == item["box"].tolist()
    assert min(factors) < 0.5 < 1.5 < max(factors)


@pytest.mark.parametrize(
    ("slices", "windows", "size", "message"),
    [(2, [[0, 1]], 64, "odd"), (1, [[1, 1]], 64, "low < high"), (1, [], 64, "low < high"), (1, [[0, 1]], 100, "32")],
)
def test_a_contract_refuses_nonsense(slices: int, windows: list[list[float]], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(slices, windows, size)


def turned_ellipse(half: tuple[float, float], degrees: float, centre: tuple[float, float], size: int) -> torch.Tensor:
    """[1, X, Y] of 0 and 1: an ellipse whose first half axis points ``degrees`` from +x towards +y."""
    x = torch.arange(float(size))[:, None] + 0.5 - centre[0]
    y = torch.arange(float(size))[None] + 0.5 - centre[1]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return ((((x * cos + y * sin) / half[0]) ** 2 + ((y * cos - x * sin) / half[1]) ** 2) <= 1).float()[None]


@pytest.mark.parametrize("degrees", [-25.0, 12.0, 90.0])
def test_a_rotated_box_encloses_its_rotated_lesion(degrees: float) -> None:
    image = turned_ellipse((30, 12), 0, (110.0, 75.0), 160)
    box = torch.tensor([[80.0, 63.0, 140.0, 87.0]])
    out, turned, _ = affine(image, box, 1.0, (0, 0), (False, False), degrees)
    assert turned[0].tolist() == pytest.approx(bounds(out[0]), abs=1.5)


@pytest.mark.parametrize("flip", [(False, False), (True, False)])
def test_a_rotated_box_keeps_its_margins_around_the_diameters(flip: tuple[bool, bool]) -> None:
    # A long thin lesion at 45 degrees: the ellipse in its box is a circle, which would not change.
    ends = torch.tensor([[[80.0, 80], [108, 108], [92, 96], [96, 92]]])
    box = torch.tensor([[74.5, 74.5, 113.5, 113.5]])
    image = turned_ellipse((19.8, 2.8), 45, (94, 94), 160)
    out, turned, moved = affine(image, box, 1.25, (0.05, 0), flip, 15, ends)
    assert moved is not None
    margin = 5.5 * 1.25  # of the official rule, enlarged with the image
    expected = torch.cat([moved[0].amin(0) - margin, moved[0].amax(0) + margin])
    torch.testing.assert_close(turned[0], expected, atol=1e-3, rtol=0)
    lesion = bounds(out[0])
    assert (turned[0] - torch.tensor(lesion)).abs().max() < margin + 1.5
    assert (turned[0, 2] - turned[0, 0]) / (turned[0, 3] - turned[0, 1]) != pytest.approx(1, abs=0.2)
    _, by_ellipse, _ = affine(image, box, 1.25, (0.05, 0), flip, 15, torch.full_like(ends, torch.nan))
    torch.testing.assert_close(by_ellipse, affine(image, box, 1.25, (0.05, 0), flip, 15)[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_flip_equals_monais(axis: int) -> None:
    torch.manual_seed(0)
    image, box = torch.rand(2, 96, 64), torch.tensor([[10.0, 20, 31, 60], [50.5, 3, 80, 9]])
    monai = FlipBoxd(["image"], ["box"], ["image"], spatial_axis=axis)({"image": image, "box": box})
    out, boxes, _ = affine(image, box, 1.0, (0, 0), (axis == 0, axis == 1))
    torch.testing.assert_close(out, torch.as_tensor(monai["image"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, torch.as_tensor(monai["box"]))


@pytest.mark.parametrize("zoom", [1.25, 0.75])
def test_zoom_equals_monais(zoom: float) -> None:
    x, y = torch.arange(128.0)[:, None] + 0.5 - 80, torch.arange(64.0)[None] + 0.5 - 25
    image, box = torch.exp(-(x**2) / 200 - y**2 / 60)[None], torch.tensor([[70.0, 20, 90, 30]])
    monai = ZoomBoxd(
        ["image"], ["box"], ["image"], (zoom, zoom), mode="bilinear", padding_mode="constant", keep_size=True
    )
    expected = monai({"image": image, "box": box})
    out, boxes, _ = affine(image, box, zoom, (0, 0), (False, False))
    torch.testing.assert_close(boxes, torch.as_tensor(expected["box"]))
    torch.testing.assert_close(out, torch.as_tensor(expected["image"]), atol=0.02, rtol=0)


def test_augmentation_keeps_boxes_labels_and_diameters_together() -> None:
    transform = RandAugmentLesiond(["image"], shift=0.3, rotation=20, gamma=0.3).set_random_state(seed=0)
    ends = torch.tensor([[[20.0, 20], [30, 30], [22, 28], [28, 22]], [[2, 2], [8, 8], [3, 7], [7, 3]]])
    image = torch.arange(64, dtype=torch.uint8)[None, :, None].repeat(2, 1, 64)
    item = {"image": image, "box": torch.tensor([[15.0, 15, 35, 35], [0, 0, 13, 13]]), "label": torch.tensor([4, 7]),
            "recist_px": ends}  # fmt: skip
    lost = 0
    for _ in range(40):
        out = transform(item)
        assert 0 <= float(out["image"].min()) <= float(out["image"].max()) <= 1
        assert len(out["box"]) == len(out["label"]) == len(out["recist_px"])
        middle = (out["recist_px"].amin(1) + out["recist_px"].amax(1)) / 2
        inside = (out["box"][:, :2] < middle) & (middle < out["box"][:, 2:])
        assert inside.all()
        lost += len(out["box"]) < 2
    assert 0 < lost < 40


# --- the contract's millimetres --------------------------------------------------------------------------------------


def ramp(folder: Path, spacing_mm: float, count: int) -> list[str]:
    """Slices whose HU is 10 times their position in mm; their paths."""
    names = [f"s{spacing_mm}/{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        hu = np.full((8, 8), round(10 * number * spacing_mm))
        cv2.imwrite(str(folder / name), (hu + 32768).astype(np.uint16))
    return names


@pytest.mark.parametrize("spacing_mm", [1.0, 1.5, 2.0, 5.0])
def test_neighbours_are_equally_far_apart_whatever_the_series(tmp_path: Path, spacing_mm: float) -> None:
    names = ramp(tmp_path, spacing_mm, 21)
    item = {"image": names[2:19], "meta": {"spacing_mm": [0.8, 0.8, spacing_mm]}}
    hu = LoadSlicesd(["image"], tmp_path, 5, slice_step_mm=2.0)(item)["image"]
    np.testing.assert_allclose(hu[:, 0, 0] / 10 - 10 * spacing_mm, [-4, -2, 0, 2, 4], atol=0.02 * spacing_mm)
    as_listed = LoadSlicesd(["image"], tmp_path, 5)(item)["image"]
    np.testing.assert_allclose(as_listed[:, 0, 0] / 10, [(10 + k) * spacing_mm for k in range(-2, 3)])
    # As inference sees them: towards the head.
    item["meta"]["numbers_lead_to"] = "feet"
    for step_mm, before in ((2.0, hu), (None, as_listed)):
        turned = LoadSlicesd(["image"], tmp_path, 5, slice_step_mm=step_mm)(item)["image"]
        assert torch.equal(turned, before.flip(0))


def test_neighbours_at_the_end_of_a_series_and_beyond_the_datalist(tmp_path: Path) -> None:
    names = ramp(tmp_path, 2.0, 9)
    meta = {"spacing_mm": [0.8, 0.8, 2.0]}
    load = LoadSlicesd(["image"], tmp_path, 5, slice_step_mm=3.0)
    first = load({"image": [names[1]] * 3 + [names[1], *names[2:5]], "meta": meta})["image"][:, 0, 0] / 10
    assert first.tolist() == pytest.approx([2, 2, 2, 5, 8])  # nothing below: the outermost slice stands in
    with pytest.raises(ValueError, match=r"reach 4 mm.*want 6 mm.*--slices 7"):
        load({"image": names[2:7], "meta": meta})
    with pytest.raises(ValueError, match="--slices 5"):  # the slices' places are unknown, so as many as they are
        load({"image": names[2:5], "meta": {"spacing_mm": [0.8, 0.8, None]}})


def test_bracket_is_linear_interpolation() -> None:
    values, positions = np.array([3.0, 7.0, 1.0]), [0.0, 2.5, 5.0]
    wanted = [-4.0, 0.0, 1.0, 2.5, 4.0, 9.0]
    ours = [values[a] * (1 - w) + values[b] * w for a, b, w in bracket(positions, wanted)]
    np.testing.assert_allclose(ours, np.interp(wanted, positions, values))
    assert bracket([0.0, 0.3], [0.1 + 0.2]) == [(1, 1, 0.0)]


@pytest.mark.parametrize(("spacing", "columns", "rows"), [(0.7, 256, 192), (1.4, 128, 96), (0.35, 500, 300)])
def test_a_pixel_has_a_set_size_and_boxes_follow(tmp_path: Path, spacing: float, columns: int, rows: int) -> None:
    box = [columns * 0.6, rows * 0.2, columns * 0.75, rows * 0.3]
    write_slice(tmp_path / "001.png", columns, rows, box)
    box = [float(int(v)) for v in box]
    contract = make(1, [[-100, 200]], 256, pixel_mm=1.0)
    item = {"image": ["001.png"], "box": [box], "label": [0], "meta": {"spacing_mm": [spacing, spacing, 5.0]}}
    out = ApplyContractd(["image"], contract)(LoadSlicesd(["image"], tmp_path, 1)(item))
    assert out["image"].shape == (1, 256, 256)
    extent_mm = (box[2] - box[0]) * spacing
    assert float(out["box"][0, 2] - out["box"][0, 0]) == pytest.approx(extent_mm, rel=0.01)
    assert bounds(out["image"][0].float()) == pytest.approx(out["box"][0].tolist(), abs=0.8)
    torch.testing.assert_close(out["box"] / out["resize_factor"], torch.tensor([box]))
    with pytest.raises(ValueError, match=r"001\.png.*pixel size"):
        ApplyContractd(["image"], contract)(LoadSlicesd(["image"], tmp_path, 1)({**item, "meta": {}}))


def test_a_slice_too_large_for_the_input_is_made_to_fit() -> None:
    assert resized_shape((512, 512), 512, 0.8, [0.8, 0.8]) == (512, 512)
    assert resized_shape((512, 512), 512, 0.8, [0.4, 0.4]) == (256, 256)
    assert resized_shape((512, 256), 512, 0.8, [1.6, 1.6]) == (512, 256)
    assert resized_shape((512, 256), 640) == (640, 320)


@pytest.mark.parametrize("field", ["slice_step_mm", "pixel_mm"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_contract_refuses_impossible_millimetres(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        make(1, [[0, 1]], 64, **{field: value})
