"""A contact sheet: pictures of lesions in rows, each with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data_prep.atomic import atomic_path
from data_prep.categorize.cards import picture
from data_prep.categorize.crops import CropSettings
from data_prep.lesion import Lesion

COLUMNS = 7

_INCH = 2.1
"""Side of a picture."""

_CAPTION = 0.2
"""Of a picture's side: what is left above it for two lines of caption."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One lesion of the sheet.

    Attributes:
        lesion: one without a box or without a readable slice leaves its frame empty.
        caption: one or two lines.
        query: whether it is what was looked for; it gets a frame.
    """

    lesion: Lesion
    caption: str
    query: bool = False


def draw_sheet(pictures: Sequence[Picture], title: str, images: Path, settings: CropSettings, path: Path) -> None:
    """Write a PNG with the neighbourhood crop of each lesion, its box drawn in.

    Args:
        pictures: at least one, in reading order.
        title: of the sheet.
        images: the images folder.
        settings: of the crops; every picture is ``near_mm`` wide and high.
        path: the file to write.
    """
    side_mm = settings.near_mm
    step_mm = 1.04 * side_mm
    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, len(pictures))
    head_inch = 0.35
    height_inch = rows * _INCH * (1.04 + _CAPTION) + head_inch
    figure = Figure(figsize=(max(columns, 3) * 1.04 * _INCH + 0.1, height_inch), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0, top=1 - head_inch / height_inch, hspace=0)
    for row, axis in enumerate(axes):
        axis.set_axis_off()
        for column, one in enumerate(pictures[row * COLUMNS : (row + 1) * COLUMNS]):
            left_mm = column * step_mm
            shown = None if one.lesion.box_px is None else picture(one.lesion, images, settings, settings.side_px)
            if shown is None:
                axis.text(left_mm + side_mm / 2, side_mm / 2, "no picture", fontsize=8, color="0.4", ha="center")
            else:
                axis.imshow(shown[0], cmap="gray", vmin=0, vmax=1, extent=(left_mm, left_mm + side_mm, side_mm, 0))
                x0, y0, x1, y1 = (side_mm * value for value in shown[1])
                box = Rectangle((left_mm + x0, y0), x1 - x0, y1 - y0, fill=False, color="#d62728", linewidth=0.9)
                axis.add_patch(box)
            colour, width = ("#1f77b4", 3.0) if one.query else ("0.6", 0.5)
            axis.add_patch(Rectangle((left_mm, 0), side_mm, side_mm, fill=False, color=colour, linewidth=width))
            axis.text(left_mm, -0.03 * side_mm, one.caption, fontsize=7, va="bottom", parse_math=False)
        axis.set(xlim=(-0.01 * side_mm, max(columns, 3) * step_mm), ylim=(side_mm * 1.02, -_CAPTION * side_mm))
        axis.set_aspect("equal", anchor="W")
    figure.text(0.012, 1 - 0.6 * head_inch / height_inch, title, fontsize=9, va="center", parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
