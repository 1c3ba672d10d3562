"""Find lesions that look like a given one, or whose bookmarks say given words: exact search over all lesions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_prep.atomic import atomic_path, make_folder, write_csv
from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.features import extract, file_in_folder
from data_prep.categorize.pipeline import MODEL_FILE, refuse_json, select
from data_prep.categorize.retrieval import Numbers, Points, best, unit_rows
from data_prep.categorize.sheet import Picture, draw_sheet
from data_prep.categorize.space import positions
from data_prep.categorize.words import text_similarity, words
from data_prep.errors import DataPrepError, UnreadableError
from data_prep.lesion import Lesion, read_lesions
from data_prep.splits import Patients
from data_prep.writers.select import read_categories

INDEX_FILE = "search.safetensors"
INDEX_VERSION = 1

SHEET_HITS = 55
"""Hits on the contact sheet at most; ``hits.csv`` has all."""

COLUMNS = ("rank", "lesion_id", "similarity", "image", "category", "long_diameter_mm", "same_patient")

_TRANSFORM_ROWS = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hit:
    """A lesion that was found.

    Attributes:
        lesion: the lesion.
        similarity: -1 to 1, 1 for the same; 0 to 1 where only words were looked for.
        category: its name, where known.
        same_patient: whether it is of the patient of the given lesion; None where none was given.
    """

    lesion: Lesion
    similarity: float
    category: str | None
    same_patient: bool | None


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """What was found.

    Attributes:
        hits: best first.
        searched: lesions that could have been found.
        lesions: rows of ``lesions.parquet``.
    """

    hits: list[Hit]
    searched: int
    lesions: int

    def lines(self) -> list[str]:
        """A table for people."""
        table = [f"{'rank':>4}  {'similarity':>10}  {'diameter':>8}  {'category':20}  {'lesion':20}  image"]
        for rank, hit in enumerate(self.hits, 1):
            size = hit.lesion.long_diameter_mm
            table.append(
                f"{rank:>4}  {hit.similarity:>10.3f}  {'' if size is None else f'{size:.0f} mm':>8}  "
                f"{hit.category or '':20}  {hit.lesion.lesion_id:20}  {hit.lesion.image or ''}"
                f"{'  (same patient)' if hit.same_patient else ''}"
            )
        return [*table, f"searched {self.searched:,} of {self.lesions:,} lesions"]


def search(
    lesions: Path,
    images: Path,
    out: Path,
    *,
    categories: Path | None = None,
    like: str | None = None,
    text: str | None = None,
    count: int = 20,
    other_patients: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> SearchSummary:
    """Rank all lesions and write ``hits.csv`` and ``hits.png``, a contact sheet, into ``out``.

    ``like`` ranks by the cosine similarity of appearance, context and position in the categoriser's space, ``text`` by
    that of words (:func:`data_prep.categorize.words.text_similarity`), both by the mean of the two. Lesions rejected
    in review are not found. Nothing that is written names a patient or quotes a bookmark.

    Args:
        lesions: ``lesions.parquet``.
        images: the images folder.
        out: the output folder.
        categories: what `categorize` wrote; needed for ``like``, and the source of the hits' categories.
        like: the id of a lesion; it is not a hit itself.
        text: words.
        count: hits wanted.
        other_patients: leave out lesions of the patient of ``like``.
        device: for features that are not in the cache.

    Raises:
        DataPrepError: bad input, or nothing was found.
    """
    text = None if text is None or not text.strip() else " ".join(text.split())
    if like is None and text is None:
        raise DataPrepError('say what to look for: --like LESION_ID, --text "WORDS", or both')
    if count < 1:
        raise DataPrepError(f"--count must be at least 1, got {count}")
    if other_patients and like is None:
        raise DataPrepError("--other-patients leaves out the patient of a lesion: give that lesion with --like")
    fitted = None
    if like is not None:
        if categories is None:
            raise DataPrepError("--like needs --categories: the folder that `categorize` wrote")
        fitted = Categorizer.load(categories / MODEL_FILE)
    elif categories is not None and not categories.is_dir():
        raise DataPrepError(f"{categories}: no such folder; --categories takes the folder that `categorize` wrote")
    refuse_json(lesions)
    rows = read_lesions(lesions)
    if not images.is_dir():
        raise DataPrepError(f"{images}: no such images folder; give the folder that `image` paths start from")
    make_folder(out)

    allowed = np.array([row.review != "rejected" for row in rows], dtype=np.bool_)
    scores: list[npt.NDArray[np.float32]] = []
    query: int | None = None
    same: npt.NDArray[np.bool_] | None = None
    if like is not None and categories is not None and fitted is not None:
        query = _find(like, rows, lesions)
        numbers, points = indexed_points(
            rows, lesions, images, categories, fitted=fitted, device=device, progress=progress
        )
        scores.append(_similar(query, rows, numbers, points))
        has_features = np.zeros(len(rows), np.bool_)
        has_features[numbers] = True
        same = _same_patient(rows, query)
        allowed &= has_features & ~(same & other_patients)
        allowed[query] = False
    if text is not None:
        said = _said(rows, text, lesions)
        scores.append(said)
        if query is None:
            allowed &= said > 0
    # What differs by rounding is equal, and comes in the file's order.
    similarity: npt.NDArray[np.float32] = np.round(np.stack(scores).mean(axis=0), 6)
    found = best(similarity, count, allowed)
    if not len(found):
        raise DataPrepError(f"{lesions}: there is no other lesion to find (of {len(rows):,})")

    names = _category_names(categories)
    hits = [
        Hit(
            rows[number],
            float(similarity[number]),
            names.get(rows[number].lesion_id),
            None if same is None else bool(same[number]),
        )
        for number in found.tolist()
    ]
    _draw(None if query is None else rows[query], text, hits, images, fitted, out / "hits.png")
    write_csv(out / "hits.csv", COLUMNS, [_row(rank, hit) for rank, hit in enumerate(hits, 1)])
    return SearchSummary(hits, int(allowed.sum()), len(rows))


def indexed_points(
    rows: Sequence[Lesion],
    lesions: Path,
    images: Path,
    categories: Path,
    *,
    fitted: Categorizer,
    device: str | None = None,
    progress: bool = True,
) -> tuple[Numbers, Points]:
    """The lesions' points in the categoriser's space, scaled to length 1.

    They are kept in ``categories/search.safetensors`` for the next search, until the lesions, the categoriser, or the
    size or time of a slice changes. Else they come from the cache of features, and what that lacks is computed.

    Returns:
        (M,) numbers of the rows that have features, ascending, and their (M, D) points.

    Raises:
        DataPrepError: the features cannot be made.
    """
    path = categories / INDEX_FILE
    key = _key(rows, lesions, categories / MODEL_FILE, images)
    kept = _load_index(path, key, len(rows), fitted.clustering.centroids.shape[1])
    if kept is not None:
        return kept
    usable, _ = select(rows)
    extractor = FeatureExtractor(device, fitted.tail)
    if fitted.network != extractor.identity:
        raise DataPrepError(f"{categories / MODEL_FILE}: fitted on features of another network; categorise again")
    found = extract(usable, images, extractor, fitted.crops, categories / "features", progress=progress)
    number_of = {id(row): number for number, row in enumerate(rows)}
    members = [usable[i] for i in found.kept]
    numbers = np.array([number_of[id(lesion)] for lesion in members], dtype=np.intp)
    position = positions(members)
    points = np.empty((len(members), fitted.clustering.centroids.shape[1]), np.float32)
    for start in range(0, len(points), _TRANSFORM_ROWS):  # the transform works in float64, twelve times as large
        block = slice(start, start + _TRANSFORM_ROWS)
        points[block] = unit_rows(fitted.space.transform(found.features[block], position[block]))
    header = json.dumps({"schema_version": INDEX_VERSION, "key": key})
    with atomic_path(path) as temporary:
        save_file({"numbers": numbers.astype(np.int64), "points": points}, temporary, metadata={"search": header})
    return numbers, points


def _key(rows: Sequence[Lesion], lesions: Path, model: Path, images: Path) -> str:
    """What the points depend on. Slices by size and time: reading them all would take longer than the search."""
    digest = hashlib.sha256()
    for path in (lesions, model):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for image in sorted({row.image for row in rows if row.image}):
        try:
            stat = file_in_folder(images, image).stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except (UnreadableError, OSError):
            state = "missing"
        digest.update(f"{image}\x1f{state}\x1e".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _load_index(path: Path, key: str, rows: int, dimensions: int) -> tuple[Numbers, Points] | None:
    """The kept points, or None where there are none, other ones, or damaged ones."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["search"])
            if (header["schema_version"], header["key"]) != (INDEX_VERSION, key):
                return None
            numbers, points = file.get_tensor("numbers"), file.get_tensor("points")
        good = (
            numbers.dtype == np.int64
            and points.dtype == np.float32
            and points.shape == (len(numbers), dimensions)
            and bool(((numbers >= 0) & (numbers < rows)).all() and (np.diff(numbers) > 0).all())
            and bool(np.isfinite(points).all())
        )
        if not good:
            raise ValueError("not what a search keeps")
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        _log.warning("%s: damaged, made anew (%s)", path, type(error).__name__)
        return None
    return numbers.astype(np.intp), points


