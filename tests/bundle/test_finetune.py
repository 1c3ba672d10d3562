"""Training on from weights: what is taken over, what begins anew, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scripts.anchors import ExactAnchorGenerator
from scripts.checkpoint import facts, save_model
from scripts.contract import make
from scripts.detector import LesionDetector
from scripts.errors import BundleError
from scripts.finetune import started
from scripts.network import LesionNet
from tiny import make_hospital, options, run

from scripts import checkpoint

CATEGORIES = ["lung", "liver", "mixed"]


def network(classes: int, seed: int, channels: int = 32, dense: bool = False) -> LesionNet:
    torch.manual_seed(seed)
    made = LesionNet(classes, 1, channels=channels, convolutions=1, pretrained=False, dense=dense).eval()
    for parameter in made.classification_head.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_model(path, network(3, 0), make(1, [[-175, 275]] * 3, 64), CATEGORIES, [[8.0], [16.0], [32.0], [64.0]])
    return path


def logits(net: LesionNet) -> list[torch.Tensor]:
    with torch.no_grad():
        return net(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))[net.cls_key]


def test_with_the_same_categories_the_network_says_the_same(weights: Path) -> None:
    ours: LesionNet = started(network(3, 1, dense=True), weights, CATEGORIES)  # its dense head is not in the file
    for one, other in zip(logits(ours), logits(network(3, 0)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("categories", [["lesion"], ["mixed", "lung", "liver"], list("abcde")])
def test_other_categories_begin_as_the_mean_of_the_old(weights: Path, categories: list[str]) -> None:
    ours: LesionNet = started(network(len(categories), 1), weights, categories)
    for one, other in zip(logits(ours), logits(network(3, 0)), strict=True):
        mean = other.mean(1, keepdim=True).expand_as(one)  # one anchor a location: the channels are the categories
        torch.testing.assert_close(one, mean)


def test_categories_of_every_anchor_are_averaged_by_themselves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = LesionNet(3, 2, channels=32, convolutions=1, pretrained=False).eval()
    save_model(tmp_path / "model.pt", old, make(1, [[-175, 275]] * 3, 64), CATEGORIES, [[8.0, 9.0]] * 4)
    new = started(
        LesionNet(2, 2, channels=32, convolutions=1, pretrained=False).eval(), tmp_path / "model.pt", ["a", "b"]
    )
    generator = ExactAnchorGenerator([[8.0, 9.0]] * 4)
    detector = {net: LesionDetector(net, generator) for net in (old, new)}
    expected, found = (detector[net]._reshape_maps(logits(net)) for net in (old, new))
    torch.testing.assert_close(found, expected.mean(-1, keepdim=True).expand_as(found))


def test_another_shape_of_network_is_refused(weights: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.pt: does not fit the network"):
        started(network(3, 0, channels=64), weights, CATEGORIES)


def test_a_finetuned_bundle_keeps_contract_and_anchors_and_starts_better(tmp_path: Path) -> None:
    hospital, first, second = make_hospital(tmp_path / "hospital"), tmp_path / "first", tmp_path / "second"
    run("train", **options(hospital, first, max_epochs=4, windows_hu="[[-175,275],[0,255]]", single_class=True))
    given = options(hospital, second, max_epochs=1)
    for name in ("channels", "convolutions", "size", "slices"):
        given.pop(name, None)
    run("train", "finetune", start_from=first / "model.pt", **given)
    before, after = facts(first / "model.pt"), facts(second / "model.pt")
    for name in ("contract", "anchor_sizes", "channels", "convolutions", "folded"):
        assert after[name] == before[name], name
    assert (before["categories"], after["categories"]) == (["lesion"], ["small", "large"])
    state = [checkpoint.read(home / "training_state.pt") for home in (first, second)]
    assert state[1]["fingerprint"] != state[0]["fingerprint"]
    # One epoch from ImageNet's body alone finds nothing here yet.
    assert state[1]["best"] > 0.5 * state[0]["best"] > 0
