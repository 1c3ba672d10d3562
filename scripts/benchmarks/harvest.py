"""How fast marks are harvested beside the bare parse of the same files, with how many workers, in how much memory."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harvest_inputs import KINDS, make_csv, make_objects
from benchmarks.results import machine, spread, today, write_section
from stages import ROOT

MOST_PARSED = 2_000  # files of a kind that one timing of a parse goes through

NAMES = {"sr": "DICOM SR (TID 1500)", "gsps": "presentation state", "aim": "AIM 4 XML"}
BARE = {"sr": "dcmread", "gsps": "dcmread", "aim": "xml"}
HOW = {
    "sr": ("reader", "dcmread", "dcmread, all elements", "srread"),
    "gsps": ("reader", "dcmread", "dcmread, all elements"),
    "aim": ("reader", "xml"),
}
Figures = dict[tuple[str, str], list[float]]


def probe(*words: object) -> dict[str, Any]:
    """One measurement in a fresh process with one thread for linear algebra; ends the benchmark where it fails."""
    return _end(_begin(*words), *words)


def _begin(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("probe.py")), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def _end(started: subprocess.Popen[str], *words: object) -> dict[str, Any]:
    said, _ = started.communicate()
    if started.returncode:
        raise SystemExit(f"stopped: measuring {' '.join(map(str, words[:2]))} failed")
    found: dict[str, Any] = json.loads(said)
    print(f"  {' '.join(map(str, words[:2]))}: {found}", flush=True)
    return found


def harvest(arguments: argparse.Namespace) -> None:
    """Make the inputs, measure, write the section ``harvest``."""
    work = arguments.work.resolve()
    objects = make_objects(work, arguments.objects, arguments.seed)
    rows = make_csv(work, arguments.rows, arguments.seed)
    out = work / "out"
    parsed, files = _parses(work, objects, arguments.repetitions)
    workers = _harvests(objects, out, arguments.objects, arguments.repetitions)
    alone = _independent(objects, work)
    small = _whole(probe("harvest", 1, out, objects / "00"), _files(objects / "00"))
    million = [_whole(probe("harvest", 1, out, rows), arguments.rows) for _ in range(arguments.repetitions)]
    text = "\n\n".join(
        [
            _parse_table(parsed),
            _highdicom(parsed),
            _workers(workers, arguments.objects, alone),
            _memory(small, workers[1], million),
            f"The objects are {arguments.objects:,} files of one measured RECIST pair each with UIDs of their own, "
            "reports, presentation states and AIM files in turn, written by this project's writers; so are the rows. "
            f"Parses: CPU time of one process over up to {files:,} files of a kind in the page cache, recognising the "
            f"format included in the reader's; median and range of {arguments.repetitions} interleaved repetitions. "
            "Harvests: wall time from files to both tables, as often. Memory: the process's peak resident set. "
            f"Seed {arguments.seed}. Machine: {machine()}. "
            f"Command: `python scripts/benchmark.py harvest ...`, {today()}.",
        ]
    )
    write_section("harvest", "Harvest: speed and memory", text, arguments.results)


def _files(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def _whole(found: dict[str, Any], marks: int) -> dict[str, Any]:
    """The measurement, if every mark was harvested: a fast harvest that loses marks is no figure."""
    if (found["bookmarks"], found["lesions"], found["rejected"]) != (marks, marks, 0):
        raise SystemExit(f"stopped: of {marks:,} marks {found['bookmarks']:,} became bookmarks and "
                         f"{found['lesions']:,} lesions, {found['rejected']:,} were rejected")  # fmt: skip
    return found


def _parses(work: Path, objects: Path, repetitions: int) -> tuple[Figures, int]:
    """(kind, how) -> objects per second of each repetition, and how many files of a kind were timed."""
    lists = {}
    for kind, ending in KINDS.items():
        paths = sorted(objects.glob(f"*/*-{ending}"))[:MOST_PARSED]
        lists[kind] = work / f"{kind}.txt"
        lists[kind].write_text("\n".join(map(str, paths)), encoding="utf-8")
    figures: Figures = defaultdict(list)
    for _ in range(repetitions):
        for kind, ways in HOW.items():
            for how in ways:
                figures[kind, how].append(probe("parse", how, lists[kind])["per_second"])
    return figures, len(paths)


def _harvests(objects: Path, out: Path, marks: int, repetitions: int) -> dict[int, list[dict[str, Any]]]:
    """Number of workers -> whole harvests of all objects, interleaved."""
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(repetitions):
        for workers, done in found.items():
            done.append(_whole(probe("harvest", workers, out, objects), marks))
    return found


def _independent(objects: Path, work: Path, repetitions: int = 3) -> list[float]:
    """How much more two harvests that share nothing do at once than one alone: what a second core is worth here."""
    gains = []
    for _ in range(repetitions):
        pairs = [("harvest", 1, work / f"out-{name}", objects / name) for name in ("00", "01")]
        alone = [probe(*words)["wall_s"] for words in pairs]
        together = [_end(started, *words) for started, words in [(_begin(*words), words) for words in pairs]]
        gains.append(sum(alone) / max(one["wall_s"] for one in together))
    return gains


def _parse_table(figures: Figures) -> str:
    lines = [
        "| objects per second per core | our reader | bare parse | every element converted | reader : parse, time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, bare in BARE.items():
        ours, parse = figures[kind, "reader"], figures[kind, bare]
        converted = figures.get((kind, "dcmread, all elements"))
        parser = "`pydicom.dcmread`" if bare == "dcmread" else "`defusedxml`"
        ratio = statistics.median(parse) / statistics.median(ours)
        cells = [spread(ours), f"{spread(parse)} {parser}", spread(converted) if converted else "", f"{ratio:.1f}"]
        lines.append(f"| {NAMES[kind]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _highdicom(figures: Figures) -> str:
    ours, theirs = (statistics.median(figures["sr", how]) for how in ("reader", "srread"))
    return (
        "Our SR reader walks the content tree with pydicom and makes no highdicom objects. `highdicom.sr.srread` "
        f"parses {spread(figures['sr', 'srread'])} of the same reports per second per core, before any mark is sought: "
        f"{ours / theirs:.1f} times the time of our whole reader."
    )


def _workers(found: dict[int, list[dict[str, Any]]], objects: int, alone: Sequence[float]) -> str:
    seconds = {workers: [one["wall_s"] for one in done] for workers, done in found.items()}
    gains = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return (
        f"A whole harvest of the {objects:,} objects takes {spread(seconds[1], 1)} s with one worker and "
        f"{spread(seconds[2], 1)} s with two: {spread(gains, 2)} times as fast (aim: 1.7). "
        "Two harvests with one worker each that share nothing, run at once, do "
        f"{spread(alone, 2)} times the work of one: what the second core gives on this machine."
    )


def _memory(small: dict[str, Any], large: list[dict[str, Any]], million: list[dict[str, Any]]) -> str:
    low, high = small["peak_mib"], statistics.median(one["peak_mib"] for one in large)
    return (
        "| harvest with one worker | wall time | CPU time | peak memory |\n| --- | --- | --- | --- |\n"
        f"| {small['bookmarks']:,} objects | {small['wall_s']:.1f} s | {small['cpu_s']:.1f} s | {low:.0f} MiB |\n"
        f"| {large[0]['bookmarks']:,} objects | {spread([one['wall_s'] for one in large], 1)} s | "
        f"{spread([one['cpu_s'] for one in large], 1)} s | {high:.0f} MiB ({high / low - 1:+.0%}; aim: within 10 %) |\n"
        f"| a DeepLesion CSV of {million[0]['bookmarks']:,} rows | {spread([one['wall_s'] for one in million], 1)} s "
        f"(aim for a million: 60 s) | {spread([one['cpu_s'] for one in million], 1)} s | "
        f"{max(one['peak_mib'] for one in million):.0f} MiB |"
    )
