"""Lesions without a mark: what the remedies do to the loss, and their way from the detector to a review and back."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.anchors import ExactAnchorGenerator
from scripts.atss import atss, pad_boxes, pairwise_iou
from scripts.checkpoint import read, save, save_model
from scripts.contract import make as make_contract
from scripts.detector import BOX_WEIGHT, LesionDetector, decode, quality_focal_loss
from scripts.errors import BundleError
from scripts.network import LesionNet
from scripts.training import TrainStep, average_of, warmup_cosine
from scripts.unmarked import (
    FLOOR,
    Complete,
    Ignore,
    MarkedScores,
    Predictions,
    Remedy,
    best_predictions,
    confident_unmarked,
    make,
    positive_unlabelled,
    scores_of_marks,
)
from tiny import BUNDLE_ROOT, SIZE, make_hospital, run
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss

pytestmark = pytest.mark.filterwarnings("ignore")

STEP, EXTENT = 8, 16.0  # a toy detector: anchors of 16 px, 8 px apart, on 64 px
MARK = torch.tensor([[4.0, 4.0, 24.0, 22.0]])
FAR = 53  # the anchor at column 6, row 5: centre (52, 44)


def detector_of(classes: int = 1) -> LesionDetector:
    net = LesionNet(classes, num_anchors=1, pretrained=False, channels=32)
    return LesionDetector(net, ExactAnchorGenerator([[16.0], [24.0], [32.0], [48.0]]), candidates=9).train()


@pytest.fixture(scope="module")
def detector() -> LesionDetector:
    return detector_of()


def grid() -> Tensor:
    centre = torch.arange(8.0) * STEP + STEP / 2
    x, y = torch.meshgrid(centre, centre, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], 1)
    return torch.cat([points - EXTENT / 2, points + EXTENT / 2], 1)


def outputs(batch: int = 1, classes: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, 64, classes, generator=generator) * 0.3 - 4
    return logits.requires_grad_(), torch.randn(batch, 64, 4, generator=generator).mul_(0.1).requires_grad_()


def target(boxes: Tensor = MARK, labels: list[int] | None = None) -> dict[str, Tensor]:
    return {"box": boxes, "label": torch.tensor(labels or [0] * len(boxes), dtype=torch.long)}


def loss_of(detector: LesionDetector, remedy: Remedy | None, logits: Tensor, deltas: Tensor, *targets: Any) -> Any:
    detector.unmarked = remedy
    heads = {"classification": logits, "box_regression": deltas}
    return detector.compute_loss(heads, list(targets), [grid()], [64])


def gradient(losses: dict[str, Tensor], logits: Tensor) -> Tensor:
    return torch.autograd.grad(losses["classification"], logits)[0]


def primed(remedy: Any, score: float) -> Any:
    """The remedy past its warm-up, having seen many marked lesions of one score."""
    remedy.iteration = remedy.warmup + 1
    remedy.marked.update(torch.full((10_000,), score), torch.ones(10_000, dtype=torch.bool))
    return remedy


# --- no remedy -----------------------------------------------------------------------------------------------------


def test_without_a_remedy_the_loss_is_the_published_one(detector: LesionDetector) -> None:
    detector = detector_of(3)
    logits, deltas = outputs(3, 3)
    targets = [target(torch.cat([MARK, MARK + 30]), [2, 0]), target(torch.zeros(0, 4)), target()]
    anchors = grid()
    boxes, real = pad_boxes([t["box"] for t in targets])
    matched, _ = atss(anchors, [64], boxes, real, 9)
    quality = torch.zeros_like(logits)
    regression, weights, count = torch.tensor(0.0), torch.tensor(0.0), 0
    for b in range(3):
        for a in torch.nonzero(matched[b] >= 0).flatten().tolist():
            goal, box = targets[b]["box"][matched[b, a]], decode(deltas[b, a], anchors[a])
            quality[b, a, targets[b]["label"][matched[b, a]]] = pairwise_iou(box.detach(), goal)
            weight = logits.detach()[b, a].max().sigmoid()
            regression, weights, count = (
                regression + weight * generalized_box_iou_loss(box, goal),
                weights + weight,
                count + 1,
            )
    assert count >= 3
    for remedy in (None, Remedy()):
        losses = loss_of(detector, remedy, logits, deltas, *targets)
        torch.testing.assert_close(losses["classification"], quality_focal_loss(logits, quality).sum() / count)
        torch.testing.assert_close(losses["box_regression"], BOX_WEIGHT * regression / weights.clamp(min=1))


def test_the_remedy_none_changes_no_bit(detector: LesionDetector) -> None:
    logits, deltas = outputs(2)
    found = [loss_of(detector, r, logits, deltas, target(), target(torch.zeros(0, 4))) for r in (None, Remedy())]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert torch.equal(*(gradient(losses, logits) for losses in found))


def test_unknown_settings_are_refused() -> None:
    shared = {"teacher": torch.nn.Identity(), "steps": 100, "ema_decay": 0.99}
    assert {type(make(kind, **shared)).__name__ for kind in ("none", "ignore", "complete", "pu")} == {
        "Remedy", "Ignore", "Complete", "PositiveUnlabelled",
    }  # fmt: skip
    assert make("complete", **{**shared, "steps": 4}).warmup == 100
    with pytest.raises(BundleError, match="none, ignore, complete, pu"):
        make("maybe", **shared)
    with pytest.raises(BundleError, match="marked_share"):
        make("pu", marked_share=0.0, **shared)


# --- how confident marked lesions are ------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0, 0.99))
def test_quantile_is_that_of_the_scores_to_a_bin(scores: list[float], share: float) -> None:
    marked = MarkedScores(memory=1_000_000)
    marked.update(torch.tensor(scores), torch.ones(len(scores), dtype=torch.bool))
    low, high = (torch.quantile(torch.tensor(scores), share, interpolation=i) for i in ("lower", "higher"))
    assert low - 1.5 / marked.bins <= marked.quantile(share) <= high + 1.5 / marked.bins


def test_old_scores_are_forgotten_and_padding_never_counts() -> None:
    marked = MarkedScores(memory=100)
    assert torch.isinf(marked.quantile(0.5))
    for score in (0.1, 0.8):
        for _ in range(50):
            scores = torch.tensor([[score, 0.99]] * 8)
            marked.update(scores, torch.tensor([[True, False]] * 8))
    assert marked.quantile(0.05) == pytest.approx(0.8, abs=0.01)
    assert marked.quantile(0.95) == pytest.approx(0.8, abs=0.01)
    again = MarkedScores(memory=100)
    again.load_state_dict(marked.state_dict())
    assert torch.equal(again.quantile(0.5), marked.quantile(0.5))


def scattered(count: int = 60) -> Predictions:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(2, count, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + 8 + torch.rand(2, count, 2, generator=generator) * 12], -1)
    scores = torch.rand(2, count, generator=generator).sort(dim=1, descending=True).values
    return Predictions(boxes, scores, torch.zeros(2, count, dtype=torch.long))


def test_scores_of_marks_are_those_of_the_best_hit() -> None:
    found = scattered()
    marks = torch.cat([found.boxes[:, 20:23] + 1, torch.full((2, 1, 4), 500.0)], 1)
    real = torch.tensor([[True, True, False, True], [True, True, True, True]])
    expected = torch.zeros(2, 4)
    for b in range(2):
        for n in range(4):
            hits = box_iou(marks[b, n : n + 1], found.boxes[b])[0] >= 0.5
            if real[b, n] and hits.any():
                expected[b, n] = found.scores[b][hits].max()
    assert (expected[:, :2] > 0).all()
    assert torch.equal(scores_of_marks(found, marks, real), expected)


def test_confident_findings_are_those_of_nms_that_no_mark_explains() -> None:
    found = scattered()
    marks, real = found.boxes[:, :3] + 0.5, torch.tensor([[True, True, True], [True, False, False]])
    missing = confident_unmarked(found, marks, real, torch.tensor(0.3), most=20)
    for b in range(2):
        keep = batched_nms(found.boxes[b], found.scores[b], found.labels[b], 0.5)
        apart = (box_iou(found.boxes[b][keep], marks[b][real[b]]) < 0.3).all(1) & (found.scores[b][keep] >= 0.3)
        expected = keep[apart][:20]
        assert len(expected) > 3
        assert torch.equal(missing.boxes[b][missing.scores[b] > 0], found.boxes[b][expected])
        assert torch.equal(missing.scores[b][missing.scores[b] > 0], found.scores[b][expected])


# --- ignore --------------------------------------------------------------------------------------------------------


def confident(at: int = FAR, logit: float = 1.5) -> tuple[Tensor, Tensor]:
    logits, deltas = outputs()
    with torch.no_grad():
        logits[0, at] = logit
        deltas[0, at] = 0
    return logits, deltas


def test_ignore_leaves_a_confident_place_without_gradient(detector: LesionDetector) -> None:
    logits, deltas = confident()
    remedy = primed(Ignore(warmup=5, quantile=0.5), score=0.6)
    quiet = gradient(loss_of(detector, remedy, logits, deltas, target()), logits)[0, :, 0]
    usual = gradient(loss_of(detector, None, logits, deltas, target()), logits)[0, :, 0]
    centre = (grid()[:, :2] + grid()[:, 2:]) / 2
    inside = ((centre >= grid()[FAR, :2]) & (centre < grid()[FAR, 2:])).all(1)
    assert inside.sum() == 4
    assert usual[FAR] > 0.1
    assert (quiet[inside] == 0).all()
    assert torch.equal(quiet[~inside], usual[~inside])


@pytest.mark.parametrize("why", ["warm-up", "below the marked lesions' scores", "below the floor", "on the mark"])
def test_ignore_punishes_everything_else(detector: LesionDetector, why: str) -> None:
    score = 0.9 if why.startswith("below the marked") else 0.05
    logits, deltas = confident(at=FAR if why != "on the mark" else 9, logit=-1.6 if why == "below the floor" else 1.5)
    assert logits.detach().max().sigmoid() > 0.05
    assert (logits.detach().max().sigmoid() < FLOOR) == (why == "below the floor")
    remedy = primed(Ignore(warmup=5, quantile=0.5), score)
    if why == "warm-up":
        remedy.iteration = 5
    found = gradient(loss_of(detector, remedy, logits, deltas, target()), logits)
    assert torch.equal(found, gradient(loss_of(detector, None, logits, deltas, target()), logits))


# --- complete ------------------------------------------------------------------------------------------------------


class Teacher(torch.nn.Module):
    """Says one thing about every image."""

    def __init__(self, logits: Tensor, deltas: Tensor) -> None:
        super().__init__()
        self.said = logits.detach(), deltas.detach(), grid()

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.said


def test_the_teachers_findings_become_targets_after_the_warm_up() -> None:
    remedy = Complete(warmup=2, quantile=0.5, teacher=Teacher(*confident()))
    remedy.marked.update(torch.full((10_000,), 0.6), torch.ones(10_000, dtype=torch.bool))
    for iteration in (1, 2, 3):
        given_target = target()
        remedy.begin(torch.zeros(1, 3, 64, 64), [given_target])
        assert ("unmarked_box" in given_target) == (iteration == 3)
    (kept,) = torch.nonzero(given_target["unmarked_score"]).flatten().tolist()
    assert torch.equal(given_target["unmarked_box"][kept], grid()[FAR])
    assert given_target["unmarked_score"][kept] == pytest.approx(torch.tensor(1.5).sigmoid().item())
    # A teacher that agrees with the mark alone adds nothing.
    remedy = primed(Complete(warmup=2, quantile=0.5, teacher=Teacher(*confident(at=9))), 0.6)
    remedy.begin(torch.zeros(1, 3, 64, 64), [given_target])
    assert not given_target["unmarked_score"].any()


def test_a_finding_of_score_one_counts_like_a_mark(detector: LesionDetector) -> None:
    logits, deltas = outputs(2)
    found = torch.stack([grid()[FAR] + 1, torch.zeros(4)])  # and padding
    empty = {"unmarked_box": torch.zeros(2, 4), "unmarked_label": torch.zeros(2, dtype=torch.long)}
    completed = {
        "unmarked_box": found,
        "unmarked_label": empty["unmarked_label"],
        "unmarked_score": torch.tensor([1.0, 0]),
    }
    soft = [target() | completed, target() | empty | {"unmarked_score": torch.zeros(2)}]
    hard = [target(torch.cat([MARK, found[:1]])), target()]
    a, b = (loss_of(detector, Remedy(), logits, deltas, *targets) for targets in (soft, hard))
    for key in a:
        torch.testing.assert_close(a[key], b[key])


def test_a_finding_counts_with_its_score(detector: LesionDetector) -> None:
    logits, deltas = outputs()
    nothing = target(torch.zeros(0, 4))
    of = {}
    for score in (0.25, 0.5, 1.0):
        more = {"unmarked_box": grid()[[FAR]] + 1, "unmarked_label": torch.zeros(1, dtype=torch.long)}
        made = nothing | more | {"unmarked_score": torch.tensor([score])}
        of[score] = gradient(loss_of(detector, Remedy(), logits, deltas, made), logits)[0, :, 0]
    drawn = of[1.0] < 0  # the anchors that are told to find it
    positives = int(drawn.sum())
    assert positives >= 1
    for score in (0.25, 0.5):
        factor = positives / max(1.0, positives * score)  # the loss is divided by the weight of all positives
        torch.testing.assert_close(of[score][drawn], of[1.0][drawn] * score * factor)
        torch.testing.assert_close(of[score][~drawn], of[1.0][~drawn] * factor)


# --- positive-unlabelled -------------------------------------------------------------------------------------------


def test_positive_unlabelled_risk_in_closed_form() -> None:
    logits = torch.tensor([[[1.0], [0.0], [0.5]]], requires_grad=True)
    positive = torch.tensor([[[True], [False], [False]]])
    losses = quality_focal_loss(logits, torch.where(positive, 0.8, 0.0))
    torch.testing.assert_close(positive_unlabelled(losses, logits, positive, 1.0), losses.sum())

    def background(x: float) -> Tensor:
        p = torch.tensor(x).sigmoid()
        return -(p**2) * torch.log(1 - p)

    for share in (0.9, 0.5):
        negative = background(0.0) + background(0.5) - (1 - share) / share * background(1.0)
        assert (negative > 0) == (share == 0.9)
        value = positive_unlabelled(losses, logits, positive, share)
        torch.testing.assert_close(value, losses[0, 0, 0] + share * negative.clamp(min=0))
        slope = torch.autograd.grad(value, logits, retain_graph=True)[0][0, :, 0]
        assert slope[0] < 0
        assert (slope[1:] > 0).all() if share == 0.9 else (slope[1:] == 0).all()


# --- in a training -------------------------------------------------------------------------------------------------


def train(kind: str, steps: int, state: Path | None = None, until: Path | None = None) -> dict[str, Tensor]:
    """A training of six steps on random slices, from ``state`` on; what it saves after three goes to ``until``."""
    torch.manual_seed(0)
    detector = detector_of()
    average = average_of(detector.network, decay=0.5)
    teacher = LesionDetector(average.module, detector.anchor_generator)
    # A fresh network is sure of nothing; make its findings confident by its bias.
    with torch.no_grad():
        for net in (detector.network, average.module):
            net.classification_head.output.bias += 4.5
    optimizer = torch.optim.AdamW(detector.network.parameters(), 1e-3)
    remedy = make(kind, teacher=teacher, steps=8, ema_decay=0.5, quantile=0.1)
    scheduler = warmup_cosine(optimizer, 8, 2)
    step = TrainStep(detector, optimizer, scheduler, average, "cpu", amp=False, unmarked=remedy)
    objects = {"net": detector.network, "average": average, "optimizer": optimizer, "scheduler": scheduler, "r": remedy}
    first = 0
    if state is not None:
        content = read(state)
        first = content.pop("step")
        for name, value in content.items():
            objects[name].load_state_dict(value)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(steps, 2, 3, 64, 64, generator=generator)
    engine: Any = type("Engine", (), {"state": type("State", (), {"iteration": 1})})
    for number in range(first, steps):
        step(engine, {"image": images[number], "box": [MARK, MARK + 20], "label": [torch.tensor([0])] * 2})
        if until is not None and number == 2:
            save(until, {"step": 3, **{name: copy.deepcopy(o.state_dict()) for name, o in objects.items()}})
    if kind in ("ignore", "complete"):
        assert remedy.marked.histogram.sum() > 0
    return {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}


@pytest.mark.parametrize("kind", ["ignore", "complete", "pu"])
def test_a_resumed_training_ends_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    whole = train(kind, 6, until=tmp_path / "state.pt")
    resumed = train(kind, 6, state=tmp_path / "state.pt")
    plain = train("none", 6)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert any(not torch.equal(plain[name], tensor) for name, tensor in whole.items())


PROCESS = """
import torch
from ignite import distributed as idist
from test_unmarked import MARK, detector_of, target
from scripts.unmarked import Ignore, MarkedScores
idist.initialize("gloo")
rank = idist.get_rank()
marked = MarkedScores(memory=20)
for number in range(4):
    scores = torch.linspace(0, 1, 12).roll(number)
    marked.update(scores[rank::2], torch.tensor([True] * 6 if rank else [True, False] * 3))
