"""A CT series as a volume: a DICOM folder or a NIfTI file, turned to axes L, P, S, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from tqdm import tqdm

from scripts.errors import BundleError, first_line

Array = npt.NDArray[np.float64]

AIR_HU = -1024.0
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_CT = (CT_IMAGE + ".1", CT_IMAGE + ".2")  # enhanced, and legacy converted
MAX_SHEAR = 0.05
MAX_SHIFT_MM = 0.5
"""Rounded positions are met; a slice further from the line through the others' origins is of another grid."""

MAX_TURN_DEG = 20.0
"""Slices turned further out of the axial plane are refused."""

MAX_VOXELS = 2**31
"""A whole-body CT has less; a larger one is damage or no CT."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT volume in axis order L, P, S.

    Args:
        hu: [X, Y, Z] int16 HU; x grows to the left, y to the back, z to the head.
        affine_lps: (4, 4), voxel centres (indices of ``hu``) -> LPS mm.
        to_file: (4, 4), indices of ``hu`` -> indices (column, row, slice) of the file's own grid.
        image_uids: SOP Instance UID of each slice of ``hu``; empty strings for NIfTI.
        series_uid, study_uid: None where the files have none.
        source: name of the file or folder.
        file_shape: columns, rows, slices of the file's own grid.
    """

    hu: npt.NDArray[np.int16]
    affine_lps: Array
    to_file: Array
    image_uids: tuple[str, ...]
    series_uid: str | None
    study_uid: str | None
    source: str
    file_shape: tuple[int, int, int]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z."""
        x, y, z = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def box_in_file(self, box_px: Sequence[float], slice_index: int) -> tuple[list[float], int]:
        """A box on slice ``slice_index`` of ``hu`` -> the box and the slice number in the file's own grid."""
        corners = np.array([[box_px[0], box_px[1], slice_index + 0.5], [box_px[2], box_px[3], slice_index + 0.5]])
        there = (corners - 0.5) @ self.to_file[:3, :3].T + self.to_file[:3, 3] + 0.5
        low, high = there.min(axis=0), there.max(axis=0)
        return [float(low[0]), float(low[1]), float(high[0]), float(high[1])], int(np.floor(low[2]))


def load(path: str | PathLike[str], progress: bool = True) -> Volume:
    """Read a CT series.

    Args:
        path: a folder with one DICOM series, or a ``.nii`` / ``.nii.gz`` file (or a folder with just one).

    Raises:
        BundleError: nothing there, several series, a missing or duplicate slice, uneven spacing, a tilted gantry,
            not axial, not CT, or damaged; the message names the file and says what to do.
    """
    path = Path(path)
    if path.is_dir():
        niftis = sorted(p for p in path.iterdir() if p.name.endswith((".nii", ".nii.gz")))
        if len(niftis) == 1:
            return _load_nifti(niftis[0])
        if niftis:
            raise BundleError(f"{path}: holds {len(niftis)} NIfTI files; name one of them")
        return _load_dicom(path, progress)
    if not path.exists():
        raise BundleError(f"{path}: no such file or folder (--dataset_dir)")
    if path.name.endswith((".nii", ".nii.gz")):
        return _load_nifti(path)
    raise BundleError(f"{path}: give a folder with a DICOM series, or a .nii or .nii.gz file")


def _check_axial(affine_ras: Array, path: Path) -> None:
    """Refuse a grid whose slices are not axial, before its voxels are read."""
    now = io_orientation(affine_ras)
    if np.isnan(now).any():
        raise BundleError(f"{path}: its affine is singular; the file is damaged")
    if int(now[2, 0]) != 2:
        raise BundleError(f"{path}: slices are not axial; the detector was trained on axial slices only")
    turned_deg = float(np.degrees(np.arccos(min(1.0, abs(_normal(affine_ras)[2])))))
    if turned_deg > MAX_TURN_DEG:
        raise BundleError(
            f"{path}: slices are not axial but turned by {turned_deg:.0f}°; the detector was trained on axial slices "
            "only, so reformat the series"
        )


def _normal(affine: Array) -> Array:
    """Unit vector across the slices of a grid."""
    across = np.cross(affine[:3, 0], affine[:3, 1])
    return np.asarray(across / np.linalg.norm(across), dtype=np.float64)


def _turned(data: npt.NDArray[Any], affine_ras: Array) -> tuple[npt.NDArray[Any], Array, Array]:
    """Data and affine turned to L, P, S axes, and the map from the new indices to the old."""
    turn = ornt_transform(io_orientation(affine_ras), axcodes2ornt(("L", "P", "S")))
    back = inv_ornt_aff(turn, data.shape)
    return apply_orientation(data, turn), affine_ras @ back, back


