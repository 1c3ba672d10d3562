"""The input contract: what the network's channels are. Written once in a config, kept in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.errors import BundleError


@dataclass(frozen=True)
class InputContract:
    """What a set of weights was trained on, and therefore what it must be given.

    Args:
        slices: neighbouring slices, odd, the key slice in the middle.
        windows_hu: (low, high) pairs; HU are clipped to each and scaled to [0, 1]. The channels are the slices in
            the first window, then the slices in the second, and so on.
        size: side of the square input, px. The slice is resized so that its longer side is this long, unless
            ``pixel_mm`` is given.
        slice_step_mm: distance of neighbouring slices, whatever the slice spacing of the series: a plane between two
            stored slices is interpolated from both (:func:`bracket`). None: the adjacent slices.
        pixel_mm: resize so that a pixel of the input is this large, whatever the pixel size of the series. A slice
            that would then be larger than ``size`` is made to fit it; a smaller one is padded.

    Raises:
        BundleError: an even number of slices, an empty window, a size that is not a multiple of 32, or a distance
            that is not positive.
    """

    slices: int
    windows_hu: tuple[tuple[float, float], ...]
    size: int
    slice_step_mm: float | None = None
    pixel_mm: float | None = None

    def __post_init__(self) -> None:
        windows = tuple((float(low), float(high)) for low, high in self.windows_hu)
        object.__setattr__(self, "windows_hu", windows)
        if self.slices < 1 or self.slices % 2 == 0:
            raise BundleError(f"slices must be odd, got {self.slices}")
        if not windows or any(low >= high for low, high in windows):
            raise BundleError(f"windows_hu must be (low, high) pairs with low < high, got {self.windows_hu}")
        if self.size < 32 or self.size % 32:
            raise BundleError(f"size must be a multiple of 32 (the greatest stride), got {self.size}")
        for name in ("slice_step_mm", "pixel_mm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BundleError(f"{name} must be more than 0 mm, or null, got {value}")

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return self.slices * len(self.windows_hu)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept in a checkpoint."""
        return {**asdict(self), "windows_hu": [list(w) for w in self.windows_hu]}


def make(
    slices: int,
    windows_hu: Sequence[Sequence[float]],
    size: int,
    slice_step_mm: float | None = None,
    pixel_mm: float | None = None,
) -> InputContract:
    """:class:`InputContract` from a config's plain values."""
    return InputContract(slices, tuple((w[0], w[1]) for w in windows_hu), size, slice_step_mm, pixel_mm)


def known_mm(spacing_mm: Sequence[float | None] | None, axis: int) -> float | None:
    """One of the three spacings of a datalist's item; None where it is unknown (absent, NaN, not positive)."""
    value = spacing_mm[axis] if spacing_mm is not None and axis < len(spacing_mm) else None
    return float(value) if value is not None and 0 < value < math.inf else None


def resized_shape(
    shape: Sequence[int], size: int, pixel_mm: float | None = None, spacing_mm: Sequence[float | None] | None = None
) -> tuple[int, int]:
    """Extents along x and y, px, to which a slice is resized before it is padded to ``size``.

    Boxes follow with the factors ``resized / shape`` of each axis, which is what the pixels do.

    Args:
        shape: extents of the stored slice along x and y, px.
        size, pixel_mm: of the contract.
        spacing_mm: pixel size along x and y (and more); needed with ``pixel_mm``.

    Raises:
        BundleError: ``pixel_mm`` is given and the pixel size is unknown.
    """
    extents = [float(s) for s in shape]
    if pixel_mm is not None:
        pixel = [known_mm(spacing_mm, axis) for axis in (0, 1)]
        if pixel[0] is None or pixel[1] is None:
            raise BundleError("the slice's pixel size is unknown, which pixel_mm needs; set --pixel_mm None")
        extents = [extents[0] * pixel[0] / pixel_mm, extents[1] * pixel[1] / pixel_mm]
    longest = max(extents)
    factor = size / longest if pixel_mm is None or longest > size else 1.0
    return max(1, round(extents[0] * factor)), max(1, round(extents[1] * factor))


def bracket(positions_mm: npt.ArrayLike, wanted_mm: npt.ArrayLike) -> list[tuple[int, int, float]]:
    """Which stored slices a plane is interpolated from.

    Linear between the two nearest slices, as in 3DCE and MULAN: the planes are then equally far apart on thin and
    thick series, which the nearest slice would not give (on 5 mm slices, planes 2 mm apart would be one slice three
    times). A plane outside the series is the outermost slice.

    Args:
        positions_mm: (N,) of the stored slices, ascending.
        wanted_mm: of the planes.

    Returns:
        For each plane the indices of both slices and the weight of the second, in hundredths, so that a plane on a
        slice is that slice alone.
    """
    positions = np.asarray(positions_mm, dtype=np.float64)
    wanted = np.asarray(wanted_mm, dtype=np.float64)
    place = np.round(np.interp(wanted, positions, np.arange(len(positions), dtype=np.float64)), 2)
    first = np.floor(place).astype(int)
    return [(int(i), int(np.ceil(p)), float(p - i)) for i, p in zip(first, place, strict=True)]
