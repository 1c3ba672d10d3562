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


class Reviews:
    """What a person has said about the lesions of an earlier harvest; nothing where there is none.

    A lesion is known by its bookmarks: where another mark has joined them since, what was said of it still holds.

    Args:
        lesions: its ``lesions.parquet``.
    """

    def __init__(self, lesions: Path) -> None:
        self._states: list[tuple[frozenset[str], str]] = []
        self._of_bookmark: dict[str, int] = {}
        self._kept: set[int] = set()
        reviewed = pc.field("review") != "unreviewed"
        try:
            table = pq.read_table(lesions, columns=["bookmark_ids", "review"], filters=reviewed)
        except (OSError, pa.ArrowException):
            return
        for ids, state in zip(table["bookmark_ids"].to_pylist(), table["review"].to_pylist(), strict=True):
            self._of_bookmark |= dict.fromkeys(ids, len(self._states))
            self._states.append((frozenset(ids), state))

    def __len__(self) -> int:
        """The number of reviewed lesions."""
        return len(self._states)

    def of(self, bookmark_ids: Iterable[str]) -> str | None:
        """The state of a lesion with these bookmarks; rejected where any that has become part of it was rejected."""
        ids = set(bookmark_ids)
        numbers = {self._of_bookmark[one] for one in ids if one in self._of_bookmark}
        whole = [number for number in numbers if self._states[number][0] <= ids]
        self._kept.update(whole)
        return max((self._states[number][1] for number in whole), default=None)  # "rejected" > "accepted"

    @property
    def gone(self) -> int:
        """How many reviewed lesions no lesion was asked for that holds their bookmarks."""
        return len(self._states) - len(self._kept)


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
