"""One set of weights from several trainings that began alike: the mean of each weight.

Trainings that go on from the same weights stay where the loss is connected, and their mean generalises better than
each (Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482). Trainings from random weights have no useful mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from scripts.checkpoint import read_model, save
from scripts.errors import BundleError

ALIKE = ("contract", "categories", "anchor_sizes")
KEPT = (*ALIKE, "flip_average", "scale_average", "operating_point")


def average(paths: Sequence[str | PathLike[str]]) -> dict[str, Any]:
    """The content of a ``model.pt`` with the mean of the weights of several.

    Thresholds of conformal risk control and a model across slices do not hold for other weights and are left out; the
    default threshold is the first file's until ``configs/set_threshold.yaml`` chooses one.

    Args:
        paths: at least two weights of one shape, input contract, anchors and categories.

    Raises:
        BundleError: fewer than two, not weights of this bundle, or of another kind than the first.
    """
    if len(paths) < 2:
        raise BundleError("give the weights of at least two trainings to average")
    contents = [read_model(path)[0] for path in paths]
    first = contents[0]
    shapes = {name: tensor.shape for name, tensor in first["model"].items()}
    for path, content in zip(paths[1:], contents[1:], strict=True):
        for key in ALIKE:
            if content[key] != first[key]:
                raise BundleError(f"{path}: its {key} is {content[key]}, that of {paths[0]} is {first[key]}")
        if {name: tensor.shape for name, tensor in content["model"].items()} != shapes:
            raise BundleError(f"{path}: a network of another shape than that of {paths[0]}")
    model = {}
    for name, tensor in first["model"].items():
        mean = torch.stack([content["model"][name].double() for content in contents]).mean(0)
        model[name] = mean.to(tensor.dtype).contiguous()
    return {"model": model, **{key: first[key] for key in KEPT if key in first}}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when it averaged, 1 with one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.average_weights",
        description="Average the weights of trainings that began with the same weights. Choose the default threshold "
        "of the result with configs/set_threshold.yaml.",
    )
    parser.add_argument("output", type=Path, help="model.pt to write")
    parser.add_argument("weights", type=Path, nargs="+", help="two or more model.pt")
    given = parser.parse_args(arguments)
    try:
        if given.output.exists():
            raise BundleError(f"{given.output}: is there already; give another name, or delete it")
        given.output.parent.mkdir(parents=True, exist_ok=True)
        save(given.output, average(given.weights))
    except (BundleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.output}: the mean of {len(given.weights)} sets of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
