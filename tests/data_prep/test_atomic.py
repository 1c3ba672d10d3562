"""A reader never meets half a file, whatever happens while it is written."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.atomic import atomic_path, make_folder, write_json, write_text
from data_prep.bookmark import Bookmark, write_bookmarks
from data_prep.errors import DataPrepError

MARK = Bookmark(bookmark_id="a", source="csv", form="point", points_px=(1.0, 2.0))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "hello")
    assert (tmp_path / "new" / "a.txt").read_text() == "hello"
    assert names(tmp_path / "new") == ["a.txt"]


def test_mode(tmp_path: Path) -> None:
    write_text(tmp_path / "key.csv", "secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key.csv").stat().st_mode) == 0o600
    (tmp_path / "key.csv").chmod(0o644)  # as a backup may bring it back
    write_text(tmp_path / "key.csv", "another", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key.csv").stat().st_mode) == 0o600


def test_a_table_stays_shared_with_whom_it_was_shared(tmp_path: Path) -> None:
    write_bookmarks([MARK], tmp_path / "b.parquet")
    (tmp_path / "b.parquet").chmod(0o640)
    write_bookmarks([MARK, MARK], tmp_path / "b.parquet")
    assert stat.S_IMODE((tmp_path / "b.parquet").stat().st_mode) == 0o640


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def half_written() -> None:
        with atomic_path(tmp_path / "a.txt") as path:
            path.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_written()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_disk_full_while_writing_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bookmarks([MARK], tmp_path / "b.parquet")
    before = (tmp_path / "b.parquet").read_bytes()

    def full(_table: object, path: Path, **_options: object) -> None:
        path.write_bytes(b"PAR1 half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DataPrepError, match=r"b\.parquet: cannot write \(No space left on device\)"):
        write_bookmarks([MARK, MARK], tmp_path / "b.parquet")
    assert (tmp_path / "b.parquet").read_bytes() == before
    assert names(tmp_path) == ["b.parquet"]


def test_a_real_write_error_in_arrow(tmp_path: Path) -> None:
    """The kernel itself refuses: files of this process may not grow beyond 4 KiB (EFBIG)."""
    script = (
        "import resource, signal, sys\n"
        "from data_prep.bookmark import Bookmark, make_id, write_bookmarks\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "same = {'source': 'csv', 'form': 'point', 'points_px': (1.0, 2.0)}\n"
        "marks = [Bookmark(bookmark_id=make_id(i), **same) for i in range(5000)]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_bookmarks(marks, sys.argv[1])\n"
    )
    target = tmp_path / "b.parquet"
    done = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DataPrepError" in done.stderr
    assert names(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096  # this process was not limited


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataPrepError, match="cannot write"):
        make_folder(tmp_path / "file")
    with pytest.raises(DataPrepError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "hello")


def test_json_without_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None]}
