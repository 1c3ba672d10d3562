"""``categories.html``: the category cards as one page that needs no server, no network and no scripts."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt

from data_prep.atomic import write_text
from data_prep.categorize.balance import Array
from data_prep.categorize.cards import (
    BORDERLINE,
    MIN_PATIENTS,
    TYPICAL,
    Card,
    picture,
    places,
    size_words,
    sizes_mm,
)
from data_prep.categorize.crops import CropSettings
from data_prep.category_names import NAMES_FILE
from data_prep.lesion import Lesion

PAGE_FILE = "categories.html"

SIDE_PX = 160
JPEG_QUALITY = 82

MOST_PICTURES = 240
"""On the page; twelve a card up to 20 categories. Noisy ones take 15 kB each in base64, so it stays below 5 MB."""

_BINS = 20
_CELLS = 28
_LEVELS = 4


def write_page(
    cards: Sequence[Card], lesions: Sequence[Lesion], images: Path, settings: CropSettings, summary: str, path: Path
) -> None:
    """Write the page; atomic. It tells nothing of who the patients are but what the pictures themselves show.

    Args:
        cards: of the categories.
        lesions: whose numbers the cards hold.
        images: the images folder; a slice that cannot be read leaves its frame empty.
        settings: of the crops; the pictures show the neighbourhood crop.
        summary: one sentence on what is shown.
        path: the file to write.
    """
    sizes = sizes_mm(lesions)
    step_mm = _step(sizes)
    place, axis_names = places(lesions)
    seen_from_the_front = axis_names[1] == "head to foot"
    largest = max((len(card.members) for card in cards), default=1)
    each = MOST_PICTURES // max(len(cards), 1)
    typical_count = min(TYPICAL, math.ceil(each * TYPICAL / (TYPICAL + BORDERLINE)))
    borderline_count = min(BORDERLINE, each - typical_count)
    views = []
    for card in cards:
        known = sizes[card.members][np.isfinite(sizes[card.members])]
        share = len(card.members) / max(len(lesions), 1)
        typical = [_picture(lesions[i], images, settings, card, None) for i in card.typical[:typical_count]]
        borderline = [
            _picture(lesions[i], images, settings, card, cards[rival].name)
            for i, rival in card.borderline[:borderline_count]
        ]
        views.append(
            {
                "number": card.number,
                "name": card.name,
                "proposed": card.proposal.name,
                "reason": card.proposal.reason,
                "lesions": f"{len(card.members):,}",
                "share": f"{share:.0%}",
                "bar": round(100 * len(card.members) / max(largest, 1), 1),
                "patients": f"{card.patients:,}",
                "size_words": size_words(sizes[card.members]),
                "bars": _bars(known, step_mm),
                "levels": _levels(place[card.members]),
                "words": card.words,
                "typical": typical,
                "borderline": borderline,
            }
        )
    ticks = [*(f"{step_mm * quarter:g}" for quarter in range(4)), f"{4 * step_mm:g}+"]  # the last bar holds the rest
    text = _template().render(
        cards=views,
        summary=summary,
        names_file=NAMES_FILE,
        near_mm=f"{settings.near_mm:g}",
        side_px=SIDE_PX,
        bins=_BINS,
        ticks=ticks,
        cells=_CELLS,
        everywhere=_cells_path(_grid(place) > 0),
        place_words="from the front, grey: all lesions"
        if seen_from_the_front
        else "in the axial image, grey: all lesions",
        place_left="right" if seen_from_the_front else "left of image",
        place_right="left" if seen_from_the_front else "right of image",
        min_patients=MIN_PATIENTS,
    )
    write_text(path, text)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)


def _picture(lesion: Lesion, images: Path, settings: CropSettings, card: Card, rival: str | None) -> dict[str, Any]:
    """A lesion's picture as base64 JPEG, its box in per cent, its words."""
    size = size_words(sizes_mm([lesion])).split(" (")[0]
    caption = size if rival is None else f"{size}, or {rival}"
    kind = "Typical" if rival is None else "Borderline"
    view: dict[str, Any] = {"lesion_id": lesion.lesion_id, "caption": caption, "source": ""}
    view["alt"] = f"{kind} lesion of category {card.number}, {size}, on axial CT"
    shown = picture(lesion, images, settings, SIDE_PX)
    if shown is None:
        return view
    grey, (x0, y0, x1, y1) = shown
    levels = np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)
    _, data = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    view["source"] = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
    for name, value in (("left", x0), ("top", y0), ("width", x1 - x0), ("height", y1 - y0)):
        view[name] = round(100 * value, 2)
    return view


def _step(sizes: Array) -> float:
    """A quarter of the axis of sizes, in mm: a multiple of 5 so that 99 % of the lesions lie on the axis."""
    known = sizes[np.isfinite(sizes)]
    return 5.0 * max(1, math.ceil(float(np.percentile(known, 99)) / 20)) if len(known) else 5.0


def _bars(known: Array, step_mm: float) -> str:
    """SVG path of the histogram, 1 wide and up to 100 high a bar; empty where no size is known."""
    if not len(known):
        return ""
    counts, _ = np.histogram(np.clip(known, 0, 4 * step_mm), bins=_BINS, range=(0, 4 * step_mm))
    heights = np.round(100 * counts / counts.max(), 1).tolist()
    return "".join(f"M{i + 0.06:.2f} 100v-{height:g}h.88v{height:g}z" for i, height in enumerate(heights) if height)


def _grid(place: Array) -> npt.NDArray[np.int64]:
    """(N, 2) places from 0 to 1, NaN where unknown -> lesions by (row, column)."""
    known = np.clip(place[np.isfinite(place).all(axis=1)], 0, 1 - 1e-9)
    column, row = np.floor(known * _CELLS).astype(np.int64).T
    grid = np.zeros((_CELLS, _CELLS), dtype=np.int64)
    np.add.at(grid, (row, column), 1)
    return grid


def _levels(place: Array) -> list[str]:
    """SVG paths of the cells with few, more, ... and most lesions."""
    grid = _grid(place)
    level = np.ceil(_LEVELS * np.sqrt(grid / max(int(grid.max()), 1))).astype(np.int64)
    return [_cells_path(level == number) for number in range(1, _LEVELS + 1)]


def _cells_path(mask: npt.NDArray[np.bool_]) -> str:
    return "".join(f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(mask).tolist())