torch.manual_seed(0)
detector = detector_of()
detector.unmarked = remedy = Ignore(warmup=0, quantile=0.1)
parallel = torch.nn.parallel.DistributedDataParallel(detector)
for marks in (MARK, MARK[:0]):  # one process has a mark, then neither
    remedy.begin(None, [])
    sum(parallel(torch.rand(1, 3, 64, 64), [target(marks if rank else MARK[:0])]).values()).backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)
print("histogram", marked.histogram.tolist(), float(remedy.marked.histogram.sum()), flush=True)
idist.finalize()
"""


def test_two_processes_share_the_marked_scores(tmp_path: Path) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    path = os.pathsep.join([str(BUNDLE_ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "process.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    alone = MarkedScores(memory=20)
    for number in range(4):
        scores = torch.linspace(0, 1, 12).roll(number)
        alone.update(torch.cat([scores[0::2], scores[1::2]]), torch.tensor([True, False] * 3 + [True] * 6))
    said = re.findall(r"histogram (\[.*?\] \S+)", done.stdout)
    assert said == [f"{alone.histogram.tolist()} 1.0"] * 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_what_the_cpu_finds_without_waiting_for_the_device() -> None:
    logits, deltas = confident()
    marks, real = pad_boxes([MARK])
    found: list[Tensor] = []
    for device in ("cpu", "cuda"):
        remedy = Ignore(warmup=0, quantile=0.5)
        remedy.iteration = 1
        given_ = [t.detach().to(device) for t in (logits, deltas, grid(), marks, real)]
        remedy.anchor_weight(*given_)  # brings the histogram to the device
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            weight = remedy.anchor_weight(*given_)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(weight.cpu())
    assert (found[0] == 0).any()
    assert torch.equal(*found)


# --- from the detector to a review and back ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def found(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a random detector finds."""
    torch.manual_seed(0)
    output = tmp_path_factory.mktemp("found")
    anchors = [[16.0], [24.0], [32.0], [48.0]]
    network = LesionNet(num_classes=2, num_anchors=1, pretrained=False, channels=32)
    contract = make_contract(3, [[-175, 275]], SIZE)
    point = {"score": 0.0, "fp_per_image": "1"}
    save_model(output / "model.pt", network, contract, ["small", "large"], anchors, operating_point=point)
    words = {"datalist": hospital, "dataset_dir": hospital.parent, "output_dir": output, "workers": 0}
    run("train", "find_unmarked", device_name="cpu", amp=False, batch_size=4, **words)
    return output / "unmarked"


