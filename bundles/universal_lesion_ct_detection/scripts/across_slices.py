"""A second look at a finding: what the detector says of the same place on neighbouring slices.

A lesion is still there a few millimetres on, and gone after a few centimetres. A vessel, a vertebra or a bowel loop
stays in its place for longer. So each finding is described by three log-odds, and a logistic model of them gives its
new score:

- **own**: its score;
- **near**: the highest score of a box at the same place 5 mm away;
- **far**: the same at 20 and 30 mm, averaged over the two distances.

At the same place is what overlaps the finding with an IoU of 0.5 or more, the measure by which the evaluation calls two
boxes one. Of both directions, towards the head and towards the feet, the higher score counts: noise hides a vessel on
one side, but does not make one up. Where no box lies at the same place, the detector's lowest score counts. Where there
is no slice (the series ends, or is not stored so far), nothing is known, which is something else: the model then takes
what it expects of a finding with that score.

Boxes are half-open px of the stored slice. The model is fitted by :mod:`scripts.fit_across_slices`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scripts.checkpoint import across_slices_of
from scripts.contract import known_mm
from scripts.errors import BundleError
from scripts.froc import Array, box_iou
from scripts.training import collate

NEAR_MM = (5.0,)
FAR_MM = (20.0, 30.0)  # DeepLesion stores 30 mm on either side of a key slice
TOLERANCE_MM = 2.5  # a slice further than this from the place that is asked for does not stand for it
SAME_PLACE_IOU = 0.5
LOWEST_SCORE = 0.01  # of a finding, as box_selector in configs/train.yaml has it

Findings = Mapping[str, Any]
"""What :class:`scripts.evaluation.DetectStep` says of a slice: ``box_px`` (n, 4), ``score`` (n,), ``class`` (n,)."""


def log_odds(score: Any) -> Array:
    """log(p / (1 - p)), p kept between :data:`LOWEST_SCORE` and its counterpart."""
    p = np.clip(np.asarray(score, dtype=np.float64), LOWEST_SCORE, 1 - LOWEST_SCORE)
    odds: Array = np.log(p / (1 - p))
    return odds


def places(spacing_mm: float | None) -> dict[float, int]:
    """Signed distance in mm -> how many slices to go, for those of :data:`NEAR_MM` and :data:`FAR_MM` that exist.

    Args:
        spacing_mm: from one slice to the next; where it is unknown there are no places.
    """
    found: dict[float, int] = {}
    if spacing_mm is None:
        return found
    for distance in (*NEAR_MM, *FAR_MM):
        steps = math.floor(distance / spacing_mm + 0.5)
        if steps and abs(steps * spacing_mm - distance) <= TOLERANCE_MM:
            found |= {distance: steps, -distance: -steps}
    return found


def describe(box_px: Array, around: Mapping[float, Findings]) -> Array:
    """What neighbouring slices say of findings.

    Args:
        box_px: (n, 4) of the findings.
        around: signed distance in mm -> findings there; a distance without a slice is left out.

    Returns:
        (n, 2) log-odds near and far; NaN where there is no slice on either side.
    """
    columns: list[Array] = []
    for distances in (NEAR_MM, FAR_MM):
        known = [
            np.max([_at_same_place(box_px, around[d]) for d in (distance, -distance) if d in around], axis=0)
            for distance in distances
            if distance in around or -distance in around
        ]
        columns.append(np.mean(known, axis=0) if known else np.full(len(box_px), np.nan))
    return np.stack(columns, axis=1)


def _at_same_place(box_px: Array, found: Findings) -> Array:
    """(n,) log-odds of the best finding that overlaps each box enough."""
    same = box_iou(box_px, np.asarray(found["box_px"], dtype=np.float64).reshape(-1, 4)) >= SAME_PLACE_IOU
    return log_odds(np.where(same, found["score"], 0.0).max(axis=1, initial=0.0))


@dataclass(frozen=True)
class SecondStage:
    """A logistic model of the log-odds own, near and far.

    Args:
        intercept, weights: of the model, (3,).
        expected_near, expected_far: (intercept, slope) of what is expected near and far of a finding with certain own
            log-odds; taken where it is unknown.
    """

    intercept: float
    weights: tuple[float, float, float]
    expected_near: tuple[float, float]
    expected_far: tuple[float, float]

    def inputs(self, score: Array, seen: Array) -> Array:
        """(n, 3) log-odds own, near and far from (n,) scores and :func:`describe`; the unknown filled in."""
        own = log_odds(score)
        intercept, slope = np.array([self.expected_near, self.expected_far]).T
        return np.column_stack([own, np.where(np.isnan(seen), intercept + slope * own[:, None], seen)])

    def scores(self, score: Array, seen: Array) -> Array:
        """(n,) new scores: the probability of hitting a lesion, rounded as scores are in files."""
        value = self.intercept + self.inputs(score, seen) @ np.array(self.weights)
        new: Array = np.round(1 / (1 + np.exp(-value)), 6)
        return new

    def rescore(self, found: Findings, around: Mapping[float, Findings]) -> dict[str, Any]:
        """The findings of a slice with their new scores, the highest first."""
        score = self.scores(found["score"], describe(found["box_px"], around))
        order = np.argsort(-score, kind="stable")
        return {
            **found,
            "box_px": found["box_px"][order],
            "score": score[order],
            "class": np.asarray(found["class"])[order],
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept in ``model.pt``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SecondStage:
        """From :meth:`to_dict`; further entries are left alone.

        Raises:
            BundleError: something is missing or not a finite number.
        """
        parts: dict[str, Any] = {}
        for name, count in (("intercept", 1), ("weights", 3), ("expected_near", 2), ("expected_far", 2)):
            try:
                numbers = np.array(values.get(name), dtype=np.float64).reshape(-1)
            except (TypeError, ValueError):
                numbers = np.empty(0)
            if len(numbers) != count or not np.isfinite(numbers).all():
                raise BundleError(
                    f"the weights' model across slices has no usable {name!r}; fit it anew with "
                    "configs/fit_across_slices.yaml"
                )
            parts[name] = float(numbers[0]) if count == 1 else tuple(map(float, numbers))
        return cls(**parts)


def second_stage(facts: Mapping[str, Any], wanted: bool) -> SecondStage | None:
    """The model that the weights carry, or None where it is not wanted.

    Args:
        facts: of the weights, see :func:`scripts.checkpoint.facts`.
        wanted: ``across_slices`` of the config.

    Raises:
        BundleError: it is wanted and the weights have none.
    """
    return SecondStage.from_dict(across_slices_of(facts)) if wanted else None


def rescore_series(
    found: Mapping[int, Findings], spacing_mm: float | None, stage: SecondStage
) -> dict[int, dict[str, Any]]:
    """A whole series: slice number -> findings, with their new scores.

    Args:
        found: slice number -> findings, the plain ones.
        spacing_mm: from one slice to the next.
        stage: the model.
    """
    steps = places(spacing_mm)
    return {
        index: stage.rescore(item, {mm: found[index + step] for mm, step in steps.items() if index + step in found})
        for index, item in found.items()
    }


class WithNeighbours:
    """A transform of datalist items that prepares the neighbouring slices as well.

    ``neighbours`` of the result is a list of items, prepared by the same transform and with their ``distance_mm``, for
    those of the :func:`places` whose slice is stored beside the key slice (SERIES/NNN.png). Each has as many slices
    around it as the key slice's item lists, equally far apart, with the nearest one towards it in the place of one that
    is not stored.

    Args:
        transform: of an item.
        dataset_dir: the images folder.
        wanted: false leaves everything to ``transform``.
    """

    def __init__(
        self,
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        dataset_dir: str | PathLike[str],
        wanted: bool = True,
    ) -> None:
        self.transform, self.root, self.wanted = transform, Path(dataset_dir), wanted

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        out = self.transform(item)
        if self.wanted:
            out["neighbours"] = [
                {**self.transform({"image": images, "meta": item.get("meta")}), "distance_mm": distance}
                for distance, images in self.neighbours(item)
            ]
        return out

    def neighbours(self, item: Mapping[str, Any]) -> list[tuple[float, list[str]]]:
        """Signed distance in mm and paths of each neighbour that is stored."""
        images: Sequence[str] = item["image"]
        numbers = [PurePosixPath(image).stem for image in images]
        if not all(number.isdecimal() for number in numbers):
            return []
        half = len(images) // 2
        gaps = [abs(int(a) - int(b)) for a, b in itertools.pairwise(numbers) if a != b]
        gap = min(gaps, default=1)  # what is missing has a stand-in, the same slice again
        found = []
        for distance, steps in places(known_mm((item.get("meta") or {}).get("spacing_mm"), 2)).items():
            number = int(numbers[half]) + steps
            middle = self._stored(images[half], number)
            if middle is None:
                continue
            paths = [middle]
            for direction in (-1, 1):
                last = middle
                for offset in range(gap, gap * half + 1, gap):
                    last = self._stored(images[half], number + direction * offset) or last
                    paths = [last, *paths] if direction < 0 else [*paths, last]
            found.append((distance, paths))
        return found

    def _stored(self, key_image: str, number: int) -> str | None:
        """The path of another slice of the series, where there is one."""
        key = PurePosixPath(key_image)
        path = key.with_name(f"{number:0{len(key.stem)}d}{key.suffix}")
        return str(path) if number >= 0 and (self.root / path).is_file() else None


class DetectAcrossSlices:
    """``iteration_update`` of an evaluator: :class:`scripts.evaluation.DetectStep`, also on the neighbours of a slice.

    Gives what that gives. Where the batch brings ``neighbours`` (:class:`WithNeighbours`), an item also has ``seen``,
    the (n, 2) of :func:`describe` in the order of its boxes as detected, or, with a model, the new scores instead. The
    neighbours of one slice are one batch, so that the outcome does not depend on which slices come together.

    Args:
        step: of single slices.
        stage: the model, or None.
    """

    def __init__(self, step: Callable[..., list[dict[str, Any]]], stage: SecondStage | None = None) -> None:
        self.step, self.stage = step, stage

    def __call__(self, engine: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
        batch = dict(batch)
        neighbours = batch.pop("neighbours", None)
        found = self.step(engine, batch)
        if neighbours is None:
            return found
        out = []
        for item, beside in zip(found, neighbours, strict=True):
            around = {other["distance_mm"]: other for other in self.step(engine, collate(beside))} if beside else {}
            if self.stage is None:
                out.append({**item, "seen": describe(item["box_px"], around)})
            else:
                out.append(self.stage.rescore(item, around))
        return out
