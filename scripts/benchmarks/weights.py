"""The weights that the bundle ships: recipes tried on the tuning patients, the chosen one trained and judged."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.deeplesion import copy_rows
from benchmarks.results import machine, today, with_interval, write_section
from benchmarks.runs import HEAD, NOTES, arm, common, evaluated, minutes, row
from benchmarks.training_runs import learning_curve, pace
from stages import BUNDLE, FULL_OPTIONS, PLAIN_OPTIONS, Stages, bundle, command, data_step

from data_prep.atomic import atomic_path

LEFT_OUT = ("000062",)
"""Patients kept out of it, so that the README can show the weights on a series of theirs."""

COMMON: dict[str, Any] = {
    # The release holds HU 0 to 255 and key slices alone: one slice, and three looks at this range as its channels.
    "slices": 1, "windows_hu": [[0, 255], [0, 130], [60, 190]],
    "size": 448, "ema_decay": 0.998, "val_interval": 2, "flip_average": True,
    **PLAIN_OPTIONS,
}  # fmt: skip
SCALES = (0.857, 1.286)
"""Further looks, at 384 and 576 px."""
TRIAL_EPOCHS, SHIPPED_EPOCHS, SHIPPED_CYCLES = 5, 10, 2


@dataclass(frozen=True)
class Recipe:
    """What a recipe is, in words, and what it sets beyond :data:`COMMON`."""

    title: str
    options: Mapping[str, Any]


RECIPES = {
    "plain": Recipe("plain", {}),
    "paste": Recipe("lesion copy-paste", {"copy_paste": 0.5}),
    "dense": Recipe("dense task from the diameters", {"dense_weight": 1.0}),
    "ignore": Recipe("confident findings without a mark ignored", {"unmarked": "ignore"}),
    "complete": Recipe("marks completed by a teacher", {"unmarked": "complete"}),
    "all": Recipe("copy-paste, dense task, findings ignored", FULL_OPTIONS),
    "sharpness": Recipe(
        "copy-paste, dense task, findings ignored, sharpness varied",
        {**FULL_OPTIONS, "augmentation#sharpness": 1.0},
    ),
}
SHIPPED = ["all"]


class Data:
    """Marks -> lesions -> categories -> datalist, without the patients left out."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work.resolve()
        self.images: Path = arguments.images.resolve()
        self.source: Path = arguments.csv.resolve()
        self.seed: int = arguments.seed
        self.stages = Stages(self.work, {"csv": str(self.source), "images": str(self.images)})
        self.marks, self.datalist = self.work / "DL_info.csv", self.work / "datalist.json"
        self.judged: dict[str, Any] = {"judge": self.datalist, "images": self.images, "seed": self.seed}

    def prepare(self) -> None:
        """Once; what was done before is kept."""
        harvest, categories, images = self.work / "harvest", self.work / "categories", self.images
        lesions, found = harvest / "lesions.parquet", categories / "categories.parquet"
        # A file's name begins with the patient.
        self.stages.run("marks", copy_rows, self.source, self.marks, lambda name: name[:6] not in LEFT_OUT)
        self.stages.run("harvest", data_step, "harvest", self.marks, images=images, out=harvest)
        # One round on ImageNet's features, as the shipped weights were begun with.
        self.stages.run(
            "categorize", data_step, "categorize", lesions, images=images, out=categories, pretrain=0, rounds=1
        )
        self.stages.run(
            "datalist", data_step, "datalist", lesions, categories=found, images=images, slices=COMMON["slices"],
            out=self.datalist,
        )  # fmt: skip

    def train(self, recipe: str, name: str, epochs: int, start: Path | None = None) -> dict[str, Any]:
        """Train, from ImageNet's weights or those of a ``model.pt``; the figures of the tuning patients."""
        options = {**COMMON, **RECIPES[recipe].options, "max_epochs": epochs}
        configs: tuple[str, ...] = ("train",)
        if start is not None:
            configs, options["start_from"] = ("train", "finetune"), start
            for key in ("slices", "windows_hu", "size", "flip_average"):
                del options[key]  # finetune.yaml takes them from the weights
            options["scale_average"] = []  # the epoch is chosen without, which is faster
        return arm(
            self.stages, self.work, name, train=self.datalist, configs=configs, section="tuning", **self.judged,
            **options,
        )  # fmt: skip

    def weights(self, name: str) -> Path:
        """Where a training of this name leaves its best weights."""
        return self.work / name / "model.pt"

    def look(self, name: str, members: Sequence[Path]) -> dict[str, Any]:
        """The mean of the members' weights, looking in :data:`SCALES`; the figures of the tuning patients."""
        home = self.work / name
        self.stages.run(f"{name}: weights", self.average, home / "model.pt", members)
        shared = common(self.work, name, self.images, self.seed)
        options = {**shared, "datalist": self.datalist, "scale_average": list(SCALES)}
        self.stages.run(f"{name}: threshold", bundle, "train", "evaluate", "set_threshold", **options)
        found: dict[str, Any] = json.loads((home / "evaluation" / "tuning" / "metrics.json").read_text("utf-8"))
        return found

    def average(self, target: Path, members: Sequence[Path]) -> None:
        target.unlink(missing_ok=True)
        if len(members) == 1:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(members[0], target)
        else:
            command("-m", "scripts.average_weights", target, *members, cwd=BUNDLE)

    def judge(self, name: str, section: str) -> dict[str, Any]:
        return evaluated(self.stages, self.work, name, section=section, **self.judged)

    def categories(self) -> list[str]:
        names: list[str] = json.loads(self.datalist.read_text(encoding="utf-8"))["categories"]
        return names

    def counts(self) -> dict[str, int]:
        content = json.loads(self.datalist.read_text(encoding="utf-8"))
        return {name: len(items) for name, items in content.items() if isinstance(items, list)}