def _load_nifti(path: Path) -> Volume:
    try:
        image: Any = nib.load(path)
        shape = image.shape
        if len(shape) != 3 or not 0 < int(np.prod(shape, dtype=np.int64)) <= MAX_VOXELS:
            raise BundleError(f"{path}: a CT volume has three axes, this file's shape is {shape}")
        affine = np.asarray(image.affine, dtype=np.float64)
        _check_axial(affine, path)
        _check_shear(affine[:3, 2], _normal(affine), float(np.linalg.norm(affine[:3, 2])), path)
        data = np.asanyarray(image.dataobj)
        if not (np.issubdtype(data.dtype, np.integer) or np.issubdtype(data.dtype, np.floating)):
            raise BundleError(f"{path}: its voxels are {data.dtype}, not numbers, so this is no CT volume")
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{path}: not a readable NIfTI file ({error})") from error
    data, affine, back = _turned(data, affine)
    hu = np.clip(np.rint(np.nan_to_num(data, nan=AIR_HU)), -32768, 32767).astype(np.int16, order="F")
    return Volume(hu, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, back, ("",) * hu.shape[2], None, None, path.name, shape)


def _uid(dataset: pydicom.Dataset) -> str:
    # Some archives have files whose UIDs are empty; the file meta still has the instance's own.
    return str(dataset.get("SOPInstanceUID") or getattr(dataset.file_meta, "MediaStorageSOPInstanceUID", "") or "")


