"""The phantom hospital: valid files, one content in two forms, honest truth, the same bytes again."""

from __future__ import annotations

import csv
import errno
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from data_prep import frames, phantom, recist
from data_prep.archive import png
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.lesion import COARSE_TYPES
from data_prep.phantom import hospital, radiologist, scanner
from data_prep.phantom.anatomy import PHASES, Anatomy, Organ
from data_prep.phantom.dicom_series import phantom_uid
from data_prep.phantom.kinds import KINDS
from data_prep.phantom.lesions import SHORT_AXIS_RATIO, place_lesions, sample_lesion, true_outline_px
from data_prep.phantom.shapes import Canvas, Pose, Warp, capsule, ellipse_column, ellipsoid

PATIENTS, SEED = 2, 5
FORMS = ("sr", "gsps", "aim", "seg")


def tree_hash(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "hospital"
    phantom.make(folder, patients=PATIENTS, seed=SEED, workers=2, progress=False, forms=FORMS)
    return folder


@pytest.fixture(scope="module")
def truth(made: Path) -> dict[str, Any]:
    return json.loads((made / "truth" / "datalist.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def items(truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for part in ("training", "tuning", "validation", "test") for item in truth[part]]


@pytest.fixture(scope="module")
def slices(made: Path) -> dict[str, pydicom.FileDataset]:
    """CT slices by their place in Images_png."""
    out = {}
    for folder in sorted((made / "dicom").glob("*/*/CT")):
        patient, study = int(folder.parent.parent.name[-4:]), int(folder.parent.name[-1])
        series = [pydicom.dcmread(path) for path in folder.iterdir()]
        series.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
        for index, ds in enumerate(series):
            out[f"{patient:06d}_{study:02d}_01/{index + 1:03d}.png"] = ds
    return out


# --- the whole -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_resume(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "again"
    phantom.make(other, patients=PATIENTS, seed=SEED, workers=1, progress=False, forms=FORMS)
    assert tree_hash(other) == tree_hash(made)
    # Killed after the first patient, in the middle of the second one's renames: the rest is made again.
    for path in (
        other / "DL_info.csv",
        other / "truth" / "datalist.json",
        other / "truth" / "patients" / "000002.json",
    ):
        path.unlink()
    leftover = other / "dicom" / "PHANTOM0002" / "STUDY1" / "CT" / "IM0001.dcm"
    leftover.write_bytes(b"half")
    (other / ".part" / "000002" / "dicom").mkdir(parents=True)
    phantom.make(other, patients=PATIENTS, seed=SEED, workers=1, progress=False, forms=FORMS)
    assert tree_hash(other) == tree_hash(made)
    assert not (other / ".part").exists()


def test_finished_phantom_is_left_alone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hospital, "_make_patient", lambda *_: pytest.fail("made again"))
    phantom.make(made, patients=PATIENTS, seed=SEED, progress=False, forms=FORMS)


def test_other_parameters_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="other parameters"):
        phantom.make(made, patients=PATIENTS, seed=SEED + 1, progress=False, forms=FORMS)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataPrepError, match="not empty"):
        phantom.make(tmp_path, patients=1, seed=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(DataPrepError, match="unknown form"):
        phantom.make(tmp_path / "new", patients=1, seed=0, forms=("rtstruct",), progress=False)
    with pytest.raises(DataPrepError, match="1 to 9999 patients"):
        phantom.make(tmp_path / "new", patients=0, seed=0, progress=False)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataPrepError):
        phantom.make(tmp_path / "file", patients=1, seed=0, progress=False)


def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hospital, "write_series", full)
    with pytest.raises(DataPrepError, match="No space left on device"):
        phantom.make(tmp_path / "new", patients=1, seed=0, workers=1, progress=False)
    assert not (tmp_path / "new" / "DL_info.csv").exists()


def test_damaged_parameter_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text("{")
    with pytest.raises(DataPrepError, match=r"phantom\.json"):
        phantom.make(tmp_path, patients=1, seed=0, progress=False)


def test_splits_are_by_patient_and_balanced() -> None:
    split = hospital.split_of_patients(52, 0)
    counts = {name: list(split.values()).count(name) for name in ("train", "validation", "test")}
    assert list(split) == list(range(1, 53))
    assert counts == {"train": 36, "validation": 8, "test": 8}
    assert split == hospital.split_of_patients(52, 0)
    assert split != hospital.split_of_patients(52, 1)


