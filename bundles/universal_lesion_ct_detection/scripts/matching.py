"""Which anchor learns which box, for a whole batch at once: no loop over boxes or images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BACKGROUND, BETWEEN = -1, -2


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of broadcastable ``x0, y0, x1, y1`` boxes, elementwise: (..., 4) and (..., 4) -> (...)."""
    low = torch.maximum(boxes[..., :2], anchors[..., :2])
    high = torch.minimum(boxes[..., 2:], anchors[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (anchors[..., 2:] - anchors[..., :2]).prod(-1)
    return overlap / (area - overlap).clamp(min=1e-6)


def pad_boxes(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A list of (N_i, 4) -> (B, N, 4) padded with unit boxes, and (B, N) bool, true for the real ones."""
    most = max(1, *(len(b) for b in boxes)) if boxes else 1
    padded = boxes[0].new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(boxes), most, 1)
    real = torch.zeros(len(boxes), most, dtype=torch.bool, device=padded.device)
    for index, of_image in enumerate(boxes):
        padded[index, : len(of_image)] = of_image
        real[index, : len(of_image)] = True
    return padded, real


def atss(anchors: Tensor, anchors_per_level: Sequence[int], boxes: Tensor, real: Tensor, candidates: int = 9) -> Tensor:
    """Adaptive training sample selection (Zhang et al., CVPR 2020, arXiv 1912.02424).

    For each box, the ``candidates`` anchors of every level whose centres are nearest to its centre are candidates;
    those with an IoU of at least mean + standard deviation of the candidates' IoUs and a centre inside the box are
    positive; an anchor wanted by several boxes goes to the one with the greatest IoU.

    Args:
        anchors: (A, 4), all levels one after the other.
        anchors_per_level: A split by level.
        boxes: (B, N, 4), padded.
        real: (B, N) bool, false for padding.
        candidates: per level and anchor of a location.

    Returns:
        (B, A) int64, the box's index or :data:`BACKGROUND`.
    """
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    distance = (box_centre[:, :, None] - centre).square().sum(-1)  # (B, N, A)
    start, chosen = 0, []
    for count in anchors_per_level:
        nearest = distance[..., start : start + count].topk(min(candidates, count), dim=-1, largest=False).indices
        chosen.append(nearest + start)
        start += count
    index = torch.cat(chosen, dim=-1)  # (B, N, K)
    overlap = pairwise_iou(boxes[:, :, None], anchors[index])
    threshold = overlap.mean(-1, keepdim=True) + overlap.std(-1, keepdim=True)
    points = centre[index]
    inside = torch.minimum(points - boxes[:, :, None, :2], boxes[:, :, None, 2:] - points).amin(-1) > 0.01
    positive = (overlap >= threshold) & inside & real[:, :, None]
    table = torch.full_like(distance, -1.0)
    # A box's candidates are distinct anchors, so nothing is written twice.
    table.scatter_(-1, index, torch.where(positive, overlap, torch.full_like(overlap, -1.0)))
    quality, matched = table.max(dim=1)  # (B, A)
    return matched.masked_fill(quality < 0, BACKGROUND)


def by_iou(anchors: Tensor, boxes: Tensor, real: Tensor, low: float = 0.4, high: float = 0.5) -> Tensor:
    """Fixed thresholds, as the RetinaNet paper has them (Lin et al., ICCV 2017, section 4.1).

    An anchor learns the box it overlaps most if the IoU is at least ``high``, and wherever no anchor overlaps that or
    another box more; it is background below ``low``. Equal to torchvision's ``Matcher`` image by image.

    Args:
        anchors, boxes, real: as in :func:`atss`.

    Returns:
        (B, A) int64, the box's index, :data:`BACKGROUND`, or :data:`BETWEEN` the thresholds, which learns nothing.
    """
    overlap = pairwise_iou(boxes[:, :, None], anchors).masked_fill(~real[:, :, None], -1.0)  # (B, N, A)
    quality, nearest = overlap.max(dim=1)
    best_of_a_box = ((overlap == overlap.amax(-1, keepdim=True)) & real[:, :, None]).any(1)
    matched = nearest.masked_fill(quality < high, BETWEEN).masked_fill(quality < low, BACKGROUND)
    return torch.where(best_of_a_box, nearest, matched)
