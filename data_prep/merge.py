"""From marks to lesions: which bookmarks on one image are one lesion, and what is then known of it.

The rules, in order, for the bookmarks of one image:

1. A DeepLesion row is one lesion with the release's own box; a detector's box is one lesion with its score.
2. Marks with the same coordinates are one mark saved more than once (AIM and SR, a re-saved report).
3. A declared pair of axes is taken as it is; what is odd about it goes into ``note``. Two single lines that cross
   within 90° ± 15° become one bidirectional measurement, unless they are of two differently named observers.
4. Outlines get their RECIST diameters; a single line gets an assumed short axis, for its box alone.
5. Readings with one tracking UID, or whose boxes overlap (IoU >= 0.5), are one lesion that lists all bookmarks; its
   box and diameters are those of the longest reading.
6. An arrow, point or text that lies in a lesion's box, or shares its tracking UID, joins it; words about the whole
   image join every lesion with a box on it. Alone it is a location, never a box.

The result depends on the set of bookmarks only, not on their order or on the files they came from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from data_prep.bookmark import DETECTOR, Bookmark, make_id
from data_prep.lesion import Lesion
from data_prep.readings import SAME_MARK_PX, Reading, line_of, may_pair, read_mark, read_pair

SAME_TARGET_IOU = 0.5
"""Boxes that overlap this much are readings of one target."""

DISAGREES_RELATIVE = 0.02
DISAGREES_MM = 0.5
"""A stated length that differs from the drawn one by more than either is flagged."""

# A reading at least this long, relative to the longest, may give the box in its stead if its rank is better: an SR pair
# must win over the lone copy of its own long axis.
_AS_LONG = 0.99

_ALONE = ("deeplesion-csv", DETECTOR)

# Fields of a lesion taken from its bookmarks: the first that states one.
_FIRST_STATED = (
    "image",
    "patient_id",
    "modality",
    "study_uid",
    "series_uid",
    "image_uid",
    "frame_number",
    "slice_index",
    "rows",
    "columns",
    "spacing_x_mm",
    "spacing_y_mm",
    "spacing_z_mm",
    "window_min_hu",
    "window_max_hu",
    "norm_x",
    "norm_y",
    "norm_z",
    "slice_first",
    "slice_last",
    "patient_sex",
    "patient_age",
    "site",
    "laterality",
    "finding_code",
    "tracking_uid",
    "split",
    "coarse_type",
    "score",
)


def image_key(bookmark: Bookmark) -> str:
    """Bookmarks with the same key are on one image; "" where nothing says which image it is."""
    if bookmark.image_uid:
        return f"{bookmark.image_uid}\x1f{bookmark.frame_number or 1}"
    if bookmark.series_uid and bookmark.slice_index is not None:
        return f"{bookmark.series_uid}\x1f{bookmark.slice_index}"
    return bookmark.image or ""


def merge(bookmarks: Iterable[Bookmark]) -> list[Lesion]:
    """All lesions of the given bookmarks, ordered by image, then by lesion id."""
    images: defaultdict[str, list[Bookmark]] = defaultdict(list)
    for bookmark in bookmarks:
        images[image_key(bookmark) or f"\x1f{bookmark.bookmark_id}"].append(bookmark)
    return [lesion for key in sorted(images) for lesion in merge_image(images[key])]


def merge_image(bookmarks: Sequence[Bookmark]) -> list[Lesion]:
    """The lesions of one image, ordered by lesion id."""
    unique = {bookmark.bookmark_id: bookmark for bookmark in bookmarks}
    marks = [unique[key] for key in sorted(unique)]
    alone = [mark for mark in marks if mark.source in _ALONE]
    lesions = [_lesion([read_mark([mark])]) for mark in alone]
    groups = list(_saved_twice([mark for mark in marks if mark.source not in _ALONE]))
    if groups:
        readings = list(_readings(groups))
        with_box = [reading for reading in readings if reading.box_px is not None]
        targets = _same_target(with_box)
        located = [reading for reading in readings if reading.box_px is None]
        lesions += [_lesion(target) for target in _join_locations(targets, located)]
    return sorted(lesions, key=lambda lesion: lesion.lesion_id)


def _saved_twice(marks: Sequence[Bookmark]) -> Iterator[list[Bookmark]]:
    """Group marks of one shape whose coordinates agree; the order in a group is that of the ids."""
    shapes: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    ends = [_direction_free(mark) for mark in marks]
    for i, mark in enumerate(marks):
        shapes["line" if line_of(mark) else mark.form, len(mark.points_px)].append(i)
    same: list[tuple[int, int]] = []
    for (form, count), members in shapes.items():
        if not count:
            # Words without a place: the same words are the same mark.
            by_text = sorted(members, key=lambda i: marks[i].text or "")
            for a, b in pairwise(by_text):
                if marks[a].text == marks[b].text:
                    same.append((a, b))
            continue
        members.sort(key=lambda i: ends[i])
        for position, i in enumerate(members):
            for j in reversed(members[:position]):
                if ends[i][0] - ends[j][0] > SAME_MARK_PX:
                    break
                near = all(abs(p - q) <= SAME_MARK_PX for p, q in zip(ends[i], ends[j], strict=True))
                if near and (form != "text" or marks[i].text == marks[j].text):
                    same.append((i, j))
    for indices in _joined(len(marks), same):
        yield [marks[i] for i in indices]


def _direction_free(mark: Bookmark) -> tuple[float, ...]:
    """Coordinates that do not depend on which end of an axis was drawn first."""
    points = mark.points
    if line_of(mark) or mark.form in ("bidirectional", "ellipse"):
        points = [point for k in range(0, len(points), 2) for point in _ordered(points[k], points[k + 1])]
    return tuple(value for point in points for value in point)


def _ordered(a: tuple[float, float], b: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    # By the axis along which the ends differ most, so that rounding cannot turn the line around.
    k = 0 if abs(a[0] - b[0]) >= abs(a[1] - b[1]) else 1
    return (a, b) if a[k] <= b[k] else (b, a)


def _readings(groups: Sequence[Sequence[Bookmark]]) -> Iterator[Reading]:
    """One reading for each mark, or for two lines that are inferred to be a pair; the nearest to 90° pair first."""
    readings = [read_mark(group) for group in groups]
    lines = [i for i, group in enumerate(groups) if line_of(group[0]) and readings[i].axes_px is not None]
    candidates = []
    for position, i in enumerate(lines):
        for j in lines[:position]:
            if (off := may_pair(readings[i], readings[j])) is not None:
                first, second = sorted((groups[i][0].bookmark_id, groups[j][0].bookmark_id))
                candidates.append((round(off, 6), first, second, i, j))
    paired: set[int] = set()
    for _, _, _, i, j in sorted(candidates):
        if paired.isdisjoint((i, j)):
            paired |= {i, j}
            yield read_pair(groups[i], groups[j])
    yield from (reading for i, reading in enumerate(readings) if i not in paired)


def _same_target(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Readings of one target: a common tracking UID, or boxes that overlap."""
    same: list[tuple[int, int]] = []
    by_tracking: dict[str, int] = {}
    for i, reading in enumerate(readings):
        for uid in _tracking(reading):
            same.append((i, by_tracking.setdefault(uid, i)))
    boxes = np.array([reading.box_px for reading in readings], dtype=np.float64).reshape(-1, 4)
    for i in range(1, len(boxes)):
        same += [(i, int(j)) for j in np.flatnonzero(box_iou(boxes[i], boxes[:i]) >= SAME_TARGET_IOU)]
    return [[readings[i] for i in indices] for indices in _joined(len(readings), same)]


