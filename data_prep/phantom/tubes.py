"""Vessels, airways, bowel and small things that look like lesions and are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.phantom.anatomy import Anatomy, Organ, Phase
from data_prep.phantom.shapes import Canvas, Point, capsule, capsule_window, ellipse_column, ellipsoid

MEDIASTINAL = (Organ.MEDIASTINUM, Organ.MUSCLE, Organ.LUNG, Organ.ABDOMINAL_FAT)


@dataclass(frozen=True)
class Segment:
    """A piece of a tube, body-frame mm."""

    start: Point
    end: Point
    radius_start: float
    radius_end: float


def tree(
    rng: np.random.Generator, root: Point, direction: npt.ArrayLike, length: float, radius: float, depth: int
) -> list[Segment]:
    """A branching tube: each piece forks into two, shorter and, by Murray's law, thinner (r / 2^(1/3))."""
    heading = np.asarray(direction, dtype=float)
    heading /= np.linalg.norm(heading)
    step = length * rng.uniform(0.8, 1.2)
    end: Point = tuple((np.asarray(root) + heading * step).tolist())
    thin = radius * 2 ** (-1 / 3)
    out = [Segment(root, end, radius, thin)]
    if depth > 1:
        sideways = np.cross(heading, rng.normal(size=3))
        sideways /= np.linalg.norm(sideways) + 1e-9
        for sign in (-1, 1):
            out += tree(rng, end, heading + sign * rng.uniform(0.35, 0.75) * sideways, length * 0.8, thin, depth - 1)
    return out


def draw_segments(
    canvas: Canvas, segments: Sequence[Segment], value: float, label: Organ, only: Sequence[int] = ()
) -> None:
    """Paint tubes of one content."""
    for s in segments:
        w = capsule_window(canvas, s.start, s.end, max(s.radius_start, s.radius_end))
        if w is not None:
            distance = capsule(w, s.start, s.end, s.radius_start, s.radius_end)
            canvas.paint(w, distance, value, label, only=only)


def draw_lung_vessels(canvas: Canvas, body: Anatomy, phase: Phase) -> None:
    """Arteries that branch from each hilum, a fissure a side, and bronchi."""
    rng = np.random.default_rng([body.tube_seed, 1])
    blood = max(phase.vein, phase.artery * 0.8)
    for side in (-1.0, 1.0):
        hilum: Point = (side * 34 + 4, 4.0, 46.0)
        for heading in ((1.0, -0.7, 0.9), (1.0, 0.6, 0.7), (1.0, 0.5, -0.9), (1.0, -0.6, -0.5)):
            branches = tree(rng, hilum, (side * heading[0], heading[1], heading[2]), 27.0, 6.2, 5)
            draw_segments(canvas, branches, blood, Organ.LUNG, (Organ.LUNG,))
        draw_segments(
            canvas,
            tree(rng, (side * 14 + 2, 10.0, 62.0), (side, 0.25, -0.5), 26.0, 6.0, 3),
            -960.0,
            Organ.AIRWAY,
            (Organ.MEDIASTINUM, Organ.LUNG),
        )
    w = canvas.window((0.0, 0.0, 20.0), (body.half_width, body.half_depth, body.half_depth))
    if w is not None:
        fissure = w.z - np.float32(20) + np.float32(0.9) * w.y
        np.abs(fissure, out=fissure)
        fissure *= np.float32(0.7)
        fissure -= np.float32(0.5)
        canvas.paint(w, fissure, -640.0, only=(Organ.LUNG,), edge_mm=2.4)


