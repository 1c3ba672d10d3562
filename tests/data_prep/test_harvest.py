"""Many files at once: nothing lost, nothing in silence, and the same tables whatever happens on the way."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import frames, harvest_join, harvest_parts
from data_prep.archive.png import write_hu
from data_prep.bookmark import read_bookmarks
from data_prep.errors import DataPrepError
from data_prep.harvest import WORK_FOLDER
from data_prep.lesion import read_lesions
from data_prep.readers.registry import recognise
from tests.data_prep.harvests import TABLES, contents, rejected, run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """90 small CSVs: 30 patients, 3 files each (two parts at least), some marks in two files."""
    folder = tmp_path / "archive"
    for i in range(90):
        path = folder / f"{i % 7}" / f"{i:03d}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        patient, image = i % 30, f"S{i % 30}/00{i % 3}.png"
        lines = [f"length,{10 + k} 20 {40 + k} 20,{image},P{patient},O{i // 30}" for k in range(3)]
        path.write_text("\n".join(["form,points_px,image,patient_id,observer", *lines, "point,nan 1,a/1.png,,"]))
    (folder / "copy.csv").write_bytes((folder / "0" / "000.csv").read_bytes())
    return folder


def test_counts_and_places(archive: Path, tmp_path: Path) -> None:
    (archive / "notes.txt").write_text("hello")
    (archive / "empty").write_bytes(b"")
    write_hu(archive / "S0" / "000.png", np.zeros((64, 64)))
    summary = run(archive, out=tmp_path / "out", images=archive)
    assert (summary.files, summary.images) == (94, 1)
    assert summary.bookmarks == {("csv", "length"): 270}
    assert summary.lesions == summary.with_box == 30
    assert (summary.with_image, summary.patients, summary.duplicates) == (1, 30, 3)
    marks = read_bookmarks(tmp_path / "out" / "bookmarks.parquet")
    assert len({mark.bookmark_id for mark in marks}) == 270
    assert {mark.image for mark in marks} == {None, "S0/000.png"}
    reasons = rejected(tmp_path / "out")
    assert len(reasons) == summary.rejected == 91 + 3 + 2
    assert {row["row"] for row in reasons if "points_px" in row["reason"]} == {"5"}
    (copied,) = {row["source_file"] for row in reasons if "copy of a mark" in row["reason"]}
    assert copied == (archive / "copy.csv").as_posix()
    assert {Path(row["source_file"]).name: row["reason"] for row in reasons if not row["row"]} == {
        "notes.txt": "not a format that is known",
        "empty": "the file is empty",
    }
    lesions = read_lesions(tmp_path / "out" / "lesions.parquet")
    assert sum(len(lesion.bookmark_ids) for lesion in lesions) == 270
    by_patient: dict[str | None, set[str | None]] = {}
    for lesion in lesions:
        by_patient.setdefault(lesion.patient_id, set()).add(lesion.split)
    assert all(len(splits) == 1 for splits in by_patient.values())


def test_parts_buckets_and_workers_do_not_show(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(archive, out=tmp_path / "a")
    first = contents(tmp_path / "a")
    run(archive, out=tmp_path / "b", workers=2)
    assert contents(tmp_path / "b") == first
    monkeypatch.setattr(harvest_parts, "FILES_PER_PART", 5)
    run(archive, out=tmp_path / "c")
    assert contents(tmp_path / "c") == first
    monkeypatch.setattr(harvest_join, "BUCKET_ROWS", 7)  # row groups differ, so the bytes do; the rows must not
    run(archive, out=tmp_path / "d")
    assert read_lesions(tmp_path / "d" / "lesions.parquet") == read_lesions(tmp_path / "a" / "lesions.parquet")
    assert read_bookmarks(tmp_path / "d" / "bookmarks.parquet") == read_bookmarks(tmp_path / "a" / "bookmarks.parquet")


def test_a_run_that_failed_goes_on(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(archive, out=tmp_path / "a")
    monkeypatch.setattr(harvest_parts, "FILES_PER_PART", 64)
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.harvest.join", lambda *_args, **_options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(archive, out=tmp_path / "b")
    work = tmp_path / "b" / WORK_FOLDER
    times = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    assert len([name for name in times if name.endswith(".json")]) == 2
    monkeypatch.setattr(harvest_parts, "read_file", lambda _path: pytest.fail("a finished part was read again"))
    run(archive, out=tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


@pytest.mark.parametrize("moment", range(int(os.environ.get("LESION_KILLS", "3"))))
def test_killed_at_any_moment_and_run_again(
    archive: Path, tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at random moments: no table is ever half, and the second run's are those of an undisturbed one."""
    run(archive, out=tmp_path / "a")
    command = [sys.executable, "-m", "data_prep", "harvest", str(archive), "--out", str(tmp_path / "b"), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "b" / WORK_FOLDER).exists():
        time.sleep(0.002)
    time.sleep(random.Random(moment).uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in TABLES:
        if (tmp_path / "b" / name).exists():
            assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    run(archive, out=tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("form,points_px,image\npoint,1 2,S/1.png\n")
    work = tmp_path / "work"
    work.mkdir()
    first = harvest_parts.find_files([path], tmp_path / "out")[0]
    assert harvest_parts.read_part(first, work).bookmarks == 1
    path.write_text("form,points_px,image\npoint,1 2,S/1.png\npoint,3 4,S/1.png\n")
    second = harvest_parts.find_files([path], tmp_path / "out")[0]
    assert harvest_parts.part_path(first, work) != harvest_parts.part_path(second, work)
    assert harvest_parts.read_part(second, work).bookmarks == 2


def test_a_mark_outside_its_image_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = ["form,points_px,image,rows,columns", "length,600 10 620 10,S/1.png,512,512", "point,5 600,S/1.png,512,512"]
    path.write_text("\n".join([*rows, "length,-5 10 20 10,S/1.png,512,512", "point,511.9 0,S/1.png,512,512"]))
    summary = run(path, out=tmp_path / "out")
    assert summary.total_bookmarks == 2
    assert [row["reason"] for row in rejected(tmp_path / "out")] == ["the mark lies wholly outside its image"] * 2


def test_unforeseen_damage_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("form,points_px,image\npoint,1 2,S/1.png\n")
    (tmp_path / "b.csv").write_text("form,points_px,image\npoint,1 2,S/2.png\n")

    def fails(path: Path, head: bytes | None = None) -> object:
        if path.name == "a.csv":
            raise RecursionError("Doe^John")
        return recognise(path, head)

    monkeypatch.setattr(harvest_parts, "recognise", fails)
    summary = run(tmp_path / "a.csv", tmp_path / "b.csv", out=tmp_path / "out")
    assert summary.total_bookmarks == 1
    (row,) = rejected(tmp_path / "out")
    assert "RecursionError" in row["reason"]
    assert "Doe" not in row["reason"]


def test_pipes_links_and_the_output_itself(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.csv").write_text("form,points_px,image\npoint,1 2,S/1.png\n")
    os.mkfifo(source / "pipe")
    (source / "gone").symlink_to(tmp_path / "nowhere")
    run(source, out=source / "out")
    again = run(source, out=source / "out")
    assert (again.files, again.total_bookmarks) == (1, 1)
    assert {Path(row["source_file"]).name for row in rejected(source / "out")} == {"pipe", "gone"}


def test_what_the_user_can_put_right(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("form,points_px,image\npoint,1 2,S/1.png\n")
    with pytest.raises(DataPrepError, match="no such file or folder"):
        run(tmp_path / "none", out=tmp_path / "out")
    with pytest.raises(DataPrepError, match="no such images folder"):
        run(tmp_path / "a.csv", out=tmp_path / "out2", images=tmp_path / "none")
    assert not (tmp_path / "out2").exists()
    with pytest.raises(DataPrepError, match="cannot write into this folder"):
        run(tmp_path / "a.csv", out=tmp_path / "a.csv")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataPrepError, match="no file to read"):
        run(tmp_path / "nothing", out=tmp_path / "out")


def test_dicom_images_give_their_facts(shared_data: Path, tmp_path: Path) -> None:
    """AIM and SR of the same 10 lines of two observers on five CT slices: five lesions, in mm by the images."""
    source = shared_data / "bookmarks" / "aim_xml_and_sr"
    summary = run(source, out=tmp_path / "out")
    assert summary.images == 5
    assert summary.with_dicom == 5
    lesions = read_lesions(tmp_path / "out" / "lesions.parquet")
    assert len(lesions) == 5
    assert [len(lesion.bookmark_ids) for lesion in lesions] == [4] * 5
    for lesion in lesions:
        assert (lesion.rows, lesion.columns) == (512, 512)
        assert lesion.recist_px is not None
        assert len(lesion.recist_px) == 4  # two observers' lines are never a pair
        assert lesion.long_diameter_mm is not None
    assert sum(lesion.measurement_disagrees for lesion in lesions) >= 3  # stored millimetres are often wrong
    elsewhere = run(source / "annotations", out=tmp_path / "other", images=source / "images")
    assert elsewhere.with_dicom == 5


def test_the_whole_release(shared_data: Path, tmp_path: Path) -> None:
    """29,280 rows on one core: the boxes are the CSV's own, the 8 that stick out are kept as they are."""
    release = shared_data / "deeplesion"
    script = (
        "import json, re, sys, time\n"
        "from pathlib import Path\n"
        "start = time.process_time()\n"
        "from data_prep.harvest import harvest\n"
        "harvest([Path(sys.argv[1])], Path(sys.argv[2]), images=Path(sys.argv[3]), progress=False)\n"
        # The peak since exec; ru_maxrss of a child starts at what its parent had when it forked.
        "kib = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()).group(1)\n"
        "print(json.dumps([time.process_time() - start, int(kib) / 1024]))\n"
    )
    images = release / "soft_tissue" / "Images_png"
    command = [sys.executable, "-c", script, str(release / "DL_info.csv"), str(tmp_path / "out"), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, mib = json.loads(done.stdout)
    print(f"29,280 rows: {seconds:.1f} s of CPU, {mib:.0f} MiB")
    assert seconds < 30  # 10 s is the aim on an idle core; a shared one may be three times slower
    assert mib < 1024
    lesions = read_lesions(tmp_path / "out" / "lesions.parquet")
    assert len(lesions) == 29_280
    assert sum(lesion.image is not None for lesion in lesions) == 2_163
    with (release / "DL_info.csv").open(newline="") as file:
        boxes = {
            tuple(map(float, row["Measurement_coordinates"].split(","))): row["Bounding_boxes"].split(",")
            for row in csv.DictReader(file)
        }
    points = frames.px_to_deeplesion_point([lesion.recist_px or () for lesion in lesions]).round(6).tolist()
    expected = np.array([boxes[tuple(row)] for row in points], dtype=float)
    ours = frames.px_to_deeplesion_box([lesion.box_px or () for lesion in lesions])
    assert np.abs(ours - expected).max() < 0.01
    out = [b for b in lesions if b.box_px and (min(b.box_px) < 0 or b.x1 > b.columns or b.y1 > b.rows)]  # type: ignore[operator]
    assert len(out) == 8