def test_no_finding_overlaps_a_mark_and_the_gallery_shows_each(hospital: Path, found: Path) -> None:
    import cv2

    content = json.loads((found / "detections.json").read_text())
    items = {item["image"][1]: item for item in json.loads(hospital.read_text())["training"]}
    findings = [finding for series in content["series"] for finding in series["findings"]]
    assert len(findings) > 50
    assert {finding["image"] for finding in findings} == set(items)
    for finding in findings:
        marks = torch.tensor(items[finding["image"]]["box"])
        assert box_iou(torch.tensor([finding["box_px"]]), marks).max() < 0.3
        assert finding["slice_index"] == items[finding["image"]]["slice_index"]
    page = (found / "gallery.html").read_text()
    assert sorted(re.findall(r'value="(\w+)"', page)) == sorted(finding["lesion_id"] for finding in findings)
    pictures = re.findall(r'src="(slices/\d+\.jpg)"', page)
    assert len(pictures) == len(items)
    assert all(cv2.imread(str(found / name)) is not None for name in pictures)
    assert not re.search(r"https?://", page)


def test_accepted_findings_train_with_the_marks_and_others_do_not(hospital: Path, found: Path, tmp_path: Path) -> None:
    from data_prep.harvest import harvest
    from data_prep.lesion import Lesion, read_lesions
    from data_prep.review import review
    from data_prep.writers.datalist import write_datalist
    from data_prep.writers.deeplesion import write_dl_info

    images = hospital.parent
    before = {i["image"][1]: i for i in json.loads(hospital.read_text())["training"]}
    marks = []
    for name, item in before.items():
        x0, y0, x1, y1 = item["box"][0]
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        axes = (x0 + 5.5, y, x1 - 5.5, y, x, y0 + 5.5, x, y1 - 5.5)
        marks.append(
            Lesion(
                lesion_id=name, bookmark_ids=(name,), source="dicom-sr", image=name, patient_id=item["patient_id"],
                slice_index=item["slice_index"], rows=SIZE, columns=SIZE, spacing_x_mm=1.0, spacing_y_mm=1.0,
                spacing_z_mm=5.0, x0=x0, y0=y0, x1=x1, y1=y1, recist_px=axes, split="train",
                long_diameter_mm=x1 - x0 - 11, short_diameter_mm=y1 - y0 - 11,
            )
        )  # fmt: skip
    write_dl_info(marks, tmp_path / "DL_info.csv")
    sources = [tmp_path / "DL_info.csv", found / "detections.json"]
    summary = harvest(sources, tmp_path / "H", images=images, progress=False)
    table = tmp_path / "H" / "lesions.parquet"
    lesions = read_lesions(table)
    detected = {lesion.lesion_id: lesion for lesion in lesions if lesion.source == "detector"}
    written = [f for s in json.loads((found / "detections.json").read_text())["series"] for f in s["findings"]]
    assert summary.duplicates == 0
    assert set(detected) == {finding["lesion_id"] for finding in written}
    assert {(lesion.patient_id, lesion.split) for lesion in lesions} == {(f"{n:06d}", "train") for n in range(8)}
    assert all(detected[f["lesion_id"]].score == f["score"] for f in written)
    assert detected[written[0]["lesion_id"]].spacing_z_mm == 5.0

    chosen = [finding for finding in written if finding["image"] in ("000003_01_01/001.png", "000004_01_01/002.png")][
        ::9
    ]
    review(table, accept=[finding["lesion_id"] for finding in chosen])
    write_datalist(read_lesions(table), images, tmp_path / "datalist.json")
    after = json.loads((tmp_path / "datalist.json").read_text())
    for item in after["training"] + after["tuning"]:
        name = item["image"][1]
        accepted = [finding["box_px"] for finding in chosen if finding["image"] == name]
        expected = torch.tensor(sorted([*before[name]["box"], *accepted]))
        torch.testing.assert_close(torch.tensor(sorted(item["box"])), expected, rtol=0, atol=1e-3)
    assert sum(len(i["box"]) for i in after["training"] + after["tuning"]) == len(before) + len(chosen)


