"""Lesion copy-paste: what is pasted lies where its box says, on tissue like its own, and nothing else changes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose
from scripts.contract import make
from scripts.copy_paste import CutLesions, LesionPool, RandPasteLesion, cut, transforms
from scripts.datalist import section
from scripts.transforms import ApplyContractd, LoadSlicesd, RandAugmentLesiond
from tiny import BUNDLE_ROOT, make_hospital, options
from torchvision.ops import box_iou

SIZE, CONTRACT = 128, make(3, [[-175, 275], [-1350, 150]], 128)
BODY = (24, 104)  # along both axes; air around it


def slice_of(box: list[float] | None, number: int, label: int = 0, tissue: int = 100) -> dict[str, Any]:
    """What the preprocessing makes: a body in air, in it a bright ellipse with a ramp over its channels."""
    image = np.zeros((6, SIZE, SIZE), dtype=np.uint8)
    image[:, BODY[0] : BODY[1], BODY[0] : BODY[1]] = tissue
    boxes = torch.tensor([box] if box else []).reshape(-1, 4)
    if box:
        x, y = np.mgrid[:SIZE, :SIZE] + 0.5
        middle, half = [(box[i] + box[i + 2]) / 2 for i in (0, 1)], [(box[i + 2] - box[i]) / 2 - 5.5 for i in (0, 1)]
        inside = ((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2 <= 1
        for channel in range(6):
            image[channel][inside] = 200 + 5 * channel
    return {
        "image": torch.from_numpy(image), "box": boxes, "stored_box": boxes.tolist(),
        "label": torch.full((len(boxes),), label), "recist_px": torch.full((len(boxes), 4, 2), torch.nan),
        "resize_factor": torch.ones(4), "image_path": f"s/{number:03d}.png",
    }  # fmt: skip


def pool_of(items: list[dict[str, Any]], memory_mib: float = 256) -> LesionPool:
    data = [
        {"image": [i["image_path"]] * 3, "box": i["box"].tolist(), "label": i["label"].tolist(), "number": n}
        for n, i in enumerate(items)
    ]
    return LesionPool(data, [lambda entry: items[entry["number"]]], memory_mib)


DONOR = [30.0, 60.0, 62.0, 81.0]  # off-centre and not square


def test_a_pasted_lesion_lies_where_its_box_says() -> None:
    donor, target = slice_of(DONOR, 1), slice_of(None, 2)
    paste = RandPasteLesion(1.0, pool_of([donor, target]), CONTRACT).set_random_state(seed=0)
    pasted = 0
    for _ in range(20):
        out = paste(target)
        if not len(out["box"]):
            continue
        pasted += 1
        assert out["image"].dtype == torch.uint8
        assert out["image"].shape == target["image"].shape
        box = out["box"][0]
        torch.testing.assert_close(box[2:] - box[:2], torch.tensor([32.0, 21.0]))
        for channel in range(6):
            bright = torch.nonzero(out["image"][channel] > 150)
            found = torch.cat([bright.amin(0), bright.amax(0) + 1]).float()
            torch.testing.assert_close(found, box + torch.tensor([5.5, 5.5, -5.5, -5.5]), atol=1.01, rtol=0)
            middle = ((box[:2] + box[2:]) / 2).int()
            assert int(out["image"][channel, middle[0], middle[1]]) == 200 + 5 * channel  # every channel its own
        changed = torch.nonzero((out["image"] != target["image"]).any(0))
        assert (changed.amin(0) >= box[:2].floor()).all()
        assert (changed.amax(0) < box[2:].ceil()).all()
        assert (box >= BODY[0]).all()
        assert (box <= BODY[1]).all()
        assert int(out["image"][:, BODY[0] : BODY[1], BODY[0] : BODY[1]].min()) >= 100  # no dark seam
    assert pasted >= 15
    assert len(target["box"]) == 0
    assert int(target["image"].max()) == 100  # the cached slice is not changed


def test_diameters_go_along() -> None:
    donor, target = slice_of(DONOR, 1), slice_of([70.0, 30.0, 95.0, 55.0], 2)
    ends = torch.tensor([[[35.5, 70.5], [56.5, 70.5], [46, 65.5], [46, 75.5]]])
    donor["recist_px"] = ends
    out = RandPasteLesion(1.0, pool_of([donor, target]), CONTRACT).set_random_state(seed=1)(target)
    assert len(out["box"]) == len(out["label"]) == len(out["recist_px"]) == 2
    assert out["recist_px"][0].isnan().all()
    offset = out["box"][1, :2] - donor["box"][0, :2]
    torch.testing.assert_close(out["recist_px"][1], ends[0] + offset)


def test_oblique_diameters_bring_all_of_their_lesion() -> None:
    # A circle of radius 24 with diameters at 45 degrees: it reaches 1.5 px beyond its own box.
    item = slice_of(None, 1)
    x, y = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    item["image"][:, (x - 60).square() + (y - 64).square() <= 24**2] = 200
    r = 24 / 2**0.5
    item["recist_px"] = torch.tensor([[[60 - r, 64 - r], [60 + r, 64 + r], [60 - r, 64 + r], [60 + r, 64 - r]]])
    item["box"] = torch.tensor([[60 - r - 5.5, 64 - r - 5.5, 60 + r + 5.5, 64 + r + 5.5]])
    item["label"] = torch.tensor([0])
    lesion = cut(item, 0)
    assert lesion is not None
    assert lesion.alpha.shape == lesion.pixels.shape[1:]
    assert (lesion.alpha[lesion.pixels[0] > 150] > 0.7).all()
    edge = np.concatenate([lesion.alpha[0], lesion.alpha[-1], lesion.alpha[:, 0], lesion.alpha[:, -1]])
    assert edge.max() == 0
    assert float(lesion.alpha.sum()) > np.pi * 24**2


def test_nothing_is_pasted_over_a_mark_or_outside_the_body() -> None:
    items = [slice_of(DONOR, 1), slice_of([40.0, 28.0, 100.0, 70.0], 2)]
    paste = RandPasteLesion(1.0, pool_of(items), CONTRACT).set_random_state(seed=0)
    counts = []
    for _ in range(40):
        out = paste(items[1])
        counts.append(len(out["box"]))
        if len(out["box"]) == 2:
            assert float(box_iou(out["box"][:1], out["box"][1:])) == 0
            assert (out["box"][1] >= BODY[0]).all()
            assert (out["box"][1] <= BODY[1]).all()
    assert counts.count(2) > 10


def test_lung_lesions_go_into_lung_and_not_into_air() -> None:
    def with_lung(box: list[float] | None, number: int) -> dict[str, Any]:
        item = slice_of(box, number)
        lung = item["image"][:, 34:94, 34:94]
        lung[lung == 100] = 0
        return item

    target = with_lung(None, 2)
    paste = RandPasteLesion(1.0, pool_of([with_lung([45.0, 50.0, 70.0, 72.0], 1), target]), CONTRACT)
    paste.set_random_state(seed=0)
    boxes = torch.cat([paste(target)["box"] for _ in range(60)])
    assert len(boxes) > 30
    assert (boxes >= BODY[0]).all()
    assert (boxes <= BODY[1]).all()
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (middles > 34).all()
    assert (middles < 94).all()


def test_tissue_of_another_intensity_gets_nothing() -> None:
    items = [slice_of(DONOR, 1, tissue=100), slice_of(None, 2, tissue=130)]
    paste = RandPasteLesion(1.0, pool_of(items), CONTRACT).set_random_state(seed=0)
    assert all(len(paste(items[1])["box"]) == 0 for _ in range(10))


def test_lesions_come_from_other_slices_and_of_the_same_category_where_there_is_one() -> None:
    items = [slice_of(DONOR, n, label) for n, label in enumerate([0, 0, 1, 1, 2])]
    pool = pool_of(items)
    assert pool.candidates("s/000.png", torch.tensor([0])).tolist() == [1]
    assert pool.candidates("s/002.png", torch.tensor([1, 2])).tolist() == [3, 4]
    assert pool.candidates("s/004.png", torch.tensor([2])).tolist() == [0, 1, 2, 3]  # no other of its category
    assert pool.candidates("elsewhere", torch.tensor([], dtype=torch.long)).tolist() == [0, 1, 2, 3, 4]
    assert len(pool_of(items[:1]).candidates("s/000.png", torch.tensor([0]))) == 0


def test_a_lesion_at_the_border_of_its_slice_is_not_pasted() -> None:
    items = [slice_of([-3.0, 60.0, 20.0, 81.0], 1), slice_of(None, 2)]
    paste = RandPasteLesion(1.0, pool_of(items), CONTRACT).set_random_state(seed=0)
    assert pool_of(items).lesion(0) is None
    assert torch.equal(paste(items[1])["image"], items[1]["image"])


def test_without_probability_nothing_happens_at_all() -> None:
    items = [slice_of(DONOR, 1), slice_of(None, 2)]
    assert transforms(0.0, [], [], CONTRACT) == []
    never = RandPasteLesion(0.0, pool_of(items), CONTRACT).set_random_state(seed=0)
    out = never(items[1])
    assert all(out[key] is items[1][key] for key in items[1])
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="copy_paste"):
            transforms(bad, [], [], CONTRACT)


def test_it_is_repeatable_whatever_is_kept_in_memory() -> None:
    items = [slice_of([30.0 + 3 * n, 60, 60 + 3 * n, 82], n) for n in range(6)]
    runs = []
    for memory_mib in (256.0, 0.0, 0.02):
        pool = pool_of(items, memory_mib)
        paste = RandPasteLesion(0.5, pool, CONTRACT).set_random_state(seed=3)
        runs.append([paste(item) for item in items for _ in range(4)])
        used = sum(lesion.pixels.nbytes + lesion.alpha.nbytes for lesion in pool.kept.values() if lesion is not None)
        assert used <= memory_mib * 2**20
    for first, second, third in zip(*runs, strict=True):
        for other in (second, third):
            assert torch.equal(first["image"], other["image"])
            assert torch.equal(first["box"], other["box"])
    counts = [len(out["box"]) for out in runs[0]]
    assert {1, 2} == set(counts)


def test_in_a_cached_dataset_nothing_is_read_twice(tmp_path: Path) -> None:
    datalist = make_hospital(tmp_path)
    data = section(datalist, "training", dataset_dir=tmp_path, training=True)
    contract = make(3, [[-175, 275]], 96)
    preprocessing = [LoadSlicesd(["image"], tmp_path, 3), ApplyContractd(["image"], contract)]
    added = transforms(1.0, data, preprocessing, contract)
    augment = RandAugmentLesiond(["image"], rotation=10)
    assert isinstance(added[0], CutLesions)
    pool = added[0].pool
    chain = Compose([*preprocessing, *added, augment])
    cached = CacheDataset(data, chain, num_workers=2, copy_cache=False, progress=False)
    assert len(pool.kept) == len(data)
    before = [item["image"].clone() for item in (cached._cache)]

    def run(dataset: Any) -> list[dict[str, Any]]:
        chain.set_random_state(seed=7)
        return [dataset[index] for index in range(len(data))]

    first = run(cached)
    assert sum(len(item["box"]) for item in first) > 1.5 * len(data)
    assert all(item["image"].dtype == torch.float32 and float(item["image"].min()) >= 0 for item in first)
    assert all(len(i["box"]) == len(i["label"]) == len(i["recist_px"]) for i in first)
    assert all(torch.equal(a, item["image"]) for a, item in zip(before, cached._cache, strict=True))
    pool.kept.clear()  # read anew, as without a cache
    for ours, other in zip(first, run(Dataset(data, chain)), strict=True):
        assert torch.equal(ours["image"], other["image"])
        assert torch.equal(ours["box"], other["box"])
    assert len(pickle.dumps(chain))  # for workers that are started anew


def test_the_config_wires_both_options_and_keeps_their_trainings_apart(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path / "hospital", patients=10)
    fingerprints = set()
    for dense_weight, copy_paste in ((0.0, 0.0), (0.5, 0.0), (0.25, 0.0), (0.0, 0.5), (0.0, 0.25)):
        parser = ConfigParser()
        parser.read_config(str(BUNDLE_ROOT / "configs" / "train.yaml"))
        more = {"bundle_root": str(BUNDLE_ROOT), "pretrained": False, "dense_weight": dense_weight}
        given = options(hospital, tmp_path / "out", copy_paste=copy_paste, **more)
        parser.update({k: str(v) if isinstance(v, Path) else v for k, v in given.items()})
        fingerprints.add(parser.get_parsed_content("fingerprint"))
        params = parser.get_parsed_content("params")
        assert (params["dense_weight"], params["copy_paste"]) == (dense_weight, copy_paste)
        added = parser.get_parsed_content("train#augmentation_transforms")[:-1]
        assert [type(t) for t in added] == ([CutLesions, RandPasteLesion] if copy_paste else [])
        assert all(t.prob == copy_paste for t in added[1:])
        detector = parser.get_parsed_content("detector")
        assert detector.dense_weight == dense_weight
        assert (detector.network.dense_head is not None) == (dense_weight > 0)
    assert len(fingerprints) == 5
