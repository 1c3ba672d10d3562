"""Lesions without a mark: the remedies in a training that is resumed, and in one of two processes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts.checkpoint import read, save
from scripts.detector import LesionDetector
from scripts.training import TrainStep, average_of, warmup_cosine
from scripts.unmarked import MarkedScores, make
from tiny import BUNDLE_ROOT
from torch import Tensor
from toy_detector import MARK, detector_of

pytestmark = pytest.mark.filterwarnings("ignore")


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
import json
from pathlib import Path
import torch
from ignite import distributed as idist
from toy_detector import MARK, detector_of, target
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
# A file each: two processes that print long lines into one pipe tear each other's.
Path(f"{rank}.json").write_text(json.dumps([marked.histogram.tolist(), float(remedy.marked.histogram.sum())]))
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
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [alone.histogram.tolist(), 1.0]
