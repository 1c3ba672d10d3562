"""The stage: ``lesions.parquet`` and images in, ``categories.parquet``, the categoriser and its cards out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from data_prep.atomic import make_folder, write_json
from data_prep.bookmark import SCHEMA_VERSION, write_table
from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.cards import draw_cards
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.clustering import METHODS
from data_prep.categorize.crops import CropSettings, stated_spacing_mm
from data_prep.categorize.features import extract
from data_prep.categorize.fit import fit_categorizer, may_be_fitted, training_patients
from data_prep.categorize.space import BlockWeights, positions
from data_prep.categorize.stability import Stability
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, read_lesions

CATEGORY_SCHEMA = pa.schema(
    [
        pa.field("lesion_id", pa.string()),
        pa.field("schema_version", pa.int32()),
        pa.field("category", pa.int32()),
        pa.field("category_name", pa.string()),
        pa.field("distance", pa.float64()),
    ],
    metadata={"lesion_bookmarks": "categories", "schema_version": str(SCHEMA_VERSION)},
)
"""``categories.parquet``; ``distance`` is the Euclidean one to the category's centroid in the fitted space."""

MODEL_FILE = "categorizer.safetensors"


@dataclass(slots=True, kw_only=True)
class CategorizeSummary:
    """What was done; ``summary.json`` holds the same without the times.

    Attributes:
        lesions: rows of ``lesions.parquet``.
        labelled: lesions with a category.
        left_out: why a lesion has none -> how many.
        fitted_on: lesions, patients and seed of the fit, this one's or that of the given model.
        categories: name -> labelled lesions.
        clustering: the method.
        stability: the curve, where the number of categories was chosen by it.
        uses_position: whether the normalised location takes part.
        assumed_spacing: labelled lesions whose image states no pixel spacing, so that a usual one was assumed.
        messages: one a slice or lesion that could not be used.
        computed: lesions whose features were not in the cache.
        seconds: wall-clock time.
    """

    lesions: int
    labelled: int
    left_out: dict[str, int]
    fitted_on: dict[str, int]
    categories: dict[str, int]
    clustering: str
    stability: list[Stability] = field(default_factory=list)
    uses_position: bool
    assumed_spacing: int
    messages: list[str] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0