def _find(like: str, rows: Sequence[Lesion], lesions: Path) -> int:
    """The number of the lesion with this id."""
    for number, row in enumerate(rows):
        if row.lesion_id == like:
            _, reasons = select([row])
            for reason in reasons:
                raise DataPrepError(f"lesion {like} cannot be compared: {reason}; give another one")
            return number
    raise DataPrepError(
        f"{lesions}: none of its {len(rows):,} lesions has the id {like[:80]!r}; the column lesion_id of that file "
        "has them all"
    )


def _similar(query: int, rows: Sequence[Lesion], numbers: Numbers, points: Points) -> npt.NDArray[np.float32]:
    """Cosine similarity of every row to row ``query``; 0 for rows without features."""
    place = int(np.searchsorted(numbers, query))
    if place == len(numbers) or numbers[place] != query:
        reason = "its slice is missing, unreadable or does not fit its box"
        raise DataPrepError(f"lesion {rows[query].lesion_id} cannot be compared: {reason}; give another one")
    similarity = np.zeros(len(rows), np.float32)
    similarity[numbers] = np.clip(points @ points[place], -1, 1)
    return similarity


def _said(rows: Sequence[Lesion], text: str, lesions: Path) -> npt.NDArray[np.float32]:
    """Similarity of every row's words to the text."""
    try:
        similarity = text_similarity([words(row) for row in rows], text)
    except ValueError as error:
        raise DataPrepError(
            f"{lesions}: no lesion has words (text, site, finding or side), so there is nothing that --text could "
            "find; use --like LESION_ID"
        ) from error
    if not similarity.any():
        raise DataPrepError(f"{lesions}: no lesion's words hold a word of --text; try other words")
    return similarity