# --- recipes side by side ------------------------------------------------------------------------------------------


def try_out(arguments: argparse.Namespace) -> None:
    """Train every recipe for as many epochs; a table of the tuning patients' figures."""
    data = Data(arguments)
    data.prepare()
    epochs = arguments.epochs or TRIAL_EPOCHS
    lines = [HEAD]
    for recipe in arguments.recipes:
        name = f"try {recipe}, {epochs} epochs, seed {arguments.seed}"
        metrics = data.train(recipe, name, epochs)
        lines.append(row(f"{RECIPES[recipe].title}, {minutes(data.work / name)}", metrics))
        text = (
            f"Official DeepLesion train slices, judged on the tuning patients: {metrics['images']} slices, "
            f"{metrics['lesions']} lesions, {metrics['patients']} patients; trained on the others' "
            f"{data.counts()['training']} slices for {epochs} epochs, the best of them by the same tuning patients. "
            f"{what_is_common()} Seed {arguments.seed}. Machine: {machine()}. "
            f"Command: `python scripts/train_weights.py try ...`, {today()}.\n\n{NOTES}"
        )
        title = "Weights: recipes by the tuning patients"
        write_section("weights-recipes", title, "\n".join([*lines, "", text]), arguments.results)


def what_is_common() -> str:
    """The input, in words."""
    windows = ", ".join(f"{low} to {high}" for low, high in COMMON["windows_hu"])
    return (
        f"Input: one slice, {COMMON['size']} px, HU windows {windows}; scores averaged over the slice and its mirror "
        "image. 5 mined categories."
    )


# --- the weights ---------------------------------------------------------------------------------------------------


