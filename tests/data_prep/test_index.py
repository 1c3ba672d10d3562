"""The index of an archive: found by UID, sorted towards +S, what is odd is said, what is damaged is skipped."""

from __future__ import annotations

import itertools
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from data_prep.archive import header as header_module
from data_prep.archive import index as index_module
from data_prep.archive.header import ImageHeader, read_headers
from data_prep.archive.index import ImageIndex
from data_prep.archive.series import group_series
from data_prep.archive.volume import read_slice_hu
from data_prep.errors import DataPrepError, UnreadableError

MakeCt = Callable[..., list[Path]]


def build(folder: Path, **options: Any) -> ImageIndex:
    return ImageIndex.build(folder, progress=False, **options)


def blank(count: int, rows: int = 6, columns: int = 8) -> np.ndarray:
    return np.zeros((count, rows, columns))


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def test_images_are_found_by_uid_and_sorted_towards_the_head(tmp_path: Path, make_ct: MakeCt) -> None:
    paths = make_ct(tmp_path, blank(5), z=[-10.0, -7.5, -5.0, -2.5, 0.0])
    index = build(tmp_path)
    assert len(index) == 5
    for k, path in enumerate(paths):
        record = index.find(uid_of(path))
        assert record is not None
        assert (record.path, record.slice_index) == (path, k)
        assert record.spacing_z_mm == pytest.approx(2.5)  # SliceThickness says 3
        assert (record.spacing_x_mm, record.spacing_y_mm) == (0.7, 0.8)
        assert (record.rows, record.columns, record.modality) == (6, 8, "CT")
        assert (record.patient_id, record.patient_sex, record.patient_age) == ("ID-p", "F", 62.0)
        assert (record.window_min_hu, record.window_max_hu) == (-160.0, 240.0)
        assert record.position_lps_mm == (-100.0, -120.0, -10.0 + 2.5 * k)
        assert index.series_of(record).problems == ()
    assert index.find("1.2.3") is None
    assert index.find(uid_of(paths[0]), frame_number=2) is None


@pytest.mark.parametrize(
    ("orientation", "step", "first_is_zero"),
    [
        ([1, 0, 0, 0, 1, 0], (0, 0, 3), True),
        ([1, 0, 0, 0, 1, 0], (0, 0, -3), False),
        ([-1, 0, 0, 0, 1, 0], (0, 0, 3), True),  # feet first: the normal points to the feet, the sorting does not
        ([1, 0, 0, 0, 0, -1], (0, 3, 0), True),  # coronal: towards +P
        ([0, 1, 0, 0, 0, -1], (-3, 0, 0), False),  # sagittal: towards +L
    ],
)
def test_orientations(
    orientation: list[float], step: tuple[float, ...], first_is_zero: bool, tmp_path: Path, make_ct: MakeCt
) -> None:
    def turn(dataset: Dataset, k: int) -> None:
        dataset.ImageOrientationPatient = orientation
        dataset.ImagePositionPatient = [k * s for s in step]

    paths = make_ct(tmp_path, blank(4), edit=turn)
    records = build(tmp_path).series[0].records
    assert [record.path for record in records] == (paths if first_is_zero else paths[::-1])
    assert records[0].spacing_z_mm == pytest.approx(3.0)


def test_real_ct_without_uids_in_its_dataset(shared_data: Path) -> None:
    index = build(shared_data / "ct" / "totalsegmentator_dicom")
    (series,) = index.series
    assert series.problems == ("no SeriesInstanceUID: grouped by folder",)
    assert series.spacing_z_mm == pytest.approx(2.0)
    assert [record.slice_index for record in series.records] == list(range(20))
    for record in series.records:
        dataset = pydicom.dcmread(record.path, stop_before_pixels=True)
        assert record.position_lps_mm == tuple(dataset.ImagePositionPatient)
        assert index.find(dataset.file_meta.MediaStorageSOPInstanceUID) == record
        assert (record.study_uid, record.series_uid, record.patient_id) == (None, None, None)
    heights = [record.position_lps_mm[2] for record in series.records if record.position_lps_mm]
    assert heights == sorted(heights)


