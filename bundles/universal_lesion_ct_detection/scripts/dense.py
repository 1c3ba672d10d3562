"""A dense task beside the boxes: which part of a slice is a marked lesion, drawn from its two diameters.

In training only, as in Zlocha et al. (MICCAI 2019) and MULAN (Yan et al., MICCAI 2019). The target is an ellipse, as in
ULDor (Tang et al., ISBI 2019). Lesions are known only where they are marked, so the loss looks closely at the
surroundings of the marks alone (:func:`dense_loss`). Coordinates are px of the network's input, corner frame. Nothing
here waits for the device, and all shapes are fixed but for the number of marks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from monai.losses.dice import MaskedDiceLoss
from torch import Tensor

from scripts.matching import pad_boxes

DENSE_KEY = "dense"  # of the network's outputs and of the losses
MARGIN_PX = 5.5  # of a box around the end points of its diameters, px of the stored slice
SAMPLES = 2  # along each side of a cell
RING = 2.0  # surroundings of a lesion, in its own radii
FAR_WEIGHT = 0.1  # of tissue away from the marks


def end_points(boxes: Tensor, recist_px: Tensor, margin_px: Tensor) -> Tensor:
    """End points of both diameters of every lesion, also where they are not known.

    Args:
        boxes: (..., 4) px.
        recist_px: (..., 4, 2) px, the first two of one diameter, the last two of the other; NaN where unknown.
        margin_px: (..., 2) of a box around the end points, along x and y.

    Returns:
        (..., 4, 2): ``recist_px``, or, where it is unknown or one of the diameters has no length or the direction of
        the other, the axes of the ellipse inscribed in the box less its margin (at least a quarter of the box).
    """
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    half = (half - margin_px).maximum(half / 4)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    along_x, along_y = half * half.new_tensor([1.0, 0.0]), half * half.new_tensor([0.0, 1.0])
    axes = torch.stack([centre - along_x, centre + along_x, centre - along_y, centre + along_y], -2)
    first, second = recist_px[..., 1, :] - recist_px[..., 0, :], recist_px[..., 3, :] - recist_px[..., 2, :]
    usable = _cross(first, second).abs() > 0.1 * first.norm(dim=-1) * second.norm(dim=-1)  # false for NaN
    return torch.where(usable[..., None, None], recist_px, axes)


def ellipse_radius(ends: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance from the lesion's middle as a share of its radius in that direction: at most 1 inside.

    The outline goes through all four end points: four quarters of ellipses that meet there, with the crossing of the
    diameters as common centre. It is an ellipse where the diameters halve each other. Of diameters that do not cross,
    the point of the first that is nearest to the crossing of their lines, but not its end, is the centre.

    Args:
        ends: (..., 4, 2) of :func:`end_points`.
        x, y: (X,) and (Y,) where to look.

    Returns:
        (..., X, Y).
    """
    a, b, c, d = ends.unbind(-2)
    first, second = b - a, d - c
    cross = _cross(first, second)
    share = [(_cross(c - a, other) / cross).clamp(0.1, 0.9)[..., None, None] for other in (second, first)]
    centre = a + share[0][..., 0] * first
    from_x, from_y = x - centre[..., 0, None], y - centre[..., 1, None]  # (..., X) and (..., Y)
    # Coordinates along both diameters, in their lengths.
    u = _outer(from_x * (second[..., 1] / cross)[..., None], from_y * (-second[..., 0] / cross)[..., None])
    v = _outer(from_x * (-first[..., 1] / cross)[..., None], from_y * (first[..., 0] / cross)[..., None])
    return torch.hypot(
        torch.maximum(u / (1 - share[0]), -u / share[0]), torch.maximum(v / (1 - share[1]), -v / share[1])
    )


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _outer(along_x: Tensor, along_y: Tensor) -> Tensor:
    return along_x[..., :, None] + along_y[..., None, :]


