"""One line of a CSV is one row: an open quotation mark swallows no other row, and a line has a greatest length."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TextIO


def lines_of(file: TextIO, longest: int) -> Iterator[str]:
    """The lines of a file; of one with more than ``longest`` characters the beginning, which :func:`cells_of` refuses.

    Args:
        file: opened with universal newlines.
        longest: characters of a line, its end among them.
    """
    while line := file.readline(longest):
        yield line
        if is_too_long(line, longest):
            while (rest := file.readline(longest)) and not rest.endswith("\n"):
                pass


def cells_of(line: str, delimiter: str, longest: int) -> list[str]:
    """The cells of one line of a CSV, none of a blank one.

    Raises:
        ValueError: the line is too long, or a quotation mark is left open, which would swallow what follows.
    """
    if is_too_long(line, longest):
        raise ValueError(f"the line is longer than {longest} characters")
    rows = list(csv.reader((line, ""), delimiter=delimiter))  # an open quotation mark goes on into the second
    if len(rows) < 2:
        raise ValueError("a quotation mark is not closed on its line")
    return rows[0] if line.strip() else []


def is_too_long(line: str, longest: int) -> bool:
    """Whether :func:`lines_of` cut this line off."""
    return len(line) == longest and not line.endswith("\n")