def ship(arguments: argparse.Namespace) -> None:
    """Train the chosen recipes, open the validation patients for the best weights, write ``models/`` and the card."""
    data = Data(arguments)
    data.prepare()
    epochs = arguments.epochs or SHIPPED_EPOCHS
    start = arguments.start.resolve() if arguments.start else None
    began = f", on from {digest_of(start)}" if start else ""
    runs: dict[str, list[str]] = {}
    tuning: dict[str, dict[str, Any]] = {}
    for recipe in arguments.recipes:
        runs[recipe] = []
        for cycle in range(1, arguments.cycles + 1):
            name = f"ship {recipe}, {epochs} epochs, seed {arguments.seed}{began}"
            name += "" if cycle == 1 else f", cycle {cycle}"
            before = data.weights(runs[recipe][-1]) if runs[recipe] else start
            tuning[f"`{recipe}`, cycle {cycle}"] = data.train(recipe, name, epochs, start=before)
            runs[recipe].append(name)
    began_with = [start] if start else []
    members = {recipe: [*began_with, *map(data.weights, names)] for recipe, names in runs.items()}
    ways = candidates(runs, members)
    looked = {way: data.look(name, some) for way, (name, some) in ways.items()}
    tuning |= {f"{way}, slices in three sizes": metrics for way, metrics in looked.items()}
    shipped = max(looked, key=lambda way: looked[way]["average_sensitivity"]["value"])
    best = ways[shipped][0]
    validation = data.judge(best, "validation")
    home = data.work / best
    # At every start: another recipe's may have been put there since.
    digest = install(home / "model.pt", BUNDLE / "models")
    figures = BUNDLE / "docs" / "weights"
    figures.mkdir(exist_ok=True)
    opened = opening(figures / "openings.csv", digest, validation)
    report = home / "evaluation" / "validation"
    for picture in ("froc.png", "overlays.png"):
        shutil.copyfile(report / picture, figures / picture)
    # The curve of the weights that this began with, if any, stays.
    learning_curve(data.work / "mlruns.db", runs, figures / f"learning_curve{'_on' if start else ''}.png")
    card(data, arguments, runs, epochs, digest, tuning, shipped, validation, opened)


def candidates(
    runs: Mapping[str, Sequence[str]], members: Mapping[str, Sequence[Path]]
) -> dict[str, tuple[str, list[Path]]]:
    """What may be shipped: in words -> name of its folder, and the weights it is the mean of.

    Args:
        runs: recipe -> names of its trainings, cycle by cycle.
        members: recipe -> their weights, after those that it began with, if any.
    """
    found = {}
    for recipe, names in runs.items():
        weights = list(members[recipe])
        found[f"`{recipe}`, last cycle"] = (f"{names[-1]}, last cycle, in three sizes", weights[-1:])
        if len(weights) > 1:
            way = "mean of the weights of the last two"
            found[f"`{recipe}`, {way}"] = (f"{names[-1]}, {way}, in three sizes", weights[-2:])
    if len(runs) > 1:
        last = next(reversed(runs.values()))[-1]
        name = f"{last}, mean with {', '.join(list(runs)[:-1])}"
        of_recipes = [weights[-1] for weights in members.values()]
        found["mean of the recipes' last weights"] = (f"{name}, in three sizes", of_recipes)
    return found


OTHER_SIZES = " and ".join(str(round(COMMON["size"] * scale / 32) * 32) for scale in SCALES)
HOW_IT_LOOKS = (
    f"Each slice is also looked at in {OTHER_SIZES} px, "
    "and the scores of what overlaps are averaged: chosen by the tuning patients, with earlier weights, among the "
    "subsets of 384, 448, 512 and 576 px."
)


