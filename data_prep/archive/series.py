"""Images that belong together, sorted along the patient, with everything that is odd about them said."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from data_prep.archive.header import ImageHeader
from data_prep.bookmark import make_id
from data_prep.frames import Array

_SPACING_TOLERANCE = 0.01  # of the spacing: stored positions are rounded, as in highdicom's check of regularity
_DIRECTION_TOLERANCE = 1e-3  # of a cosine: 0.06 degrees
_FARTHEST_MM = 1e5  # a position farther from the origin than 100 m is damage
_MOST_SLICES = 20_000  # a grid with gaps longer than this is not one grid


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord(ImageHeader):
    """One image (or frame) of the index.

    ``slice_index`` is 0-based along the grid of its series sorted towards +S (for planes that +S lies in: towards +P,
    then +L); images at one position share it. ``spacing_z_mm`` is measured between positions along the normal, never
    taken from SliceThickness; None for a single image. ``series_key`` names the :class:`SeriesReport` it is in.
    """

    path: Path
    series_key: str = ""
    slice_index: int = 0
    spacing_z_mm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesReport:
    """Images of one series with one geometry, and what is wrong with them.

    ``records`` are ordered by ``slice_index``, then as acquired. ``problems`` are plain sentences without UIDs, names
    or paths. A series whose images differ in size, spacing or orientation, or that holds several acquisitions of the
    same places, is several reports with the same ``series_uid``.
    """

    key: str
    series_uid: str | None
    study_uid: str | None
    patient_id: str | None
    modality: str | None
    spacing_z_mm: float | None
    records: tuple[ImageRecord, ...]
    problems: tuple[str, ...]


def group_series(headers: Iterable[tuple[str, ImageHeader]], folder: Path) -> list[SeriesReport]:
    """Sort the images of an archive into series.

    Images without SeriesInstanceUID are grouped by the folder they lie in. Patient and study are part of what makes a
    series, so that UIDs used twice (badly anonymised archives) mix no patients.

    Args:
        headers: (path below ``folder``, header) of each frame.
        folder: the archive.
    """
    groups: dict[tuple[str, ...], list[tuple[str, ImageHeader]]] = defaultdict(list)
    for path, header in headers:
        place = "" if header.series_uid else Path(path).parent.as_posix()
        stated = (header.patient_id, header.study_uid, header.series_uid, header.modality)
        groups[place, *(value or "" for value in stated)].append((path, header))
    reports = []
    for key, members in sorted(groups.items()):
        members.sort(key=lambda item: (item[0], item[1].frame_number))
        members, repeated = _without_repeats(members)
        stacks = [part for stack in _by_geometry(members) for part in _by_acquisition(stack)]
        common = []
        if repeated:
            common.append(f"{repeated} file(s) repeat an instance that is already there; the first by path is used")
        if not members[0][1].series_uid:
            common.append("no SeriesInstanceUID: grouped by folder")
        if len(stacks) > 1:
            common.append(
                f"the series mixes sizes, spacings, orientations or acquisitions: kept apart as {len(stacks)} parts"
            )
        for number, stack in enumerate(stacks):
            reports.append(_report(make_id(*key, number), stack, common, folder))
    return reports


def _without_repeats(members: list[tuple[str, ImageHeader]]) -> tuple[list[tuple[str, ImageHeader]], int]:
    seen, kept = set(), []
    for path, header in members:
        instance = (header.sop_instance_uid or path, header.frame_number)
        if instance not in seen:
            seen.add(instance)
            kept.append((path, header))
    return kept, len(members) - len(kept)


def _by_geometry(members: list[tuple[str, ImageHeader]]) -> list[list[tuple[str, ImageHeader]]]:
    """Parts with one size, spacing and orientation, in the order of their first image."""
    parts: list[list[tuple[str, ImageHeader]]] = []
    for path, header in members:
        part = next((part for part in parts if _same_geometry(part[0][1], header)), None)
        if part is None:
            parts.append([(path, header)])
        else:
            part.append((path, header))
    return parts


def _same_geometry(a: ImageHeader, b: ImageHeader) -> bool:
    def close(left: Sequence[float | None] | None, right: Sequence[float | None] | None, tolerance: float) -> bool:
        if left is None or right is None or None in left or None in right:
            return left == right
        return bool(np.allclose(np.array(left, float), np.array(right, float), rtol=0, atol=tolerance))

    return (
        (a.rows, a.columns, a.frame_of_reference_uid) == (b.rows, b.columns, b.frame_of_reference_uid)
        and close((a.spacing_x_mm, a.spacing_y_mm), (b.spacing_x_mm, b.spacing_y_mm), 1e-4)
        and close(a.orientation, b.orientation, _DIRECTION_TOLERANCE)
        and (a.position_lps_mm is None) == (b.position_lps_mm is None)
    )


def _by_acquisition(stack: list[tuple[str, ImageHeader]]) -> list[list[tuple[str, ImageHeader]]]:
    """Phases of the same anatomy kept apart: where positions repeat, by acquisition number, if that settles it."""
    if not _repeats_positions(stack):
        return [stack]
    parts: dict[str, list[tuple[str, ImageHeader]]] = defaultdict(list)
    for path, header in stack:
        parts[header.acquisition or ""].append((path, header))
    if any(_repeats_positions(part) for part in parts.values()):
        return [stack]
    return [part for _, part in sorted(parts.items())]


def _repeats_positions(stack: list[tuple[str, ImageHeader]]) -> bool:
    along = positions_along_normal([header for _, header in stack])
    return along is not None and bool((np.diff(np.sort(along)) < 1e-3).any())


def positions_along_normal(headers: Sequence[ImageHeader]) -> Array | None:
    """(N,) mm along the common normal, growing towards +S; None where a position or the orientation is missing."""
    orientation = headers[0].orientation
    positions = [header.position_lps_mm for header in headers]
    if orientation is None or any(position is None for position in positions):
        return None
    placed = np.array(positions, dtype=np.float64)
    return placed @ _normal(orientation) if np.abs(placed).max() < _FARTHEST_MM else None


def _normal(orientation: Sequence[float]) -> Array:
    """The unit normal of a plane that points to +S; for planes that contain that axis, to +P, then +L."""
    normal = np.cross(orientation[:3], orientation[3:])
    leading = next(component for component in normal[::-1] if abs(component) > _DIRECTION_TOLERANCE)
    unit: Array = normal * (math.copysign(1.0, leading) / np.linalg.norm(normal))
    return unit


def _report(key: str, stack: list[tuple[str, ImageHeader]], common: list[str], folder: Path) -> SeriesReport:
    headers = [header for _, header in stack]
    problems = list(common)
    along = positions_along_normal(headers)
    numbers = [header.instance_number for header in headers]
    if along is None:
        problems.append("no position or orientation: sorted by instance number, distances between slices unknown")
        by_number = sorted(range(len(stack)), key=lambda i: (numbers[i] is None, numbers[i] or 0, stack[i][0]))
        order, index, spacing = by_number, list(range(len(stack))), None
    else:
        order = sorted(range(len(stack)), key=lambda i: (round(float(along[i]), 3), numbers[i] or 0, stack[i][0]))
        index, spacing = _grid(along[order], problems)
        _check_tilt(np.array([headers[i].position_lps_mm for i in order], dtype=np.float64), headers[0], problems)
    if any(abs(header.gantry_tilt_deg or 0.0) > 0.01 for header in headers):
        problems.append("the gantry was tilted: slices are left as they were acquired")
    if headers[0].spacing_x_mm is None:
        problems.append("no PixelSpacing: millimetres are unknown")
    records = tuple(
        ImageRecord(
            **{field.name: getattr(headers[i], field.name) for field in fields(ImageHeader)},
            path=folder / stack[i][0],
            series_key=key,
            slice_index=slice_index,
            spacing_z_mm=spacing,
        )
        for i, slice_index in zip(order, index, strict=True)
    )
    first = headers[0]
    return SeriesReport(
        key=key,
        series_uid=first.series_uid,
        study_uid=first.study_uid,
        patient_id=first.patient_id,
        modality=first.modality,
        spacing_z_mm=spacing,
        records=records,
        problems=tuple(problems),
    )


def _grid(along: Array, problems: list[str]) -> tuple[list[int], float | None]:
    """Slice indices and spacing of sorted positions; a regular grid with gaps keeps the gaps as unused indices."""
    steps = np.diff(along)
    apart = steps >= 1e-3
    if not apart.all():
        problems.append(f"{int((~apart).sum())} image(s) at a position that another image has: duplicate slices")
    if not apart.any():
        return [0] * len(along), None
    # The lower of two middle steps is a real one; their mean, where half the slices are missing, is not.
    spacing = float(np.quantile(steps[apart], 0.5, method="lower"))
    multiples = steps / spacing
    whole = np.rint(multiples)
    allowed = _SPACING_TOLERANCE * np.maximum(whole, 1.0) + 0.01 / spacing
    if whole.sum() < _MOST_SLICES and (abs(multiples - whole) <= allowed).all():
        missing = int((whole[apart] - 1).sum())
        if missing:
            problems.append(f"{missing} slice(s) missing: their numbers are left free")
        return [0, *np.cumsum(whole).astype(int).tolist()], float(steps.sum() / whole.sum())
    low, high = float(steps[apart].min()), float(steps[apart].max())
    problems.append(f"uneven spacing: steps of {low:.3f} to {high:.3f} mm, {spacing:.3f} in the middle")
    return [0, *np.cumsum(apart).astype(int).tolist()], spacing


def _check_tilt(positions: Array, header: ImageHeader, problems: list[str]) -> None:
    """Say where slices are shifted against each other within their plane: a tilted gantry or a moved table."""
    if header.orientation is None or len(positions) < 2:
        return
    normal = _normal(header.orientation)
    in_plane = positions - np.outer(positions @ normal, normal)
    shift = np.linalg.norm(np.diff(in_plane, axis=0), axis=1)
    if (shift > 0.1).any():
        problems.append(f"slices are shifted within their plane by up to {shift.max():.2f} mm from one to the next")


def frame_of(record: ImageRecord, frame_number: int) -> ImageRecord:
    """``record`` of a multi-frame image without functional groups, for one of its frames."""
    return record if record.frame_number == frame_number else replace(record, frame_number=frame_number)