def test_slices_without_a_folder_or_number_keep_their_own_identity(tmp_path: Path) -> None:
    import numpy as np
    from scripts.evaluation import write_json
    from scripts.find_unmarked import by_series, findings_of

    from data_prep.readers import detections_json

    slices = []
    for image, index in (("a.png", 3), ("b.png", 3), ("S/c.png", None), ("S/d.png", None)):
        meta = {"slice_index": index, "spacing_mm": [0.5, 0.5, None]}
        box = np.array([[1.0, 2.0, 9.0, 8.0]])
        item = {"image_path": image, "meta": meta, "box_px": box, "score": np.array([0.5]), "class": np.array([0])}
        slices.append(findings_of(item | {"stored_box": [], "spatial_size": (32, 16)}, [0], ["lesion"]))
    write_json(tmp_path / "detections.json", {"schema_version": 1, "series": by_series(slices)})
    marks: list[Any] = list(detections_json.read(tmp_path / "detections.json"))
    assert [mark.image for mark in marks] == ["S/c.png", "S/d.png", "a.png", "b.png"]
    assert len({mark.bookmark_id for mark in marks}) == 4
    assert {(mark.columns, mark.rows, mark.spacing_y_mm, mark.spacing_z_mm) for mark in marks} == {(32, 16, 0.5, None)}


def test_best_predictions_are_the_highest_scores() -> None:
    logits, deltas = outputs(2, 3)
    found = best_predictions(logits, deltas, grid(), count=5)
    for b in range(2):
        scores, labels = logits[b].sigmoid().max(1)
        order = scores.argsort(descending=True)[:5]
        torch.testing.assert_close(found.scores[b], scores[order])
        assert torch.equal(found.labels[b], labels[order])
        torch.testing.assert_close(found.boxes[b], decode(deltas[b][order], grid()[order]))
