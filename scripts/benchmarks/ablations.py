"""What each part of the recipe is worth, on the phantom: one thing changed at a time, and a few together.

The remedies for lesions without a mark are compared in unmarked.py.

Each arm is a stage of its own: kill it, start it again, it goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.results import machine, spread, today, write_section
from benchmarks.runs import evaluation, judged_twice
from stages import FULL_OPTIONS, PHANTOM_OPTIONS, PLAIN_OPTIONS, Stages, data_step

MOST_SLICES = 9
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("**the demo's recipe, without remedy, dense task and copy-paste**: what the others change", {}),
    "one slice": ("one slice instead of three", {"slices": 1}),
    "nine slices": ("nine slices", {"slices": MOST_SLICES}),
    "stem learns": ("the first convolution learns as well", {"learn_stem": True}),
    "one window": ("one HU window instead of two", {"windows_hu": [[-175, 275]]}),
    "no rotation": ("without rotation", {"augmentation#rotation": 0}),
    "dense task": ("with the dense task from the diameters", {"dense_weight": 1.0}),
    "copy-paste": ("with lesion copy-paste", {"copy_paste": 0.5}),
    "no average": ("the last weights instead of their moving average", {"ema_decay": 0.0}),
    "no scale": ("without scaling", {"augmentation#scale": [1.0, 1.0]}),
    "flip average": ("scores averaged with the mirrored slice's", {"flip_average": True}),
    "no gamma": ("without gamma", {"augmentation#gamma": 0}),
    "ignore": ("confident findings without a mark ignored", {"unmarked": "ignore"}),
    "complete and dense task": (
        "marks completed by a teacher, with the dense task",
        {"unmarked": "complete", "dense_weight": 1.0},
    ),
    "as shipped": (
        "**findings ignored, dense task, copy-paste: the default, and recipe `all` of the shipped weights**",
        FULL_OPTIONS,
    ),
    "no cosine": ("a constant learning rate instead of the cosine", {"final_rate_share": 1.0}),
    "no clipping": ("without clipping the gradient", {"clip_gradient": None}),
    "IoU matching": ("anchors matched by fixed IoU thresholds instead of ATSS", {"matching": "iou"}),
    "sharpness": ("with sharpness varied", {"augmentation#sharpness": 1.0}),
    "plain focal": ("plain focal loss instead of quality focal loss", {"quality_targets": False}),
    "complete IoU": ("complete IoU loss instead of GIoU", {"box_loss": "$torchvision.ops.complete_box_iou_loss"}),
    "early stopping": ("stopped after two looks (one in two epochs) without gain", {"val_interval": 2, "patience": 2}),
    "random weights": ("random weights, nothing frozen", {"pretrained": False}),
}
RATES = ("0.5", "1", "2", "4")


def ablations(arguments: argparse.Namespace) -> None:
    """Train and judge the arms for every seed; the table, of all that is finished, is written anew after each."""
    work = arguments.work.resolve()
    options = {**PHANTOM_OPTIONS, **({"max_epochs": arguments.epochs} if arguments.epochs else {})}
    stages = Stages(work, {"patients": arguments.patients, "seed": arguments.seed, "options": options})
    phantom, marks = work / "phantom", work / "datalist.json"
    images, truth = phantom / "Images_png", phantom / "truth" / "datalist.json"
    stages.run("phantom", data_step, "phantom", phantom, patients=arguments.patients, seed=arguments.seed)
    stages.run("lists", make_lists, work, phantom, marks)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {name: [] for name in CHANGES}
    judge = deeper(truth, images, work / "truth.json")
    for seed in seeds:
        for name, (_, change) in CHANGES.items():
            title = f"{name}, seed {seed}"
            if name not in arguments.arms and not stages.finished(evaluation(title, "tuning")):
                continue
            recipe = {**options, **PLAIN_OPTIONS, **change}
            pair = judged_twice(stages, work, title, train=marks, judge=judge, images=images, seed=seed, **recipe)
            found[name].append(pair)
            write(arguments, found, options)


def make_lists(work: Path, phantom: Path, marks: Path) -> None:
    """The bookmarks' datalist, with as many slices as any arm wants; one category."""
    harvest, images = work / "harvest", phantom / "Images_png"
    data_step("harvest", phantom / "DL_info.csv", images=images, out=harvest)
    data_step("datalist", harvest / "lesions.parquet", images=images, slices=MOST_SLICES, out=marks)


def deeper(truth: Path, images: Path, target: Path) -> Path:
    """The truth's datalist with as many slices an item as any arm wants."""
    from data_prep.archive.png import neighbours
    from data_prep.atomic import write_json

    content = json.loads(truth.read_text(encoding="utf-8"))
    for section in ("training", "tuning", "validation", "test"):
        for item in content.get(section, []):
            key = item["image"][len(item["image"]) // 2]
            item["image"] = neighbours(images, key, MOST_SLICES)
    write_json(target, content)
    return target


def write(
    arguments: argparse.Namespace,
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]],
    options: dict[str, Any],
) -> None:
    lines = [
        "| | test: .5 FP | 1 | 2 | 4 | mean | accuracy | tuning: mean |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (title, _) in CHANGES.items():
        if done := found[name]:
            test, tuning = [pair[0] for pair in done], [pair[1] for pair in done]
            cells = [spread([metrics["froc"][rate]["value"] for metrics in test], 3) for rate in RATES]
            cells.append(spread([metrics["average_sensitivity"]["value"] for metrics in test], 3))
            cells.append(spread([metrics["accuracy_at_iou"]["0.5"]["value"] for metrics in test], 3))
            cells.append(spread([metrics["average_sensitivity"]["value"] for metrics in tuning], 3))
            lines.append(f"| {title} | {' | '.join(cells)} |")
    first, one = found["recipe"][0]
    text = (
        f"Phantom hospital, judged by the full truth: {first['images']} test slices with {first['lesions']} lesions of "
        f"{first['patients']} patients, {one['images']} tuning slices with {one['lesions']} of {one['patients']}. One "
        f"category, {options['max_epochs']} epochs, at most {arguments.seeds} seed(s) from {arguments.seed} on; median "
        "and range. An arm changes what it names. With so few patients "
        f"a difference of a few hundredths says little. Machine: {machine()}. "
        f"Command: `python scripts/benchmark.py ablations ...`, {today()}."
    )
    write_section("ablations", "Phantom: the recipe, part by part", "\n".join([*lines, "", text]), arguments.results)
