"""A CT series with one lesion, and its export, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from data_prep.archive.export import ExportSummary, export
from data_prep.frames import box_from_recist
from data_prep.lesion import Lesion, write_lesions

MakeCt = Callable[..., list[Path]]

RECIST_PX = (50.0, 21.0, 60.0, 23.0, 54.6, 24.0, 55.4, 20.0)  # around the bright lesion of `ct`


def ct(slices: int = 30, rows: int = 70, columns: int = 90, key: int = 12) -> np.ndarray:
    """A body in air with noise, and on slice ``key`` a bright lesion at columns 50-59, rows 20-23."""
    volume = np.full((slices, rows, columns), -1000)
    volume[:, 10:60, 20:80] = np.random.default_rng(1).integers(0, 60, (slices, 50, 60))
    volume[key, 20:24, 50:60] = 500
    return volume


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def lesion(path: Path, lesion_id: str = "0123456789abcdef", **changes: Any) -> Lesion:
    box = box_from_recist(np.reshape(RECIST_PX, (-1, 2))).tolist()
    values: dict[str, Any] = {
        "lesion_id": lesion_id,
        "bookmark_ids": ("b",),
        "source": "dicom-sr",
        "image_uid": uid_of(path),
        "recist_px": RECIST_PX,
        **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
    }
    return Lesion(**{**values, **changes})


def run(tmp_path: Path, lesions: list[Lesion], **options: Any) -> ExportSummary:
    write_lesions(lesions, tmp_path / "lesions.parquet")
    return export(tmp_path / "lesions.parquet", tmp_path / "dicom", tmp_path / "out", progress=False, **options)
