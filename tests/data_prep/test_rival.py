"""The mining loop's rival of the category benchmark: Sinkhorn-Knopp, SwAV on stored activations, random body places."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, interpolate

from data_prep.archive.png import write_hu
from data_prep.categorize.backbone import FeatureExtractor
from data_prep.lesion import Lesion
from data_prep.splits import tuning_patients

FILE = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "rival.py"


def _load() -> ModuleType:
    """The benchmark's module, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("benchmark_rival", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


rival = _load()

# --- Sinkhorn-Knopp ------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_two_by_two_has_a_closed_form(values: list[float]) -> None:
    """[[a, b], [c, d]] scaled until rows and columns sum to 1 has the diagonal sqrt(ad) / (sqrt(ad) + sqrt(bc))."""
    scores = torch.tensor(values, dtype=torch.float64).reshape(2, 2)
    diagonal = torch.sigmoid((scores[0, 0] + scores[1, 1] - scores[0, 1] - scores[1, 0]) / 2)
    expected = torch.stack([diagonal, 1 - diagonal, 1 - diagonal, diagonal]).reshape(2, 2)
    torch.testing.assert_close(rival.sinkhorn(scores, 500), expected, atol=1e-6, rtol=0)


def test_rows_are_distributions_and_columns_share_evenly() -> None:
    """Whatever the prototypes' popularity; and huge scores do not overflow."""
    scores = torch.randn(2, 60, 12, generator=torch.Generator().manual_seed(0)) * 2 + torch.arange(12)
    few, many = rival.sinkhorn(scores, 1), rival.sinkhorn(scores.double(), 300)
    for made in (few, many, rival.sinkhorn(scores * 1000, 3)):
        torch.testing.assert_close(made.sum(-1), torch.ones(2, 60, dtype=made.dtype))
    torch.testing.assert_close(many.sum(-2), torch.full((2, 12), 5.0, dtype=torch.float64), atol=1e-4, rtol=0)
    # What multiplies a whole row or column is scaled away, and the rank of equally popular prototypes is kept.
    moved = scores.double() + torch.randn(2, 60, 1) + torch.randn(2, 1, 12)
    torch.testing.assert_close(rival.sinkhorn(moved, 300), many, atol=1e-4, rtol=0)
    one_hot = rival.sinkhorn(torch.eye(4) * 100, 3)
    torch.testing.assert_close(one_hot, torch.eye(4))


def test_the_loss_is_the_cross_entropy_with_the_other_view() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(2, 7, 5, generator=generator) * 2 - 1
    assignments = torch.rand(2, 7, 5, generator=generator).softmax(-1)
    expected = sum(cross_entropy(cosines[view] / 0.1, assignments[1 - view]) for view in (0, 1)) / 2
    torch.testing.assert_close(rival.swapped_loss(cosines, assignments, 0.1), expected)


# --- pretraining ---------------------------------------------------------------------------------------------------

SMALL = rival.SwavSettings(epochs=1, batch_size=8, prototypes=4, queue=16)


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
    tail, epochs = rival.pretrain(activations, patients, extractor, chosen, seed=1, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in extractor.tail.state_dict().items())
    assert tail.keys() == before.keys()
    assert not any(torch.equal(before[name], value) for name, value in tail.items() if name.endswith(".weight"))
    losses = [epoch.holdout_loss for epoch in epochs]
    assert min(losses) < 0.75 * losses[0]
    assert epochs[-1].training_loss < epochs[0].training_loss
    assert epochs[int(np.argmin(losses))].holdout_accuracy >= 0.75


def test_pretraining_is_reproducible_and_keeps_held_out_patients_out(
    extractor: FeatureExtractor, activations: npt.NDArray[np.float16]
) -> None:
    patients = [f"p{number}" for number in range(48)]
    held = np.array([patient in tuning_patients(patients) for patient in patients])
    assert 2 <= held.sum() <= 24
    other = activations.copy()
    other[:, held] = other[:, held, ::-1] / 2
    made = [rival.pretrain(a, patients, extractor, SMALL, progress=False) for a in (activations, activations, other)]
    for tail, _ in made[1:]:
        assert all(torch.equal(tail[name], value) for name, value in made[0][0].items())
    assert made[0][1] == made[1][1]
    assert made[0][1][0].holdout_loss != made[2][1][0].holdout_loss
    reseeded, _ = rival.pretrain(activations, patients, extractor, SMALL, seed=5, progress=False)
    assert any(not torch.equal(reseeded[name], value) for name, value in made[0][0].items())