def _joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The sets into which pairs join 0..count-1: the members ascending, the sets by their smallest one."""
    from scipy.cluster.hierarchy import DisjointSet  # slow to load, and rows of the release need none of this

    sets = DisjointSet(range(count))
    for a, b in pairs:
        sets.merge(a, b)
    return [sorted(members) for members in sets.subsets()]


def box_iou(box_px: np.ndarray, others_px: np.ndarray) -> np.ndarray:
    """(N,) IoU of one (4,) half-open px box with (N, 4) others."""
    overlap = np.minimum(box_px[2:], others_px[:, 2:]) - np.maximum(box_px[:2], others_px[:, :2])
    shared = np.clip(overlap, 0, None).prod(axis=1)
    union = (box_px[2:] - box_px[:2]).prod() + (others_px[:, 2:] - others_px[:, :2]).prod(axis=1) - shared
    return np.asarray(shared / union)


def _join_locations(targets: list[list[Reading]], located: Sequence[Reading]) -> list[list[Reading]]:
    """Arrows, points and words go to the smallest lesion they lie in, or to their tracking UID's; else alone."""
    by_tracking = {uid: i for i, target in enumerate(targets) for reading in target for uid in _tracking(reading)}
    best = [_best(target) for target in targets]
    joined = [list(target) for target in targets]
    alone: dict[str, list[Reading]] = {}
    for reading in located:
        uids = _tracking(reading)
        homes = [by_tracking[uid] for uid in uids if uid in by_tracking][:1]
        if not homes and reading.centre_px is None:
            homes = list(range(len(targets)))
        elif not homes:
            homes = [i for _, i in sorted((_area(target), i) for i, target in enumerate(best))]
            homes = [i for i in homes if _contains(best[i], reading)][:1]
        for i in homes:
            joined[i].append(reading)
        if not homes:
            alone.setdefault(uids[0] if uids else f"\x1f{reading.bookmarks[0].bookmark_id}", []).append(reading)
    return joined + list(alone.values())


