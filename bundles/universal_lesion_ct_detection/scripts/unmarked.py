"""Lesions on a training slice that carry no mark: remedies against punishing the detector for finding them.

Boxes are ``x0, y0, x1, y1`` px of the network's input, scores those of the quality focal loss, that is, expected IoUs.
What counts as confident is measured on the lesions that are marked: radiologists mark some lesions and leave others, so
an unmarked one should score like a marked one. The threshold is therefore a quantile of the marked lesions' own scores,
by the same network, over the last few hundred of them. It moves with the training, the data and the number of classes.
Nothing here waits for the device, and all shapes are fixed but for the number of marks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from ignite import distributed as idist
from torch import Tensor, nn

from scripts.detector import decode
from scripts.errors import BundleError
from scripts.matching import pad_boxes, pairwise_iou

KINDS = ("none", "ignore", "complete", "pu")

TOP = 256  # predictions of a slice that are looked at
MOST = 4  # probable unmarked lesions of a slice; DeepLesion's re-annotated part has one
HIT_IOU = 0.5  # from here on a prediction finds a mark, as in the evaluation
APART_IOU = 0.3  # below, a prediction is of something else than the mark
FLOOR = 0.2  # an expected IoU below this is no finding, however little the marked lesions score


class MarkedScores:
    """Distribution of the marked lesions' scores: a histogram that forgets.

    Part of the resumable state. With several processes all of them see the marks of all.

    Args:
        memory: marked lesions that are remembered, about.
        bins: of [0, 1].
    """

    def __init__(self, memory: int = 500, bins: int = 200) -> None:
        self.memory, self.bins = memory, bins
        self.histogram = torch.zeros(bins)

    def update(self, scores: Tensor, real: Tensor) -> None:
        """Count scores (any shape, in [0, 1]) where ``real`` (bool, the same shape)."""
        place = (scores.flatten() * self.bins).long().clamp(0, self.bins - 1)
        counts = ((place[:, None] == torch.arange(self.bins, device=place.device)) & real.flatten()[:, None]).sum(0)
        if idist.get_world_size() > 1:
            dist.all_reduce(counts)
        kept = (1 - counts.sum() / self.memory).clamp(min=0)
        self.histogram = self.histogram.to(counts.device) * kept + counts

    def quantile(self, share: float) -> Tensor:
        """The score, to the width of a bin, below which ``share`` of the marked lesions lie; infinite without any."""
        below = self.histogram.cumsum(0)
        place = (below <= share * below[-1]).sum().clamp(max=self.bins - 1)
        return torch.where(below[-1] > 0, place / self.bins, torch.inf)

    def state_dict(self) -> dict[str, Any]:
        return {"histogram": self.histogram.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.histogram = state["histogram"].clone()


@dataclass(frozen=True)
class Predictions:
    """The best predictions of each slice, best first: ``boxes`` (B, K, 4), ``scores`` and ``labels`` (B, K)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_predictions(logits: Tensor, deltas: Tensor, anchors: Tensor, count: int = TOP) -> Predictions:
    """The ``count`` anchors of each slice with the highest scores, decoded.

    Args:
        logits: (B, A, classes).
        deltas: (B, A, 4).
        anchors: (A, 4).
    """
    best, labels = logits.detach().max(dim=-1)
    scores, where = best.sigmoid().topk(min(count, best.shape[1]), dim=1)
    chosen = deltas.detach().gather(1, where[..., None].expand(-1, -1, 4))
    return Predictions(decode(chosen, anchors[where]), scores, labels.gather(1, where))


def scores_of_marks(found: Predictions, marks: Tensor, real: Tensor) -> Tensor:
    """(B, N) score of the most confident prediction that hits each mark (B, N, 4); 0 where none does."""
    hit = pairwise_iou(found.boxes[:, None], marks[:, :, None]) >= HIT_IOU  # (B, N, K)
    return (hit * found.scores[:, None]).amax(-1) * real


