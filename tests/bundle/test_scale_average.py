"""Several looks at a slice, and what they say together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripts.detector import LesionDetector
from scripts.errors import BundleError
from scripts.evaluation import DetectStep
from scripts.scale_average import ScaleAverage, check_scales, merge
from torch import Tensor
from toy_detector import detector_of


def look(boxes: list[list[float]], scores: list[float], label: int = 0) -> dict[str, Tensor]:
    return {
        "box": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "label_scores": torch.tensor(scores, dtype=torch.float32),
        "label": torch.full((len(scores),), label),
    }


LOOKS = [
    look([[10, 10, 30, 34], [60, 20, 90, 60], [5, 70, 15, 80]], [0.8, 0.5, 0.3], 1),
    look([[11, 9, 31, 33], [62, 22, 91, 58]], [0.6, 0.7], 2),
    look([[9, 11, 29, 35], [40, 80, 52, 92]], [0.7, 0.2], 3),
]


def test_boxes_that_overlap_are_fused_as_ensemble_boxes_does() -> None:
    # ensemble-boxes 1.0.9: weighted_boxes_fusion(..., iou_thr=0.5, conf_type='avg'), coordinates in hundredths.
    expected = [
        [9.9524, 10.0476, 29.9524, 34.0476], [61.1667, 21.1667, 90.5833, 58.8333], [5, 70, 15, 80], [40, 80, 52, 92],
    ]  # fmt: skip
    found = merge(LOOKS, iou=0.5, most=100)
    torch.testing.assert_close(found["box"], torch.tensor(expected), atol=1e-3, rtol=0)
    torch.testing.assert_close(found["label_scores"], torch.tensor([0.7, 0.4, 0.1, 0.066667]), atol=1e-5, rtol=0)
    assert found["label"].tolist() == [1, 2, 1, 3]  # of the surest look
    assert merge(LOOKS, iou=0.5, most=2)["box"].shape == (2, 4)


def test_equal_looks_say_what_one_says_and_empty_ones_share_the_score() -> None:
    one, nothing = LOOKS[0], look([], [])
    same = merge([one, one, one], iou=0.5, most=100)
    torch.testing.assert_close(same["box"], one["box"])
    torch.testing.assert_close(same["label_scores"], one["label_scores"])
    half = merge([one, nothing], iou=0.5, most=100)
    torch.testing.assert_close(half["label_scores"], one["label_scores"] / 2)
    assert merge([nothing, nothing], iou=0.5, most=100)["box"].shape == (0, 4)


corner = st.integers(0, 80)
rows = st.lists(st.tuples(corner, corner, st.integers(5, 40), st.integers(5, 40), st.integers(1, 1000)), max_size=12)


@given(st.lists(rows, min_size=1, max_size=3))
def test_findings_stay_apart_ordered_and_within_what_was_said(given_looks: list[list[tuple[int, ...]]]) -> None:
    looks = [look([[x, y, x + w, y + h] for x, y, w, h, _ in one], [s / 1000 for *_, s in one]) for one in given_looks]
    found = merge(looks, iou=0.5, most=100)
    said = torch.cat([one["label_scores"] for one in looks])
    scores = found["label_scores"]
    assert bool(said.numel()) == bool(scores.numel())
    assert (scores[:-1] >= scores[1:]).all()
    assert (scores > 0).all()
    if len(scores):
        assert scores.max() <= said.max() + 1e-6
        boxes = torch.cat([one["box"] for one in looks])
        assert (found["box"] >= boxes.amin(0) - 1e-3).all()
        assert (found["box"] <= boxes.amax(0) + 1e-3).all()


class Seer(LesionDetector):
    """Marks the bright square of an image, whatever its size, surer the larger the image is."""

    def __init__(self) -> None:
        inner = detector_of()
        super().__init__(inner.network, inner.anchor_generator)

    def forward(self, images: Tensor, *_: Any) -> list[dict[str, Tensor]]:  # type: ignore[override]
        found = []
        for image in images:
            x, y = torch.nonzero(image[0] > 0.5, as_tuple=True)
            box = [float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
            found.append(look([box], [image.shape[1] / 1000]))
        return found


def test_boxes_of_every_size_come_back_to_the_px_of_the_slice() -> None:
    images = torch.zeros(1, 3, 128, 64)
    images[:, :, 32:96, 16:48] = 1
    (found,) = ScaleAverage(Seer(), [0.5, 2])(images)
    torch.testing.assert_close(found["box"], torch.tensor([[32.0, 16.0, 96.0, 48.0]]), atol=0.5, rtol=0)
    torch.testing.assert_close(found["label_scores"], torch.tensor([(0.128 + 0.064 + 0.256) / 3]))


def test_the_step_looks_at_the_scales_it_is_given() -> None:
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 8:40, 16:48] = 1
    images[1, :, 16:48, 8:40] = 1
    batch = {"image": images, "resize_factor": [torch.full((4,), 0.5)] * 2, "spatial_size": [(128, 128)] * 2}
    plain, scaled = (DetectStep(Seer(), "cpu", amp=False, scale_average=s)(None, batch) for s in ([], [2.0]))  # type: ignore[arg-type]
    assert [one["box_px"].round().tolist() for one in plain] == [[[16, 32, 80, 96]], [[32, 16, 96, 80]]]
    assert [one["box_px"].round().tolist() for one in scaled] == [[[16, 32, 80, 96]], [[32, 16, 96, 80]]]
    assert (float(plain[0]["score"][0]), float(scaled[0]["score"][0])) == pytest.approx((0.064, (0.064 + 0.128) / 2))


@pytest.mark.parametrize("scales", ["1.5", 1.5, [0], [-1.0], [float("nan")], [99], [True], [None], {"a": 1}])
def test_other_scales_are_refused(scales: Any) -> None:
    with pytest.raises(BundleError, match="scale_average"):
        check_scales(scales)
