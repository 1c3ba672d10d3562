"""Category cards: one picture that shows what each category holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data_prep.archive.png import read_hu
from data_prep.atomic import atomic_path
from data_prep.categorize.balance import Array, Labels
from data_prep.categorize.crops import SCALES, CropSettings, crop_boxes_px, cut, window
from data_prep.categorize.features import file_in_folder
from data_prep.categorize.space import positions
from data_prep.errors import UnreadableError
from data_prep.lesion import Lesion

TYPICAL = 8
"""Pictures a card."""

_GREY, _MARK = "0.75", "#d62728"


def typical(lesions: Sequence[Lesion], members: npt.NDArray[np.intp], distances: Array, count: int) -> list[int]:
    """The members nearest to the centroid, each of another patient as far as the patients reach."""
    first: list[int] = []
    more: list[int] = []
    seen: set[str | None] = set()
    for index in members[np.argsort(distances[members], kind="stable")].tolist():
        patient = lesions[index].patient_id
        (more if patient is not None and patient in seen else first).append(index)
        seen.add(patient)
    return [*first, *more][:count]


def places(lesions: Sequence[Lesion]) -> tuple[Array, tuple[str, str]]:
    """(N, 2) where lesions lie, both axes from 0 to 1 and downwards, and the names of the axes.

    Seen from the front, where the sources state the normalised location; else the place in the axial image.
    """
    body = positions(lesions)
    if np.isfinite(body).all(axis=1).mean() >= 0.5:
        return body[:, [0, 2]], ("right - left", "head to foot")
    points = []
    for lesion in lesions:
        box = lesion.box_px
        if box is None or not lesion.columns or not lesion.rows:
            points.append((np.nan, np.nan))
        else:
            points.append(((box[0] + box[2]) / 2 / lesion.columns, (box[1] + box[3]) / 2 / lesion.rows))
    return np.array(points, dtype=np.float64).reshape(-1, 2), ("in the image", "front to back")


def draw_cards(
    lesions: Sequence[Lesion],
    labels: Labels,
    distances: Array,
    names: Sequence[str],
    images: Path,
    settings: CropSettings,
    path: Path,
) -> None:
    """Write a PNG with one row a category: count, sizes, where in the body, and its typical lesions.

    Args:
        lesions: N lesions with a box.
        labels: (N,) their categories.
        distances: (N,) to the centroids.
        names: of the categories.
        images: the images folder; a slice that cannot be read leaves its frame empty.
        settings: of the crops; the pictures show the neighbourhood crop.
        path: the file to write.
    """
    figure = Figure(figsize=(17, 1.75 * len(names) + 0.6), dpi=100)
    FigureCanvasAgg(figure)
    # Fixed places: the automatic layouts take longer than all the drawing.
    inch = 1 / figure.get_figheight()
    grid = {"width_ratios": [1.2, 1.2, 1.2, TYPICAL], "wspace": 0.08, "hspace": 0.25, "left": 0.01, "right": 0.995}
    grid |= {"bottom": 0.45 * inch, "top": 1 - 0.35 * inch}
    axes = figure.subplots(len(names), 4, squeeze=False, gridspec_kw=grid)
    place, axis_names = places(lesions)
    sizes = np.array([np.nan if v.long_diameter_mm is None else v.long_diameter_mm for v in lesions], dtype=np.float64)
    largest = float(np.nanpercentile(sizes, 99)) if np.isfinite(sizes).any() else 1.0
    for category, name in enumerate(names):
        row = axes[category]
        members = np.flatnonzero(labels == category)
        _draw_words(row[0], name, lesions, members, sizes)
        _draw_sizes(row[1], sizes[members], largest)
        _draw_places(row[2], place, members, axis_names)
        shown = typical(lesions, members, distances, TYPICAL)
        row[3].set_axis_off()
        step_mm = 1.03 * settings.near_mm
        for number, index in enumerate(shown):
            _draw_lesion(row[3], number * step_mm, lesions[index], images, settings)
        row[3].set(xlim=(0, TYPICAL * step_mm), ylim=(settings.near_mm, 0), aspect="equal")
    figure.suptitle(f"Lesion categories; pictures: {settings.near_mm:g} mm around the most typical lesions", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_words(
    axis: Axes, name: str, lesions: Sequence[Lesion], members: npt.NDArray[np.intp], sizes_mm: Array
) -> None:
    axis.set_axis_off()
    known = sizes_mm[members][np.isfinite(sizes_mm[members])]
    patients = len({lesions[i].patient_id for i in members})
    words = [
        f"{len(members)} lesions, {len(members) / max(len(lesions), 1):.0%}",
        f"{patients} patients",
        "size unknown" if not len(known) else "{:.0f} mm ({:.0f}–{:.0f})".format(*np.percentile(known, [50, 25, 75])),
    ]
    axis.text(0, 0.9, name, fontsize=10, weight="bold", va="top")
    axis.text(0, 0.68, "\n".join(words), fontsize=8, va="top", linespacing=1.5)


def _draw_sizes(axis: Axes, sizes_mm: Array, largest_mm: float) -> None:
    axis.hist(np.clip(sizes_mm[np.isfinite(sizes_mm)], 0, largest_mm), bins=20, range=(0, largest_mm), color=_MARK)
    axis.set_yticks([])
    axis.tick_params(labelsize=6)
    axis.set_xlabel("long diameter, mm", fontsize=6)


def _draw_places(axis: Axes, place: Array, members: npt.NDArray[np.intp], axis_names: tuple[str, str]) -> None:
    axis.scatter(place[:, 0], place[:, 1], s=1, color=_GREY, rasterized=True)
    axis.scatter(place[members, 0], place[members, 1], s=2, color=_MARK, rasterized=True)
    axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    axis.set_xlabel(axis_names[0], fontsize=6)
    axis.set_ylabel(axis_names[1], fontsize=6)


def _draw_lesion(axis: Axes, left_mm: float, lesion: Lesion, images: Path, settings: CropSettings) -> None:
    """One picture, ``left_mm`` along the row; the axes are in mm."""
    try:
        hu = read_hu(file_in_folder(images, lesion.image or ""))
    except UnreadableError:
        return
    low, high = lesion.window_min_hu, lesion.window_max_hu
    if low is None or high is None or not low < high:
        low, high = settings.window_min_hu, settings.window_max_hu
    crop_px = crop_boxes_px(lesion, settings)[SCALES.index("near")]
    picture = cut(window(hu, low, high), crop_px[None], settings.side_px)[0, 0].numpy()
    side_mm = settings.near_mm
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(left_mm, left_mm + side_mm, side_mm, 0))
    box = np.array(lesion.box_px).reshape(2, 2)
    in_picture_mm = (box - crop_px[:2]) * side_mm / (crop_px[2:] - crop_px[:2])
    (x0, y0), (x1, y1) = np.clip(in_picture_mm, 0, side_mm)
    axis.add_patch(Rectangle((left_mm + x0, y0), x1 - x0, y1 - y0, fill=False, color=_MARK, linewidth=0.8))