def confident_unmarked(
    found: Predictions, marks: Tensor, real: Tensor, threshold: Tensor, most: int = MOST
) -> Predictions:
    """Confident predictions that no mark explains, one a place: (B, most), padded with score 0.

    Of predictions that overlap (IoU at least 0.5) only the best stays. A suppressed one suppresses too, as in Fast NMS
    (Bolya et al., ICCV 2019), so that all is done at once.

    Args:
        found: best first.
        marks: (B, N, 4).
        real: (B, N) bool, false for padding.
        threshold: the least score.
        most: kept of a slice, the best.
    """
    explained = ((pairwise_iou(found.boxes[:, :, None], marks[:, None]) >= APART_IOU) & real[:, None]).any(-1)
    overlap = pairwise_iou(found.boxes[:, :, None], found.boxes[:, None]) >= HIT_IOU  # (B, K, K)
    doubled = overlap.tril(-1).any(-1)
    good = (found.scores >= threshold) & ~explained & ~doubled
    scores, place = torch.where(good, found.scores, 0.0).topk(min(most, good.shape[1]), dim=1)
    return Predictions(found.boxes.gather(1, place[..., None].expand(-1, -1, 4)), scores, found.labels.gather(1, place))


def anchors_within(anchors: Tensor, found: Predictions) -> Tensor:
    """(B, A) bool: whose centre lies in one of the boxes that have a score."""
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    boxes = found.boxes[:, :, None]  # (B, M, 1, 4)
    inside = ((centre >= boxes[..., :2]) & (centre < boxes[..., 2:])).all(-1)
    return (inside & (found.scores > 0)[..., None]).any(1)


def positive_unlabelled(losses: Tensor, logits: Tensor, positive: Tensor, marked_share: float) -> Tensor:
    """Sum of the classification loss by the non-negative positive-unlabelled risk (Kiryo et al., NeurIPS 2017, eq. 6).

    Where a share s of the lesions is marked, whichever they are, the unlabelled anchors hold (1 - s) / s times as many
    lesion anchors as the marks have. What these cost as negatives is estimated by what the marks' own anchors would
    cost as negatives, and taken off. Divided by 1 / s, so that the positives weigh what they do without it.

    Args:
        losses: (B, A, classes), of the quality focal loss.
        logits: as ``losses``.
        positive: as ``losses``, bool, where a marked lesion is to be found.
        marked_share: s, in (0, 1].
    """
    unmarked = (1 - marked_share) / marked_share
    as_negative = F.softplus(logits) * logits.sigmoid().square()  # the loss at quality 0
    negative = torch.where(positive, 0.0, losses).sum() - unmarked * torch.where(positive, as_negative, 0.0).sum()
    return torch.where(positive, losses, 0.0).sum() + negative.clamp(min=0) * marked_share


# --- what the training calls ---------------------------------------------------------------------------------------


class Remedy:
    """What a training does about unmarked lesions; this one does nothing.

    Args:
        warmup: iterations without any remedy.
    """

    def __init__(self, warmup: int = 0) -> None:
        self.warmup = warmup
        self.iteration = 0
        self.marked = MarkedScores()

    @property
    def active(self) -> bool:
        """Whether the warm-up is over."""
        return self.iteration > self.warmup

    def begin(self, images: Tensor, targets: list[dict[str, Tensor]]) -> None:
        """Start an iteration, on images (B, C, X, Y); may give the targets ``unmarked_box``, ``_label``, ``_score``."""
        self.iteration += 1

    def anchor_weight(self, logits: Tensor, deltas: Tensor, anchors: Tensor, marks: Tensor, real: Tensor) -> Tensor:
        """(B, A) weight of each anchor's loss as background; arguments as in the functions above."""
        return torch.ones_like(logits[..., 0])

    def total(self, losses: Tensor, logits: Tensor, positive: Tensor) -> Tensor:
        """Sum of the classification losses (B, A, classes); ``positive``, of that shape, is where a lesion is."""
        return losses.sum()

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "marked": self.marked.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.marked.load_state_dict(state["marked"])

    def _confident(self, found: Predictions, marks: Tensor, real: Tensor, quantile: float) -> Predictions:
        self.marked.update(scores_of_marks(found, marks, real), real)
        return confident_unmarked(found, marks, real, self.marked.quantile(quantile).clamp(min=FLOOR))


