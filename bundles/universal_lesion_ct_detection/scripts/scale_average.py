"""Look at a slice in several sizes and take the mean of what is said of each place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from torch import Tensor
from torchvision.ops import box_iou, nms

from scripts.detector import LesionDetector
from scripts.errors import BundleError
from scripts.network import STRIDES

BOX, SCORE, LABEL = "box", "label_scores", "label"
SMALLEST, GREATEST = 0.25, 4.0


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The further scales, as floats.

    Raises:
        BundleError: not a list of numbers in 0.25..4.
    """
    wrong = BundleError(f"scale_average must be a list of scales in {SMALLEST}..{GREATEST:g} beside 1, got {scales!r}")
    if isinstance(scales, str) or not isinstance(scales, Sequence):
        raise wrong
    if any(isinstance(s, bool) or not isinstance(s, int | float) or not SMALLEST <= s <= GREATEST for s in scales):
        raise wrong
    return tuple(float(s) for s in scales)


class ScaleAverage:
    """A detector that looks at each batch in its own size and in others.

    Args:
        detector: in evaluation mode; how it selects boxes also holds for the mean.
        scales: of the further looks; > 1 enlarges. The sides are rounded to multiples of the network's greatest
            stride.
    """

    def __init__(self, detector: LesionDetector, scales: Sequence[float]) -> None:
        self.detector, self.scales = detector, check_scales(scales)

    def __call__(self, images: Tensor) -> list[dict[str, Tensor]]:
        """(B, C, X, Y) in [0, 1] -> one dict an image, as the detector gives it, boxes in px of ``images``."""
        looks: list[list[dict[str, Tensor]]] = [self.detector(images)]
        for scale in self.scales:
            size = [max(1, round(side * scale / STRIDES[-1])) * STRIDES[-1] for side in images.shape[2:]]
            resized = F.interpolate(images, size, mode="bilinear", antialias=scale < 1)
            back = images.new_tensor([a / b for a, b in zip(images.shape[2:], size, strict=True)]).repeat(2)
            looks.append([{**one, BOX: one[BOX] * back} for one in self.detector(resized)])
        if len(looks) == 1:
            return looks[0]
        selector = self.detector.box_selector
        return [
            merge(of_image, selector.nms_thresh, selector.detections_per_img) for of_image in zip(*looks, strict=True)
        ]


def merge(looks: Sequence[dict[str, Tensor]], iou: float, most: int) -> dict[str, Tensor]:
    """What several looks at a slice say together.

    As in weighted boxes fusion (Solovyev et al., Image and Vision Computing 107:104117, 2021), boxes that overlap are
    one finding, its box is their mean weighted by the scores, and its score their mean, 0 where a look found nothing.
    Other than there, each look gives a finding one box, its best.

    Args:
        looks: dicts with ``box`` (n, 4) px, ``label_scores`` (n,), not negative, and ``label`` (n,), of one slice.
        iou: from here on two boxes are one finding.
        most: findings to keep.

    Returns:
        Such a dict, best first.
    """
    boxes, scores, labels = (torch.cat([look[key] for look in looks]) for key in (BOX, SCORE, LABEL))
    seeds = nms(boxes, scores, iou)
    total, weighted = torch.zeros_like(scores[seeds]), torch.zeros_like(boxes[seeds])
    for look in looks:
        if not len(look[BOX]):
            continue
        fits = box_iou(boxes[seeds], look[BOX]) >= iou
        best, which = torch.where(fits, look[SCORE], 0.0).max(1)
        total += best
        weighted += look[BOX][which] * best[:, None]
    mean = total / len(looks)
    fused = weighted / total.clamp(min=1e-12)[:, None]
    keep = nms(fused, mean, iou)[:most]
    return {BOX: fused[keep], SCORE: mean[keep], LABEL: labels[seeds][keep]}
