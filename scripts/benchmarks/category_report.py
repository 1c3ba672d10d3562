"""The section of docs/results.md on what categories buy: every run, gains with what could be detected, curves."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gains import Gain, Run, paired_gain
from benchmarks.results import machine, spread, today

ACCURACY, SENSITIVITY = "accuracy_at_iou/0.5", "average_sensitivity"
FIGURES = {ACCURACY: "accuracy at IoU .5", SENSITIVITY: "mean sensitivity"}
RATES = ("0.5", "1", "2", "4")
IOUS = tuple(f"{0.1 * i:.1f}" for i in range(1, 10))
PAPER = (
    "For comparison, the first DeepLesion paper (Yan et al., 2017), trained on the whole release: accuracy 59.45 % "
    "with a single class and 64.3 % with five mined categories, +3 to 8 % per category, better at every IoU threshold."
)


@dataclass(frozen=True, eq=False)
class Finished:
    """A run: ``metrics.json``, its figures in draws of patients, training slices, steps, and seconds of training."""

    metrics: Mapping[str, Any]
    run: Run
    slices: int
    steps: int
    seconds: float


Runs = Mapping[tuple[float, str, int], Finished]
"""By share of the training patients, arm and seed."""


def section(
    finished: Runs, titles: Mapping[str, str], categories: Sequence[str], mining: Mapping[str, Any],
    arguments: argparse.Namespace, options: Mapping[str, Any], stopped: str,
) -> str:  # fmt: skip
    """All tables and what stands beside them.

    Args:
        finished: every run that ended.
        titles: of the arms, by name, in order; ``single`` is what the others are compared with.
        categories: names of the mined categories, by label.
        mining: ``summary.json`` of their making.
        arguments: of the command.
        options: of the training.
        stopped: why there are no more runs, or nothing.
    """
    whole = {(name, seed): one for (size, name, seed), one in finished.items() if size == 1}
    pairs = {name: _pairs(whole, "single", name) for name in titles if name != "single"}
    parts = [_every_run(finished, titles)]
    if any(pairs.values()):
        versus = [(f"{titles[name]} − single class", runs) for name, runs in pairs.items() if runs]
        control = _pairs(whole, "random", "mined")
        if control:
            versus.append((f"{titles['mined']} − {titles['random']}", control))
        parts += [_gains(versus), _by_category(whole, pairs, titles, categories)]
    if whole:
        parts.append(_over_iou(whole, titles))
    if len({size for size, _, _ in finished}) > 1:
        parts.append(_learning_curve(finished, titles))
    parts += [PAPER, _method(finished, titles, mining, arguments, options)]
    return "\n\n".join([*parts, stopped] if stopped else parts)


def _pairs(runs: Mapping[tuple[str, int], Finished], first: str, second: str) -> list[tuple[Run, Run]]:
    """The seeds for which both arms are there."""
    seeds = sorted({seed for name, seed in runs if name == first} & {seed for name, seed in runs if name == second})
    return [(runs[first, seed].run, runs[second, seed].run) for seed in seeds]


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign; "-" where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"


def between(low: float, high: float) -> str:
    """An interval of differences."""
    return "-" if math.isnan(low) else f"{points(low)} to {points(high)}"


def percent(values: Sequence[float]) -> str:
    """Median and range of shares in percent; "-" where there is none."""
    return "-" if any(map(math.isnan, values)) else spread([100 * value for value in values], 1)


def _every_run(finished: Runs, titles: Mapping[str, str]) -> str:
    lines = [
        "Every run that finished, in %:", "",
        "| | share of the patients | seed | slices | steps | minutes | .5 FP | 1 | 2 | 4 | mean sensitivity | "
        "accuracy at IoU .5 |",
        "|" + " --- |" * 12,
    ]  # fmt: skip
    order = [*titles]
    for (size, name, seed), one in sorted(
        finished.items(), key=lambda run: (-run[0][0], order.index(run[0][1]), run[0][2])
    ):
        figures = [one.metrics["froc"][rate] for rate in RATES]
        figures += [one.metrics["average_sensitivity"], one.metrics["accuracy_at_iou"]["0.5"]]
        cells = [f"{100 * figure['value']:.1f}" for figure in figures]
        for index in (-2, -1):
            if figures[index]["low"] is not None:
                cells[index] += f" ({100 * figures[index]['low']:.1f} to {100 * figures[index]['high']:.1f})"
        facts = f"{size:g} | {seed} | {one.slices:,} | {one.steps:,} | {one.seconds / 60:.0f}"
        lines.append(f"| {titles[name]} | {facts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gains(versus: Sequence[tuple[str, Sequence[tuple[Run, Run]]]]) -> str:
    lines = [
        "Gains in percentage points, paired by seed:", "",
        "| | figure | by seed | mean | 95 % over patients | 95 % over seeds | smallest detectable |",
        "|" + " --- |" * 7,
    ]  # fmt: skip
    verdicts = []
    for title, runs in versus:
        for key, name in FIGURES.items():
            gain = paired_gain(runs, key)
            lines.append(
                f"| {title} | {name} | {', '.join(map(points, gain.by_seed))} | {points(gain.mean)} | "
                f"{between(gain.low, gain.high)} | {between(gain.seed_low, gain.seed_high)} | "
                f"{points(gain.detectable).lstrip('+')} |"
            )
            verdicts.append(f"{title}, {name}: {verdict(gain)}")
    return "\n".join([*lines, "", *(f"- {verdict}." for verdict in verdicts)])


def verdict(gain: Gain) -> str:
    """What the intervals allow to say, in words."""
    if math.isnan(gain.low):
        return "it rests on one patient or none, so nothing can be said"
    if gain.standard_error == 0:
        return "the same difference in every draw of patients"
    if gain.low <= 0 <= gain.high:
        return (
            f"no gain or loss shown; a true one below {100 * gain.detectable:.1f} points would mostly have been missed"
        )
    what = "a gain" if gain.mean > 0 else "a loss"
    if math.isnan(gain.seed_low) or gain.seed_low <= 0 <= gain.seed_high:
        return f"{what} on these trainings for other patients, too, but not beyond the spread of the seeds"
    return f"{what}, over patients and over seeds"


def _by_category(
    whole: Mapping[tuple[str, int], Finished], pairs: Mapping[str, Sequence[tuple[Run, Run]]],
    titles: Mapping[str, str], categories: Sequence[str],
) -> str:  # fmt: skip
    shown = [name for name, runs in pairs.items() if runs]
    lines = [
        "By the mined category of the judged lesions, whatever an arm was trained on: the single class in % (median "
        "and range over seeds), then mean gains in percentage points with their 95 % interval over patients:", "",
        "| category | lesions | figure | single class | " + " | ".join(titles[name] for name in shown) + " |",
        "|" + " --- |" * (4 + len(shown)),
    ]  # fmt: skip
    single = [one.run for (name, _), one in sorted(whole.items(), key=lambda item: item[0][1]) if name == "single"]
    for category in categories:
        for key, figure in FIGURES.items():
            path = f"by_category/{category}/{key}"
            gains = [paired_gain(pairs[name], path) for name in shown]
            cells = [percent([run.value(path) for run in single])]
            cells += [f"{points(gain.mean)} ({between(gain.low, gain.high)})" for gain in gains]
            lesions = single[0].count(f"by_category/{category}/{SENSITIVITY}")
            lines.append(f"| {category} | {lesions} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _over_iou(whole: Mapping[tuple[str, int], Finished], titles: Mapping[str, str]) -> str:
    lines = [
        "Accuracy over IoU thresholds in %, mean over seeds:", "",
        "| | " + " | ".join(iou.lstrip("0") for iou in IOUS) + " |",
        "|" + " --- |" * (1 + len(IOUS)),
    ]  # fmt: skip
    for name, title in titles.items():
        runs = [one.run for (arm, _), one in whole.items() if arm == name]
        if runs:
            means = [sum(run.value(f"accuracy_at_iou/{iou}") for run in runs) / len(runs) for iou in IOUS]
            lines.append(f"| {title} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def _learning_curve(finished: Runs, titles: Mapping[str, str]) -> str:
    lines = [
        "Learning curve: accuracy at IoU .5 and mean sensitivity in % (median and range over seeds), and the mean gain "
        "over the single class in points with its 95 % interval over patients; nearly as many steps at every size, "
        "categories always mined from all training patients:", "",
        "| share of the training patients | slices | | accuracy | gain | mean sensitivity | gain |",
        "|" + " --- |" * 7,
    ]  # fmt: skip
    for size in sorted({size for size, _, _ in finished}):
        at = {(name, seed): one for (share, name, seed), one in finished.items() if share == size}
        for name, title in titles.items():
            runs = [one for (arm, _), one in at.items() if arm == name]
            if not runs:
                continue
            cells = []
            pairs = _pairs(at, "single", name) if name != "single" else []
            for key in FIGURES:
                cells.append(percent([one.run.value(key) for one in runs]))
                gain = paired_gain(pairs, key) if pairs else None
                cells.append("" if gain is None else f"{points(gain.mean)} ({between(gain.low, gain.high)})")
            lines.append(f"| {size:g} | {runs[0].slices:,} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _method(
    finished: Runs, titles: Mapping[str, str], mining: Mapping[str, Any], arguments: argparse.Namespace,
    options: Mapping[str, Any],
) -> str:  # fmt: skip
    metrics = next(iter(finished.values())).metrics
    counted = f"{metrics['images']} slices, {metrics['lesions']} lesions, {metrics['patients']} patients"
    if arguments.what == "real":
        data = (
            f"Judged on the official validation split: {counted}, marked lesions. HU are clipped to 0..255 in these "
            "files and there are no neighbouring slices, so the three input slices are one slice three times."
        )
    else:
        data = (
            f"Phantom hospital of {arguments.patients} patients, judged by the full truth of all key slices of a "
            f"second one: {counted}."
        )
    replicates, seeds = len(next(iter(finished.values())).run.samples), sorted({seed for _, _, seed in finished})
    given = ("patients", "judged_patients", "epochs", "seeds", "seed", "rounds")
    asked = {name.replace("_", "-"): getattr(arguments, name, None) for name in given}
    words = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    words.append(f"--arms {','.join(titles)}")
    words.append(f"--sizes {','.join(f'{size:g}' for size in sorted({size for size, _, _ in finished}))}")
    return (
        f"{data} The arms train on the same slices and boxes, {options['max_epochs']} epochs of all of them, and "
        "differ in the labels alone; the epoch is chosen on tuning patients. Mined: found on training patients in "
        f"{mining['rounds']} rounds, of which round {mining['round_taken']} was taken, once for all seeds; judged "
        "lesions are labelled by the fitted categoriser. Random: the mined labels dealt anew over the lesions of "
        "training, and of tuning, anew for each seed, so categories are of the same sizes. Accuracy: the "
        "highest-scoring box of a slice hits a lesion. Mean sensitivity: at .5, 1, 2 and 4 false positives per image, "
        "IoU at least .5. Categories are ignored in both.\n\n"
        f"95 % over patients: percentile bootstrap of the mean gain, {replicates:,} draws of patients, the same for "
        "all runs (other patients, these trainings). 95 % over seeds: Student's t (other trainings, these patients). "
        "Smallest detectable: (z.975 + z.80) · SE = 2.80 · SE, the true gain that a two-sided test at 5 % would find "
        "with a power of 80 %; SE is the standard deviation of the mean gain over those draws. Several gains are "
        f"looked at, without correction. Seeds {', '.join(map(str, seeds))}. Machine: {machine()}. Command: "
        f"`python scripts/experiment_categories.py {arguments.what} ... {' '.join(words)}`, "
        f"{today()}."
    )
