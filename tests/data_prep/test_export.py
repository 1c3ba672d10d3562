"""An archive exported in DeepLesion's format: the same pixels at the same place, and nothing of the patient."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from data_prep.archive import export as export_module
from data_prep.archive import png
from data_prep.archive.deidentify import ExportKey, coarse_age, coarse_sex
from data_prep.archive.export import export
from data_prep.archive.index import ImageIndex
from data_prep.archive.png import read_hu
from data_prep.archive.volume import read_slice_hu
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.frames import deeplesion_box_to_px, deeplesion_point_to_px
from data_prep.lesion import Lesion, write_lesions
from data_prep.readers import deeplesion_csv
from tests.data_prep.exports import RECIST_PX, MakeCt, ct, lesion, run
from tests.data_prep.files import rows_of, tree


def numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def test_a_bright_lesion_is_found_where_it_was(tmp_path: Path, make_ct: MakeCt) -> None:
    volume = ct()
    paths = make_ct(tmp_path / "dicom", volume, z=[3.0 * k - 700 for k in range(30)])
    summary = run(tmp_path, [lesion(paths[12])])
    (row,) = rows_of(tmp_path / "out" / "DL_info.csv")
    assert row["File_name"] == "000001_01_01_013.png"
    image = tmp_path / "out" / "Images_png" / "000001_01_01" / "013.png"
    hu = read_hu(image)
    ys, xs = np.nonzero(hu == 500)
    x0, y0, x1, y1 = deeplesion_box_to_px(numbers(row["Bounding_boxes"]))
    # Bounds of the bright pixels in the corner frame, and the box 5.5 px around the diameters' end points.
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (50, 20, 60, 24)
    assert (x0, y0, x1, y1) == (50 - 5.5, 20 - 5.5, 60 + 5.5, 24 + 5.5)
    points = deeplesion_point_to_px(np.array(numbers(row["Measurement_coordinates"])))
    np.testing.assert_allclose(points, RECIST_PX, atol=1e-6)
    # 30 mm on each side at 3 mm: ten slices, all with the archive's HU.
    folder = image.parent
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:03d}.png" for n in range(3, 24)]
    for number in range(3, 24):
        np.testing.assert_array_equal(read_hu(folder / f"{number:03d}.png"), volume[number - 1])
    assert numbers(row["Slice_range"]) == [3, 23]
    assert numbers(row["Spacing_mm_px_"]) == [0.7, 0.8, -3.0]  # numbered towards the head
    assert numbers(row["Image_size"]) == [90, 70]
    assert numbers(row["DICOM_windows"]) == [-160, 240]
    assert (row["Patient_gender"], row["Patient_age"], row["Key_slice_index"]) == ("F", "62.0", "13")
    assert row["Train_Val_Test"] in "123"
    # The body is columns 20-79 and rows 10-59; the lesion's middle is (55, 22).
    place = numbers(row["Normalized_lesion_location"])
    np.testing.assert_allclose(place, [35 / 60, 12 / 50, np.nan], atol=1e-6)
    assert (summary.lesions, summary.not_exported, summary.slices, summary.patients) == (1, 0, 21, 1)


def test_the_export_is_harvested_like_the_release(tmp_path: Path, make_ct: MakeCt) -> None:
    paths = make_ct(tmp_path / "dicom", ct())
    single = lesion(paths[11], "1" * 16, recist_px=RECIST_PX[:4])
    run(tmp_path, [lesion(paths[12]), single])
    line, pair = deeplesion_csv.read(tmp_path / "out" / "DL_info.csv")
    assert isinstance(pair, Bookmark)
    assert isinstance(line, Bookmark)
    np.testing.assert_allclose(pair.points_px, RECIST_PX, atol=1e-6)
    assert (line.form, pair.form) == ("length", "bidirectional")
    np.testing.assert_allclose(line.points_px, RECIST_PX[:4], atol=1e-6)
    for mark in (line, pair):
        np.testing.assert_allclose(mark.stated_box_px or (), single.box_px or (), atol=1e-6)
        assert (mark.spacing_x_mm, mark.spacing_y_mm, mark.spacing_z_mm) == (0.7, 0.8, -2.0)
        assert (mark.rows, mark.columns) == (70, 90)
        assert (tmp_path / "out" / "Images_png" / (mark.image or "")).is_file()
    assert (line.slice_index, pair.slice_index) == (12, 13)


def test_frames_whose_places_are_unknown_are_exported_alone(tmp_path: Path, make_ct: MakeCt) -> None:
    volume = ct(3, key=1)

    def stack(dataset: Dataset, k: int) -> None:
        dataset.NumberOfFrames = 3
        dataset.PixelData = (volume + 1024).astype("<u2").tobytes()

    (path,) = make_ct(tmp_path / "dicom", volume[:1], edit=stack)
    run(tmp_path, [lesion(path, frame_number=2)])
    (image,) = (tmp_path / "out").rglob("*.png")
    np.testing.assert_array_equal(read_hu(image), volume[1])


def test_real_slices_are_exported_to_the_bit(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ct" / "totalsegmentator_dicom"
    index = ImageIndex.build(folder, progress=False)
    records = index.series[0].records
    mark = lesion(records[4].path, image_uid=records[4].sop_instance_uid)
    write_lesions([mark], tmp_path / "lesions.parquet")
    summary = export(tmp_path / "lesions.parquet", folder, tmp_path / "out", margin_mm=6, progress=False)
    images = sorted((tmp_path / "out" / "Images_png").rglob("*.png"))
    assert [path.name for path in images] == [f"{n:03d}.png" for n in range(2, 9)]
    for path in images:
        np.testing.assert_array_equal(read_hu(path), read_slice_hu(records[int(path.stem) - 1].path))
    (row,) = rows_of(tmp_path / "out" / "DL_info.csv")
    assert numbers(row["Spacing_mm_px_"]) == [0.976562, 0.976562, -2.0]  # SliceThickness says 3
    assert (row["Patient_gender"], row["Patient_age"]) == ("", "")
    assert summary.problems == 1
    assert rows_of(tmp_path / "out" / "series_problems.csv") == [
        {"series": "000001_01_01", "problem": "no SeriesInstanceUID: grouped by folder"}
    ]


def test_enhanced_ct_and_missing_slices(tmp_path: Path, make_ct: MakeCt, make_enhanced_ct: Callable[..., Path]) -> None:
    volume = ct(slices=4, key=1)
    path = make_enhanced_ct(tmp_path / "dicom" / "e", volume, [6, 4, 0, -2], [1] * 4)
    run(tmp_path, [lesion(path, frame_number=2)], margin_mm=4)
    (row,) = rows_of(tmp_path / "out" / "DL_info.csv")
    assert row["File_name"] == "000001_01_01_004.png"
    written = {path.name: read_hu(path) for path in (tmp_path / "out").rglob("*.png")}
    assert sorted(written) == ["002.png", "004.png", "005.png"]
    np.testing.assert_array_equal(written["004.png"], volume[1])
    assert rows_of(tmp_path / "out" / "series_problems.csv")[0]["problem"].startswith("1 slice(s) missing")


def test_what_is_not_exported_says_why(tmp_path: Path, make_ct: MakeCt) -> None:
    def mr(dataset: Dataset, k: int) -> None:
        dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"

    def damage(dataset: Dataset, k: int) -> None:
        dataset.PixelData = dataset.PixelData[:100]

    paths = make_ct(tmp_path / "dicom", ct(3, key=1))
    mr_paths = make_ct(tmp_path / "dicom", ct(3, key=1), name="mr", edit=mr)
    damaged = make_ct(tmp_path / "dicom", ct(1, key=0), name="damaged", edit=damage)
    no_box = {name: None for name in ("x0", "y0", "x1", "y1")}
    cases = {
        "detection that nobody accepted": lesion(paths[1], "0", source="detector"),
        "rejected in review": lesion(paths[1], "1", review="rejected"),
        "a location without a box": lesion(paths[1], "2", **no_box),
        "a box without measured diameters, for which DL_info.csv has no place": lesion(paths[1], "3", recist_px=None),
        "no image UID: nothing says which DICOM image it is on": lesion(paths[1], "4", image_uid=None),
        "its image is not in the DICOM folder": lesion(paths[1], "5", image_uid="1.2.3"),
        "not a CT image (MR): its pixels are not Hounsfield units": lesion(mr_paths[1], "6"),
        "its box lies outside its image": lesion(paths[1], "7", x0=-30.0, x1=-10.0),
        "its slice: the pixel data is cut off: 100 bytes of 12600": lesion(damaged[0], "8"),
    }
    summary = run(tmp_path, [*cases.values(), lesion(paths[1], "9")])
    assert rows_of(tmp_path / "out" / "lesions_not_exported.csv") == [
        {"lesion_id": mark.lesion_id, "reason": reason} for reason, mark in cases.items()
    ]
    assert (summary.lesions, summary.not_exported, summary.reasons) == (1, 9, dict.fromkeys(cases, 1))
    assert len(rows_of(tmp_path / "out" / "DL_info.csv")) == 1
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.png")} == {
        rows_of(tmp_path / "out" / "DL_info.csv")[0]["File_name"].rpartition("_")[0]
    }


def test_the_marked_one_of_duplicate_slices_is_exported(tmp_path: Path, make_ct: MakeCt) -> None:
    volume = ct(4, key=2)
    paths = make_ct(tmp_path / "dicom", volume, z=[0, 2, 2, 4])
    run(tmp_path, [lesion(paths[2])])
    assert read_hu(tmp_path / "out" / "Images_png" / "000001_01_01" / "002.png").max() == 500
    problems = rows_of(tmp_path / "out" / "series_problems.csv")
    assert [row["problem"].partition(":")[2] for row in problems] == [" duplicate slices"]


def test_killed_and_run_again_it_goes_on(tmp_path: Path, make_ct: MakeCt, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_ct(tmp_path / "dicom", ct(8, key=3))
    run(tmp_path, [lesion(paths[3])], seed=1)
    undisturbed = tree(tmp_path / "out")
    for path in tree(tmp_path / "out"):
        (tmp_path / "out" / path).unlink()
    (tmp_path / "out_key.csv").unlink()

    written: list[str] = []

    def stop_after_three(path: str, hu: np.ndarray) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        real_write(path, hu)

    real_write = png.write_hu
    monkeypatch.setattr(export_module, "write_hu", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [lesion(paths[3])], seed=1)
    assert not (tmp_path / "out" / "DL_info.csv").exists()
    assert stat.S_IMODE((tmp_path / "out_key.csv").stat().st_mode) == 0o600
    (tmp_path / "out" / "Images_png" / "000001_01_01" / ".004-x.part.png").write_bytes(b"half")
    Path(written[0]).write_bytes(Path(written[0]).read_bytes()[:100])  # damaged since: written again

    def count(path: str, hu: np.ndarray) -> None:
        written.append(path)
        real_write(path, hu)

    monkeypatch.setattr(export_module, "write_hu", count)
    run(tmp_path, [lesion(paths[3])])
    assert tree(tmp_path / "out") == undisturbed
    assert len(written) == 3 + 6  # the damaged one and the five that were missing


def test_two_processes_write_the_same(tmp_path: Path, make_ct: MakeCt, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_ct(tmp_path / "dicom", ct(5, key=3))
    run(tmp_path, [lesion(paths[3])], seed=1)
    alone = tree(tmp_path / "out")
    monkeypatch.setattr(export_module, "FEWEST_FOR_PROCESSES", 1)
    write_lesions([lesion(paths[3])], tmp_path / "lesions.parquet")
    export(tmp_path / "lesions.parquet", tmp_path / "dicom", tmp_path / "two", workers=2, seed=1, progress=False)
    assert tree(tmp_path / "two") == alone


def hospital(folder: Path, make_ct: MakeCt, names: list[str], studies: int = 1) -> list[Lesion]:
    """A lesion in each study of each patient."""
    lesions = []
    for name in names:
        for study in range(studies):

            def edit(dataset: Dataset, k: int, name: str = name, study: int = study) -> None:
                dataset.PatientID = name
                dataset.StudyDate = f"2020010{study + 1}"

            paths = make_ct(folder / name / str(study), ct(1, key=0), name=f"{name}-{study}", edit=edit)
            lesions.append(lesion(paths[0], f"{name}{study}"))
    return lesions


def test_numbers_stay_when_the_archive_grows(tmp_path: Path, make_ct: MakeCt) -> None:
    lesions = hospital(tmp_path / "dicom", make_ct, ["adams", "baker", "clark"], studies=2)
    run(tmp_path, lesions)
    before = {row["image"]: row for row in rows_of(tmp_path / "out_key.csv")}
    lesions += hospital(tmp_path / "dicom", make_ct, ["aaron", "zimmer"])
    summary = run(tmp_path, lesions)
    after = {row["image"]: row for row in rows_of(tmp_path / "out_key.csv")}
    assert {image: after[image] for image in before} == before
    assert {image[:6] for image in set(after) - set(before)} == {"000004", "000005"}
    assert summary.patients == 5
    # One patient is in one split, and every study of a patient has the patient's number.
    by_patient: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out" / "DL_info.csv"):
        by_patient.setdefault(row["Patient_index"], set()).add(row["Train_Val_Test"])
    assert [len(splits) for splits in by_patient.values()] == [1] * 5
    for image, row in after.items():
        assert {other[:6] for other, its in after.items() if its["patient_id"] == row["patient_id"]} == {image[:6]}


def test_numbers_follow_neither_name_nor_date(tmp_path: Path, make_ct: MakeCt) -> None:
    names = [f"p{i:02d}" for i in range(12)]
    lesions = hospital(tmp_path / "dicom", make_ct, names)
    run(tmp_path, lesions)
    order = [row["patient_id"] for row in rows_of(tmp_path / "out_key.csv")]  # sorted by number
    assert sorted(order) == names
    assert order not in (names, names[::-1])  # wrong once in 240 million runs


def test_the_key_file_is_guarded(tmp_path: Path, make_ct: MakeCt) -> None:
    paths = make_ct(tmp_path / "dicom", ct(3, key=1))
    with pytest.raises(DataPrepError, match="must not lie in the export"):
        run(tmp_path, [lesion(paths[1])], key=tmp_path / "out" / "key.csv")
    assert not list((tmp_path / "out").iterdir())
    summary = run(tmp_path, [lesion(paths[1])])
    assert summary.key == tmp_path / "out_key.csv"
    assert stat.S_IMODE(summary.key.stat().st_mode) == 0o600
    kept = summary.key.read_bytes()
    # The series has changed under the same UIDs: a slice between others moves the numbers.
    make_ct(tmp_path / "dicom", ct(1, key=0), z=[-2.0], edit=lambda d, k: setattr(d, "SOPInstanceUID", "1.2.3.4"))
    with pytest.raises(DataPrepError, match="stands for another image"):
        run(tmp_path, [lesion(paths[1])])
    assert summary.key.read_bytes() == kept
    summary.key.unlink()
    with pytest.raises(DataPrepError, match="put its key file back"):
        run(tmp_path, [lesion(paths[1])])
    summary.key.write_text("something else\n")
    with pytest.raises(DataPrepError, match="not a key file"):
        run(tmp_path, [lesion(paths[1])])
    assert summary.key.read_text() == "something else\n"


def test_a_key_file_with_hostile_values_survives(tmp_path: Path, make_ct: MakeCt) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        dataset.PatientID = 'a,"b"\n=c;1'

    paths = make_ct(tmp_path / "dicom", ct(2, key=1), edit=edit)
    run(tmp_path, [lesion(paths[1])])
    key = ExportKey.load(tmp_path / "out_key.csv")
    assert {row.patient_id for row in key.rows.values()} == {'a,"b"\n=c;1'}
    run(tmp_path, [lesion(paths[1])])
    assert ExportKey.load(tmp_path / "out_key.csv").rows == key.rows


def test_without_patient_ids_studies_are_patients(tmp_path: Path, make_ct: MakeCt) -> None:
    def anonymous(dataset: Dataset, k: int) -> None:
        dataset.PatientID = ""

    lesions = []
    for name in ("a", "b"):
        paths = make_ct(tmp_path / "dicom", ct(1, key=0), name=name, edit=anonymous)
        lesions.append(lesion(paths[0], name))
    assert run(tmp_path, lesions).patients == 2


@pytest.mark.parametrize("margin", [-1.0, float("nan")])
def test_a_margin_must_be_a_length(margin: float, tmp_path: Path, make_ct: MakeCt) -> None:
    paths = make_ct(tmp_path / "dicom", ct(1, key=0))
    with pytest.raises(DataPrepError, match="margin"):
        run(tmp_path, [lesion(paths[0])], margin_mm=margin)


def test_no_lesions_is_an_empty_release(tmp_path: Path, make_ct: MakeCt) -> None:
    make_ct(tmp_path / "dicom", ct(1, key=0))
    assert run(tmp_path, []).lesions == 0
    assert rows_of(tmp_path / "out" / "DL_info.csv") == []


def test_ages_and_sexes_are_coarse() -> None:
    assert [coarse_age(age) for age in (None, 0.5, 62.9, 90.0, 104.0)] == [None, 0.0, 62.0, 90.0, 90.0]
    assert [coarse_sex(sex) for sex in ("M", "F", "O", "Jane", None)] == ["M", "F", None, None, None]


def test_output_that_cannot_be_written(tmp_path: Path, make_ct: MakeCt) -> None:
    paths = make_ct(tmp_path / "dicom", ct(1, key=0))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataPrepError, match="cannot write into this folder"):
        run(tmp_path, [lesion(paths[0])])
    assert os.listdir(tmp_path / "dicom")  # noqa: PTH208
