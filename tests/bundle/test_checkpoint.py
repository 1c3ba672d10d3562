"""Weights on disk: what stands beside them must agree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from scripts.checkpoint import SUMS, facts, save_model, state_sum, store_operating_point
from scripts.contract import make
from scripts.errors import BundleError
from scripts.network import LesionNet


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    network = LesionNet(1, 1, pretrained=False, channels=16, flip_average=True)
    save_model(path, network, make(3, [[0, 255]], 64), ["lesion"], [[8.0]] * 4, scale_average=[1.5])
    return path


def test_facts_are_what_was_saved(weights: Path) -> None:
    mask = os.umask(0o027)
    try:
        state_sum(weights)
    finally:
        os.umask(mask)
    assert weights.with_name(SUMS).stat().st_mode & 0o777 == 0o640  # as any new file here
    found = facts(weights)
    assert found["flip_average"] is True
    assert found["scale_average"] == [1.5]
    assert found["channels"] == 16
    assert found["categories"] == ["lesion"]


def test_the_sum_beside_the_weights_is_checked(weights: Path) -> None:
    # The line is made by the tool that users check it with.
    line = subprocess.run(["sha256sum", "model.pt"], cwd=weights.parent, capture_output=True, text=True, check=True)
    sums = weights.with_name(SUMS)
    sums.write_text(line.stdout)
    assert facts(weights)["sha256"] == line.stdout.split()[0]
    sums.write_text(line.stdout.replace("model.pt", "other.pt").replace(line.stdout[0], "0"))
    facts(weights)  # nothing is said about this file
    sums.write_text("0" * 64 + "  model.pt\n")
    with pytest.raises(BundleError, match=r"model\.pt: its SHA-256 is .* get the file anew"):
        facts(weights)


def test_a_threshold_put_into_the_weights_changes_their_sum(weights: Path) -> None:
    state_sum(weights)
    before = facts(weights)["sha256"]
    store_operating_point(weights, 0.2, {"score": 0.5})
    assert facts(weights)["sha256"] != before
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=weights.parent, check=True)


def test_no_weights_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    with pytest.raises(BundleError, match=r"empty\.pt: not a readable weights file \(EOFError\)"):
        facts(tmp_path / "empty.pt")
    with pytest.raises(BundleError, match="no such weights"):
        facts(tmp_path / "model.pt")