def _tracking(reading: Reading) -> list[str]:
    return sorted({bookmark.tracking_uid for bookmark in reading.bookmarks if bookmark.tracking_uid})


def _area(reading: Reading) -> float:
    assert reading.box_px is not None
    x0, y0, x1, y1 = reading.box_px
    return (x1 - x0) * (y1 - y0)


def _contains(target: Reading, location: Reading) -> bool:
    assert target.box_px is not None
    assert location.centre_px is not None
    (x0, y0, x1, y1), (x, y) = target.box_px, location.centre_px
    return x0 <= x < x1 and y0 <= y < y1


def _best(readings: Sequence[Reading]) -> Reading:
    """The longest reading; of those as long (to 1 %) the most complete, then the smallest id."""
    longest = max(reading.long_px for reading in readings)
    candidates = [reading for reading in readings if reading.long_px >= _AS_LONG * longest]
    return min(candidates, key=lambda r: (r.rank, -round(r.long_px, 3), r.bookmarks[0].bookmark_id))


def disagrees(stated_mm: float | None, drawn_mm: float | None) -> bool:
    """Whether a stated length differs from the drawn one by more than 2 % of it or by more than 0.5 mm."""
    if stated_mm is None or drawn_mm is None:
        return False
    return abs(stated_mm - drawn_mm) > min(DISAGREES_MM, DISAGREES_RELATIVE * drawn_mm)


def _lesion(readings: Sequence[Reading]) -> Lesion:
    best = _best(readings)
    bookmarks = list({b.bookmark_id: b for reading in (best, *readings) for b in reading.bookmarks}.values())
    ids = tuple(sorted(bookmark.bookmark_id for bookmark in bookmarks))
    long_mm, short_mm = best.diameters_mm
    x0, y0, x1, y1 = best.box_px or (None, None, None, None)
    centre = best.centre_px or (None, None)
    if best.box_px is not None:
        centre = ((best.box_px[0] + best.box_px[2]) / 2, (best.box_px[1] + best.box_px[3]) / 2)
    notes = [note for reading in readings for note in reading.notes]
    notes += [bookmark.note for bookmark in bookmarks if bookmark.note]
    return Lesion(
        lesion_id=make_id("lesion", *ids),
        bookmark_ids=ids,
        source=best.bookmarks[0].source,
        x0=x0,
        y0=y0,
        x1=x1,
        y1=y1,
        centre_x=centre[0],
        centre_y=centre[1],
        recist_px=best.axes_px,
        long_diameter_mm=long_mm,
        short_diameter_mm=short_mm,
        stated_long_mm=best.stated_long_mm,
        stated_short_mm=best.stated_short_mm,
        measurement_disagrees=any(_disagreements(readings)),
        text=_words(bookmark.text for bookmark in bookmarks),
        possibly_noisy=any(bookmark.possibly_noisy for bookmark in bookmarks),
        note=_words(sorted(notes)),
        **{name: _first_stated(bookmarks, name) for name in _FIRST_STATED},
    )


def _disagreements(readings: Iterable[Reading]) -> Iterator[bool]:
    for reading in readings:
        long_mm, short_mm = reading.diameters_mm
        yield disagrees(reading.stated_long_mm, long_mm)
        yield disagrees(reading.stated_short_mm, short_mm)


def _first_stated(bookmarks: Sequence[Bookmark], name: str):  # type: ignore[no-untyped-def]  # as many types as fields
    return next((value for bookmark in bookmarks if (value := getattr(bookmark, name)) is not None), None)


def _words(texts: Iterable[str | None]) -> str | None:
    """Different texts, in order, as one."""
    return "; ".join(dict.fromkeys(text.strip() for text in texts if text and text.strip())) or None
