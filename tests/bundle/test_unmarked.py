"""Lesions without a mark: what each remedy does to the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.detector import BOX_WEIGHT, LesionDetector, decode, quality_focal_loss
from scripts.errors import BundleError
from scripts.matching import atss, pad_boxes, pairwise_iou
from scripts.unmarked import (
    FLOOR,
    Complete,
    Ignore,
    MarkedScores,
    Predictions,
    Remedy,
    best_predictions,
    confident_unmarked,
    make,
    positive_unlabelled,
    scores_of_marks,
)
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss
from toy_detector import FAR, MARK, detector_of, grid, outputs, target

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def detector() -> LesionDetector:
    return detector_of()


def loss_of(detector: LesionDetector, remedy: Remedy | None, logits: Tensor, deltas: Tensor, *targets: Any) -> Any:
    detector.unmarked = remedy
    heads = {"classification": logits, "box_regression": deltas}
    return detector.compute_loss(heads, list(targets), [grid()], [64])


def gradient(losses: dict[str, Tensor], logits: Tensor) -> Tensor:
    return torch.autograd.grad(losses["classification"], logits)[0]


def primed(remedy: Any, score: float) -> Any:
    """The remedy past its warm-up, having seen many marked lesions of one score."""
    remedy.iteration = remedy.warmup + 1
    remedy.marked.update(torch.full((10_000,), score), torch.ones(10_000, dtype=torch.bool))
    return remedy


# --- no remedy -----------------------------------------------------------------------------------------------------


def test_without_a_remedy_the_loss_is_the_published_one(detector: LesionDetector) -> None:
    detector = detector_of(3)
    logits, deltas = outputs(3, 3)
    targets = [target(torch.cat([MARK, MARK + 30]), [2, 0]), target(torch.zeros(0, 4)), target()]
    anchors = grid()
    boxes, real = pad_boxes([t["box"] for t in targets])
    matched = atss(anchors, [64], boxes, real, 9)
    quality = torch.zeros_like(logits)
    regression, weights, count = torch.tensor(0.0), torch.tensor(0.0), 0
    for b in range(3):
        for a in torch.nonzero(matched[b] >= 0).flatten().tolist():
            goal, box = targets[b]["box"][matched[b, a]], decode(deltas[b, a], anchors[a])
            quality[b, a, targets[b]["label"][matched[b, a]]] = pairwise_iou(box.detach(), goal)
            weight = logits.detach()[b, a].max().sigmoid()
            regression, weights, count = (
                regression + weight * generalized_box_iou_loss(box, goal),
                weights + weight,
                count + 1,
            )
    assert count >= 3
    for remedy in (None, Remedy()):
        losses = loss_of(detector, remedy, logits, deltas, *targets)
        torch.testing.assert_close(losses["classification"], quality_focal_loss(logits, quality).sum() / count)
        torch.testing.assert_close(losses["box_regression"], BOX_WEIGHT * regression / weights.clamp(min=1))


def test_the_remedy_none_changes_no_bit(detector: LesionDetector) -> None:
    logits, deltas = outputs(2)
    found = [loss_of(detector, r, logits, deltas, target(), target(torch.zeros(0, 4))) for r in (None, Remedy())]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert torch.equal(*(gradient(losses, logits) for losses in found))


def test_unknown_settings_are_refused() -> None:
    shared = {"teacher": torch.nn.Identity(), "steps": 100, "ema_decay": 0.99}
    assert {type(make(kind, **shared)).__name__ for kind in ("none", "ignore", "complete", "pu")} == {
        "Remedy", "Ignore", "Complete", "PositiveUnlabelled",
    }  # fmt: skip
    assert make("complete", **{**shared, "steps": 4}).warmup == 100
    with pytest.raises(BundleError, match="none, ignore, complete, pu"):
        make("maybe", **shared)
    with pytest.raises(BundleError, match="marked_share"):
        make("pu", marked_share=0.0, **shared)


# --- how confident marked lesions are ------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0, 0.99))
def test_quantile_is_that_of_the_scores_to_a_bin(scores: list[float], share: float) -> None:
    marked = MarkedScores(memory=1_000_000)
    marked.update(torch.tensor(scores), torch.ones(len(scores), dtype=torch.bool))
    low, high = (torch.quantile(torch.tensor(scores), share, interpolation=i) for i in ("lower", "higher"))
    assert low - 1.5 / marked.bins <= marked.quantile(share) <= high + 1.5 / marked.bins


def test_old_scores_are_forgotten_and_padding_never_counts() -> None:
    marked = MarkedScores(memory=100)
    assert torch.isinf(marked.quantile(0.5))
    for score in (0.1, 0.8):
        for _ in range(50):
            scores = torch.tensor([[score, 0.99]] * 8)
            marked.update(scores, torch.tensor([[True, False]] * 8))
    assert marked.quantile(0.05) == pytest.approx(0.8, abs=0.01)
    assert marked.quantile(0.95) == pytest.approx(0.8, abs=0.01)
    again = MarkedScores(memory=100)
    again.load_state_dict(marked.state_dict())
    assert torch.equal(again.quantile(0.5), marked.quantile(0.5))


def scattered(count: int = 60) -> Predictions:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(2, count, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + 8 + torch.rand(2, count, 2, generator=generator) * 12], -1)
    scores = torch.rand(2, count, generator=generator).sort(dim=1, descending=True).values
    return Predictions(boxes, scores, torch.zeros(2, count, dtype=torch.long))


def test_scores_of_marks_are_those_of_the_best_hit() -> None:
    found = scattered()
    marks = torch.cat([found.boxes[:, 20:23] + 1, torch.full((2, 1, 4), 500.0)], 1)
    real = torch.tensor([[True, True, False, True], [True, True, True, True]])
    expected = torch.zeros(2, 4)
    for b in range(2):
        for n in range(4):
            hits = box_iou(marks[b, n : n + 1], found.boxes[b])[0] >= 0.5
            if real[b, n] and hits.any():
                expected[b, n] = found.scores[b][hits].max()
    assert (expected[:, :2] > 0).all()
    assert torch.equal(scores_of_marks(found, marks, real), expected)


def test_confident_findings_are_those_of_nms_that_no_mark_explains() -> None:
    found = scattered()
    marks, real = found.boxes[:, :3] + 0.5, torch.tensor([[True, True, True], [True, False, False]])
    missing = confident_unmarked(found, marks, real, torch.tensor(0.3), most=20)
    for b in range(2):
        keep = batched_nms(found.boxes[b], found.scores[b], found.labels[b], 0.5)
        apart = (box_iou(found.boxes[b][keep], marks[b][real[b]]) < 0.3).all(1) & (found.scores[b][keep] >= 0.3)
        expected = keep[apart][:20]
        assert len(expected) > 3
        assert torch.equal(missing.boxes[b][missing.scores[b] > 0], found.boxes[b][expected])
        assert torch.equal(missing.scores[b][missing.scores[b] > 0], found.scores[b][expected])


def test_best_predictions_are_the_highest_scores() -> None:
    logits, deltas = outputs(2, 3)
    found = best_predictions(logits, deltas, grid(), count=5)
    for b in range(2):
        scores, labels = logits[b].sigmoid().max(1)
        order = scores.argsort(descending=True)[:5]
        torch.testing.assert_close(found.scores[b], scores[order])
        assert torch.equal(found.labels[b], labels[order])
        torch.testing.assert_close(found.boxes[b], decode(deltas[b][order], grid()[order]))


# --- ignore --------------------------------------------------------------------------------------------------------


def confident(at: int = FAR, logit: float = 1.5) -> tuple[Tensor, Tensor]:
    logits, deltas = outputs()
    with torch.no_grad():
        logits[0, at] = logit
        deltas[0, at] = 0
    return logits, deltas


def test_ignore_leaves_a_confident_place_without_gradient(detector: LesionDetector) -> None:
    logits, deltas = confident()
    remedy = primed(Ignore(warmup=5, quantile=0.5), score=0.6)
    quiet = gradient(loss_of(detector, remedy, logits, deltas, target()), logits)[0, :, 0]
    usual = gradient(loss_of(detector, None, logits, deltas, target()), logits)[0, :, 0]
    centre = (grid()[:, :2] + grid()[:, 2:]) / 2
    inside = ((centre >= grid()[FAR, :2]) & (centre < grid()[FAR, 2:])).all(1)
    assert inside.sum() == 4
    assert usual[FAR] > 0.1
    assert (quiet[inside] == 0).all()
    assert torch.equal(quiet[~inside], usual[~inside])


@pytest.mark.parametrize("why", ["warm-up", "below the marked lesions' scores", "below the floor", "on the mark"])
def test_ignore_punishes_everything_else(detector: LesionDetector, why: str) -> None:
    score = 0.9 if why.startswith("below the marked") else 0.05
    logits, deltas = confident(at=FAR if why != "on the mark" else 9, logit=-1.6 if why == "below the floor" else 1.5)
    assert logits.detach().max().sigmoid() > 0.05
    assert (logits.detach().max().sigmoid() < FLOOR) == (why == "below the floor")
    remedy = primed(Ignore(warmup=5, quantile=0.5), score)
    if why == "warm-up":
        remedy.iteration = 5
    found = gradient(loss_of(detector, remedy, logits, deltas, target()), logits)
    assert torch.equal(found, gradient(loss_of(detector, None, logits, deltas, target()), logits))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_what_the_cpu_finds_without_waiting_for_the_device() -> None:
    logits, deltas = confident()
    marks, real = pad_boxes([MARK])
    found: list[Tensor] = []
    for device in ("cpu", "cuda"):
        remedy = Ignore(warmup=0, quantile=0.5)
        remedy.iteration = 1
        given_ = [t.detach().to(device) for t in (logits, deltas, grid(), marks, real)]
        remedy.anchor_weight(*given_)  # brings the histogram to the device
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            weight = remedy.anchor_weight(*given_)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(weight.cpu())
    assert (found[0] == 0).any()
    assert torch.equal(*found)


# --- complete ------------------------------------------------------------------------------------------------------


class Teacher(torch.nn.Module):
    """Says one thing about every image."""

    def __init__(self, logits: Tensor, deltas: Tensor) -> None:
        super().__init__()
        self.said = logits.detach(), deltas.detach(), grid()

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.said


def test_the_teachers_findings_become_targets_after_the_warm_up() -> None:
    remedy = Complete(warmup=2, quantile=0.5, teacher=Teacher(*confident()))
    remedy.marked.update(torch.full((10_000,), 0.6), torch.ones(10_000, dtype=torch.bool))
    for iteration in (1, 2, 3):
        given_target = target()
        remedy.begin(torch.zeros(1, 3, 64, 64), [given_target])
        assert ("unmarked_box" in given_target) == (iteration == 3)
    (kept,) = torch.nonzero(given_target["unmarked_score"]).flatten().tolist()
    assert torch.equal(given_target["unmarked_box"][kept], grid()[FAR])
    assert given_target["unmarked_score"][kept] == pytest.approx(torch.tensor(1.5).sigmoid().item())
    # A teacher that agrees with the mark alone adds nothing.
    remedy = primed(Complete(warmup=2, quantile=0.5, teacher=Teacher(*confident(at=9))), 0.6)
    remedy.begin(torch.zeros(1, 3, 64, 64), [given_target])
    assert not given_target["unmarked_score"].any()


def test_a_finding_of_score_one_counts_like_a_mark(detector: LesionDetector) -> None:
    logits, deltas = outputs(2)
    found = torch.stack([grid()[FAR] + 1, torch.zeros(4)])  # and padding
    empty = {"unmarked_box": torch.zeros(2, 4), "unmarked_label": torch.zeros(2, dtype=torch.long)}
    completed = {
        "unmarked_box": found,
        "unmarked_label": empty["unmarked_label"],
        "unmarked_score": torch.tensor([1.0, 0]),
    }
    soft = [target() | completed, target() | empty | {"unmarked_score": torch.zeros(2)}]
    hard = [target(torch.cat([MARK, found[:1]])), target()]
    a, b = (loss_of(detector, Remedy(), logits, deltas, *targets) for targets in (soft, hard))
    for key in a:
        torch.testing.assert_close(a[key], b[key])


def test_a_finding_counts_with_its_score(detector: LesionDetector) -> None:
    logits, deltas = outputs()
    nothing = target(torch.zeros(0, 4))
    of = {}
    for score in (0.25, 0.5, 1.0):
        more = {"unmarked_box": grid()[[FAR]] + 1, "unmarked_label": torch.zeros(1, dtype=torch.long)}
        made = nothing | more | {"unmarked_score": torch.tensor([score])}
        of[score] = gradient(loss_of(detector, Remedy(), logits, deltas, made), logits)[0, :, 0]
    drawn = of[1.0] < 0  # the anchors that are told to find it
    positives = int(drawn.sum())
    assert positives >= 1
    for score in (0.25, 0.5):
        factor = positives / max(1.0, positives * score)  # the loss is divided by the weight of all positives
        torch.testing.assert_close(of[score][drawn], of[1.0][drawn] * score * factor)
        torch.testing.assert_close(of[score][~drawn], of[1.0][~drawn] * factor)


# --- positive-unlabelled -------------------------------------------------------------------------------------------


def test_positive_unlabelled_risk_in_closed_form() -> None:
    logits = torch.tensor([[[1.0], [0.0], [0.5]]], requires_grad=True)
    positive = torch.tensor([[[True], [False], [False]]])
    losses = quality_focal_loss(logits, torch.where(positive, 0.8, 0.0))
    torch.testing.assert_close(positive_unlabelled(losses, logits, positive, 1.0), losses.sum())

    def background(x: float) -> Tensor:
        p = torch.tensor(x).sigmoid()
        return -(p**2) * torch.log(1 - p)

    for share in (0.9, 0.5):
        negative = background(0.0) + background(0.5) - (1 - share) / share * background(1.0)
        assert (negative > 0) == (share == 0.9)
        value = positive_unlabelled(losses, logits, positive, share)
        torch.testing.assert_close(value, losses[0, 0, 0] + share * negative.clamp(min=0))
        slope = torch.autograd.grad(value, logits, retain_graph=True)[0][0, :, 0]
        assert slope[0] < 0
        assert (slope[1:] > 0).all() if share == 0.9 else (slope[1:] == 0).all()
