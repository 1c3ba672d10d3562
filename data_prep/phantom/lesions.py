"""Lesions: where a patient has them, and how they are drawn.

A lesion is a solid in the body frame with a lumpy outline, the same at both dates but for its size. Its truth on a
slice is the outline where it covers half a voxel, taken from the same cover that blends it into the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import find_contours

from data_prep import frames
from data_prep.phantom.anatomy import Anatomy
from data_prep.phantom.kinds import KINDS, Kind
from data_prep.phantom.shapes import Canvas, Point, Volume, Window

SHORT_AXIS_RATIO = (0.60, 0.88)
"""Of a solid's two radii in plane. A rounder lesion has no long axis that two readings would agree on."""

LOG_SIZE_SD = 0.36
"""Standard deviation of the log of the long diameter within a kind."""


@dataclass(frozen=True)
class TrueLesion:
    """One lesion of one patient; body-frame mm."""

    number: int  # 1-based within the patient
    level: int  # which of the patient's levels it lies at
    kind: Kind
    centre: Point
    radii: Point
    turn_rad: float
    hu: float  # contrast to the host, or the lesion's own level
    rim_hu: float  # 0: none
    waves: npt.NDArray[np.float64]  # (K, 5): direction (3), phase, amplitude
    sizes: tuple[float, float]  # scale at each date; 0: not there (yet, or any more)

    def draw(self, canvas: Canvas, date: int) -> tuple[Window, Volume] | None:
        """Paint the lesion as it is at ``date`` (0 or 1).

        Returns:
            where, and the covered fraction of each voxel there; None where it is not on the canvas.
        """
        scale = self.sizes[date]
        if scale <= 0:
            return None
        reach = 1.4 * scale * max(self.radii) + 4
        w = canvas.window(self.centre, (reach, reach, reach))
        if w is None:
            return None
        distance = self.distance(w, scale)
        if self.kind.contrast_hu is None:
            value: float = self.hu
        else:
            labels = canvas.label[w.index]
            host = np.isin(labels, self.kind.hosts) & (distance < 5)
            if not host.any():
                return None
            value = float(np.median(canvas.hu[w.index][host])) + self.hu
        fill: float | Volume = value
        if self.rim_hu:
            depth = np.clip(-distance / np.float32(0.45 * scale * min(self.radii)), 0, 1)
            fill = value + np.float32(self.rim_hu) * (np.float32(0.5) - depth)
        only = (*self.kind.hosts, *self.kind.over)
        return w, canvas.paint(w, distance, fill, edge_mm=self.kind.edge_mm, only=only)

    def distance(self, w: Window, scale: float) -> Volume:
        """Signed distance (mm, approximate) to the lumpy outline, negative inside."""
        c, s = np.float32(math.cos(self.turn_rad)), np.float32(math.sin(self.turn_rad))
        x, y, z = (a - np.float32(b) for a, b in zip((w.x, w.y, w.z), self.centre, strict=True))
        u, v = (c * x + s * y) / np.float32(self.radii[0]), (c * y - s * x) / np.float32(self.radii[1])
        t = z / np.float32(self.radii[2])
        rho = np.sqrt(u * u + v * v + t * t) + np.float32(1e-6)
        lump = np.zeros_like(rho)
        for a, b, d, phase, amplitude in self.waves.astype(np.float32):
            lump += amplitude * np.sin((a * u + b * v + d * t) / rho + phase)
        out: Volume = (rho / np.float32(scale) - 1 - lump) * np.float32(scale * min(self.radii))
        return out


def sample_lesion(
    rng: np.random.Generator, number: int, level: int, kind: Kind, centre: Point, long_mm: float, room_mm: float
) -> TrueLesion:
    """A lesion of ``kind`` at ``centre`` whose long diameter is about ``long_mm`` when its scale is 1.

    ``room_mm`` is the distance from the centre to the end of the host organ.
    """
    ratio = rng.uniform(*SHORT_AXIS_RATIO)
    a = long_mm / 2
    radii = (a, max(a * ratio, 3.0), max(a * rng.uniform(0.75, 1.15), 4.0))
    frequency = rng.uniform(2.0, 5.0, 5)
    waves = np.column_stack(
        [
            rng.normal(size=(5, 3)) * frequency[:, None] / math.sqrt(3),
            rng.uniform(0, 2 * math.pi, 5),
            rng.uniform(0.2, 1.0, 5) * kind.lumps / np.sqrt(frequency),
        ]
    )
    hu = float(rng.uniform(*kind.range_hu))
    rim = 14.0 if kind.rim and rng.random() < kind.rim else 0.0
    growth = float(np.exp(rng.normal(0.05, 0.28)))
    draw = rng.random()
    _, least_mm, greatest_mm = kind.long_mm
    # Not larger than the organ's room, and still a lesion of its kind at the other date.
    largest = min(1.5, max(1.0, room_mm / a), greatest_mm / long_mm)
    second = float(np.clip(growth, min(max(0.6, least_mm / long_mm), largest), largest))
    sizes = (1.0, second) if draw < 0.8 else (0.0, 1.0) if draw < 0.93 else (1.0, 0.0)
    return TrueLesion(number, level, kind, centre, radii, float(rng.uniform(0, math.pi)), hu, rim, waves, sizes)