def test_the_images_of_real_reports_are_found(shared_data: Path) -> None:
    folder = shared_data / "bookmarks"
    index = build(folder)
    assert index.skipped == []
    record = index.find("1.3.6.1.4.1.9328.50.1.10717")
    assert record is not None
    assert (record.path.name, record.spacing_x_mm, record.spacing_z_mm) == ("0022Baseline.dcm", 0.691406, None)
    # The reports and presentation states beside them are no images.
    assert len(index) == 8
    assert {series.modality for series in index.series} == {"CT", "OT"}


def test_only_what_changed_is_read_again(tmp_path: Path, make_ct: MakeCt) -> None:
    folder, cache = tmp_path / "archive", tmp_path / "index.parquet"
    paths = make_ct(folder, blank(4))
    (folder / "notes.txt").write_text("not DICOM")
    first = build(folder, cache=cache)
    assert (first.files_read, len(first)) == (5, 4)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    again = build(folder, cache=cache)
    assert again.files_read == 0
    assert again.series == first.series
    make_ct(folder, blank(1, rows=7), name="q")
    paths[0].unlink()
    os.utime(paths[1], ns=(1, 1))
    changed = build(folder, cache=cache)
    assert (changed.files_read, len(changed)) == (2, 4)
    assert build(folder, cache=cache).files_read == 0
    cache.write_bytes(b"PAR1 damaged")
    assert build(folder, cache=cache).series == changed.series


