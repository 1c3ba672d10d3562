"""``DL_info.csv``: lesions as the 18 columns of the DeepLesion release."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np

from data_prep.atomic import atomic_path
from data_prep.bookmark import positive_or_none
from data_prep.errors import DataPrepError
from data_prep.frames import px_to_deeplesion_box, px_to_deeplesion_point
from data_prep.lesion import Lesion
from data_prep.readers.deeplesion_csv import COLUMNS, SPLITS
from data_prep.readings import assumed_short_axis

SPLIT_CODES = {name: code for code, name in SPLITS.items()}

IMAGE_PATTERN = re.compile(r"(\d{6,8})_(\d{2,4})_(\d{2,4})/(\d{3,5})\.png", re.ASCII)
"""``PPPPPP_SS_RR/NNN.png``: patient, study, series, slice number."""

_DECIMALS = 6  # 1e-6 px; the release has 6 significant digits, which from 1,000 px on is 0.005 px


def write_dl_info(lesions: Iterable[Lesion], path: str | PathLike[str]) -> int:
    """Write ``DL_info.csv``, one row a lesion, in the given order; atomic.

    Points and boxes are written 1-based, the exact inverse of reading them, to 1e-6 px; values that came from the
    release are written as the release has them. ``Image_size`` is columns, rows. What is not known is ``NaN`` in a
    field of several numbers and empty in a field of one. The release has no place for a lesion with only a long axis:
    its row gets the short axis that the box rule assumed (:func:`data_prep.readings.assumed_short_axis`), and ``NaN``
    for the short diameter in ``Lesion_diameters_Pixel_``, which no measured row has.

    Args:
        lesions: each with an ``image`` like ``000001_01_02/034.png``, a box, ``recist_px`` and a split.
        path: the file to write.

    Returns:
        The number of rows.

    Raises:
        DataPrepError: a lesion that cannot be a row (nothing is written), or the file cannot be written.
    """
    rows = [dl_info_row(lesion) for lesion in lesions]
    with atomic_path(path) as temporary, Path(temporary).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def dl_info_row(lesion: Lesion) -> dict[str, str]:
    """One lesion as a row of ``DL_info.csv``.

    Raises:
        DataPrepError: it cannot be a row; the message says what is missing.
    """
    name = IMAGE_PATTERN.fullmatch(lesion.image or "")
    if name is None:
        raise DataPrepError(
            f"lesion {lesion.lesion_id}: its image {lesion.image!r} is not named PPPPPP_SS_RR/NNN.png; "
            "make the images with `export`"
        )
    box_px = lesion.box_px
    if box_px is None or lesion.recist_px is None or len(lesion.recist_px) not in (4, 8):
        raise DataPrepError(f"lesion {lesion.lesion_id}: DL_info.csv needs a box and a measured diameter")
    if lesion.split not in SPLIT_CODES:
        raise DataPrepError(f"lesion {lesion.lesion_id}: split {lesion.split!r} is not one of {', '.join(SPLIT_CODES)}")
    patient, study, series, number = name.groups()
    points_px = np.array(lesion.recist_px, dtype=np.float64).reshape(-1, 2)
    measured_short = len(points_px) == 4
    if not measured_short:
        spacing_mm = (positive_or_none(lesion.spacing_x_mm) or 1.0, positive_or_none(lesion.spacing_y_mm) or 1.0)
        points_px = np.concatenate([points_px, assumed_short_axis(points_px, spacing_mm)])
    long_px, short_px = np.hypot(*(points_px[1::2] - points_px[::2]).T)
    return {
        "File_name": f"{patient}_{study}_{series}_{number}.png",
        "Patient_index": str(int(patient)),
        "Study_index": str(int(study)),
        "Series_ID": str(int(series)),
        "Key_slice_index": str(int(number)),
        "Measurement_coordinates": _numbers(*px_to_deeplesion_point(points_px).ravel()),
        "Bounding_boxes": _numbers(*px_to_deeplesion_box(box_px)),
        "Lesion_diameters_Pixel_": f"{long_px:.6g}, {short_px:.6g}" if measured_short else f"{long_px:.6g}, NaN",
        "Normalized_lesion_location": _numbers(lesion.norm_x, lesion.norm_y, lesion.norm_z, decimals=9),
        "Coarse_lesion_type": str(-1 if lesion.coarse_type is None else lesion.coarse_type),
        "Possibly_noisy": str(int(lesion.possibly_noisy)),
        "Slice_range": _numbers(lesion.slice_first, lesion.slice_last),
        "Spacing_mm_px_": _numbers(lesion.spacing_x_mm, lesion.spacing_y_mm, lesion.spacing_z_mm),
        "Image_size": _numbers(lesion.columns, lesion.rows),
        "DICOM_windows": _numbers(lesion.window_min_hu, lesion.window_max_hu),
        "Patient_gender": lesion.patient_sex or "",
        "Patient_age": "" if lesion.patient_age is None else str(float(lesion.patient_age)),
        "Train_Val_Test": str(SPLIT_CODES[lesion.split]),
    }


def _numbers(*values: float | None, decimals: int = _DECIMALS) -> str:
    return ", ".join(_number(value, decimals) for value in values)


def _number(value: float | None, decimals: int) -> str:
    if value is None or not math.isfinite(value):
        return "NaN"
    # Rounding first takes away the noise of the change of frame; adding 0 turns -0.0 into 0.
    return f"{round(float(value), decimals) + 0.0:.{decimals + 6}g}"
