"""The same off-centre lesion is found at its place in DICOM and in RAS, LAS and LPS NIfTI files."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.affines import apply_affine
from pydicom.dataset import FileMetaDataset
from scipy.spatial.transform import Rotation
from scripts.contract import make
from scripts.errors import BundleError
from scripts.inference import SeriesDataset
from scripts.volume import AIR_HU, Volume, load

SHAPE, SPACING = (40, 32, 12), np.array([0.8, 0.9, 2.5])
ORIGIN = np.array([-20.0, -35.0, 100.0])
LESION = (slice(28, 34), slice(6, 10), slice(7, 9))  # in L, P, S indices: left, front, upper


def anatomy() -> np.ndarray:
    hu = np.full(SHAPE, -50, dtype=np.int16)
    hu[LESION] = 300
    return hu


def lesion_centre_lps() -> np.ndarray:
    centre_index = np.array([(28 + 33) / 2, (6 + 9) / 2, (7 + 8) / 2])
    return ORIGIN + centre_index * SPACING


def write_nifti(path: Path, codes: str) -> None:
    lps = np.diag([*SPACING, 1.0])
    lps[:3, 3] = ORIGIN
    image = nib.Nifti1Image(anatomy(), np.diag([-1.0, -1, 1, 1]) @ lps)
    now = nib.orientations.io_orientation(image.affine)
    image.as_reoriented(nib.orientations.ornt_transform(now, nib.orientations.axcodes2ornt(tuple(codes)))).to_filename(
        path
    )


def write_dicom(folder: Path, orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0), skip: tuple[int, ...] = ()) -> None:
    folder.mkdir(exist_ok=True)
    hu = anatomy()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    for k in range(SHAPE[2]):
        if k in skip:
            continue
        plane, origin = hu[:, :, k], ORIGIN + np.array([0, 0, k * SPACING[2]])
        for axis, direction in ((0, row), (1, column)):
            if direction[axis] < 0:
                plane = np.flip(plane, axis)
                origin = origin + abs(direction) * (SHAPE[axis] - 1) * SPACING[axis]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds = pydicom.Dataset()
        ds.file_meta = meta
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = "1.2.3", "1.2", "CT"
        ds.Rows, ds.Columns = SHAPE[1], SHAPE[0]
        ds.PixelSpacing = [SPACING[1], SPACING[0]]
        ds.ImageOrientationPatient, ds.ImagePositionPatient = list(orientation), origin.tolist()
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 16, 16, 15, 0, 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.InstanceNumber = SHAPE[2] - k  # against the order of positions, as some scanners number
        ds.PixelData = (plane.T + 1024).astype(np.uint16).tobytes()
        ds.save_as(folder / f"{(k * 7) % 13:02d}.dcm", enforce_file_format=True)


def check(volume: Volume) -> None:
    """The lesion lies where it was drawn, in L, P, S indices and in mm."""
    np.testing.assert_allclose(np.argwhere(volume.hu > 200).min(0), [28, 6, 7])
    np.testing.assert_allclose(np.argwhere(volume.hu > 200).max(0), [33, 9, 8])
    centre = np.argwhere(volume.hu > 200).mean(0)
    np.testing.assert_allclose(apply_affine(volume.affine_lps, centre), lesion_centre_lps(), atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, atol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "RPI"])
def test_nifti_of_any_orientation(tmp_path: Path, codes: str) -> None:
    path = tmp_path / "ct.nii.gz"
    write_nifti(path, codes)
    volume = load(path)
    check(volume)
    box, index = volume.box_in_file((28, 6, 34, 10), 7)
    stored = np.asarray(nib.load(path).dataobj)
    inside = stored[round(box[0]) : round(box[2]), round(box[1]) : round(box[3]), index]
    assert inside.shape == (6, 4)
    assert (inside == 300).all()


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0)])
def test_dicom_supine_prone_and_mirrored(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    write_dicom(tmp_path / "ct", orientation)
    volume = load(tmp_path / "ct", progress=False)
    check(volume)
    assert volume.image_uids == tuple(f"1.2.3.{k + 1}" for k in range(12))
    box, index = volume.box_in_file((28, 6, 34, 10), 7)
    file = next(p for p in (tmp_path / "ct").iterdir() if pydicom.dcmread(p).SOPInstanceUID == "1.2.3.8")
    stored = pydicom.dcmread(file).pixel_array  # rows, columns of the file itself
    assert index == 7
    assert (stored[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] == 300 + 1024).all()


def test_dicom_and_nifti_give_the_same_volume(tmp_path: Path) -> None:
    write_dicom(tmp_path / "ct")
    write_nifti(tmp_path / "ct.nii", "RAS")
    dicom, nifti = load(tmp_path / "ct", progress=False), load(tmp_path / "ct.nii")
    np.testing.assert_array_equal(dicom.hu, nifti.hu)
    np.testing.assert_allclose(dicom.affine_lps, nifti.affine_lps, atol=1e-4)


def test_a_missing_or_doubled_slice_is_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "gap", skip=(5,))
    with pytest.raises(ValueError, match=r"gap: slices are missing.*5\.00 mm"):
        load(tmp_path / "gap", progress=False)
    write_dicom(tmp_path / "twice")
    file = next((tmp_path / "twice").iterdir())
    (tmp_path / "twice" / "copy.dcm").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="same place"):
        load(tmp_path / "twice", progress=False)


@pytest.mark.parametrize(
    ("signed", "value", "limit"), [(0, 24, None), (1, 63536, None), (1, -2000, -1990), (0, 20, 30)]
)
def test_padding_becomes_air_however_its_value_is_written(
    tmp_path: Path, signed: int, value: int, limit: int | None
) -> None:
    write_dicom(tmp_path)
    stored = -2000 if signed else 24
    for file in tmp_path.iterdir():
        ds = pydicom.dcmread(file)
        pixels = ds.pixel_array.astype(np.int16)
        pixels[:3] = stored
        ds.PixelRepresentation, ds.PixelData = signed, pixels.tobytes()
        ds.add_new(0x00280120, "SS" if value < 0 else "US", value)
        if limit is not None:
            ds.add_new(0x00280121, "SS" if limit < 0 else "US", limit)
        ds.save_as(file)
    hu = load(tmp_path).hu
    assert (hu[:, :3] == AIR_HU).all()
    assert (hu[:, 3:] >= -50).all()


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("empty", [False, True])
def test_values_that_are_not_hu_are_refused(tmp_path: Path, tag: str, empty: bool) -> None:
    write_dicom(tmp_path)
    file = tmp_path / "07.dcm"
    ds = pydicom.dcmread(file)
    if empty:
        ds[tag].value = ""
    else:
        delattr(ds, tag)
    ds.save_as(file)
    with pytest.raises(BundleError, match=r"07\.dcm: no RescaleSlope and RescaleIntercept"):
        load(tmp_path)


@pytest.mark.parametrize("left", [0, 200, 700])
def test_a_damaged_slice_is_not_left_out(tmp_path: Path, left: int) -> None:
    write_dicom(tmp_path)
    last = tmp_path / f"{(SHAPE[2] - 1) * 7 % 13:02d}.dcm"  # the uppermost: without it no gap would tell
    last.write_bytes(last.read_bytes()[:left])
    with pytest.raises(BundleError, match=re.escape(str(last))):
        load(tmp_path, progress=False)


def test_a_slice_without_preamble_is_not_left_out(tmp_path: Path) -> None:
    write_dicom(tmp_path)
    bare = tmp_path / "07.dcm"
    (tmp_path / "IM7").write_bytes(bare.read_bytes()[132:])
    bare.unlink()
    with pytest.raises(BundleError, match="IM7: DICOM without its preamble"):
        load(tmp_path, progress=False)


def test_what_is_no_slice_may_lie_beside_them(tmp_path: Path) -> None:
    write_dicom(tmp_path)
    (tmp_path / "LICENSE").write_text("as you like")
    (tmp_path / ".DS_Store").write_bytes(b"")
    report = pydicom.dcmread(tmp_path / "00.dcm")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.ComprehensiveSRStorage
    del report.ImagePositionPatient, report.PixelData
    report.save_as(tmp_path / "report.dcm")
    check(load(tmp_path, progress=False))


@pytest.mark.parametrize("name", ["PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"])
def test_a_slice_without_a_place_is_named(tmp_path: Path, name: str) -> None:
    write_dicom(tmp_path)
    dataset = pydicom.dcmread(tmp_path / "07.dcm")
    delattr(dataset, name)
    dataset.save_as(tmp_path / "07.dcm")
    with pytest.raises(BundleError, match=rf"07\.dcm: this slice has no {name}"):
        load(tmp_path, progress=False)


def test_slices_shifted_in_their_plane_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path)
    for k in range(6, SHAPE[2]):
        path = tmp_path / f"{k * 7 % 13:02d}.dcm"
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[0] += 50 if k < SHAPE[2] - 1 else 0  # first and last in line
        dataset.save_as(path)
    with pytest.raises(BundleError, match=r"shifted in its plane by 50\.0 mm"):
        load(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.array([[1, 0, 0], [0, 1, 0.5], [0, 0, 1]]), "tilted"),
        (Rotation.from_euler("x", 40, degrees=True).as_matrix(), "turned by 40°"),
    ],
)
def test_tilted_and_oblique_nifti_are_refused(tmp_path: Path, change: np.ndarray, words: str) -> None:
    affine = np.eye(4)
    affine[:3, :3] = change @ np.diag(SPACING)
    nib.Nifti1Image(anatomy(), affine).to_filename(tmp_path / "a.nii")
    with pytest.raises(BundleError, match=words):
        load(tmp_path / "a.nii")


def test_slices_turned_a_little_are_read(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", 8, degrees=True).as_matrix() @ np.diag(SPACING)
    nib.Nifti1Image(anatomy(), affine).to_filename(tmp_path / "a.nii")
    assert load(tmp_path / "a.nii").spacing_mm == pytest.approx(tuple(SPACING), abs=1e-5)


def test_colours_are_no_ct(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(rgb, np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(BundleError, match="not numbers"):
        load(tmp_path / "a.nii")


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no DICOM slices"):
        load(tmp_path, progress=False)
    (tmp_path / "broken.nii").write_bytes(b"\0" * 400)
    with pytest.raises(ValueError, match=r"broken\.nii"):
        load(tmp_path / "broken.nii")
    write_nifti(tmp_path / "sagittal.nii", "SPL")
    with pytest.raises(ValueError, match="axial"):
        load(tmp_path / "sagittal.nii")


def test_real_series_without_uids(shared_data: Path) -> None:
    volume = load(shared_data / "ct" / "totalsegmentator_dicom", progress=False)
    assert volume.hu.shape[2] == 20
    assert volume.series_uid is None
    assert len(set(volume.image_uids)) == 20
    assert volume.spacing_mm[2] == pytest.approx(2.0, abs=0.01)
    # The oracle is MONAI's ITK reader: same voxels once both are turned to the same axes.
    from monai.transforms import LoadImage, Orientation

    image = LoadImage(image_only=True, ensure_channel_first=True)(shared_data / "ct" / "totalsegmentator_dicom")
    lps = Orientation(axcodes="LPS", labels=None)(image)[0]
    np.testing.assert_array_equal(np.asarray(lps), volume.hu)


@pytest.mark.parametrize("step_mm", [None, 2.5, 4.0])
def test_a_series_gives_the_channels_its_contract_says(tmp_path: Path, step_mm: float | None) -> None:
    """Slices at the contract's distance, one pixel of the input 0.45 mm, and the lesion where its box is."""
    hu = np.repeat(np.arange(SHAPE[2])[None, None] * 20.0, SHAPE[0], 0).repeat(SHAPE[1], 1)
    hu[28:34, 6:10] += 500
    affine = np.diag([-0.9, -0.9, 2.5, 1.0])
    nib.Nifti1Image(hu.astype(np.int16), affine).to_filename(tmp_path / "ramp.nii")
    dataset = SeriesDataset(tmp_path / "ramp.nii", make(3, [[0, 255]], 96, step_mm, pixel_mm=0.45), progress=False)
    item = dataset[5]
    per_step = 20 * (step_mm or 2.5) / 2.5
    np.testing.assert_allclose(item["image"][:, 4, 4] * 255, 100 + np.array([-1, 0, 1]) * per_step, atol=1)
    np.testing.assert_allclose(dataset[0]["image"][0, 4, 4] * 255, 0, atol=1)  # nothing below the lowest slice
    found = np.argwhere(item["image"][1].numpy() > 0.8)
    box = np.concatenate([found.min(0), found.max(0) + 1]) / item["resize_factor"].numpy()
    np.testing.assert_allclose(box, [28, 6, 34, 10], atol=0.3)
