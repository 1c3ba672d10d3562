"""Lesion copy-paste: a marked lesion of one training slice, pasted into another, with its box, label and diameters.

After Ghiasi et al. (CVPR 2021), whose copies have no place they must fit; in CT a lesion belongs into tissue like its
own, so a place is looked for. It works on the network's input, uint8 [C, X, Y] (all slices and windows at once), before
the augmentation moves it all. Boxes are px, corner frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from monai.transforms.compose import Compose
from monai.transforms.transform import RandomizableTransform, Transform
from torch import Tensor

from scripts.contract import InputContract
from scripts.dense import MARGIN_PX, ellipse_radius, end_points
from scripts.errors import BundleError

TISSUE_HU = -300.0  # above is no air and no lung
TRIES = 40  # places looked at
TOLERANCE = 20.0  # greatest difference of the surroundings' means, of 255: 35 HU of a 450 HU window


@dataclass(frozen=True)
class Lesion:
    """A lesion cut out with its surroundings.

    Args:
        pixels: uint8 (C, w, h): all pixels that its box touches, and those around its outline by the box's margin.
        alpha: float32 (w, h), 1 in the lesion, falling to 0 over the width of the margin, before the patch ends.
        box: (4,) px from the first pixel's corner.
        recist_px: (4, 2) likewise, NaN where unknown.
        label: category.
    """

    pixels: npt.NDArray[np.uint8]
    alpha: npt.NDArray[np.float32]
    box: Tensor
    recist_px: Tensor
    label: int


def cut(item: Mapping[Hashable, Any], index: int) -> Lesion | None:
    """One lesion of an output of :class:`scripts.transforms.ApplyContractd`; None where its patch leaves the slice."""
    box, ends = item["box"][index], item["recist_px"][index]
    margin = MARGIN_PX * item["resize_factor"][:2]
    half = (box[2:] - box[:2]) / 2
    # The outline of oblique diameters reaches beyond their end points, and beyond the box where it is large.
    x, y = (torch.arange(math.floor(box[i] - half[i]), math.ceil(box[i + 2] + half[i])) for i in (0, 1))
    inside = ellipse_radius(end_points(box, ends, margin), x + 0.5, y + 0.5) <= 1
    spans = []
    for axis, places in enumerate((x, y)):
        covered = places[inside.any(1 - axis)].tolist() or [math.floor(box[axis])]
        pad = math.ceil(margin[axis])
        first = min(math.floor(box[axis]), covered[0] - pad)
        end = max(math.ceil(box[axis + 2]), covered[-1] + 1 + pad)
        if first < 0 or end > item["image"].shape[1 + axis]:
            return None
        spans.append((first, end))
    (x0, x1), (y0, y1) = spans
    mask = F.pad(inside.float(), (int(y[0]) - y0, y1 - int(y[-1]) - 1, int(x[0]) - x0, x1 - int(x[-1]) - 1))
    away = cv2.distanceTransform((1 - mask).byte().numpy(), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    alpha = np.clip(1 - away / float(margin.min()), 0, 1, dtype=np.float32)
    pixels = item["image"][:, x0:x1, y0:y1].numpy().copy()  # not a view, which would keep the whole slice
    origin = torch.tensor([x0, y0], dtype=torch.float32)
    return Lesion(pixels, alpha, box - origin.repeat(2), ends - origin, int(item["label"][index]))


class LesionPool:
    """The lesions of a training section, cut out when they are wanted.

    Those that were cut stay in memory up to a bound; the rest are read anew each time, with the same result. Where a
    ``CacheDataset`` fills its cache through :class:`CutLesions`, nothing is read twice, and workers share what was cut.

    Args:
        data: items of :func:`scripts.datalist.section`.
        preprocessing: transforms of an item up to :class:`scripts.transforms.ApplyContractd`.
        memory_mib: the bound.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        preprocessing: Sequence[Callable[..., Any]],
        memory_mib: float = 256,
    ) -> None:
        self.data = data
        self.load = Compose(list(preprocessing))
        self.bytes_left = memory_mib * 2**20
        self.kept: dict[tuple[str, int], Lesion | None] = {}
        self.places = [(item, index) for item, entry in enumerate(data) for index in range(len(entry["box"]))]
        self.item = np.array([item for item, _ in self.places], dtype=np.intp)
        self.label = np.array([data[item]["label"][index] for item, index in self.places], dtype=np.int64)
        self.item_of = {self._path(item): item for item in range(len(data))}

    def _path(self, item: int) -> str:
        paths: Sequence[str] = self.data[item]["image"]
        return paths[len(paths) // 2]

    def keep(self, item: Mapping[Hashable, Any]) -> None:
        """Cut the lesions of an item that has been read."""
        for index in range(len(item["box"])):
            self._keep((item["image_path"], index), cut(item, index))

    def _keep(self, key: tuple[str, int], lesion: Lesion | None) -> None:
        size = 0 if lesion is None else lesion.pixels.nbytes + lesion.alpha.nbytes
        if key not in self.kept and size <= self.bytes_left:
            self.kept[key] = lesion
            self.bytes_left -= size

    def candidates(self, path: str, labels: Tensor) -> npt.NDArray[np.intp]:
        """Numbers of the lesions for a slice: on other slices, of its own marks' categories where there are such."""
        other = self.item != self.item_of.get(path, -1)
        alike = other & np.isin(self.label, labels.numpy())
        chosen: npt.NDArray[np.intp] = np.flatnonzero(alike if alike.any() else other)
        return chosen

    def lesion(self, number: int) -> Lesion | None:
        """A lesion by its number; None where it is too near the border of its slice."""
        item, index = self.places[number]
        key = (self._path(item), index)
        if key not in self.kept:
            lesion = cut(self.load(self.data[item]), index)
            self._keep(key, lesion)
            return lesion
        return self.kept[key]


class CutLesions(Transform):
    """Lets items pass unchanged and their lesions into a pool; not random, so a ``CacheDataset`` runs it once."""

    def __init__(self, pool: LesionPool) -> None:
        self.pool = pool

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        self.pool.keep(data)
        return data


class RandPasteLesion(RandomizableTransform):
    """Paste a lesion from another slice at a place that is like its own.

    A place is taken where the lesion's patch lies in the slice and in the body (tissue on all four sides of each
    corner), overlaps no marked box, and has surroundings of about the intensity that the lesion had, in every window of
    the key slice. Of :data:`TRIES` random places the first that fits; where none does, the slice stays as it is.

    Args:
        prob: probability that a paste is tried.
        pool: where lesions come from.
        contract: of the input; it says which channels are the key slice and what is tissue in them.
    """

    def __init__(self, prob: float, pool: LesionPool, contract: InputContract) -> None:
        RandomizableTransform.__init__(self, prob)
        self.pool = pool
        middle = contract.slices // 2
        self.key_channels = [window * contract.slices + middle for window in range(len(contract.windows_hu))]
        low, high = contract.windows_hu[0]
        self.tissue = min(max((TISSUE_HU - low) / (high - low) * 255, 0.0), 254.0)

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        if self._do_transform:
            self._which = self.R.random()
            self._where = self.R.random((TRIES, 2))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        if not self._do_transform:
            return d
        candidates = self.pool.candidates(d["image_path"], d["label"])
        if len(candidates) == 0:
            return d
        lesion = self.pool.lesion(int(candidates[int(self._which * len(candidates))]))
        if lesion is None:
            return d
        image: npt.NDArray[np.uint8] = d["image"].numpy()
        corner = self._place(image, lesion, d["box"].numpy())
        if corner is None:
            return d
        x, y = corner
        width, height = lesion.alpha.shape
        result = image.copy()  # the cached slice is not changed
        region = result[:, x : x + width, y : y + height]
        region[:] = np.rint(region + lesion.alpha * (lesion.pixels.astype(np.float32) - region))
        offset = torch.tensor([x, y], dtype=torch.float32)
        d["image"] = torch.from_numpy(result)
        d["box"] = torch.cat([d["box"], (lesion.box + offset.repeat(2))[None]])
        d["label"] = torch.cat([d["label"], d["label"].new_tensor([lesion.label])])
        d["recist_px"] = torch.cat([d["recist_px"], (lesion.recist_px + offset)[None]])
        return d

    def _place(
        self, image: npt.NDArray[np.uint8], lesion: Lesion, boxes: npt.NDArray[np.float32]
    ) -> tuple[int, int] | None:
        """First pixel of the patch at the first place that fits."""
        width, height = lesion.alpha.shape
        room = (image.shape[1] - width + 1, image.shape[2] - height + 1)
        if min(room) < 1:
            return None
        around = (1 - lesion.alpha) / (1 - lesion.alpha).sum()
        own = (lesion.pixels[self.key_channels] * around).sum((1, 2))
        key_slice = image[self.key_channels]
        for x, y in (self._where * room).astype(int).tolist():
            apart = (np.array([x + width, y + height]) <= boxes[:, :2]) | (np.array([x, y]) >= boxes[:, 2:])
            if not apart.any(1).all():
                continue
            there = (key_slice[:, x : x + width, y : y + height] * around).sum((1, 2))
            if np.abs(there - own).max() <= TOLERANCE and self._in_body(key_slice[0], x, y, width, height):
                return x, y
        return None

    def _in_body(self, grey: npt.NDArray[np.uint8], x: int, y: int, width: int, height: int) -> bool:
        """Whether each corner has tissue on all four sides: lung is in the body, the air around it is not."""
        return all(
            (part > self.tissue).any()
            for i in (x, x + width - 1)
            for j in (y, y + height - 1)
            for part in (grey[: i + 1, j], grey[i:, j], grey[i, : j + 1], grey[i, j:])
        )


def transforms(
    prob: float, data: Sequence[Mapping[str, Any]], preprocessing: Sequence[Callable[..., Any]], contract: InputContract
) -> list[Transform]:
    """What a training puts between its preprocessing and its augmentation; nothing where ``prob`` is 0.

    Args:
        prob: probability that a lesion is pasted into a slice.
        data, preprocessing: see :class:`LesionPool`.
        contract: of the input.

    Raises:
        BundleError: ``prob`` is not in [0, 1].
    """
    if not 0 <= prob <= 1:
        raise BundleError(f"copy_paste must be a probability, 0 to 1, got {prob}")
    if prob == 0:
        return []
    pool = LesionPool(data, preprocessing)
    return [CutLesions(pool), RandPasteLesion(prob, pool, contract)]
