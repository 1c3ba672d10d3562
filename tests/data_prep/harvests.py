"""Runs of harvest and what they wrote."""

from __future__ import annotations

from pathlib import Path

from data_prep.harvest import HarvestSummary, harvest
from tests.data_prep.files import rows_of, tree

TABLES = ("bookmarks.parquet", "lesions.parquet", "rejected.csv")


def run(*sources: Path, out: Path, images: Path | None = None, workers: int = 1) -> HarvestSummary:
    return harvest(list(sources), out, images=images, workers=workers, progress=False)


def rejected(out: Path) -> list[dict[str, str]]:
    return rows_of(out / "rejected.csv")


def contents(out: Path) -> dict[str, bytes]:
    """Table -> bytes; fails where anything else was left in the folder."""
    assert sorted(path.name for path in out.iterdir()) == sorted(TABLES)
    return tree(out)
