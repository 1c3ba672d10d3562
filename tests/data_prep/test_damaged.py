"""Damaged and hostile files through the whole harvest: no crash, no hang, nothing told, nothing lost in silence.

300 files; the environment variable ``LESION_DAMAGED_INPUTS`` says how many others (2,000 before a release).
"""

from __future__ import annotations

import gzip
import logging
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.archive.index import ImageIndex
from data_prep.bookmark import Bookmark, read_bookmarks
from data_prep.harvest import HarvestSummary, harvest
from data_prep.harvest_parts import read_file
from tests.data_prep import damage, samples
from tests.data_prep.harvests import TABLES, rejected

COUNT = int(os.environ.get("LESION_DAMAGED_INPUTS", "300"))
SEED = 20_180_714
LONGEST_S = 10.0
COPY = "a copy of a mark that was harvested already"


@dataclass(frozen=True)
class Inputs:
    """``folder`` holds the damaged files and their images; ``sentinel`` is a folder that nobody may touch."""

    folder: Path
    sentinel: Path
    files: tuple[damage.Damaged, ...]
    seeds: dict[str, bytes]

    def path(self, name: str) -> Path:
        return self.folder / "marks" / name


def real_seeds() -> dict[str, bytes]:
    """Objects of foreign software, where the shared data is there."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LESION_SHARED_DATA") or default) / "bookmarks"
    patterns = ("sr/*.dcm", "gsps/*.pr.dcm", "gsps/*.ko.dcm", "aim_json/2*.json", "aim_xml_and_sr/annotations/*A.xml")
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))[:3]]
    return {f"real{number}{path.suffix}": path.read_bytes() for number, path in enumerate(paths)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    home = tmp_path_factory.mktemp("damaged")
    folder, sentinel = home / "in", home / "sentinel"
    samples.write_ct(folder / "ct")
    (folder / "marks").mkdir()
    sentinel.mkdir()
    (sentinel / "passwd").write_text("untouched")
    (sentinel / "x.png").write_bytes(b"untouched")
    seeds = samples.every_kind(home)
    files = tuple(damage.damaged({**seeds, **real_seeds()}, COUNT, SEED))
    assert len({file.name for file in files}) == len(files) == COUNT
    for file in files:
        (folder / "marks" / file.name).write_bytes(file.data)
    return Inputs(folder, sentinel, files, seeds)


def listing(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {path.as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def tells_a_name(text: str) -> bool:
    """Whether any four letters of a planted name or number are told (a flipped bit spares the others)."""
    words = [*samples.NAME.lower().split("^"), samples.PATIENT_ID.lower()]
    return any(word[start : start + 4] in text.lower() for word in words for start in range(len(word) - 3))


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in whatever runs after this time."""

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def harvested(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HarvestSummary, bool]:
    """The output of one harvest of all, its counts, and whether it left everything else alone."""
    out = tmp_path_factory.mktemp("harvested") / "out"
    before = listing(inputs.folder, inputs.sentinel, out.parent)
    summary = harvest([inputs.folder], out, progress=False)
    after = listing(inputs.folder, inputs.sentinel, out.parent)
    outside = {name: facts for name, facts in after.items() if Path(name) != out and out not in Path(name).parents}
    return out, summary, outside == before and sorted(path.name for path in out.iterdir()) == sorted(TABLES)


def test_the_seeds_are_whole(inputs: Inputs, tmp_path: Path) -> None:
    """Without damage every seed is read to the last mark; otherwise the rest of this file would show nothing."""
    samples.write_ct(tmp_path / "ct")
    for name, data in inputs.seeds.items():
        (tmp_path / name).write_bytes(data)
    summary = harvest([tmp_path], tmp_path / "out", progress=False)
    assert [row for row in rejected(tmp_path / "out") if row["reason"] != COPY] == []
    marks = read_bookmarks(tmp_path / "out" / "bookmarks.parquet")
    assert {Path(mark.source_file).name for mark in marks} == set(inputs.seeds)
    assert summary.images == 5


