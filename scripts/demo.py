"""The whole job as resumable stages; started by demo.sh, which makes the environment."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
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
REAL_OPTIONS = {"size": 384, "channels": 64, "max_epochs": 4, "val_interval": 2, "ema_decay": 0.995}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bash scripts/demo.sh", description=__doc__)
    parser.add_argument("workdir", nargs="?", type=Path, default=Path("lesion-demo"), help="default: ./lesion-demo")
    parser.add_argument(
        "--csv", type=Path, help="a DL_info.csv (or another source of bookmarks) instead of the phantom"
    )
    parser.add_argument("--images", type=Path, help="its Images_png folder")
    parser.add_argument("--minutes", type=float, help="stop training after this many minutes (real files: 60)")
    parser.add_argument("--epochs", type=int, help="train this many epochs")
    parser.add_argument("--patients", type=int, default=52, help="of the phantom hospital (default: 52)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.csv is None) != (arguments.images is None):
        parser.error("--csv and --images go together")
    for path in (arguments.csv, arguments.images):
        if path is not None and not path.exists():
            parser.error(f"{path}: no such file or folder")
    return arguments


class Stages:
    """Runs each stage once; a finished one leaves a marker, so that a killed demo goes on after it."""

    def __init__(self, workdir: Path, settings: dict[str, object]) -> None:
        self.workdir = workdir
        self.markers = workdir / ".stages"
        try:
            self.markers.mkdir(parents=True, exist_ok=True)
            (self.markers / "write-test").touch()
            (self.markers / "write-test").unlink()
        except OSError as error:
            raise SystemExit(f"{workdir}: cannot write into this folder ({error.strerror})") from error
        known = self.markers / "settings.json"
        if known.exists() and json.loads(known.read_text()) != settings:
            raise SystemExit(f"{workdir} holds work with other options; give another WORKDIR or delete this one")
        known.write_text(json.dumps(settings))
        self.did_something = False

    def run(self, name: str, work: Callable[[], None]) -> None:
        marker = self.markers / name
        if marker.exists():
            print(f"== {name}: done before ({marker.read_text()})", flush=True)
            return
        print(f"== {name}", flush=True)
        started = time.monotonic()
        work()
        marker.write_text(f"took {time.monotonic() - started:.0f} s")
        self.did_something = True


def command(*words: object, cwd: Path = ROOT) -> None:
    """Run a command of ours with its progress bars; a failure ends the demo with the command's own message."""
    environment = os.environ | {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", GLIBC_TUNABLES), "MPLBACKEND": "Agg"}
    code = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment).returncode
    if code:
        raise SystemExit(f"stopped: {' '.join(map(str, words[:4]))} ... ended with code {code}; start again to go on")


def bundle(*configs: str, **options: object) -> None:
    names = [f"configs/{name}.yaml" for name in configs]
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    command(
        "-m", "monai.bundle", "run", "--config_file", names[0] if len(names) == 1 else repr(names), *words, cwd=BUNDLE
    )


def main() -> None:
    arguments = parse()
    work = arguments.workdir.resolve()
    real = arguments.csv is not None
    options = dict(REAL_OPTIONS if real else PHANTOM_OPTIONS)
    if arguments.epochs:
        options["max_epochs"] = arguments.epochs
    minutes = arguments.minutes or (60 if real else None)
    if minutes:
        options["max_minutes"] = minutes
    settings = {
        "csv": str(arguments.csv), "images": str(arguments.images), "options": options, "seed": arguments.seed,
        "patients": arguments.patients,
    }  # fmt: skip
    stages = Stages(work, settings)
    phantom, harvest, categories = work / "phantom", work / "harvest", work / "categories"
    source = arguments.csv.resolve() if real else phantom / "DL_info.csv"
    images = arguments.images.resolve() if real else phantom / "Images_png"
    datalist = work / "datalist.json"
    truth = datalist if real else phantom / "truth" / "datalist.json"
    output = work / "training"
    common = {
        "dataset_dir": images, "output_dir": output, "tracking_uri": f"sqlite:///{work / 'mlruns.db'}",
        "seed": arguments.seed,
    }  # fmt: skip

    if not real:
        stages.run(
            "phantom",
            lambda: command(
                "-m", "data_prep", "phantom", phantom, "--patients", arguments.patients, "--seed", arguments.seed
            ),
        )
    stages.run("harvest", lambda: command("-m", "data_prep", "harvest", source, "--images", images, "--out", harvest))
    lesions = harvest / "lesions.parquet"
    stages.run(
        "categorize", lambda: command("-m", "data_prep", "categorize", lesions, "--images", images, "--out", categories)
    )
    stages.run(
        "datalist",
        lambda: command(
            "-m", "data_prep", "datalist", lesions, "--categories", categories / "categories.parquet",
            "--images", images, "--out", datalist,
        ),
    )  # fmt: skip
    stages.run("train", lambda: bundle("train", datalist=datalist, **common, **options))
    stages.run("evaluate", lambda: bundle("train", "evaluate", datalist=truth, **common))
    series = None if real else unseen_series(phantom)
    if series is not None:
        stages.run(
            "inference",
            lambda: bundle(
                "inference", dataset_dir=series, output_dir=work / "inference", ckpt_path=output / "model.pt"
            ),
        )
    summary = table(harvest, categories, output / "evaluation" / "validation" / "metrics.json", real)
    (work / "summary.txt").write_text(summary + "\n", encoding="utf-8")
    if not stages.did_something:
        print("\nEverything was done before; delete the folder to do it anew.")
    print(f"\n{summary}\n\n{where_to_look(work, series is not None)}")


