"""Segmentations that others made: read, placed on their images, damaged."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.sr.codedict import codes
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from skimage.measure import label, regionprops

from data_prep import recist
from data_prep.archive.index import ImageIndex
from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection, dicom_seg
from tests.data_prep.damage import cut_or_overwritten
from tests.data_prep.dicom_objects import FakeImages
from tests.data_prep.seg_objects import (
    COLUMNS,
    EVIDENCE,
    ROWS,
    SPACING,
    bookmarks_in,
    ct_slice,
    fake_images,
    save,
)
from tests.data_prep.tolerance import read_each

# --- reading masks that others made --------------------------------------------------------------------------------


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """(8, rows, columns) mask; centre is slice, row, column."""
    z, y, x = np.ogrid[:8, :ROWS, :COLUMNS]
    mm = ((z - centre[0]) * 2.0) ** 2 + ((y - centre[1]) * SPACING) ** 2 + ((x - centre[2]) * SPACING) ** 2
    return np.asarray(mm <= radius**2)


ALGORITHM = highdicom.AlgorithmIdentificationSequence("segmenter", codes.cid7162.ArtificialIntelligence, "1")


def foreign(
    pixels: np.ndarray, kind: str = "BINARY", count: int = 1, algorithm: str = "MANUAL", **options: Any
) -> highdicom.seg.Segmentation:
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"Segment {number}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=algorithm,
            algorithm_identification=None if algorithm == "MANUAL" else ALGORITHM,
        )
        for number in range(1, count + 1)
    ]
    return highdicom.seg.Segmentation(
        source_images=EVIDENCE,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid="1.2.5",
        series_number=2,
        sop_instance_uid="1.2.5.1",
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        **options,
    )


def test_one_bookmark_per_lesion_on_its_greatest_slice(tmp_path: Path) -> None:
    pixels = ball((3.2, 40, 40), 7) | ball((5, 100, 80), 4)
    found = sorted(bookmarks_in(save(foreign(pixels.astype(np.uint8)), tmp_path)), key=lambda b: b.image_uid or "")
    assert [(b.image_uid, b.text) for b in found] == [("1.2.3.4", "Segment 1"), ("1.2.3.6", "Segment 1")]
    for bookmark, centre, radius in zip(found, [(40.5, 40.5), (80.5, 100.5)], [7, 4], strict=True):
        outline = np.array(bookmark.points)
        np.testing.assert_allclose((outline.min(axis=0) + outline.max(axis=0)) / 2, centre, atol=0.3)
        assert recist.longest_mm(outline, (SPACING, SPACING)) == pytest.approx(2 * radius, abs=1.0)
        assert bookmark.bookmark_id not in [other.bookmark_id for other in found if other is not bookmark]


@pytest.mark.parametrize(
    ("algorithm", "source"), [("MANUAL", "dicom-seg"), ("SEMIAUTOMATIC", "dicom-seg"), ("AUTOMATIC", "detector")]
)
def test_what_software_segmented_is_a_detection(tmp_path: Path, algorithm: str, source: str) -> None:
    pixels = ball((3.2, 40, 40), 7).astype(np.uint8)
    (found,) = bookmarks_in(save(foreign(pixels, algorithm=algorithm), tmp_path))
    assert found.source == source


def test_a_missing_slice_parts_a_lesion(tmp_path: Path) -> None:
    pixels = np.zeros((8, ROWS, COLUMNS), np.uint8)
    pixels[[0, 1, 2, 5, 6], 30:50, 30:60] = 1
    pixels[[1, 6], 30:60, 30:60] = 1
    found = bookmarks_in(save(foreign(pixels), tmp_path))
    assert sorted(bookmark.image_uid or "" for bookmark in found) == ["1.2.3.2", "1.2.3.7"]


def test_fractional_is_inside_from_half_on(tmp_path: Path) -> None:
    pixels = np.zeros((8, ROWS, COLUMNS))
    pixels[2, 20:60, 20:60] = 0.4
    pixels[2, 30:50, 30:50] = 0.6
    (found,) = bookmarks_in(save(foreign(pixels, "FRACTIONAL"), tmp_path))
    outline = np.array(found.points)
    np.testing.assert_allclose(np.r_[outline.min(axis=0), outline.max(axis=0)], (30, 30, 50, 50), atol=0.1)


@pytest.mark.parametrize(
    "options", [{}, *({"transfer_syntax_uid": syntax} for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless))]
)
def test_label_map(tmp_path: Path, options: dict[str, Any]) -> None:
    pixels = np.zeros((8, ROWS, COLUMNS), np.uint8)
    pixels[ball((3, 40, 40), 7)] = 1
    pixels[ball((5, 100, 80), 4)] = 2
    path = save(foreign(pixels, "LABELMAP", 2, **options), tmp_path)
    assert dicom_seg.recognise(b"", path)
    found = bookmarks_in(path)
    assert [(b.image_uid, b.text) for b in found] == [("1.2.3.4", "Segment 1"), ("1.2.3.6", "Segment 2")]


@pytest.mark.parametrize("name", ["liver_1frame.dcm", "liver_expb_1frame.dcm"])
def test_a_file_of_foreign_software(name: str) -> None:
    """dcmqi's segmentation of a liver, little and big endian, that comes with pydicom; its region by scikit-image."""
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom comes without {name}")
    dataset = pydicom.dcmread(path)
    (x_mm, y_mm) = map(float, dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)
    regions = regionprops(label(dataset.pixel_array, connectivity=2))
    found = bookmarks_in(Path(path))
    assert len(found) == len(regions)
    for bookmark in found:
        low, high = np.min(bookmark.points, axis=0), np.max(bookmark.points, axis=0)
        best = min(regions, key=lambda region: np.abs(np.array(region.bbox[1::-1]) - low).max())
        np.testing.assert_allclose(np.r_[low, high], np.array(best.bbox)[[1, 0, 3, 2]], atol=0.76)
        assert bookmark.text == "Liver"
        assert (bookmark.spacing_x_mm, bookmark.spacing_y_mm) == pytest.approx((y_mm, x_mm))
        frame = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
        assert bookmark.image_uid == frame.ReferencedSOPInstanceUID