def _same_patient(rows: Sequence[Lesion], query: int) -> npt.NDArray[np.bool_]:
    """Which rows are of the patient of row ``query``, also where records state only the study, series or image."""
    known = Patients()
    identifiers = [(v.patient_id, v.study_uid, v.series_uid, v.image_uid or v.image, v.lesion_id) for v in rows]
    for stated in identifiers:
        known.add(stated)
    patient = known.of(identifiers[query])[0]
    return np.array([known.of(stated)[0] == patient for stated in identifiers], dtype=np.bool_)


def _category_names(folder: Path | None) -> dict[str, str]:
    """Lesion id -> name of its category; empty where nothing is known."""
    path = None if folder is None else folder / "categories.parquet"
    if path is None or not path.is_file():
        return {}
    known = read_categories(path)
    return {lesion_id: known.names[label] for lesion_id, label in (known.labels or {}).items()}


def _row(rank: int, hit: Hit) -> list[object]:
    size = hit.lesion.long_diameter_mm
    return [
        rank,
        hit.lesion.lesion_id,
        f"{hit.similarity:.4f}",
        hit.lesion.image or "",
        hit.category or "",
        "" if size is None else f"{size:.2f}",
        "" if hit.same_patient is None else str(hit.same_patient).lower(),
    ]


def _draw(
    query: Lesion | None,
    text: str | None,
    hits: Sequence[Hit],
    images: Path,
    fitted: Categorizer | None,
    path: Path,
) -> None:
    settings = CropSettings() if fitted is None else fitted.crops
    pictures = [] if query is None else [Picture(query, f"looked for\n{_size(query)}", query=True)]
    for rank, hit in enumerate(hits[:SHEET_HITS], 1):
        notes = [hit.category or "", "same patient" if hit.same_patient else ""]
        caption = f"{rank} · {hit.similarity:.3f} · {_size(hit.lesion)}\n{' · '.join(filter(None, notes))}"
        pictures.append(Picture(hit.lesion, caption))
    wanted = [] if query is None else [f"like lesion {query.lesion_id[:40]}"]
    wanted += [] if text is None else [f"words “{text[:60]}”"]
    shown = min(len(hits), SHEET_HITS)
    title = f"{', '.join(wanted)}: {shown} lesions, best first; pictures: {settings.near_mm:g} mm around each"
    draw_sheet(pictures, title, images, settings, path)


def _size(lesion: Lesion) -> str:
    return "size unknown" if lesion.long_diameter_mm is None else f"{lesion.long_diameter_mm:.0f} mm"