def dense_target(
    boxes: Tensor, real: Tensor, ends: Tensor, shape: Sequence[int], stride: int = 4
) -> tuple[Tensor, Tensor]:
    """What the dense task learns, cell by cell.

    Args:
        boxes: (B, N, 4) px.
        real: (B, N) bool, false for padding.
        ends: (B, N, 4, 2) of :func:`end_points`.
        shape: cells along x and y.
        stride: side of a cell, px.

    Returns:
        (B, 1, X, Y) the share of each cell that is marked lesion, and (B, 1, X, Y) bool, the lesions with their
        surroundings: up to twice the lesion's radius, and all of its box.
    """
    x, y = (
        (torch.arange(count * SAMPLES, device=boxes.device, dtype=boxes.dtype) + 0.5) * (stride / SAMPLES)
        for count in shape
    )
    radius = ellipse_radius(ends, x, y).masked_fill(~real[..., None, None], torch.inf).amin(1, keepdim=True)
    low, high = boxes[..., :2, None], boxes[..., 2:, None]
    in_x = (x >= low[..., 0, :]) & (x < high[..., 0, :])
    in_y = (y >= low[..., 1, :]) & (y < high[..., 1, :])
    in_box = (in_x[..., :, None] & in_y[..., None, :] & real[..., None, None]).any(1, keepdim=True)
    share = F.avg_pool2d((radius <= 1).to(boxes), SAMPLES)
    near = F.max_pool2d(((radius <= RING) | in_box).to(boxes), SAMPLES) > 0
    return share, near


def dense_loss(logits: Tensor, share: Tensor, near: Tensor) -> Tensor:
    """Dice loss near the marks plus binary cross entropy everywhere, less of it far from the marks.

    About half of the lesions carry no mark. Tissue that looks like a lesion is marked with probability m, and the cross
    entropy is least where the network answers m / (m + (1 - m) w) for it, w being the weight of what is not marked:
    0.5 for m = 0.5 and w = 1, but 0.91 for w = 0.1 (:data:`FAR_WEIGHT`). No background at all, w = 0, would leave the
    task without all that a slice teaches of tissue that is no lesion. A Dice loss that saw unmarked lesions would count
    them as false positives at full weight, so it sees the surroundings of the marks only. It is taken slice by slice,
    so that a small lesion counts as much as a large one; a slice without a mark has none.

    Args:
        logits: (B, 1, X, Y) float32.
        share, near: of :func:`dense_target`.

    Returns:
        A scalar; every logit has a gradient, with and without marks.
    """
    weight = torch.where(near, 1.0, FAR_WEIGHT)
    entropy = F.binary_cross_entropy_with_logits(logits, share, weight=weight, reduction="sum") / weight.sum()
    # soft_label: least where prediction and target are equal, also in cells that are lesion in part.
    dice: Tensor = MaskedDiceLoss(sigmoid=True, soft_label=True)(logits, share, near.to(share))
    return entropy + dice


def loss_of_targets(logits: Tensor, targets: Sequence[dict[str, Tensor]], stride: int = 4) -> Tensor:
    """:func:`dense_loss` of a batch.

    Args:
        logits: (B, 1, X, Y).
        targets: of each slice ``box`` (N, 4), ``recist_px`` (N, 4, 2) and ``margin_px`` (2,), all as in
            :func:`end_points`. The margin is that of the slice before augmentation: an enlargement by a quarter
            moves the ellipse, of a box without diameters only, by less than half a cell.
        stride: of the map, px.
    """
    boxes, real = pad_boxes([t["box"].float() for t in targets])
    recist = torch.full((*boxes.shape[:2], 4, 2), torch.nan, device=boxes.device)
    for index, target in enumerate(targets):
        recist[index, : len(target["recist_px"])] = target["recist_px"]
    margin = torch.stack([t["margin_px"] for t in targets])[:, None]
    ends = end_points(boxes, recist, margin)
    return dense_loss(logits.float(), *dense_target(boxes, real, ends, logits.shape[2:], stride))
