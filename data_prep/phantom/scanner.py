"""The scanner: a patient on one day -> a CT series in HU, with what is truly there on every slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from data_prep import frames, recist
from data_prep.phantom import tubes
from data_prep.phantom.anatomy import (
    PHASES,
    Anatomy,
    Phase,
    draw_body,
    draw_heart,
    draw_skeleton,
    draw_upper_abdomen,
)
from data_prep.phantom.lesions import TrueLesion, true_outline_px
from data_prep.phantom.shapes import Canvas, Point, Pose, Volume

MATRIX = 256
"""Columns and rows of every slice."""

SUB_SLICE_MM = 2.5
"""Slices are averages of planes this far apart, which gives thick ones their partial volume."""

ORIENTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""ImageOrientationPatient of every slice: rows to the patient's left, columns to the back."""

HU_RANGE = (-1024, 3071)
"""What 12 stored bits hold with an intercept of -1024."""


@dataclass(frozen=True)
class Protocol:
    """How one series is acquired. ``first_z_mm`` is the scanner z of the lowest slice's centre."""

    spacing_mm: float  # of columns and of rows
    slice_mm: float  # thickness and interval
    slices: int
    first_z_mm: float
    noise_hu: float
    kernel_px: float  # blur of the noise: its grain
    phase: Phase
    pose: Pose

    @property
    def x_mm(self) -> npt.NDArray[np.float64]:
        """(MATRIX,) scanner x of the column centres; the rows' y are the same numbers."""
        out: npt.NDArray[np.float64] = (np.arange(MATRIX, dtype=np.float64) - (MATRIX - 1) / 2) * self.spacing_mm
        return out

    @property
    def affine(self) -> frames.Array:
        """(4, 4) voxel indices (column, row, slice) -> LPS mm."""
        corner = float(self.x_mm[0])
        return frames.dicom_affine(
            (corner, corner, self.first_z_mm),
            ORIENTATION,
            (self.spacing_mm, self.spacing_mm),
            (0.0, 0.0, self.slice_mm),
        )


@dataclass
class Seen:
    """A true lesion on one slice: its outline and RECIST axes there, px; ``diameters_mm`` is (long, short)."""

    lesion: TrueLesion
    recist_px: npt.NDArray[np.float64]
    outline_px: npt.NDArray[np.float64]
    diameters_mm: tuple[float, float]


@dataclass
class Scan:
    """A series: ``hu`` (slices, rows, columns) int16, sorted towards +S, and the truth by slice and lesion number."""

    protocol: Protocol
    hu: npt.NDArray[np.int16]
    seen: dict[int, dict[int, Seen]] = field(default_factory=dict)

    def key_slice(self, number: int) -> int | None:
        """Where the lesion's long diameter is greatest; None where that is at an end of the series or nowhere."""
        at = [i for i, found in sorted(self.seen.items()) if number in found]
        if not at:
            return None
        key = max(at, key=lambda i: self.seen[i][number].diameters_mm[0])
        return key if 0 < key < len(self.hu) - 1 else None


def sample_protocol(rng: np.random.Generator, body: Anatomy, thick: bool, centre_z_mm: float) -> Protocol:
    """An acquisition around the body-frame height ``centre_z_mm``: 200 mm of thick or 100 mm of thin slices."""
    slice_mm, slices = (5.0, 40) if thick else (2.5, 40)
    table_z = round(float(rng.uniform(-900, -300)), 1)
    pose = Pose((float(rng.uniform(-7, 7)), float(rng.uniform(-7, 7)), table_z), math.radians(rng.uniform(-3, 3)))
    centre = centre_z_mm + (0.0 if thick else rng.uniform(-20, 20))
    return Protocol(
        spacing_mm=round((2 * body.half_width + rng.uniform(26, 56)) / MATRIX, 4),
        slice_mm=slice_mm,
        slices=slices,
        first_z_mm=round(centre + table_z - slice_mm * (slices - 1) / 2, 1),
        noise_hu=float(rng.uniform(13.2, 16.5) if thick else rng.uniform(14.5, 19.0)),
        kernel_px=float(rng.uniform(0.45, 0.75)),
        phase=PHASES[int(rng.integers(len(PHASES)))],
        pose=pose,
    )


def draw_patient(canvas: Canvas, body: Anatomy, phase: Phase) -> None:
    """Everything but the lesions."""
    cavity, above = draw_body(canvas, body, phase)
    tubes.draw_lung_vessels(canvas, body, phase)
    draw_heart(canvas, body, phase)
    draw_upper_abdomen(canvas, body, phase, cavity, above)
    tubes.draw_bowel(canvas, body, phase)
    draw_skeleton(canvas, body, cavity)
    tubes.draw_abdominal_vessels(canvas, body, phase)
    tubes.draw_great_vessels(canvas, body, phase)
    tubes.draw_small_things(canvas, body, phase)


