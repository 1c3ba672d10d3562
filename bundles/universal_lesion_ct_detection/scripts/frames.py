"""Corner pixels ↔ patient space: the bundle's only home of coordinate changes.

"px": (x, y) = (column, row), (0, 0) at the **corner** of the first pixel, so pixel i's centre is i + 0.5; z likewise, a
slice coordinate with slice i's centre at i + 0.5. Affines speak of voxel **centres** (as MONAI, NIfTI and
ImagePositionPatient do), into DICOM's patient space, LPS in mm: ``world = affine @ (p - 0.5)``. MONAI's own affine box
transforms do not subtract the half pixel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _arrays(points: npt.ArrayLike, affine: npt.ArrayLike) -> tuple[Array, Array]:
    points, matrix = np.asarray(points, dtype=np.float64), np.asarray(affine, dtype=np.float64)
    if points.shape[-1:] != (3,):
        raise ValueError(f"expected points with a last axis of 3, got shape {points.shape}")
    if matrix.shape != (4, 4):
        raise ValueError(f"expected a 4×4 affine, got shape {matrix.shape}")
    return points, matrix


def px_to_lps(points_px: npt.ArrayLike, affine: npt.ArrayLike) -> Array:
    """(..., 3) points x, y, z in px -> LPS mm.

    Args:
        points_px: points; slice i's centre is z = i + 0.5.
        affine: (4, 4), voxel indices (column, row, slice; centres) to LPS mm.
    """
    points, matrix = _arrays(points_px, affine)
    return (points - 0.5) @ matrix[:3, :3].T + matrix[:3, 3]


def lps_to_px(points_lps_mm: npt.ArrayLike, affine: npt.ArrayLike) -> Array:
    """LPS mm -> (..., 3) points x, y, z in px; the inverse of `px_to_lps`.

    Raises:
        numpy.linalg.LinAlgError: where the affine cannot be inverted.
    """
    points, matrix = _arrays(points_lps_mm, affine)
    flat = (points - matrix[:3, 3]).reshape(-1, 3)
    index = np.asarray(np.linalg.solve(matrix[:3, :3], flat.T).T, dtype=np.float64)
    return index.reshape(points.shape) + 0.5
