"""The detector beside what it must beat: on the phantom's full truth, and on the official validation slices.

Each arm is a stage of its own: kill it, start it again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import machine, today, write_section
from benchmarks.runs import HEAD, NOTES, arm, evaluated, minutes, row
from stages import BUNDLE, PHANTOM_OPTIONS, REAL_OPTIONS, Stages, bundle, command


def shuffled_boxes(datalist: Path, target: Path, seed: int) -> None:
    """The datalist with its boxes dealt anew over the training and tuning slices: everything right but the places."""
    content = json.loads(datalist.read_text(encoding="utf-8"))
    generator = random.Random(seed)
    for section in ("training", "tuning"):
        items = content[section]
        boxes = [box for item in items for box in item["box"]]
        generator.shuffle(boxes)
        for item in items:
            item["box"] = [boxes.pop() for _ in item["box"]]
    target.write_text(json.dumps(content), encoding="utf-8")


def across_slices(weights: Path, output: Path, datalist: Path, images: Path) -> None:
    """A copy of the weights with the second stage, where it pays on the tuning patients."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, output / "model.pt")
    bundle("train", "evaluate", "fit_across_slices", datalist=datalist, dataset_dir=images, output_dir=output)


def facts(metrics: Mapping[str, Any], arguments: argparse.Namespace, data: str, how: str) -> str:
    """What stands beside every table."""
    return (
        f"{data}: {metrics['images']} slices, {metrics['lesions']} lesions, {metrics['patients']} patients. "
        f"{how} Seed {arguments.seed}. Machine: {machine()}. "
        f"Command: `python scripts/benchmark.py {arguments.what} ...`, {today()}.\n\n{NOTES}"
    )


def phantom(arguments: argparse.Namespace) -> None:
    """The demo's detector and what it must beat."""
    work = arguments.work.resolve()
    command("scripts/demo.py", work / "demo", "--seed", arguments.seed)
    stages = Stages(work / "baselines", {"seed": arguments.seed})
    home, demo = work / "baselines", work / "demo"
    images, truth, marks = (
        demo / "phantom" / "Images_png",
        demo / "phantom" / "truth" / "datalist.json",
        demo / "datalist.json",
    )
    # The phantom and its recipe were made while looking at the validation patients, so the test patients judge here.
    shared: dict[str, Any] = {"judge": truth, "images": images, "seed": arguments.seed, "section": "test"}
    shuffled = home / "shuffled.json"
    stages.run("shuffle", shuffled_boxes, marks, shuffled, arguments.seed)
    training = demo / "training"
    trained = evaluated(stages, demo, "demo", output=training, **shared)
    untrained = arm(stages, home, "untrained", train=marks, configs=("train", "untrained"), **shared, **PHANTOM_OPTIONS)
    wrong = arm(stages, home, "shuffled boxes", train=shuffled, **shared, **PHANTOM_OPTIONS)
    second = "across slices"
    stages.run(f"{second}: fit", across_slices, training / "model.pt", home / second, truth, images)
    looked_twice = evaluated(stages, home, second, **shared)
    blob = home / "blob filter"
    stages.run("blob filter", command, "-m", "scripts.blob_filter", marks, truth, images, blob, "test", cwd=BUNDLE)
    lines = [
        HEAD,
        row("**demo: trained on the bookmarks**", trained),
        row("the same, with a second look across slices (fitted on the tuning patients' full truth)", looked_twice),
        row("untrained (ImageNet body, random heads)", untrained),
        row("trained on shuffled boxes", wrong),
        row("tuned Laplacian-of-Gaussian filter", json.loads((blob / "metrics.json").read_text(encoding="utf-8"))),
    ]
    data = "Phantom hospital, test patients, judged by the full truth (marked and unmarked lesions)"
    text = facts(trained, arguments, data, "About half of the lesions on a training slice carry no bookmark.")
    title = "Phantom: the demo's detector and what it must beat"
    write_section("phantom", title, "\n".join([*lines, "", text]), arguments.results)


def real(arguments: argparse.Namespace) -> None:
    """The demo on real slices, and the same recipe without ImageNet weights."""
    work = arguments.work.resolve()
    csv, images = arguments.csv.resolve(), arguments.images.resolve()
    demo, home = work / "demo", work / "baselines"
    command("scripts/demo.py", demo, "--csv", csv, "--images", images, "--seed", arguments.seed)
    stages = Stages(home, {"seed": arguments.seed, "csv": str(csv), "images": str(images)})
    marks = demo / "datalist.json"
    options = {**REAL_OPTIONS, "max_minutes": 60}
    shared: dict[str, Any] = {"train": marks, "judge": marks, "images": images, "seed": arguments.seed}
    trained = json.loads((demo / "training/evaluation/validation/metrics.json").read_text(encoding="utf-8"))
    counts = {k: len(v) for k, v in json.loads(marks.read_text(encoding="utf-8")).items() if isinstance(v, list)}
    epochs = REAL_OPTIONS["max_epochs"]
    how = (
        f"Trained on {counts['training']} official train slices for {epochs} epochs with the demo's 5 categories; the "
        f"epoch is chosen on {counts['tuning']} slices of tuning patients. HU are clipped to 0..255 in these files and "
        "there are no neighbouring slices, so the three input slices are one slice three times."
    )
    text = facts(trained, arguments, "Real DeepLesion slices, official validation split", how)
    lines = [HEAD, row(f"**demo: ImageNet weights, {minutes(demo / 'training')} of training**", trained)]

    def write(name: str, metrics: Mapping[str, Any]) -> None:
        # After every arm, so that a killed benchmark leaves what it has measured.
        lines.append(row(name, metrics))
        write_section("real", "Real slices: a CPU schedule", "\n".join([*lines, "", text]), arguments.results)

    untrained = arm(stages, home, "untrained", configs=("train", "untrained"), **shared, **options)
    write("untrained (ImageNet body, random heads)", untrained)
    random_weights = arm(stages, home, "random", **shared, **options, pretrained=False)
    write("same recipe, random weights, nothing frozen", random_weights)