def _load_dicom(folder: Path, progress: bool) -> Volume:
    headers: list[tuple[Path, pydicom.Dataset]] = []
    for file in tqdm(
        sorted(p for p in folder.iterdir() if p.is_file()), desc="reading", unit="slice", disable=not progress
    ):
        header = _header(file)
        if header is not None:
            headers.append((file, header))
    if not headers:
        raise BundleError(f"{folder}: no DICOM slices with an image position in this folder")
    series = {str(d.get("SeriesInstanceUID") or "") for _, d in headers}
    if len(series) > 1:
        raise BundleError(f"{folder}: holds {len(series)} series; give a folder with one")
    first = headers[0][1]
    if first.get("Modality") not in (None, "", "CT"):
        raise BundleError(f"{folder}: modality {first.Modality}, the detector was trained on CT")
    geometry = {
        (int(d.Rows), int(d.Columns), *np.round([*d.ImageOrientationPatient, *d.PixelSpacing], 4).tolist())
        for _, d in headers
    }
    if len(geometry) > 1:
        raise BundleError(f"{folder}: slices of different size, spacing or orientation; split the series first")
    cosines = np.array(first.ImageOrientationPatient, dtype=np.float64)
    normal = np.cross(cosines[:3], cosines[3:])
    normal *= 1.0 if normal[2] >= 0 else -1.0  # slices are counted towards the head, as everywhere in this project
    headers.sort(key=lambda entry: float(np.dot(normal, np.array(entry[1].ImagePositionPatient, dtype=np.float64))))
    positions = np.array([d.ImagePositionPatient for _, d in headers], dtype=np.float64)
    step = _step(positions, normal, folder) if len(headers) > 1 else normal * float(first.get("SliceThickness") or 1.0)
    row_mm, column_mm = map(float, first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = cosines[:3] * column_mm, cosines[3:] * row_mm, step
    affine[:3, 3] = positions[0]
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    _check_axial(to_ras @ affine, folder)
    rows, columns = int(first.Rows), int(first.Columns)
    hu = np.empty((columns, rows, len(headers)), dtype=np.int16, order="F")  # a slice is one piece of memory
    for index, (file, _) in enumerate(tqdm(headers, desc="decoding", unit="slice", disable=not progress)):
        hu[:, :, index] = _pixels(file, rows, columns).T
    turned, affine_ras, back = _turned(hu, to_ras @ affine)
    order = [round(v) for v in (np.arange(len(headers)) * back[2, 2] + back[2, 3])]
    return Volume(
        np.asfortranarray(turned),
        to_ras @ affine_ras,
        back,
        tuple(_uid(headers[i][1]) for i in order),
        str(first.get("SeriesInstanceUID") or "") or None,
        str(first.get("StudyInstanceUID") or "") or None,
        folder.name,
        (columns, rows, len(headers)),
    )


def _header(file: Path) -> pydicom.Dataset | None:
    """The header of a slice; None for what is no slice (a licence, a thumbnail, a DICOMDIR, a report).

    Raises:
        BundleError: a slice that cannot be read or placed. To skip it would leave a part of the patient unsearched.
    """
    if file.name.startswith("."):
        return None
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        kind = str(dataset.get("SOPClassUID") or getattr(dataset.file_meta, "MediaStorageSOPClassUID", "") or "")
        if kind in MULTI_FRAME_CT:
            raise BundleError(f"{file}: Enhanced CT (many frames in a file) is not read; convert it to single slices")
        if kind and kind != CT_IMAGE and "ImagePositionPatient" not in dataset:
            return None
        for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
            numbers = [float(number) for number in dataset.get(name) or ()]
            if len(numbers) != count or not np.isfinite(numbers).all():
                raise BundleError(f"{file}: this slice has no {name}, so nothing says where it lies; get it anew")
        if not dataset.get("Rows") or not dataset.get("Columns"):
            raise ValueError("it has no size")
    except BundleError:
        raise
    except pydicom.errors.InvalidDicomError as error:
        if file.suffix.lower() == ".dcm" or file.stat().st_size == 0:
            raise BundleError(f"{file}: empty or not DICOM; copy it again, or take it out of the folder") from error
        with file.open("rb") as opened:
            if opened.read(2) in (b"\x02\x00", b"\x08\x00"):  # the groups that a DICOM file begins with
                raise BundleError(f"{file}: DICOM without its preamble; convert it (dcmtk's dcmconv does)") from error
        return None
    except Exception as error:
        raise BundleError(f"{file}: cannot be read ({first_line(error)}); copy it again") from error
    return dataset


def _step(positions: Array, normal: Array, folder: Path) -> Array:
    """The vector from one slice to the next; refuses gaps, duplicates, a tilted gantry and slices that are shifted."""
    along = positions @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    if (gaps < 0.01).any():
        raise BundleError(f"{folder}: two slices at the same place ({along[int(gaps.argmin())]:.2f} mm); remove one")
    wrong = np.flatnonzero(np.abs(gaps - usual) > 0.1 * usual)
    if len(wrong):
        at = int(wrong[0])
        raise BundleError(
            f"{folder}: slices are missing or unevenly spaced: {gaps[at]:.2f} mm after position {along[at]:.2f} mm, "
            f"elsewhere {usual:.2f} mm"
        )
    step: Array = (positions[-1] - positions[0]) / (len(positions) - 1)
    _check_shear(step, normal, usual, folder)
    off = positions - positions[0] - np.outer(np.arange(len(positions)), step)
    beside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if beside.max() > MAX_SHIFT_MM:
        at = int(beside.argmax())
        raise BundleError(
            f"{folder}: the slice at {along[at]:.2f} mm is shifted in its plane by {beside[at]:.1f} mm against the "
            "others; split the series, or resample it to one grid"
        )
    return step


def _check_shear(step: Array, normal: Array, distance: float, path: Path) -> None:
    """Refuse slices that are stacked aslant; ``distance`` of neighbouring ones in mm."""
    if np.abs(step - normal * np.dot(step, normal)).max() > MAX_SHEAR * distance:
        raise BundleError(f"{path}: the gantry is tilted; resample the series to upright slices first")


def _pixels(file: Path, rows: int, columns: int) -> npt.NDArray[np.int16]:
    """One slice as (rows, columns) HU; padding becomes air."""
    try:
        dataset = pydicom.dcmread(file)
        stored = dataset.pixel_array
    except Exception as error:
        raise BundleError(f"{file}: cannot decode this slice ({first_line(error)})") from error
    if stored.shape != (rows, columns):
        raise BundleError(f"{file}: pixel data of shape {stored.shape}, the header says {(rows, columns)}")
    slope, intercept = (dataset.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope in (None, "") or intercept in (None, ""):
        raise BundleError(f"{file}: no RescaleSlope and RescaleIntercept, so its values are not Hounsfield units")
    hu = np.where(_padding(dataset, stored), AIR_HU, stored * float(slope) + float(intercept))
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def _padding(dataset: pydicom.Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the stored values are padding (PS3.3 C.7.5.1.1.2)."""
    value, limit = (dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value in (None, ""):
        return np.zeros(stored.shape, dtype=bool)
    ends = [int(value), int(value if limit in (None, "") else limit)]
    # Writers store a signed value as an unsigned number (63536 for -2000) and the reverse: read it as the pixels are.
    span, signed = 2 ** int(dataset.BitsAllocated), bool(dataset.get("PixelRepresentation"))
    ends = [end % span - (span if signed and end % span >= span // 2 else 0) for end in ends]
    inside: npt.NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return inside
