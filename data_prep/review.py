"""Review states: which lesions a person has accepted or rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.errors import DataPrepError
from data_prep.lesion import read_lesions, write_lesions


def read_ids(path: Path) -> list[str]:
    """Lesion ids, one a line; empty lines and what follows a ``#`` are ignored.

    Raises:
        DataPrepError: the file cannot be read or is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataPrepError(f"{path}: cannot be read; give a text file with one lesion_id a line") from error
    return [text for line in lines if (text := line.split("#", 1)[0].strip())]


def review_states(lesions: Path) -> dict[str, str]:
    """lesion_id -> "accepted" or "rejected", of those that a person has reviewed; empty where there is no such file."""
    try:
        table = pq.read_table(lesions, columns=["lesion_id", "review"], filters=pc.field("review") != "unreviewed")
    except (OSError, pa.ArrowException):
        return {}
    return dict(zip(table["lesion_id"].to_pylist(), table["review"].to_pylist(), strict=True))


def review(lesions: Path, *, accept: Iterable[str] = (), reject: Iterable[str] = ()) -> tuple[int, int]:
    """Set the review state of lesions in ``lesions.parquet``; atomic: all of them or none.

    Args:
        lesions: the file, which is replaced.
        accept: lesion ids; an accepted detection may train.
        reject: lesion ids; a rejected lesion never trains.

    Returns:
        How many are accepted and how many rejected in the whole file now.

    Raises:
        DataPrepError: an id that is not in the file or is in both lists, or the file cannot be read or written.
    """
    accepted, rejected = set(accept), set(reject)
    if both := sorted(accepted & rejected):
        raise DataPrepError(f"accepted and rejected at once: {', '.join(both)}")
    records = read_lesions(lesions)
    if unknown := sorted((accepted | rejected) - {lesion.lesion_id for lesion in records}):
        raise DataPrepError(f"{lesions}: holds no lesion {', '.join(unknown)}")
    changed = [
        dataclasses.replace(lesion, review="accepted" if lesion.lesion_id in accepted else "rejected")
        if lesion.lesion_id in accepted or lesion.lesion_id in rejected
        else lesion
        for lesion in records
    ]
    write_lesions(changed, lesions)
    states = [lesion.review for lesion in changed]
    return states.count("accepted"), states.count("rejected")