def unseen_series(phantom: Path) -> Path:
    """The DICOM folder of the first series of a patient kept for validation."""
    truth = json.loads((phantom / "truth" / "datalist.json").read_text(encoding="utf-8"))
    patient, study, _ = Path(truth["validation"][0]["image"][0]).parent.name.split("_")
    return phantom / "dicom" / f"PHANTOM{int(patient):04d}" / f"STUDY{int(study)}" / "CT"


def table(harvest: Path, categories: Path, metrics: Path, real: bool) -> str:
    """What was harvested, the categories found and how good the detector is, as text."""
    import pandas as pd

    bookmarks = pd.read_parquet(harvest / "bookmarks.parquet", columns=["source", "form", "image"])
    lesions = pd.read_parquet(harvest / "lesions.parquet", columns=["lesion_id", "split", "possibly_noisy", "image"])
    found = pd.read_parquet(categories / "categories.parquet")
    figures = json.loads(metrics.read_text(encoding="utf-8"))
    lines = ["Harvested"]
    for (source, form), group in bookmarks.groupby(["source", "form"]):
        without = int(group["image"].isna().sum())
        lines.append(
            f"  {len(group):6,d} {form} bookmarks from {source}"
            + (f", {without:,} without an image" if without else "")
        )
    rejected = max(0, sum(1 for _ in (harvest / "rejected.csv").open(encoding="utf-8")) - 1)
    lines.append(f"  {len(lesions):6,d} lesions; {rejected:,} rows rejected (rejected.csv says why)")
    lines += ["", "Categories found without labels"]
    for name, count in found["category_name"].value_counts().sort_index().items():
        lines.append(f"  {count:6,d} {name}")
    against = "marked lesions" if real else "the full truth: marked and unmarked lesions"
    lines += [
        "",
        f"Detector on the validation patients, against {against}",
        f"  {figures['images']} slices, {figures['lesions']} lesions, {figures['patients']} patients; "
        "in brackets 95 % bootstrap intervals by patient",
    ]

    def show(figure: dict[str, float]) -> str:
        return f"{figure['value']:.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]"

    for rate, figure in figures["froc"].items():
        lines.append(f"  sensitivity at {rate:>3} false positives per image  {show(figure)}")
    lines.append(f"  accuracy at IoU 0.5 (highest-scoring box)      {show(figures['accuracy_at_iou']['0.5'])}")
    return "\n".join(lines)


def where_to_look(work: Path, inference: bool) -> str:
    """Paths of the pictures and the MLflow command."""
    report = work / "training" / "evaluation" / "validation"
    places = [
        ("evaluation, as a page", report / "report.html"),
        ("overlay pictures", report / "overlays.png"),
        ("FROC plot", report / "froc.png"),
        ("categories, as a page", work / "categories" / "categories.html"),
    ]
    if inference:
        places.append(("findings on an unseen series", work / "inference" / "detections.json"))
        if (work / "inference" / "overlays.png").exists():
            places.append(("  their pictures", work / "inference" / "overlays.png"))
    lines = ["Where to look", *(f"  {name}: {path}" for name, path in places)]
    mlflow = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    lines.append(f"  all runs: {mlflow} ui --backend-store-uri sqlite:///{work / 'mlruns.db'}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
