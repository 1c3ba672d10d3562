"""What every reader must do with damaged files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection
from data_prep.readers.registry import HEAD_BYTES

LONGEST_S, LONGEST_IN_ALL_S = 5.0, 60.0


def read_each(
    reader: Any, contents: Iterable[bytes], path: Path, *images: Any, secret: str | None = None
) -> list[list[Bookmark | Rejection] | None]:
    """Let a reader module read each of the contents at ``path``: what it found in each, None where it refused.

    Fails where the reader crashes, is slow, refuses without naming the file, or tells a ``secret`` of theirs.
    """
    outcomes: list[list[Bookmark | Rejection] | None] = []
    began = time.monotonic()
    for content in contents:
        path.write_bytes(content)
        started = time.monotonic()
        reader.recognise(content[:HEAD_BYTES], path)
        found = None
        try:
            found = list(reader.read(path, *images))
        except UnreadableError as error:
            said = str(error)
            named = str(path) in said
        else:
            assert all(isinstance(item, Bookmark | Rejection) for item in found)
            said = " ".join(item.reason for item in found if isinstance(item, Rejection))
            named = True  # by whoever harvests
        assert named, said
        if secret is not None and secret in said:
            pytest.fail(f"{secret} is told: {said}")
        assert time.monotonic() - started < LONGEST_S
        outcomes.append(found)
    assert time.monotonic() - began < LONGEST_IN_ALL_S
    return outcomes


def assert_tolerant(reader: Any, contents: Iterable[bytes], path: Path, *, secret: str) -> None:
    """:func:`read_each`, where some files are to be read and some refused: otherwise it would show little."""
    assert {found is None for found in read_each(reader, contents, path, secret=secret)} == {True, False}
