"""When the mining loop stops and which round it takes: the loop with given clusterings and no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from data_prep.categorize import MiningSettings, mining
from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.mining import mine, taken_round
from data_prep.categorize.rounds import Round
from data_prep.lesion import Lesion

COUNT = 20
HALVES, SWAPPED = [0] * 10 + [1] * 10, [1] * 10 + [0] * 10
NEAR, MIXED, FAR = [0] * 9 + [1] * 11, [0] * 7 + [1] * 13, [0, 1] * 10

Clustered = tuple[npt.NDArray[np.int32], int]


def loop(
    cluster: Callable[..., Clustered], monkeypatch: pytest.MonkeyPatch, folder: Path, rounds: int
) -> mining.Result:
    """The loop over 20 lesions in which ``cluster`` stands for each round's clustering."""
    features = np.random.default_rng(0).normal(size=(COUNT, 3, 40)).astype(np.float16)
    monkeypatch.setattr(mining, "_cluster", cluster)
    monkeypatch.setattr(mining, "view_activations", lambda *_, **__: np.zeros(1))
    monkeypatch.setattr(mining, "fine_tune", lambda *_, **__: ({"weight": torch.zeros(1)}, []))
    monkeypatch.setattr(mining, "tail_features", lambda *_: features)
    return mine(
        [Lesion(lesion_id=str(number), bookmark_ids=(), source="csv") for number in range(COUNT)],
        features,
        2,
        patients=[str(number) for number in range(COUNT)],
        images=folder,
        folder=folder / "mining",
        extractor=FeatureExtractor("cpu"),
        crops=CropSettings(side_px=32),
        settings=MiningSettings(rounds=rounds),
        progress=False,
    )


def scripted(
    labels: Sequence[list[int]], monkeypatch: pytest.MonkeyPatch, folder: Path, rounds: int = 9
) -> mining.Result:
    """The loop with these clusterings, one a round."""
    left = iter(labels)
    return loop(lambda *_: (np.array([next(left)], dtype=np.int32), 0), monkeypatch, folder, rounds)


def test_it_stops_when_two_rounds_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = scripted([FAR, NEAR, HALVES, SWAPPED, FAR], monkeypatch, tmp_path)
    assert [r.number for r in result.rounds.rounds] == [1, 2, 3, 4]
    assert (result.rounds.taken, result.rounds.stopped) == (4, "rounds 3 and 4 agree")
    assert result.rounds.rounds[3].agreement == pytest.approx(1.0)


def test_it_stops_when_the_agreement_stops_rising(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = scripted([HALVES, MIXED, NEAR, FAR, NEAR], monkeypatch, tmp_path)
    agreement = [r.agreement or 0.0 for r in result.rounds.rounds]
    assert result.rounds.stopped == "the agreement stopped rising"
    assert agreement[-1] <= agreement[-2]
    assert result.rounds.taken == 1 + int(np.argmax(agreement)) == len(agreement) - 1


def test_more_rounds_go_on_with_those_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert scripted([FAR, MIXED], monkeypatch, tmp_path, rounds=2).rounds.stopped == "2 rounds"
    result = scripted([NEAR, HALVES], monkeypatch, tmp_path, rounds=4)
    np.testing.assert_array_equal(result.labels, [FAR, MIXED, NEAR, HALVES])


def test_features_that_collapse_end_the_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = mining._cluster
    scripted([FAR], monkeypatch, tmp_path, rounds=1)

    def collapsed(*arguments: Any) -> Clustered:
        return whole(np.zeros((COUNT, 5)), *arguments[1:])

    result = loop(collapsed, monkeypatch, tmp_path, rounds=3)
    assert result.rounds.stopped == "the features of round 2 collapsed"
    assert result.rounds.taken == 1
    assert result.tail is None


def test_the_round_that_agrees_best_is_taken() -> None:
    def rounds(*agreements: float | None) -> list[Round]:
        return [Round(n, a, a, 0.1, (1, 1), 0) for n, a in enumerate(agreements, start=1)]

    assert taken_round(rounds(None)) == 1
    assert taken_round(rounds(None, 0.0)) == 2
    assert taken_round(rounds(None, 0.6, 0.8, 0.7)) == 3
    assert taken_round(rounds(None, 0.8, 0.8)) == 3


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"agreement": 0.0}, {"finer": 0}, {"views": -1}])
def test_mining_settings_refuse_nonsense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mining"):
        MiningSettings(**bad)