# --- DICOM ---------------------------------------------------------------------------------------------------------


def test_every_object_is_readable_and_unique(made: Path) -> None:
    files = sorted((made / "dicom").rglob("*.dcm"))
    uids = []
    for path in files:
        ds = pydicom.dcmread(path)
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert str(ds.SOPInstanceUID).startswith("2.25.")
        assert pydicom.uid.UID(ds.SOPInstanceUID).is_valid
        uids.append(str(ds.SOPInstanceUID))
    assert len(set(uids)) == len(uids) == PATIENTS * 2 * (40 + 3)


def test_studies_of_a_patient(made: Path, slices: dict[str, pydicom.FileDataset]) -> None:
    for patient in range(1, PATIENTS + 1):
        own = [ds for name, ds in slices.items() if name.startswith(f"{patient:06d}")]
        assert len({ds.StudyInstanceUID for ds in own}) == 2
        assert len({ds.StudyDate for ds in own}) == 2
        assert {str(ds.PatientName) for ds in own} == {f"PHANTOM^{patient:04d}"}
        assert len({(ds.PatientID, ds.PatientBirthDate, ds.PatientSex) for ds in own}) == 1


def test_grid_of_a_series(slices: dict[str, pydicom.FileDataset]) -> None:
    series: dict[str, list[pydicom.FileDataset]] = {}
    for ds in slices.values():
        series.setdefault(ds.SeriesInstanceUID, []).append(ds)
    assert len(series) == PATIENTS * 2
    for one in series.values():
        z = np.array([float(ds.ImagePositionPatient[2]) for ds in one])
        step = float(one[0].SliceThickness)
        assert step in (5.0, 2.5)
        np.testing.assert_allclose(np.diff(z), step, atol=1e-9)
        assert [int(ds.InstanceNumber) for ds in one] == list(range(len(one), 0, -1))
        assert len({tuple(ds.PixelSpacing) for ds in one}) == 1
        assert 1.1 < float(one[0].PixelSpacing[0]) < 1.8


def test_monai_reads_a_series(made: Path, slices: dict[str, pydicom.FileDataset]) -> None:
    from monai.transforms.io.array import LoadImage

    volume = LoadImage(image_only=True)(str(made / "dicom" / "PHANTOM0001" / "STUDY1" / "CT"))
    assert volume.shape == (256, 256, 40)
    middle = slices["000001_01_01/020.png"]
    # [x, y, slice]; ITK sorts towards +S.
    np.testing.assert_array_equal(volume[:, :, 19].numpy().T, pixel_hu(middle))


def test_highdicom_reads_the_reports(made: Path) -> None:
    from highdicom.sr import srread

    groups = 0
    for path in sorted((made / "dicom").glob("*/*/REPORTS/sr.dcm")):
        content: Any = srread(path).content
        groups += len(content.get_image_measurement_groups())
    assert groups == len(read_rows(made))


@pytest.mark.parametrize(
    ("form", "file", "tolerance_px"),
    [("dicom_sr", "sr.dcm", 2e-5), ("dicom_gsps", "gsps.dcm", 2e-5), ("aim_xml", "aim.xml", 1e-4)],
)
def test_reports_say_what_the_csv_says(
    made: Path, slices: dict[str, pydicom.FileDataset], form: str, file: str, tolerance_px: float
) -> None:
    found = marks(made, slices, form, file)
    expected = csv_points(made)
    assert set(found) == set(expected)
    for image, points_px in expected.items():
        ends = np.concatenate(found[image])
        # Whatever the order and the grouping of the four end points: all are there, and nothing else.
        apart = np.abs(ends[:, None] - np.concatenate(points_px)[None]).max(axis=2)
        assert apart.min(axis=0).max() < tolerance_px
        assert apart.min(axis=1).max() < tolerance_px


