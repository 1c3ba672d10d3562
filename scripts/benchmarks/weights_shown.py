"""The shipped weights on a whole series of a patient they were not trained on: which marked lesions they find."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from benchmarks.deeplesion import copy_rows, write_nifti
from benchmarks.results import machine, today, write_section
from stages import BUNDLE, bundle, data_step
from torchvision.ops import box_iou

from data_prep.atomic import make_folder
from data_prep.lesion import read_lesions

HIT_IOU = 0.5


def show(arguments: argparse.Namespace) -> None:
    """Run inference on the series as a NIfTI file, compare with its marks, write the card's section ``series``."""
    name, images = arguments.series, arguments.images.resolve()
    home = make_folder(arguments.work.resolve() / f"series {name}")
    slices = sorted((images / name).glob("*.png"))
    if len(slices) < 2:
        raise SystemExit(f"{images / name}: no series of PNG slices; give the Images_png that holds {name}")
    source, marks = arguments.csv.resolve(), home / "DL_info.csv"
    if not copy_rows(source, marks, lambda file_name: file_name.startswith(f"{name}_")):
        raise SystemExit(f"{source}: no row of series {name}")
    data_step("harvest", marks, images=images, out=home / "harvest")
    lesions = [one for one in read_lesions(home / "harvest" / "lesions.parquet") if one.image and one.box_px]
    series = home / "series.nii.gz"
    first = lesions[0]
    spacing_mm = (first.spacing_x_mm or 1.0, first.spacing_y_mm or 1.0, abs(first.spacing_z_mm or 1.0))
    if first.numbers_lead_to == "feet":
        slices.reverse()
    write_nifti(slices, spacing_mm, series)
    bundle("inference", dataset_dir=series, output_dir=home / "found")
    shutil.copyfile(home / "found" / "overlays.png", make_folder(BUNDLE / "docs" / "weights") / "series.png")
    content = json.loads((home / "found" / "detections.json").read_text(encoding="utf-8"))
    findings = content["series"][0]["findings"]
    lines = [
        "| marked lesion | long diameter | best IoU with a finding | its score | |",
        "| --- | --- | --- | --- | --- |",
    ]
    numbers = {path.stem: index for index, path in enumerate(slices)}
    hits = 0
    for lesion in sorted(lesions, key=lambda one: one.image or ""):
        stem = Path(lesion.image or "").stem
        there = [one for one in findings if one["slice_index"] == numbers[stem]]
        boxes = torch.tensor([one["box_px"] for one in there], dtype=torch.float64).reshape(-1, 4)
        iou = box_iou(torch.tensor([lesion.box_px], dtype=torch.float64), boxes)[0]
        best = int(iou.argmax()) if len(iou) and iou.max() > 0 else None
        found = best is not None and float(iou[best]) >= HIT_IOU
        hits += found
        size = f"{lesion.long_diameter_mm:.1f} mm" if lesion.long_diameter_mm else ""
        shown = ["-", "-"] if best is None else [f"{iou[best]:.2f}", f"{there[best]['score']:.2f}"]
        lines.append(f"| slice {stem} | {size} | {' | '.join(shown)} | {'found' if found else 'missed'} |")
    text = (
        f"Series `{name}`, {len(slices)} consecutive slices with their full HU range, of a patient left out of "
        f"training, tuning and validation. At the weights' own threshold ({content['model']['score_threshold']:.3f}) "
        f"{len(findings)} findings, {len(findings) / len(slices):.1f} a slice; {hits} of {len(lesions)} marked lesions "
        f"found (IoU at least {HIT_IOU}). One patient is an example, no measure. Machine: {machine()}. "
        f"Command: `python scripts/train_weights.py show ...`, {today()}.\n\n"
        "![The slices with the highest scores](weights/series.png)"
    )
    title = "A whole series"
    write_section("series", title, "\n".join([*lines, "", text]), BUNDLE / "docs" / "model_card.md")
