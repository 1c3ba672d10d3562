"""Marks that lie on images in ways that only the images tell: harvested with and without them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from data_prep import harvest_parts
from data_prep.bookmark import Bookmark, read_bookmarks
from data_prep.harvest import WORK_FOLDER
from data_prep.lesion import read_lesions
from data_prep.writers.dicom_seg import build_segmentation
from tests.data_prep import samples
from tests.data_prep.dicom_objects import encoded
from tests.data_prep.harvests import TABLES, contents, rejected, run

OUTLINE = samples.circle_px(40.25, 30.5, 8)
SPATIAL = samples.circle_px(20.5, 45.25, 9)


def marks_of(out: Path) -> dict[str, Bookmark]:
    """Source -> its only mark."""
    marks = read_bookmarks(out / "bookmarks.parquet")
    found = {mark.source: mark for mark in marks}
    assert len(found) == len(marks)
    return found


def segmentation(**changes: Any) -> bytes:
    """A circle of 8 px on slice 2, drawn on images with these changes."""
    facts: dict[str, Any] = {"sop_instance_uid": "2.25.702", "series_instance_uid": "2.25.70"}
    circle = samples.mark("circle", (30, 30, 38, 30))
    images = [samples.ct_slice(k, **changes) for k in range(5)]
    return encoded(build_segmentation([circle], images, created=samples.CREATED, **facts))


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A structure set on slice 3, a SCOORD3D report on slice 1, a segmentation on slice 2."""
    folder = tmp_path / "marks"
    folder.mkdir()
    (folder / "structures").write_bytes(encoded(samples.structure_set({3: OUTLINE})))
    (folder / "report").write_bytes(encoded(samples.spatial_report(SPATIAL, k=1)))
    (folder / "mask").write_bytes(segmentation())
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    samples.write_ct(tmp_path / "ct")
    return tmp_path / "ct"


def test_without_the_images_the_reason_says_what_to_do(marks: Path, tmp_path: Path) -> None:
    summary = run(marks, out=tmp_path / "out")
    assert summary.files == 3
    rows = rejected(tmp_path / "out")
    assert {Path(row["source_file"]).name for row in rows} == {"structures", "report"}
    assert all("harvest with --images" in row["reason"] for row in rows)
    (mask,) = read_bookmarks(tmp_path / "out" / "bookmarks.parquet")
    assert (mask.source, mask.source_frame, mask.image_uid) == ("dicom-seg", "assumed", samples.image_uid(2))


@pytest.mark.parametrize("among_the_sources", [False, True])
def test_with_the_images_every_mark_is_on_its_slice(
    marks: Path, images: Path, tmp_path: Path, among_the_sources: bool
) -> None:
    out = tmp_path / "out"
    summary = run(marks, images, out=out) if among_the_sources else run(marks, out=out, images=images)
    assert rejected(out) == []
    assert (summary.files, summary.images) == ((8, 5) if among_the_sources else (3, 0))
    found = marks_of(out)
    for source, k, outline in (("rtstruct", 3, OUTLINE), ("dicom-sr", 1, SPATIAL)):
        mark = found[source]
        assert (mark.image_uid, mark.slice_index, mark.modality) == (samples.image_uid(k), k, "CT")
        assert (mark.rows, mark.columns, mark.spacing_x_mm) == (samples.ROWS, samples.COLUMNS, samples.SPACING[0])
        assert mark.patient_id == samples.PATIENT_ID
        # ContourData was written with 4 decimals of a millimetre, SCOORD3D is float32.
        np.testing.assert_allclose(mark.points, outline, atol=1e-3)
    assert (found["dicom-seg"].source_frame, found["dicom-seg"].slice_index) == ("declared", 2)
    lesions = {lesion.image_uid: lesion for lesion in read_lesions(out / "lesions.parquet")}
    assert set(lesions) == {samples.image_uid(k) for k in (1, 2, 3)}
    x, y = np.transpose(OUTLINE) * np.array(samples.SPACING)[:, None]
    across = max(float(np.hypot(x - x[i], y - y[i]).max()) for i in range(len(x)))
    assert lesions[samples.image_uid(3)].long_diameter_mm == pytest.approx(across, abs=0.01)


def test_images_that_are_others(marks: Path, tmp_path: Path) -> None:
    """Images are at hand, but not those that were marked."""
    other = tmp_path / "other"
    other.mkdir()
    changes = {"SOPInstanceUID": "2.25.5", "SeriesInstanceUID": "2.25.6", "FrameOfReferenceUID": "2.25.7"}
    (other / "0").write_bytes(encoded(samples.ct_slice(0, **changes)))
    run(marks, out=tmp_path / "out", images=other)
    reasons = {Path(row["source_file"]).name: row["reason"] for row in rejected(tmp_path / "out")}
    assert "is not among the images given" in reasons["structures"]
    assert "no image of its frame of reference" in reasons["report"]
    assert marks_of(tmp_path / "out")["dicom-seg"].source_frame == "assumed"


