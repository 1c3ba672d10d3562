"""Train the weights that the bundle ships, from DeepLesion's bookmarks alone.

    python scripts/train_weights.py try WORK CSV IMAGES [--recipes A,B]   recipes side by side, by the tuning patients
    python scripts/train_weights.py ship WORK CSV IMAGES                  the chosen one: trained at length, the
                                                                          validation patients opened once, put into the
                                                                          bundle's models/ with its card
    python scripts/train_weights.py show WORK CSV IMAGES                  the shipped weights on a whole series

Each step is a stage of its own: kill it, start it again, it goes on. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benchmarks.choices import positive, some_of
from benchmarks.results import RESULTS
from benchmarks.weights import LEFT_OUT, RECIPES, SHIPPED, SHIPPED_CYCLES, ship, try_out
from benchmarks.weights_shown import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("work", type=Path, help="working folder, kept between starts")
    common.add_argument("csv", type=Path, help="DL_info.csv")
    common.add_argument("images", type=Path, help="its Images_png")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--epochs", type=positive, help="of each training")
    trying = what.add_parser("try", parents=[common], help="recipes side by side, judged on the tuning patients")
    recipes, told = some_of("recipe", RECIPES), f"of {', '.join(RECIPES)} (default: all)"
    trying.add_argument("--recipes", type=recipes, default=list(RECIPES), help=told)
    trying.add_argument("--results", type=Path, default=RESULTS, help="the file to write into (default: %(default)s)")
    trying.set_defaults(run=try_out)
    shipping = what.add_parser("ship", parents=[common], help="train the chosen recipe, judge it, put it in place")
    shipping.add_argument(
        "--recipes", type=some_of("recipe", RECIPES, baseline=False), default=SHIPPED,
        help=f"with commas; where there are several, the mean of their weights is tried too (default: {SHIPPED[0]})",
    )  # fmt: skip
    shipping.add_argument(
        "--cycles", type=positive, default=SHIPPED_CYCLES,
        help="of the learning rate, --epochs each; every one starts from the best weights of the one before "
        "(default: %(default)s)",
    )  # fmt: skip
    shipping.add_argument(
        "--start", type=Path, help="model.pt that the first cycle goes on from (default: ImageNet's weights)"
    )
    shipping.set_defaults(run=ship)
    showing = what.add_parser("show", parents=[common], help="find lesions in a whole series (full-range slices)")
    showing.add_argument("--series", default=f"{LEFT_OUT[0]}_01_01", help="folder of IMAGES (default: %(default)s)")
    showing.set_defaults(run=show)
    arguments = parser.parse_args()
    for path in (arguments.csv, arguments.images, getattr(arguments, "start", None)):
        if path is not None and not path.exists():
            parser.error(f"{path}: no such file or folder")
    arguments.run(arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