def test_segmentation_agrees_with_the_axes(made: Path, slices: dict[str, pydicom.FileDataset]) -> None:
    found = marks(made, slices, "dicom_seg", "seg.dcm")
    expected = csv_points(made)
    assert set(found) == set(expected)
    for image, measured in expected.items():
        spacing = [float(v) for v in slices[image].PixelSpacing][::-1]
        boxes = [frames.box_from_recist(points) for points in measured]
        for outline in found[image]:
            box = frames.box_from_recist(recist.diameters(outline, spacing))
            assert min(np.abs(box - other).max() for other in boxes) < 1.5


def marks(
    made: Path, slices: dict[str, pydicom.FileDataset], reader: str, file: str
) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Image -> the points of each mark that the reader finds in this form's files."""
    names = {str(ds.SOPInstanceUID): name for name, ds in slices.items()}
    module = importlib.import_module(f"data_prep.readers.{reader}")
    out: dict[str, list[np.ndarray[Any, Any]]] = {}
    for path in sorted((made / "dicom").glob(f"*/*/REPORTS/{file}")):
        for mark in module.read(path):
            assert isinstance(mark, Bookmark), mark
            if mark.form not in ("text", "point", "arrow"):
                out.setdefault(names[str(mark.image_uid)], []).append(np.reshape(mark.points_px, (-1, 2)))
    return out


def csv_points(made: Path) -> dict[str, list[np.ndarray[Any, Any]]]:
    out: dict[str, list[np.ndarray[Any, Any]]] = {}
    for row in read_rows(made):
        folder, number = row["File_name"].rsplit("_", 1)
        points = np.fromstring(row["Measurement_coordinates"], sep=",").reshape(4, 2)
        out.setdefault(f"{folder}/{number}", []).append(frames.deeplesion_point_to_px(points))
    return out


# --- DeepLesion form -----------------------------------------------------------------------------------------------


