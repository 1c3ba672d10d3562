"""Draw what a harvest found over the DICOM slices it was found on, as PNG contact sheets.

    python -m data_prep harvest MARKS IMAGES --out DIR
    python scripts/draw_marks.py DIR/lesions.parquet IMAGES SHEET.png [--per-sheet N] [--zoom MM]

One panel a slice; boxes and axes of all its lesions, with their diameters. No patient is named.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.archive.index import ImageIndex, ImageRecord
from data_prep.archive.volume import read_slice_hu
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, read_lesions

WINDOW_HU = (-160.0, 240.0)
COLOURS = ("#ffb000", "#35b6ff", "#7cff4f", "#ff6fb5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesions", type=Path)
    parser.add_argument("images", type=Path, help="folder of the DICOM images")
    parser.add_argument("sheet", type=Path, help="PNG to write; several sheets are numbered")
    parser.add_argument("--per-sheet", type=int, default=6, help="slices on one sheet")
    parser.add_argument("--zoom", type=float, metavar="MM", help="show a square of this side around the lesions")
    arguments = parser.parse_args()
    try:
        draw(arguments)
    except DataPrepError as error:
        raise SystemExit(f"error: {error}") from None


def draw(arguments: argparse.Namespace) -> None:
    index = ImageIndex.build(arguments.images)
    slices: dict[tuple[str, int], list[Lesion]] = defaultdict(list)
    for lesion in read_lesions(arguments.lesions):
        if lesion.image_uid and lesion.box_px is not None:
            slices[lesion.image_uid, lesion.frame_number or 1].append(lesion)
    found = [(record, slices[key]) for key in sorted(slices) if (record := index.find(*key)) is not None]
    if not found:
        raise DataPrepError(f"{arguments.images}: none of the lesions' images is there")
    sheets = [found[i : i + arguments.per_sheet] for i in range(0, len(found), arguments.per_sheet)]
    for number, sheet in enumerate(sheets, start=1):
        target = arguments.sheet
        if len(sheets) > 1:
            target = target.with_stem(f"{target.stem}_{number}")
        columns = min(len(sheet), 3)
        rows = -(-len(sheet) // columns)
        figure = Figure(figsize=(4 * columns, 4.2 * rows), layout="constrained", facecolor="white")
        for axes in figure.subplots(rows, columns, squeeze=False).ravel():
            axes.axis("off")
        for axes, (record, lesions) in zip(figure.axes, sheet, strict=False):
            draw_slice(axes, record, lesions, arguments.zoom)
        figure.savefig(target, dpi=80)
        print(f"{target}: {len(sheet)} slices, {sum(len(lesions) for _, lesions in sheet)} lesions")


def draw_slice(axes: Axes, record: ImageRecord, lesions: list[Lesion], zoom_mm: float | None) -> None:
    """A slice as large as its pixels; (0, 0) px is the corner of its first pixel."""
    hu = read_slice_hu(record.path, record.frame_number)
    rows, columns = hu.shape
    extent = (0, columns, rows, 0)
    axes.imshow(hu, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], extent=extent, interpolation="nearest")
    words = []
    for number, lesion in enumerate(lesions):
        colour = COLOURS[number % len(COLOURS)]
        x0, y0, x1, y1 = lesion.box_px or (0, 0, 0, 0)
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=1.2)
        ends = np.reshape(lesion.recist_px or (), (-1, 2, 2))
        for (ax, ay), (bx, by) in ends:
            axes.plot([ax, bx], [ay, by], color=colour, linewidth=0.9, linestyle=":")
        sizes = [f"{mm:.1f}" for mm in (lesion.long_diameter_mm, lesion.short_diameter_mm) if mm is not None]
        words.append(f"{' x '.join(sizes)} mm, {len(lesion.bookmark_ids)} marks")
    boxes = np.array([lesion.box_px for lesion in lesions])
    if zoom_mm is not None:
        centre = (boxes[:, :2].min(axis=0) + boxes[:, 2:].max(axis=0)) / 2
        half = zoom_mm / 2 / np.array([record.spacing_x_mm or 1.0, record.spacing_y_mm or 1.0])
        axes.set_xlim(centre[0] - half[0], centre[0] + half[0])
        axes.set_ylim(centre[1] + half[1], centre[1] - half[1])
    axes.set_title("; ".join(words), fontsize=9)


if __name__ == "__main__":
    main()