def test_two_processes_give_the_same(tmp_path: Path, make_ct: MakeCt, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ct(tmp_path, blank(6))
    alone = build(tmp_path)
    monkeypatch.setattr(index_module, "FEWEST_FOR_PROCESSES", 1)
    assert build(tmp_path, workers=2).series == alone.series


def problems(folder: Path) -> list[str]:
    return [problem for series in build(folder).series for problem in series.problems]


def test_missing_slices_leave_their_numbers_free(tmp_path: Path, make_ct: MakeCt) -> None:
    make_ct(tmp_path, blank(5), z=[0, 2, 4, 10, 12])
    (series,) = build(tmp_path).series
    assert series.problems == ("2 slice(s) missing: their numbers are left free",)
    assert [record.slice_index for record in series.records] == [0, 1, 2, 5, 6]


def test_duplicate_slices_share_a_number(tmp_path: Path, make_ct: MakeCt) -> None:
    make_ct(tmp_path, blank(5), z=[0, 2, 2, 4, 6])
    (series,) = build(tmp_path).series
    assert series.problems == ("1 image(s) at a position that another image has: duplicate slices",)
    assert [record.slice_index for record in series.records] == [0, 1, 1, 2, 3]


def test_uneven_spacing_is_said(tmp_path: Path, make_ct: MakeCt) -> None:
    make_ct(tmp_path, blank(5), z=[0, 2, 4, 6.7, 8.7])
    (series,) = build(tmp_path).series
    assert series.problems == ("uneven spacing: steps of 2.000 to 2.700 mm, 2.000 in the middle",)
    assert [record.slice_index for record in series.records] == [0, 1, 2, 3, 4]


def test_a_tilted_gantry_is_said(tmp_path: Path, make_ct: MakeCt) -> None:
    def tilt(dataset: Dataset, k: int) -> None:
        dataset.GantryDetectorTilt = 12
        dataset.ImagePositionPatient = [-100.0, -120.0 + 0.5 * k, 2.0 * k]

    make_ct(tmp_path, blank(4), edit=tilt)
    assert problems(tmp_path) == [
        "slices are shifted within their plane by up to 0.50 mm from one to the next",
        "the gantry was tilted: slices are left as they were acquired",
    ]


def test_mixed_sizes_and_acquisitions_are_kept_apart(tmp_path: Path, make_ct: MakeCt) -> None:
    def scout(dataset: Dataset, k: int) -> None:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        dataset.SOPInstanceUID = generate_uid()

    def phase(dataset: Dataset, k: int) -> None:
        dataset.AcquisitionNumber = 1 + k // 3

    make_ct(tmp_path / "a", blank(4))
    make_ct(tmp_path / "b", blank(1, rows=9), edit=scout)
    make_ct(tmp_path / "c", blank(6), z=[0, 2, 4] * 2, name="phases", edit=phase)
    index = build(tmp_path)
    assert sorted(len(series.records) for series in index.series) == [1, 3, 3, 4]
    assert all("kept apart as 2 parts" in series.problems[0] for series in index.series)
    assert len({series.key for series in index.series}) == 4


def test_copies_of_an_instance_count_once(tmp_path: Path, make_ct: MakeCt) -> None:
    make_ct(tmp_path / "a", blank(3))
    make_ct(tmp_path / "b", blank(3))
    index = build(tmp_path)
    assert len(index) == 3
    assert {record.path.parent.name for record in index.series[0].records} == {"a"}
    assert "3 file(s) repeat an instance" in problems(tmp_path)[0]


def test_patients_with_one_series_uid_are_not_mixed(tmp_path: Path, make_ct: MakeCt) -> None:
    def same_series(dataset: Dataset, k: int) -> None:
        dataset.SeriesInstanceUID = dataset.StudyInstanceUID = "1.2.3"

    for name in ("p", "q"):
        make_ct(tmp_path, blank(3), name=name, edit=same_series)
    assert sorted(series.patient_id or "" for series in build(tmp_path).series) == ["ID-p", "ID-q"]


def test_series_without_uids_are_grouped_by_folder(tmp_path: Path, make_ct: MakeCt) -> None:
    def without(dataset: Dataset, k: int) -> None:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.PatientID = "", "", ""
        dataset.SOPInstanceUID = generate_uid()

    make_ct(tmp_path / "one", blank(3), edit=without)
    make_ct(tmp_path / "two", blank(4), edit=without)
    index = build(tmp_path)
    assert sorted(len(series.records) for series in index.series) == [3, 4]


def test_without_positions_the_instance_number_sorts(tmp_path: Path, make_ct: MakeCt) -> None:
    def unplaced(dataset: Dataset, k: int) -> None:
        del dataset.ImagePositionPatient
        del dataset.PixelSpacing

    paths = make_ct(tmp_path, blank(3), edit=unplaced)
    (series,) = build(tmp_path).series
    assert [record.path for record in series.records] == paths[::-1]
    assert series.spacing_z_mm is None
    assert [problem.partition(":")[0] for problem in series.problems] == [
        "no position or orientation",
        "no PixelSpacing",
    ]


def test_enhanced_multi_frame(tmp_path: Path, make_enhanced_ct: Callable[..., Path]) -> None:
    path = make_enhanced_ct(tmp_path / "e.dcm", blank(4), [6, 4, 2, 0], [1, 1, 1, 1])
    index = build(tmp_path, cache=tmp_path / "cache.parquet")
    index = build(tmp_path, cache=tmp_path / "cache.parquet")  # through the cache too
    (series,) = index.series
    assert series.problems == ()
    assert [record.frame_number for record in series.records] == [4, 3, 2, 1]
    record = index.find(uid_of(path), 3)
    assert record is not None
    assert (record.slice_index, record.frame_count, record.spacing_x_mm) == (1, 4, 0.7)
    assert record.position_lps_mm == (-100.0, -120.0, 2.0)
    assert record.spacing_z_mm == pytest.approx(2.0)
    assert index.find(uid_of(path), 5) is None


def test_frames_without_functional_groups_are_found(tmp_path: Path, make_ct: MakeCt) -> None:
    def many(dataset: Dataset, k: int) -> None:
        dataset.NumberOfFrames = 2_000_000_000  # stated, not there: nothing of that size may be made

    (path,) = make_ct(tmp_path, blank(1), edit=many)
    index = build(tmp_path)
    assert len(index) == 1
    record = index.find(uid_of(path), 1_999_999_999)
    assert record is not None
    assert record.frame_number == 1_999_999_999


@pytest.mark.parametrize(
    ("born", "age", "expected"),
    [("19500615", "", 69.0), ("19500131", "", 70.0), ("", "006M", 0.5), ("", "", None), ("x", "old", None)],
)
def test_ages(born: str, age: str, expected: float | None, tmp_path: Path, make_ct: MakeCt) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        dataset.PatientBirthDate, dataset.PatientAge = "", ""
        dataset["PatientBirthDate"]._value, dataset["PatientAge"]._value = born, age  # past pydicom's checks

    (path,) = make_ct(tmp_path, blank(1), edit=edit)
    assert read_headers(path)[0].patient_age == expected


def test_damaged_headers_are_skipped_with_a_reason(
    tmp_path: Path, make_ct: MakeCt, caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_ct(tmp_path, blank(6))
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[:700])
    paths[1].write_bytes(b"")
    paths[2].write_bytes(data[:132] + b"\xff" * 500)
    (tmp_path / "text").write_text("DICM")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    index = build(tmp_path)
    assert caplog.text == ""  # pydicom would name files and values
    assert len(index) == 3
    cut_off = "an image without rows and columns: the file is cut off"
    dangling = (tmp_path / "dangling", "cannot be read (No such file or directory)")
    assert set(index.skipped) == {(paths[0], cut_off), (paths[2], cut_off), dangling}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("meta", [True, False], ids=["file meta", "data set alone"])
def test_images_without_preamble_are_found_too(
    syntax: str, meta: bool, tmp_path: Path, make_ct: MakeCt, caplog: pytest.LogCaptureFixture
) -> None:
    hu = np.arange(3 * 6 * 8).reshape(3, 6, 8) - 500
    paths = make_ct(tmp_path / "whole", hu)
    (tmp_path / "bare").mkdir()
    for k, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, enforce_file_format=True)
        data = path.read_bytes()
        bare = tmp_path / "bare" / path.name
        bare.write_bytes(data[132:] if meta else data[144 + int.from_bytes(data[140:144], "little") :])
        assert read_headers(bare) == read_headers(path)
        np.testing.assert_array_equal(read_slice_hu(bare), hu[k])
    (tmp_path / "bare" / "chance").write_bytes(b"\x08\0" + bytes(range(256)) * 9)
    (tmp_path / "bare" / "short").write_bytes(b"\x02\0")
    index = build(tmp_path / "bare")
    assert (len(index), index.skipped) == (3, [])
    assert caplog.text == ""


