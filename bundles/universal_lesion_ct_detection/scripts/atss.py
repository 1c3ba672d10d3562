"""Adaptive training sample selection for a whole batch at once (Zhang et al., CVPR 2020, arXiv 1912.02424)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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


def atss(
    anchors: Tensor, anchors_per_level: Sequence[int], boxes: Tensor, real: Tensor, candidates: int = 9
) -> tuple[Tensor, Tensor]:
    """Which anchor learns which box.

    For each box, the ``candidates`` anchors of every level whose centres are nearest to its centre are candidates;
    those with an IoU of at least mean + standard deviation of the candidates' IoUs and a centre inside the box are
    positive; an anchor wanted by several boxes goes to the one with the greatest IoU. No loop over boxes or images.

    Args:
        anchors: (A, 4), all levels one after the other.
        anchors_per_level: A split by level.
        boxes: (B, N, 4), padded.
        real: (B, N) bool, false for padding.
        candidates: per level and anchor of a location.

    Returns:
        (B, A) int64, the box's index or -1 for background, and (B, A) the IoU with that box (0 for background).
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
    background = quality < 0
    return matched.masked_fill(background, -1), quality.masked_fill(background, 0.0)
