"""Transforms from paths and boxes to network input. Arrays are [C, X, Y], boxes ``x0, y0, x1, y1`` px."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor

from scripts.contract import InputContract
from scripts.errors import BundleError

HU_OFFSET = 32768  # DeepLesion's PNG value = HU + 32768


def read_slice(path: str | PathLike[str]) -> npt.NDArray[np.float32]:
    """A 16-bit PNG slice as HU, (columns, rows) = [X, Y].

    Raises:
        BundleError: no such file, damaged, or not a 16-bit grey PNG.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if b"IEND" in data[-64:] else None
    if image is None:
        raise BundleError(f"{path}: not a whole PNG file; copy it again")
    if image.dtype != np.uint16 or image.ndim != 2:
        raise BundleError(f"{path}: a slice must be a 16-bit grey PNG (HU + {HU_OFFSET})")
    return image.T.astype(np.float32) - HU_OFFSET


class LoadSlicesd(MapTransform):
    """Paths of neighbouring slices below ``dataset_dir`` -> one [slices, X, Y] float32 tensor of HU.

    Each different file is read once; a slice of another size than the key slice is replaced by the key slice.
    """

    def __init__(self, keys: Sequence[str], dataset_dir: str | PathLike[str], slices: int) -> None:
        super().__init__(keys)
        self.root = Path(dataset_dir)
        self.slices = slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            paths: list[str] = d[key]
            middle = len(paths) // 2
            if self.slices > len(paths):
                raise BundleError(
                    f"{paths[middle]}: the datalist has {len(paths)} slice(s) an item, the weights want {self.slices}; "
                    f"make it again with `--slices {self.slices}`"
                )
            half = self.slices // 2
            wanted = paths[middle - half : middle + half + 1]
            read = {path: read_slice(self.root / path) for path in dict.fromkeys(wanted)}
            key_slice = read[paths[middle]]
            stack = [read[p] if read[p].shape == key_slice.shape else key_slice for p in wanted]
            d[key] = torch.from_numpy(np.stack(stack))
            d[f"{key}_path"] = paths[middle]
        return d


class ApplyContractd(MapTransform):
    """HU [slices, X, Y] -> the network's channels as uint8 [slices x windows, size, size], boxes along.

    The slice is resized so that its longer side is ``contract.size``; the rest is padded at the end with the
    window's lower edge. ``resize_factor`` is kept to bring boxes back, and ``stored_box``, the boxes as they came.
    uint8, because the windowed CT of a data set then fits in memory, and its step (1.8 HU for a 450 HU window) is far
    below the noise.
    """

    def __init__(self, keys: Sequence[str], contract: InputContract, box_key: str | None = "box") -> None:
        super().__init__(keys)
        self.contract = contract
        self.box_key = box_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            hu: Tensor = d[key]
            factor = self.contract.size / max(hu.shape[1:])
            d[key] = window_and_resize(hu, self.contract)
            d["resize_factor"] = factor
            d["spatial_size"] = tuple(hu.shape[1:])
            if self.box_key is not None and self.box_key in d:
                d[f"stored_{self.box_key}"] = d[self.box_key]
                boxes = torch.as_tensor(d[self.box_key], dtype=torch.float32).reshape(-1, 4)
                d[self.box_key] = boxes * factor
                d["label"] = torch.as_tensor(d["label"], dtype=torch.int64).reshape(-1)
        return d


def window_and_resize(hu: Tensor, contract: InputContract) -> Tensor:
    """[slices, X, Y] float32 HU -> [channels, size, size] uint8; see :class:`ApplyContractd`."""
    factor = contract.size / max(hu.shape[1:])
    low = torch.tensor([w[0] for w in contract.windows_hu]).view(-1, 1, 1, 1)
    high = torch.tensor([w[1] for w in contract.windows_hu]).view(-1, 1, 1, 1)
    channels = ((hu[None] - low) / (high - low)).clamp(0, 1).flatten(0, 1)
    if factor != 1:
        target = [max(1, round(s * factor)) for s in hu.shape[1:]]
        # Corners stay corners (align_corners=False), so boxes are multiplied by the same factor.
        channels = F.interpolate(channels[None], size=target, mode="bilinear", antialias=factor < 1)[0]
    pad_x, pad_y = (contract.size - s for s in channels.shape[1:])
    if pad_x or pad_y:
        channels = F.pad(channels, (0, pad_y, 0, pad_x))
    return (channels * 255).round_().to(torch.uint8)


