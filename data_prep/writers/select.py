"""Which lesions a data set may use, on which slice, with which label; shared by the datalist and COCO writers."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import frames
from data_prep.category_names import MAX_CATEGORIES, NAMES_FILE, name_problem, read_names
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion
from data_prep.splits import split_of

DEFAULT_CATEGORY = "lesion"


@dataclass(frozen=True, slots=True)
class Target:
    """A lesion that may be used: its box clipped to the slice, half-open px, and its label."""

    lesion: Lesion
    box_px: tuple[float, float, float, float]
    label: int


@dataclass(frozen=True, slots=True)
class Slice:
    """A key slice with its targets (at least one), ordered by lesion id."""

    image: str
    columns: int
    rows: int
    split: str
    patient_id: str
    targets: tuple[Target, ...]


@dataclass(slots=True)
class Selection:
    """Slices ordered by image; ``left_out`` counts lesions by reason, ``clipped`` boxes that stuck out."""

    slices: list[Slice] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    clipped: int = 0


@dataclass(frozen=True, slots=True)
class Categories:
    """``names`` by label; ``labels`` by lesion id, None where there is but one category."""

    names: tuple[str, ...] = (DEFAULT_CATEGORY,)
    labels: Mapping[str, int] | None = None


def read_categories(path: str | PathLike[str]) -> Categories:
    """Read ``categories.parquet`` (columns ``lesion_id``, ``category`` 0-based, ``category_name``).

    Where ``categories.yaml`` lies beside it, its names go before those of the column.

    Raises:
        DataPrepError: no such file, not Parquet, a missing column, a label below 0 or missing, a label with two
            names or one that cannot be a name; or ``categories.yaml`` is not a good one, or is of another run.
    """
    path = Path(path)
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise DataPrepError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise DataPrepError(f"{path}: not a readable Parquet file") from error
    missing = [name for name in ("lesion_id", "category", "category_name") if name not in table.column_names]
    if missing:
        raise DataPrepError(f"{path}: the column {missing[0]!r} is missing; make the file with `categorize`")
    labels: dict[str, int] = {}
    names: dict[int, str] = {}
    rows = (table[name].to_pylist() for name in ("lesion_id", "category", "category_name"))
    for lesion_id, label, name in zip(*rows, strict=True):
        if not isinstance(label, int) or not 0 <= label < MAX_CATEGORIES:
            raise DataPrepError(f"{path}: lesion {lesion_id} has the label {label}; labels are 0, 1, 2, ...")
        if label not in names and (problem := name_problem(name)):
            raise DataPrepError(f"{path}: the name of category {label} {problem}")
        if names.setdefault(label, str(name)) != str(name):
            raise DataPrepError(f"{path}: category {label} has two names, {names[label]!r} and {name!r}")
        labels[str(lesion_id)] = label
    if not labels:
        raise DataPrepError(f"{path}: holds no category")
    stated = table.schema.metadata or {}
    count, said = max(names) + 1, stated.get(b"categories", b"")
    if said.isdigit() and len(said) < 9 and count < int(said) <= MAX_CATEGORIES:
        count = int(said)  # the last categories may have no lesion here
    in_use = tuple(names.get(i, f"category-{i}") for i in range(count))
    return Categories(_named(in_use, path.with_name(NAMES_FILE), stated.get(b"categorizer")), labels)


def _named(names: tuple[str, ...], file: Path, categorizer: bytes | None) -> tuple[str, ...]:
    """``names`` with those of the names file, if there is one."""
    if not file.is_file():
        return names
    given = read_names(file)
    if not given.belong_to(None if categorizer is None else categorizer.decode("ascii", "replace"), MAX_CATEGORIES):
        raise DataPrepError(
            f"{file}: these are names of another run's categories; use those that `categorize` proposed beside it "
            "instead, or delete the file"
        )
    if not given.belong_to(None, len(names)):
        raise DataPrepError(f"{file}: there is no category {max(given.names)}; they are 0 to {len(names) - 1}")
    return given.over(names)


def select(lesions: Iterable[Lesion], images: str | PathLike[str], categories: Categories | None = None) -> Selection:
    """The lesions that may be used, by key slice.

    Left out (and counted): lesions without a box, without an image below ``images``, rejected in review, officially
    noisy, a detector's that nobody accepted, without a category where there are categories, and boxes that lie wholly
    outside their slice. The other boxes are clipped to their slice.

    Args:
        lesions: from ``lesions.parquet``.
        images: the images folder.
        categories: None: all lesions have the label 0.

    Raises:
        DataPrepError: the images folder is missing, or a slice cannot be read.
    """
    root = Path(images)
    if not root.is_dir():
        raise DataPrepError(f"{root}: no such images folder")
    categories = categories or Categories()
    selection = Selection()
    by_image: defaultdict[str, list[Lesion]] = defaultdict(list)
    there: dict[str, bool] = {}
    for lesion in lesions:
        reason = _unfit(lesion, categories)
        image = lesion.image
        if not reason and image is not None:
            if image not in there:
                there[image] = ".." not in Path(image).parts and (root / image).is_file()
            reason = None if there[image] else "no image in the folder"
        if reason or image is None:
            selection.left_out[reason or "no image"] += 1
        else:
            by_image[image].append(lesion)
    for image in sorted(by_image):
        found = _slice(image, by_image[image], root, categories, selection)
        if found is not None:
            selection.slices.append(found)
    return selection


def _unfit(lesion: Lesion, categories: Categories) -> str | None:
    if lesion.withheld:
        return lesion.withheld
    if lesion.box_px is None:
        return "a location without a box"
    if lesion.possibly_noisy:
        return "possibly noisy"
    if not lesion.image:
        return "no image"
    if categories.labels is not None and lesion.lesion_id not in categories.labels:
        return "no category"
    return None


def _slice(image: str, lesions: list[Lesion], root: Path, categories: Categories, selection: Selection) -> Slice | None:
    columns, rows = _size(root / image)
    targets = []
    for lesion in sorted(lesions, key=lambda lesion: lesion.lesion_id):
        box_px = lesion.box_px
        assert box_px is not None
        clipped = frames.clip_box(box_px, columns, rows)
        if clipped is None:
            selection.left_out["the box lies outside the image"] += 1
            continue
        x0, y0, x1, y1 = clipped.tolist()
        selection.clipped += (x0, y0, x1, y1) != box_px
        label = 0 if categories.labels is None else categories.labels[lesion.lesion_id]
        targets.append(Target(lesion, (x0, y0, x1, y1), label))
    if not targets:
        return None
    first = targets[0].lesion
    patients = {lesion.patient_id or f"image:{image}" for lesion in lesions}
    patient = min(patients)
    split = first.split or split_of(patient)
    if len({lesion.split for lesion in lesions}) > 1 or len(patients) > 1:
        raise DataPrepError(f"{image}: its lesions are of several patients or splits; make the tables again")
    return Slice(image, columns, rows, split, patient, tuple(targets))


def _size(path: Path) -> tuple[int, int]:
    """Columns and rows as the slice's own header states them (PNG specification, 11.2.2 IHDR)."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise DataPrepError(f"{path}: cannot be read ({error.strerror})") from error
    if len(head) < 24 or not head.startswith(b"\x89PNG\r\n\x1a\n") or head[12:16] != b"IHDR":
        raise DataPrepError(f"{path}: not a PNG file; copy it again")
    columns, rows = struct.unpack(">II", head[16:24])
    return columns, rows
