"""Soft-edged solids on a grid of slices: the drawing kit of the phantom.

All geometry here is in the *body frame*: mm along L, P, S (+x the patient's left, +y the back, +z the head), the
origin in the middle of the trunk at the height of the right dome of the diaphragm. A :class:`Pose` says where the body
lies in the scanner on one day. Volumes are float32 [slice, row, column], slices sorted towards +S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NEAR = 1e-4
"""Closer to a centre than this the formulas below are 0 / 0."""

Volume = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Point = tuple[float, float, float]

WARP_MARGIN_MM = 9.0
"""No point is displaced by more than this by a :class:`Warp`; windows are grown by it."""


@dataclass(frozen=True)
class Pose:
    """How the body lies: a shift and a turn about the long axis, body frame -> scanner (LPS mm)."""

    shift_mm: Point
    turn_rad: float

    def to_scanner(self, point: Point) -> Point:
        """A body-frame point in scanner coordinates, LPS mm."""
        c, s = math.cos(self.turn_rad), math.sin(self.turn_rad)
        x, y, z = point
        return (c * x - s * y + self.shift_mm[0], s * x + c * y + self.shift_mm[1], z + self.shift_mm[2])


class Warp:
    """A smooth random displacement, so that no organ is a perfect ellipsoid: a sum of standing waves."""

    def __init__(self, rng: np.random.Generator, amplitude_mm: float = 4.0, waves: int = 3) -> None:
        # One displacement axis sums to at most 2 x amplitude, which stays below WARP_MARGIN_MM.
        self.amplitude = amplitude_mm * rng.uniform(0.3, 2 / waves, (3, waves))
        self.wavelength = rng.uniform(70.0, 190.0, (3, waves, 2))
        self.phase = rng.uniform(0.0, 2 * math.pi, (3, waves, 2))

    def displacement(self, axis: int, first: Volume, second: Volume) -> Volume:
        """Displacement along ``axis`` (mm), a product of waves over the two other axes' coordinates (mm)."""
        total: Volume | None = None
        for k in range(self.amplitude.shape[1]):
            (wave_1, wave_2), (phase_1, phase_2) = self.wavelength[axis, k], self.phase[axis, k]
            wave = np.sin(first * np.float32(2 * math.pi / wave_1) + np.float32(phase_1)) * np.sin(
                second * np.float32(2 * math.pi / wave_2) + np.float32(phase_2)
            )
            wave = wave * np.float32(self.amplitude[axis, k])
            total = wave if total is None else total + wave
        assert total is not None
        return total


@dataclass(frozen=True)
class Window:
    """A box of the canvas with the body-frame coordinates (mm) of its voxel centres."""

    index: tuple[slice, slice, slice]
    x: Volume
    y: Volume
    z: Volume


