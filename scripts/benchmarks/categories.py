"""What the categories are worth: official types of real lesions, planted kinds of the phantom's, and time."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks import category_arms as arms
from benchmarks.results import machine, today, write_section
from stages import data_step

from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.clustering import fit_clustering
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.features import extract
from data_prep.categorize.judge import judge, linear_classifier, planted_kinds
from data_prep.categorize.pipeline import select
from data_prep.categorize.pretrain import PretrainSettings
from data_prep.categorize.retrieval import time_search
from data_prep.categorize.space import BlockWeights, FeatureSpace, positions
from data_prep.category_names import NAMES_FILE, read_names
from data_prep.lesion import COARSE_TYPES, Lesion, read_lesions

PHANTOM_PATIENTS = 52  # the demo's
LARGE, HUGE, DIMENSIONS = 33_000, 1_000_000, 99  # lesions of DeepLesion; feature rows; numbers of a lesion's point
DEFAULT = "ImageNet + position, single shot"
MINED = "loop + position"
PRETRAINED_MINED = "SwAV, loop + position"
LOOPS = ("loop", MINED, PRETRAINED_MINED)


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
            *(_rounds(name, found[name]) for name in (MINED, PRETRAINED_MINED)),
            _gains(found),
            _probes(found),
            "Two categorisers (ImageNet + position, single shot), each fitted on a random half of the training "
            "patients, agree on the validation lesions with an adjusted Rand index of "
            + " and ".join(f"{mean_sd(values)} at k = {k}" for k, values in stable.items())
            + f" ({len(stable[5])} splits).",
            _composition(cards, data.lesions[data.fitted :]),
            _method(data, arguments),
        ]
    )
    write_section("categories", "Categories of real lesions against their official types", text, arguments.results)
    write_section("categories-phantom", "Categories: planted kinds, and time",
                  _phantom(work, arguments.seed) + "\n\n" + _times(arguments.seed), arguments.results)  # fmt: skip


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


def _interval(data: arms.Data, found: dict[str, list[dict[str, Any]]]) -> str:
    """The spread over patients, which a spread over seeds does not show."""
    lesions = data.lesions[data.fitted :]
    rows = [i for i, lesion in enumerate(lesions) if arms.in_half(lesion.patient_id or "", "reporting")]
    types = [lesions[i].coarse_type or 0 for i in rows]
    whose = [lesions[i].patient_id or "" for i in rows]
    parts = []
    for name in (DEFAULT, MINED):
        labels = found[name][0]["labels"]["8"]
        nmi = judge(types, [labels[i] for i in rows], whose).nmi
        parts.append(f"{name}: {nmi.value:.3f} ({nmi.low:.3f} to {nmi.high:.3f})")
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


def _composition(cards: Path, judge: Sequence[Lesion]) -> str:
    """Of which types the categories are that ``categorize`` makes by default."""
    labels = pd.read_parquet(cards / "categories.parquet").set_index("lesion_id")["category"]
    names = read_names(cards / NAMES_FILE).names
    types = [COARSE_TYPES[lesion.coarse_type or 0] for lesion in judge]
    table = pd.crosstab([names[labels[lesion.lesion_id]] for lesion in judge], types)
    lines = ["The categories that `categorize` makes by default, by the official types of all validation lesions:", "",
             f"| category (its proposed name) | {' | '.join(table.columns)} | commonest |",
             "| --- |" + " --- |" * (len(table.columns) + 1)]  # fmt: skip
    for name, row in table.loc[[name for name in names.values() if name in table.index]].iterrows():
        lines.append(f"| {name} | {' | '.join(map(str, row))} | {row.max() / row.sum():.0%} {row.idxmax()} |")
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
        f"{PRETRAINED_MINED}: each round of the loop starts from the rival's weights instead of ImageNet's. The seeds "
        "decide clustering and training; the moved views are the same for all. HU are "
        f"clipped to 0..255 in these files. Seeds {arguments.seed} to {arguments.seed + arguments.seeds - 1}. "
        f"Machine: {machine()}. Command: `python scripts/benchmark.py categories ...`, {today()}."
    )


# --- the phantom ---------------------------------------------------------------------------------------------------


def _phantom(work: Path, seed: int) -> str:
    """Whether planted kinds are found again, also where a tenth of the training boxes lies anywhere."""
    folder, harvest = work / "phantom", work / "phantom-harvest"
    if not (harvest / "lesions.parquet").is_file():
        data_step("phantom", folder, patients=PHANTOM_PATIENTS, seed=seed)
        data_step("harvest", folder / "DL_info.csv", images=folder / "Images_png", out=harvest)
    lesions, _ = select(read_lesions(harvest / "lesions.parquet"))
    kinds = planted_kinds(lesions, folder / "truth" / "datalist.json")
    clean = _planted(lesions, kinds, folder / "Images_png", work, seed)
    generator = np.random.default_rng(seed)
    moved = {lesions[i].lesion_id for i in generator.permutation(len(lesions))[: len(lesions) // 10]}
    noisy = [_anywhere(one, generator) if one.lesion_id in moved and one.split == "train" else one for one in lesions]
    spoilt = _planted(noisy, {key: kind for key, kind in kinds.items() if key not in moved}, folder / "Images_png",
                      work, seed)  # fmt: skip
    names = Counter(kinds.values())
    return (
        f"Phantom hospital, {len(lesions):,} lesions of {len(names)} planted kinds, as many categories, fitted on the "
        f"training patients and judged on the others: adjusted Rand index {clean['ari']} ({clean['judged']} lesions; "
        f"aim .9). A classifier that is told the kinds of the training lesions (logistic regression) reaches "
        f"{clean['told']} on the same features and lesions. With a tenth of the training boxes moved to random places: "
        f"{spoilt['ari']}, and {spoilt['told']} for the classifier, which is not shown the moved ones; the smallest "
        f"category then has {spoilt['smallest']} of {spoilt['fitted']} fitted lesions. Seed {seed}."
    )


def _planted(lesions: list[Lesion], kinds: dict[str, str], images: Path, work: Path, seed: int) -> dict[str, Any]:
    extractor = FeatureExtractor("cpu")
    extraction = extract(lesions, images, extractor, CropSettings(), work / "features")
    kept = [lesions[i] for i in extraction.kept]
    train = np.array([lesion.split == "train" for lesion in kept])
    place = positions(kept)
    space = FeatureSpace.fit(extraction.features[train], place[train], BlockWeights())
    X = space.transform(extraction.features, place)
    k = len(set(kinds.values()))
    clustering, fitted = fit_clustering(X[train], k, method="spectral", seed=seed)
    rows = [i for i, lesion in enumerate(kept) if not train[i] and lesion.lesion_id in kinds]
    truth = [kinds[kept[i].lesion_id] for i in rows]
    whose = [kept[i].patient_id or "" for i in rows]
    told = [i for i, lesion in enumerate(kept) if train[i] and lesion.lesion_id in kinds]
    numbers = np.unique([kinds[kept[i].lesion_id] for i in told], return_inverse=True)[1]
    classifier = linear_classifier().fit(X[told], numbers)
    scores = {
        "ari": judge(truth, clustering.assign(X[rows]).tolist(), whose).ari,
        "told": judge(truth, classifier.predict(X[rows]).tolist(), whose).ari,
    }
    return {
        **{name: f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" for name, score in scores.items()},
        "judged": len(rows), "fitted": len(fitted), "smallest": int(np.bincount(fitted, minlength=k).min()),
    }  # fmt: skip


def _anywhere(lesion: Lesion, generator: np.random.Generator) -> Lesion:
    """The lesion's box, of its size, somewhere else on its slice."""
    assert lesion.box_px is not None
    x0, y0, x1, y1 = lesion.box_px
    width, height = x1 - x0, y1 - y0
    x = float(generator.uniform(0, max(1.0, (lesion.columns or 512) - width)))
    y = float(generator.uniform(0, max(1.0, (lesion.rows or 512) - height)))
    return replace(lesion, x0=x, y0=y, x1=x + width, y1=y + height)


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