def read_rows(made: Path) -> list[dict[str, str]]:
    with (made / "DL_info.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixel_hu(ds: pydicom.Dataset) -> np.ndarray[Any, Any]:
    return ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def test_png_and_dicom_are_equal_to_the_bit(made: Path, slices: dict[str, pydicom.FileDataset]) -> None:
    images = sorted((made / "Images_png").rglob("*.png"))
    assert len(images) > 40
    for path in images:
        name = path.relative_to(made / "Images_png").as_posix()
        np.testing.assert_array_equal(png.read_hu(path), pixel_hu(slices[name]))


def test_rows_are_deeplesion_rows(made: Path, truth: dict[str, Any], items: list[dict[str, Any]]) -> None:
    rows = read_rows(made)
    marked = sum(sum(item["marked"]) for item in items)
    assert len(rows) == marked > 0
    by_image = {item["image"][1]: item for item in items}
    for row in rows:
        folder, number = row["File_name"].rsplit("_", 1)
        image = f"{folder}/{number}"
        assert (made / "Images_png" / image).is_file()
        points = frames.deeplesion_point_to_px(np.fromstring(row["Measurement_coordinates"], sep=",").reshape(4, 2))
        box = frames.deeplesion_box_to_px(np.fromstring(row["Bounding_boxes"], sep=","))
        np.testing.assert_allclose(box, frames.box_from_recist(points), atol=1e-4)
        # Drawn near a marked lesion of that slice.
        item = by_image[image]
        true = [np.reshape(p, (4, 2)) for p, m in zip(item["recist_px"], item["marked"], strict=True) if m]
        apart = [min(np.abs(points - t).max(), np.abs(points - t[[2, 3, 0, 1]]).max()) for t in true]
        assert min(apart) <= 3 * radiologist.JITTER_PX + 1e-4
        relative = np.fromstring(row["Normalized_lesion_location"], sep=",")
        assert ((relative >= 0) & (relative <= 1)).all()
        assert (row["Coarse_lesion_type"] == "-1") == (row["Train_Val_Test"] == "1")
        first, last = np.fromstring(row["Slice_range"], sep=",").astype(int)
        spacing = float(row["Spacing_mm_px_"].split(",")[2])
        key = int(row["Key_slice_index"])
        assert first <= key <= last
        assert max(key - first, last - key) * spacing <= 30.0
        assert all((made / "Images_png" / folder / f"{n:03d}.png").is_file() for n in range(first, last + 1))


# --- truth ---------------------------------------------------------------------------------------------------------


def test_truth_has_the_datalist_schema(made: Path, truth: dict[str, Any], items: list[dict[str, Any]]) -> None:
    assert truth["schema_version"] == 1
    assert truth["kind"] == "truth"
    assert truth["categories"] == ["lesion"]
    split = hospital.split_of_patients(PATIENTS, SEED)
    for part, name in (("training", "train"), ("tuning", "train"), ("validation", "validation"), ("test", "test")):
        assert all(split[int(item["patient_id"])] == name for item in truth[part])
    per_lesion = ("label", "lesion_id", "recist_px", "coarse_type", "long_diameter_mm", "short_diameter_mm")
    for item in items:
        count = len(item["box"])
        assert all(len(item[key]) == count for key in (*per_lesion, "marked", "kind"))
        assert count > 0
        assert any(item["marked"])
        assert len(item["image"]) == 3
        assert all((made / "Images_png" / image).is_file() for image in item["image"])
        assert item["image_size"] == [256, 256]
        assert set(item["label"]) == {0}
        assert set(item["coarse_type"]) <= set(COARSE_TYPES)


def test_truth_boxes_follow_the_box_rule(items: list[dict[str, Any]]) -> None:
    for item in items:
        for box, points, long_mm in zip(item["box"], item["recist_px"], item["long_diameter_mm"], strict=True):
            axes = np.reshape(points, (4, 2))
            expected = frames.clip_box(frames.box_from_recist(axes), 256, 256)
            assert expected is not None
            np.testing.assert_allclose(box, expected, atol=1e-5)
            assert long_mm == pytest.approx(frames.length_mm(axes[0], axes[1], item["spacing_mm"][:2]), abs=1e-3)


# --- one patient's scan, with and without noise --------------------------------------------------------------------


def quiet_and_noisy(seed: int) -> tuple[Anatomy, Any, Any, Any, list[Any]]:
    rng = np.random.default_rng(seed)
    body = Anatomy.sample(rng)
    levels = [-110.0, -75.0, -40.0]
    lesions = place_lesions(rng, body, scanner.plan_canvas(body, levels), levels, [3, 3, 3])
    protocol = scanner.sample_protocol(rng, body, True, -60.0)
    noisy = scanner.scan(np.random.default_rng(1), body, lesions, 0, protocol)
    quiet = scanner.scan(np.random.default_rng(1), body, lesions, 0, protocol, noise=False)
    without = scanner.scan(np.random.default_rng(1), body, [], 0, protocol, noise=False)
    return body, noisy, quiet, without, lesions


@pytest.fixture(scope="module")
def scans() -> list[tuple[Anatomy, Any, Any, Any, list[Any]]]:
    return [quiet_and_noisy(seed) for seed in (0, 1)]


def test_noise_in_soft_tissue(scans: list[Any]) -> None:
    for _, noisy, quiet, _, _ in scans:
        soft = (quiet.hu > 0) & (quiet.hu < 200)
        inner = ndimage.binary_erosion(soft, iterations=1)
        noise = noisy.hu.astype(float) - quiet.hu
        assert noise[inner].std() >= 12
        # Correlated in plane (the kernel), not between slices.
        sideways = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
        between = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
        assert sideways > 0.15
        assert abs(between) < 0.02


def test_contrast_in_soft_tissue(scans: list[Any]) -> None:
    """Inside minus a ring of the same slice of the lesion-free patient, where the ring is one soft tissue."""
    measured = 0
    for _, _, quiet, without, _ in scans:
        for index, found in quiet.seen.items():
            for seen in found.values():
                kind = seen.lesion.kind
                if kind.contrast_hu is None or seen.diameters_mm[1] < 8:
                    continue
                change = quiet.hu[index].astype(float) - without.hu[index]
                x, y = np.floor(seen.outline_px.mean(axis=0)).astype(int)
                core = change[y - 1 : y + 2, x - 1 : x + 2]
                host = without.hu[index][y - 1 : y + 2, x - 1 : x + 2]
                if host.std() > 4:  # a vessel or an edge runs through
                    continue
                measured += 1
                # A rim makes the core up to half its height darker than the mean.
                assert -60 - 8 <= core.mean() <= -15
    assert measured >= 5


def test_truth_lies_on_the_lesion(scans: list[Any]) -> None:
    """The lesion changes the image inside its box and nowhere else."""
    for _, _, quiet, without, _ in scans:
        difference = np.abs(quiet.hu.astype(int) - without.hu)
        for index, found in quiet.seen.items():
            covered = np.zeros((256, 256), bool)
            for seen in found.values():
                x0, y0, x1, y1 = frames.box_from_recist(seen.recist_px)
                inside = (slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1))))
                assert difference[index][inside].max() > 15
                covered[inside] = True
            # What reaches out of the boxes are lesions that only graze the slice.
            assert np.mean(difference[index][~covered] > 15) < 0.004