def draw_great_vessels(canvas: Canvas, body: Anatomy, phase: Phase) -> None:
    """Aorta, vena cava, pulmonary trunk, oesophagus and trachea."""
    y = body.spine_y
    aorta = [(20.0, y - 20, 90.0), (22.0, y - 20, 30.0), (14.0, y - 26, -60.0), (8.0, y - 30, -150.0)]
    aorta.append((6.0, y - 30, -260.0))
    radii = (13.5, 12.5, 12.0, 10.0, 9.0)
    arch = [(20.0, y - 20, 90.0), (14.0, y - 44, 104.0), (-4.0, y - 72, 96.0), (-8.0, y - 76, 50.0)]
    cava = [(-24.0, y - 58, 130.0), (-26.0, y - 58, 50.0), (-28.0, y - 40, 10.0), (-24.0, y - 30, -70.0)]
    cava += [(-20.0, y - 28, -160.0), (-18.0, y - 28, -260.0)]
    pulmonary = [(18.0, y - 74, 58.0), (6.0, y - 56, 66.0), (-26.0, y - 44, 56.0)]
    gullet = [(2.0, y - 26, 130.0), (4.0, y - 27, 30.0), (18.0, y - 40, -20.0)]
    draw_segments(canvas, _chain(gullet, [8.5] * 3), 38 + phase.soft, Organ.BOWEL, MEDIASTINAL)
    draw_segments(canvas, _chain(gullet, [2.2] * 3), -300.0, Organ.BOWEL, (Organ.BOWEL,))
    draw_segments(canvas, _chain(cava, [10.5] * len(cava)), phase.vein, Organ.BLOOD)
    draw_segments(canvas, _chain(pulmonary, [13.0, 12.0, 9.0]), max(phase.vein, phase.artery * 0.8), Organ.BLOOD)
    draw_segments(canvas, _chain(arch, [13.0] * 4), phase.artery, Organ.BLOOD)
    draw_segments(canvas, _chain(aorta, radii), phase.artery, Organ.BLOOD)
    w = canvas.window((2.0, y - 44, 110.0), (14.0, 14.0, 52.0))
    if w is not None:
        trachea = np.maximum(ellipse_column(w, (2.0, y - 44), (9.0, 8.0)), 62.0 - w.z)
        canvas.paint(w, trachea - 1.6, 40.0, Organ.MEDIASTINUM)
        canvas.paint(w, trachea, -985.0, Organ.AIRWAY)


def draw_abdominal_vessels(canvas: Canvas, body: Anatomy, phase: Phase) -> None:
    """Portal and hepatic veins inside the liver; splenic, renal and mesenteric vessels in the fat."""
    rng = np.random.default_rng([body.tube_seed, 2])
    y = body.spine_y
    liver = (Organ.LIVER,)
    # Without contrast medium veins are darker than liver, with it brighter.
    portal: Point = (-28.0, -12.0, -72.0)
    for heading in ((-1.0, 0.15, 0.15), (-0.6, -0.5, 0.5), (-0.8, 0.4, -0.5), (0.6, -0.8, 0.3)):
        draw_segments(canvas, tree(rng, portal, heading, 30.0, 6.5, 4), phase.portal, Organ.BLOOD, liver)
    for heading in ((-1.0, 0.1, -0.35), (-0.8, -0.7, -0.5), (0.1, -1.0, -0.35)):
        root: Point = (-24.0, y - 38, -14.0)
        draw_segments(canvas, tree(rng, root, heading, 34.0, 6.0, 4), phase.vein, Organ.BLOOD, liver)
    fat = (Organ.ABDOMINAL_FAT,)
    splenic = [(-28.0, -12.0, -74.0), (6.0, -6.0, -84.0), (44.0, 10.0, -72.0), (84.0, 28.0, -58.0)]
    draw_segments(canvas, _chain(splenic, [6.0, 5.0, 4.5, 4.0]), phase.portal, Organ.BLOOD, (*fat, Organ.PANCREAS))
    for centre in body.kidneys:
        renal = [(8.0, y - 30, -112.0), (centre[0] * 0.75, centre[1] - 6, centre[2])]
        draw_segments(canvas, _chain(renal, [4.5, 3.5]), (phase.artery + phase.vein) / 2, Organ.BLOOD, fat)
    for _ in range(7):
        origin: Point = (rng.uniform(-20, 20), rng.uniform(-30, 0), rng.uniform(-150, -90))
        heading_3 = (rng.uniform(-1, 1), rng.uniform(-1, 0.1), rng.uniform(-1.2, -0.2))
        blood = phase.artery if rng.random() < 0.4 else phase.portal
        draw_segments(canvas, tree(rng, origin, heading_3, 26.0, 3.8, 3), blood, Organ.BLOOD, fat)


