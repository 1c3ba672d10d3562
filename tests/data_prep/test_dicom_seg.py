"""Segmentations: written, judged by other software, read back, damaged."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import math
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from skimage.measure import label, regionprops

from data_prep import frames, recist
from data_prep.archive.index import ImageIndex
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError, UnreadableError
from data_prep.frames import Array
from data_prep.readers import Rejection, dicom_seg
from data_prep.writers.dicom_seg import build_segmentation, mask_of

CREATED = datetime.datetime(2021, 3, 4, 5, 6, 7)
UIDS: dict[str, Any] = {"sop_instance_uid": "1.2.4.1", "series_instance_uid": "1.2.4", "created": CREATED}
ROWS, COLUMNS = 130, 121  # neither is a multiple of 8: frames of packed bits begin within a byte
SPACING = 0.8


def ct_slice(number: int, step_mm: float = 2.0, **changes: Any) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.3.{number + 1}",
        "StudyInstanceUID": "1.2.9",
        "SeriesInstanceUID": "1.2.8",
        "FrameOfReferenceUID": "1.2.7",
        "PatientID": "P1",
        "PatientName": "Canary^Name",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyDate": "20200101",
        "StudyTime": "000000",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "",
        "Modality": "CT",
        "PositionReferenceIndicator": "",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "PixelSpacing": [SPACING, SPACING],
        "ImagePositionPatient": [-50.0, -60.0, number * step_mm],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": step_mm,
        "InstanceNumber": number + 1,
        "SeriesNumber": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
    }
    for keyword, value in (values | changes).items():
        setattr(image, keyword, value)
    return image


EVIDENCE = [ct_slice(number) for number in range(8)]


@dataclasses.dataclass
class FakeImage:
    position_lps_mm: tuple[float, ...] | None = (-50.0, -60.0, 0.0)
    orientation: tuple[float, ...] | None = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    spacing_x_mm: float | None = SPACING
    spacing_y_mm: float | None = SPACING
    spacing_z_mm: float | None = 2.0
    rows: int | None = ROWS
    columns: int | None = COLUMNS
    slice_index: int | None = 0


class FakeImages(dict[str, FakeImage]):
    def find(self, sop_instance_uid: str, frame_number: int | None = None, /) -> FakeImage | None:
        return self.get(sop_instance_uid)


def fake_images(**changes: Any) -> FakeImages:
    images = FakeImages()
    for k in range(8):
        values: dict[str, Any] = {"position_lps_mm": (-50.0, -60.0, 2.0 * k), "slice_index": k}
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


def pair(long: float, ratio: float, where: float, across: float, turn: float, centre: tuple[float, float]) -> Array:
    """A RECIST pair: perpendicular, crossing at ``where`` of the long and ``across`` of the short axis."""
    short = long * ratio
    x = (where - 0.5) * long
    points = np.array([(-long / 2, 0), (long / 2, 0), (x, -across * short), (x, (1 - across) * short)])
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return np.asarray(points @ rotation.T + centre)


def save(segmentation: Dataset, folder: Path, name: str = "seg.dcm") -> Path:
    path = folder / name
    segmentation.save_as(path, enforce_file_format=True)
    return path


def bookmarks_in(path: Path, images: Any = None) -> list[Bookmark]:
    found = list(dicom_seg.read(path, images))
    assert all(isinstance(item, Bookmark) for item in found), found
    return [item for item in found if isinstance(item, Bookmark)]


def box_of(bookmark: Bookmark) -> Array:
    outline = np.array(bookmark.points)
    spacing = (bookmark.spacing_x_mm or 1.0, bookmark.spacing_y_mm or 1.0)
    return frames.box_from_recist(recist.diameters(outline, spacing))


# --- RECIST pair -> segmentation -> RECIST pair --------------------------------------------------------------------


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.floats(6, 60),
    st.floats(0.3, 0.97),
    st.floats(0.35, 0.65),
    st.floats(0.35, 0.65),
    st.floats(0, math.pi),
    st.tuples(st.floats(45, 55), st.floats(45, 55)),
)
def test_mask_of_a_pair_measures_as_the_pair(
    long: float, ratio: float, where: float, across: float, turn: float, centre: tuple[float, float]
) -> None:
    axes = pair(long, ratio, where, across, turn, centre)
    mask = mask_of(mark("bidirectional", axes), ROWS, COLUMNS)
    measured = recist.diameters(recist.mask_outline(mask), (SPACING, SPACING))
    difference = np.abs(frames.box_from_recist(measured) - frames.box_from_recist(axes)).max()
    assert difference < 1.5


def test_pairs_through_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    marks = [
        mark(
            "bidirectional",
            pair(
                rng.uniform(8, 50), rng.uniform(0.4, 0.95), 0.5, 0.5, rng.uniform(0, 3), tuple(rng.uniform(45, 60, 2))
            ),
            image=number % 8,
            text=f"lesion {number}",
        )
        for number in range(24)
    ]
    path = save(build_segmentation(marks, EVIDENCE, **UIDS), tmp_path)
    assert dicom_seg.recognise(path.read_bytes()[:4096], path)
    for images, frame in ((None, "assumed"), (fake_images(), "declared")):
        found = {bookmark.text: bookmark for bookmark in bookmarks_in(path, images)}
        assert len(found) == len(marks)
        for before in marks:
            after = found[before.text]
            assert after.image_uid == before.image_uid
            assert (after.series_uid, after.study_uid, after.patient_id) == ("1.2.8", "1.2.9", "P1")
            assert (after.rows, after.columns) == (ROWS, COLUMNS)
            assert after.spacing_x_mm == pytest.approx(SPACING)
            assert after.source_frame == frame
            box = frames.box_from_recist(np.array(before.points))
            np.testing.assert_allclose(box_of(after), box, atol=1.5)


def test_real_pairs(shared_data: Path) -> None:
    """Radiologists' own pairs: all that are pairs by definition agree, and nearly all of the others."""
    with (shared_data / "deeplesion" / "DL_info.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Possibly_noisy"] == "0"]
    worst = []
    for row in random.Random(2).sample(rows, 80):
        points = np.array(row["Measurement_coordinates"].split(","), float).reshape(4, 2)
        axes = frames.deeplesion_point_to_px(points)
        axes -= np.floor(axes.min(axis=0)) - 10
        size = np.ceil(axes.max(axis=0)).astype(int) + 10
        bookmark = mark("bidirectional", axes, spacing_x_mm=1.0, spacing_y_mm=1.0)
        measured = recist.diameters(recist.mask_outline(mask_of(bookmark, int(size[1]), int(size[0]))), (1, 1))
        worst.append(np.abs(frames.box_from_recist(measured) - frames.box_from_recist(axes)).max())
    assert np.mean(np.array(worst) < 1.5) > 0.96
    assert np.median(worst) < 0.8