def test_attenuation_of_organs() -> None:
    body = Anatomy.sample(np.random.default_rng(3))
    x = np.arange(-180, 180, 3.0)
    canvas = Canvas(x, x, np.array([-100.0, -60.0, 20.0, 60.0]), Pose((0.0, 0.0, 0.0), 0.0), body.warp)
    scanner.draw_patient(canvas, body, PHASES[0])
    expected = {
        Organ.LUNG: (-900, -700),
        Organ.LIVER: (50, 66),
        Organ.SPLEEN: (42, 58),
        Organ.KIDNEY: (25, 50),
        Organ.SUBCUTANEOUS_FAT: (-115, -90),
        Organ.MUSCLE: (40, 65),
        Organ.BLOOD: (35, 60),
        Organ.VERTEBRA: (150, 420),
    }
    for organ, (low, high) in expected.items():
        values = canvas.hu[canvas.label == organ]
        assert len(values) > 20, organ.name
        assert low < np.median(values) < high, organ.name


def test_about_half_of_the_lesions_are_marked() -> None:
    """On the phantom's own lesion counts, without rendering: one of n at each level."""
    counts, chances = zip(*hospital.LESIONS_PER_LEVEL, strict=True)
    assert sum(chances) == pytest.approx(1)
    assert 1 / float(np.dot(counts, chances)) == pytest.approx(0.5, abs=0.05)


def test_kinds_cover_five_official_types() -> None:
    assert len({kind.coarse_type for kind in KINDS}) >= 5
    assert {kind.coarse_type for kind in KINDS} <= set(COARSE_TYPES)
    assert sum(kind.weight for kind in KINDS) > 0
    for kind in KINDS:
        assert (kind.contrast_hu is None) != (kind.level_hu is None)
        if kind.contrast_hu is not None:
            assert all(15 <= abs(hu) <= 60 for hu in kind.contrast_hu)
        if "node" in kind.name:  # a node is enlarged from a short axis of 10 mm
            assert kind.long_mm[1] * SHORT_AXIS_RATIO[0] > 10


# --- pieces --------------------------------------------------------------------------------------------------------


def flat_canvas() -> Canvas:
    axis = np.arange(-40.0, 40.0, 1.0)
    return Canvas(axis, axis, axis, Pose((0.0, 0.0, 0.0), 0.0), None)


def test_signed_distances() -> None:
    canvas = flat_canvas()
    w = canvas.everything()
    at = {name: np.searchsorted(canvas.axes_mm[0], 0.0) for name in "xyz"}
    centre = (at["z"], at["y"], at["x"])
    ball = ellipsoid(w, (0.0, 0.0, 0.0), (10.0, 10.0, 10.0))
    np.testing.assert_allclose(ball[centre[0], centre[1], :], np.abs(canvas.axes_mm[0]) - 10, atol=1e-3)
    column = ellipse_column(w, (0.0, 0.0), (20.0, 10.0))
    assert column[0, centre[1], centre[2] + 20] == pytest.approx(0, abs=1e-3)
    assert column[-1, centre[1] + 10, centre[2]] == pytest.approx(0, abs=1e-3)
    rod = capsule(w, (-10.0, 0.0, 0.0), (10.0, 0.0, 0.0), 3.0, 3.0)
    assert rod[centre[0], centre[1] + 5, centre[2]] == pytest.approx(2, abs=1e-3)
    assert rod[centre[0], centre[1], centre[2] + 20] == pytest.approx(7, abs=1e-3)


