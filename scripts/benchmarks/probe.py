"""One measurement in a process of its own, so that none sees another's imports, caches or memory; prints JSON.

python scripts/benchmarks/probe.py parse HOW LIST          objects per second of CPU, one core; LIST names the files
python scripts/benchmarks/probe.py harvest WORKERS OUT SOURCE...
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def reader() -> Callable[[Path], object]:
    """What a harvest does with one file: recognise its format and read its marks."""
    from data_prep.bookmark import Bookmark
    from data_prep.harvest_parts import read_file

    def run(path: Path) -> None:
        (mark,) = read_file(path)
        if not isinstance(mark, Bookmark) or mark.form != "bidirectional":
            raise SystemExit(f"{path}: not the mark that was written")

    return run


def dcmread() -> Callable[[Path], object]:
    """pydicom's parse, whose elements stay bytes until they are used."""
    import pydicom

    return pydicom.dcmread


def dcmread_all() -> Callable[[Path], object]:
    """pydicom's parse with every element converted."""
    import pydicom

    def run(path: Path) -> None:
        for _ in pydicom.dcmread(path).iterall():
            pass

    return run


def srread() -> Callable[[Path], object]:
    """highdicom's parse into its content classes."""
    from highdicom.sr import srread as run

    return lambda path: run(path)


def xml() -> Callable[[Path], object]:
    """The XML parser alone."""
    from defusedxml.ElementTree import fromstring

    return lambda path: fromstring(path.read_bytes(), forbid_dtd=True)


HOW = {"reader": reader, "dcmread": dcmread, "dcmread, all elements": dcmread_all, "srread": srread, "xml": xml}


def parse(how: str, names: Path) -> dict[str, Any]:
    """CPU seconds over the files, which are in the page cache; the first tenth warms up and is not timed."""
    paths = [Path(line) for line in names.read_text(encoding="utf-8").splitlines()]
    for path in paths:
        path.read_bytes()
    run = HOW[how]()
    warm, timed = paths[: len(paths) // 10], paths[len(paths) // 10 :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in warm:
            run(path)
        started = time.process_time()
        for path in timed:
            run(path)
        seconds = time.process_time() - started
    return {"per_second": len(timed) / seconds}


def harvest(workers: int, out: Path, sources: list[Path]) -> dict[str, Any]:
    """Wall and CPU seconds of a whole harvest (imports not counted), and the peak of this process."""
    from data_prep.harvest import harvest as run

    shutil.rmtree(out, ignore_errors=True)
    started, used = time.monotonic(), time.process_time()
    summary = run(sources, out, workers=workers, progress=False)
    wall, cpu = time.monotonic() - started, time.process_time() - used
    shutil.rmtree(out, ignore_errors=True)
    # The peak since exec; ru_maxrss of a child starts at what its parent had when it forked.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    peak_mib = int(found.group(1)) / 1024 if found else float("nan")
    counts = {"bookmarks": summary.total_bookmarks, "lesions": summary.lesions, "rejected": summary.rejected}
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": peak_mib, **counts}


if __name__ == "__main__":
    what, first, second, *rest = sys.argv[1:]
    if what == "parse":
        print(json.dumps(parse(first, Path(second))))
    else:
        print(json.dumps(harvest(int(first), Path(second), [Path(source) for source in rest])))
