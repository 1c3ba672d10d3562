"""Slices that each show one lesion of a known kind: an archive whose categories are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.archive.png import write_hu
from data_prep.lesion import Lesion

KINDS = ("bright disc in water", "dark ring in tissue", "stripes")


def draw(kind: int, generator: np.random.Generator, size: int) -> tuple[npt.NDArray[np.float64], list[float]]:
    """A slice of HU (size, size) with one object of a kind, and the object's box in px."""
    y, x = np.mgrid[:size, :size] + 0.5
    cx, cy = generator.uniform(0.4, 0.6, 2) * size
    radius = generator.uniform(8, 14)
    distance = np.hypot(x - cx, y - cy)
    hu = np.full((size, size), (0.0, 60.0, -80.0)[kind])
    if kind == 0:
        hu[distance < radius] = 200
    elif kind == 1:
        hu[(distance < radius) & (distance > radius / 2)] = -120
    else:
        hu += 120 * (np.sin(x / 2) > 0)
    hu += generator.normal(0, 12, hu.shape)
    return hu, [cx - radius, cy - radius, cx + radius, cy + radius]


def draw_lesions(images: Path, count: int, size: int, seed: int = 0) -> tuple[list[Lesion], list[int]]:
    """Lesions of training patients, one a patient, with their slices in ``images``; and the kind of each."""
    generator = np.random.default_rng(seed)
    lesions, kinds = [], []
    for number in range(count):
        kind = number % len(KINDS)
        hu, (x0, y0, x1, y1) = draw(kind, generator, size)
        image = f"{number:06d}_01_01/007.png"
        (images / image).parent.mkdir(parents=True)
        write_hu(images / image, hu)
        lesions.append(
            Lesion(
                lesion_id=f"{number:04d}",
                bookmark_ids=(f"b{number}",),
                source="csv",
                image=image,
                patient_id=f"p{number}",
                rows=size,
                columns=size,
                spacing_x_mm=0.8,
                spacing_y_mm=0.8,
                x0=x0,
                y0=y0,
                x1=x1,
                y1=y1,
                long_diameter_mm=(x1 - x0) * 0.8,
                split="train",
            )
        )
        kinds.append(kind)
    return lesions, kinds
