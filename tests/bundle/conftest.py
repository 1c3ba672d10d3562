"""The bundle's own modules are imported as ``scripts.xxx``: its root comes first on the path.

These tests run in a process of their own, from the bundle's root, since the checkout has another ``scripts`` folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BUNDLE_ROOT = Path(__file__).resolve().parents[2] / "bundles" / "universal_lesion_ct_detection"
sys.path.insert(0, str(BUNDLE_ROOT))
sys.path.insert(1, str(Path(__file__).resolve().parent))  # what the test files share


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A `model.pt` of a few numbers, with the threshold of training."""
    from scripts import checkpoint

    path = tmp_path / "model.pt"
    content = {
        "model": {"classification_head.output.weight": torch.zeros(1, 8, 1, 1), "x": torch.arange(3.0)},
        "contract": {}, "anchor_sizes": [[8.0]], "categories": ["lesion"],
        "operating_point": {"score": 0.31, "fp_per_image": "1"},
    }  # fmt: skip
    checkpoint.save(path, content)
    return path
