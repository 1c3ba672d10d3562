"""Category cards: what each category holds, and one picture that shows it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.spatial.distance import cdist

from data_prep.archive.png import read_hu
from data_prep.atomic import atomic_path
from data_prep.categorize.balance import Array, Labels
from data_prep.categorize.crops import SCALES, CropSettings, crop_boxes_px, cut, window
from data_prep.categorize.features import file_in_folder
from data_prep.categorize.names import Proposal
from data_prep.categorize.space import positions
from data_prep.categorize.words import words
from data_prep.errors import UnreadableError
from data_prep.lesion import Lesion

TYPICAL = 8
"""Most typical lesions a card shows."""

BORDERLINE = 4
"""Borderline lesions a card shows."""

WORDS = 8
"""Words a card shows."""

MIN_PATIENTS = 3
"""Patients of whose lesions a word must be said before a card shows it: a rarer one may be a person's name."""

_LONG_WORD = re.compile(r"[^\W\d_]{3,}")
_EMPTY_WORDS = frozenset(["and", "for", "from", "lesion", "lesions", "mark", "measurement", "target", "the", "with"])

_GREY, _MARK = "0.75", "#d62728"
_IN_PNG = (6, 3)
"""Typical and borderline lesions in a row of the picture."""


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of a category; lesions are given by their numbers.

    Attributes:
        number: of the category.
        name: in use.
        proposal: the name that was proposed, and why.
        members: all lesions of the category.
        patients: how many they have.
        typical: those nearest to the centre, of different patients first.
        borderline: (lesion, category): those whose next nearest centre, that of the category given, is hardly farther
            than their own, or nearer.
        words: (word, lesions whose bookmarks say it), the most frequent first.
    """

    number: int
    name: str
    proposal: Proposal
    members: npt.NDArray[np.intp]
    patients: int
    typical: list[int]
    borderline: list[tuple[int, int]]
    words: list[tuple[str, int]]


def make_cards(
    lesions: Sequence[Lesion],
    labels: Labels,
    points: Array,
    centroids: Array,
    names: Sequence[str],
    proposals: Sequence[Proposal],
) -> list[Card]:
    """One card a category.

    Args:
        lesions: N lesions with a box.
        labels: (N,) their categories.
        points: (N, D) their places in the fitted space.
        centroids: (k, D) centres of the categories.
        names: the k names in use.
        proposals: the k names that were proposed.
    """
    distances = np.concatenate(
        [np.empty((0, len(centroids)))]
        + [cdist(points[start : start + 100_000], centroids) for start in range(0, len(points), 100_000)]
    )
    rows = np.arange(len(points))
    own = distances[rows, labels]
    distances[rows, labels] = np.inf
    rivals = distances.argmin(axis=1)
    margins = distances[rows, rivals] - own
    cards = []
    for number, (name, proposal) in enumerate(zip(names, proposals, strict=True)):
        members = np.flatnonzero(labels == number)
        chosen = typical(lesions, members, own, TYPICAL)
        doubtful = np.setdiff1d(members, chosen) if len(centroids) > 1 else members[:0]
        borderline = typical(lesions, doubtful, margins, BORDERLINE)
        cards.append(
            Card(
                number,
                name,
                proposal,
                members,
                len({lesions[i].patient_id for i in members.tolist()}),
                chosen,
                [(i, int(rivals[i])) for i in borderline],
                frequent_words([lesions[i] for i in members.tolist()]),
            )
        )
    return cards


def typical(lesions: Sequence[Lesion], members: npt.NDArray[np.intp], distances: Array, count: int) -> list[int]:
    """The members of the smallest ``distances``, each of another patient as far as the patients reach."""
    first: list[int] = []
    more: list[int] = []
    seen: set[str | None] = set()
    for index in members[np.argsort(distances[members], kind="stable")].tolist():
        patient = lesions[index].patient_id
        (more if patient is not None and patient in seen else first).append(index)
        seen.add(patient)
        if len(first) == count:
            break
    return [*first, *more][:count]


def frequent_words(lesions: Sequence[Lesion]) -> list[tuple[str, int]]:
    """(word, lesions) of the :data:`WORDS` most frequent words of bookmarks, in lower case.

    Only words of lesions of at least :data:`MIN_PATIENTS` patients, without digits: what is rarer may tell who it is.
    """
    said: defaultdict[str, list[str]] = defaultdict(list)
    for lesion in lesions:
        for word in set(_LONG_WORD.findall(words(lesion).lower())) - _EMPTY_WORDS:
            said[word].append(lesion.patient_id or "")
    common = [(word, len(who)) for word, who in said.items() if len(set(who)) >= MIN_PATIENTS]
    return sorted(common, key=lambda item: (-item[1], item[0]))[:WORDS]


def sizes_mm(lesions: Sequence[Lesion]) -> Array:
    """(N,) long diameters; NaN where unknown."""
    return np.array([np.nan if v.long_diameter_mm is None else v.long_diameter_mm for v in lesions], dtype=np.float64)


def size_words(sizes: Array) -> str:
    """Median and quartiles."""
    known = sizes[np.isfinite(sizes)]
    return "size unknown" if not len(known) else "{:.0f} mm ({:.0f}–{:.0f})".format(*np.percentile(known, [50, 25, 75]))


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


def picture(
    lesion: Lesion, images: Path, settings: CropSettings, side_px: int
) -> tuple[npt.NDArray[np.float32], tuple[float, float, float, float]] | None:
    """The neighbourhood of a lesion as a reader sees it.

    Returns:
        (side_px, side_px) intensities from 0 to 1, in the window of the reader where it is known, and the lesion's box
        (x0, y0, x1, y1) as fractions of the picture; None where the slice cannot be read.
    """
    try:
        hu = read_hu(file_in_folder(images, lesion.image or ""))
    except UnreadableError:
        return None
    low, high = lesion.window_min_hu, lesion.window_max_hu
    if low is None or high is None or not low < high:
        low, high = settings.window_min_hu, settings.window_max_hu
    crop_px = crop_boxes_px(lesion, settings)[SCALES.index("near")]
    grey = cut(window(hu, low, high), crop_px[None], side_px)[0, 0].numpy()
    box = np.array(lesion.box_px).reshape(2, 2)
    x0, y0, x1, y1 = np.clip((box - crop_px[:2]) / (crop_px[2:] - crop_px[:2]), 0, 1).ravel().tolist()
    return grey, (x0, y0, x1, y1)


def draw_cards(
    cards: Sequence[Card], lesions: Sequence[Lesion], images: Path, settings: CropSettings, path: Path
) -> None:
    """Write a PNG with one row a category: count, sizes, where in the body, typical and borderline lesions.

    Args:
        cards: of the categories.
        lesions: whose numbers the cards hold.
        images: the images folder; a slice that cannot be read leaves its frame empty.
        settings: of the crops; the pictures show the neighbourhood crop.
        path: the file to write.
    """
    figure = Figure(figsize=(17.5, 1.75 * len(cards) + 0.6), dpi=100)
    FigureCanvasAgg(figure)
    # Fixed places: the automatic layouts take longer than all the drawing.
    inch = 1 / figure.get_figheight()
    typical_count, borderline_count = _IN_PNG
    pictures = typical_count + borderline_count + 0.2  # a gap between the two kinds
    grid = {"width_ratios": [1.4, 1.2, 1.2, pictures], "wspace": 0.08, "hspace": 0.25, "left": 0.01, "right": 0.995}
    grid |= {"bottom": 0.45 * inch, "top": 1 - 0.35 * inch}
    axes = figure.subplots(len(cards), 4, squeeze=False, gridspec_kw=grid)
    place, axis_names = places(lesions)
    sizes = sizes_mm(lesions)
    largest = float(np.nanpercentile(sizes, 99)) if np.isfinite(sizes).any() else 1.0
    step_mm = 1.03 * settings.near_mm
    for card, row in zip(cards, axes, strict=True):
        _draw_words(row[0], card, len(lesions), sizes)
        _draw_sizes(row[1], sizes[card.members], largest)
        _draw_places(row[2], place, card.members, axis_names)
        row[3].set_axis_off()
        for column, index in enumerate(card.typical[:typical_count]):
            _draw_lesion(row[3], column * step_mm, lesions[index], images, settings)
        for column, (index, _) in enumerate(card.borderline[:borderline_count]):
            _draw_lesion(row[3], (typical_count + 0.2 + column) * step_mm, lesions[index], images, settings)
        row[3].set(xlim=(0, pictures * step_mm), ylim=(settings.near_mm, 0), aspect="equal", anchor="W")
    figure.suptitle(
        f"Lesion categories; pictures: {settings.near_mm:g} mm around typical (left) and borderline (right) lesions",
        fontsize=9,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_words(axis: Axes, card: Card, lesions: int, sizes: Array) -> None:
    axis.set_axis_off()
    said = [
        f"category {card.number}",
        f"{len(card.members)} lesions, {len(card.members) / max(lesions, 1):.0%}",
        f"{card.patients} patients",
        size_words(sizes[card.members]),
    ]
    name = card.name if len(card.name) <= 24 else card.name[:23] + "…"
    axis.text(0, 0.92, name, fontsize=10, weight="bold", va="top", parse_math=False)
    axis.text(0, 0.72, "\n".join(said), fontsize=8, va="top", linespacing=1.5)


def _draw_sizes(axis: Axes, sizes: Array, largest_mm: float) -> None:
    axis.hist(np.clip(sizes[np.isfinite(sizes)], 0, largest_mm), bins=20, range=(0, largest_mm), color=_MARK)
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
    shown = picture(lesion, images, settings, settings.side_px)
    if shown is None:
        return
    grey, box = shown
    side_mm = settings.near_mm
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(left_mm, left_mm + side_mm, side_mm, 0))
    x0, y0, x1, y1 = (side_mm * value for value in box)
    axis.add_patch(Rectangle((left_mm + x0, y0), x1 - x0, y1 - y0, fill=False, color=_MARK, linewidth=0.8))
