"""The phantom hospital: valid files, one content in two forms, honest truth, the same bytes again."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from data_prep import frames, phantom, recist
from data_prep.archive import png
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.lesion import COARSE_TYPES
from data_prep.phantom import hospital, radiologist
from tests.data_prep.files import rows_of

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
    assert groups == len(rows_of(made / "DL_info.csv"))


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
    for row in rows_of(made / "DL_info.csv"):
        folder, number = row["File_name"].rsplit("_", 1)
        points = np.fromstring(row["Measurement_coordinates"], sep=",").reshape(4, 2)
        out.setdefault(f"{folder}/{number}", []).append(frames.deeplesion_point_to_px(points))
    return out


# --- DeepLesion form -----------------------------------------------------------------------------------------------


def pixel_hu(ds: pydicom.Dataset) -> np.ndarray[Any, Any]:
    return ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def test_png_and_dicom_are_equal_to_the_bit(made: Path, slices: dict[str, pydicom.FileDataset]) -> None:
    images = sorted((made / "Images_png").rglob("*.png"))
    assert len(images) > 40
    for path in images:
        name = path.relative_to(made / "Images_png").as_posix()
        np.testing.assert_array_equal(png.read_hu(path), pixel_hu(slices[name]))


def test_rows_are_deeplesion_rows(made: Path, truth: dict[str, Any], items: list[dict[str, Any]]) -> None:
    rows = rows_of(made / "DL_info.csv")
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