class Canvas:
    """A volume being painted.

    Args:
        x_mm, y_mm, z_mm: ascending scanner coordinates of the voxel centres.
        pose: where the body lies in the scanner.
        warp: displacement of the anatomy; None for none.
    """

    def __init__(
        self,
        x_mm: npt.NDArray[np.float64],
        y_mm: npt.NDArray[np.float64],
        z_mm: npt.NDArray[np.float64],
        pose: Pose,
        warp: Warp | None,
    ) -> None:
        self.axes_mm = (x_mm, y_mm, z_mm)
        self.pose = pose
        shape = (len(z_mm), len(y_mm), len(x_mm))
        self.hu: Volume = np.full(shape, -1000.0, np.float32)
        self.label: Labels = np.zeros(shape, np.uint8)
        dx = (x_mm - pose.shift_mm[0]).astype(np.float32)[None, None, :]
        dy = (y_mm - pose.shift_mm[1]).astype(np.float32)[None, :, None]
        z = (z_mm - pose.shift_mm[2]).astype(np.float32)[:, None, None]
        c, s = np.float32(math.cos(pose.turn_rad)), np.float32(math.sin(pose.turn_rad))
        # The waves run along the scanner's axes turned by at most a few degrees: 1-D factors keep them cheap.
        x, y = c * dx + s * dy, c * dy - s * dx
        if warp is None:
            self.x, self.y, self.z = (np.broadcast_to(a, shape) for a in (x, y, z))
        else:
            self.x = x + warp.displacement(0, dy, z)
            self.y = y + warp.displacement(1, dx, z)
            self.z = z + warp.displacement(2, dx, dy)

    def everything(self) -> Window:
        """The whole canvas as a window."""
        return self.part((slice(None), slice(None), slice(None)))

    def window(self, centre: Point, reach: Point) -> Window | None:
        """The voxels within ``reach`` (mm, each way) of a body-frame point; None where there are none."""
        cut = []
        # A turned box sticks out of its own bounds by sin(turn) of the other side.
        swell = abs(math.sin(self.pose.turn_rad)) * max(reach[0], reach[1])
        for axis, at, r in zip(self.axes_mm, self.pose.to_scanner(centre), reach, strict=True):
            half = r + swell + WARP_MARGIN_MM
            low, high = np.searchsorted(axis, (at - half, at + half))
            if low >= high:
                return None
            cut.append(slice(int(low), int(high)))
        return self.part((cut[2], cut[1], cut[0]))

    def part(self, index: tuple[slice, slice, slice]) -> Window:
        """The window of the given slices of [slice, row, column]."""
        return Window(index, self.x[index], self.y[index], self.z[index])

    def paint(
        self,
        window: Window,
        distance_mm: Volume,
        value: float | Volume,
        label: int | None = None,
        *,
        edge_mm: float = 1.6,
        only: Sequence[int] = (),
    ) -> Volume:
        """Blend ``value`` (HU) in where the signed distance is negative.

        Args:
            distance_mm: signed distance to the surface, negative inside; the edge is a ramp ``edge_mm`` wide.
            label: organ code written where at least half a voxel is covered.
            only: paint over these labels alone (all if empty).

        Returns:
            The covered fraction of each voxel of the window.
        """
        cover = _cover(distance_mm, edge_mm)
        labels = self.label[window.index]
        if only:
            allowed = labels == only[0]
            for code in only[1:]:
                allowed |= labels == code
            cover *= allowed
        hu = self.hu[window.index]
        change = value - hu
        change *= cover
        hu += change
        if label is not None:
            np.copyto(labels, np.uint8(label), where=cover >= 0.5)
        return cover


class Points:
    """Some voxels of a canvas, taken out to be painted together: for solids that cover little of a large window.

    Attributes:
        x, y, z: (N,) body-frame mm.
    """

    def __init__(self, canvas: Canvas, mask: npt.NDArray[np.bool_]) -> None:
        self.canvas = canvas
        self.at = np.flatnonzero(mask)
        self.x, self.y, self.z = (self.take(axis) for axis in (canvas.x, canvas.y, canvas.z))
        self.hu: Volume = self.take(canvas.hu)
        self.label: Labels = np.ravel(canvas.label)[self.at]

    def take(self, volume: Volume) -> Volume:
        """(N,) values of a volume of the canvas's shape."""
        out: Volume = np.ravel(volume)[self.at]
        return out

    def spread(self, values: Volume, elsewhere: float) -> Volume:
        """A volume with ``values`` at these voxels."""
        out = np.full(self.canvas.hu.shape, elsewhere, np.float32)
        out.reshape(-1)[self.at] = values
        return out

    def paint(self, distance_mm: Volume, value: float | Volume, label: int, *, edge_mm: float = 1.6) -> None:
        """As :meth:`Canvas.paint`; takes effect on the canvas with :meth:`put_back`."""
        self.hu += _cover(distance_mm, edge_mm) * (value - self.hu)
        np.copyto(self.label, np.uint8(label), where=distance_mm <= 0)

    def put_back(self) -> None:
        """Write attenuation and labels to the canvas."""
        self.canvas.hu.reshape(-1)[self.at] = self.hu
        self.canvas.label.reshape(-1)[self.at] = self.label


