"""Errors a user can put right, shown as one line although MONAI wraps them several times."""

from __future__ import annotations

import sys
import tempfile
from os import PathLike
from pathlib import Path
from types import TracebackType


class BundleError(ValueError):
    """Bad input; the message names the file or setting and says what to do."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its type where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def root_message(error: BaseException | None) -> str | None:
    """The message of the :class:`BundleError` an exception was raised from, or None where there is none."""
    prefix = f"{BundleError.__module__}.{BundleError.__name__}: "
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # What a DataLoader's worker raises arrives as the text of its traceback, under another type.
        lines = [line.removeprefix(prefix) for line in str(error).splitlines() if line.startswith(prefix)]
        if lines:
            return lines[0]
        if isinstance(error, BundleError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def show_in_one_line() -> None:
    """From now on an uncaught :class:`BundleError` is printed as one line; any other error keeps its traceback."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = root_message(error)
        if message is None:
            before(kind, error, trace)
        else:
            print(f"error: {message}", file=sys.stderr)

    sys.excepthook = hook


def make_folder(path: str | PathLike[str]) -> Path:
    """Make an output folder and prove that it can be written to, before any work is done.

    Raises:
        BundleError: it cannot.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
            pass
    except OSError as error:
        raise BundleError(f"{folder}: cannot write into this folder ({error.strerror or error})") from error
    return folder
