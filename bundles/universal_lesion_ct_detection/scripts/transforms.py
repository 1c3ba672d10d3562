"""Transforms from paths and boxes to network input. Arrays are [C, X, Y], boxes ``x0, y0, x1, y1`` px."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor
from torchvision.transforms.functional import adjust_sharpness

from scripts.contract import InputContract, bracket, known_mm, resized_shape
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
    hu: npt.NDArray[np.float32] = np.subtract(image.T, HU_OFFSET, dtype=np.float32)
    return hu


class LoadSlicesd(MapTransform):
    """Paths of neighbouring slices below ``dataset_dir`` -> one [slices, X, Y] float32 tensor of HU, towards the head.

    Without ``slice_step_mm`` the listed slices are taken as they come. With it, planes that far apart are interpolated
    between the listed ones (:func:`scripts.contract.bracket`), whose places follow from the slice numbers in their
    file names (SERIES/NNN.png) and the item's ``meta["spacing_mm"][2]``; where either is unknown, the listed slices
    are taken. Where ``meta["numbers_lead_to"]`` is feet they are turned round. Each different file is read once; a
    slice of another size than the key slice is replaced by the key slice.

    Raises:
        BundleError: an item lists too few slices.
    """

    def __init__(
        self,
        keys: Sequence[str],
        dataset_dir: str | PathLike[str],
        slices: int,
        slice_step_mm: float | None = None,
    ) -> None:
        super().__init__(keys)
        self.root = Path(dataset_dir)
        self.slices, self.slice_step_mm = slices, slice_step_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            paths: list[str] = d[key]
            meta = d.get("meta") or {}
            wanted = self._planes(paths, known_mm(meta.get("spacing_mm"), 2))
            if meta.get("numbers_lead_to") == "feet":
                wanted.reverse()  # as inference sees a series, whose axis is turned towards the head
            read = {
                path: read_slice(self.root / path) for path in dict.fromkeys(p for a, b, _ in wanted for p in (a, b))
            }
            middle = paths[len(paths) // 2]
            key_slice = read[middle]
            fitting = {path: hu if hu.shape == key_slice.shape else key_slice for path, hu in read.items()}
            stack = [
                fitting[a] if not weight else fitting[a] + np.float32(weight) * (fitting[b] - fitting[a])
                for a, b, weight in wanted
            ]
            # The memory stays row by row, as it was read; turning it is left to the 8-bit result.
            d[key] = torch.from_numpy(np.stack([hu.T for hu in stack])).transpose(1, 2)
            d[f"{key}_path"] = middle
        return d

    def _planes(self, paths: Sequence[str], spacing_mm: float | None) -> list[tuple[str, str, float]]:
        """For each wanted plane the paths of both slices around it, and the weight of the second."""
        middle, half = len(paths) // 2, self.slices // 2
        # A stand-in for a missing slice repeats a path, and with it its place.
        places = {PurePosixPath(path).stem: path for path in paths}
        known = spacing_mm is not None and all(stem.isdecimal() for stem in places)
        if self.slice_step_mm is None or not known or half == 0:
            if half > middle:
                raise BundleError(
                    f"{paths[middle]}: the datalist has {len(paths)} slice(s) an item, the weights want {self.slices}; "
                    f"make it again with `--slices {self.slices}`"
                )
            return [(path, path, 0.0) for path in paths[middle - half : middle + half + 1]]
        assert spacing_mm is not None
        key_number = int(PurePosixPath(paths[middle]).stem)
        listed = sorted((int(stem) - key_number) * spacing_mm for stem in places)
        need = half * self.slice_step_mm
        for end, reach in ((0, -listed[0]), (-1, listed[-1])):
            series_ends = middle > 0 and paths[end] == paths[end + 1 if end == 0 else end - 1]
            if reach + spacing_mm / 2 < need and not series_ends:
                raise BundleError(
                    f"{paths[middle]}: the datalist's slices reach {reach:g} mm, the weights want {need:g} mm; "
                    f"make it again with `--slices {2 * math.ceil(need / spacing_mm) + 1}`"
                )
        ordered = sorted(places.values(), key=lambda path: int(PurePosixPath(path).stem))
        offsets = np.arange(-half, half + 1) * self.slice_step_mm
        return [(ordered[a], ordered[b], weight) for a, b, weight in bracket(listed, offsets)]


class ApplyContractd(MapTransform):
    """HU [slices, X, Y] -> the network's channels as uint8 [slices x windows, size, size], boxes along.

    The slice is resized as :func:`scripts.contract.resized_shape` says and padded at the end with the window's lower
    edge. ``resize_factor``, (x, y, x, y), is kept to bring boxes back, and ``stored_box``, the boxes as they came.
    ``recist_px`` are the end points of the diameters, (N, 4, 2) px of the input, NaN where an item's
    ``meta["recist_px"]`` has none. uint8, because the windowed CT of a data set then fits in memory, and its step
    (1.8 HU for a 450 HU window) is far below the noise.
    """

    def __init__(self, keys: Sequence[str], contract: InputContract, box_key: str | None = "box") -> None:
        super().__init__(keys)
        self.contract = contract
        self.box_key = box_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        meta = d.get("meta") or {}
        for key in self.key_iterator(d):
            hu: Tensor = d[key]
            try:
                factor = resize_factor(hu.shape[1:], self.contract, meta.get("spacing_mm"))
            except BundleError as error:
                raise BundleError(f"{d.get(f'{key}_path', key)}: {error}") from None
            d[key] = window_and_resize(hu, self.contract, meta.get("spacing_mm"))
            d["resize_factor"] = factor
            d["spatial_size"] = tuple(hu.shape[1:])
            if self.box_key is not None and self.box_key in d:
                d[f"stored_{self.box_key}"] = d[self.box_key]
                boxes = torch.as_tensor(d[self.box_key], dtype=torch.float32).reshape(-1, 4)
                d[self.box_key] = boxes * factor
                d["label"] = torch.as_tensor(d["label"], dtype=torch.int64).reshape(-1)
                ends = [e or [math.nan] * 8 for e in meta.get("recist_px") or [None] * len(boxes)]
                d["recist_px"] = torch.tensor(ends, dtype=torch.float32).reshape(-1, 4, 2) * factor[:2]
        return d


def resize_factor(
    shape: Sequence[int], contract: InputContract, spacing_mm: Sequence[float | None] | None = None
) -> Tensor:
    """(4,) factors x, y, x, y from boxes in px of a stored slice to px of the network's input."""
    resized = resized_shape(shape, contract.size, contract.pixel_mm, spacing_mm)
    return torch.tensor([resized[0] / shape[0], resized[1] / shape[1]]).repeat(2)


