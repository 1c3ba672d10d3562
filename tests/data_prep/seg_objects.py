"""CT slices and marks on them, from which the tests make segmentations."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from data_prep.bookmark import Bookmark
from data_prep.readers import dicom_seg
from tests.data_prep.dicom_objects import FakeImage, FakeImages, ct_header

CREATED = datetime.datetime(2021, 3, 4, 5, 6, 7)
UIDS: dict[str, Any] = {"sop_instance_uid": "1.2.4.1", "series_instance_uid": "1.2.4", "created": CREATED}
ROWS, COLUMNS = 130, 121  # neither is a multiple of 8: frames of packed bits begin within a byte
SPACING = 0.8


def ct_slice(number: int, step_mm: float = 2.0, **changes: Any) -> Dataset:
    values: dict[str, Any] = {
        "SOPInstanceUID": f"1.2.3.{number + 1}",
        "StudyInstanceUID": "1.2.9",
        "SeriesInstanceUID": "1.2.8",
        "FrameOfReferenceUID": "1.2.7",
        "PatientID": "P1",
        "PatientName": "Canary^Name",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "PixelSpacing": [SPACING, SPACING],
        "ImagePositionPatient": [-50.0, -60.0, number * step_mm],
        "SliceThickness": step_mm,
    }
    return ct_header(number, **(values | changes))


EVIDENCE = [ct_slice(number) for number in range(8)]


def fake_images(**changes: Any) -> FakeImages:
    images = FakeImages()
    for k in range(8):
        values: dict[str, Any] = {
            "position_lps_mm": (-50.0, -60.0, 2.0 * k),
            "spacing_x_mm": SPACING,
            "spacing_y_mm": SPACING,
            "spacing_z_mm": 2.0,
            "rows": ROWS,
            "columns": COLUMNS,
            "slice_index": k,
        }
        images[f"1.2.3.{k + 1}"] = FakeImage(**(values | changes))
    return images


def mark(form: str, points: Any, image: int = 2, **fields: Any) -> Bookmark:
    values: dict[str, Any] = {
        "bookmark_id": "0123456789abcdef",
        "source": "dicom-sr",
        "image_uid": f"1.2.3.{image + 1}",
        "spacing_x_mm": SPACING,
        "spacing_y_mm": SPACING,
    }
    flat = tuple(float(value) for value in np.asarray(points, float).ravel())
    return Bookmark(form=form, points_px=flat, **(values | fields))


def save(segmentation: Dataset, folder: Path, name: str = "seg.dcm") -> Path:
    path = folder / name
    segmentation.save_as(path, enforce_file_format=True)
    return path


def bookmarks_in(path: Path, images: Any = None) -> list[Bookmark]:
    found = list(dicom_seg.read(path, images))
    assert all(isinstance(item, Bookmark) for item in found), found
    return [item for item in found if isinstance(item, Bookmark)]