def test_workers_and_parts_do_not_show(
    marks: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(marks, images, out=tmp_path / "a")
    monkeypatch.setattr(harvest_parts, "FILES_PER_PART", 2)  # several parts in both passes
    run(marks, images, out=tmp_path / "b", workers=2)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    run(marks, images, out=tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "a")


def test_a_damaged_image_is_listed_once(marks: Path, images: Path, tmp_path: Path) -> None:
    data = (images / "2.dcm").read_bytes()
    (images / "2.dcm").write_bytes(data[: data.index(b"PN") + 30])  # before its rows and columns
    (images / "4.dcm").write_bytes(data[:200])
    run(marks, images, out=tmp_path / "out")
    rows = [row for row in rejected(tmp_path / "out") if "ct" in Path(row["source_file"]).parts]
    assert sorted(Path(row["source_file"]).name for row in rows) == ["2.dcm", "4.dcm"]
    assert all(row["reason"] for row in rows)
    found = marks_of(tmp_path / "out")
    assert set(found) == {"rtstruct", "dicom-sr", "dicom-seg"}
    assert found["dicom-seg"].source_frame == "assumed"  # its image is the damaged one


@pytest.mark.parametrize("moment", range(int(os.environ.get("LESION_KILLS", "3"))))
def test_killed_and_run_again(marks: Path, images: Path, tmp_path: Path, moment: int) -> None:
    """SIGKILL between and within the two passes and the index: the second run's tables are those of a whole one."""
    for k in range(40):
        shutil.copy(marks / "structures", marks / f"structures-{k:02d}")
    sources = [str(marks), str(images)]
    run(marks, images, out=tmp_path / "a")
    command = [sys.executable, "-m", "data_prep", "harvest", *sources, "--out", str(tmp_path / "b"), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "b" / WORK_FOLDER).exists():
        time.sleep(0.002)
    time.sleep(random.Random(moment + 100).uniform(0, 1.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in TABLES:
        if (tmp_path / "b" / name).exists():
            assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    run(marks, images, out=tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_an_image_that_changed_in_between_is_read_again(
    marks: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stopped placed marks on images that are others when it goes on."""
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.harvest.join", lambda *_args, **_options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(marks, images, out=tmp_path / "out")
    assert (tmp_path / "out" / WORK_FOLDER).is_dir()
    for path in images.iterdir():  # the pixels of the whole series are twice as large as was said
        image = dcmread(path)
        image.PixelSpacing = [step * 2 for step in image.PixelSpacing]
        path.write_bytes(encoded(image))
    run(marks, images, out=tmp_path / "out")
    run(marks, images, out=tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    mark = marks_of(tmp_path / "out")["rtstruct"]
    assert mark.spacing_x_mm == samples.SPACING[0] * 2
    expected = (np.array(OUTLINE) - 0.5) / 2 + 0.5  # the corner of the first pixel moved, not its centre
    np.testing.assert_allclose(mark.points, expected, atol=1e-3)


def test_a_mask_of_another_size_without_a_place(images: Path, tmp_path: Path) -> None:
    """A segmentation whose grid is not its image's, and which states no position, cannot be put anywhere."""
    mask = dcmread(_written(tmp_path / "mask", segmentation(Rows=60, Columns=60)))
    for groups in mask.PerFrameFunctionalGroupsSequence:
        del groups.PlanePositionSequence
    _written(tmp_path / "mask", encoded(mask))
    summary = run(tmp_path / "mask", out=tmp_path / "out", images=images)
    assert summary.total_bookmarks == 0
    (row,) = rejected(tmp_path / "out")
    assert "differ in size" in row["reason"]


def test_a_mask_of_another_size_with_a_place_is_moved(images: Path, tmp_path: Path) -> None:
    """The same with its position: twice the spacing, half the size, onto the image's own grid."""
    coarse = [2 * step for step in reversed(samples.SPACING)]
    _written(tmp_path / "mask", segmentation(Rows=60, Columns=60, PixelSpacing=coarse))
    run(tmp_path / "mask", out=tmp_path / "out", images=images)
    assert rejected(tmp_path / "out") == []
    mark = marks_of(tmp_path / "out")["dicom-seg"]
    assert (mark.rows, mark.columns, mark.source_frame) == (samples.ROWS, samples.COLUMNS, "declared")
    low, high = np.min(mark.points, axis=0), np.max(mark.points, axis=0)
    centre = (np.array([30.0, 30.0]) - 0.5) * 2 + 0.5
    np.testing.assert_allclose((low + high) / 2, centre, atol=1.0)
    np.testing.assert_allclose(high - low, [32, 32], atol=2.0)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
