"""How fast the detector is: as ratios within one run, beside its bare network, MONAI's stock parts and torchvision."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.deeplesion import write_nifti
from benchmarks.results import machine, spread, today, write_section
from stages import GLIBC_TUNABLES, ROOT, data_step

SLICES = 12
SPACING_MM = (0.8, 0.8, 5.0)  # stated for all; no timing depends on it
PAPER_MS = 88  # a 512 x 512 slice on a Titan X (Yan et al., 2017)
KINDS = ("float32", "bfloat16")
Timings = Mapping[str, list[float]]


def detector(arguments: argparse.Namespace) -> None:
    """Measure in a fresh process, write the section ``detector``."""
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    slices, data = inputs(work, arguments.seed)
    program = Path(__file__).with_name("detector_probe.py")
    series = work / "series.nii"
    write_nifti(slices, SPACING_MM, series)
    words = (program, series, arguments.repetitions, arguments.seed, *slices)
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"GLIBC_TUNABLES": GLIBC_TUNABLES, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit("stopped: measuring the detector failed")
    found = json.loads(done.stdout.splitlines()[-1])
    parts = []
    for device, title in (("cpu", "Two CPU cores"), ("cuda", "GPU")):
        if device in found:
            parts += [f"### {title}", forward_table(found[device]["forward"]), selection(found[device]["selection"])]
            parts.append(training_table(found[device]["training"]))
    parts.append(augmentation(found["augmentation"]))
    parts.append(
        f"{data} The body has ImageNet weights, the heads random ones, as have the rivals throughout. Each detector's "
        "score threshold lets 1,000 candidates pass, so that all select among equally many. Bare network: the "
        "forward of the network on a tensor; whole path: a slice of a series with its two neighbours, window, network, "
        "decoding, NMS and boxes in px of the file, as inference does it, batch 1; with reading: a 16-bit PNG a slice "
        "read before, one after the other. "
        "torchvision: RetinaNet, ResNet-50 FPN, strides 8 to 128; MONAI: `RetinaNetDetector` with its "
        "ResNet-50 FPN extractor, strides 8 to 64; both with 9 anchors a location. Training: 4 images of 384 px a "
        "step, two lesions each; MONAI's detector on our body and pyramid with its own heads and ATSS. "
        f"Median and range of {arguments.repetitions} interleaved repetitions; a ratio is taken within each. "
        f"Seed {arguments.seed}. Machine: {machine()}. Command: `python scripts/benchmark.py detector ...`, {today()}."
    )
    write_section("detector", "Detector: speed", "\n\n".join(parts), arguments.results)


def inputs(work: Path, seed: int) -> tuple[list[Path], str]:
    """Neighbouring slices, and what they are: real 512 x 512 px ones where they are at hand, else the phantom's."""
    shared = Path(os.environ.get("LESION_SHARED_DATA") or ROOT.parent / "shared" / "data")
    found = sorted((shared / "deeplesion/full_range/Images_png/000062_01_01").glob("*.png"))[:SLICES]
    if len(found) == SLICES:
        return found, f"Input: {SLICES} consecutive DeepLesion slices of 512 x 512 px."
    phantom = work / f"phantom-{seed}"
    data_step("phantom", phantom, patients=1, seed=seed)
    series = sorted((phantom / "Images_png").iterdir())[0]
    found = sorted(series.glob("*.png"))[:SLICES]
    return found, f"Input: {len(found)} consecutive phantom slices of 256 x 256 px, enlarged to 512 x 512 px."


def ratios(over: list[float], under: list[float]) -> list[float]:
    """``over / under`` within each repetition."""
    return [a / b for a, b in zip(over, under, strict=True)]


def milliseconds(seconds: list[float]) -> str:
    return spread([1000 * s for s in seconds], 1)


def forward_table(found: Mapping[str, Timings]) -> str:
    def line(name: str, cells: list[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    timings = [found[kind] for kind in KINDS]
    lines = [line("512 x 512 px slice, batch 1", list(KINDS)), "| --- | --- | --- |"]
    for name, key in (("bare network", "network"), ("whole path", "whole path"), ("with reading", "with reading")):
        lines.append(line(f"{name}, ms", [milliseconds(t[key]) for t in timings]))
    if "network, compiled" in timings[0]:
        lines.append(
            line("bare network : the same by `torch.compile`",
                 [spread(ratios(t["network"], t["network, compiled"]), 2) for t in timings])
        )  # fmt: skip
    lines.append(
        line("whole path : bare network (aim: at most 1.25)",
             [spread(ratios(t["whole path"], t["network"]), 2) for t in timings])
    )  # fmt: skip
    lines.append(
        line(f"with reading : {PAPER_MS} ms (the 2017 paper's on a Titan X; aim: at most 1)",
             [spread([1000 * s / PAPER_MS for s in t["with reading"]], 2) for t in timings])
    )  # fmt: skip
    for key in ("torchvision", "MONAI"):
        lines.append(line(f"{key}'s RetinaNet, ms", [milliseconds(t[key]) for t in timings]))
        lines.append(
            line(f"{key}'s : ours, from tensor to boxes (aim: 8)",
                 [spread(ratios(t[key], t["forward"]), 1) for t in timings])
        )  # fmt: skip
    lines.append(
        line("MONAI's : ours, networks alone", [spread(ratios(t["MONAI network"], t["network"]), 1) for t in timings])
    )
    return "\n".join(lines)


def selection(found: Mapping[str, Timings]) -> str:
    """``found``: by how many boxes of a slice are kept."""
    parts = []
    for kept, timings in sorted(found.items(), key=lambda pair: int(pair[0])):
        faster = statistics.median(ratios(timings["MONAI"], timings["ours"]))
        parts.append(
            f"with the {int(kept):,} best boxes kept {milliseconds(timings['ours'])} ms, in MONAI's detector "
            f"{milliseconds(timings['MONAI'])} ms: {faster:.0f} times as fast"
        )
    return (
        f"Post-processing of 5,000 candidates takes {'; '.join(parts)} (aim: 50). The results are the same up to ties, "
        "which a test checks; the configs keep 100."
    )


def training_table(found: Mapping[str, Timings]) -> str:
    lines = ["| training, images/s | float32 | bfloat16 |", "| --- | --- | --- |"]
    for name in found[KINDS[0]]:
        cells = []
        for kind in KINDS:
            own, ours = found[kind][name], found[kind]["ours"]
            rate = spread([1 / s for s in own], 1)
            cells.append(rate if name == "ours" else f"{rate}; ours {spread(ratios(own, ours), 1)} times as fast")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def augmentation(found: Timings) -> str:
    return (
        f"Augmenting one slice takes {milliseconds(found['ours'])} ms of one core (flip, scale, shift, rotation and "
        f"intensity in one interpolation); MONAI's transforms for flip, zoom and intensity alone "
        f"{milliseconds(found['MONAI'])} ms."
    )