def test_an_empty_segment_is_listed(tmp_path: Path) -> None:
    pixels = np.zeros((8, ROWS, COLUMNS, 2), np.uint8)
    pixels[3, 30:40, 30:40, 0] = 1
    found = list(dicom_seg.read(save(foreign(pixels, count=2), tmp_path)))
    assert [type(item) for item in found] == [Bookmark, Rejection]
    assert isinstance(found[1], Rejection)
    assert (found[1].row, "empty" in found[1].reason) == ("segment 2", True)


def test_noise_is_refused(tmp_path: Path) -> None:
    pixels = (np.random.default_rng(0).random((8, ROWS, COLUMNS)) < 0.15).astype(np.uint8)
    started = time.monotonic()
    (found,) = dicom_seg.read(save(foreign(pixels), tmp_path))
    assert isinstance(found, Rejection)
    assert "noise" in found.reason
    assert time.monotonic() - started < 10


def test_bookmark_id_does_not_depend_on_the_path(tmp_path: Path) -> None:
    segmentation = foreign(ball((3, 40, 40), 7).astype(np.uint8))
    (first,) = bookmarks_in(save(segmentation, tmp_path))
    (second,) = bookmarks_in(save(segmentation, tmp_path, "other.bin"))
    assert first == second


# --- placing masks on images ---------------------------------------------------------------------------------------


def test_a_mask_with_its_own_grid_is_moved_onto_the_image(tmp_path: Path) -> None:
    segmentation = foreign(ball((3, 40, 30), 7).astype(np.uint8))
    path = save(segmentation, tmp_path)
    (same,) = bookmarks_in(path, fake_images())
    # The image is stored from right to left with pixels twice as fine; its first column lies where the last one did.
    turned = fake_images(orientation=(-1.0, 0, 0, 0, 1, 0), spacing_x_mm=SPACING / 2, columns=2 * COLUMNS)
    for image in turned.values():
        x, y, z = image.position_lps_mm or ()
        image.position_lps_mm = (x + (COLUMNS - 0.5 - 0.25) * SPACING, y, z)
    (moved,) = bookmarks_in(path, turned)
    expected = np.array(same.points) * (-2, 1) + (2 * COLUMNS, 0)
    np.testing.assert_allclose(moved.points, expected, atol=1e-4)
    assert moved.note is not None
    assert "moved" in moved.note
    assert moved.spacing_x_mm is None  # harvest takes the image's own