# --- the other forms, and what is written --------------------------------------------------------------------------


def test_each_form_becomes_its_own_area(tmp_path: Path) -> None:
    circle = mark("circle", [(40, 50), (52, 50)], text="circle")
    ellipse = mark("ellipse", recist.axes_of_ellipse([(20, 60), (60, 60), (40, 45), (40, 75)]), image=3, text="ellipse")
    square = mark("polygon", [(10, 10), (30, 10), (30, 25), (10, 25)], text="polygon")
    outline = mark("segmentation", [(80, 80), (100, 80), (90, 110)], image=5, text="segmentation")
    path = save(build_segmentation([circle, ellipse, square, outline], EVIDENCE, **UIDS), tmp_path)
    found = {bookmark.text: np.array(bookmark.points) for bookmark in bookmarks_in(path)}
    for before, area, low, high in (
        (circle, math.pi * 12**2, (28, 38), (52, 62)),
        (ellipse, math.pi * 20 * 15, (20, 45), (60, 75)),
        (square, 20 * 15, (10, 10), (30, 25)),
        (outline, 20 * 30 / 2, (80, 80), (100, 110)),
    ):
        assert mask_of(before, ROWS, COLUMNS).sum() == pytest.approx(area, rel=0.05)
        x, y = found[before.text].T
        assert abs(float(np.sum(x * np.roll(y, 1) - np.roll(x, 1) * y)) / 2) == pytest.approx(area, rel=0.06)
        np.testing.assert_allclose(found[before.text].min(axis=0), low, atol=1.6)
        np.testing.assert_allclose(found[before.text].max(axis=0), high, atol=1.6)


def test_codes_text_and_tracking_survive(tmp_path: Path) -> None:
    before = mark(
        "circle",
        [(40, 50), (52, 50)],
        text="Läsion é",
        finding_code="108369006^SCT^Neoplasm",
        site="10200004^SCT^Liver",
        tracking_uid="1.2.99.1",
    )
    path = save(build_segmentation([before], EVIDENCE, observer_name="Doe^Jane", **UIDS), tmp_path)
    (after,) = bookmarks_in(path)
    for name in ("text", "finding_code", "site", "tracking_uid"):
        assert getattr(after, name) == getattr(before, name)
    assert after.observer == "Doe^Jane"


def test_same_arguments_give_the_same_bytes() -> None:
    def written() -> bytes:
        buffer = io.BytesIO()
        marks = [mark("circle", [(40, 50), (52, 50)]), mark("polygon", [(10, 10), (30, 10), (30, 25)], image=4)]
        build_segmentation(marks, EVIDENCE, **UIDS).save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    first = written()
    time.sleep(0.01)
    assert written() == first
    today = datetime.date.today().strftime("%Y%m%d").encode()
    assert today not in first


