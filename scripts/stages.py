"""The steps of the job as commands, and how they run: each once, so that a killed job goes on after the last one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "universal_lesion_ct_detection"

# Training frees and takes large blocks all the time; huge pages that glibc keeps make it half as fast again on a CPU.
GLIBC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
)

# What differs from configs/train.yaml. The phantom's slices are 256 px; the real ones are too many for 512 px on a CPU.
PHANTOM_OPTIONS = {
    "size": 256, "windows_hu": [[-175, 275], [-1350, 150]], "max_epochs": 20, "val_interval": 10, "ema_decay": 0.99,
    "learning_rate": 0.002, "body_learning_rate": 0.001,
}  # fmt: skip
# No remedy for missing marks, no further task, no pasted lesions: what benchmarks start from that compare such things.
PLAIN_OPTIONS = {"unmarked": "none", "dense_weight": 0.0, "copy_paste": 0.0}
# All of them, as in train.yaml.
FULL_OPTIONS = {"unmarked": "ignore", "dense_weight": 1.0, "copy_paste": 0.5}
REAL_OPTIONS = {"size": 384, "channels": 64, "max_epochs": 4, "val_interval": 2, "ema_decay": 0.995}


class Stages:
    """Runs each stage once; a finished one leaves a marker, so that a killed job goes on after it.

    Args:
        workdir: made where it is missing; the markers are in its ``.stages``.
        settings: what everything in the folder was made with.

    Raises:
        SystemExit: the folder cannot be written to, or holds work with other settings.
    """

    def __init__(self, workdir: Path, settings: dict[str, object]) -> None:
        self.workdir = workdir
        self.markers = workdir / ".stages"
        try:
            self.markers.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.markers):  # a name of its own: two jobs may share a folder
                pass
        except OSError as error:
            raise SystemExit(f"{workdir}: cannot write into this folder ({error.strerror})") from error
        known = self.markers / "settings.json"
        if known.exists() and json.loads(known.read_text()) != settings:
            raise SystemExit(f"{workdir} holds work with other options; give another WORKDIR or delete this one")
        known.write_text(json.dumps(settings))
        self.did_something = False

    def finished(self, name: str) -> bool:
        """Whether the stage of this name was finished, now or before."""
        return (self.markers / name).exists()

    def run(self, name: str, work: Callable[..., object], /, *words: object, **options: object) -> None:
        """Call ``work(*words, **options)``, unless the stage of this name was finished before."""
        marker = self.markers / name
        if self.finished(name):
            print(f"== {name}: done before ({marker.read_text()})", flush=True)
            return
        print(f"== {name}", flush=True)
        started = time.monotonic()
        work(*words, **options)
        marker.write_text(f"took {time.monotonic() - started:.0f} s")
        self.did_something = True


def command(*words: object, cwd: Path = ROOT) -> None:
    """Run a program of ours with its progress bars; a failure ends the job with the program's own message."""
    environment = os.environ | {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", GLIBC_TUNABLES), "MPLBACKEND": "Agg"}
    code = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment).returncode
    if code:
        raise SystemExit(f"stopped: {' '.join(map(str, words[:4]))} ... ended with code {code}; start again to go on")


def data_step(step: str, *given: object, **options: object) -> None:
    """A step of the data preparation: ``python -m data_prep STEP GIVEN ... --OPTION VALUE ...``."""
    command("-m", "data_prep", step, *given, *_words(options))


def bundle(*configs: str, **options: object) -> None:
    """Run the bundle's configs, each an overlay on those before it."""
    names = [f"configs/{name}.yaml" for name in configs]
    file = names[0] if len(names) == 1 else repr(names)
    command("-m", "monai.bundle", "run", "--config_file", file, *_words(options), cwd=BUNDLE)


def _words(options: dict[str, object]) -> list[object]:
    return [word for key, value in options.items() for word in (f"--{key}", value)]
