"""A baseline without learning: a multi-scale Laplacian of Gaussian (Lindeberg 1998), tuned on the tuning patients.

    python -m scripts.blob_filter TUNING_DATALIST TRUTH_DATALIST IMAGES OUTPUT_DIR

What a detector must beat to have learnt more than "round and different from its surroundings".
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fire
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, binary_fill_holes, gaussian_laplace, maximum_filter
from tqdm import tqdm

from scripts import metrics
from scripts.datalist import section
from scripts.evaluation import table, write_json
from scripts.froc import ImageResult, accuracy_at_iou
from scripts.transforms import read_slice

SIGMAS = ((2.0, 3.0, 4.0, 6.0), (3.0, 4.5, 6.5), (4.0, 6.0, 9.0, 13.0), (5.0, 7.0))
POLARITIES = ("bright", "dark", "both")
BOX_PADDING_PX = 5.5  # boxes are the lesion's extent and this much on every side
WINDOWS_HU = ((-175.0, 275.0), (-50.0, 150.0))


def blobs(
    image: npt.NDArray[np.float32], sigmas: tuple[float, ...], polarity: str, inside: npt.NDArray[np.bool_], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Boxes (n, 4) and scores of the strongest blobs of a [X, Y] slice.

    A blob of radius r answers most to sigma = r / sqrt(2); the response is normalised by sigma^2.
    """
    responses = np.stack([-gaussian_laplace(image, s) * s * s for s in sigmas])
    responses = {"bright": responses, "dark": -responses, "both": np.abs(responses)}[polarity]
    peak = (responses == maximum_filter(responses, size=(3, 5, 5))) & inside[None]
    scale, x, y = np.nonzero(peak)
    score = responses[scale, x, y]
    order = np.argsort(-score, kind="stable")[:count]
    reach = np.asarray(sigmas)[scale[order]] * np.sqrt(2) + BOX_PADDING_PX
    cx, cy = x[order] + 0.5, y[order] + 0.5
    boxes = np.stack([cx - reach, cy - reach, cx + reach, cy + reach], axis=1)
    limits = np.array([*image.shape, *image.shape], dtype=np.float64)
    return np.clip(boxes, 0, limits), score[order].astype(np.float64)


def results(items: list[dict[str, Any]], images: Path, setting: tuple[Any, ...], count: int) -> list[ImageResult]:
    """What the filter with a setting (sigmas, polarity, window, eroded px) finds on the items' key slices."""
    sigmas, polarity, (low, high), erosion = setting
    found = []
    for item in items:
        name = item["image"][len(item["image"]) // 2]
        hu = read_slice(images / name)
        body = binary_fill_holes(hu > -300)
        inside = binary_erosion(body, iterations=erosion) if erosion else body
        boxes, scores = blobs(np.clip(hu, low, high), sigmas, polarity, inside, count)
        truth = np.array(item["box"], dtype=np.float64).reshape(-1, 4)
        found.append(ImageResult(name, str(item["meta"]["patient_id"]), boxes, scores, truth))
    return found


def main(tuning_datalist: str, truth_datalist: str, images: str, output_dir: str, bootstrap: int = 1000) -> None:
    """Choose the setting with the best accuracy on the tuning patients' marks; score it on the validation section."""
    tuning = section(tuning_datalist, "tuning", dataset_dir=images)
    validation = section(truth_datalist, "validation", dataset_dir=images)
    grid = list(itertools.product(SIGMAS, POLARITIES, WINDOWS_HU, (0, 12)))
    scored = [
        (accuracy_at_iou(results(tuning, Path(images), setting, 1), (0.5,))[0.5], setting)
        for setting in tqdm(grid, unit="setting")
    ]
    best, setting = max(scored, key=lambda entry: entry[0])
    print(f"chosen of {len(grid)} settings: {setting}, accuracy on the tuning marks {best:.3f}")
    details = metrics.compute(results(validation, Path(images), setting, 50), bootstrap=bootstrap)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(output_dir) / "metrics.json", details | {"setting": str(setting), "settings_tried": len(grid)})
    print(table(details))


if __name__ == "__main__":
    fire.Fire(main)
