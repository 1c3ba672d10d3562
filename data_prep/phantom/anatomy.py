"""A patient's trunk: body wall, skeleton and organs, drawn in the body frame of :mod:`data_prep.phantom.shapes`.

Sizes are those of adults as anatomy books give them, varied by a few per cent a patient; attenuations are the usual
ones of CT in HU. Tubes (vessels, airways, bowel) are in :mod:`data_prep.phantom.tubes`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from data_prep.phantom.shapes import (
    Canvas,
    Point,
    Points,
    Volume,
    Warp,
    Window,
    ellipse_column,
    ellipsoid,
    smooth_union,
)

VERTEBRA_PITCH_MM = 31.0
"""From one vertebra to the next, disc included."""

RIB_PITCH_MM = 27.0


class Organ(IntEnum):
    """Codes of the canvas's label volume."""

    AIR = 0
    SKIN = 1
    SUBCUTANEOUS_FAT = 2
    MUSCLE = 3
    ABDOMINAL_FAT = 4
    MEDIASTINUM = 5
    LUNG = 6
    AIRWAY = 7
    BLOOD = 8
    HEART = 9
    LIVER = 10
    SPLEEN = 11
    KIDNEY = 12
    STOMACH = 13
    BOWEL = 14
    PANCREAS = 15
    ADRENAL = 16
    VERTEBRA = 17
    BONE = 18
    CANAL = 19
    GALLBLADDER = 20


@dataclass(frozen=True)
class Phase:
    """Attenuation (HU) of what takes up contrast medium, for one scan."""

    name: str
    artery: float
    vein: float
    portal: float
    liver: float
    spleen: float
    kidney: float
    soft: float  # bowel wall, pancreas, nodes, muscle: added to their own


PHASES = (
    Phase("native", 42, 42, 42, 58, 50, 36, 0),
    Phase("arterial", 270, 70, 110, 74, 112, 135, 8),
    Phase("portal venous", 150, 140, 165, 102, 116, 150, 14),
    Phase("portal venous", 165, 150, 175, 112, 124, 160, 16),
)


@dataclass(frozen=True)
class Anatomy:
    """The shape of one patient; body-frame mm throughout."""

    half_width: float
    half_depth: float
    fat: float  # thickness under the skin at the sides
    wall: float  # thickness of the muscle wall
    spine_y: float
    heart: Point
    heart_radii: Point
    liver_radii: Point
    left_lobe_radii: Point
    spleen: Point
    spleen_radii: Point
    stomach: Point
    stomach_radii: Point
    kidneys: tuple[Point, Point]
    kidney_radii: Point
    dome_left_z: float
    vertebra_phase: float
    rib_phase: float
    tube_seed: int
    warp: Warp

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Anatomy:
        """A random adult."""
        half_width, half_depth = rng.uniform(150, 172), rng.uniform(104, 124)
        spine_y = half_depth * rng.uniform(0.44, 0.5)
        u = rng.uniform

        def near(x: float, y: float, z: float, by: float = 5.0) -> Point:
            dx, dy, dz = rng.uniform(-by, by, 3)
            return (x + dx, y + dy, z + dz)

        def size(x: float, y: float, z: float, by: float = 0.1) -> Point:
            fx, fy, fz = rng.uniform(1 - by, 1 + by, 3)
            return (x * fx, y * fy, z * fz)

        wide = half_width / 160
        kidney_y = spine_y - u(4, 10)
        return cls(
            half_width=half_width,
            half_depth=half_depth,
            fat=u(9, 24),
            wall=u(13, 18),
            spine_y=spine_y,
            heart=near(18, -18, 32),
            heart_radii=size(50, 42, 46),
            liver_radii=size(78 * wide, 82, 92),
            left_lobe_radii=size(62 * wide, 36, 46, 0.2),
            spleen=near(88 * wide, 30, -52),
            spleen_radii=size(30, 42, 50, 0.15),
            stomach=near(52 * wide, -24, -50),
            stomach_radii=size(40, 36, 50, 0.15),
            kidneys=(near(-60 * wide, kidney_y, -122), near(62 * wide, kidney_y, -112)),
            kidney_radii=size(27, 29, 55),
            dome_left_z=u(-18, -4),
            vertebra_phase=u(0, VERTEBRA_PITCH_MM),
            rib_phase=u(0, RIB_PITCH_MM),
            tube_seed=int(rng.integers(2**32)),
            warp=Warp(rng),
        )

    def adrenals(self) -> tuple[Point, Point]:
        """Where the two glands lie: above and before the kidneys."""
        (rx, ry, _), (lx, ly, _) = self.kidneys
        return ((rx + 26, ry - 22, -66.0), (lx - 26, ly - 22, -62.0))

    def diaphragm_height(self, x: Volume, y: Volume) -> Volume:
        """Height of the diaphragm above each (x, y), body-frame z in mm: two domes that fall towards the wall."""
        across = np.float32(0.55 * self.half_width)
        along = np.float32(0.8 * self.half_depth)
        y2 = ((y + 8) / along) ** 2
        right = -70 * (((x + across) / across) ** 2 + y2)
        left = self.dome_left_z - 70 * (((x - across) / across) ** 2 + y2)
        out: Volume = np.maximum(right, left)
        return out


