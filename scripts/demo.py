"""The whole job as resumable stages; started by demo.sh, which makes the environment."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from stages import PHANTOM_OPTIONS, REAL_OPTIONS, Stages, bundle, data_step


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
        stages.run("phantom", data_step, "phantom", phantom, patients=arguments.patients, seed=arguments.seed)
    stages.run("harvest", data_step, "harvest", source, images=images, out=harvest)
    lesions, found = harvest / "lesions.parquet", categories / "categories.parquet"
    stages.run("categorize", data_step, "categorize", lesions, images=images, out=categories)
    stages.run("datalist", data_step, "datalist", lesions, categories=found, images=images, out=datalist)
    stages.run("train", bundle, "train", datalist=datalist, **common, **options)
    stages.run("evaluate", bundle, "train", "evaluate", datalist=truth, **common)
    series = None if real else unseen_series(phantom)
    if series is not None:
        stages.run(
            "inference", bundle, "inference", dataset_dir=series, output_dir=work / "inference",
            ckpt_path=output / "model.pt",
        )  # fmt: skip
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

    from data_prep.category_names import NAMES_FILE, read_names

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
    names = read_names(categories / NAMES_FILE).names
    for number, count in found["category"].value_counts().sort_index().items():
        lines.append(f"  {count:6,d} {names[number]}")
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
