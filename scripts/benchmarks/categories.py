"""What the categories are worth: official types of real lesions, planted kinds of the phantom's, and time."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks import category_arms as arms
from benchmarks.planted import planted
from benchmarks.results import machine, today, with_interval, write_section
from sklearn.metrics import normalized_mutual_info_score
from stages import data_step

from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.clustering import fit_clustering
from data_prep.categorize.features import extract
from data_prep.categorize.judge import judge
from data_prep.categorize.pretrain import PretrainSettings
from data_prep.categorize.retrieval import judge_retrieval, time_search
from data_prep.categorize.space import positions
from data_prep.category_names import NAMES_FILE, read_names
from data_prep.lesion import COARSE_TYPES, Lesion

LARGE, HUGE, DIMENSIONS = 33_000, 1_000_000, 99  # lesions of DeepLesion; feature rows; numbers of a lesion's point
SINGLE_SHOT = "ImageNet + position, single shot"
MINED = "loop + position"
DEFAULT = "SwAV, loop + position"
"""What `categorize` does, but that it mines as many categories as it is asked for."""
LOOPS = ("loop", MINED, DEFAULT)


def categories(arguments: argparse.Namespace) -> None:
    """Measure and write the sections ``categories`` and ``categories-phantom``."""
    work, images = arguments.work.resolve(), arguments.images.resolve()
    lesions = work / "harvest" / "lesions.parquet"
    if not lesions.is_file():
        data_step("harvest", arguments.csv.resolve(), images=images, out=lesions.parent)
    data = arms.load(lesions, images, work, None)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    cards = work / "categories"
    if not (cards / "categories.parquet").is_file():
        data_step("categorize", lesions, images=images, out=cards)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms.ARMS}
    for seed in seeds:
        for name, done in found.items():
            started = time.monotonic()
            done.append(arms.run_arm(name, data, seed, arguments.rounds))
            print(f"  seed {seed}, {name}: {time.monotonic() - started:.0f} s", flush=True)
    stable = {k: arms.stability_on_a_third_set(data, arms.points(data, data.features(None), arms.DEFAULT_POSITION), k)
              for k in (5, 8)}  # fmt: skip
    text = "\n\n".join(
        [
            _types_table(found),
            _interval(data, found),
            _choice(data, found),
            *(_rounds(name, found[name]) for name in (MINED, DEFAULT)),
            _gains(found),
            _probes(found),
            "Two categorisers (ImageNet + position, single shot), each fitted on a random half of the training "
            "patients, agree on the validation lesions with an adjusted Rand index of "
            + " and ".join(f"{mean_sd(values)} at k = {k}" for k, values in stable.items())
            + f" ({len(stable[5])} splits).",
            _composition(cards, data.lesions[data.fitted :]),
            _retrieval(cards, data),
            _method(data, arguments),
        ]
    )
    write_section("categories", "Categories of real lesions against their official types", text, arguments.results)
    write_section("categories-phantom", "Categories: planted kinds, and time",
                  planted(work, arguments.seed) + "\n\n" + _times(arguments.seed), arguments.results)  # fmt: skip


def mean_sd(values: Sequence[float]) -> str:
    """ "0.512 ± 0.013", the standard deviation being that of the values."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def _types_table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for half, title in (
        ("reporting", "reporting half: the result"), ("all", "all validation lesions: includes the choosing half")
    ):  # fmt: skip
        lines += [f"**{title}**", "", "| | k | NMI | purity | ARI |", "| --- | --- | --- | --- | --- |"]
        for name, done in found.items():
            for k in (*map(str, arms.KS), "auto"):
                scores = [one["scores"][k][half] for one in done]
                cells = [mean_sd([score[figure] for score in scores]) for figure in ("nmi", "purity", "ari")]
                shown = f"auto: {done[0]['auto']}" if k == "auto" else k
                lines.append(f"| {name} | {shown} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).strip()


def _half(lesions: Sequence[Lesion], half: str) -> tuple[list[int], list[int], list[str]]:
    """Which of the judged lesions are in a half, their types and their patients."""
    rows = [i for i, lesion in enumerate(lesions) if arms.in_half(lesion.patient_id or "", half)]
    return rows, [lesions[i].coarse_type or 0 for i in rows], [lesions[i].patient_id or "" for i in rows]


def _choice(data: arms.Data, found: dict[str, list[dict[str, Any]]]) -> str:
    """What the defaults were chosen by."""
    rows, types, whose = _half(data.lesions[data.fitted :], "choosing")
    lines = [
        f"NMI on the choosing half ({len(rows)} lesions of {len(set(whose))} patients), by which the defaults were "
        "chosen:", "", f"| | {' | '.join(f'k = {k}' for k in arms.KS)} |", "| --- |" + " --- |" * len(arms.KS),
    ]  # fmt: skip
    for name, done in found.items():
        labels = [[[one["labels"][str(k)][i] for i in rows] for one in done] for k in arms.KS]
        cells = [mean_sd([normalized_mutual_info_score(types, of_seed) for of_seed in of_k]) for of_k in labels]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(data: arms.Data, found: dict[str, list[dict[str, Any]]]) -> str:
    """The spread over patients, which a spread over seeds does not show."""
    rows, types, whose = _half(data.lesions[data.fitted :], "reporting")
    parts = []
    for name in (SINGLE_SHOT, DEFAULT):
        labels = found[name][0]["labels"]["8"]
        nmi = judge(types, [labels[i] for i in rows], whose).nmi
        parts.append(f"{name}: {with_interval(*astuple(nmi))}")
    return (
        f"The ± are standard deviations over seeds. The reporting half has {len(rows)} lesions of {len(set(whose))} "
        f"patients, so who is in it matters more: 95 % bootstrap intervals by patient of the first seed's NMI at k = 8 "
        f"are {'; '.join(parts)}."
    )


def _rounds(name: str, done: list[dict[str, Any]]) -> str:
    lines = [
        f"Round by round ({name}; reporting half):", "",
        "| seed | round | agreement with the round before | NMI at k = 5 | k = 8 | purity at k = 8 | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for seed, one in enumerate(done):
        said = one["loop"]
        for number, scores in enumerate(one["rounds"], start=1):
            agreement = said["agreement"][number - 1]
            figures = [scores["scores"]["5"], scores["scores"]["8"]]
            note = "taken" if number == said["taken"] else ""
            note += f" (stopped: {said['stopped']})" if number == len(one["rounds"]) else ""
            lines.append(
                f"| {seed} | {number} | {'' if agreement is None else f'{agreement:.3f}'} | "
                f"{figures[0]['reporting']['nmi']:.3f} | {figures[1]['reporting']['nmi']:.3f} | "
                f"{figures[1]['reporting']['purity']:.3f} | {note.strip()} |"
            )
    return "\n".join(lines)


def _gains(found: dict[str, list[dict[str, Any]]]) -> str:
    """What the loop adds to its own first round: means over the seeds beside their standard deviations."""
    lines = [
        "The round that was taken above the first round of the same run, NMI over the seeds (reporting half; aim: more "
        "than two standard deviations):", "",
        f"| | {' | '.join(f'k = {k}' for k in arms.KS)} |", "| --- |" + " --- |" * len(arms.KS),
    ]  # fmt: skip
    for name in LOOPS:
        cells = []
        for k in map(str, arms.KS):
            rounds = [one["rounds"] for one in found[name]]
            taken = [one["loop"]["taken"] - 1 for one in found[name]]
            nmi = [[r["scores"][k]["reporting"]["nmi"] for r in of_seed] for of_seed in rounds]
            cells.append(mean_sd([values[last] - values[0] for values, last in zip(nmi, taken, strict=True)]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _probes(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "How good the features are, whatever the clustering (all validation lesions for the two classifiers of the 8 "
        "types, cross-validated by patient; the reporting half asks for precision at 10):", "",
        "| | linear probe | 10 nearest neighbours | precision at 10 |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, done in found.items():
        cells = [mean_sd([one["probe"][kind] for one in done]) for kind in ("linear", "knn")]
        cells.append(mean_sd([one["precision_at_10"]["precision"]["value"] for one in done]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    chance = next(iter(found.values()))[0]["precision_at_10"]["chance"]
    return "\n".join([*lines, "", f"Hits drawn at random have a precision of {chance:.3f}."])


def _composition(cards: Path, judged: Sequence[Lesion]) -> str:
    """Of which types the categories are that ``categorize`` makes by default."""
    labels = pd.read_parquet(cards / "categories.parquet").set_index("lesion_id")["category"]
    names = read_names(cards / NAMES_FILE).names
    types = [COARSE_TYPES[lesion.coarse_type or 0] for lesion in judged]
    table = pd.crosstab([names[labels[lesion.lesion_id]] for lesion in judged], types)
    lines = ["The categories that `categorize` makes by default, by the official types of all validation lesions:", "",
             f"| category (its proposed name) | {' | '.join(table.columns)} | commonest |",
             "| --- |" + " --- |" * (len(table.columns) + 1)]  # fmt: skip
    for name, row in table.loc[[name for name in names.values() if name in table.index]].iterrows():
        lines.append(f"| {name} | {' | '.join(map(str, row))} | {row.max() / row.sum():.0%} {row.idxmax()} |")
    rows, kinds, whose = _half(judged, "reporting")
    scores = judge(kinds, [int(labels[judged[i].lesion_id]) for i in rows], whose)
    nmi, purity = (with_interval(*astuple(score)) for score in (scores.nmi, scores.purity))
    lines += ["", f"On the reporting half: NMI {nmi}, purity {purity}."]
    return "\n".join(lines)


def _retrieval(cards: Path, data: arms.Data) -> str:
    """How well ``search --like`` does, by type."""
    made = Categorizer.load(cards / "categorizer.safetensors")
    judged = data.lesions[data.fitted :]
    extraction = extract(judged, data.images, FeatureExtractor("cpu", made.tail), made.crops, cards / "features")
    kept = [judged[i] for i in extraction.kept]
    X = made.space.transform(extraction.features, positions(kept))
    found = {half: judge_retrieval(kept, X, half) for half in arms.HALVES}
    lines = ["`search --like` with this categoriser: the part of a lesion's ten nearest lesions of other patients that "
             "have its type (precision at 10), and what hits drawn at random have:", "",
             "| type | reporting half | all: includes the choosing half | at random |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for name in ("every type", *found["all"].by_type):
        shown = [one.overall if name == "every type" else one.by_type.get(name) for one in found.values()]
        cells = ["" if one is None else with_interval(*astuple(one.precision)) for one in shown]
        chance = "" if shown[-1] is None else f"{shown[-1].chance:.3f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {chance} |")
    return "\n".join(lines)


def _method(data: arms.Data, arguments: argparse.Namespace) -> str:
    types = Counter(lesion.coarse_type for lesion in data.lesions[data.fitted :])
    judged = sum(types.values())
    return (
        f"Fitted on {data.fitted:,} official training lesions of {len(set(data.patients))} patients; judged on "
        f"{judged} official validation lesions, of which the commonest type makes {max(types.values()) / judged:.0%}. "
        "No type takes part in the fit. Settings were chosen on the other half of the validation patients. Spectral "
        f"clustering throughout. The loop learns {arms.LEARNT} categories and ten times as many finer clusters in at "
        f"most {arguments.rounds} rounds and takes a round by its agreement; its features are then clustered into "
        "each k. 'auto' is the first seed's choice. Rival: SwAV from ImageNet's weights, "
        f"{PretrainSettings().epochs} epochs on the training lesions' crops, as `categorize --pretrain` does it; "
        f"{DEFAULT}: each round of the loop starts from the rival's weights instead of ImageNet's. The seeds "
        "decide clustering and training; the moved views are the same for all. HU are "
        f"clipped to 0..255 in these files. Seeds {arguments.seed} to {arguments.seed + arguments.seeds - 1}. "
        f"Machine: {machine()}. Command: `python scripts/benchmark.py categories ...`, {today()}."
    )


# --- time ----------------------------------------------------------------------------------------------------------


def _times(seed: int) -> str:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((12, DIMENSIONS))
    seconds = {}
    for rows, method in ((LARGE, "spectral"), (LARGE, "k-means"), (HUGE, "k-means")):
        X = centres[generator.integers(0, len(centres), rows)] + generator.standard_normal((rows, DIMENSIONS))
        started = time.monotonic()
        labels = fit_clustering(X, 8, method=method, seed=seed)[1]
        seconds[rows, method] = time.monotonic() - started
        if len(np.unique(labels)) != 8:
            raise SystemExit(f"stopped: {method} lost a category of {rows} points")
    search = time_search(HUGE, DIMENSIONS, seed)
    return (
        f"Clustering synthetic points of {DIMENSIONS} numbers into 8 categories: {LARGE:,} in "
        f"{seconds[LARGE, 'spectral']:.0f} s (spectral; aim 60 s) and {seconds[LARGE, 'k-means']:.0f} s (k-means); "
        f"{HUGE:,} in {seconds[HUGE, 'k-means']:.0f} s (mini-batch k-means). One exact search among {search.rows:,} "
        f"such points takes {search.seconds * 1000:.0f} ms (the slowest {search.slowest * 1000:.0f} ms) and "
        f"{search.megabytes:.0f} MB. "
        f"Machine: {machine()}. Command: `python scripts/benchmark.py categories ...`, {today()}."
    )