def digest_of(weights: Path) -> str:
    """The first digits of a file's SHA-256."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def install(weights: Path, models: Path) -> str:
    """Copy the weights into the bundle, with their hash beside them, readable by all; that SHA-256."""
    models.mkdir(exist_ok=True)
    target = models / "model.pt"
    with atomic_path(target) as temporary:
        shutil.copyfile(weights, temporary)
    target.chmod(0o644)
    command("-c", f"from scripts.checkpoint import state_sum; state_sum({str(target)!r})", cwd=BUNDLE)
    sums = models / "SHA256SUMS"
    sums.chmod(0o644)
    stated = dict(line.split()[::-1] for line in sums.read_text(encoding="utf-8").splitlines())
    return stated[target.name]


def opening(record: Path, digest: str, metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every time the validation patients were opened for weights of this script; this time is added, once a file.

    Args:
        record: CSV of the times.
        digest: SHA-256 of the weights.
        metrics: of the validation patients.
    """
    known = list(csv.DictReader(record.open(newline="", encoding="utf-8"))) if record.exists() else []
    digest = digest[:12]
    if all(one["weights"] != digest for one in known):
        known.append(
            {
                "date": today(), "weights": digest, "mean of .5 to 4": f"{metrics['average_sensitivity']['value']:.3f}",
                "4 FP": f"{metrics['froc']['4']['value']:.3f}",
                "accuracy": f"{metrics['accuracy_at_iou']['0.5']['value']:.3f}",
            }
        )  # fmt: skip
        with atomic_path(record) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, fieldnames=list(known[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(known)
    return known


GROUPINGS = {
    "by_root_area_px": "root of the box's area", "by_size_px": "long side of the box",
    "by_size_mm": "long diameter", "by_type": "official type",
}  # fmt: skip


def card(
    data: Data, arguments: argparse.Namespace, runs: Mapping[str, Sequence[str]], epochs: int, digest: str,
    tuning: Mapping[str, Mapping[str, Any]], shipped: str, validation: Mapping[str, Any],
    opened: list[dict[str, str]],
) -> None:  # fmt: skip
    """Write the measured part of the model card."""
    counts = data.counts()
    model = BUNDLE / "models" / "model.pt"
    began = f"(from the weights `{digest_of(arguments.start)}` on) " if arguments.start else ""
    names = [name for of_recipe in runs.values() for name in of_recipe]
    titles = "; ".join(f"`{recipe}`: {RECIPES[recipe].title}" for recipe in runs)
    lines = [
        HEAD,
        row("**official validation patients**", validation),
        *(row(f"tuning patients, who chose it: {name}", metrics) for name, metrics in tuning.items()),
        "",
        f"`models/model.pt`, {model.stat().st_size / 2**20:.1f} MiB, SHA-256 `{digest}`. Validation: "
        f"{validation['images']} slices, {validation['lesions']} lesions, {validation['patients']} patients. "
        f"Trained on {counts['training']} official train slices for {arguments.cycles} cycle(s) of the learning rate "
        f"{began}of {epochs} epochs each, {' and '.join(minutes(data.work / name) for name in names)}, "
        f"the epoch chosen on {counts['tuning']} slices of tuning patients. Recipe: {titles}. Shipped, by the tuning "
        f"patients' mean sensitivity: {shipped}. "
        f"{what_is_common()} They are {', '.join(data.categories())}. {HOW_IT_LOOKS} "
        f"{pace(data.work / 'mlruns.db', names[-1])} "
        f"Patient {', '.join(LEFT_OUT)} was left out of training. Seed {arguments.seed}. "
        f"Machine: {machine()}. Command: `python scripts/train_weights.py ship ...`, {today()}.",
        "",
        NOTES,
        "",
        "| validation lesions | number | at .5 FP | at 4 FP | mean of .5 to 4 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, title in GROUPINGS.items():
        for group, figures in validation[key].items():
            count = figures["average_sensitivity"]["n"]
            if count:
                chosen = (figures["froc"]["0.5"], figures["froc"]["4"], figures["average_sensitivity"])
                cells = [with_interval(one["value"], one["low"], one["high"]) for one in chosen]
                lines.append(f"| {title}: {group} | {count} | {' | '.join(cells)} |")
    lines += [
        "",
        "The validation patients were opened for weights of this recipe at these times:",
        "",
        "| date | weights | mean of .5 to 4 | at 4 FP | accuracy |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one['date']} | `{one['weights']}` | {one['mean of .5 to 4']} | {one['4 FP']} | {one['accuracy']} |"
        for one in opened
    ]
    write_section("weights", "Figures", "\n".join(lines), BUNDLE / "docs" / "model_card.md")