def window_and_resize(hu: Tensor, contract: InputContract, spacing_mm: Sequence[float | None] | None = None) -> Tensor:
    """[slices, X, Y] float32 HU -> [channels, size, size] uint8; see :class:`ApplyContractd`."""
    low = torch.tensor([w[0] for w in contract.windows_hu]).view(-1, 1, 1, 1)
    width = torch.tensor([w[1] - w[0] for w in contract.windows_hu]).view(-1, 1, 1, 1)
    # In place: fresh memory costs more than the arithmetic.
    channels = (hu[None] - low).mul_(255).div_(width).clamp_(0, 255).flatten(0, 1)
    resized = resized_shape(hu.shape[1:], contract.size, contract.pixel_mm, spacing_mm)
    if resized != tuple(hu.shape[1:]):
        # Corners stay corners (align_corners=False), so boxes are multiplied by the same factor.
        smaller = min(resized) < min(hu.shape[1:])
        channels = F.interpolate(channels[None], size=resized, mode="bilinear", antialias=smaller)[0]
    pad_x, pad_y = (contract.size - s for s in resized)
    if pad_x or pad_y:
        channels = F.pad(channels, (0, pad_y, 0, pad_x))
    return channels.round_().to(torch.uint8).contiguous()


class ToUnitRanged(MapTransform):
    """uint8 -> float32 in [0, 1]."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = d[key].float().div_(255)
        return d


class RandAugmentLesiond(RandomizableTransform, MapTransform):
    """Random flip, scale, rotation, shift and intensity of a slice and its boxes, with a single interpolation.

    In the place of MONAI's RandFlipBoxd and RandZoomBoxd, which it equals where they apply. MONAI has no shift and no
    small rotation of boxes (RandRotateBox90d turns by right angles), and each of its transforms interpolates anew.

    A rotated lesion's box comes from the end points of its diameters where they are known, as the box itself did: it
    keeps its margins around them. Elsewhere it is the box of the rotated ellipse inscribed in it (Kalra et al., ICCV
    2021); the box of the rotated corners would be larger than any lesion. Boxes that lose more than
    ``1 - min_visible`` of their area at the border are dropped with all that belongs to them.

    Args:
        keys: the [C, X, Y] uint8 image; boxes are at ``box_key``, labels at ``label_key``, end points, if any, at
            ``recist_px`` (see :class:`ApplyContractd`).
        flip: probability of a left-right flip (x axis) and of a front-back flip (y axis).
        scale: range of the random scale factor.
        shift: greatest shift as a share of the side.
        rotation: greatest angle in degrees, either way.
        contrast, brightness: greatest relative change of contrast and shift of brightness.
        gamma: greatest logarithm of the exponent, either way.
        sharpness: greatest change of the sharpness, either way; 1: from smoothed to twice as sharp (see torchvision's
            ``adjust_sharpness``), as reconstruction kernels and resizing vary it.
    """

    def __init__(
        self,
        keys: Sequence[str],
        box_key: str = "box",
        label_key: str = "label",
        flip: Sequence[float] = (0.5, 0.0),
        scale: Sequence[float] = (0.8, 1.25),
        shift: float = 0.08,
        rotation: float = 0.0,
        contrast: float = 0.15,
        brightness: float = 0.08,
        gamma: float = 0.0,
        sharpness: float = 0.0,
        min_visible: float = 0.5,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.box_key, self.label_key = box_key, label_key
        self.flip, self.scale, self.shift, self.rotation = tuple(flip), tuple(scale), shift, rotation
        self.contrast, self.brightness, self.gamma, self.sharpness = contrast, brightness, gamma, sharpness
        self.min_visible = min_visible

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        self._flip = [self.R.random() < p for p in self.flip]
        self._scale = math.exp(self.R.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        self._shift = [self.R.uniform(-self.shift, self.shift) for _ in range(2)]
        self._gain = 1 + self.R.uniform(-self.contrast, self.contrast)
        self._offset = self.R.uniform(-self.brightness, self.brightness)
        self._degrees = self.R.uniform(-self.rotation, self.rotation)
        self._exponent = math.exp(self.R.uniform(-self.gamma, self.gamma))
        self._sharpness = 1 + self.R.uniform(-self.sharpness, self.sharpness) if self.sharpness else 1.0

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        # An image of 8 bits has 256 values: the intensities cost a look-up.
        grey = np.linspace(0, 1, 256) ** self._exponent
        table = np.clip((grey - 0.5) * self._gain + 0.5 + self._offset, 0, 1).astype(np.float32)
        for key in self.key_iterator(d):
            image, points = d[key], d.get("recist_px")
            geometry = (self._scale, self._shift, self._flip, self._degrees)
            pixels = torch.from_numpy(table.take(image.numpy()))
            d[key], before, points = affine(pixels, d[self.box_key], *geometry, points)
            if self._sharpness != 1:
                # It takes grey images, one a channel.
                d[key] = adjust_sharpness(d[key][:, None], self._sharpness)[:, 0]
            size_x, size_y = image.shape[1:]
            after = before.clamp(min=0).minimum(before.new_tensor([size_x, size_y, size_x, size_y]))
            visible = (after[:, 2:] - after[:, :2]).clamp(min=0).prod(1) / (before[:, 2:] - before[:, :2]).prod(1)
            keep = visible >= self.min_visible
            d[self.box_key], d[self.label_key] = after[keep], d[self.label_key][keep]
            if points is not None:
                d["recist_px"] = points[keep]
        return d


def affine(
    image: Tensor,
    boxes: Tensor,
    scale: float,
    shift: Sequence[float],
    flip: Sequence[bool],
    degrees: float = 0.0,
    recist_px: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Flip a slice and its boxes, scale and rotate them about the centre, and shift them, in this order.

    Args:
        image: [C, X, Y] float32 or uint8.
        boxes: (N, 4) px.
        scale: > 1 enlarges.
        shift: along x and y, as a share of the side.
        flip: along x and y.
        degrees: from +x towards +y, clockwise on the screen.
        recist_px: (N, 4, 2) end points of the diameters; NaN where unknown.

    Returns:
        [C, X, Y] float32 (outside the image 0), (N, 4) boxes and (N, 4, 2) end points.
    """
    sizes = image.new_tensor(image.shape[1:], dtype=torch.float32)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    signs = torch.tensor([-1.0 if f else 1.0 for f in flip])
    # New = centre + matrix @ (old - centre) + shift, in px.
    matrix = torch.tensor([[cos, -sin], [sin, cos]]) * scale * signs
    centre, moved = sizes / 2, sizes * torch.tensor(list(shift))
    # grid_sample maps new to old; its coordinates run over [-1, 1] corner to corner, last axis first.
    back = torch.linalg.inv(matrix)
    normalised = back * sizes[None] / sizes[:, None]
    theta = torch.cat([normalised, -(back @ moved / centre)[:, None]], 1)[[1, 0]][:, [1, 0, 2]]
    grid = F.affine_grid(theta[None], [1, 1, *image.shape[1:]], align_corners=False)
    out = F.grid_sample(image[None].float(), grid, mode="bilinear", align_corners=False)[0]

    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * scale
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 - centre) @ matrix.T + centre + moved
    ellipse = torch.stack(
        [torch.hypot(half[:, 0] * cos, half[:, 1] * sin), torch.hypot(half[:, 0] * sin, half[:, 1] * cos)], 1
    )
    moved_boxes = torch.cat([middle - ellipse, middle + ellipse], 1)
    if recist_px is None:
        return out, moved_boxes, None
    ends = (recist_px - centre) @ matrix.T + centre + moved
    # The margins of the box as it is before the rotation, flipped and scaled.
    upright = (recist_px - centre) * signs * scale + centre
    upright_middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 - centre) * signs * scale + centre
    below = upright.amin(1) - (upright_middle - half)
    above = upright_middle + half - upright.amax(1)
    by_ends = torch.cat([ends.amin(1) - below, ends.amax(1) + above], 1)
    usable = (torch.cat([below, above], 1) >= 0).all(1, keepdim=True)  # false for NaN
    return out, torch.where(usable, by_ends, moved_boxes), ends
