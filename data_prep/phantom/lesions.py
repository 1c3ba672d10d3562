"""Lesions: what kinds there are, where they may lie, and how they are drawn.

A lesion is a solid in the body frame with a lumpy outline, the same at both dates but for its size. Its truth on a
slice is the outline where it covers half a voxel, taken from the same cover that blends it into the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import find_contours

from data_prep import frames
from data_prep.phantom.anatomy import Anatomy, Organ
from data_prep.phantom.shapes import Canvas, Point, Volume, Window


@dataclass(frozen=True)
class Kind:
    """One kind of lesion.

    ``contrast_hu`` is the range of the difference from the host organ; None where the lesion lies in fat, lung or
    bone and ``level_hu`` gives its own attenuation instead. ``coarse_type`` is DeepLesion's code
    (:data:`data_prep.lesion.COARSE_TYPES`).
    """

    name: str
    coarse_type: int
    hosts: tuple[Organ, ...]
    weight: float
    median_mm: float  # of the long diameter
    least_mm: float
    greatest_mm: float
    depth: float  # how deep the centre lies in its host, in short radii
    over: tuple[Organ, ...] = ()  # what else it grows over
    contrast_hu: tuple[float, float] | None = None
    level_hu: tuple[float, float] | None = None
    edge_mm: float = 2.0
    lumps: float = 0.1  # amplitude of the outline's lumps, in radii
    rim: float = 0.0  # chance of a brighter rim


_FAT = (Organ.ABDOMINAL_FAT,)
_AROUND_LIVER = (Organ.BLOOD, Organ.GALLBLADDER, Organ.ABDOMINAL_FAT)
_CHEST = (Organ.LUNG, Organ.MUSCLE, Organ.BOWEL)
_BELLY = (Organ.ABDOMINAL_FAT, Organ.BOWEL, Organ.PANCREAS, Organ.MUSCLE, Organ.STOMACH)

KINDS: tuple[Kind, ...] = (
    Kind(
        "liver metastasis",
        4,
        (Organ.LIVER,),
        0.26,
        20,
        9,
        45,
        0.8,
        over=_AROUND_LIVER,
        contrast_hu=(-58, -24),
        edge_mm=3.0,
        rim=0.4,
    ),
    Kind(
        "solid lung nodule",
        5,
        (Organ.LUNG,),
        0.20,
        15,
        8,
        36,
        0.7,
        over=(Organ.AIRWAY,),
        level_hu=(10, 60),
        edge_mm=2.0,
        lumps=0.16,
    ),
    Kind(
        "ground-glass nodule",
        5,
        (Organ.LUNG,),
        0.05,
        18,
        11,
        32,
        0.8,
        over=(Organ.AIRWAY,),
        level_hu=(-560, -380),
        edge_mm=4.0,
    ),
    Kind(
        "mediastinal node", 3, (Organ.MEDIASTINUM,), 0.12, 20, 14, 38, 0.45, over=_CHEST, level_hu=(48, 82), edge_mm=2.0
    ),
    Kind(
        "abdominal node", 2, (Organ.ABDOMINAL_FAT,), 0.14, 22, 14, 42, 0.55, over=_BELLY, level_hu=(40, 78), edge_mm=2.0
    ),
    Kind("kidney mass", 6, (Organ.KIDNEY,), 0.14, 20, 10, 42, 0.35, over=_FAT, contrast_hu=(-60, -30), edge_mm=2.0),
    Kind(
        "lytic bone lesion",
        1,
        (Organ.VERTEBRA,),
        0.07,
        17,
        9,
        28,
        0.3,
        over=(Organ.BONE,),
        level_hu=(35, 75),
        edge_mm=2.5,
        lumps=0.15,
    ),
    Kind("spleen lesion", 2, (Organ.SPLEEN,), 0.08, 18, 9, 36, 0.7, over=_FAT, contrast_hu=(-58, -26), edge_mm=3.0),
    Kind("adrenal mass", 2, (Organ.ADRENAL,), 0.05, 24, 15, 44, 0.0, over=_BELLY, level_hu=(25, 60), edge_mm=2.0),
    Kind(
        "muscle metastasis",
        7,
        (Organ.MUSCLE,),
        0.05,
        19,
        10,
        34,
        0.75,
        over=(Organ.ABDOMINAL_FAT, Organ.SUBCUTANEOUS_FAT),
        contrast_hu=(-50, -28),
        edge_mm=3.0,
        rim=0.5,
    ),
    Kind(
        "subcutaneous nodule",
        7,
        (Organ.SUBCUTANEOUS_FAT,),
        0.03,
        14,
        9,
        26,
        0.5,
        over=(Organ.MUSCLE, Organ.SKIN),
        level_hu=(35, 70),
    ),
)

SHORT_AXIS_RATIO = (0.66, 0.98)


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
            rng.uniform(0.2, 1.0, 5) * kind.lumps * 2 / np.sqrt(frequency) / 2,
        ]
    )
    spread = kind.contrast_hu or kind.level_hu
    assert spread is not None
    hu = float(rng.uniform(*spread))
    rim = 14.0 if kind.rim and rng.random() < kind.rim else 0.0
    growth = float(np.exp(rng.normal(0.05, 0.28)))
    draw = rng.random()
    # Kept within the organ's room at the larger date.
    second = float(np.clip(growth, 0.6, min(1.5, max(1.0, room_mm / a), 45.0 / long_mm)))
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
        used: set[str] = set()
        placed = 0
        for _ in range(60):
            if placed == count:
                break
            # A second lesion of the same kind at the same level is likelier than not to look alike: prefer another.
            weights = np.array([k.weight * (0.35 if k.name in used else 1.0) for k in KINDS])
            kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
            spread = 0.38
            long_mm = float(np.clip(kind.median_mm * np.exp(rng.normal(0, spread)), kind.least_mm, kind.greatest_mm))
            found = _find_place(rng, body, plan, plane, rooms[kind.name], kind, long_mm, out)
            if found is None:
                continue
            x, y, room = found
            z = level + rng.uniform(-0.2, 0.2) * long_mm / 2
            out.append(sample_lesion(rng, len(out) + 1, plane, kind, (x, y, z), long_mm, room))
            used.add(kind.name)
            placed += 1
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


def by_name() -> Mapping[str, Kind]:
    """The kinds by their names."""
    return {kind.name: kind for kind in KINDS}
