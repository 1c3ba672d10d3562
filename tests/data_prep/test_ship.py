"""What of several trainings may be shipped as weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))  # its programs belong to no package
from benchmarks.choices import some_of
from benchmarks.weights import candidates

START, A, B, C = (Path(name) for name in ("start.pt", "a.pt", "b.pt", "c.pt"))


def test_one_cycle_from_imagenet_has_its_own_weights_only() -> None:
    found = candidates({"all": ["one"]}, {"all": [A]})
    assert [members for _, members in found.values()] == [[A]]


def test_each_recipe_and_means_of_neighbours_in_time_and_of_recipes_are_tried() -> None:
    found = candidates(
        {"all": ["one", "two"], "sharpness": ["three", "four"]}, {"all": [START, A, B], "sharpness": [START, C, A]}
    )
    assert [members for _, members in found.values()] == [[B], [A, B], [A], [C, A], [B, A]]
    folders = [name for name, _ in found.values()]
    assert len(set(folders)) == len(folders)
    from_imagenet = candidates({"all": ["one"], "sharpness": ["two"]}, {"all": [A], "sharpness": [B]})
    assert [members for _, members in from_imagenet.values()] == [[A], [B], [A, B]]
    assert set(found) >= {"`all`, last cycle", "mean of the recipes' last weights"}


def test_names_with_commas_keep_their_order_and_the_baseline_takes_part_where_there_is_one() -> None:
    known = ("plain", "dense", "all")
    assert some_of("recipe", known)("all") == ["plain", "all"]
    assert some_of("recipe", known, baseline=False)("all,dense") == ["dense", "all"]
    with pytest.raises(argparse.ArgumentTypeError, match="unknown recipe 'alll'; choose of plain, dense, all"):
        some_of("recipe", known)("alll")
