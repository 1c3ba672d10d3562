"""Write to a temporary file, then rename: a reader never meets half a file."""

from __future__ import annotations

import csv
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.errors import DataPrepError

PRIVATE = 0o600
"""Mode of what names patients: its owner's alone."""


@contextmanager
def atomic_path(target: str | os.PathLike[str], *, mode: int = 0o644, keep_mode: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it onto ``target`` when the block ends well.

    The temporary name ends in ``.part`` followed by the target's suffix, so writers that look at the suffix work.
    With ``keep_mode`` a file that is there keeps its own mode. On any exception the temporary file is removed and
    ``target`` is left as it was.

    Raises:
        DataPrepError: the folder cannot be made or written, or the disk is full.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".part" + target.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, stat.S_IMODE(target.stat().st_mode) if keep_mode and target.exists() else mode)
        os.replace(temporary, target)
    except OSError as error:
        raise DataPrepError(f"{target}: cannot write ({error.strerror or error}); nothing was changed") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(target: str | os.PathLike[str], text: str, *, mode: int = 0o644) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_path(target, mode=mode) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], value: Any, *, indent: int | None = 1) -> None:
    """Write ``value`` as JSON atomically; NaN is refused, because other readers refuse it."""
    write_text(target, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def write_csv(
    target: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]], *, mode: int = 0o644
) -> None:
    """Write a CSV (UTF-8, comma, lines end in ``\\n``) atomically."""
    with atomic_path(target, mode=mode) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make an output folder and prove that it can be written to, before any work is done.

    Raises:
        DataPrepError: it cannot be made, is a file, or is not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
            pass
    except OSError as error:
        raise DataPrepError(f"{folder}: cannot write into this folder ({error.strerror or error})") from error
    return folder
