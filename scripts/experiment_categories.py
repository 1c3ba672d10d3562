"""Does a detector trained on mined categories beat one that knows only "lesion"? Writes into docs/results.md.

    python scripts/experiment_categories.py phantom WORK [--patients N] [--epochs E] [--sizes 0.25,0.5,1]
    python scripts/experiment_categories.py real WORK CSV IMAGES [--minutes 240]

Arms: a single class, 5 mined categories, 5 random ones of the same sizes; on demand 8 mined ones and those of the
mining loop's first round. Each arm and seed is a stage of its own: kill it, start it again, it goes on. More --seeds,
--arms, --sizes or --minutes later add to what is there. Every run that finished is in the table. Run it on an otherwise
idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benchmarks.category_experiment import ARMS, DEFAULT_ARMS, Experiment
from benchmarks.choices import minutes, positive, sizes, some_of
from benchmarks.results import RESULTS

arms = some_of("arm", ARMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("work", type=Path, help="working folder, kept between starts")
    common.add_argument("--seeds", type=positive, default=3, help="trainings of each arm (default: %(default)s)")
    common.add_argument("--seed", type=int, default=0, help="the first of them, and that of the mining")
    common.add_argument(
        "--arms",
        type=arms,
        default=list(DEFAULT_ARMS),
        help=f"of {', '.join(ARMS)} (default: {','.join(DEFAULT_ARMS)})",
    )
    common.add_argument("--sizes", type=sizes, default=[1.0], help="shares of the training patients, e.g. 0.25,0.5,1")
    common.add_argument("--epochs", type=positive, help="of all the slices; fewer slices get as many steps")
    common.add_argument("--rounds", type=positive, default=2, help="of mining, at most (default: %(default)s)")
    common.add_argument("--results", type=Path, default=RESULTS, help="the file to write into (default: %(default)s)")
    budget = "start no training that would end after so many minutes of training in all (default: {})"
    what = parser.add_subparsers(dest="what", required=True)
    phantom = what.add_parser("phantom", parents=[common], help="judged by the full truth of another phantom hospital")
    phantom.add_argument("--patients", type=positive, default=52, help="of the hospital (default: %(default)s)")
    phantom.add_argument(
        "--judged-patients", type=positive, default=52, help="of a second one, which judges (default: %(default)s)"
    )
    phantom.add_argument("--minutes", type=minutes, help=budget.format("no limit"))
    real = what.add_parser("real", parents=[common], help="judged by the marks of the official validation slices")
    real.add_argument("csv", type=Path, help="DL_info.csv")
    real.add_argument("images", type=Path, help="Images_png")
    real.add_argument("--minutes", type=minutes, default=240.0, help=budget.format("%(default)g"))
    arguments = parser.parse_args()
    if arguments.what == "phantom" and arguments.patients < 8:
        parser.error("--patients must be at least 8, so that every split has some")
    for path in (arguments.csv, arguments.images) if arguments.what == "real" else ():
        if not path.exists():
            parser.error(f"{path}: no such file or folder")
    Experiment(arguments).run()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