def plan_canvas(body: Anatomy, levels_z_mm: Sequence[float]) -> Canvas:
    """The lesion-free patient at the given heights on a 3 mm grid, to place lesions by."""
    x = np.arange(-body.half_width - 6, body.half_width + 6, 3.0)
    y = np.arange(-body.half_depth - 6, body.half_depth + 6, 3.0)
    canvas = Canvas(x, y, np.asarray(levels_z_mm, dtype=np.float64), Pose((0.0, 0.0, 0.0), 0.0), body.warp)
    draw_patient(canvas, body, PHASES[-1])
    return canvas


def scan(
    rng: np.random.Generator,
    body: Anatomy,
    lesions: Sequence[TrueLesion],
    date: int,
    protocol: Protocol,
    *,
    noise: bool = True,
) -> Scan:
    """Acquire a series.

    Args:
        lesions: all of the patient's.
        date: 0 or 1, for the lesions' sizes.
        noise: False gives the same anatomy without noise, for tests.
    """
    parts = round(protocol.slice_mm / SUB_SLICE_MM)
    planes = (
        np.arange(protocol.slices * parts, dtype=np.float64) - (parts - 1) / 2
    ) * SUB_SLICE_MM + protocol.first_z_mm
    across = protocol.x_mm
    # Only the rows that the body can reach are drawn; the rest is air.
    reach = body.half_depth + 26
    middle = protocol.pose.shift_mm[1]
    first, last = np.searchsorted(across, (middle - reach, middle + reach))
    canvas = Canvas(across, across[first:last], planes, protocol.pose, body.warp)
    draw_patient(canvas, body, protocol.phase)
    seen: dict[int, dict[int, Seen]] = {}
    for lesion in lesions:
        for index, found in _draw_lesion(canvas, lesion, date, parts, int(first), protocol.spacing_mm):
            seen.setdefault(index, {})[lesion.number] = found

    hu = np.full((protocol.slices, MATRIX, MATRIX), -1000.0, np.float32)
    drawn = canvas.hu.reshape(protocol.slices, parts, *canvas.hu.shape[1:])
    hu[:, first:last] = drawn[:, 0] if parts == 1 else drawn.mean(axis=1)
    if noise:
        hu += correlated_noise(rng, hu.shape, protocol.noise_hu, protocol.kernel_px)
    return Scan(protocol, np.clip(np.rint(hu), *HU_RANGE).astype(np.int16), seen)


def correlated_noise(rng: np.random.Generator, shape: tuple[int, ...], sd: float, kernel_px: float) -> Volume:
    """Gaussian noise blurred in plane by a reconstruction kernel (sigma in px), scaled back to ``sd`` HU."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    out: Volume = ndimage.gaussian_filter(noise, (0, kernel_px, kernel_px), mode="wrap", truncate=3.0)
    # The blur takes away the same part of the variance everywhere, as the edges wrap.
    out *= np.float32(sd) / out.std(dtype=np.float64).astype(np.float32)
    return out


def _draw_lesion(
    canvas: Canvas, lesion: TrueLesion, date: int, parts: int, first_row: int, spacing_mm: float
) -> list[tuple[int, Seen]]:
    painted = lesion.draw(canvas, date)
    if painted is None:
        return []
    window, cover = painted
    planes, rows, columns = window.index
    first = planes.start // parts
    count = -(-planes.stop // parts) - first
    whole = np.zeros((count * parts, *cover.shape[1:]), np.float32)
    start = planes.start - first * parts
    whole[start : start + len(cover)] = cover
    by_slice = whole.reshape(count, parts, *cover.shape[1:]).mean(axis=1)
    spacing = (spacing_mm, spacing_mm)
    out = []
    for i, plane in enumerate(by_slice):
        outline = true_outline_px(plane, spacing)
        if outline is None:
            continue
        outline = outline + np.array([columns.start, rows.start + first_row])
        axes = recist.diameters(outline, spacing)
        long_mm, short_mm = (float(np.hypot(*(axes[k + 1] - axes[k]))) * spacing_mm for k in (0, 2))
        out.append((first + i, Seen(lesion, axes, outline, (long_mm, short_mm))))
    return out


def body_position(protocol: Protocol, body: Anatomy, x_px: float, y_px: float, index: int) -> Point:
    """Relative place in the body, as DeepLesion's Normalized_lesion_location: each 0..1.

    0 is the patient's right, the front and the top of the head; the height assumes a trunk of usual length, in which
    the dome of the diaphragm lies at 0.55.
    """
    point_lps_mm = frames.px_to_lps([[x_px, y_px, index + 0.5]], protocol.affine)[0]
    x, y, z = point_lps_mm - protocol.pose.shift_mm
    return (
        float(np.clip(0.5 + 0.5 * x / body.half_width, 0, 1)),
        float(np.clip(0.5 + 0.5 * y / body.half_depth, 0, 1)),
        float(np.clip(0.55 - z / 1000.0, 0, 1)),
    )
