"""docs/results.md: its sections, and what stands beside every figure."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from stages import ROOT

RESULTS = ROOT / "docs" / "results.md"


def machine() -> str:
    """The machine in words."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = (found.group(1) if found else model) + (", AMX bfloat16" if "amx_bf16" in flags else "")
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{os.cpu_count()} CPU cores ({model}){gpu}, Python {platform.python_version()}, PyTorch {torch.__version__}"


def today() -> str:
    """The date that stands beside a figure."""
    return datetime.date.today().isoformat()


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median of repetitions with their range, "1,234 (1,200 to 1,250)"."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """A figure with its interval, "0.512 (0.463 to 0.561)"; without one where there is none."""
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def write_section(name: str, title: str, text: str, results: Path = RESULTS) -> None:
    """Replace one section of docs/results.md (or of ``results``), between its two comment lines."""
    begin, end = f"<!-- {name}: written by a script, do not edit -->", f"<!-- end of {name} -->"
    old = results.read_text(encoding="utf-8") if results.exists() else "# Results\n"
    block = f"{begin}\n## {title}\n\n{text}\n{end}"
    if begin in old:
        start, stop = old.index(begin), old.index(end) + len(end)
        new = old[:start] + block + old[stop:]
    else:
        new = old.rstrip() + "\n\n" + block + "\n"
    part = results.with_suffix(".part")
    part.write_text(new, encoding="utf-8")
    part.replace(results)
    print(f"wrote the section '{title}' of {results}")