def draw_body(canvas: Canvas, body: Anatomy, phase: Phase) -> tuple[Volume, Volume]:
    """Skin, fat, muscle wall and what fills the cavity.

    Returns:
        signed distance (mm) to the cavity's wall, and height (mm) above the diaphragm, both for every voxel.
    """
    outline = ellipse_column(canvas.everything(), (0.0, 0.0), (body.half_width, body.half_depth))
    trunk = Points(canvas, outline < 2.0)
    outline = trunk.take(outline)
    trunk.paint(outline, 25.0, Organ.SKIN, edge_mm=2.4)
    trunk.paint(outline + 2.0, -104.0, Organ.SUBCUTANEOUS_FAT)
    # More fat at the flanks and behind than in front.
    under = outline + np.float32(body.fat) * (1 + np.float32(0.25 / body.half_depth) * trunk.y)
    trunk.paint(under, 52.0 + phase.soft, Organ.MUSCLE)
    cavity = under + np.float32(body.wall)
    trunk.paint(cavity, -98.0, Organ.ABDOMINAL_FAT)
    trunk.put_back()
    wall_distance = trunk.spread(cavity, 99.0)

    hollow = Points(canvas, wall_distance < 2.0)
    cavity = hollow.take(wall_distance)
    above = hollow.z - body.diaphragm_height(hollow.x, hollow.y)
    # The muscle of the diaphragm itself, then the chest.
    hollow.paint(np.maximum(cavity, -above - 3), 45.0 + phase.soft, Organ.MUSCLE, edge_mm=2.0)
    chest = np.maximum(cavity, -above)
    hollow.paint(chest, -82.0, Organ.MEDIASTINUM, edge_mm=2.0)
    middle = np.hypot((hollow.x - 4) / 40, (hollow.y - 6) / np.float32(0.92 * body.half_depth))
    # Lungs, a little denser where they hang (gravity).
    lung = np.maximum(chest + np.float32(1.5), (1 - middle) * 40)
    hollow.paint(lung, -862.0 + np.float32(0.35) * hollow.y, Organ.LUNG, edge_mm=2.0)
    hollow.put_back()
    return wall_distance, hollow.spread(above, -99.0)


def draw_heart(canvas: Canvas, body: Anatomy, phase: Phase) -> None:
    """Myocardium and two chambers, tilted to the left."""
    w = canvas.window(body.heart, _reach(body.heart_radii))
    if w is None:
        return
    turn = math.radians(35)
    rx, ry, rz = body.heart_radii
    x, y, z = body.heart
    # The lungs end at the heart: it is painted over them with a rim of fat.
    whole = ellipsoid(w, body.heart, body.heart_radii, turn)
    canvas.paint(w, whole - 4.0, -80.0, Organ.MEDIASTINUM)
    canvas.paint(w, whole, 48.0 + 2.5 * phase.soft, Organ.HEART)
    for dx, dy, blood in ((16.0, 8.0, phase.artery), (-18.0, -8.0, phase.vein)):
        chamber = ellipsoid(w, (x + dx, y + dy, z + 4), (0.44 * rx, 0.5 * ry, 0.68 * rz), turn)
        canvas.paint(w, chamber, max(blood, 42.0), Organ.BLOOD, edge_mm=3.0)