def draw_bowel(canvas: Canvas, body: Anatomy, phase: Phase) -> None:
    """Loops of small bowel and the colon, each with its own filling: fluid, contrast medium, gas or stool."""
    rng = np.random.default_rng([body.tube_seed, 3])
    wide = body.half_width - body.fat - body.wall
    deep = body.half_depth - body.fat - body.wall
    for number in range(40):
        colon = number < 8
        radius = rng.uniform(15, 21) if colon else rng.uniform(8, 13)
        angle = rng.uniform(-math.pi, 0.25 * math.pi) if colon else rng.uniform(-math.pi, 0)
        out = rng.uniform(0.8, 0.95) if colon else rng.uniform(0.05, 0.85)
        x = (wide - radius) * out * math.cos(angle)
        y = (deep - radius) * out * math.sin(angle) * (1.0 if math.sin(angle) < 0 else 0.5)
        z = rng.uniform(-225, -92)
        lean = rng.uniform(0, 2 * math.pi)
        half = rng.uniform(14, 40)
        rise = rng.uniform(-14, 14) if not colon else rng.uniform(-40, 40)
        dx, dy = half * math.cos(lean), 0.6 * half * math.sin(lean)
        start, end = (x - dx, y - dy, z - rise), (x + dx, y + dy, z + rise)
        bend: Point = (x + rng.uniform(-12, 12), y + rng.uniform(-12, 12), z)
        filling = rng.choice(["fluid", "contrast", "gas", "collapsed"] if not colon else ["stool", "gas"])
        for s in _chain([start, bend, end], [radius, radius * rng.uniform(0.85, 1.1), radius]):
            w = capsule_window(canvas, s.start, s.end, radius * 1.1)
            if w is None:
                continue
            distance = capsule(w, s.start, s.end, s.radius_start, s.radius_end)
            canvas.paint(w, distance, 48 + 2.5 * phase.soft, Organ.BOWEL, only=(Organ.ABDOMINAL_FAT, Organ.BOWEL))
            if filling == "collapsed":
                continue
            fold = np.sin(w.x * 0.43 + 2.1 * np.sin(w.y * 0.31)) * np.sin(
                w.y * 0.37 + 1.7 * np.sin(w.z * 0.29 + w.x * 0.17)
            )
            content = {
                "fluid": 16.0 + 10 * fold,
                "contrast": 230.0 + 70 * fold,
                "gas": np.where(w.y < y + 0.2 * radius, -900.0, 14.0),
                "stool": -70.0 + 170 * fold,
            }[str(filling)]
            content = np.asarray(content, np.float32)
            canvas.paint(w, distance + 2.8, content, Organ.BOWEL, only=(Organ.BOWEL,))


def draw_small_things(canvas: Canvas, body: Anatomy, phase: Phase) -> None:
    """Nodes of normal size (short axis under 10 mm) and calcified spots: not lesions."""
    rng = np.random.default_rng([body.tube_seed, 4])
    y = body.spine_y
    for _ in range(26):
        if rng.random() < 0.45:
            centre: Point = (rng.uniform(-34, 34), rng.uniform(-60, y - 26), rng.uniform(20, 120))
            host: Organ = Organ.MEDIASTINUM
        else:
            centre = (rng.uniform(-55, 55), rng.uniform(-40, y - 22), rng.uniform(-210, -60))
            host = Organ.ABDOMINAL_FAT
        short = rng.uniform(1.8, 3.6)
        radii: Point = (short * rng.uniform(1.0, 1.7), short, short * rng.uniform(1.0, 1.8))
        w = canvas.window(centre, (9.0, 9.0, 9.0))
        if w is not None:
            node = ellipsoid(w, centre, radii, rng.uniform(0, math.pi))
            canvas.paint(w, node, 44 + 2 * phase.soft, Organ.MUSCLE, only=(host,))
    for _ in range(8):
        centre = (rng.uniform(-110, 110), rng.uniform(-60, 50), rng.uniform(-120, 110))
        w = canvas.window(centre, (4.0, 4.0, 4.0))
        if w is not None:
            spot = ellipsoid(w, centre, (2.2, 2.0, 2.2))
            canvas.paint(w, spot, 420.0, only=(Organ.LUNG, Organ.LIVER, Organ.SPLEEN, Organ.MEDIASTINUM))


def _chain(points: Sequence[Point], radii: Sequence[float]) -> list[Segment]:
    return [Segment(a, b, ra, rb) for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)]
