"""The bundle's own modules are imported as ``scripts.xxx``: its root comes first on the path.

These tests run in a process of their own, from the bundle's root, since the checkout has another ``scripts`` folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

BUNDLE_ROOT = Path(__file__).resolve().parents[2] / "bundles" / "universal_lesion_ct_detection"
sys.path.insert(0, str(BUNDLE_ROOT))
sys.path.insert(1, str(Path(__file__).resolve().parent))  # what the test files share