def draw_upper_abdomen(canvas: Canvas, body: Anatomy, phase: Phase, cavity: Volume, above: Volume) -> None:
    """Liver, gallbladder, stomach, spleen, pancreas, kidneys and adrenals."""
    rng = np.random.default_rng(body.tube_seed)
    across = 0.55 * body.half_width
    right: Point = (-across + 6, -2.0, -74.0)
    w = canvas.window((-42.0, -8.0, -76.0), (112.0, 92.0, 96.0))
    if w is not None:
        liver = smooth_union(
            ellipsoid(w, right, body.liver_radii, math.radians(-12)),
            ellipsoid(w, (2.0, -44.0, -46.0), body.left_lobe_radii, math.radians(14)),
            12.0,
        )
        liver = np.maximum(np.maximum(liver, cavity[w.index] + 4), above[w.index] + 4)
        canvas.paint(w, liver, phase.liver, Organ.LIVER, edge_mm=2.0)
    _solid(canvas, (-42.0, -46.0, -104.0), (15.0, 17.0, 28.0), 12.0, Organ.GALLBLADDER)

    w = canvas.window(body.stomach, _reach(body.stomach_radii))
    if w is not None:
        wall: Volume = np.maximum(
            np.maximum(ellipsoid(w, body.stomach, body.stomach_radii, 0.5), cavity[w.index] + 4), above[w.index] + 5
        )
        free = (Organ.ABDOMINAL_FAT, Organ.MUSCLE, Organ.LIVER)
        canvas.paint(w, wall, 52.0 + 2 * phase.soft, Organ.STOMACH, only=free)
        filling = 18 + 22 * np.sin(w.x * 0.21 + rng.uniform(0, 6)) * np.sin(w.y * 0.26) * np.sin(w.z * 0.2)
        level = body.stomach[1] - rng.uniform(-8, 16)
        # Gas lies in front, as the patient lies on the back.
        content: Volume = np.where(w.y < level, -860.0, filling).astype(np.float32)
        canvas.paint(w, wall + 5.0, content, Organ.STOMACH, only=(Organ.STOMACH,))

    w = canvas.window(body.spleen, _reach(body.spleen_radii))
    if w is not None:
        spleen = np.maximum(
            np.maximum(ellipsoid(w, body.spleen, body.spleen_radii, -0.5), cavity[w.index] + 4), above[w.index] + 4
        )
        canvas.paint(w, spleen, phase.spleen, Organ.SPLEEN, only=(Organ.ABDOMINAL_FAT, Organ.MUSCLE))

    pancreas = [(-24.0, -8.0, -104.0), (4.0, -16.0, -92.0), (34.0, -2.0, -84.0), (66.0, 14.0, -76.0)]
    for start, end in itertools.pairwise(pancreas):
        middle: Point = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
        turn = math.atan2(end[1] - start[1], end[0] - start[0])
        _solid(canvas, middle, (22.0, 10.0, 13.0), 42 + 3 * phase.soft, Organ.PANCREAS, turn, only=_FAT)

    for centre, side in zip(body.kidneys, (-1.0, 1.0), strict=True):
        w = canvas.window(centre, _reach(body.kidney_radii))
        if w is None:
            continue
        kidney = ellipsoid(w, centre, body.kidney_radii, side * 0.5)
        canvas.paint(w, kidney, phase.kidney, Organ.KIDNEY)
        # The sinus opens towards the spine: fat with the collecting system in it.
        gate: Point = (centre[0] - side * 16, centre[1] - 6, centre[2])
        canvas.paint(w, ellipsoid(w, gate, (15.0, 8.0, 22.0)), -75.0, Organ.ABDOMINAL_FAT, edge_mm=3.0)
        canvas.paint(w, ellipsoid(w, gate, (9.0, 4.0, 14.0)), 10.0, edge_mm=2.0)

    for centre in body.adrenals():
        for lean in (0.5, 2.4):
            _solid(canvas, centre, (13.0, 2.6, 13.0), 40 + phase.soft, Organ.ADRENAL, lean, only=_FAT)


