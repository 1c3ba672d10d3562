"""Parts of files as DeepLesion has them: some rows of a ``DL_info.csv``, the PNG slices of a series as a volume."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.archive.png import read_hu
from data_prep.atomic import atomic_path


def copy_rows(source: Path, target: Path, keep: Callable[[str], bool]) -> int:
    """Copy the rows of a ``DL_info.csv`` whose ``File_name`` is to be kept; how many they are."""
    with source.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        rows = [row for row in table if keep(row["File_name"])]
    with atomic_path(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=table.fieldnames or ())
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def write_nifti(slices: Sequence[Path], spacing_mm: Sequence[float], target: Path) -> None:
    """Stack PNG slices to a NIfTI file whose first index is the column, its second the row, its third the slice.

    Args:
        slices: from the feet up.
        spacing_mm: (3,) between columns, rows and slices; above 0.
        target: to write.
    """
    hu = np.stack([read_hu(path).T for path in slices], axis=-1).astype(np.int16)
    x, y, z = spacing_mm
    # Columns run to the patient's left and rows to the back, as on the screen; NIfTI counts to the right and the front.
    nib.Nifti1Image(hu, np.diag([-x, -y, z, 1.0])).to_filename(target)
