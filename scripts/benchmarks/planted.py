"""Whether `categorize` finds the kinds of lesions that the phantom's maker planted, also among spoilt boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.results import with_interval
from stages import data_step

from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.features import extract
from data_prep.categorize.judge import judge, linear_classifier, planted_kinds
from data_prep.categorize.pipeline import select
from data_prep.categorize.space import BlockWeights, FeatureSpace, positions
from data_prep.lesion import Lesion, read_lesions, write_lesions

PATIENTS = 52  # the demo's


def planted(work: Path, seed: int) -> str:
    """Make the phantom, sort its lesions as they are and with a tenth of the training boxes anywhere; the findings."""
    folder, harvest = work / "phantom", work / "phantom-harvest"
    images = folder / "Images_png"
    if not (harvest / "lesions.parquet").is_file():
        data_step("phantom", folder, patients=PATIENTS, seed=seed)
        data_step("harvest", folder / "DL_info.csv", images=images, out=harvest)
    lesions, _ = select(read_lesions(harvest / "lesions.parquet"))
    kinds = planted_kinds(lesions, folder / "truth" / "datalist.json")
    clean = _sorted(lesions, kinds, images, work / "phantom-categories", seed)
    generator = np.random.default_rng(seed)
    moved = {lesions[i].lesion_id for i in generator.permutation(len(lesions))[: len(lesions) // 10]}
    noisy = [_anywhere(one, generator) if one.lesion_id in moved and one.split == "train" else one for one in lesions]
    known = {key: kind for key, kind in kinds.items() if key not in moved}
    spoilt = _sorted(noisy, known, images, work / "phantom-categories-noisy", seed)
    number = len(set(kinds.values()))
    return (
        f"Phantom hospital, {len(lesions):,} lesions of {number} planted kinds, as many categories, fitted on the "
        f"training patients as `categorize` does by default and judged on the others: adjusted Rand index "
        f"{clean['ari']} ({clean['judged']} lesions; aim .9); its first round, on the pretrained features, "
        f"{clean['first']}; one round on ImageNet's features {clean['plain']}. A classifier that is told the kinds "
        f"of the training lesions (logistic regression on ImageNet's features and the place) reaches {clean['told']}. "
        f"With a tenth of the training boxes moved to random places: {spoilt['ari']}, and {spoilt['told']} for the "
        f"classifier, which is not shown the moved ones; the smallest category then has {spoilt['smallest']} of "
        f"{spoilt['fitted']} fitted lesions. Seed {seed}."
    )


def _sorted(lesions: list[Lesion], kinds: Mapping[str, str], images: Path, out: Path, seed: int) -> dict[str, Any]:
    number = len(set(kinds.values()))
    out.mkdir(exist_ok=True)
    table = out / "lesions.parquet"
    write_lesions(lesions, table)
    made = {}
    # All in one folder, whose caches they share; the default comes last and stays there.
    for name, options in (("plain", {"rounds": 1, "pretrain": 0}), ("first", {"rounds": 1}), ("ari", {})):
        data_step("categorize", table, images=images, out=out, categories=number, seed=seed, **options)
        found = pd.read_parquet(out / "categories.parquet").set_index("lesion_id")["category"]
        made[name] = [int(v) for v in found.reindex([one.lesion_id for one in lesions])]
    rows = [i for i, one in enumerate(lesions) if one.split != "train" and one.lesion_id in kinds]
    truth, whose = _of(lesions, kinds, rows)
    scores = {name: judge(truth, [labels[i] for i in rows], whose).ari for name, labels in made.items()}
    scores["told"] = judge(truth, _told(lesions, kinds, images, out, rows), whose).ari
    said = json.loads((out / "rounds.json").read_text(encoding="utf-8"))
    sizes = said["rounds"][said["taken"] - 1]["sizes"]
    figures = {name: with_interval(*astuple(score)) for name, score in scores.items()}
    return {**figures, "judged": len(rows), "fitted": sum(sizes), "smallest": min(sizes)}


def _of(lesions: Sequence[Lesion], kinds: Mapping[str, str], rows: Sequence[int]) -> tuple[list[str], list[str]]:
    """Kinds and patients of some lesions."""
    return [kinds[lesions[i].lesion_id] for i in rows], [lesions[i].patient_id or "" for i in rows]


def _told(lesions: list[Lesion], kinds: Mapping[str, str], images: Path, out: Path, rows: Sequence[int]) -> list[int]:
    """What a classifier says of some lesions that is told the kinds of the training lesions."""
    extraction = extract(lesions, images, FeatureExtractor("cpu"), CropSettings(), out / "features")
    if len(extraction.kept) != len(lesions):
        raise SystemExit(f"stopped: not every lesion of {images} can be read")
    train = [i for i, one in enumerate(lesions) if one.split == "train" and one.lesion_id in kinds]
    place = positions(lesions)
    space = FeatureSpace.fit(extraction.features[train], place[train], BlockWeights())
    X = space.transform(extraction.features, place)
    numbers = np.unique(_of(lesions, kinds, train)[0], return_inverse=True)[1]
    said: list[int] = linear_classifier().fit(X[train], numbers).predict(X[list(rows)]).tolist()
    return said


def _anywhere(lesion: Lesion, generator: np.random.Generator) -> Lesion:
    """The lesion's box, of its size, somewhere else on its slice."""
    assert lesion.box_px is not None
    x0, y0, x1, y1 = lesion.box_px
    width, height = x1 - x0, y1 - y0
    x = float(generator.uniform(0, max(1.0, (lesion.columns or 512) - width)))
    y = float(generator.uniform(0, max(1.0, (lesion.rows or 512) - height)))
    return replace(lesion, x0=x, y0=y, x1=x + width, y1=y + height)
