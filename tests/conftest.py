"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data (see docs/testing.md); tests that need it are skipped where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LESION_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"the real sample data is not at {folder}; set LESION_SHARED_DATA")
    return folder
