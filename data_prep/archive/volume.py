"""HU slices from DICOM files: the stored values, decoded without loss, with the image's own slope and intercept."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from data_prep.archive.header import MAX_HEADER_BYTES
from data_prep.errors import UnreadableError
from data_prep.quiet import quiet_pydicom
from data_prep.readers.dicom_kind import HEAD_BYTES, inflated, looks_like_dicom

AIR_HU = -1024.0
"""What padding outside the field of view becomes."""

MAX_PIXELS = 8192 * 8192
"""More than any CT slice has; a larger stated size is damage."""

CT_SOP_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT Image
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image
    }
)

_SEGMENTS_BEFORE_SIZE = frozenset((0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE))
"""JPEG markers with a length: tables, restart interval, applications' data, JPEG-LS parameters, comment."""

CODEC_HINT = "install a decoder for it: pip install python-gdcm"


def read_slice_hu(path: str | os.PathLike[str], frame_number: int = 1) -> npt.NDArray[np.float32]:
    """One slice of a CT image file in HU.

    HU = stored value x RescaleSlope + RescaleIntercept (of the frame, in Enhanced CT). Pixels in the file's padding
    (PixelPaddingValue to PixelPaddingRangeLimit) become :data:`AIR_HU`. Native, RLE and JPEG 2000 are always decoded,
    JPEG-LS and JPEG where a decoder is installed; lossy images are read as they are.

    Args:
        path: the file.
        frame_number: 1-based.

    Returns:
        (rows, columns) float32 HU, row 0 on top.

    Raises:
        UnreadableError: not a CT image in HU, damaged, no such frame, or no decoder. After the path the message
            quotes nothing from the header.
    """
    path = Path(path)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise UnreadableError(f"{path}: not a file")
        with quiet_pydicom():
            dataset = _open(str(path), facts.st_mtime_ns, facts.st_size)
            return _to_hu(dataset, frame_number)
    except UnreadableError:
        raise
    except _RefusedError as error:
        raise UnreadableError(f"{path}: {error}") from None
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from error
    except Exception as error:  # damaged pixel data raises nearly anything, and its text may quote the header
        raise UnreadableError(f"{path}: the pixel data cannot be decoded ({type(error).__name__})") from None


class _RefusedError(Exception):
    """A reason without a path."""


@lru_cache(maxsize=1)  # the frames of one multi-frame file are read one after the other
def _open(path: str, mtime_ns: int, size: int) -> Dataset:
    with Path(path).open("rb") as file:
        if not looks_like_dicom(file.read(HEAD_BYTES)):
            raise _RefusedError("not a DICOM file")
        expanded = inflated(Path(path), file, MAX_HEADER_BYTES)
    if expanded is None:
        # Values over 64 KiB stay on disk until they are asked for: the sizes are checked first.
        dataset = pydicom.dcmread(path, force=True, defer_size=65536)
    else:
        dataset = pydicom.dcmread(BytesIO(expanded), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:  # without file meta information the pixel data are native
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _to_hu(dataset: Dataset, frame_number: int) -> npt.NDArray[np.float32]:
    meta = getattr(dataset, "file_meta", Dataset())
    sop_class = str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    if sop_class not in CT_SOP_CLASSES and str(dataset.get("Modality") or "") != "CT":
        raise _RefusedError("not a CT image: only CT has Hounsfield units")
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES":
        raise _RefusedError("text is burned into the pixels (BurnedInAnnotation): it may name the patient")
    frames = _check_size(dataset)
    if not 1 <= frame_number <= frames:
        raise _RefusedError(f"there is no frame {frame_number}; it has {frames}")
    slope, intercept = _rescale(dataset, frame_number)
    stored = _stored_values(dataset, frame_number, frames)
    padding = _padding(dataset, stored)
    hu = stored.astype(np.float64) * slope + intercept
    if padding is not None:
        hu[padding] = AIR_HU
    return hu.astype(np.float32)


def _check_size(dataset: Dataset) -> int:
    """Refuse a stated size that the pixel data cannot have, before anything of that size is allocated.

    Returns:
        The number of frames.
    """
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 0)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 0 < rows * columns <= MAX_PIXELS or frames < 1:
        raise _RefusedError(f"a size of {rows} x {columns} x {frames} is not that of a CT image")
    if samples != 1 or bits not in (8, 16, 32):
        raise _RefusedError(f"{samples} samples of {bits} bits a pixel are not a CT image in HU")
    if "PixelData" not in dataset:
        raise _RefusedError("there is no pixel data")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        if dataset["PixelData"].is_undefined_length:
            raise _RefusedError("the pixel data is compressed, and the file does not say how")
        needed, there = rows * columns * frames * bits // 8, len(dataset.PixelData)
        if there < needed:
            raise _RefusedError(f"the pixel data is cut off: {there} bytes of {needed}")
    return frames


