"""A baseline without learning: a multi-scale Laplacian of Gaussian (Lindeberg 1998), tuned on the tuning patients.

    python -m scripts.blob_filter TUNING_DATALIST TRUTH_DATALIST IMAGES OUTPUT_DIR [SECTION]

What a detector must beat to have learnt more than "round and different from its surroundings".
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fire
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, binary_fill_holes, gaussian_filter, gaussian_laplace, maximum_filter
from tqdm import tqdm

from scripts import metrics
from scripts.datalist import section
from scripts.evaluation import table, write_json
from scripts.froc import ImageResult, accuracy_at_iou
from scripts.transforms import read_slice

SIGMAS = ((2.0, 3.0, 4.0, 6.0), (3.0, 4.5, 6.5), (4.0, 6.0, 9.0))
POLARITIES = ("bright", "dark", "both")
BOX_PADDING_PX = 5.5  # boxes are the lesion's extent and this much on every side
WINDOWS_HU = ((-175.0, 275.0), (-50.0, 150.0), (0.0, 110.0))
EROSIONS_PX = (0, 12)  # of the body, to leave out skin and ribs
CENTRES_HU = (None, (-20.0, 110.0), (20.0, 80.0))  # what a blob's middle may be: leaves out bone, contrast and air


Blobs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def blobs(image: npt.NDArray[np.float32], sigmas: tuple[float, ...], polarity: str) -> Blobs:
    """All blobs of a [X, Y] slice, strongest first: pixel x and y, scale sigma, score.

    A blob of radius r answers most to sigma = r / sqrt(2); the response is normalised by sigma^2.
    """
    responses = np.stack([-gaussian_laplace(image, s) * s * s for s in sigmas])
    responses = {"bright": responses, "dark": -responses, "both": np.abs(responses)}[polarity]
    scale, x, y = np.nonzero((responses == maximum_filter(responses, size=(3, 5, 5))) & (responses > 0))
    score = responses[scale, x, y].astype(np.float64)
    order = np.argsort(-score, kind="stable")
    return x[order], y[order], np.asarray(sigmas)[scale[order]], score[order]


def allowed(hu: npt.NDArray[np.float32], erosion: int, centre: tuple[float, float] | None) -> npt.NDArray[np.bool_]:
    """Where a blob's middle may lie: inside the (eroded) body, and within a range of HU."""
    inside = binary_fill_holes(hu > -300)
    if erosion:
        inside = binary_erosion(inside, iterations=erosion)
    if centre is not None:
        smooth = gaussian_filter(hu, 1.5)
        inside = inside & (smooth > centre[0]) & (smooth < centre[1])
    return np.asarray(inside, dtype=np.bool_)


class Slices:
    """The key slices of some items, with what is computed once for many settings."""

    def __init__(self, items: list[dict[str, Any]], images: Path) -> None:
        self.items = items
        self.names = [item["image"][len(item["image"]) // 2] for item in items]
        self.hu = [read_slice(images / name) for name in self.names]
        self.masks = {
            (erosion, centre): [allowed(hu, erosion, centre) for hu in self.hu]
            for erosion in EROSIONS_PX
            for centre in CENTRES_HU
        }

    def find(self, sigmas: tuple[float, ...], polarity: str, window: tuple[float, float]) -> list[Blobs]:
        """All blobs of every slice."""
        return [blobs(np.clip(hu, *window), sigmas, polarity) for hu in self.hu]

    def results(self, found: list[Blobs], where: tuple[Any, Any], count: int) -> list[ImageResult]:
        """The ``count`` strongest blobs of each slice whose middle is allowed, as boxes."""
        out = []
        for item, name, hu, mask, (x, y, sigma, score) in zip(
            self.items, self.names, self.hu, self.masks[where], found, strict=True
        ):
            keep = np.flatnonzero(mask[x, y])[:count]
            reach, cx, cy = sigma[keep] * np.sqrt(2) + BOX_PADDING_PX, x[keep] + 0.5, y[keep] + 0.5
            boxes = np.stack([cx - reach, cy - reach, cx + reach, cy + reach], axis=1)
            boxes = np.clip(boxes, 0, [*hu.shape, *hu.shape])
            truth = np.array(item["box"], dtype=np.float64).reshape(-1, 4)
            out.append(ImageResult(name, str(item["meta"]["patient_id"]), boxes, score[keep], truth))
        return out


def main(
    tuning_datalist: str,
    truth_datalist: str,
    images: str,
    output_dir: str,
    judged: str = "validation",
    bootstrap: int = 1000,
) -> None:
    """Choose the setting with the best accuracy on the tuning patients' marks; score it on the section ``judged``."""
    tuning = Slices(section(tuning_datalist, "tuning", dataset_dir=images), Path(images))
    scored = []
    for how in tqdm(list(itertools.product(SIGMAS, POLARITIES, WINDOWS_HU)), unit="setting"):
        found = tuning.find(*how)
        for where in tuning.masks:
            scored.append((accuracy_at_iou(tuning.results(found, where, 1), (0.5,))[0.5], how, where))
    best, how, where = max(scored, key=lambda entry: entry[0])
    print(f"chosen of {len(scored)} settings: {how} {where}, accuracy on the tuning marks {best:.3f}")
    kept_back = Slices(section(truth_datalist, judged, dataset_dir=images), Path(images))
    details = metrics.compute(kept_back.results(kept_back.find(*how), where, 50), bootstrap=bootstrap)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    write_json(
        Path(output_dir) / "metrics.json", details | {"setting": f"{how} {where}", "settings_tried": len(scored)}
    )
    print(table(details))


if __name__ == "__main__":
    fire.Fire(main)
