"""Learning rate and clipping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripts.errors import BundleError
from scripts.training import TrainStep, average_of, warmup_cosine
from torch.optim.lr_scheduler import CosineAnnealingLR
from toy_detector import MARK, detector_of


def rates(steps: int, warmup: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = warmup_cosine(optimizer, steps, warmup, **options)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_the_rate_rises_and_then_falls_as_pytorchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    cosine = CosineAnnealingLR(optimizer, 20, eta_min=0.5 * 0.1)
    expected = []
    for _ in range(20):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    found = rates(24, 4, final_share=0.1)
    assert found[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert found[4:] == pytest.approx(expected)


def test_a_share_of_one_keeps_the_rate() -> None:
    assert rates(10, 2, final_share=1.0)[1:] == pytest.approx([0.5] * 9)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(BundleError, match="final_rate_share"):
        rates(4, 1, final_share=share)


def moved(clip: float | None) -> torch.Tensor:
    """How far one step of plain gradient descent moves the weights."""
    torch.manual_seed(0)
    detector = detector_of()
    optimizer = torch.optim.SGD(detector.network.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten() for p in detector.network.parameters()])
    average = average_of(detector.network, 0.5)
    step = TrainStep(detector, optimizer, warmup_cosine(optimizer, 8, 1), average, "cpu", amp=False, clip=clip)
    engine: Any = type("Engine", (), {"state": type("State", (), {"iteration": 1})})
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    step(engine, {"image": images, "box": [MARK, MARK + 20], "label": [torch.tensor([0])] * 2})
    after = torch.cat([p.detach().flatten() for p in detector.network.parameters()])
    return (after.double() - before.double()).norm()


def test_a_clipped_step_has_the_norm_it_is_clipped_to() -> None:
    whole = float(moved(None))
    assert whole > 1e-3
    assert float(moved(whole / 2)) == pytest.approx(whole / 2, rel=1e-4)
    assert float(moved(2 * whole)) == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_another_norm_is_refused(clip: float) -> None:
    with pytest.raises(BundleError, match="clip_gradient"):
        moved(clip)