def test_painted_volume_is_the_solid_volume() -> None:
    canvas = flat_canvas()
    w = canvas.window((1.3, -2.7, 0.4), (20.0, 20.0, 20.0))
    assert w is not None
    cover = canvas.paint(w, ellipsoid(w, (1.3, -2.7, 0.4), (15.0, 12.0, 9.0)), 60.0, 3)
    assert cover.sum() == pytest.approx(4 / 3 * np.pi * 15 * 12 * 9, rel=0.02)
    assert canvas.hu.max() == pytest.approx(60.0)
    assert np.count_nonzero(canvas.label == 3) == pytest.approx(cover.sum(), rel=0.03)
    assert canvas.window((500.0, 0.0, 0.0), (5.0, 5.0, 5.0)) is None


def test_windows_hold_their_solids_when_turned_and_warped() -> None:
    axis = np.arange(-100.0, 100.0, 2.0)
    canvas = Canvas(axis, axis, axis, Pose((5.0, -7.0, 3.0), 0.05), Warp(np.random.default_rng(0)))
    for centre in ((60.0, 10.0, -20.0), (-50.0, 40.0, 50.0)):
        w = canvas.window(centre, (20.0, 20.0, 20.0))
        assert w is not None
        everywhere = ellipsoid(canvas.everything(), centre, (20.0, 20.0, 20.0)) < 0
        windowed = ellipsoid(w, centre, (20.0, 20.0, 20.0)) < 0
        assert everywhere.sum() == windowed.sum() > 0


def test_outline_of_a_known_disc() -> None:
    y, x = np.mgrid[:64, :64] + 0.5
    cover = np.clip(0.5 - (np.hypot(x - 30.2, y - 20.9) - 9.0), 0, 1).astype(np.float32)
    outline = true_outline_px(cover, (0.8, 0.8))
    assert outline is not None
    np.testing.assert_allclose(np.hypot(*(outline - [30.2, 20.9]).T), 9.0, atol=0.1)
    assert true_outline_px(cover, (0.1, 0.1)) is None  # 1.8 mm: not visible
    assert true_outline_px(np.zeros((8, 8), np.float32), (1.0, 1.0)) is None


def test_lesion_has_its_stated_size() -> None:
    sizes = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        lesion = sample_lesion(rng, 1, 0, KINDS[0], (0.0, 0.0, 0.0), 30.0, 99.0)
        canvas = flat_canvas()
        canvas.label[:] = Organ.LIVER
        canvas.hu[:] = 100.0
        painted = lesion.draw(canvas, 0 if lesion.sizes[0] else 1)
        assert painted is not None
        outline = true_outline_px(painted[1].max(axis=0), (1.0, 1.0))
        assert outline is not None
        sizes.append(np.ptp(outline, axis=0).max())
        low = float(canvas.hu.min())
        assert 100 - 60 - 7.5 <= low <= 100 - 15
    assert np.mean(sizes) == pytest.approx(30, rel=0.15)


def test_a_hand_is_a_little_off() -> None:
    axes = np.array([[38.0, 60.0], [62.0, 60.0], [50.0, 53.0], [50.0, 67.0]])
    seen = scanner.Seen(None, axes, axes, (36.0, 21.0))  # type: ignore[arg-type]
    drawn = [radiologist.draw(np.random.default_rng(k), 3, seen) for k in range(100)]
    off = np.array([mark.points_px - axes for mark in drawn])
    assert off.std() == pytest.approx(radiologist.JITTER_PX, rel=0.1)
    assert abs(off.mean()) < 0.1


def test_the_longer_axis_comes_first() -> None:
    axes = np.array([[40.0, 60.0], [60.0, 60.0], [50.0, 50.0], [50.0, 70.0]])
    seen = scanner.Seen(None, axes, axes, (20.0, 20.0))  # type: ignore[arg-type]
    drawn = [radiologist.draw(np.random.default_rng(k), 3, seen).points_px for k in range(20)]
    assert all(np.hypot(*(p[1] - p[0])) >= np.hypot(*(p[3] - p[2])) for p in drawn)
    assert {bool(abs(p[0, 0] - 40) < 3) for p in drawn} == {True, False}


def test_uids_depend_on_seed_and_place() -> None:
    assert phantom_uid(0, 1, 2) == phantom_uid(0, 1, 2)
    assert len({phantom_uid(0, 1, 2), phantom_uid(1, 1, 2), phantom_uid(0, 12), phantom_uid(0, 1, "2x")}) == 4
    assert phantom_uid(0, 1).is_valid
