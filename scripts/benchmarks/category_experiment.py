"""What categories buy: detectors trained on mined, random or no categories, judged alike, over seeds.

All arms train on the same slices and boxes for as many steps and differ in the labels alone. Each training is a stage
of its own: kill it, start it again, it goes on. Writes its section anew after every run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.category_report import Finished, section
from benchmarks.gains import Run
from benchmarks.results import write_section
from benchmarks.runs import evaluated, trained
from stages import PHANTOM_OPTIONS, PLAIN_OPTIONS, REAL_OPTIONS, Stages, command, data_step

from data_prep.atomic import write_json
from data_prep.lesion import Lesion, read_lesions, write_lesions
from data_prep.splits import unit_interval

REAL_EPOCHS = 8
"""Three arms and three seeds of 1,500 slices at 384 px then take about four hours on two cores."""
JUDGES_SEED = 1_000
SIZE_SALT = "lesion-bookmarks/learning-curve/1"


@dataclass(frozen=True)
class Arm:
    """What the labels of an arm are.

    Attributes:
        title: in the tables.
        categories: the folder below ``categories/`` that they come from.
        number: of categories.
        single_class: they are ignored.
        shuffled: dealt anew over the lesions.
    """

    title: str
    categories: str
    number: int
    single_class: bool = False
    shuffled: bool = False


ARMS = {
    "single": Arm("single class", "mined", 5, single_class=True),
    "mined": Arm("5 mined categories", "mined", 5),
    "random": Arm("5 random categories (control)", "mined", 5, shuffled=True),
    "mined8": Arm("8 mined categories", "mined8", 8),
    "first": Arm("5 categories of the loop's first round", "first", 5),
}
DEFAULT_ARMS = ("single", "mined", "random")


# --- lists: pure functions of the content of a datalist ------------------------------------------------------------


def shuffled_labels(content: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The datalist with its labels dealt anew over the lesions, within training and within tuning: equal sizes.

    Args:
        content: of a ``datalist.json``.
        seed: of the dealing.
    """
    generator = random.Random(seed)
    dealt = dict(content)
    for name in ("training", "tuning"):
        labels = [label for item in content[name] for label in item["label"]]
        generator.shuffle(labels)
        rest = iter(labels)
        dealt[name] = [{**item, "label": [next(rest) for _ in item["label"]]} for item in content[name]]
    return dealt


def part_of_patients(content: Mapping[str, Any], size: float) -> dict[str, Any]:
    """The datalist with the training slices of a share of its patients, drawn by hash: a smaller part is in a larger.

    Raises:
        SystemExit: no patient is left.
    """
    training = [item for item in content["training"] if unit_interval(str(item["patient_id"]), SIZE_SALT) < size]
    if not training:
        raise SystemExit(f"stopped: a share of {size:g} holds no training patient; give more --patients or --sizes")
    return {**content, "training": training}


