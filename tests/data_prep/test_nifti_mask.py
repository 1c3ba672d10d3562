"""NIfTI label maps: written by nibabel in several orientations, read, told from images, damaged."""

from __future__ import annotations

import gzip
import struct
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from data_prep import recist
from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection, nifti_mask
from tests.data_prep.damage import cut_or_overwritten
from tests.data_prep.tolerance import read_each

SPACING = (0.8, 0.9, 2.5)  # towards L, P, S
SHAPE = (60, 50, 12)


def labels_lps() -> np.ndarray:
    """(x, y, z) towards L, P, S: label 1 is off-centre, greatest on slice 4; label 7 is on slices 9 and 10."""
    volume = np.zeros(SHAPE, np.uint8)
    for z, half in ((3, 3), (4, 6), (5, 4)):
        volume[40 - half : 40 + half, 12 - half : 12 + half + 2, z] = 1
    volume[10:14, 30:45, 9:11] = 7
    return volume


def save(path: Path, volume: np.ndarray, codes: str = "LPS", image: Any = nib.Nifti1Image) -> Path:
    """The same anatomy with the array's axes towards ``codes``."""
    affine_ras = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine_ras[:3, 3] = (30.0, 25.0, -400.0)
    stored = image(volume, affine_ras)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(tuple("LPS")), nib.orientations.axcodes2ornt(tuple(codes))
    )
    nib.save(stored.as_reoriented(turn), path)
    return path


def bookmarks_in(path: Path) -> list[Bookmark]:
    found = list(nifti_mask.read(path))
    assert all(isinstance(item, Bookmark) for item in found), found
    return [item for item in found if isinstance(item, Bookmark)]


def recognised(path: Path) -> bool:
    with path.open("rb") as file:
        return nifti_mask.recognise(file.read(4096), path)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "RPI", "PSL", "SAR"])
@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz", "name_without_meaning"])
def test_an_off_centre_lesion_is_found_at_its_place(tmp_path: Path, codes: str, name: str) -> None:
    path = save(tmp_path / (name if "." in name else f"{name}.nii"), labels_lps(), codes)
    if "." not in name:
        path = path.rename(tmp_path / name)
    assert recognised(path)
    first, second = bookmarks_in(path)
    assert (first.slice_index, first.text, first.form) == (4, "label 1", "segmentation")
    outline = np.array(first.points)
    np.testing.assert_allclose(np.r_[outline.min(axis=0), outline.max(axis=0)], (34, 6, 46, 20), atol=0.06)
    assert (second.slice_index, second.text) == (9, "label 7")
    outline = np.array(second.points)
    np.testing.assert_allclose(np.r_[outline.min(axis=0), outline.max(axis=0)], (10, 30, 14, 45), atol=0.06)
    for bookmark in (first, second):
        assert (bookmark.columns, bookmark.rows) == SHAPE[:2]
        assert (bookmark.spacing_x_mm, bookmark.spacing_y_mm, bookmark.spacing_z_mm) == pytest.approx(SPACING)
        assert bookmark.image_uid is None
        assert bookmark.series_uid is not None
    long = recist.longest_mm(first.points, SPACING[:2])
    assert long == pytest.approx(np.hypot(12 * SPACING[0], 14 * SPACING[1]), abs=1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_any_type_that_holds_labels(tmp_path: Path, dtype: type) -> None:
    path = save(tmp_path / "mask.nii.gz", labels_lps().astype(dtype))
    assert recognised(path)
    assert len(bookmarks_in(path)) == 2


def test_nifti2_big_endian_scaled_and_four_axes(tmp_path: Path) -> None:
    expected = [bookmark.points_px for bookmark in bookmarks_in(save(tmp_path / "plain.nii", labels_lps()))]
    path = save(tmp_path / "two.nii", labels_lps(), image=nib.Nifti2Image)
    assert [bookmark.points_px for bookmark in bookmarks_in(path)] == expected
    affine = nib.Nifti2Image.from_filename(path).affine
    swapped = nib.Nifti1Image(labels_lps().astype(">i2"), affine, nib.Nifti1Header(endianness=">"))
    nib.save(swapped, tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    assert [bookmark.points_px for bookmark in bookmarks_in(tmp_path / "big.nii")] == expected
    nib.save(nib.Nifti1Image(labels_lps()[..., None], affine), tmp_path / "four.nii")
    assert [bookmark.points_px for bookmark in bookmarks_in(tmp_path / "four.nii")] == expected
    doubled = nib.Nifti1Image((labels_lps() * 2).astype(np.int16), affine)
    doubled.header.set_slope_inter(0.5, 0)
    data = bytearray(doubled.to_bytes())
    data[112:120] = struct.pack("<ff", 0.5, 0.0)
    (tmp_path / "scaled.nii").write_bytes(data)
    assert [bookmark.points_px for bookmark in bookmarks_in(tmp_path / "scaled.nii")] == expected


def test_ids_depend_on_the_content_alone(tmp_path: Path) -> None:
    first = bookmarks_in(save(tmp_path / "a.nii", labels_lps()))
    again = bookmarks_in(save(tmp_path / "b.nii.gz", labels_lps()))
    other = bookmarks_in(save(tmp_path / "c.nii", np.where(labels_lps() == 7, 0, labels_lps()).astype(np.uint8)))
    assert first == again
    assert first[0].series_uid != other[0].series_uid


def test_a_real_ct_is_no_mask(shared_data: Path) -> None:
    path = shared_data / "ct" / "totalsegmentator_ct.nii.gz"
    assert not recognised(path)
    with pytest.raises(UnreadableError, match="not a label map"):
        list(nifti_mask.read(path))


def test_a_threshold_of_a_real_ct_is_a_mask(shared_data: Path, tmp_path: Path) -> None:
    ct = nib.Nifti1Image.from_filename(shared_data / "ct" / "totalsegmentator_ct.nii.gz")
    mask = (np.asarray(ct.dataobj) > 600).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, ct.affine), tmp_path / "bone.nii.gz")
    assert recognised(tmp_path / "bone.nii.gz")
    assert len(bookmarks_in(tmp_path / "bone.nii.gz")) > 1