@pytest.mark.parametrize("changes", [{"position_lps_mm": (-50.0, -60.0, 300.0)}, {"position_lps_mm": None, "rows": 64}])
def test_a_mask_that_is_not_on_its_image(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save(foreign(ball((3, 40, 30), 7).astype(np.uint8)), tmp_path)
    (found,) = dicom_seg.read(path, fake_images(**changes))
    assert isinstance(found, Rejection)
    assert "mask" in found.reason


def test_with_an_index_of_image_files(tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in range(8):
        image = ct_slice(number)
        image.PixelData = bytes(2 * ROWS * COLUMNS)
        save(image, folder, f"{number}.dcm")
    images = ImageIndex.build(folder, progress=False)
    path = save(foreign(ball((3, 40, 30), 7).astype(np.uint8)), tmp_path)
    (bookmark,) = bookmarks_in(path, images)
    (expected,) = bookmarks_in(path, fake_images())
    assert bookmark == expected
    assert bookmark.source_frame == "declared"


def without_sources(segmentation: Dataset) -> Dataset:
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    return segmentation


def test_a_frame_that_names_no_image(tmp_path: Path) -> None:
    path = save(without_sources(foreign(ball((3, 40, 30), 7).astype(np.uint8))), tmp_path)
    (found,) = dicom_seg.read(path)
    assert isinstance(found, Rejection)
    assert "--images" in found.reason
    (placed,) = bookmarks_in(path, fake_images())
    assert placed.image_uid == "1.2.3.4"
    (lost,) = dicom_seg.read(path, FakeImages())
    assert isinstance(lost, Rejection)


# --- damage --------------------------------------------------------------------------------------------------------


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    path = save(foreign(ball((3, 40, 40), 7).astype(np.uint8)), tmp_path)
    whole = path.read_bytes()
    # Most of a segmentation is pixels; the closer to its beginning, the more the damage does.
    contents = cut_or_overwritten(whole, 80, seed=11, reach=lambda number: len(whole) // (1 + number % 3))
    assert {bool(found) for found in read_each(dicom_seg, contents, path, secret="Canary")} == {True, False}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("Rows", 65535),
        ("Columns", 0),
        ("NumberOfFrames", 2_000_000_000),
        ("NumberOfFrames", 50),
        ("BitsAllocated", 16),
        ("SamplesPerPixel", 3),
        ("PixelData", b"\0\0"),
        ("PerFrameFunctionalGroupsSequence", None),
        ("SegmentSequence", None),
    ],
)
def test_a_header_that_lies(tmp_path: Path, keyword: str, value: Any) -> None:
    segmentation = pydicom.dcmread(save(foreign(ball((3, 40, 40), 7).astype(np.uint8)), tmp_path))
    if value is None:
        del segmentation[keyword]
    else:
        setattr(segmentation, keyword, value)
    path = save(segmentation, tmp_path)
    (found,) = read_each(dicom_seg, [path.read_bytes()], path, secret="Canary")
    assert not [item for item in found or () if isinstance(item, Bookmark)]


def decoding_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("a frame is decoded")

    monkeypatch.setattr(dicom_seg, "iter_pixels", decoded)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_frames_larger_than_the_header_says_are_not_decoded(
    syntax: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmentation = foreign(ball((3, 40, 40), 7).astype(np.uint8), "LABELMAP", transfer_syntax_uid=syntax)
    segmentation.Rows = segmentation.Columns = 16
    path = save(segmentation, tmp_path)
    decoding_nothing(monkeypatch)
    with pytest.raises(UnreadableError) as caught:
        list(dicom_seg.read(path))
    reason = "frame 1 is not decoded: the compressed image is 130 x 121, the header says 16 x 16"
    assert str(caught.value) == f"{path}: {reason}"


@pytest.mark.parametrize("table", ["none", "basic", "extended", "extended, lengths missing"])
def test_each_frame_is_compared_with_the_header(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame of several is larger than the others, wherever the file says that it begins."""
    pixels = np.zeros((8, ROWS, COLUMNS), np.uint8)
    pixels[2:6, 30:50, 30:60] = 1
    segmentation = foreign(pixels, "LABELMAP", transfer_syntax_uid=JPEG2000Lossless)
    count = int(segmentation.NumberOfFrames)
    frames = list(generate_frames(segmentation.PixelData, number_of_frames=count))
    large = bytearray(frames[2])
    large[8:16] = struct.pack(">II", 40_000, 40_000)
    frames[2] = bytes(large)
    if table.startswith("extended"):
        segmentation.PixelData, offsets, lengths = encapsulate_extended(frames)
        # pydicom ignores a table whose lengths are fewer.
        segmentation.ExtendedOffsetTable = offsets
        segmentation.ExtendedOffsetTableLengths = lengths if table == "extended" else lengths[:16]
    else:
        segmentation.PixelData = encapsulate(frames, has_bot=table == "basic")
    path = save(segmentation, tmp_path)
    decoding_nothing(monkeypatch)
    with pytest.raises(UnreadableError, match="frame 3 is not decoded: the compressed image is 40000 x 40000"):
        list(dicom_seg.read(path))


def test_frames_that_state_no_size_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation = foreign(ball((3, 40, 40), 7).astype(np.uint8), "LABELMAP", transfer_syntax_uid=JPEG2000Lossless)
    segmentation.PixelData = encapsulate([b"\0\0\0\x0cjP  \r\n\x87\n"] * int(segmentation.NumberOfFrames))
    path = save(segmentation, tmp_path)
    decoding_nothing(monkeypatch)
    with pytest.raises(UnreadableError, match="frame 1 is not decoded: the compressed image states no size"):
        list(dicom_seg.read(path))


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    image = ct_slice(0)
    image.PixelData = bytes(2 * ROWS * COLUMNS)
    path = save(image, tmp_path)
    assert not dicom_seg.recognise(path.read_bytes()[:4096], path)
    (tmp_path / "text").write_text("no DICOM")
    assert not dicom_seg.recognise(b"no DICOM", tmp_path / "text")
    with pytest.raises(UnreadableError):
        list(dicom_seg.read(tmp_path / "text"))
