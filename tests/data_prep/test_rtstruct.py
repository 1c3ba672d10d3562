"""Structure sets: built by hand after PS3.3 A.19 (no file of foreign software was at hand), read, damaged."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage

from data_prep import recist
from data_prep.bookmark import MAX_POINTS, Bookmark
from data_prep.readers import Rejection, rtstruct
from tests.data_prep import rtstruct_objects
from tests.data_prep.damage import cut_or_overwritten
from tests.data_prep.dicom_objects import FakeImage, FakeImages, file_item, item
from tests.data_prep.tolerance import read_each

if TYPE_CHECKING:
    from tests.conftest import Judges

SPACING = (0.7, 0.9)  # x, y
ORIGIN = (-100.0, -120.0, -30.0)
STEP_MM = 3.0


def image(position_lps_mm: tuple[float, ...], **more: Any) -> FakeImage:
    return FakeImage(position_lps_mm, *SPACING, STEP_MM, rows=200, columns=220, **more)


IMAGES = FakeImages({f"1.2.3.{k}": image((*ORIGIN[:2], ORIGIN[2] + k * STEP_MM), slice_index=k) for k in range(10)})


def circle_px(centre: tuple[float, float], radius_mm: float, count: int = 72) -> np.ndarray:
    angle = 2 * math.pi * np.arange(count) / count
    return np.asarray(centre + radius_mm * np.stack([np.cos(angle), np.sin(angle)], axis=1) / SPACING)


def contour(points_px: np.ndarray, image: int, *, kind: str = "CLOSED_PLANAR", name: bool = True) -> Dataset:
    """A contour at px points: world = origin + spacing * (p - 0.5), PS3.3 C.7.6.2.1.1 for an axial image."""
    x, y = (np.asarray(points_px, float) - 0.5).T * np.array(SPACING)[:, None] + np.array(ORIGIN[:2])[:, None]
    z = np.full(len(x), ORIGIN[2] + image * STEP_MM)
    return rtstruct_objects.contour(np.stack([x, y, z], axis=1), f"1.2.3.{image}" if name else None, kind)


def structure_set(path: Path, rois: dict[str, list[Dataset]], algorithm: str = "MANUAL", **observation: str) -> Path:
    header = file_item(
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID="1.2.6.1",
        StudyInstanceUID="1.2.9",
        SeriesInstanceUID="1.2.6",
        Modality="RTSTRUCT",
        FrameOfReferenceUID="1.2.7",
        PositionReferenceIndicator="",
        PatientName="Canary^Name",
        PatientID="P1",
        PatientBirthDate="",
        PatientSex="",
        StudyDate="20200101",
        StudyTime="000000",
        StudyID="1",
        AccessionNumber="",
        ReferringPhysicianName="",
        OperatorsName="",
        SeriesNumber=1,
        InstanceNumber="1",
        Manufacturer="x",
        StructureSetLabel="LESIONS",
        StructureSetDate="20200101",
        StructureSetTime="000000",
        ApprovalStatus="UNAPPROVED",
    )
    images: dict[str, Any] = {"series_uid": "1.2.8", "image_uids": IMAGES}
    observation = {"ROIInterpreter": "Doe^Jane"} | observation
    file = rtstruct_objects.with_rois(header, rois, **images, algorithm=algorithm, **observation)
    file.save_as(path, enforce_file_format=True)
    return path


def split(path: Path, images: FakeImages | None = IMAGES) -> tuple[list[Bookmark], list[Rejection]]:
    found = list(rtstruct.read(path, images))
    return [x for x in found if isinstance(x, Bookmark)], [x for x in found if isinstance(x, Rejection)]


BALL = [contour(circle_px((60, 80), radius), k) for k, radius in ((2, 8.0), (3, 12.0), (4, 10.0))]


def test_the_fixture_is_a_structure_set_by_the_standard(tmp_path: Path, judges: Judges) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"GTV": BALL, "Iso": [contour(np.array([[5, 6]]), 1, kind="POINT")]})
    assert judges.dciodvfy(path, "RTStructureSet") == []


def test_a_lesion_on_its_greatest_slice(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"GTV 1": BALL, "GTV 2": [contour(circle_px((150, 30), 5.0), 7)]})
    assert rtstruct.recognise(path.read_bytes()[:4096], path)
    bookmarks, rejections = split(path)
    assert not rejections
    first, second = bookmarks
    assert (first.image_uid, first.text, first.observer) == ("1.2.3.3", "GTV 1", "Doe^Jane")
    assert (second.image_uid, second.text) == ("1.2.3.7", "GTV 2")
    assert (first.series_uid, first.study_uid, first.patient_id) == ("1.2.8", "1.2.9", "P1")
    assert (first.rows, first.columns, first.spacing_x_mm, first.spacing_y_mm) == (200, 220, *SPACING)
    # ContourData was written with 4 decimals of a millimetre.
    np.testing.assert_allclose(first.points, circle_px((60, 80), 12.0), atol=1e-3)
    assert recist.longest_mm(first.points, SPACING) == pytest.approx(24.0, abs=0.01)


@pytest.mark.parametrize(("algorithm", "source"), [("MANUAL", "rtstruct"), ("", "rtstruct"), ("AUTOMATIC", "detector")])
def test_what_software_drew_is_a_detection(tmp_path: Path, algorithm: str, source: str) -> None:
    ((found,), _) = split(structure_set(tmp_path / "rs.dcm", {"GTV": BALL}, algorithm))
    assert found.source == source


@pytest.mark.parametrize("images", [IMAGES, None], ids=["images", "no images"])
@pytest.mark.parametrize(
    "kind", ["EXTERNAL", "PTV", "TREATED_VOLUME", "OAR", "ORGAN", "AVOIDANCE", "SUPPORT", "BOLUS", "MARKER", "CONTROL"]
)
def test_what_is_drawn_as_something_else_is_no_lesion(tmp_path: Path, kind: str, images: FakeImages | None) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"BODY": BALL, "Iso": []}, RTROIInterpretedType=kind)
    bookmarks, rejections = split(path, images)
    assert bookmarks == []
    reason = f"an ROI of type {kind} is no lesion"
    assert rejections == [Rejection("", "ROI 1", reason), Rejection("", "ROI 2", reason)]


@pytest.mark.parametrize("kind", ["GTV", "CTV", "gtv ", ""])
def test_a_tumour_or_what_states_no_type_is_a_lesion(tmp_path: Path, kind: str) -> None:
    bookmarks, rejections = split(structure_set(tmp_path / "rs.dcm", {"a": BALL}, RTROIInterpretedType=kind))
    assert (len(bookmarks), rejections) == (1, [])


def test_other_words_as_a_type_are_not_repeated(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"a": BALL}, RTROIInterpretedType="CANARY")
    bookmarks, (rejection,) = split(path)
    assert (bookmarks, rejection.row) == ([], "ROI 1")
    assert rejection.reason == "an ROI of a type other than GTV and CTV is no lesion"


@pytest.mark.parametrize(
    ("types", "lesion"),
    [([], True), ([""], True), (["EXTERNAL", ""], False), (["ORGAN", "GTV"], True), (["GTV", "ORGAN"], True),
     (["OAR\\AVOIDANCE"], False)],
)  # fmt: skip
def test_several_observations_of_one_roi(tmp_path: Path, types: list[str], lesion: bool) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"a": BALL})
    dataset = pydicom.dcmread(path)
    dataset.RTROIObservationsSequence = [
        item(ObservationNumber=n, ReferencedROINumber=1, RTROIInterpretedType=kind) for n, kind in enumerate(types)
    ]
    dataset.save_as(path)
    bookmarks, rejections = split(path)
    assert (len(bookmarks), len(rejections)) == ((1, 0) if lesion else (0, 1))


def test_slices_apart_and_contours_apart_are_lesions_apart(tmp_path: Path) -> None:
    contours = [
        contour(circle_px((60, 80), 8.0), 2),
        contour(circle_px((60, 80), 6.0), 5),
        contour(circle_px((120, 80), 9.0), 5),
    ]
    bookmarks, _ = split(structure_set(tmp_path / "rs.dcm", {"GTV": contours}))
    assert sorted(bookmark.image_uid or "" for bookmark in bookmarks) == ["1.2.3.2", "1.2.3.5", "1.2.3.5"]


def test_a_hole_belongs_to_its_outline(tmp_path: Path) -> None:
    contours = [contour(circle_px((60, 80), 4.0), 2), contour(circle_px((60, 80), 12.0), 2)]
    (bookmark,), rejections = split(structure_set(tmp_path / "rs.dcm", {"GTV": contours}))
    assert not rejections
    assert recist.longest_mm(bookmark.points, SPACING) == pytest.approx(24.0, abs=0.01)


def test_a_point_is_a_point(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"Nodule": [contour(np.array([[33.25, 44.5]]), 6, kind="POINT")]})
    (bookmark,), _ = split(path)
    assert (bookmark.form, bookmark.image_uid) == ("point", "1.2.3.6")
    np.testing.assert_allclose(bookmark.points, [(33.25, 44.5)], atol=1e-3)


def test_oblique_image(tmp_path: Path) -> None:
    row, column = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.0, -1.0])
    oblique = image((10.0, 20.0, 30.0), orientation=(*row, *column))
    px = circle_px((70, 90), 11.0)
    lps = np.array([10.0, 20.0, 30.0]) + (px[:, :1] - 0.5) * SPACING[0] * row + (px[:, 1:] - 0.5) * SPACING[1] * column
    drawn = contour(px, 3)
    drawn.ContourData = [f"{value:.4f}" for value in lps.ravel()]
    (bookmark,), _ = split(structure_set(tmp_path / "rs.dcm", {"GTV": [drawn]}), FakeImages({"1.2.3.3": oblique}))
    np.testing.assert_allclose(bookmark.points, px, atol=1e-3)


def test_without_images_every_contour_is_listed(tmp_path: Path) -> None:
    bookmarks, rejections = split(structure_set(tmp_path / "rs.dcm", {"GTV": BALL}), None)
    assert not bookmarks
    assert [rejection.row for rejection in rejections] == [f"ROI 1 contour {k}" for k in (1, 2, 3)]
    assert all("1.2.3." in r.reason and "harvest with --images" in r.reason for r in rejections)


@pytest.mark.parametrize(
    ("stored", "words"),
    [(b"-27x5", "damaged"), (b"-27\\5", "4 coordinates are not"), (b"  nan", "3 coordinates are not")],
)
def test_coordinates_that_are_no_numbers(tmp_path: Path, stored: bytes, words: str) -> None:
    bad, good = contour(circle_px((60, 80), 8.0), 1), contour(circle_px((60, 80), 8.0), 5)
    bad.ContourData = ["1", "2", "-27.5"]
    path = structure_set(tmp_path / "rs.dcm", {"GTV": [bad, good]})
    path.write_bytes(path.read_bytes().replace(b"-27.5", stored))
    bookmarks, (rejection,) = split(path)
    assert (len(bookmarks), rejection.row) == (1, "ROI 1 contour 1")
    assert words in rejection.reason


def test_without_images_no_coordinate_is_read(tmp_path: Path) -> None:
    bad = contour(circle_px((60, 80), 8.0), 1)
    bad.ContourData = ["1", "2"]
    _, (rejection,) = split(structure_set(tmp_path / "rs.dcm", {"GTV": [bad]}), None)
    assert "harvest with --images" in rejection.reason


def test_memory_is_a_few_times_the_file(tmp_path: Path) -> None:
    contours = [contour(circle_px((60, 80), 8 + k / 100, 2000), k % 10) for k in range(60)]
    path = structure_set(tmp_path / "rs.dcm", {"GTV": contours})
    split(path)  # imports and caches
    tracemalloc.start()
    try:
        split(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * path.stat().st_size


def test_a_contour_of_more_than_64_kib(tmp_path: Path) -> None:
    """Too long for DS in explicit VR: it is stored as UN (PS3.5 6.2.2)."""
    points = circle_px((60, 80), 12.0, 5000)
    path = structure_set(tmp_path / "rs.dcm", {"GTV": [contour(points, 3)]})
    (bookmark,), rejections = split(path)
    assert not rejections
    assert recist.longest_mm(bookmark.points, SPACING) == pytest.approx(24.0, abs=0.01)


def test_more_points_than_anybody_draws_are_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"GTV": [contour(circle_px((60, 80), 12.0, MAX_POINTS + 1), 3)]})
    monkeypatch.delattr(np, "fromiter")
    _, (rejection,) = split(path)
    assert rejection.reason == f"{3 * MAX_POINTS + 3} coordinates are not points of x, y and z"


def test_a_contour_that_names_no_image_is_placed_by_position(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"GTV": [contour(circle_px((60, 80), 8.0), 4, name=False)]})
    (bookmark,), _ = split(path)
    assert bookmark.image_uid == "1.2.3.4"
    _, (rejection,) = split(path, FakeImages())
    assert "plane" in rejection.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ContourGeometricType": "OPEN_PLANAR"}, "encloses no area"),
        ({"ContourGeometricType": "OPEN_NONPLANAR"}, "encloses no area"),
        ({"ContourGeometricType": "SPIRAL"}, "missing or unknown"),
        ({"ContourData": ["1", "2"]}, "not points"),
        ({"ContourData": []}, "not points"),
        ({"ContourData": ["1", "2", "-27"]}, "three different points"),
        ({"ContourData": ["9e4", "9e4", "-27", "9.1e4", "9e4", "-27", "9e4", "9.2e4", "-27"]}, "outside"),
        ({"ContourData": ["1", "2", "0", "9", "2", "0", "9", "9", "0"]}, "27.0 mm off"),
        ({"ContourImageSequence": [item(ReferencedSOPInstanceUID="9.9")]}, "not among"),
    ],
)
def test_contours_of_no_use_are_listed(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    bad = contour(circle_px((60, 80), 8.0), 1)
    for keyword, value in change.items():
        setattr(bad, keyword, value)
    good = contour(circle_px((60, 80), 8.0), 5)
    bookmarks, (rejection,) = split(structure_set(tmp_path / "rs.dcm", {"GTV": [bad, good]}))
    assert [bookmark.image_uid for bookmark in bookmarks] == ["1.2.3.5"]
    assert rejection.row == "ROI 1 contour 1"
    assert words in rejection.reason


def test_an_image_without_geometry(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"GTV": BALL})
    images = FakeImages({uid: dataclasses.replace(image, position_lps_mm=None) for uid, image in IMAGES.items()})
    bookmarks, rejections = split(path, images)
    assert not bookmarks
    assert all("has no position" in rejection.reason for rejection in rejections)


def test_an_empty_roi_is_listed(tmp_path: Path) -> None:
    _, (rejection,) = split(structure_set(tmp_path / "rs.dcm", {"GTV": []}))
    assert "no contours" in rejection.reason


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rs.dcm", {"GTV": BALL, "Iso": [contour(np.array([[5, 6]]), 1, kind="POINT")]})
    contents = cut_or_overwritten(path.read_bytes(), 80, seed=4)
    outcomes = read_each(rtstruct, contents, path, IMAGES, secret="Canary")
    assert 10 < sum(any(isinstance(found, Bookmark) for found in outcome or ()) for outcome in outcomes) < 80