@pytest.mark.parametrize(
    "volume",
    [
        np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8),  # an 8-bit image
        np.random.default_rng(0).normal(0, 50, SHAPE).astype(np.int16),  # a CT
        np.full(SHAPE, 0.25, np.float32),  # probabilities
        np.full(SHAPE, np.nan, np.float32),
        np.full(SHAPE, 70_000, np.int32),
        np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint16) // 30,
        np.zeros(SHAPE[:2], np.uint8),
        np.zeros((*SHAPE, 2), np.uint8),
    ],
)
def test_volumes_that_are_no_label_maps(tmp_path: Path, volume: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "x.nii.gz")
    assert not recognised(tmp_path / "x.nii.gz")
    with pytest.raises(UnreadableError, match="not a label map"):
        list(nifti_mask.read(tmp_path / "x.nii.gz"))


def test_an_empty_mask_is_listed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", np.zeros(SHAPE, np.uint8))
    assert recognised(path)
    (found,) = nifti_mask.read(path)
    assert isinstance(found, Rejection)
    assert "empty" in found.reason


def test_noise_is_refused(tmp_path: Path) -> None:
    volume = (np.random.default_rng(0).random((150, 150, 40)) < 0.1).astype(np.uint8)
    started = time.monotonic()
    (found,) = nifti_mask.read(save(tmp_path / "x.nii", volume))
    assert isinstance(found, Rejection)
    assert "noise" in found.reason
    assert time.monotonic() - started < 10


def test_a_gzip_bomb_costs_nothing(tmp_path: Path) -> None:
    head = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()[:352])
    head[42:48] = struct.pack("<3h", 32767, 32767, 32767)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(head) + bytes(1 << 24)))
    started = time.monotonic()
    assert not recognised(path)
    with pytest.raises(UnreadableError, match="states"):
        list(nifti_mask.read(path))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("srow", [np.zeros(12), np.full(12, np.nan), np.r_[1.0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]])
def test_an_affine_without_orientation(tmp_path: Path, srow: np.ndarray) -> None:
    data = bytearray(save(tmp_path / "x.nii", labels_lps()).read_bytes())
    data[280:328] = srow.astype("<f4").tobytes()
    (tmp_path / "x.nii").write_bytes(data)
    with pytest.raises(UnreadableError, match="orientation"):
        list(nifti_mask.read(tmp_path / "x.nii"))


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_damaged_files_are_refused_or_read(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, labels_lps())
    whole = path.read_bytes()
    header = min(len(whole), 400)
    contents = cut_or_overwritten(whole, 60, seed=8, times=(1, 5, 20), reach=lambda _: header)
    refused = read_each(nifti_mask, contents, path).count(None)
    assert refused >= 30  # every truncated one, at the least


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    for data in (b"", b"\x1f\x8b", gzip.compress(b"a" * 9999), b"n+1\0" * 200, bytes(400)):
        (tmp_path / "x").write_bytes(data)
        assert not recognised(tmp_path / "x")
