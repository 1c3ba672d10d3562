"""Measure what the documents claim, and write it into docs/results.md.

    python scripts/benchmark.py phantom WORK            the demo's detector beside an untrained one, a blob filter and
                                                        one trained on shuffled boxes, by the phantom's full truth
    python scripts/benchmark.py real WORK CSV IMAGES    the demo's detector on the official validation slices, beside
                                                        the same recipe without ImageNet weights and an untrained one
    python scripts/benchmark.py harvest WORK            how fast marks are harvested, in how much memory

Each step is a stage of its own: kill it, start it again, it goes on. Every figure is written beside its machine, data
and seed. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benchmarks import harvest, trained_detector
from benchmarks.results import RESULTS

WHAT = {"phantom": trained_detector.phantom, "real": trained_detector.real, "harvest": harvest.harvest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(WHAT))
    parser.add_argument("work", type=Path, help="working folder, kept between starts")
    parser.add_argument("csv", type=Path, nargs="?", help="DL_info.csv (real)")
    parser.add_argument("images", type=Path, nargs="?", help="Images_png (real)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write into (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=20_000, help="files to harvest (harvest; default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the CSV (harvest; default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each timing (harvest; default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.what == "real" and (arguments.csv is None or arguments.images is None):
        parser.error("real needs CSV and IMAGES")
    if arguments.what == "harvest" and (arguments.objects < 60 or arguments.rows < 1 or arguments.repetitions < 1):
        parser.error("harvest needs at least 60 objects, a row and a repetition")
    WHAT[arguments.what](arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
