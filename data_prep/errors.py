"""The one exception a user sees as a single line."""

from __future__ import annotations


class DataPrepError(Exception):
    """Something the user can put right; the message names the file and what to do.

    The command line prints the message as one line and exits with status 2. Programming errors stay ordinary
    exceptions and keep their traceback.
    """


class UnreadableError(DataPrepError):
    """One file or row that cannot be harvested; the message is the ``reason`` column of ``rejected.csv``."""