def draw_skeleton(canvas: Canvas, body: Anatomy, cavity: Volume) -> None:
    """Vertebrae with discs and canal, the muscles beside them, ribs and breastbone."""
    w = canvas.window((0.0, body.spine_y + 18, 0.0), (78.0, 62.0, 400.0))
    if w is not None:
        for side in (-1.0, 1.0):
            psoas = ellipsoid(w, (side * 38, body.spine_y - 2, -190.0), (19.0, 17.0, 112.0), side * 0.3)
            canvas.paint(w, psoas, 56.0, Organ.MUSCLE)
            erector = ellipse_column(w, (side * 34, body.spine_y + 36), (31.0, 21.0))
            erector = np.maximum(erector, cavity[w.index] - np.float32(body.wall + 0.4 * body.fat))
            canvas.paint(w, erector, 54.0, Organ.MUSCLE)
    _draw_vertebrae(canvas, body)
    _draw_ribs(canvas, body, cavity)
    w = canvas.window((0.0, -body.half_depth + body.fat + 8, 70.0), (24.0, 14.0, 110.0))
    if w is not None:
        sternum = ellipsoid(w, (0.0, -body.half_depth + body.fat * 0.8 + 8, 90.0), (20.0, 6.5, 100.0))
        canvas.paint(w, sternum, 320.0, Organ.BONE)
        canvas.paint(w, sternum + 2.5, 160.0, Organ.BONE)


def _draw_vertebrae(canvas: Canvas, body: Anatomy) -> None:
    y = body.spine_y

    def part(centre_y: float, radii: tuple[float, float], over_disc_mm: float) -> tuple[Window, Volume] | None:
        """An elliptic column along the spine, cut at the discs where ``over_disc_mm`` is finite."""
        w = canvas.window((0.0, centre_y, 0.0), (radii[0] + 2, radii[1] + 2, 400.0))
        if w is None:
            return None
        column = ellipse_column(w, (0.0, centre_y), radii)
        if not math.isfinite(over_disc_mm):
            return w, column
        pitch = np.float32(VERTEBRA_PITCH_MM)
        height = np.mod(w.z + np.float32(body.vertebra_phase), pitch)
        return w, np.maximum(column, np.abs(height - pitch / 2) - (pitch / 2 - np.float32(3.5 + over_disc_mm)))

    for centre_y, radii, over, value, label, only in (
        (y, (22.0, 17.0), math.inf, 78.0, Organ.BONE, ()),  # discs; the vertebrae between them follow
        (y, (22.0, 17.0), 0.0, 420.0, Organ.BONE, ()),
        (y + 27, (17.0, 15.0), 0.0, 480.0, Organ.BONE, ()),
        (y + 25, (10.5, 9.0), math.inf, 28.0, Organ.CANAL, ()),
        (y + 50, (3.8, 13.0), 4.0, 430.0, Organ.BONE, ()),
        (y + 24, (40.0, 4.5), 7.0, 400.0, Organ.BONE, (Organ.MUSCLE, Organ.ABDOMINAL_FAT)),
    ):
        found = part(centre_y, radii, over)
        if found is not None:
            canvas.paint(*found, value, label, only=only)
            if over == 0.0 and centre_y == y:
                canvas.paint(found[0], found[1] + 2.6, 185.0, Organ.VERTEBRA, edge_mm=2.2)


def _draw_ribs(canvas: Canvas, body: Anatomy, cavity: Volume) -> None:
    """A rib runs down and forward in the wall; in an axial slice it is a short oblique stroke."""
    wall = Points(canvas, np.abs(cavity - 5.0) < 6.0)
    shell = np.abs(wall.take(cavity) - 5.0) - np.float32(3.6)
    drop = wall.z - np.float32(0.55) * wall.y + np.float32(body.rib_phase)
    slant = np.abs(np.mod(drop, np.float32(RIB_PITCH_MM)) - np.float32(RIB_PITCH_MM / 2)) - 5
    reach = np.maximum(-60 - wall.z - wall.y / 2, 20 - np.abs(wall.x))
    rib = np.maximum(np.maximum(shell, slant * np.float32(0.85)), reach)
    wall.paint(rib, 380.0, Organ.BONE, edge_mm=2.0)
    wall.paint(rib + np.float32(2.2), 230.0, Organ.BONE, edge_mm=2.0)
    wall.put_back()


_FAT = (Organ.ABDOMINAL_FAT,)


def _reach(radii: Point) -> Point:
    return (max(radii[:2]) + 6, max(radii[:2]) + 6, radii[2] + 6)


def _solid(
    canvas: Canvas,
    centre: Point,
    radii: Point,
    value: float,
    label: Organ,
    turn: float = 0.0,
    only: tuple[Organ, ...] = (),
) -> None:
    w = canvas.window(centre, _reach(radii))
    if w is not None:
        canvas.paint(w, ellipsoid(w, centre, radii, turn), value, label, only=only)