def _stored_values(dataset: Dataset, frame_number: int, frames: int) -> npt.NDArray[Any]:
    """(rows, columns) stored values, decoded; the size inside a JPEG stream is checked first."""
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = (int(dataset.Rows), int(dataset.Columns))
    if syntax.is_encapsulated:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise _RefusedError(f"compressed as {syntax.name}; {CODEC_HINT}")
        offsets = extended_offsets(dataset)
        stream = get_frame(dataset.PixelData, frame_number - 1, number_of_frames=frames, extended_offsets=offsets)
        reason = why_not_decoded(stream, syntax, shape)
        if reason is not None:
            raise _RefusedError(reason)
    stored = pixel_array(dataset, index=frame_number - 1)
    if stored.shape != shape:
        raise _RefusedError(f"the pixels are of shape {stored.shape}, the header says {shape[0]} x {shape[1]}")
    return stored


def extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    """The Extended Offset Table and its lengths where pydicom's decoders use them, which ignore unequal ones."""
    offsets, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return (offsets, lengths) if offsets and lengths and len(offsets) == len(lengths) else None


def why_not_decoded(stream: bytes, syntax: UID, shape: tuple[int, int]) -> str | None:
    """Why a compressed frame must not be decoded: its size is not the header's; None where it may be.

    A decoder allocates what the stream states, whatever the header says: 172 bytes may state gigabytes.

    Args:
        stream: the frame as it is stored.
        syntax: the transfer syntax.
        shape: (rows, columns) by the header; it has one sample a pixel.
    """
    if syntax == RLELossless:  # states no size, and inflates no more than 64-fold
        return None
    size = codestream_size(stream)
    if size is None:
        return "the compressed image states no size: it is damaged, or no code stream of its transfer syntax"
    if size != (*shape, 1):
        samples = "" if size[2] == 1 else f" with {size[2]} samples a pixel"
        return f"the compressed image is {size[0]} x {size[1]}{samples}, the header says {shape[0]} x {shape[1]}"
    return None


def codestream_size(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples a pixel) as a JPEG, JPEG-LS or JPEG 2000 stream states them.

    None where it is none of these (RLE, or JPEG 2000 in a JP2 file, which PS3.5 A.4.4 excludes) or damaged.
    """

    def number(at: int, count: int) -> int:
        return int.from_bytes(stream[at : at + count], "big")

    if stream[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000 (ISO/IEC 15444-1, A.5.1): SIZ follows SOC at once
        return number(12, 4) - number(20, 4), number(8, 4) - number(16, 4), number(40, 2)
    if stream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:  # JPEG (ISO/IEC 10918-1, B.2.2), JPEG-LS (14495-1, C.2.2)
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return number(at + 5, 2), number(at + 7, 2), number(at + 9, 1)
        elif marker in _SEGMENTS_BEFORE_SIZE:
            at += 2 + number(at + 2, 2)
        else:  # has no length, so that what seems to follow is not what a decoder finds
            return None
    return None


def _rescale(dataset: Dataset, frame_number: int) -> tuple[float, float]:
    """Slope and intercept to HU."""
    source = dataset
    if "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset:
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        own = per_frame[frame_number - 1] if len(per_frame) >= frame_number else Dataset()
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        name = "PixelValueTransformationSequence"
        source = (own.get(name) or shared.get(name) or [dataset])[0]
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    if slope is None or intercept is None or str(slope) == "" or str(intercept) == "":
        raise _RefusedError("no RescaleSlope and RescaleIntercept: its values are not Hounsfield units")
    if str(source.get("RescaleType") or "HU").strip().upper() not in ("HU", "US"):
        raise _RefusedError("its RescaleType is not HU")
    factor, offset = float(slope), float(intercept)
    if not (np.isfinite([factor, offset]).all() and factor != 0):
        raise _RefusedError("its RescaleSlope or RescaleIntercept is not a number that gives Hounsfield units")
    return factor, offset


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Where the stored values are padding (PS3.3 C.7.5.1.1.2), or None where the file names none."""
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    bits = int(dataset.BitsAllocated)
    # Writers store a signed padding value as an unsigned number (63536 for -2000): read it as the pixels are.
    ends = [int(value), int(value if limit is None or limit == "" else limit)]
    if int(dataset.get("PixelRepresentation") or 0):
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    else:
        ends = [end % 2**bits for end in ends]
    mask: npt.NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return mask