def test_one_patient_has_nobody_held_out_and_one_view_is_refused(
    extractor: FeatureExtractor, activations: npt.NDArray[np.float16]
) -> None:
    _, epochs = rival.pretrain(activations[:2, :12], ["p"] * 12, extractor, SMALL, progress=False)
    assert (epochs[0].holdout_loss, epochs[0].holdout_accuracy) == (None, None)
    with pytest.raises(rival.DataPrepError, match="two views"):
        rival.pretrain(activations[:1], [f"p{n}" for n in range(48)], extractor, SMALL, progress=False)
    with pytest.raises(ValueError, match="two prototypes"):
        rival.SwavSettings(prototypes=1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pretraining_runs_on_a_gpu(activations: npt.NDArray[np.float16]) -> None:
    patients = [f"p{number}" for number in range(48)]
    tail, epochs = rival.pretrain(activations, patients, FeatureExtractor("cuda"), SMALL, progress=False)
    assert {value.device.type for value in tail.values()} == {"cpu"}
    assert np.isfinite(epochs[0].training_loss)


# --- random places in the body -------------------------------------------------------------------------------------


def _slice(clipped: bool) -> npt.NDArray[np.float32]:
    """A body with two lungs and a table below it, which touches it by a thin bridge."""
    y, x = np.mgrid[:120, :160]
    hu = np.full((120, 160), -1000, np.float32)
    hu[((x - 80) / 60) ** 2 + ((y - 50) / 40) ** 2 <= 1] = 50
    for middle in (55, 105):
        hu[((x - middle) / 15) ** 2 + ((y - 45) / 20) ** 2 <= 1] = -800
    hu[105:112, 10:150] = 100
    hu[88:106, 80] = 60
    return hu.clip(0, 255) if clipped else hu


@pytest.mark.parametrize("clipped", [False, True])
def test_the_body_has_its_lungs_and_organs_apart_but_no_table(clipped: bool) -> None:
    body = rival.inside_body(_slice(clipped))
    assert body[45, 55]
    assert body[45, 105]
    assert not body[100:].any()
    assert not body[:8].any()
    assert body.sum() == pytest.approx(np.pi * 60 * 40, rel=0.05)
    assert not rival.inside_body(np.full((30, 30), -1000, np.float32)).any()


def test_places_lie_in_training_bodies_only(tmp_path: Path) -> None:
    """Of slices of training patients, marked or not; no validation or test patient's, nor one nobody knows."""
    hu = _slice(clipped=True)
    for name in ("1_01_01/010", "1_01_01/011", "1_02_01/020", "2_01_01/010", "3_01_01/010", "9_01_01/010"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_hu(tmp_path / f"{name}.png", hu)
    box = {"x0": 10.0, "y0": 20.0, "x1": 30.0, "y1": 50.0}

    def lesion(name: str, split: str) -> Lesion:
        return Lesion(
            lesion_id=name, bookmark_ids=(), source="deeplesion-csv", image=f"{name}_01_01/010.png", patient_id=name,
            split=split, spacing_x_mm=0.5, spacing_y_mm=0.5, **box,
        )  # fmt: skip

    table = [lesion("1", "train"), lesion("2", "validation"), lesion("3", "test")]
    places, patients = rival.body_places(table, tmp_path, per_slice=5, seed=3)
    assert patients == ["1"] * 15
    assert {p.image for p in places} == {"1_01_01/010.png", "1_01_01/011.png", "1_02_01/020.png"}
    assert len({p.lesion_id for p in places}) == 15
    body = rival.inside_body(hu)
    for place in places:
        assert place.box_px is not None
        x0, y0, x1, y1 = place.box_px
        assert body[int((y0 + y1) / 2), int((x0 + x1) / 2)]
        # 10 x 15 mm as the only training lesion; another series states no spacing, where crops assume 0.8 mm.
        spacing = 0.5 if place.image.startswith("1_01_01") else 0.8
        assert (place.spacing_x_mm, place.spacing_y_mm) == ((0.5, 0.5) if spacing == 0.5 else (None, None))
        assert (x1 - x0, y1 - y0) == pytest.approx((10 / spacing, 15 / spacing))
    assert rival.body_places(table, tmp_path, per_slice=5, seed=3)[0] == places
    assert rival.body_places(table, tmp_path, per_slice=5, seed=4)[0] != places
    with pytest.raises(rival.DataPrepError, match="training patient"):
        rival.body_places(table[1:], tmp_path)