def _cover(distance_mm: Volume, edge_mm: float) -> Volume:
    """Covered fraction of voxels at a signed distance from a surface, a ramp ``edge_mm`` wide."""
    cover: Volume = distance_mm * np.float32(-1 / edge_mm)
    cover += np.float32(0.5)
    np.clip(cover, 0, 1, out=cover)
    return cover


def ellipsoid(w: Window, centre: Point, radii: Point, turn_rad: float = 0.0) -> Volume:
    """Signed distance (mm, first-order exact at the surface) to an ellipsoid turned about z."""
    x, y, z = w.x - np.float32(centre[0]), w.y - np.float32(centre[1]), w.z - np.float32(centre[2])
    if turn_rad:
        c, s = np.float32(math.cos(turn_rad)), np.float32(math.sin(turn_rad))
        x, y = c * x + s * y, c * y - s * x
    # k1 (k1 - 1) / k2 with k1 = |p / r| and k2 = |p / r^2|, the gradient's length times k1.
    k1: Volume | None = None
    k2: Volume | None = None
    for axis, radius in zip((x, y, z), radii, strict=True):
        axis *= np.float32(1.0 / radius)
        axis *= axis
        k1 = axis.copy() if k1 is None else np.add(k1, axis, out=k1)
        axis *= np.float32(radius**-2)
        k2 = axis if k2 is None else np.add(k2, axis, out=k2)
    assert k1 is not None
    assert k2 is not None
    np.sqrt(k1, out=k1)
    np.sqrt(k2, out=k2)
    np.maximum(k1, np.float32(_NEAR), out=k1)
    np.maximum(k2, np.float32(_NEAR / min(radii)), out=k2)
    out: Volume = k1 - 1
    out *= k1
    out /= k2
    return out


def ellipse_column(w: Window, centre: tuple[float, float], radii: tuple[float, float]) -> Volume:
    """Signed distance (mm, measured along the radius) to an elliptic cylinder along z."""
    x, y = w.x - np.float32(centre[0]), w.y - np.float32(centre[1])
    x *= x
    y *= y
    r: Volume = np.sqrt(x + y)
    x *= np.float32(radii[0] ** -2)
    y *= np.float32(radii[1] ** -2)
    x += y
    np.sqrt(x, out=x)
    # r (1 - 1 / rho), rho the radius in units of the ellipse's; on the axis itself as in its neighbourhood.
    np.maximum(r, np.float32(_NEAR), out=r)
    np.maximum(x, np.float32(_NEAR / min(radii)), out=x)
    r -= r / x
    return r


def capsule(w: Window, start: Point, end: Point, radius_start: float, radius_end: float) -> Volume:
    """Signed distance (mm) to a segment whose radius goes linearly from one end to the other."""
    d = np.subtract(end, start)
    squared = float(d @ d) or 1.0
    x, y, z = w.x - np.float32(start[0]), w.y - np.float32(start[1]), w.z - np.float32(start[2])
    along = np.clip((x * np.float32(d[0]) + y * np.float32(d[1]) + z * np.float32(d[2])) / np.float32(squared), 0, 1)
    x = x - along * np.float32(d[0])
    y = y - along * np.float32(d[1])
    z = z - along * np.float32(d[2])
    radius = np.float32(radius_start) + along * np.float32(radius_end - radius_start)
    out: Volume = np.sqrt(x * x + y * y + z * z) - radius
    return out


def capsule_window(canvas: Canvas, start: Point, end: Point, radius: float) -> Window | None:
    """The window that holds a capsule."""
    middle = tuple((a + b) / 2 for a, b in zip(start, end, strict=True))
    reach = tuple(abs(a - b) / 2 + radius + 2 for a, b in zip(start, end, strict=True))
    return canvas.window(middle, reach)  # type: ignore[arg-type]  # three numbers each, by construction


def smooth_union(first: Volume, second: Volume, blend_mm: float) -> Volume:
    """Union of two solids with a fillet (polynomial smooth minimum)."""
    h = np.clip(0.5 + (second - first) / np.float32(2 * blend_mm), 0, 1)
    out: Volume = second + (first - second) * h - np.float32(blend_mm) * h * (1 - h)
    return out
