"""16-bit PNG slices as DeepLesion stores them: pixel value = HU + 32768."""

from __future__ import annotations

from os import PathLike
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.atomic import atomic_path
from data_prep.errors import UnreadableError

HU_OFFSET = 32768


def read_hu(path: str | PathLike[str]) -> npt.NDArray[np.float32]:
    """Read a slice.

    Returns:
        (rows, columns) float32 HU.

    Raises:
        UnreadableError: no such file, damaged, or not a 16-bit one-channel PNG.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    # OpenCV decodes a truncated PNG to a partly blank image with a warning only; every whole one ends in IEND.
    if data[:8].tobytes() != b"\x89PNG\r\n\x1a\n":
        raise UnreadableError(f"{path}: not a PNG file")
    if b"IEND" not in data[-64:].tobytes():
        raise UnreadableError(f"{path}: the PNG file is truncated; copy it again")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UnreadableError(f"{path}: not a readable PNG file ({error.err})") from error
    if image is None:
        raise UnreadableError(f"{path}: not a readable PNG file; copy it again")
    if image.dtype != np.uint16 or image.ndim != 2:
        raise UnreadableError(
            f"{path}: a slice must be a 16-bit grey PNG (HU + {HU_OFFSET}), this one is {8 * image.itemsize}-bit with "
            f"{1 if image.ndim == 2 else image.shape[2]} channel(s)"
        )
    return image.astype(np.float32) - HU_OFFSET


def write_hu(path: str | PathLike[str], hu: npt.ArrayLike) -> None:
    """Write a (rows, columns) slice of HU; rounds to integers and clips to what 16 bits hold. Atomic."""
    values = np.clip(np.rint(np.asarray(hu, dtype=np.float64)) + HU_OFFSET, 0, 65535).astype(np.uint16)
    if values.ndim != 2:
        raise ValueError(f"a slice has two axes, got shape {values.shape}")
    # Level 1: noise does not compress, and higher levels only cost time.
    _, data = cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    with atomic_path(path) as temporary:
        data.tofile(temporary)


def neighbours(images: str | PathLike[str], image: str, count: int, step: int = 1) -> list[str]:
    """The paths of ``count`` slices with ``image`` in the middle, ordered by slice number.

    Args:
        images: the images folder.
        image: the key slice below it, ``SERIES/NNN.png``.
        count: odd.
        step: how many slices lie from one neighbour to the next.

    Returns:
        ``count`` paths below ``images``; where a neighbour is missing, the nearest one towards the key slice that is
        there (in the end the key slice itself) stands in for it.
    """
    if count < 1 or count % 2 == 0:
        raise ValueError(f"the number of slices must be odd, got {count}")
    key = PurePosixPath(image)
    root = Path(images)
    if not key.stem.isdecimal():
        return [image] * count
    found = [image]
    for direction in (-1, 1):
        last = image
        for offset in range(step, step * (count // 2) + 1, step):
            number = int(key.stem) + direction * offset
            candidate = str(key.with_name(f"{number:0{len(key.stem)}d}{key.suffix}"))
            if number >= 0 and (root / candidate).is_file():
                last = candidate
            found = [last, *found] if direction < 0 else [*found, last]
    return found
