"""Measure what the documents claim, and write it into docs/results.md.

    python scripts/benchmark.py phantom WORK            the demo's detector beside an untrained one, a blob filter and
                                                        one trained on shuffled boxes, by the phantom's full truth
    python scripts/benchmark.py real WORK CSV IMAGES    the demo's detector on the official validation slices, beside
                                                        the same recipe without ImageNet weights and an untrained one
    python scripts/benchmark.py categories WORK CSV IMAGES
                                                        mined categories against official types, over seeds
    python scripts/benchmark.py unmarked WORK           remedies for lesions without a mark, and what a review gains
    python scripts/benchmark.py ablations WORK          the demo's recipe on the phantom, one thing changed at a time
    python scripts/benchmark.py harvest WORK            how fast marks are harvested, in how much memory
    python scripts/benchmark.py detector WORK           how fast the detector is, beside its bare network and others

Each step is a stage of its own: kill it, start it again, it goes on. Every figure is written beside its machine, data
and seed. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benchmarks import ablations, categories, detector_speed, harvest, trained_detector, unmarked
from benchmarks.choices import positive, some_of
from benchmarks.results import RESULTS

WHAT = {
    "phantom": trained_detector.phantom,
    "real": trained_detector.real,
    "harvest": harvest.harvest,
    "detector": detector_speed.detector,
    "unmarked": unmarked.unmarked,
    "ablations": ablations.ablations,
    "categories": categories.categories,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(WHAT))
    parser.add_argument("work", type=Path, help="working folder, kept between starts")
    parser.add_argument("csv", type=Path, nargs="?", help="DL_info.csv (real, categories)")
    parser.add_argument("images", type=Path, nargs="?", help="Images_png (real, categories)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write into (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=20_000, help="files to harvest (harvest; default: %(default)s)")
    parser.add_argument("--rows", type=positive, default=10**6, help="rows of the CSV (harvest; default: %(default)s)")
    parser.add_argument(
        "--repetitions", type=positive, default=5, help="of each timing (harvest, detector; default: %(default)s)"
    )
    parser.add_argument("--seeds", type=positive, help="trainings of each arm (default: 2, categories 5)")
    parser.add_argument("--rounds", type=positive, default=2, help="of mining (categories; default: %(default)s)")
    parser.add_argument(
        "--patients", type=int, default=52, help="of the phantom (unmarked, ablations; default: %(default)s)"
    )
    parser.add_argument(
        "--arms", type=some_of("arm", ablations.CHANGES), default=list(ablations.CHANGES),
        help="of the ablations, with commas; finished ones are in the table anyway (default: all of them)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=positive, help="of each training (unmarked, ablations; default: the demo's)")
    arguments = parser.parse_args()
    if arguments.seeds is None:
        arguments.seeds = 5 if arguments.what == "categories" else 2
    if arguments.what in ("real", "categories") and (arguments.csv is None or arguments.images is None):
        parser.error(f"{arguments.what} needs CSV and IMAGES")
    if arguments.what == "harvest" and arguments.objects < 60:
        parser.error("harvest needs at least 60 objects")
    if arguments.what in ("unmarked", "ablations") and arguments.patients < 8:
        parser.error(f"{arguments.what} needs at least 8 patients")
    WHAT[arguments.what](arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
