"""What remedies for unmarked lesions recover on the phantom, whose truth is known, and what a review of findings gains.

Each arm is a stage of its own: kill it, start it again, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.results import machine, spread, today, write_section
from benchmarks.runs import judged_twice
from stages import FULL_OPTIONS, PHANTOM_OPTIONS, PLAIN_OPTIONS, Stages, bundle, data_step
from torchvision.ops import box_iou

REMEDIES = {
    "none": "none: what is not marked is background",
    "ignore": "ignore: confident findings that no mark explains are left alone",
    "complete": "complete: a teacher's confident findings are learned from",
    "pu": "pu: positive-unlabelled risk, half of the lesions taken to be marked",
}
TOGETHER = "ignore, with the dense task and copy-paste"
RATES = ("0.5", "1", "2", "4")
HIT_IOU = 0.5


def findings(detections: Path) -> dict[str, list[dict[str, Any]]]:
    """The findings of a ``detections.json`` by slice."""
    by_image: dict[str, list[dict[str, Any]]] = {}
    for series in json.loads(detections.read_text(encoding="utf-8"))["series"]:
        for finding in series["findings"]:
            by_image.setdefault(finding["image"], []).append(finding)
    return by_image


def hits(item: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """(findings, unmarked lesions) bool: which finding hits which lesion that truly is there and has no mark."""
    unmarked = [box for box, marked in zip(item["box"], item["marked"], strict=True) if not marked]
    boxes = torch.tensor([finding["box_px"] for finding in found], dtype=torch.float64).reshape(-1, 4)
    return box_iou(boxes, torch.tensor(unmarked, dtype=torch.float64).reshape(-1, 4)) >= HIT_IOU


def recovered(
    items: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]], fp_per_slice: float = 1.0
) -> float:
    """The share of the unmarked lesions that are found at a rate of false positives, read as the FROC is.

    Args:
        items: of the truth.
        found: findings that overlap no mark, by slice.
        fp_per_slice: findings that hit no lesion, per slice of ``items``.
    """
    best: list[float] = []
    false: list[float] = []
    for item in items:
        of_slice = found.get(key(item), [])
        scores = torch.tensor([finding["score"] for finding in of_slice], dtype=torch.float64)
        hit = hits(item, of_slice)
        false += scores[~hit.any(1)].tolist()
        best += [max(scores[column].tolist(), default=0.0) for column in hit.T]
    allowed = int(fp_per_slice * len(items))
    limit = sorted(false, reverse=True)[allowed] if len(false) > allowed else 0.0
    return float(np.mean([score > limit for score in best]))


def key(item: Mapping[str, Any]) -> str:
    """The path of an item's key slice."""
    return str(item["image"][len(item["image"]) // 2])


def confirmed(items: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Ids of the findings that hit an unmarked lesion by the truth; of several on one lesion the best."""
    ids = []
    for item in items:
        of_slice = sorted(found.get(key(item), []), key=lambda finding: -finding["score"])
        taken: set[int] = set()
        for finding, row in zip(of_slice, hits(item, of_slice), strict=True):
            new = set(torch.nonzero(row).flatten().tolist()) - taken
            if new:
                taken |= new
                ids.append(finding["lesion_id"])
    return ids


def row(name: str, test: Sequence[Mapping[str, Any]], tuning: Sequence[Mapping[str, Any]], shares: list[float]) -> str:
    """A line of the table, over seeds."""
    cells = [spread([metrics["froc"][rate]["value"] for metrics in test], 3) for rate in RATES]
    cells += [spread([metrics["average_sensitivity"]["value"] for metrics in of], 3) for of in (test, tuning)]
    cells.append(spread(shares, 3))
    return f"| {name} | " + " | ".join(cells) + " |"


HEAD = (
    "| | test: .5 FP | 1 | 2 | 4 | mean | tuning: mean | unmarked lesions of training slices found at 1 FP |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


class Bench:
    """The phantom, its marks, and the arms on it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work.resolve()
        self.seeds = range(arguments.seed, arguments.seed + arguments.seeds)
        self.options = {**PHANTOM_OPTIONS, **({"max_epochs": arguments.epochs} if arguments.epochs else {})}
        made = {"patients": arguments.patients, "seed": arguments.seed, "options": self.options}
        self.stages = Stages(self.work, made)
        phantom = self.work / "phantom"
        self.csv, self.images, self.truth = (
            phantom / "DL_info.csv",
            phantom / "Images_png",
            phantom / "truth/datalist.json",
        )
        self.marks = self.work / "datalist.json"
        self.lines = [HEAD]
        self.notes: list[str] = []
        self.metrics: dict[str, Any] = {}

    def prepare(self) -> None:
        """The phantom and its marks; one category, so that an accepted finding needs none."""
        phantom, patients, seed = self.csv.parent, self.arguments.patients, self.arguments.seed
        self.stages.run("phantom", data_step, "phantom", phantom, patients=patients, seed=seed)
        harvest = self.work / "harvest"
        self.stages.run("harvest", data_step, "harvest", self.csv, images=self.images, out=harvest)
        lesions = harvest / "lesions.parquet"
        self.stages.run("datalist", data_step, "datalist", lesions, images=self.images, out=self.marks)
        in_training = {key(item) for item in json.loads(self.marks.read_text(encoding="utf-8"))["training"]}
        truth = json.loads(self.truth.read_text(encoding="utf-8"))["training"]
        self.items = [item for item in truth if key(item) in in_training]

    def arms(self, title: str, prefix: str, lists: Mapping[int, Path], options: Mapping[str, Any]) -> None:
        """Train and judge once for each seed, with ``options`` beyond the common ones; a line of the table."""
        test, tuning, shares = [], [], []
        for seed in self.seeds:
            name = f"{prefix}, seed {seed}"
            of_test, of_tuning = judged_twice(
                self.stages, self.work, name, train=lists[seed], judge=self.truth, images=self.images, seed=seed,
                **{**self.options, **PLAIN_OPTIONS, **options},
            )  # fmt: skip
            test.append(of_test)
            tuning.append(of_tuning)
            found = self.find(name, "every finding", score_threshold=0.01)
            shares.append(recovered(self.items, found))
        self.metrics = test[0]
        self.lines.append(row(title, test, tuning, shares))
        self.write()

    def find(self, name: str, folder: str, **options: object) -> dict[str, list[dict[str, Any]]]:
        """List the findings without a mark on the training slices."""
        report = self.work / name / folder
        self.stages.run(
            f"{name}: {folder}", bundle, "train", "find_unmarked", datalist=self.marks, dataset_dir=self.images,
            output_dir=self.work / name, report_dir=report, **options,
        )  # fmt: skip
        return findings(report / "detections.json")

    def review(self, seed: int) -> Path:
        """Findings of the plain detector -> review by the truth -> a datalist with the accepted ones."""
        name = f"none, seed {seed}"
        home = self.work / f"review, seed {seed}"
        found = self.find(name, "unmarked")
        accepted = confirmed(self.items, found)
        listed = sum(map(len, found.values()))
        missing = sum(not marked for item in self.items for marked in item["marked"])
        self.notes.append(f"{len(accepted)} of {listed} findings accepted, of {missing} unmarked lesions (seed {seed})")

        def accept() -> None:
            home.mkdir(exist_ok=True)
            (home / "ids.txt").write_text("\n".join(accepted) + "\n", encoding="utf-8")
            detections, lesions = self.work / name / "unmarked" / "detections.json", home / "harvest/lesions.parquet"
            data_step("harvest", self.csv, detections, images=self.images, out=lesions.parent)
            data_step("review", lesions, accept=home / "ids.txt")
            data_step("datalist", lesions, images=self.images, out=home / "datalist.json")

        self.stages.run(f"review, seed {seed}", accept)
        return home / "datalist.json"

    def write(self) -> None:
        """After every arm, so that a killed benchmark leaves what it has measured."""
        metrics = self.metrics
        lines = [
            f"Phantom hospital, judged by the full truth: {metrics['images']} test slices with {metrics['lesions']} "
            f"lesions. Trained on {len(self.items)} slices for {self.options['max_epochs']} epochs, one category, with "
            f"{len(self.seeds)} seed(s) from {self.arguments.seed} on; median and range. Sensitivity at false "
            "positives per image, IoU at least .5; mean: of .5 to 4. The last column is about the lesions of the "
            "training slices that have no mark; its false positives are findings that overlap no mark and hit no "
            "lesion.",
            f"Machine: {machine()}. Command: `python scripts/benchmark.py unmarked ...`, {today()}.",
        ]
        if self.notes:
            lines.insert(
                1,
                "The review stands for a reader who is always right: the truth accepts what hits an unmarked lesion, "
                "then harvest with the marks, review, datalist, and training anew: " + "; ".join(self.notes) + ".",
            )
        text = "\n\n".join(lines)
        title = "Phantom: lesions without a mark"
        write_section("unmarked", title, "\n".join([*self.lines, "", text]), self.arguments.results)


def unmarked(arguments: argparse.Namespace) -> None:
    """All remedies, then the loop from findings over a review to a second training."""
    bench = Bench(arguments)
    bench.prepare()
    for kind, title in REMEDIES.items():
        bench.arms(title, kind, dict.fromkeys(bench.seeds, bench.marks), {"unmarked": kind})
    bench.arms(f"{TOGETHER} (the default)", TOGETHER, dict.fromkeys(bench.seeds, bench.marks), FULL_OPTIONS)
    lists = {seed: bench.review(seed) for seed in bench.seeds}
    bench.arms("none, after a review of its findings", "reviewed", lists, {})
