"""Self-supervised pretraining: Sinkhorn-Knopp, SwAV on stored activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, interpolate

from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.pretrain import PretrainSettings, pretrain, sinkhorn, swapped_loss
from data_prep.errors import DataPrepError
from data_prep.splits import tuning_patients

# --- Sinkhorn-Knopp ------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_two_by_two_has_a_closed_form(values: list[float]) -> None:
    """[[a, b], [c, d]] scaled until rows and columns sum to 1 has the diagonal sqrt(ad) / (sqrt(ad) + sqrt(bc))."""
    scores = torch.tensor(values, dtype=torch.float64).reshape(2, 2)
    diagonal = torch.sigmoid((scores[0, 0] + scores[1, 1] - scores[0, 1] - scores[1, 0]) / 2)
    expected = torch.stack([diagonal, 1 - diagonal, 1 - diagonal, diagonal]).reshape(2, 2)
    torch.testing.assert_close(sinkhorn(scores, 500), expected, atol=1e-6, rtol=0)


def test_rows_are_distributions_and_columns_share_evenly() -> None:
    """Whatever the prototypes' popularity; and huge scores do not overflow."""
    scores = torch.randn(2, 60, 12, generator=torch.Generator().manual_seed(0)) * 2 + torch.arange(12)
    few, many = sinkhorn(scores, 1), sinkhorn(scores.double(), 300)
    for made in (few, many, sinkhorn(scores * 1000, 3)):
        torch.testing.assert_close(made.sum(-1), torch.ones(2, 60, dtype=made.dtype))
    torch.testing.assert_close(many.sum(-2), torch.full((2, 12), 5.0, dtype=torch.float64), atol=1e-4, rtol=0)
    # What multiplies a whole row or column is scaled away, and the rank of equally popular prototypes is kept.
    moved = scores.double() + torch.randn(2, 60, 1) + torch.randn(2, 1, 12)
    torch.testing.assert_close(sinkhorn(moved, 300), many, atol=1e-4, rtol=0)
    one_hot = sinkhorn(torch.eye(4) * 100, 3)
    torch.testing.assert_close(one_hot, torch.eye(4))


def test_the_loss_is_the_cross_entropy_with_the_other_view() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(2, 7, 5, generator=generator) * 2 - 1
    assignments = torch.rand(2, 7, 5, generator=generator).softmax(-1)
    expected = sum(cross_entropy(cosines[view] / 0.1, assignments[1 - view]) for view in (0, 1)) / 2
    torch.testing.assert_close(swapped_loss(cosines, assignments, 0.1), expected)


# --- pretraining ---------------------------------------------------------------------------------------------------

SMALL = PretrainSettings(epochs=1, batch_size=8, prototypes=4, queue=16)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor("cpu")


@pytest.fixture(scope="module")
def activations(extractor: FeatureExtractor) -> npt.NDArray[np.float16]:
    """(3, 48, 3, 112, 2, 2): crops with four patterns in turn, the views of a crop differ by noise alone."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(4, 1, 4, 4, generator=generator).repeat(12, 1, 1, 1)
    crops = interpolate(patterns, 32, mode="bilinear") + 0.05 * torch.randn(48, 1, 32, 32, generator=generator)
    views = crops + 0.02 * torch.randn(3, 3, 48, 1, 32, 32, generator=generator)
    batch = views.transpose(1, 2).flatten(0, 2).expand(-1, 3, -1, -1).clamp(0, 1)
    with torch.inference_mode():
        made = extractor.trunk(extractor.prepare(batch))
    return made.reshape(3, 48, 3, *made.shape[1:]).half().numpy()


def test_pretraining_learns_what_the_views_share(
    extractor: FeatureExtractor, activations: npt.NDArray[np.float16]
) -> None:
    """The loss on held-out patients falls; the callers' random state and the extractor's weights stay."""
    patients = [f"p{number}" for number in range(48)]
    before = {name: value.clone() for name, value in extractor.tail.state_dict().items()}
    state = torch.get_rng_state()
    chosen = replace(SMALL, epochs=10)
    tail, epochs = pretrain(activations, patients, extractor, chosen, seed=1, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in extractor.tail.state_dict().items())
    assert tail.keys() == before.keys()
    assert not any(torch.equal(before[name], value) for name, value in tail.items() if name.endswith(".weight"))
    losses = [epoch.holdout_loss for epoch in epochs]
    assert min(losses) < 0.75 * losses[0]
    assert epochs[-1].training_loss < epochs[0].training_loss


def test_pretraining_is_reproducible_and_keeps_held_out_patients_out(
    extractor: FeatureExtractor, activations: npt.NDArray[np.float16]
) -> None:
    patients = [f"p{number}" for number in range(48)]
    held = np.array([patient in tuning_patients(patients) for patient in patients])
    assert 2 <= held.sum() <= 24
    other = activations.copy()
    other[:, held] = other[:, held, ::-1] / 2
    made = [pretrain(a, patients, extractor, SMALL, progress=False) for a in (activations, activations, other)]
    for tail, _ in made[1:]:
        assert all(torch.equal(tail[name], value) for name, value in made[0][0].items())
    assert made[0][1] == made[1][1]
    assert made[0][1][0].holdout_loss != made[2][1][0].holdout_loss
    reseeded, _ = pretrain(activations, patients, extractor, SMALL, seed=5, progress=False)
    assert any(not torch.equal(reseeded[name], value) for name, value in made[0][0].items())


def test_one_patient_has_nobody_held_out_and_one_view_is_refused(
    extractor: FeatureExtractor, activations: npt.NDArray[np.float16]
) -> None:
    _, epochs = pretrain(activations[:2, :12], ["p"] * 12, extractor, SMALL, progress=False)
    assert (epochs[0].holdout_loss, epochs[0].holdout_accuracy) == (None, None)
    with pytest.raises(DataPrepError, match="two views"):
        pretrain(activations[:1], [f"p{n}" for n in range(48)], extractor, SMALL, progress=False)
    with pytest.raises(DataPrepError, match="not enough to pretrain on"):
        pretrain(activations[:, :2], ["p0", "p1"], extractor, SMALL, progress=False)
    with pytest.raises(ValueError, match="two prototypes"):
        PretrainSettings(prototypes=1)


@pytest.mark.parametrize("steps", [1, 9])
def test_few_steps_are_enough(extractor: FeatureExtractor, activations: npt.NDArray[np.float16], steps: int) -> None:
    """Also nine, of which a tenth and the warm-up's first step make a warm-up of no length."""
    _, epochs = pretrain(activations[:, :4], ["p"] * 4, extractor, replace(SMALL, epochs=steps), progress=False)
    assert len(epochs) == steps


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pretraining_runs_on_a_gpu(activations: npt.NDArray[np.float16]) -> None:
    patients = [f"p{number}" for number in range(48)]
    tail, epochs = pretrain(activations, patients, FeatureExtractor("cuda"), SMALL, progress=False)
    assert {value.device.type for value in tail.values()} == {"cpu"}
    assert np.isfinite(epochs[0].training_loss)
