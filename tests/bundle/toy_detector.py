"""A toy detector on 64 px: one level of anchors of 16 px, 8 px apart; what its heads say, and one marked lesion."""

from __future__ import annotations

import torch
from scripts.anchors import ExactAnchorGenerator
from scripts.detector import LesionDetector
from scripts.network import LesionNet
from torch import Tensor

STEP, EXTENT = 8, 16.0
MARK = torch.tensor([[4.0, 4.0, 24.0, 22.0]])
FAR = 53  # the anchor at column 6, row 5: centre (52, 44)


def detector_of(classes: int = 1) -> LesionDetector:
    net = LesionNet(classes, num_anchors=1, pretrained=False, channels=32)
    return LesionDetector(net, ExactAnchorGenerator([[16.0], [24.0], [32.0], [48.0]]), candidates=9).train()


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
