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
from data_prep.categorize.balance import Array, Labels
from data_prep.categorize.cards import draw_cards, make_cards
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.clustering import METHODS
from data_prep.categorize.crops import CropSettings, stated_spacing_mm
from data_prep.categorize.features import FeatureArray, extract
from data_prep.categorize.fit import may_be_fitted, training_patients
from data_prep.categorize.learn import learn
from data_prep.categorize.mining import MiningSettings
from data_prep.categorize.names import propose_names
from data_prep.categorize.page import PAGE_FILE, write_page
from data_prep.categorize.pretrain import PretrainSettings
from data_prep.categorize.rounds import Rounds
from data_prep.categorize.space import BlockWeights, positions
from data_prep.categorize.stability import Stability
from data_prep.category_names import NAMES_FILE, fingerprint, read_names, settle_names
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
        repairs: categories that were too small or too large and made anew.
        pretrained_epochs: of pretraining; 0 without it, and with a given model.
        rounds: of mining; 0 with a given model.
        round_taken: the round whose network made the features; 0 with a given model.
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
    repairs: int
    pretrained_epochs: int
    rounds: int
    round_taken: int
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
    clustering: str = "spectral",
    crops: CropSettings | None = None,
    weights: BlockWeights | None = None,
    device: str | None = None,
    batch_size: int = 96,
    pretraining: PretrainSettings | None = None,
    mining: MiningSettings | None = None,
    tracking_uri: str | None = None,
) -> CategorizeSummary:
    """Sort lesions into categories that nobody labelled.

    Only lesions of training patients are fitted, without possibly noisy ones and detections that nobody accepted; every
    lesion with an image and a box is labelled. With ``model`` nothing is fitted. Writes ``categories.parquet``,
    ``categorizer.safetensors``, ``categories.yaml`` (the names; kept where it was edited), ``categories.html``,
    ``cards.png``, ``summary.json``, ``rounds.json``, ``rounds.png`` and the caches ``features/`` and ``mining/`` into
    ``out``; run again, it goes on from the caches.

    Args:
        lesions: ``lesions.parquet``.
        images: the images folder.
        out: the output folder.
        categories: how many, or "auto": the number at which two halves of the patients agree best.
        model: a ``categorizer.safetensors``, to label new lesions as an earlier run did.
        seed: same seed, same machine, same categories.
        clustering: "spectral" or "k-means".
        crops: what the network sees.
        weights: of the blocks.
        device: "cpu", "cuda"; None takes the GPU where there is one.
        batch_size: crops at a time.
        pretraining: of the network's last stages on the fitted lesions' crops, without labels; None leaves it out, and
            so do fewer lesions than prototypes, which a message says.
        mining: how the network is fine-tuned on the categories, and for how many rounds.
        tracking_uri: of an MLflow store for the figures of pretraining and rounds; None logs none.

    Raises:
        DataPrepError: an input is missing or of the wrong kind, or too few lesions are left to fit.
    """
    started = time.monotonic()
    if categories != "auto" and categories < 1:
        raise DataPrepError(f"the number of categories must be at least 1 or 'auto', got {categories}")
    if clustering not in METHODS:
        raise DataPrepError(f"unknown clustering {clustering!r}; choose {' or '.join(METHODS)}")
    if model is not None and pretraining is not None:
        raise DataPrepError("a given --model is used as it is; leave --pretrain out, or fit without --model")
    fitted = None if model is None else Categorizer.load(model)
    refuse_json(lesions)
    rows = read_lesions(lesions)
    if not images.is_dir():
        raise DataPrepError(f"{images}: no such images folder; give the folder that `image` paths start from")
    make_folder(out)
    if (out / NAMES_FILE).exists():
        read_names(out / NAMES_FILE)  # what is wrong with it is said before the long work

    usable, left_out = select(rows)
    extractor = FeatureExtractor(device, None if fitted is None else fitted.tail)
    if fitted is not None and fitted.network != extractor.identity:
        raise DataPrepError(f"{model}: fitted on features of another network; fit again without --model")
    settings = crops or CropSettings() if fitted is None else fitted.crops
    found = extract(usable, images, extractor, settings, out / "features", batch_size=batch_size, progress=progress)
    left_out.update(found.problems)
    kept = [usable[i] for i in found.kept]
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "the file is empty"
        raise DataPrepError(f"{lesions}: no lesion can be categorised ({reasons})")

    def features_by(network: FeatureExtractor) -> FeatureArray:
        more = extract(kept, images, network, settings, out / "features", batch_size=batch_size, progress=progress)
        if len(more.kept) != len(kept):
            raise DataPrepError(f"{images}: slices changed or vanished during the run; run it again")
        found.computed += more.computed
        return more.features

    curve: list[Stability] = []
    mined: Rounds | None = None
    features = found.features
    shown = np.arange(len(kept))
    if fitted is None:
        patient_of = training_patients(rows)
        fit = [i for i, v in enumerate(kept) if v.lesion_id in patient_of and may_be_fitted(v)]
        shown = np.array(fit, dtype=np.intp)
        learnt = learn(
            kept,
            shown,
            features,
            categories,
            images=images,
            out=out,
            extractor=extractor,
            features_by=features_by,
            options={
                "patients": [patient_of[kept[i].lesion_id] for i in fit],
                "crops": settings,
                "weights": weights,
                "method": clustering,
                "seed": seed,
                "progress": progress,
            },
            pretraining=pretraining,
            mining=mining,
            tracking_uri=tracking_uri,
        )
        fitted, curve, mined, features = learnt.categorizer, learnt.curve, learnt.rounds, learnt.features
    labels, distances = fitted.assign(features, positions(kept))

    summary = CategorizeSummary(
        lesions=len(rows),
        labelled=len(kept),
        left_out=dict(sorted(left_out.items())),
        fitted_on=fitted.fitted_on,
        categories={name: int((labels == i).sum()) for i, name in enumerate(fitted.names)},
        clustering=fitted.clustering.method,
        stability=curve,
        uses_position=fitted.space.uses_position,
        repairs=fitted.clustering.repairs,
        pretrained_epochs=0 if mined is None else len(mined.pretraining),
        rounds=0 if mined is None else len(mined.rounds),
        round_taken=0 if mined is None else mined.taken,
        assumed_spacing=sum(stated_spacing_mm(lesion) is None for lesion in kept),
        messages=found.messages[:100],
        computed=found.computed,
    )
    fitted.save(out / MODEL_FILE)
    some = [kept[i] for i in shown]
    points = fitted.space.transform(features[shown], positions(some))
    if pretraining is not None and not summary.pretrained_epochs:
        few = fitted.fitted_on["lesions"]
        summary.messages.insert(
            0, f"no pretraining: {few} lesions of training patients are too few ({pretraining.prototypes} are needed)"
        )
    note = _write_cards(some, labels[shown], points, fitted, images, model, out)
    if note is not None:
        summary.messages.insert(0, note)
    write_json(out / "summary.json", _as_json(summary))
    _write_categories(kept, labels.tolist(), distances.tolist(), fitted.names, out)
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