def place_lesions(
    rng: np.random.Generator, body: Anatomy, plan: Canvas, levels_z_mm: Sequence[float], counts: Sequence[int]
) -> list[TrueLesion]:
    """Scatter lesions over the levels at which key slices will lie.

    Args:
        plan: the lesion-free patient, upright (identity pose), drawn at the z of every level, any x and y step.
        levels_z_mm: body-frame height of each level, ascending (the plan's planes).
        counts: how many lesions to put at each level.
    """
    step = float(plan.axes_mm[0][1] - plan.axes_mm[0][0])
    out: list[TrueLesion] = []
    for plane, (level, count) in enumerate(zip(levels_z_mm, counts, strict=True)):
        labels = plan.label[plane]
        rooms = {kind.name: _room_mm(labels, kind, step) for kind in KINDS}
        placed: list[TrueLesion] = []
        for _ in range(60):
            if len(placed) == count:
                break
            there = [lesion.kind for lesion in placed]
            # Two of a kind at one level happen, but less often.
            weights = np.array([k.weight * (0.35 if k in there else 1.0) * bool(rooms[k.name].any()) for k in KINDS])
            kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
            median_mm, least_mm, greatest_mm = kind.long_mm
            long_mm = float(np.clip(median_mm * np.exp(rng.normal(0, LOG_SIZE_SD)), least_mm, greatest_mm))
            found = _find_place(rng, body, plan, plane, rooms[kind.name], kind, long_mm, out + placed)
            if found is None:
                continue
            x, y, room = found
            z = level + rng.uniform(-0.2, 0.2) * long_mm / 2
            number = len(out) + len(placed) + 1
            placed.append(sample_lesion(rng, number, plane, kind, (x, y, z), long_mm, room))
        out += placed
    return out


def _room_mm(labels: npt.NDArray[np.uint8], kind: Kind, step_mm: float) -> npt.NDArray[np.float64]:
    """Distance (mm) from each pixel of the host to where the host ends; 0 outside it."""
    out: npt.NDArray[np.float64] = ndimage.distance_transform_edt(np.isin(labels, kind.hosts)) * step_mm
    return out


def _find_place(
    rng: np.random.Generator,
    body: Anatomy,
    plan: Canvas,
    plane: int,
    room: npt.NDArray[np.float64],
    kind: Kind,
    long_mm: float,
    others: Sequence[TrueLesion],
) -> tuple[float, float, float] | None:
    """A body-frame (x, y) in the plane where the lesion fits, and the room there (mm)."""
    x, y, z = (axis[plane] for axis in (plan.x, plan.y, plan.z))
    fits = room > max(kind.depth * long_mm / 2, 0.1)
    if kind.name == "abdominal node":
        # Along the great vessels and in the root of the mesentery, before the spine.
        fits &= (np.abs(x) < 62) & (y > -50) & (z < -40)
    elif kind.name == "mediastinal node":
        fits &= (np.abs(x) < 45) & (y < body.spine_y - 14) & (z > 14)
    elif kind.name == "muscle metastasis":
        fits &= (y > body.spine_y - 20) & (np.abs(x) > 18)
    elif kind.name == "solid lung nodule" or kind.name == "ground-glass nodule":
        fits &= np.abs(x) > 45
    candidates = np.argwhere(fits)
    if not len(candidates):
        return None
    for row, column in candidates[rng.integers(len(candidates), size=12)]:
        here = np.array([x[row, column], y[row, column], z[row, column]])
        apart = [np.linalg.norm(here - other.centre) - 0.75 * (long_mm + 2 * max(other.radii)) for other in others]
        if not apart or min(apart) > 10:
            return float(here[0]), float(here[1]), float(room[row, column])
    return None


def true_outline_px(
    cover: npt.NDArray[np.float32], spacing_mm: tuple[float, float], least_mm: float = 5.0
) -> npt.NDArray[np.float64] | None:
    """Outline of a lesion on one slice.

    Args:
        cover: (rows, columns) covered fraction of each pixel.
        spacing_mm: (x step, y step).
        least_mm: a smaller extent counts as not visible.

    Returns:
        (N, 2) outline at half cover in px, or None where the lesion is not visible on this slice.
    """
    if cover.max(initial=0.0) <= 0.5:
        return None
    contours = find_contours(np.pad(cover, 1), 0.5)
    longest = max(contours, key=len)
    # find_contours gives (row, column) indices of pixel centres; one row and column were padded.
    outline = frames.index_to_px(longest[:, ::-1] - 1.0)
    extent = (outline.max(axis=0) - outline.min(axis=0)) * np.asarray(spacing_mm)
    return outline if float(extent.max()) >= least_mm else None
