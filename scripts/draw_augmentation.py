"""Draw what the training's augmentation does to slices and their boxes, on slices of a small phantom made for it.

    python scripts/draw_augmentation.py [PICTURE] [--seed N]

One row a slice: as it is given to the network, with a lesion of another slice pasted in (an option), then augmented
anew in every column. Boxes and diameters go along.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.transforms import Compose
from stages import BUNDLE, data_step

sys.path.insert(0, str(BUNDLE))  # its package is ``scripts``
from scripts.contract import make
from scripts.copy_paste import LesionPool, RandPasteLesion
from scripts.transforms import ApplyContractd, LoadSlicesd, RandAugmentLesiond

SIZE, ROWS, COLUMNS = 256, 3, 5
COLOURS = ("#ffb000", "#35b6ff", "#7cff4f", "#ff6fb5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?", default=BUNDLE / "docs" / "augmentation.png")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = ConfigParser.load_config_file(BUNDLE / "configs" / "train.yaml")
    with tempfile.TemporaryDirectory() as folder:
        data_step("phantom", folder, patients=2, seed=arguments.seed)
        draw(Path(folder), settings, arguments.seed, arguments.picture)
    print(f"wrote {arguments.picture}")


def draw(phantom: Path, settings: dict[str, Any], seed: int, picture: Path) -> None:
    """The slices with the most lesions, one a series."""
    content = json.loads((phantom / "truth" / "datalist.json").read_text(encoding="utf-8"))
    items = sorted((item for section in content.values() if isinstance(section, list) for item in section
                    if isinstance(item, dict)), key=lambda item: -len(item["box"]))  # fmt: skip
    of_series = {str(Path(item["image"][0]).parent): item for item in reversed(items)}
    chosen = sorted(of_series.values(), key=lambda item: -len(item["box"]))[:ROWS]
    contract = make(settings["slices"], settings["windows_hu"], SIZE)
    load = [LoadSlicesd(["image"], phantom / "Images_png", contract.slices), ApplyContractd(["image"], contract)]
    data = [{**item, "meta": {key: item.get(key) for key in ("spacing_mm", "recist_px")}} for item in items]
    paste = RandPasteLesion(1.0, LesionPool(data, load), contract).set_random_state(seed=seed)
    augment = RandAugmentLesiond(["image"], **settings["augmentation"]).set_random_state(seed=seed)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.7 * len(chosen)), layout="constrained", facecolor="white")
    grid = figure.subplots(len(chosen), COLUMNS, squeeze=False)
    for axes_row, item in zip(grid, chosen, strict=True):
        given = Compose(load)(data[items.index(item)])
        pasted = paste(given)
        # Which lesion is which, after some have left the picture.
        for of_slice in (given, pasted):
            of_slice["label"] = torch.arange(len(of_slice["box"]))
        for axes, shown in zip(axes_row, (given, pasted), strict=False):
            panel(axes, {**shown, "image": shown["image"] / 255})
        for axes in axes_row[2:]:
            panel(axes, augment(given))
    for axes, title in zip(grid[0], ["as given", "a lesion pasted", *["augmented"] * (COLUMNS - 2)], strict=True):
        axes.set_title(title)
    figure.savefig(picture, dpi=75)


def panel(axes: Axes, item: dict[str, Any]) -> None:
    """The key slice, boxes, and diameters dotted; (0, 0) px is the corner of the first pixel."""
    image = item["image"][len(item["image"]) // 2]
    size_x, size_y = image.shape
    axes.imshow(image.T, cmap="gray", vmin=0, vmax=1, extent=(0, size_x, size_y, 0), interpolation="nearest")
    for (x0, y0, x1, y1), ends, label in zip(item["box"], item["recist_px"], item["label"], strict=True):
        colour = COLOURS[int(label) % len(COLOURS)]
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=1.1)
        for a, b in ((0, 1), (2, 3)):
            axes.plot(ends[[a, b], 0], ends[[a, b], 1], color=colour, linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, size_x), ylim=(size_y, 0))
    axes.axis("off")


if __name__ == "__main__":
    main()
