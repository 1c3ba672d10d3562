"""Space, clustering, stability and the categoriser's file, on points with known answers; the network on photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import timm
import torch
from safetensors.numpy import load_file, save_file
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.datasets import make_blobs, make_moons
from sklearn.metrics import adjusted_rand_score

from data_prep.categorize import backbone
from data_prep.categorize.backbone import FeatureExtractor, imagenet_network, pick_device
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.clustering import METHODS, fit_clustering
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.fit import fit_categorizer
from data_prep.categorize.space import BlockWeights, FeatureSpace, positions
from data_prep.categorize.stability import Stability, choose, stability_curve
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion

WIDTH = 24


def some_features(count: int = 80, seed: int = 0) -> tuple[npt.NDArray[np.float16], list[int]]:
    """(N, 3, WIDTH) features of four kinds."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 3, (4, 3, WIDTH))
    kinds = [number % 4 for number in range(count)]
    return (centres[kinds] + generator.normal(0, 1, (count, 3, WIDTH))).astype(np.float16), kinds


def some_lesions(count: int, *, located: bool = True) -> list[Lesion]:
    generator = np.random.default_rng(1)
    place = generator.random((count, 3))
    return [
        Lesion(
            lesion_id=str(number),
            bookmark_ids=(),
            source="csv",
            patient_id=f"p{number // 2}",
            norm_x=float(place[number, 0]) if located else None,
            norm_y=float(place[number, 1]) if located else None,
            norm_z=float(place[number, 2]) if located else None,
        )
        for number in range(count)
    ]


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("photograph", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967, 968})])
def test_the_weights_know_a_cat_and_a_cup_of_coffee(photograph: str, classes: set[int]) -> None:
    """ImageNet's tabby, tiger and Egyptian cat; espresso and cup: a wrong mapping of one tensor spoils this."""
    image = torch.from_numpy(getattr(skimage.data, photograph)()).permute(2, 0, 1)[None].float() / 255
    side = min(image.shape[2:])
    top, left = ((image.shape[axis] - side) // 2 for axis in (2, 3))
    square = image[:, :, top : top + side, left : left + side]
    square = torch.nn.functional.interpolate(square, (224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        best = int(imagenet_network()((square - 0.5) / 0.5).argmax())
    assert best in classes


def test_features_are_the_pooled_input_of_the_classifier() -> None:
    crops = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    extractor = FeatureExtractor("cpu")
    together = extractor(crops)
    assert together.shape == (5, FeatureExtractor.width)
    alone = np.concatenate([extractor(crop[None]) for crop in crops])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    whole = imagenet_network()
    with torch.inference_mode():
        logits = whole((crops - 0.5) / 0.5).numpy()
    classifier = whole.get_classifier()  # type: ignore[operator]
    expected = together @ classifier.weight.detach().numpy().T + classifier.bias.detach().numpy()
    np.testing.assert_allclose(expected, logits, atol=1e-3)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    torch.save(state, tmp_path / "other.pth")
    monkeypatch.setattr(backbone, "weights_path", lambda: tmp_path / "other.pth")
    with pytest.raises(DataPrepError, match="do not fit"):
        imagenet_network()
    (tmp_path / "other.pth").write_bytes(b"nonsense")
    with pytest.raises(DataPrepError, match="cannot be read"):
        imagenet_network()
    torch.save({"code": Path}, tmp_path / "other.pth")  # a pickle that names a callable
    with pytest.raises(DataPrepError, match="cannot be read"):
        imagenet_network()


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None).type == "cpu"
    with pytest.raises(DataPrepError, match="no usable GPU"):
        pick_device("cuda")
    with pytest.raises(DataPrepError, match="not a device"):
        pick_device("toaster")


# --- the space -----------------------------------------------------------------------------------------------------


def test_blocks_have_length_one_times_their_weight() -> None:
    features, _ = some_features()
    place = positions(some_lesions(80))
    weights = BlockWeights(lesion=0.5, near=1.0, far=2.0, position=3.0, components=6)
    X = FeatureSpace.fit(features, place, weights).transform(features, place)
    assert X.shape == (80, 3 * 6 + 3)
    for block, weight in enumerate((0.5, 1.0, 2.0)):
        np.testing.assert_allclose(np.linalg.norm(X[:, 6 * block : 6 * block + 6], axis=1), weight)
    assert np.mean(np.sum(X[:, 18:] ** 2, axis=1)) == pytest.approx(9.0)


def test_a_missing_position_is_the_mean_one_and_does_not_count_where_many_are_missing() -> None:
    features, _ = some_features()
    place = positions(some_lesions(80))
    place[7] = np.nan
    X = FeatureSpace.fit(features, place, BlockWeights(components=6)).transform(features, place)
    np.testing.assert_array_equal(X[7, 18:], 0)
    place[:40] = np.nan
    space = FeatureSpace.fit(features, place, BlockWeights(components=6))
    assert not space.uses_position
    assert space.transform(features, place).shape == (80, 18)


def test_half_a_position_is_none() -> None:
    row = positions([Lesion(lesion_id="a", bookmark_ids=(), source="csv", norm_x=0.5, norm_z=0.5)])
    assert np.isnan(row).all()


@pytest.mark.parametrize("bad", [{"lesion": -1.0}, {"lesion": 0, "near": 0, "far": 0}, {"components": 0}])
def test_weights_refuse_nonsense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        BlockWeights(**bad)  # type: ignore[arg-type]


# --- clustering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_blobs_are_found_ordered_by_size_and_kept_by_assign(method: str) -> None:
    X, truth = make_blobs([70, 40, 55, 90], n_features=6, cluster_std=0.6, center_box=(-8, 8), random_state=3)
    clustering, labels = fit_clustering(X, 4, method=method, seed=0)
    assert adjusted_rand_score(truth, labels) == pytest.approx(1.0)
    assert np.bincount(labels).tolist() == [90, 70, 55, 40]
    np.testing.assert_array_equal(clustering.assign(X), labels)
    np.testing.assert_allclose(clustering.distance(X, labels), np.linalg.norm(X - clustering.centroids[labels], axis=1))
    again, _ = fit_clustering(X, 4, method=method, seed=0)
    np.testing.assert_array_equal(again.centroids, clustering.centroids)


def test_k_means_assigns_as_scikit_learn_does() -> None:
    X = np.random.default_rng(0).normal(size=(300, 5))
    clustering, labels = fit_clustering(X, 5, seed=4)
    model = KMeans(5, n_init=10, random_state=4).fit(X)
    assert adjusted_rand_score(model.labels_, labels) == pytest.approx(1.0)
    new = np.random.default_rng(1).normal(size=(100, 5))
    assert adjusted_rand_score(model.predict(new), clustering.assign(new)) == pytest.approx(1.0)


def test_spectral_follows_shapes_that_k_means_cuts() -> None:
    X, truth = make_moons(400, noise=0.05, random_state=0)
    scores = {}
    for method in METHODS:
        clustering, labels = fit_clustering(X[:300], 2, method=method, seed=0)
        np.testing.assert_array_equal(clustering.assign(X[:300]), labels)
        scores[method] = adjusted_rand_score(truth[300:], clustering.assign(X[300:]))
    assert scores["spectral"] > 0.95 > 0.6 > scores["k-means"]


@pytest.mark.parametrize("count", [300, 900])
def test_spectral_cuts_as_scikit_learn_does(count: int) -> None:
    """Overlapping blobs, by all eigenvectors (300) and by Lanczos (900)."""
    X, _ = make_blobs(count, n_features=4, centers=4, cluster_std=2.0, center_box=(-6, 6), random_state=1)
    oracle = SpectralClustering(4, affinity="nearest_neighbors", n_neighbors=20, random_state=0).fit_predict(X)
    assert adjusted_rand_score(oracle, fit_clustering(X, 4, method="spectral")[1]) > 0.98


def test_too_few_different_lesions_are_refused() -> None:
    with pytest.raises(DataPrepError, match="2 different lesions cannot make 3"):
        fit_clustering(np.repeat(np.eye(2), 10, axis=0), 3)
    with pytest.raises(DataPrepError, match="unknown clustering"):
        fit_clustering(np.eye(4), 2, method="magic")


# --- how many ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_stability_finds_the_number_of_blobs(method: str) -> None:
    X, _ = make_blobs(160, n_features=8, centers=5, cluster_std=1.0, center_box=(-10, 10), random_state=2)
    patients = [f"p{number // 2}" for number in range(len(X))]
    curve = stability_curve(X, patients, method=method, splits=3, low=3, high=7, progress=False)
    assert [point.categories for point in curve] == [3, 4, 5, 6, 7]
    assert choose(curve) == 5
    assert curve[2].agreement > 0.98
    assert curve == stability_curve(X, patients, method=method, splits=3, low=3, high=7, progress=False)


def test_choose_takes_the_largest_within_one_standard_error() -> None:
    curve = [Stability(3, 0.90, 0.02), Stability(4, 0.91, 0.03), Stability(5, 0.885, 0.01), Stability(6, 0.87, 0.09)]
    assert choose(curve) == 5


def test_too_few_patients_cannot_choose() -> None:
    with pytest.raises(DataPrepError, match="3 patients are too few"):
        stability_curve(np.random.default_rng(0).normal(size=(60, 3)), ["a", "b", "c"] * 20, progress=False)


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[("k-means", True), ("spectral", False)], ids=["k-means", "spectral-no-position"])
def fitted(request: pytest.FixtureRequest) -> Categorizer:
    method, located = request.param
    features, _ = some_features()
    lesions = some_lesions(80, located=located)
    patients = [lesion.patient_id or "" for lesion in lesions]
    settings = CropSettings()
    return fit_categorizer(lesions, features, 4, patients=patients, crops=settings, network="a network", method=method)[
        0
    ]


def test_written_and_read_it_labels_the_same(fitted: Categorizer, tmp_path: Path) -> None:
    features, kinds = some_features()
    lesions = some_lesions(80, located=fitted.space.uses_position)
    path = tmp_path / "categorizer.safetensors"
    fitted.save(path)
    read = Categorizer.load(path)
    assert (read.names, read.crops, read.network, read.fitted_on) == (
        ("category-0", "category-1", "category-2", "category-3"),
        fitted.crops,
        "a network",
        {"lesions": 80, "patients": 40, "seed": 0},
    )
    for one, other in zip(
        fitted.assign(features, positions(lesions)), read.assign(features, positions(lesions)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert adjusted_rand_score(kinds, read.assign(features, positions(lesions))[0]) == pytest.approx(1.0)
    new, new_kinds = some_features(seed=8)
    assert adjusted_rand_score(new_kinds, read.assign(new, positions(lesions))[0]) == pytest.approx(1.0)
    read.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_no_lesions_get_no_labels(fitted: Categorizer) -> None:
    labels, distances = fitted.assign(np.empty((0, 3, WIDTH), np.float16), np.empty((0, 3)))
    assert labels.shape == distances.shape == (0,)


def test_damaged_files_are_refused(fitted: Categorizer, tmp_path: Path) -> None:
    path = tmp_path / "categorizer.safetensors"
    fitted.save(path)
    good, arrays = path.read_bytes(), load_file(path)
    header = json.loads(json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]["categorizer"])

    def refuse(match: str = "damaged") -> None:
        with pytest.raises(DataPrepError, match=match):
            Categorizer.load(path)

    def write(header: object, arrays: dict[str, npt.NDArray[np.float64]]) -> None:
        save_file(arrays, path, metadata={"categorizer": json.dumps(header)})

    for content in (b"", b"PK\x03\x04", good[: len(good) // 2], b"\xff" * 8 + good[8:], good[:8] + b"[" * 5000):
        path.write_bytes(content)
        refuse()
    write(header, {name: array for name, array in arrays.items() if name != "centroids"})
    refuse()
    write(header, {**arrays, "centroids": arrays["centroids"][:, 1:]})
    refuse()
    write(header, {**arrays, "mean": arrays["mean"] * np.nan})
    refuse()
    for key, value in (("kind", "x"), ("names", []), ("weights", {"lesion": "1"}), ("crops", {"side_px": 10**9})):
        write({**header, key: value}, arrays)
        refuse()
    write([], arrays)
    refuse()
    write({**header, "schema_version": 1}, arrays)
    refuse("version 1")
    path.unlink()
    refuse("no such categoriser")