def _write_cards(
    lesions: Sequence[Lesion],
    labels: Labels,
    points: Array,
    fitted: Categorizer,
    images: Path,
    model: Path | None,
    out: Path,
) -> str | None:
    """Names, page and picture of the categories; a message where proposed names could not take their place."""
    settings, count = fitted.crops, len(fitted.names)
    proposals = propose_names(lesions, labels, count, images, settings)
    proposed, reasons = [v.name for v in proposals], [v.reason for v in proposals]
    names, note = settle_names(out, proposed, reasons, fingerprint(out / MODEL_FILE), model=model)
    cards = make_cards(lesions, labels, points, fitted.clustering.centroids, names, proposals)
    summary = f"{len(lesions):,} lesions of {len({v.patient_id for v in lesions}):,} patients in {count} categories, "
    summary += "which were found in these lesions." if model is None else "as an earlier run found them."
    draw_cards(cards, lesions, images, settings, out / "cards.png")
    write_page(cards, lesions, images, settings, summary, out / PAGE_FILE)
    return note


def _write_categories(
    lesions: Sequence[Lesion], labels: list[int], distances: list[float], names: Sequence[str], out: Path
) -> None:
    columns = [
        [lesion.lesion_id for lesion in lesions],
        [SCHEMA_VERSION] * len(lesions),
        labels,
        [names[label] for label in labels],
        distances,
    ]
    arrays = [pa.array(values, type=f.type) for values, f in zip(columns, CATEGORY_SCHEMA, strict=True)]
    # Which names in `categories.yaml` are names of these categories, and how many there are though some be empty here.
    stated = {"categorizer": fingerprint(out / MODEL_FILE), "categories": str(len(names))}
    schema = CATEGORY_SCHEMA.with_metadata({**CATEGORY_SCHEMA.metadata, **stated})
    write_table(pa.Table.from_arrays(arrays, schema=schema), out / "categories.parquet")