def run(
    lesions: Path,
    images: Path,
    out: Path,
    *,
    categories: int | Literal["auto"] = 5,
    model: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    clustering: str = "k-means",
    crops: CropSettings | None = None,
    weights: BlockWeights | None = None,
    device: str | None = None,
    batch_size: int = 96,
) -> CategorizeSummary:
    """Sort lesions into categories that nobody labelled.

    Only lesions of training patients are fitted, without possibly noisy ones and detections that nobody accepted; every
    lesion with an image and a box is labelled. With ``model`` nothing is fitted. Writes ``categories.parquet``,
    ``categorizer.safetensors``, ``cards.png``, ``summary.json`` and the cache ``features/`` into ``out``; run again, it
    goes on from the cache.

    Args:
        lesions: ``lesions.parquet``.
        images: the images folder.
        out: the output folder.
        categories: how many, or "auto": the number at which two halves of the patients agree best.
        model: a ``categorizer.safetensors``, to label new lesions as an earlier run did.
        seed: same seed, same machine, same categories.
        clustering: "k-means" or "spectral".
        crops: what the network sees.
        weights: of the blocks.
        device: "cpu", "cuda"; None takes the GPU where there is one.
        batch_size: crops at a time.

    Raises:
        DataPrepError: an input is missing or of the wrong kind, or too few lesions are left to fit.
    """
    started = time.monotonic()
    if categories != "auto" and categories < 1:
        raise DataPrepError(f"the number of categories must be at least 1 or 'auto', got {categories}")
    if clustering not in METHODS:
        raise DataPrepError(f"unknown clustering {clustering!r}; choose {' or '.join(METHODS)}")
    fitted = None if model is None else Categorizer.load(model)
    refuse_json(lesions)
    rows = read_lesions(lesions)
    if not images.is_dir():
        raise DataPrepError(f"{images}: no such images folder; give the folder that `image` paths start from")
    make_folder(out)

    usable, left_out = select(rows)
    extractor = FeatureExtractor(device)
    if fitted is not None and fitted.network != extractor.identity:
        raise DataPrepError(f"{model}: fitted on features of another network; fit again without --model")
    settings = crops or CropSettings() if fitted is None else fitted.crops
    found = extract(usable, images, extractor, settings, out / "features", batch_size=batch_size, progress=progress)
    left_out.update(found.problems)
    kept = [usable[i] for i in found.kept]
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "the file is empty"
        raise DataPrepError(f"{lesions}: no lesion can be categorised ({reasons})")

    curve: list[Stability] = []
    shown = np.arange(len(kept))
    if fitted is None:
        patient_of = training_patients(rows)
        fit = [i for i, v in enumerate(kept) if v.lesion_id in patient_of and may_be_fitted(v)]
        shown = np.array(fit, dtype=np.intp)
        fitted, curve = fit_categorizer(
            [kept[i] for i in fit],
            found.features[shown],
            categories,
            patients=[patient_of[kept[i].lesion_id] for i in fit],
            crops=settings,
            network=extractor.identity,
            weights=weights,
            method=clustering,
            seed=seed,
            progress=progress,
        )
    labels, distances = fitted.assign(found.features, positions(kept))

    summary = CategorizeSummary(
        lesions=len(rows),
        labelled=len(kept),
        left_out=dict(sorted(left_out.items())),
        fitted_on=fitted.fitted_on,
        categories={name: int((labels == i).sum()) for i, name in enumerate(fitted.names)},
        clustering=fitted.clustering.method,
        stability=curve,
        uses_position=fitted.space.uses_position,
        assumed_spacing=sum(stated_spacing_mm(lesion) is None for lesion in kept),
        messages=found.messages[:100],
        computed=found.computed,
    )
    fitted.save(out / MODEL_FILE)
    draw_cards(
        [kept[i] for i in shown], labels[shown], distances[shown], fitted.names, images, settings, out / "cards.png"
    )
    write_json(out / "summary.json", _as_json(summary))
    _write_categories(kept, labels.tolist(), distances.tolist(), fitted.names, out / "categories.parquet")
    summary.seconds = time.monotonic() - started
    return summary


def refuse_json(path: Path) -> None:
    """Raise DataPrepError where a datalist (above all one of the full truth) is given for ``lesions.parquet``."""
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
    except OSError:
        return  # read_lesions says it better
    if head[:1] not in (b"{", b"["):
        return
    try:
        content = json.loads(path.read_bytes())
        truth = isinstance(content, dict) and content.get("kind") == "truth"
    except (ValueError, RecursionError):
        truth = False
    what = "a datalist of the full truth, which only evaluation may read" if truth else "JSON"
    raise DataPrepError(f"{path}: this is {what}; categorize takes the lesions.parquet that `harvest` wrote")


def select(lesions: Sequence[Lesion]) -> tuple[list[Lesion], Counter[str]]:
    """The lesions that can have a category, and why the others cannot -> how many."""
    usable: list[Lesion] = []
    left_out: Counter[str] = Counter()
    for lesion in lesions:
        reason = _why_not(lesion)
        if reason is None:
            usable.append(lesion)
        else:
            left_out[reason] += 1
    return usable, left_out


def _why_not(lesion: Lesion) -> str | None:
    if lesion.review == "rejected":
        return "rejected in review"
    if lesion.modality not in (None, "", "CT"):
        return "not CT"  # the window is in HU
    if lesion.image is None:
        return "no image"
    if lesion.box_px is None:
        return "no box"
    return None


def _as_json(summary: CategorizeSummary) -> dict[str, object]:
    values = asdict(summary)
    del values["seconds"], values["computed"]  # they differ between a fresh and a resumed run
    return {"schema_version": SCHEMA_VERSION, **values}


def _write_categories(
    lesions: Sequence[Lesion], labels: list[int], distances: list[float], names: Sequence[str], path: Path
) -> None:
    columns = [
        [lesion.lesion_id for lesion in lesions],
        [SCHEMA_VERSION] * len(lesions),
        labels,
        [names[label] for label in labels],
        distances,
    ]
    arrays = [pa.array(values, type=f.type) for values, f in zip(columns, CATEGORY_SCHEMA, strict=True)]
    write_table(pa.Table.from_arrays(arrays, schema=CATEGORY_SCHEMA), path)
