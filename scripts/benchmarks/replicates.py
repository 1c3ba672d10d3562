"""One evaluation's figures in bootstrap draws of patients, for ``gains.py``; in a process of its own.

python scripts/benchmarks/replicates.py EVALUATION JUDGE SECTION OUT [--bootstrap 1000] [--seed 0]

EVALUATION is a folder with ``predictions.json``, JUDGE the datalist it was judged by (its labels make the categories),
OUT an .npz file. Runs judged by the same list see the same draws.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("average_sensitivity", "accuracy_at_iou")


def with_labels(results: Sequence[Any], items: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The images of a run with the labels of the judge's lesions.

    Raises:
        SystemExit: the run was not judged by this list.
    """
    by_image = {item["image"][len(item["image"]) // 2]: item for item in items}
    labelled = []
    for result in results:
        item = by_image.get(result.image)
        if item is None or not np.array_equal(np.array(item["box"], dtype=np.float64), result.true_boxes_px):
            raise SystemExit(f"stopped: {result.image} has other lesions in the run than in the list that judges")
        labelled.append(replace(result, true_attributes={"label": item["label"]}))
    return labelled


def fingerprint(results: Sequence[Any]) -> str:
    """Hash of slices, patients and lesions, in order of the images."""
    digest = hashlib.sha256()
    for result in sorted(results, key=lambda result: result.image):
        lesions = (result.true_boxes_px.tolist(), result.true_attributes["label"])
        digest.update(repr((result.image, result.patient_id, *lesions)).encode())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("judge", type=Path)
    parser.add_argument("section")
    parser.add_argument("out", type=Path)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "bundles" / "universal_lesion_ct_detection"))  # its package is ``scripts``
    from scripts.atomic import atomic_path
    from scripts.compare import load_run
    from scripts.errors import BundleError
    from scripts.metrics import EvaluationTable

    from scripts import bootstrap, datalist

    try:
        judge = datalist.load(given.judge)
        results = with_labels(load_run(given.evaluation), judge.sections[given.section])
    except BundleError as error:
        raise SystemExit(f"stopped: {error}") from error
    table = EvaluationTable(results, category_names=judge.categories)
    kept = [
        i for i, key in enumerate(table.keys) if key[0] in FIGURES or (key[0] == "by_category" and key[2] in FIGURES)
    ]
    once = np.ones(table.patient_count, np.int64)
    samples = bootstrap.replicate(
        lambda weight: table.statistics(weight)[kept], table.patient_count, replicates=given.bootstrap, seed=given.seed
    )
    with atomic_path(given.out) as temporary, temporary.open("wb") as file:
        np.savez(
            file, keys=np.array(["/".join(table.keys[i]) for i in kept]), values=table.statistics(once)[kept],
            samples=samples, judge=fingerprint(results),
            n=np.array([table.n[i] for i in kept], dtype=np.int64),
            patients=np.array([table.patients[i] for i in kept], dtype=np.int64),
        )  # fmt: skip


if __name__ == "__main__":
    main()
