"""Averaged weights, and the threshold and ways of looking that are kept with weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts.average_weights import average, main
from scripts.contract import make
from scripts.errors import BundleError
from scripts.network import LesionNet
from tiny import SIZE, here, make_hospital

from scripts import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
ANCHORS = [[16.0], [24.0], [32.0], [48.0]]


def write(path: Path, seed: int, **facts: Any) -> LesionNet:
    torch.manual_seed(seed)
    network = LesionNet(num_classes=2, num_anchors=1, pretrained=False, channels=32)
    point = {"score": 0.4, "fp_per_image": "1"}
    facts = {"operating_point": point, "operating_points": {"0.2": {"score": 0.1}}, **facts}
    checkpoint.save_model(path, network, make(3, [[-175, 275]], SIZE), ["small", "large"], ANCHORS, **facts)
    return network


def test_the_average_is_pytorchs_of_the_same_networks(tmp_path: Path) -> None:
    networks = [write(tmp_path / f"{seed}.pt", seed) for seed in range(3)]
    # The default of AveragedModel is the running mean.
    averaged = torch.optim.swa_utils.AveragedModel(networks[0], use_buffers=True)
    for network in networks:
        averaged.update_parameters(network)
    assert main([str(tmp_path / "new" / "model.pt"), *(str(tmp_path / f"{seed}.pt") for seed in range(3))]) == 0
    content = checkpoint.read(tmp_path / "new" / "model.pt")
    assert content["model"].keys() == networks[0].state_dict().keys()
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(content["model"][name], tensor, msg=name)
    found = checkpoint.facts(tmp_path / "new" / "model.pt")
    assert (found["operating_score"], found["operating_points"]) == (0.4, {})
    assert (found["categories"], found["anchor_sizes"]) == (["small", "large"], ANCHORS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": ["small", "other"]}, "categories"),
        ({"anchor_sizes": [[8.0]] * 4}, "anchor_sizes"),
        ({"contract": make(3, [[0, 255]], SIZE).to_dict()}, "contract"),
        ({"model": {"weight": torch.zeros(2)}}, "another shape"),
        ({"only": 1}, "not weights of this bundle"),
    ],
)
def test_weights_of_another_kind_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.pt", 0)
    content = {} if "only" in change else checkpoint.read(tmp_path / "a.pt")
    checkpoint.save(tmp_path / "b.pt", content | change)
    words = [str(tmp_path / name) for name in ("new.pt", "a.pt", "b.pt")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert f"{tmp_path / 'b.pt'}: " in said
    assert message in said
    assert not (tmp_path / "new.pt").exists()


def test_neither_one_file_nor_an_existing_target_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.pt", 0)
    with pytest.raises(BundleError, match="at least two"):
        average([tmp_path / "a.pt"])
    before = (tmp_path / "a.pt").read_bytes()
    assert main([str(tmp_path / "a.pt")] * 3) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "a.pt").read_bytes() == before


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.pt", 0)
    checkpoint.state_sum(tmp_path / "model.pt")
    write(tmp_path / "model.pt", 1)
    write(tmp_path / "b.pt", 2)
    with pytest.raises(BundleError, match="SHA-256"):
        average([tmp_path / "b.pt", tmp_path / "model.pt"])


def test_threshold_and_looks_are_chosen_anew_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    datalist = make_hospital(tmp_path / "hospital")
    output = tmp_path / "out"
    output.mkdir()
    write(output / "model.pt", 0)
    words = {"datalist": datalist, "dataset_dir": datalist.parent, "output_dir": output, "workers": 0, "bootstrap": 0}
    configs = ("train", "evaluate", "set_threshold")
    here(*configs, device_name="cpu", amp=False, batch_size=3, **words)
    kept = checkpoint.facts(output / "model.pt")
    metrics = json.loads((output / "evaluation" / "tuning" / "metrics.json").read_text())
    assert kept["operating_score"] == metrics["score_at_fp_per_image"]["1"]
    assert kept["operating_points"].keys() == {"0.2"}  # the same looks: it still holds
    capfd.readouterr()
    here(*configs, device_name="cpu", amp=False, batch_size=3, flip_average=True, scale_average=[1.5], **words)
    assert "dropped from it: the threshold of --risk 0.2" in capfd.readouterr().out
    looked = checkpoint.facts(output / "model.pt")
    assert (looked["flip_average"], looked["scale_average"], looked["operating_points"]) == (True, [1.5], {})
    assert looked["operating_score"] != kept["operating_score"]
    # An evaluation now looks that way by itself.
    said = json.loads((output / "evaluation" / "tuning" / "metrics.json").read_text())["average_sensitivity"]
    here("train", "evaluate", device_name="cpu", amp=False, batch_size=3, section="tuning", **words)
    again = json.loads((output / "evaluation" / "tuning" / "metrics.json").read_text())
    assert again["average_sensitivity"] == said
    assert again["score_at_fp_per_image"]["1"] == looked["operating_score"]