def test_a_damaged_image_without_preamble_is_skipped_with_a_reason(tmp_path: Path, make_ct: MakeCt) -> None:
    (path,) = make_ct(tmp_path, blank(1))
    data = path.read_bytes()
    path.write_bytes(data[144 + int.from_bytes(data[140:144], "little") :][:300])
    assert build(tmp_path).skipped == [(path, "an image without rows and columns: the file is cut off")]


def test_a_bomb_of_zeros_is_not_inflated(tmp_path: Path, make_ct: MakeCt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 8 * 2**20)
    (path,) = make_ct(tmp_path, blank(1))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    assert read_headers(path)[0].rows == 6
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = bytes(2**20)
    bomb = b"".join(squeeze.compress(block) for _ in range(9)) + squeeze.flush()
    path.write_bytes(data[:start] + bomb)
    with pytest.raises(UnreadableError, match="inflates to more than 8 MiB"):
        read_headers(path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="no such folder"):
        build(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert len(build(tmp_path)) == 0


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    gaps=st.lists(st.integers(1, 4), min_size=3, max_size=12),
    step=st.floats(0.5, 8.0),
    start=st.floats(-1500, 1500),
    order=st.randoms(use_true_random=False),
)
def test_any_regular_grid_with_gaps_is_recovered(gaps: list[int], step: float, start: float, order: Any) -> None:
    gaps = sorted([*gaps, *([1] * len(gaps))])  # most neighbours are there
    order.shuffle(gaps)
    expected = list(itertools.accumulate(gaps, initial=0))
    headers = [
        (
            f"{i}",
            ImageHeader(
                rows=4,
                columns=4,
                sop_instance_uid=f"1.{i}",
                series_uid="1",
                position_lps_mm=(0.0, 0.0, round(start + step * at, 3)),
                orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
                spacing_x_mm=1.0,
                spacing_y_mm=1.0,
            ),
        )
        for i, at in enumerate(expected)
    ]
    order.shuffle(headers)
    (series,) = group_series(headers, Path("folder"))
    assert [record.sop_instance_uid for record in series.records] == [f"1.{i}" for i in range(len(expected))]
    assert [record.slice_index for record in series.records] == expected
    assert series.spacing_z_mm == pytest.approx(step, abs=2e-3)
    missing = sum(gaps) - len(gaps)
    assert bool(series.problems) == bool(missing)
