"""Is one run better than another? A paired comparison of two evaluations of the same slices.

python -m scripts.compare RUN_A RUN_B [--output FILE] [--bootstrap 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts import metrics
from scripts.errors import BundleError
from scripts.evaluation import write_json
from scripts.froc import ImageResult
from scripts.read_detections import load_predictions


def load_run(folder: Path) -> list[ImageResult]:
    """The images of an evaluation's `predictions.json`; patients go by their number there.

    Raises:
        BundleError: no such file, or one without the marked lesions or the patients.
    """
    path = folder / "predictions.json" if folder.is_dir() else folder
    results = []
    for number, image in enumerate(load_predictions(path)):
        if "true_box_px" not in image or "patient" not in image:
            raise BundleError(f"{path}: images[{number}] has no 'true_box_px' or no 'patient'; evaluate again")
        try:
            results.append(
                ImageResult(
                    image=image["image"],
                    patient_id=str(image["patient"]),
                    boxes_px=np.array(image["box_px"], dtype=np.float64).reshape(-1, 4),
                    scores=np.array(image["score"], dtype=np.float64),
                    true_boxes_px=np.array(image["true_box_px"], dtype=np.float64).reshape(-1, 4),
                )
            )
        except ValueError as error:
            raise BundleError(f"{path}: images[{number}]: {error}") from error
    if not results:
        raise BundleError(f"{path}: there is no image in it")
    return results


def compare_runs(first: Path, second: Path, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Both runs' figures and how far the second is ahead.

    Args:
        first, second: folders of two evaluations of one section, or their `predictions.json`.
        bootstrap: replicates of patients, the same ones for both runs.
        seed: of the bootstrap.

    Returns:
        ``first`` and ``second``, their `metrics.json` without intervals, and ``difference``, see
        `scripts.metrics.compare`.

    Raises:
        BundleError: a run that cannot be read, or two that do not cover the same slices, patients and lesions.
    """
    one, two = load_run(first), load_run(second)
    try:
        difference = metrics.compare(one, two, bootstrap=bootstrap, seed=seed)
    except ValueError as error:
        raise BundleError(f"{first} and {second}: {error}; compare evaluations of the same section") from error
    return {
        "schema_version": metrics.SCHEMA_VERSION,
        "interval": {"level": 0.95, "unit": "patient", "replicates": bootstrap, "seed": seed},
        "first": metrics.compute(one, bootstrap=0),
        "second": metrics.compute(two, bootstrap=0),
        "difference": difference,
    }


def headline(comparison: Mapping[str, Any]) -> str:
    """The comparison's main figures as a table; the first row is the headline, the others explore."""
    paths = [("average_sensitivity",), *(("froc", rate) for rate in comparison["difference"]["froc"])]
    paths += [("accuracy_at_iou", "0.5"), ("average_precision_at_iou", "0.5"), ("calibration", "laece")]
    names = ["mean of 0.5, 1, 2 and 4", *(f"sensitivity at {path[1]} FP" for path in paths[1:-3])]
    names += ["accuracy at IoU 0.5", "average precision at IoU 0.5", "LaECE (lower is better)"]
    lines = [f"{'':28}   first  second  difference  95 % interval        p"]
    for name, path in zip(names, paths, strict=True):
        trees = [comparison[key] for key in ("first", "second", "difference")]
        for key in path:
            trees = [tree.get(key, {}) for tree in trees]
        a, b, d = trees
        if d.get("value") is None:
            lines.append(f"{name:28}       -")
            continue
        between = "no interval      " if d["low"] is None else f"{d['low']:+.3f} to {d['high']:+.3f}"
        p = "     -" if d["p"] is None else f"{d['p']:6.3f}"
        lines.append(f"{name:28}   {a['value']:.3f}   {b['value']:.3f}      {d['value']:+.3f}  {between}  {p}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when it compared, 1 with one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare",
        description="How far the second of two evaluations of the same slices is ahead of the first: differences with "
        "95 %% intervals and p-values from a bootstrap in which both see the same draws of patients.",
    )
    parser.add_argument("first", type=Path, help="folder of an evaluation, with predictions.json")
    parser.add_argument("second", type=Path, help="folder of another evaluation of the same section")
    parser.add_argument("--output", type=Path, help="write the comparison to this JSON file too")
    parser.add_argument("--bootstrap", type=int, default=1000, help="replicates (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    given = parser.parse_args(arguments)
    if given.bootstrap < 1:
        parser.error("--bootstrap must be at least 1")
    try:
        comparison = compare_runs(given.first, given.second, bootstrap=given.bootstrap, seed=given.seed)
        if given.output is not None:
            write_json(given.output, comparison)
    except (BundleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(headline(comparison))
    return 0


if __name__ == "__main__":
    sys.exit(main())
