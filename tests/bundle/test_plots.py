"""Pictures: that they are written, and that what they show is where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image
from scripts.froc import ImageResult
from scripts.metrics import compute
from scripts.plots import (
    FALSE_POSITIVE,
    FINDING,
    HIT,
    MISS,
    Panel,
    overlay,
    overlay_sheet,
    plot_accuracy_over_iou,
    plot_froc,
)

BOX, OTHER, FAR = [10.0, 12.0, 30.0, 32.0], [60.0, 60.0, 80.0, 80.0], [100.0, 20.0, 120.0, 40.0]


image_result: Any = ImageResult  # takes lists too


def results(shift: float = 0.0) -> list[ImageResult]:
    return [
        image_result(f"{i}", f"p{i % 4}", np.array([BOX, FAR]) + shift, [0.5 + 0.01 * i, 0.6], [BOX]) for i in range(12)
    ]


@pytest.mark.parametrize("plot", [plot_froc, plot_accuracy_over_iou])
@pytest.mark.parametrize("bootstrap", [0, 20])
def test_curves_are_drawn(plot: Any, bootstrap: int, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "curve.png"
    metrics = compute(results(), bootstrap=bootstrap)
    plot(metrics, path, label="one", others={"two": compute(results(8), bootstrap=bootstrap)})
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):  # a line for each run
        assert (pixels == colour).all(axis=1).sum() > 100


def test_curves_without_any_lesion_are_drawn_empty(tmp_path: Path) -> None:
    metrics = compute([image_result("a", "p", [BOX], [0.5], [])], bootstrap=5)
    plot_froc(metrics, tmp_path / "froc.svg")
    plot_accuracy_over_iou(metrics, tmp_path / "accuracy.pdf")
    assert (tmp_path / "froc.svg").stat().st_size > 1000
    assert (tmp_path / "accuracy.pdf").stat().st_size > 1000


def drawn(image: Any, true: Any, boxes: Any, scores: Any, **options: Any) -> list[tuple[str, Any, list[float]]]:
    axes = Figure().add_subplot()
    overlay(image, true, boxes, scores, axes, **options)
    patches: list[Any] = list(axes.patches)
    return [
        (to_hex(p.get_edgecolor()).upper(), p.get_linestyle(), [p.get_x(), p.get_y(), p.get_width(), p.get_height()])
        for p in patches
    ]


def test_hits_misses_and_false_positives_look_different() -> None:
    image = np.zeros((96, 128))
    assert drawn(image, [BOX, OTHER], [BOX, FAR], [0.9, 0.8]) == [
        (HIT.upper(), ":", [10, 12, 20, 20]),
        (MISS.upper(), "--", [60, 60, 20, 20]),
        (HIT.upper(), "-", [10, 12, 20, 20]),
        (FALSE_POSITIVE.upper(), "-", [100, 20, 20, 20]),
    ]


def test_boxes_below_the_threshold_are_not_there() -> None:
    image = np.zeros((96, 128))
    shown = drawn(image, [BOX], [BOX, FAR], [0.4, 0.8], score_threshold=0.5)
    assert [colour for colour, _, _ in shown] == [MISS.upper(), FALSE_POSITIVE.upper()]
    assert drawn(image, [], [], []) == []


def test_image_lies_in_the_corner_frame_of_the_boxes(tmp_path: Path) -> None:
    """A bright block of pixels fills its half-open box exactly."""
    image = np.full((40, 60), -1000.0)
    x0, y0, x1, y1 = 20, 8, 50, 16
    image[y0:y1, x0:x1] = 1000
    figure = Figure(figsize=(6, 4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    overlay(image, [], [], [], axes)
    figure.savefig(tmp_path / "block.png")
    bright = np.argwhere(np.asarray(Image.open(tmp_path / "block.png").convert("L")) > 128)
    assert bright.min(axis=0).tolist() == [10 * y0, 10 * x0]
    assert (bright.max(axis=0) + 1).tolist() == [10 * y1, 10 * x1]


def test_sheet_has_a_row_for_every_four_slices(tmp_path: Path) -> None:
    panels = [Panel(np.zeros((64, 64)), [BOX], [BOX], [0.9], f"slice {i}") for i in range(5)]
    overlay_sheet(panels, tmp_path / "five.png")
    overlay_sheet(panels[:4], tmp_path / "four.png")
    overlay(np.zeros((64, 64)), [BOX], [], [], tmp_path / "one.png")
    five, four = Image.open(tmp_path / "five.png").size, Image.open(tmp_path / "four.png").size
    assert five[0] == four[0]
    assert five[1] > 1.7 * four[1]
    assert (tmp_path / "one.png").is_file()
    with pytest.raises(ValueError, match="no slices"):
        overlay_sheet([], tmp_path / "none.png")


def test_findings_without_truth_are_not_called_false(tmp_path: Path) -> None:
    boxes, scores = np.array([[20.0, 20.0, 44.0, 44.0]]), np.array([0.9])

    def has(name: str, colour: str) -> bool:
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"), dtype=np.float64)
        return bool(np.linalg.norm(pixels - 255 * np.array(to_rgb(colour)), axis=-1).min() < 60)  # lines are smoothed

    for name, truth in (("unknown.png", None), ("none.png", np.empty((0, 4)))):
        overlay(np.full((64, 64), -100.0), truth, boxes, scores, tmp_path / name)
    assert has("unknown.png", FINDING)
    assert not any(has("unknown.png", colour) for colour in (FALSE_POSITIVE, HIT, MISS))
    assert has("none.png", FALSE_POSITIVE)
    assert not has("none.png", FINDING)
