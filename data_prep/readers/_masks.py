"""From the slices of a mask to lesions: pieces on a slice, pieces that belong together, and the slice to measure.

Shared by the readers of segmentations, structure sets and NIfTI masks, which know where their slices lie.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.draw import polygon

from data_prep import frames, recist
from data_prep.frames import Array

BoolArray = npt.NDArray[np.bool_]

MAX_PIECES = 20_000
"""Pieces on all slices of one segment; more is noise, and measuring it would take minutes."""

MAX_LESIONS = 1_000
"""Separate lesions of one segment; more is noise."""

_EIGHT = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner belong together


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One connected region on one slice.

    ``slot`` is the slice's place: neighbouring slices differ by 1. ``tag`` is the caller's own (a frame's index).
    The mask is kept packed, cropped to its bounds, which begin at ``row``, ``column``.
    """

    slot: int
    tag: int
    row: int
    column: int
    shape: tuple[int, int]
    bits: npt.NDArray[np.uint8]
    drawn_px: Array | None = None  # the outline as drawn, where there is one

    @property
    def mask(self) -> BoolArray:
        """(rows, columns) of the bounds."""
        count = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=count).reshape(self.shape).view(np.bool_)

    def outline_px(self) -> Array:
        """(N, 2) px: as drawn, or around the mask."""
        if self.drawn_px is not None:
            return self.drawn_px
        return np.asarray(recist.mask_outline(self.mask) + np.array([self.column, self.row]))

    def at_most_mm(self, spacing_mm: tuple[float, float]) -> float:
        """No distance within the piece is longer than this."""
        extent = np.ptp(self.drawn_px, axis=0) if self.drawn_px is not None else np.array(self.shape[::-1])
        return math.hypot(*(extent * np.asarray(spacing_mm)))


@dataclass(frozen=True, slots=True, eq=False)
class KeySlice:
    """A lesion on the slice where its long diameter is greatest."""

    tag: int
    slot: int
    outline_px: Array  # (N, 2)
    slices: int  # how many slices the lesion is on


def pieces_of_mask(mask: npt.ArrayLike, *, slot: int, tag: int, origin: tuple[int, int] = (0, 0)) -> list[Piece]:
    """The connected regions (8 neighbours) of a (rows, columns) mask; empty where nothing is set.

    ``origin`` is the row and column of the mask's first pixel, for a mask that is a crop.

    Raises:
        ValueError: more than :data:`MAX_PIECES`.
    """
    inside = np.asarray(mask) != 0
    rows = np.flatnonzero(inside.any(axis=1))
    if not len(rows):
        return []
    columns = np.flatnonzero(inside.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    labels, count = ndimage.label(inside[top : rows[-1] + 1, left : columns[-1] + 1], structure=_EIGHT)
    _check_count(count)
    pieces = []
    for number, (y, x) in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[y, x] == number
        pieces.append(
            Piece(slot, tag, origin[0] + top + y.start, origin[1] + left + x.start, part.shape, np.packbits(part))
        )
    return pieces


def rasterise(outline_px: npt.ArrayLike, rows: int, columns: int) -> BoolArray:
    """(rows, columns) mask of a closed outline: a pixel is set when its centre is inside.

    An outline that holds no centre sets the pixel its middle is in (none, where that is outside the image).
    """
    outline = np.asarray(outline_px, dtype=np.float64)
    mask = np.zeros((rows, columns), dtype=bool)
    index = frames.px_to_index(outline)
    mask[polygon(index[:, 1], index[:, 0], mask.shape)] = True
    if not mask.any():
        x, y = np.floor((outline.min(axis=0) + outline.max(axis=0)) / 2)
        if 0 <= x < columns and 0 <= y < rows:
            mask[int(y), int(x)] = True
    return mask


def piece_of_outline(outline_px: Array, *, slot: int, tag: int, rows: int, columns: int) -> Piece | None:
    """A drawn outline as a piece; None where none of it lies on the image."""
    low = np.floor(np.clip(outline_px.min(axis=0), 0, [columns, rows])).astype(int)
    high = np.ceil(np.clip(outline_px.max(axis=0), 0, [columns, rows])).astype(int)
    width, height = np.maximum(high - low, 1)
    mask = rasterise(outline_px - low, int(height), int(width))
    if (low >= [columns, rows]).any() or (high <= 0).any() or not mask.any():
        return None
    return Piece(slot, tag, int(low[1]), int(low[0]), mask.shape, np.packbits(mask), outline_px)


def lesions(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Group pieces: those that overlap, on one slice or on neighbouring ones, are one lesion.

    Returns:
        the groups, in the order of their first piece.

    Raises:
        ValueError: more than :data:`MAX_PIECES` pieces or :data:`MAX_LESIONS` lesions.
    """
    if not pieces:
        return []
    _check_count(len(pieces))
    top, left = min(piece.row for piece in pieces), min(piece.column for piece in pieces)
    height = max(piece.row + piece.shape[0] for piece in pieces) - top
    width = max(piece.column + piece.shape[1] for piece in pieces) - left
    by_slot: dict[int, list[int]] = defaultdict(list)
    for number, piece in enumerate(pieces):
        by_slot[piece.slot].append(number)
    links: set[tuple[int, int]] = set()
    below = canvas = np.zeros((height, width), dtype=np.int32)  # piece number + 1 where a piece is
    last_slot: int | None = None
    for slot in sorted(by_slot):
        below = canvas if last_slot == slot - 1 else np.zeros_like(canvas)
        canvas = np.zeros_like(canvas)
        for number in by_slot[slot]:
            piece, mask = pieces[number], pieces[number].mask
            window = (
                slice(piece.row - top, piece.row - top + piece.shape[0]),
                slice(piece.column - left, piece.column - left + piece.shape[1]),
            )
            for layer in (below, canvas):
                links.update((number, int(other) - 1) for other in np.unique(layer[window][mask]) if other)
            canvas[window][mask] = number + 1
        last_slot = slot
    pairs = np.array(sorted(links), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(pieces), len(pieces)))
    count, group_of = connected_components(graph, directed=False)
    if count > MAX_LESIONS:
        raise ValueError(f"it falls into {count} separate parts; more than {MAX_LESIONS} are noise and not lesions")
    groups: dict[int, list[Piece]] = defaultdict(list)
    for piece, group in zip(pieces, group_of, strict=True):
        groups[int(group)].append(piece)
    return list(groups.values())


def _check_count(count: int) -> None:
    if count > MAX_PIECES:
        raise ValueError(f"it has {count} separate pieces; more than {MAX_PIECES} are noise and not lesions")


def key_slice(lesion: Iterable[Piece], spacing_mm: tuple[float, float]) -> KeySlice:
    """The piece with the longest diameter; of equally long ones the one on the lowest slot.

    Args:
        lesion: pieces of one group.
        spacing_mm: (x step, y step).
    """
    pieces = sorted(lesion, key=lambda piece: (-piece.at_most_mm(spacing_mm), piece.slot, piece.row, piece.column))
    best: tuple[float, Piece, Array] | None = None
    for piece in pieces:
        if best is not None and piece.at_most_mm(spacing_mm) < best[0] - 1e-9:
            break  # no later piece can be longer
        outline = piece.outline_px()
        length = recist.longest_mm(outline, spacing_mm)
        if best is None or (round(-length, 6), piece.slot) < (round(-best[0], 6), best[1].slot):
            best = length, piece, outline
    if best is None:
        raise ValueError("a lesion has at least one piece")
    _, piece, outline = best
    return KeySlice(piece.tag, piece.slot, outline, len({piece.slot for piece in pieces}))
