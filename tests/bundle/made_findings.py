"""Findings and a model across slices, made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scripts.across_slices import SecondStage

STAGE = SecondStage(-0.5, (1.5, 0.7, -0.9), (-0.4, 0.8), (-2.0, 0.3))


def findings(boxes: Sequence[Sequence[float]], scores: Sequence[float]) -> dict[str, Any]:
    """As :class:`scripts.evaluation.DetectStep` gives them; classes 0 and 1 in turn."""
    return {
        "box_px": np.array(boxes, dtype=np.float64).reshape(-1, 4),
        "score": np.array(scores, dtype=np.float64),
        "class": np.arange(len(scores)) % 2,
    }
