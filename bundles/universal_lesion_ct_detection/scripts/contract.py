"""The input contract: what the network's channels are. Written once in a config, kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.errors import BundleError


@dataclass(frozen=True)
class InputContract:
    """What a set of weights was trained on, and therefore what it must be given.

    Args:
        slices: neighbouring slices, odd, the key slice in the middle.
        windows_hu: (low, high) pairs; HU are clipped to each and scaled to [0, 1]. The channels are the slices in
            the first window, then the slices in the second, and so on.
        size: the longer side of the slice is resized to this many px.
        slice_step_mm: distance of neighbouring slices; None: the adjacent ones, as in DeepLesion.

    Raises:
        BundleError: an even number of slices, an empty window, or a size that is not a multiple of 32.
    """

    slices: int
    windows_hu: tuple[tuple[float, float], ...]
    size: int
    slice_step_mm: float | None = None

    def __post_init__(self) -> None:
        windows = tuple((float(low), float(high)) for low, high in self.windows_hu)
        object.__setattr__(self, "windows_hu", windows)
        if self.slices < 1 or self.slices % 2 == 0:
            raise BundleError(f"slices must be odd, got {self.slices}")
        if not windows or any(low >= high for low, high in windows):
            raise BundleError(f"windows_hu must be (low, high) pairs with low < high, got {self.windows_hu}")
        if self.size < 32 or self.size % 32:
            raise BundleError(f"size must be a multiple of 32 (the greatest stride), got {self.size}")

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return self.slices * len(self.windows_hu)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept in a checkpoint."""
        return {**asdict(self), "windows_hu": [list(w) for w in self.windows_hu]}


def make(
    slices: int, windows_hu: Sequence[Sequence[float]], size: int, slice_step_mm: float | None = None
) -> InputContract:
    """:class:`InputContract` from a config's plain values."""
    return InputContract(slices, tuple((w[0], w[1]) for w in windows_hu), size, slice_step_mm)