class ToUnitRanged(MapTransform):
    """uint8 -> float32 in [0, 1]."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = d[key].float().div_(255)
        return d


class RandAugmentLesiond(RandomizableTransform, MapTransform):
    """Random flip, scale, shift and intensity of a slice and its boxes, with a single interpolation.

    MONAI's RandFlipBoxd, RandZoomBoxd and a shift would interpolate twice and cost three times as much. Boxes that
    lose more than ``1 - min_visible`` of their area at the border are dropped with their labels.

    Args:
        keys: the [C, X, Y] uint8 image; boxes are at ``box_key``, labels at ``label_key``.
        flip: probability of a left-right flip (x axis) and of a front-back flip (y axis).
        scale: range of the random scale factor.
        shift: greatest shift as a share of the side.
        contrast, brightness: greatest relative change of contrast and shift of brightness.
    """

    def __init__(
        self,
        keys: Sequence[str],
        box_key: str = "box",
        label_key: str = "label",
        flip: Sequence[float] = (0.5, 0.0),
        scale: Sequence[float] = (0.8, 1.25),
        shift: float = 0.08,
        contrast: float = 0.15,
        brightness: float = 0.08,
        min_visible: float = 0.5,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.box_key, self.label_key = box_key, label_key
        self.flip, self.scale, self.shift = tuple(flip), tuple(scale), shift
        self.contrast, self.brightness, self.min_visible = contrast, brightness, min_visible

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        self._flip = [self.R.random() < p for p in self.flip]
        self._scale = math.exp(self.R.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        self._shift = [self.R.uniform(-self.shift, self.shift) for _ in range(2)]
        self._gain = 1 + self.R.uniform(-self.contrast, self.contrast)
        self._offset = self.R.uniform(-self.brightness, self.brightness)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        for key in self.key_iterator(d):
            image: Tensor = d[key]
            image, d[self.box_key] = affine(image, d[self.box_key], self._scale, self._shift, self._flip)
            d[key] = ((image - 0.5) * self._gain + 0.5 + self._offset).clamp_(0, 1)
            size_x, size_y = image.shape[1:]
            before = d[self.box_key]
            after = before.clamp(min=0).minimum(before.new_tensor([size_x, size_y, size_x, size_y]))
            visible = (after[:, 2:] - after[:, :2]).clamp(min=0).prod(1) / (before[:, 2:] - before[:, :2]).prod(1)
            keep = visible >= self.min_visible
            d[self.box_key], d[self.label_key] = after[keep], d[self.label_key][keep]
        return d


def affine(
    image: Tensor, boxes: Tensor, scale: float, shift: Sequence[float], flip: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Scale about the centre, shift and flip a slice and its boxes.

    Args:
        image: [C, X, Y] uint8.
        boxes: (N, 4) px.
        scale: > 1 enlarges.
        shift: along x and y, as a share of the side.
        flip: along x and y.

    Returns:
        [C, X, Y] float32 in [0, 1] (outside the image 0) and (N, 4) boxes.
    """
    sizes = image.shape[1:]
    signs = [-1.0 if f else 1.0 for f in flip]
    # grid_sample maps output to input; its coordinates run over [-1, 1] corner to corner, last axis first.
    rows = []
    for axis in (1, 0):
        row = [0.0, 0.0, -signs[axis] * 2 * shift[axis] / scale]
        row[1 - axis] = signs[axis] / scale
        rows.append(row)
    theta = torch.tensor([rows], dtype=torch.float32)
    grid = F.affine_grid(theta, [1, 1, *sizes], align_corners=False)
    out = F.grid_sample(image[None].float().div_(255), grid, mode="bilinear", align_corners=False)[0]
    boxes = boxes.clone()
    for axis in (0, 1):
        half = sizes[axis] / 2
        ends = (boxes[:, axis::2] - half) * signs[axis] * scale + half + shift[axis] * sizes[axis]
        boxes[:, axis], boxes[:, axis + 2] = ends.amin(1), ends.amax(1)
    return out, boxes
