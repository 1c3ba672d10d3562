"""Anchors: made in float32 whatever the precision of the network, and fitted to the lesions of a datalist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from torch import Tensor


class ExactAnchorGenerator(AnchorGenerator):
    """MONAI's ``AnchorGenerator`` without its rounding.

    Replaced: half sizes are kept as they are (MONAI rounds them to integers: size 1 degenerates, size 11 becomes 12),
    and anchors are float32 whatever the dtype of the features (in bfloat16 their corners are off by up to 2 px at
    512). The grid is MONAI's: location i of a level with stride s is at i * s + s // 2.

    Args:
        sizes: for each level the anchor sizes, px of the network's input.
        aspect_ratios: y extent over x extent, the same for all levels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float] = (1.0,)) -> None:
        super().__init__(sizes=sizes, aspect_ratios=(tuple(aspect_ratios),) * len(sizes))  # type: ignore[arg-type]

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """(len(aspect_ratios) * len(scales), 4) zero-centred anchors of one level, as MONAI's but not rounded."""
        size = torch.as_tensor(scales, dtype=dtype, device=device)
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        half_x = (size[None, :] / root[:, None]).flatten() / 2
        half_y = (size[None, :] * root[:, None]).flatten() / 2
        return torch.stack([-half_x, -half_y, half_x, half_y], dim=1)

    def forward(self, images: Tensor, feature_maps: list[Tensor]) -> list[Tensor]:
        anchors: list[Tensor] = super().forward(
            images, [torch.empty_like(f, dtype=torch.float32) for f in feature_maps]
        )
        return anchors


def best_possible_recall(
    extents_px: npt.NDArray[np.float64],
    sizes: Sequence[Sequence[float]],
    strides: Sequence[int],
    aspect_ratios: Sequence[float] = (1.0,),
    iou: float = 0.5,
) -> float:
    """Share of boxes that some anchor reaches at ``iou`` before any regression, whatever their place on the grid.

    Args:
        extents_px: (N, 2) box extents along x and y, px of the network's input.
        sizes, strides, aspect_ratios: of the anchors; one element of ``sizes`` and ``strides`` a level.

    Returns:
        The mean over the boxes of the mean over a 4 x 4 grid of offsets between box centre and nearest anchor.
    """
    best = np.zeros((len(extents_px), 16))
    fractions = (np.arange(4) + 0.5) / 8  # the offset to the nearest location is uniform in [0, stride / 2]
    offset_x, offset_y = (grid.ravel() for grid in np.meshgrid(fractions, fractions))
    for level, stride in zip(sizes, strides, strict=True):
        for size in level:
            for ratio in aspect_ratios:
                anchor = np.array([size / np.sqrt(ratio), size * np.sqrt(ratio)])
                overlap = np.ones((len(extents_px), 16))
                for axis, offset in enumerate((offset_x * stride, offset_y * stride)):
                    box = extents_px[:, axis, None]
                    low = np.maximum(-anchor[axis] / 2, offset - box / 2)
                    high = np.minimum(anchor[axis] / 2, offset + box / 2)
                    overlap *= np.clip(high - low, 0, None)
                union = anchor.prod() + extents_px.prod(axis=1)[:, None] - overlap
                best = np.maximum(best, overlap / union)
    return float((best >= iou).mean())


def fit_sizes(extents_px: npt.NDArray[np.float64], strides: Sequence[int], per_level: int = 1) -> list[list[float]]:
    """Anchor sizes for each level, geometric between the 2nd and the 98th percentile of the boxes' sizes.

    A box's size is the root of its area. Equal ratios between neighbouring sizes make the worst IoU of a square box
    the same at every scale, which k-means on sizes does not.

    Args:
        extents_px: (N, 2) box extents, px of the network's input; N >= 2.
        strides: one a level.
        per_level: sizes at each level.
    """
    if len(extents_px) < 2:
        raise ValueError("anchors cannot be fitted to fewer than two boxes")
    log_size = np.log(extents_px.prod(axis=1)) / 2
    low, high = np.quantile(log_size, [0.02, 0.98])
    count = len(strides) * per_level
    # Each size serves an equal slice of the log range and stands in its middle.
    edges = np.linspace(low, high, count + 1)
    sizes = np.exp((edges[:-1] + edges[1:]) / 2)
    return [[round(float(s), 1) for s in level] for level in sizes.reshape(len(strides), per_level)]
