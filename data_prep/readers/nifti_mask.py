"""Reader for NIfTI label maps, such as lie beside a CT volume: one bookmark per lesion on its key slice.

A file counts as a label map when its values are whole numbers from 0 on, few, and lie in regions; a CT or MR volume in
the same format is not recognised. The array is brought to L, P, S axis order first, so that ``slice_index`` counts
towards +S and (x, y) are (left, posterior), as in an axial DICOM slice. NIfTI names no image: ``image_uid`` is None,
and ``series_uid`` is made from the content, so that marks of different files never meet on one "image".
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from data_prep import frames
from data_prep.bookmark import Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.frames import Array
from data_prep.readers import Rejection
from data_prep.readers._masks import key_slice, lesions, pieces_of_mask

SOURCE = "nifti"

MAX_VOXELS = 1 << 28
"""512 x 512 x 1024; a volume that states more is not read (a few bytes of gzip can state anything)."""

MAX_LABELS = 256
"""More different values than a label map has."""

_MAX_LABEL = 65_535
_FEW_LABELS = 8  # above this the values must also lie in regions: an 8-bit image has 256 of them too
_CHUNK_BYTES = 1 << 22
_CHUNKS_TO_JUDGE = 8
_MAX_OFFSET = 1 << 24  # header extensions longer than this are damage
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540

_SILENT = logging.Logger("nibabel", logging.CRITICAL + 1)  # what is wrong with a header is in the rejection

_DAMAGE = (OSError, EOFError, zlib.error, struct.error, ValueError, TypeError, OverflowError, HeaderDataError)


class _NotLabelsError(ValueError):
    """The volume is no label map; the message says why."""


def recognise(head: bytes, path: Path) -> bool:
    """Whether the file is a NIfTI volume of labels: judged by the header, then by the first values."""
    try:
        if head[:2] == b"\x1f\x8b":
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _NIFTI2_BYTES)
        if _header_class(head) is None:
            return False
        with _opened(path) as file:
            for _ in islice(_label_chunks(file, _read_header(file)), _CHUNKS_TO_JUDGE):
                pass
    except _DAMAGE:
        return False
    return True


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """Every lesion of the label map.

    Raises:
        UnreadableError: not NIfTI, damaged, too large, without an orientation, or no label map.
    """
    try:
        with _opened(path) as file:
            header = _read_header(file)
            digest = hashlib.sha256(repr((header.shape, header.affine.tolist())).encode())
            stored = np.zeros(math.prod(header.shape), dtype=np.uint16)
            filled = 0
            for labels in _label_chunks(file, header):
                stored[filled : filled + len(labels)] = labels
                digest.update(labels.tobytes())
                filled += len(labels)
    except _NotLabelsError as error:
        raise UnreadableError(f"{path}: not a label map: {error}") from error
    except _DAMAGE as error:
        raise UnreadableError(f"{path}: the NIfTI file is damaged or cut off ({type(error).__name__})") from error
    volume, spacing_mm = _to_lps(stored.reshape(header.shape, order="F"), header.affine)
    identity = digest.hexdigest()[:16]
    found = _bounds(volume)
    if not found:
        yield Rejection("", "", "the label map is empty: no voxel is set")
    for label, bounds in sorted(found.items()):
        yield from _label(volume, label, bounds, spacing_mm, identity)


def _bounds(volume: npt.NDArray[np.uint16]) -> dict[int, tuple[slice, ...]]:
    """The bounds of each label, as scipy.ndimage.find_objects gives them; a hundred times faster on empty slices."""
    axis = int(np.argmax(np.abs(volume.strides)))  # along which the planes lie in memory one after the other
    lows: dict[int, Array] = {}
    highs: dict[int, Array] = {}
    for number, plane in enumerate(np.moveaxis(volume, axis, 0)):
        first, second = (np.flatnonzero(plane.any(axis=other)) for other in (1, 0))
        if not len(first):
            continue
        top, left = first[0], second[0]
        inside = ndimage.find_objects(plane[top : first[-1] + 1, left : second[-1] + 1])
        for label, found in enumerate(inside, start=1):
            if found is None:
                continue
            low = np.insert([top + found[0].start, left + found[1].start], axis, number)
            high = np.insert([top + found[0].stop, left + found[1].stop], axis, number + 1)
            lows[label] = np.minimum(lows.get(label, low), low)
            highs[label] = np.maximum(highs.get(label, high), high)
    return {label: tuple(map(slice, low.tolist(), highs[label].tolist())) for label, low in lows.items()}


def _label(
    volume: npt.NDArray[np.uint16],
    label: int,
    bounds: tuple[slice, ...],
    spacing_mm: tuple[float, float, float],
    identity: str,
) -> Iterator[Bookmark | Rejection]:
    columns, rows, _ = volume.shape
    x, y, z = bounds
    try:
        pieces = []
        for slot in range(z.start, z.stop):
            mask = np.equal(volume[x, y, slot].T, label)
            pieces += pieces_of_mask(mask, slot=slot, tag=slot, origin=(y.start, x.start))
        groups = lesions(pieces)
    except ValueError as error:
        yield Rejection("", f"label {label}", f"the label cannot be used: {error}")
        return
    for group in groups:
        key = key_slice(group, spacing_mm[:2])
        points = np.round(key.outline_px, 6).ravel()
        try:
            yield Bookmark(
                bookmark_id=make_id(SOURCE, identity, label, key.slot, "segmentation", *np.round(points, 3)),
                source=SOURCE,
                form="segmentation",
                points_px=tuple(float(value) for value in points),
                text=f"label {label}",
                series_uid=f"nifti-{identity}",
                slice_index=key.slot,
                rows=rows,
                columns=columns,
                spacing_x_mm=spacing_mm[0],
                spacing_y_mm=spacing_mm[1],
                spacing_z_mm=spacing_mm[2],
                note=f"long diameter greatest here, of {key.slices} slices",
            )
        except ValueError as error:
            yield Rejection("", f"label {label} slice {key.slot}", str(error))


def _to_lps(
    stored: npt.NDArray[np.uint16], affine_ras: Array
) -> tuple[npt.NDArray[np.uint16], tuple[float, float, float]]:
    """The volume with its axes towards L, P and S, and its spacing along them in mm."""
    turn = ornt_transform(io_orientation(affine_ras), axcodes2ornt(("L", "P", "S")))
    affine = frames.ras_to_lps_affine(affine_ras @ inv_ornt_aff(turn, stored.shape))
    x, y, z = (float(value) for value in np.linalg.norm(affine[:3, :3], axis=0))
    return apply_orientation(stored, turn), (x, y, z)


# --- the file ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Header:
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float
    affine: Array  # (4, 4) to RAS mm


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, decompressed as it is read."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if compressed:
            with gzip.GzipFile(fileobj=file) as inner:
                yield cast(BinaryIO, inner)
        else:
            yield file


def _header_class(head: bytes) -> type[nib.Nifti1Header] | None:
    if len(head) >= _NIFTI1_BYTES and head[344:348] == b"n+1\0":
        return nib.Nifti1Header
    if len(head) >= _NIFTI2_BYTES and head[4:12] == b"n+2\0\r\n\032\n":
        return cast("type[nib.Nifti1Header]", nib.Nifti2Header)
    return None


def _read_header(file: BinaryIO) -> _Header:
    """Leaves ``file`` at an unknown place.

    Raises:
        _NotLabelsError: well-formed, but cannot be a label map.
    """
    head = file.read(_NIFTI2_BYTES)
    header_class = _header_class(head)
    if header_class is None:
        raise _NotLabelsError("not a NIfTI file of one part (.nii or .nii.gz)")
    header = header_class.from_fileobj(BytesIO(head), check=False)
    header.check_fix(logger=_SILENT)
    shape = tuple(int(size) for size in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise _NotLabelsError(f"it has {len(shape)} axes of sizes {shape}, not three")
    if math.prod(shape) > MAX_VOXELS:
        raise _NotLabelsError(f"its header states {shape} voxels, more than {MAX_VOXELS}")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise _NotLabelsError("its voxels are not plain numbers")
    slope, intercept = header.get_slope_inter()
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    axes = affine[:3, :3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(axes)) <= 1e-9 or np.isnan(io_orientation(affine)).any():
        raise _NotLabelsError("its affine states no orientation")
    offset = int(header.get_data_offset())
    if not _NIFTI1_BYTES <= offset <= _MAX_OFFSET:
        raise _NotLabelsError(f"its voxels are said to start at byte {offset}")
    return _Header(
        (shape[0], shape[1], shape[2]),
        dtype,
        offset,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        affine,
    )


def _label_chunks(file: BinaryIO, header: _Header) -> Iterator[npt.NDArray[np.uint16]]:
    """The voxels in file order, in chunks.

    Raises:
        _NotLabelsError: as soon as a value or their number shows that this is no label map.
        EOFError: the file ends before its voxels do.
    """
    file.seek(header.offset)
    known: set[int] = set()
    inside = alike = 0
    left = math.prod(header.shape) * header.dtype.itemsize
    size = _CHUNK_BYTES // header.dtype.itemsize * header.dtype.itemsize
    while left:
        data = file.read(min(size, left))
        if len(data) < min(size, left):
            raise EOFError
        left -= len(data)
        if data == bytes(len(data)) and header.intercept == 0:  # most of most masks
            yield np.zeros(len(data) // header.dtype.itemsize, dtype=np.uint16)
            continue
        values = np.frombuffer(data, dtype=header.dtype)
        if (header.slope, header.intercept) != (1.0, 0.0):
            values = values * header.slope + header.intercept
        if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
            raise _NotLabelsError("it has values that are not whole numbers")
        if values.min() < 0 or values.max() > _MAX_LABEL:
            raise _NotLabelsError(f"it has values outside 0..{_MAX_LABEL}")
        labels = values.astype(np.uint16)
        known.update(np.unique(labels[labels != 0]).tolist())
        if len(known) > MAX_LABELS:
            raise _NotLabelsError(f"it has more than {MAX_LABELS} different values")
        inside += int(np.count_nonzero(labels[1:]))
        alike += int(np.count_nonzero((labels[1:] == labels[:-1]) & (labels[1:] != 0)))
        yield labels
    if len(known) > _FEW_LABELS and alike < inside / 2:
        raise _NotLabelsError("its values change from voxel to voxel as in an image")