def same_lesions(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lists differ in labels and names alone."""

    def marks(content: Mapping[str, Any]) -> list[Any]:
        return [(item["image"], item["box"]) for name in ("training", "tuning") for item in content[name]]

    return marks(one) == marks(other)


def truth_lesions(items: Sequence[Mapping[str, Any]], marked: Sequence[Lesion], split: str) -> list[Lesion]:
    """The lesions of the full truth as rows that ``categorize --model`` can label.

    The truth states no place in the body. Height is that of the mark on the same slice; across and along the body
    the place is linear in the column and the row within a series, so it is read off the series' marks.

    Args:
        items: of the truth's datalist.
        marked: harvested lesions of the same archive.
        split: of the items.
    """
    by_series: dict[str, list[Lesion]] = {}
    by_slice: dict[str, Lesion] = {}
    for lesion in marked:
        if lesion.image is not None and lesion.box_px is not None and lesion.norm_z is not None:
            by_series.setdefault(str(Path(lesion.image).parent), []).append(lesion)
            by_slice[lesion.image] = lesion
    found = []
    for item in items:
        image = str(item["image"][len(item["image"]) // 2])
        near, mark = by_series.get(str(Path(image).parent), []), by_slice.get(image)
        columns, rows = item["image_size"]
        for number, (x0, y0, x1, y1) in enumerate(item["box"]):
            lesion = Lesion(
                lesion_id=item["lesion_id"][number], bookmark_ids=(), source="truth", image=image,
                patient_id=item["patient_id"], slice_index=item["slice_index"], rows=rows, columns=columns,
                **dict(zip(("spacing_x_mm", "spacing_y_mm", "spacing_z_mm"), item["spacing_mm"], strict=True)),
                x0=x0, y0=y0, x1=x1, y1=y1, recist_px=tuple(item["recist_px"][number]),
                long_diameter_mm=item["long_diameter_mm"][number], short_diameter_mm=item["short_diameter_mm"][number],
                coarse_type=item["coarse_type"][number], split=split,
            )  # fmt: skip
            if mark is not None:
                centres = [((a.x0 + a.x1) / 2, (a.y0 + a.y1) / 2) for a in near]  # type: ignore[operator]
                norm_x = _along([c[0] for c in centres], [a.norm_x for a in near], (x0 + x1) / 2)
                norm_y = _along([c[1] for c in centres], [a.norm_y for a in near], (y0 + y1) / 2)
                lesion = replace(lesion, norm_x=norm_x, norm_y=norm_y, norm_z=mark.norm_z)
            found.append(lesion)
    return found


def _along(px: Sequence[float], norm: Sequence[float | None], at_px: float) -> float:
    """The line through the points, at a place, clipped to the body; of points too near for a slope the mean."""
    values = np.array(norm, dtype=np.float64)
    if np.ptp(px) < 5:
        return float(values.mean())
    slope, start = np.polyfit(px, values, 1)
    return float(np.clip(start + slope * at_px, 0, 1))


# --- the experiment ------------------------------------------------------------------------------------------------


class Experiment:
    """The data, its categories, and the runs on it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.real = arguments.what == "real"
        self.work: Path = arguments.work.resolve()
        self.options: dict[str, Any] = {**REAL_OPTIONS, "max_epochs": REAL_EPOCHS} if self.real else {**PHANTOM_OPTIONS}
        # As in the paper's comparison.
        self.options |= PLAIN_OPTIONS
        if arguments.epochs:
            self.options["max_epochs"] = arguments.epochs
        # Arms, seeds, sizes and minutes may grow between starts; what is here may not change.
        settings = {"options": self.options, "seed": arguments.seed, "rounds": arguments.rounds}
        if self.real:
            source, self.images = arguments.csv.resolve(), arguments.images.resolve()
            settings |= {"csv": str(source), "images": str(self.images)}
        else:
            source, self.images = self.work / "phantom" / "DL_info.csv", self.work / "phantom" / "Images_png"
            settings |= {"patients": arguments.patients, "judged_patients": arguments.judged_patients}
        self.source = source
        self.stages = Stages(self.work, settings)
        self.lesions = self.work / "harvest" / "lesions.parquet"
        # The phantom's judges are a hospital of their own: patients cost nothing there, and few of them show nothing.
        self.judges = self.work / "judges"
        self.judged_images = self.images if self.real else self.judges / "Images_png"
        self.section = "validation" if self.real else "test"
        self.finished: dict[tuple[float, str, int], Finished] = {}

    def run(self) -> None:
        """Everything, in an order in which a budget that ends early leaves whole comparisons."""
        self.prepare()
        # Runs of earlier starts too, whatever this one asks for: none that finished is ever left out.
        for record in (self.work / "runs").glob("*/run.json"):
            made = json.loads(record.read_text(encoding="utf-8"))
            self.finished[made["size"], made["arm"], made["seed"]] = self.load(record.parent)
        stopped = ""
        for size, seed, name in self.order():
            if (size, name, seed) in self.finished:
                continue
            if not self.affordable():
                stopped = f"Not every run was made: the budget of {self.arguments.minutes:g} minutes of training ended."
                print(f"{stopped} A larger --minutes goes on.", flush=True)
                break
            self.finished[size, name, seed] = self.load(self.train(size, name, seed))
            self.write()
        self.write(stopped)

    def order(self) -> Iterator[tuple[float, int, str]]:
        """Size, seed, arm; all patients first."""
        seeds = range(self.arguments.seed, self.arguments.seed + self.arguments.seeds)
        return ((size, seed, name) for size in self.arguments.sizes for seed in seeds for name in self.arguments.arms)

    def affordable(self) -> bool:
        """Whether another run as long as those before fits into the minutes; never decided by how good one was."""
        spent = [one.seconds for one in self.finished.values()]
        minutes = self.arguments.minutes
        return minutes is None or not spent or sum(spent) + float(np.mean(spent)) <= 60 * minutes

    # --- data ---

    def prepare(self) -> None:
        """The marks, the categories of each arm, and the list that judges."""
        if not self.real:
            phantom, patients = self.source.parent, self.arguments.patients
            self.stages.run("phantom", data_step, "phantom", phantom, patients=patients, seed=self.arguments.seed)
        self.stages.run("harvest", data_step, "harvest", self.source, images=self.images, out=self.lesions.parent)
        for name in dict.fromkeys(["mined", *(ARMS[name].categories for name in self.arguments.arms)]):
            self.stages.run(f"categories: {name}", self.mine, name)
            self.stages.run(f"datalist: {name}", self.datalist, self.lesions, name, name)
            if not same_lesions(self.content("mined"), self.content(name)):
                raise SystemExit(f"stopped: {self.file(name)} has other lesions than {self.file('mined')}")
        if not self.real:
            patients, seed = self.arguments.judged_patients, self.arguments.seed + JUDGES_SEED
            self.stages.run("judges", data_step, "phantom", self.judges, patients=patients, seed=seed)
            found = self.judges / "harvest"
            source, images = self.judges / "DL_info.csv", self.judged_images
            self.stages.run("judges: harvest", data_step, "harvest", source, images=images, out=found)
            self.stages.run("truth", self.judge_of_truth, found / "lesions.parquet")
        self.judge = self.file("mined" if self.real else "truth")

    def mine(self, name: str) -> None:
        """Find the categories; features that another arm has computed are taken over."""
        out, known = self.work / "categories" / name, self.work / "categories" / "mined" / "features"
        if known.is_dir():
            shutil.copytree(known, out / "features", dirs_exist_ok=True)
        number = next(arm.number for arm in ARMS.values() if arm.categories == name)
        rounds = 1 if name == "first" else self.arguments.rounds
        data_step(
            "categorize", self.lesions, images=self.images, out=out,
            categories=number, rounds=rounds, seed=self.arguments.seed,
        )  # fmt: skip

    def datalist(self, lesions: Path, categories: str, name: str, images: Path | None = None) -> None:
        found = self.work / "categories" / categories / "categories.parquet"
        data_step("datalist", lesions, categories=found, images=images or self.images, out=self.file(name))

    def judge_of_truth(self, marked: Path) -> None:
        """Every lesion of the judges' key slices, marked or not, with the mined category it would have."""
        truth = json.loads((self.judges / "truth" / "datalist.json").read_text(encoding="utf-8"))
        items = [item for name in ("training", "tuning", "validation", "test") for item in truth[name]]
        rows = truth_lesions(items, read_lesions(marked), self.section)
        lesions = self.work / "categories" / "truth" / "lesions.parquet"
        lesions.parent.mkdir(parents=True, exist_ok=True)
        write_lesions(rows, lesions)
        model = self.work / "categories" / "mined" / "categorizer.safetensors"
        data_step("categorize", lesions, images=self.judged_images, out=lesions.parent, model=model)
        self.datalist(lesions, "truth", "truth", self.judged_images)

    def file(self, name: str) -> Path:
        return self.work / "lists" / f"{name}.json"

    def content(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.file(name).read_text(encoding="utf-8"))
        return content

    # --- runs ---

    def train(self, size: float, name: str, seed: int) -> Path:
        """Train an arm, judge it, draw its replicates; the run's folder."""
        kind = ARMS[name]
        title = f"{name}, " + (f"{size:g} of the patients, " if size < 1 else "") + f"seed {seed}"
        whole = self.content(kind.categories)
        content = part_of_patients(whole, size) if size < 1 else whole
        train = self.file(kind.categories)
        if kind.shuffled or size < 1:
            train = self.file(title)
            made = shuffled_labels(content, seed) if kind.shuffled else content
            self.stages.run(f"{title}: list", write_json, train, made)
        # As many steps and looks at the tuning patients as with all patients.
        often = len(whole["training"]) / len(content["training"])
        schedule = {key: max(1, round(self.options[key] * often)) for key in ("max_epochs", "val_interval")}
        work, options = self.work / "runs", {**self.options, **schedule, "single_class": kind.single_class}
        trained(self.stages, work, title, train=train, images=self.images, seed=seed, **options)
        judged: dict[str, Any] = {"judge": self.judge, "images": self.judged_images, "section": self.section}
        evaluated(self.stages, work, title, seed=seed, **judged)
        home, program = self.work / "runs" / title, Path(__file__).with_name("replicates.py")
        words = (self.evaluation(home), self.judge, self.section, home / "replicates.npz")
        self.stages.run(f"{title}: replicates", command, program, *words)
        facts = {"size": size, "arm": name, "seed": seed, "slices": len(content["training"])}
        write_json(home / "run.json", facts)
        return home

    def evaluation(self, home: Path) -> Path:
        """Where a run's figures are."""
        return home / "evaluation" / self.section

    def load(self, home: Path) -> Finished:
        """A run that finished."""
        import torch

        metrics = json.loads((self.evaluation(home) / "metrics.json").read_text(encoding="utf-8"))
        slices = json.loads((home / "run.json").read_text(encoding="utf-8"))["slices"]
        state = torch.load(home / "training_state.pt", map_location="cpu", weights_only=True)
        return Finished(metrics, Run.load(home / "replicates.npz"), slices, state["iteration"], state["seconds"])

    def write(self, stopped: str = "") -> None:
        """The section of docs/results.md, with every run that finished."""
        if not self.finished:
            return
        there = {name for _, name, _ in self.finished}
        titles = {name: kind.title for name, kind in ARMS.items() if name in there}
        mining = json.loads((self.work / "categories" / "mined" / "summary.json").read_text(encoding="utf-8"))
        judge = self.content(self.judge.stem)
        text = section(self.finished, titles, judge["categories"], mining, self.arguments, self.options, stopped)
        what = "Real slices" if self.real else "Phantom"
        write_section(
            f"experiment-categories-{self.arguments.what}", f"{what}: what categories buy", text, self.arguments.results
        )
