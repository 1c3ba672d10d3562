"""Parts of the mining loop: repaired clusterings, moved views, fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.cluster import KMeans

from data_prep.categorize.backbone import FeatureExtractor, Tail
from data_prep.categorize.balance import balance, limits
from data_prep.categorize.clustering import fit_clustering
from data_prep.categorize.finetune import Epoch, TrainingSettings, class_weights, fine_tune
from data_prep.categorize.views import MARGIN, Augmentation, augment
from data_prep.splits import tuning_patients

# --- collapse ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["k-means", "spectral"])
def test_outliers_do_not_make_categories_of_their_own(method: str) -> None:
    """A ball and three far points: plain k-means at k = 4 gives sizes 297, 1, 1, 1."""
    X = np.random.default_rng(0).normal(size=(300, 5))
    X[:3] = np.eye(5)[:3] * 400
    assert sorted(np.bincount(KMeans(4, n_init=5, random_state=0).fit_predict(X))) == [1, 1, 1, 297]
    clustering, labels = fit_clustering(X, 4, method=method, seed=0)
    least, greatest = limits(300, 4)
    sizes = np.bincount(labels, minlength=4)
    assert least <= sizes.min()
    assert sizes.max() <= greatest
    if method == "k-means":
        assert clustering.repairs > 0
    np.testing.assert_array_equal(clustering.assign(X), labels)


def test_balance_leaves_sound_categories_alone_and_fills_empty_ones() -> None:
    X = np.random.default_rng(1).normal(size=(60, 3))
    sound = np.repeat([0, 1, 2], [30, 20, 10]).astype(np.int32)
    labels, repairs = balance(X, sound, 3, 0)
    assert repairs == 0
    np.testing.assert_array_equal(labels, sound)
    labels, repairs = balance(X, np.zeros(60, np.int32), 5, 0)
    assert repairs >= 4
    assert np.bincount(labels, minlength=5).min() >= limits(60, 5)[0]
    assert np.bincount(labels).max() <= limits(60, 5)[1]
    labels, _ = balance(np.repeat(np.eye(2), 30, axis=0), np.zeros(60, np.int32), 2, 0)
    assert sorted(np.bincount(labels)) == [30, 30]


# --- views and fine-tuning -----------------------------------------------------------------------------------------


def test_a_view_that_moves_nothing_is_the_middle_of_the_wide_square() -> None:
    wide = torch.rand(3, 1, 56, 56, generator=torch.Generator().manual_seed(0))
    still = Augmentation(0, 0, 0, 0, 0, 0)
    view = augment(wide, 40, still, torch.Generator().manual_seed(1))
    assert MARGIN == 56 / 40
    torch.testing.assert_close(view, wide[:, :, 8:48, 8:48], atol=1e-4, rtol=0)


def test_views_turn_shift_and_scale_but_never_flip() -> None:
    """The moments of a slanted patch, found again in many views: small changes, always the same handedness."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(90.0), indexing="ij")
    blobs = sum(
        weight * torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 30)
        for weight, cx, cy in ((1.0, 45, 45), (0.8, 60, 40), (0.6, 40, 58))
    )
    assert isinstance(blobs, torch.Tensor)
    still = augment(blobs[None, None], 64, Augmentation(0, 0, 0, 0, 0, 0), torch.Generator())
    geometry = Augmentation(brightness=0, contrast=0, noise=0)
    generator = torch.Generator().manual_seed(3)
    views = [augment(blobs[None, None], 64, geometry, generator) for _ in range(20)]

    def like(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    for view in views:
        assert view.shape == (1, 1, 64, 64)
        assert like(view, still) < 0.9999
        assert like(view, still) > max(like(view, still.flip(dim)) for dim in (2, 3))
    assert len({round(float(view.sum()), 3) for view in views}) == 20


@pytest.mark.parametrize("bad", [{"rotation_deg": 30.0}, {"shift": 0.4}, {"noise": -1.0}])
def test_an_augmentation_that_loses_the_place_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="augmentation"):
        Augmentation(**bad)


def test_rare_categories_weigh_more_and_the_mean_is_one() -> None:
    labels = np.repeat([0, 1, 2], [90, 9, 1]).astype(np.int32)
    weights = class_weights(labels, 3).numpy()
    assert weights[labels].mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights[1:] / weights[:-1], [np.sqrt(10), 3], rtol=1e-5)


def test_fine_tuning_learns_and_keeps_held_out_patients_out() -> None:
    """Activations that tell two kinds apart: accuracy on the held-out patients rises; labels of held-out patients do
    not reach the weights."""
    extractor = FeatureExtractor("cpu")
    generator = np.random.default_rng(0)
    kinds = np.arange(48) % 2
    activations = generator.normal(0, 1, (1, 48, 3, 112, 2, 2))
    activations[:, kinds == 1, :, :20] += 3
    patients = [f"p{number}" for number in range(48)]
    settings = TrainingSettings(batch_size=8, learning_rate=1e-3)
    held = np.array([patient in tuning_patients(patients) for patient in patients])
    assert 2 <= held.sum() <= 24

    def tuned(labels: npt.NDArray[np.int64], epochs: int) -> tuple[Tail, list[Epoch]]:
        chosen = replace(settings, epochs=epochs)
        return fine_tune(
            activations.astype(np.float16), [labels.astype(np.int32)], patients, extractor, chosen, progress=False
        )

    state = torch.get_rng_state()
    _, epochs = tuned(kinds, 10)
    assert torch.equal(state, torch.get_rng_state())
    assert max(epoch.holdout_accuracy or 0 for epoch in epochs) >= 0.8
    one, other = (tuned(labels, 1) for labels in (kinds, np.where(held, 1 - kinds, kinds)))
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1][0].holdout_loss != other[1][0].holdout_loss
