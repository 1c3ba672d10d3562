"""Errors that a user sees as a single line."""

from __future__ import annotations

import os


def printable(name: str | os.PathLike[str]) -> str:
    """A name that may hold bytes which are no text, as text for messages and tables."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode()


class DataPrepError(Exception):
    """Something the user can put right; the message names the file and what to do.

    The command line prints the message as one line and exits with status 2. Programming errors stay ordinary
    exceptions and keep their traceback.
    """


class UnreadableError(DataPrepError):
    """One file or row that cannot be harvested; the message is the ``reason`` column of ``rejected.csv``."""