def test_highdicom_reads_the_masks(tmp_path: Path) -> None:
    marks = [mark("circle", [(40, 50), (52, 50)]), mark("polygon", [(10, 10), (60, 12), (30, 55)], image=4)]
    path = save(build_segmentation(marks, EVIDENCE, **UIDS), tmp_path)
    segmentation = highdicom.seg.segread(path)
    pixels = segmentation.get_pixels_by_source_instance(["1.2.3.3", "1.2.3.5"])
    np.testing.assert_array_equal(pixels[0, :, :, 0], mask_of(marks[0], ROWS, COLUMNS))
    np.testing.assert_array_equal(pixels[1, :, :, 1], mask_of(marks[1], ROWS, COLUMNS))
    assert pixels[0, :, :, 1].sum() == pixels[1, :, :, 0].sum() == 0


def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    judge = shutil.which("dciodvfy")
    if judge is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    marks = [
        mark("circle", [(40, 50), (52, 50)], site="10200004^SCT^Liver"),
        mark("polygon", [(9, 9), (60, 12), (30, 55)]),
    ]
    path = save(build_segmentation(marks, EVIDENCE, observer_name="Doe^Jane", **UIDS), tmp_path)
    said = subprocess.run([judge, str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert "Error" not in said.stdout + said.stderr, said.stderr
    assert "Segmentation" in said.stdout + said.stderr


@pytest.mark.parametrize(
    ("marks", "evidence", "match"),
    [
        ([], EVIDENCE, "at least one"),
        ([mark("length", [(1, 1), (5, 5)])], EVIDENCE, "has no area"),
        ([mark("circle", [(900, 900), (910, 900)])], EVIDENCE, "outside its image"),
        ([mark("circle", [(40, 40), (50, 40)], image=30)], EVIDENCE, "not among the images"),
        (
            [mark("circle", [(40, 40), (50, 40)], image=0), mark("circle", [(40, 40), (50, 40)], image=9)],
            [*EVIDENCE, ct_slice(9, SeriesInstanceUID="1.2.88")],
            "several series",
        ),
        ([mark("circle", [(40, 40), (50, 40)], image=0)], [ct_slice(0, NumberOfFrames=3)], "multi-frame"),
    ],
)
def test_what_cannot_be_written(marks: list[Bookmark], evidence: list[Dataset], match: str) -> None:
    with pytest.raises(DataPrepError, match=match):
        build_segmentation(marks, evidence, **UIDS)


# --- reading masks that others made --------------------------------------------------------------------------------


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """(8, rows, columns) mask; centre is slice, row, column."""
    z, y, x = np.ogrid[:8, :ROWS, :COLUMNS]
    mm = ((z - centre[0]) * 2.0) ** 2 + ((y - centre[1]) * SPACING) ** 2 + ((x - centre[2]) * SPACING) ** 2
    return np.asarray(mm <= radius**2)


def foreign(pixels: np.ndarray, kind: str = "BINARY", count: int = 1, **options: Any) -> highdicom.seg.Segmentation:
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"Segment {number}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type="MANUAL",
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


@pytest.mark.parametrize("options", [{}, {"transfer_syntax_uid": RLELossless}])
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


def drain(items: Iterator[Bookmark | Rejection]) -> list[Bookmark | Rejection]:
    try:
        return list(items)
    except UnreadableError as error:
        if "Canary" in str(error):
            pytest.fail("a patient's name is in the message")
        return []


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    whole = save(foreign(ball((3, 40, 40), 7).astype(np.uint8)), tmp_path).read_bytes()
    rng = random.Random(11)
    path = tmp_path / "damaged.dcm"
    started = time.monotonic()
    outcomes = set()
    for number in range(80):
        data = bytearray(whole)
        if number % 2:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice((1, 10, 100))):
                data[rng.randrange(len(data) // (1 + number % 3))] = rng.randrange(256)
        path.write_bytes(data)
        outcomes.add(bool(drain(dicom_seg.read(path))))
    assert outcomes == {True, False}
    assert time.monotonic() - started < 60


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
    started = time.monotonic()
    assert not [item for item in drain(dicom_seg.read(path)) if isinstance(item, Bookmark)]
    assert time.monotonic() - started < 10


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    image = ct_slice(0)
    image.PixelData = bytes(2 * ROWS * COLUMNS)
    path = save(image, tmp_path)
    assert not dicom_seg.recognise(path.read_bytes()[:4096], path)
    (tmp_path / "text").write_text("no DICOM")
    assert not dicom_seg.recognise(b"no DICOM", tmp_path / "text")
    with pytest.raises(UnreadableError):
        list(dicom_seg.read(tmp_path / "text"))
