"""Fit the anchor sizes to a datalist's training boxes and say what recall they make possible.

    python -m scripts.fit_anchors DATALIST --size 512 [--per_level 1] [--pixel_mm MM]

``train.yaml`` fits them by itself; to fix them, give the printed sizes as ``--anchor_sizes`` on the command line.
"""

from __future__ import annotations

import fire
import numpy as np
import numpy.typing as npt

from scripts.anchors import best_possible_recall, fit_sizes
from scripts.contract import resized_shape
from scripts.datalist import load
from scripts.errors import BundleError
from scripts.network import STRIDES


def training_extents(datalist: str, size: int, pixel_mm: float | None = None) -> npt.NDArray[np.float64]:
    """(N, 2) extents of the training boxes in px of the network's input; see :func:`scripts.contract.resized_shape`."""
    extents = []
    for item in load(datalist).sections["training"]:
        if item.get("image_size") is None:
            raise BundleError(f"{datalist}: its items have no 'image_size'; make it again with `data_prep datalist`")
        shape = item["image_size"]
        resized = resized_shape(shape, size, pixel_mm, item.get("spacing_mm"))
        x, y = resized[0] / shape[0], resized[1] / shape[1]
        extents += [[(b[2] - b[0]) * x, (b[3] - b[1]) * y] for b in item["box"]]
    if len(extents) < 2:
        raise BundleError(f"{datalist}: anchors cannot be fitted to fewer than two training boxes; mark more lesions")
    return np.array(extents, dtype=np.float64).reshape(-1, 2)


def fit(datalist: str, size: int, per_level: int = 1, pixel_mm: float | None = None) -> list[list[float]]:
    """Anchor sizes for the training boxes of a datalist; see :func:`scripts.anchors.fit_sizes`."""
    return fit_sizes(training_extents(datalist, size, pixel_mm), STRIDES, per_level)


def main(datalist: str, size: int = 512, per_level: int = 1, pixel_mm: float | None = None) -> None:
    """Print fitted sizes and the best possible recall at IoU 0.5, beside MONAI's and the usual RetinaNet's defaults.

    Args:
        datalist: path of a datalist.json.
        size: longer side of the network's input, px.
        per_level: sizes at each of the four levels.
        pixel_mm: as in train.yaml.
    """
    extents = training_extents(datalist, size, pixel_mm)
    fitted = fit_sizes(extents, STRIDES, per_level)
    octaves = [2 ** (i / 3) for i in range(3)]
    usual = [[s * o for o in octaves] for s in (32.0, 64.0, 128.0, 256.0)]
    print(f"{len(extents)} training boxes; median extent {np.median(extents):.1f} px at {size} px")
    for name, sizes in (("fitted", fitted), ("usual RetinaNet sizes from 32 px", usual)):
        recall = best_possible_recall(extents, sizes, STRIDES)
        print(f"{name}: best possible recall at IoU 0.5 before regression {recall:.3f}")
    print(f"anchor_sizes: {fitted}")


if __name__ == "__main__":
    fire.Fire(main)