def test_no_file_hangs_or_crashes(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    """Each file on its own, without and with the images; libraries' warnings would quote what they choke on."""
    images = ImageIndex.build(inputs.folder / "ct", progress=False)
    slowest = ("", 0.0)
    for file in inputs.files:
        for lookup in (None, images):
            started = time.monotonic()
            with alarm(LONGEST_S), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = list(read_file(inputs.path(file.name), lookup))
            slowest = max(slowest, (file.name, time.monotonic() - started), key=lambda pair: pair[1])
            assert found, file.name
            assert not said, file.name
    print(f"the slowest of {COUNT}: {slowest[0]}, {slowest[1]:.2f} s")
    assert slowest[1] < LONGEST_S, slowest[0]
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_every_file_is_accounted_for(inputs: Inputs, harvested: tuple[Path, HarvestSummary, bool]) -> None:
    out, summary, _ = harvested
    rows = rejected(out)
    reasons: dict[str, set[str]] = {}
    for row in rows:
        reasons.setdefault(Path(row["source_file"]).name, set()).add(row["reason"])
    gave = {Path(mark.source_file).name for mark in read_bookmarks(out / "bookmarks.parquet")}
    gave |= {name for name, said in reasons.items() if COPY in said}
    listed = {name for name, said in reasons.items() if said - {COPY}}
    lost = [file.name for file in inputs.files if file.name not in gave | listed]
    assert lost == [], "neither harvested nor listed"
    silent = [file.name for file in inputs.files if file.hopeless and file.name not in listed]
    assert silent == [], "beyond use, but not listed"
    harmless = sum(file.name in gave for file in inputs.files)
    print(f"{COUNT} damaged files: {len(listed & {f.name for f in inputs.files})} listed, {harmless} gave marks")
    assert 0 < harmless < COUNT
    assert summary.files == COUNT + 5
    assert summary.rejected == len(rows)
    assert all(row["reason"] and len(row["reason"]) <= 500 for row in rows)


def test_no_mark_of_a_cut_file_is_lost_in_silence(inputs: Inputs) -> None:
    """Whatever a file that is cut off still gives, that it gives less is said."""
    images = ImageIndex.build(inputs.folder / "ct", progress=False)
    for file in inputs.files:
        _, way, name = file.name.split("-", 2)
        if way not in ("cut", "cut_in_element", "absurd_length", "cut_document") or name.endswith(".csv"):
            continue
        found = list(read_file(inputs.path(file.name), images))
        if not any(isinstance(item, Bookmark) for item in found):
            continue
        whole = inputs.folder / "whole"
        whole.write_bytes({**inputs.seeds, **real_seeds()}[name])
        expected = list(read_file(whole, images))
        whole.unlink()
        assert len(found) >= len(expected), file.name


def test_nothing_is_told_or_touched(
    inputs: Inputs, harvested: tuple[Path, HarvestSummary, bool], tmp_path: Path
) -> None:
    """The command line with two workers: the same tables, no name in what it says, nothing written elsewhere."""
    out, _, alone = harvested
    assert alone
    before = listing(inputs.folder, inputs.sentinel)
    command = [sys.executable, "-m", "data_prep", "harvest", str(inputs.folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--workers", "2"], capture_output=True, text=True, timeout=60 + COUNT, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert listing(inputs.folder, inputs.sentinel) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for name in TABLES:
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()
    assert not tells_a_name(done.stdout + done.stderr)
    assert not tells_a_name((out / "rejected.csv").read_text(encoding="utf-8"))


def test_a_large_mask_of_nearly_nothing(tmp_path: Path) -> None:
    """128 MiB in 600 kB: a label map may state what it likes, its time must be that of what is in it."""
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes()[:352]
    voxels = bytearray(512 * 512 * 512)
    voxels[0] = voxels[-1] = 3
    head = bytearray(header)
    head[42:48] = struct.pack("<3h", 512, 512, 512)
    (tmp_path / "mask").write_bytes(gzip.compress(bytes(head + voxels), compresslevel=1))
    started = time.monotonic()
    marks = [found for found in read_file(tmp_path / "mask") if isinstance(found, Bookmark)]
    assert time.monotonic() - started < LONGEST_S
    assert [mark.slice_index for mark in marks] == [0, 511]
    np.testing.assert_allclose([np.mean(mark.points, axis=0) for mark in marks], [(0.5, 0.5), (511.5, 511.5)])