class Ignore(Remedy):
    """Confident predictions that no mark explains are left alone: anchors in their boxes are no background.

    Args:
        warmup: iterations without.
        quantile: of the marked lesions' scores, from which a prediction is confident.
    """

    def __init__(self, warmup: int, quantile: float) -> None:
        super().__init__(warmup)
        self.quantile = quantile

    def anchor_weight(self, logits: Tensor, deltas: Tensor, anchors: Tensor, marks: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            left_alone = self._confident(best_predictions(logits, deltas, anchors), marks, real, self.quantile)
            if not self.active:
                return super().anchor_weight(logits, deltas, anchors, marks, real)
            return (~anchors_within(anchors, left_alone)).to(logits)


class Complete(Remedy):
    """A teacher, the moving average of the network, completes the marks on the very images that are learned from.

    Its confident findings that no mark explains become boxes to learn, with the weight of their score.

    Args:
        warmup, quantile: as in :class:`Ignore`; the scores are the teacher's.
        teacher: :class:`scripts.detector.LesionDetector` around the averaged network.
    """

    def __init__(self, warmup: int, quantile: float, teacher: Any) -> None:
        super().__init__(warmup)
        self.quantile, self.teacher = quantile, teacher

    def begin(self, images: Tensor, targets: list[dict[str, Tensor]]) -> None:
        super().begin(images, targets)
        if self.iteration <= self.warmup // 2:  # the scores are needed only towards the end of the warm-up
            return
        self.teacher.eval()
        with torch.no_grad():
            found = best_predictions(*self.teacher.predict(images))
            marks, real = pad_boxes([target["box"].float() for target in targets])
            missing = self._confident(found, marks, real, self.quantile)
        if self.active:
            for index, target in enumerate(targets):
                target["unmarked_box"] = missing.boxes[index]
                target["unmarked_label"] = missing.labels[index]
                target["unmarked_score"] = missing.scores[index]


class PositiveUnlabelled(Remedy):
    """See :func:`positive_unlabelled`; ``marked_share`` must be known, about half in DeepLesion."""

    def __init__(self, warmup: int, marked_share: float) -> None:
        super().__init__(warmup)
        self.marked_share = marked_share

    def total(self, losses: Tensor, logits: Tensor, positive: Tensor) -> Tensor:
        if not self.active:
            return super().total(losses, logits, positive)
        return positive_unlabelled(losses, logits, positive, self.marked_share)


def make(
    kind: str, *, teacher: nn.Module, steps: int, ema_decay: float, quantile: float = 0.5, marked_share: float = 0.5
) -> Remedy:
    """The remedy of a config.

    The warm-up is a quarter of the schedule, and for a teacher at least the time constant of its average,
    1 / (1 - decay) iterations.

    Args:
        kind: one of :data:`KINDS`.
        teacher: the detector around the averaged network.
        steps: iterations of the whole training.
        ema_decay: of the average.
        quantile: see :class:`Ignore`.
        marked_share: share of the lesions that are marked; ``pu`` alone uses it.

    Raises:
        BundleError: an unknown kind, or a quantile or share out of range.
    """
    if kind not in KINDS:
        raise BundleError(f"unmarked must be one of {', '.join(KINDS)}, got {kind!r}")
    if not 0 <= quantile < 1 or not 0 < marked_share <= 1:
        raise BundleError(
            f"unmarked_quantile must be in [0, 1) and marked_share in (0, 1], got {quantile}, {marked_share}"
        )
    warmup = steps // 4
    if kind == "ignore":
        return Ignore(warmup, quantile)
    if kind == "complete":
        return Complete(max(warmup, round(1 / (1 - ema_decay))), quantile, teacher)
    if kind == "pu":
        return PositiveUnlabelled(warmup, marked_share)
    return Remedy()
