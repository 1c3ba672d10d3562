"""An archive as a DeepLesion-format release of one's own: ``DL_info.csv`` and ``Images_png``, de-identified."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.archive.body import body_box_px
from data_prep.archive.deidentify import ExportKey, coarse_age, coarse_sex, known_modality
from data_prep.archive.index import ImageIndex, ImageRecord, SeriesReport
from data_prep.archive.png import read_hu, write_hu
from data_prep.archive.series import positions_along_normal
from data_prep.archive.volume import CT_SOP_CLASSES, read_slice_hu
from data_prep.atomic import make_folder, write_csv
from data_prep.errors import DataPrepError, UnreadableError
from data_prep.frames import clip_box
from data_prep.lesion import Lesion, read_lesions
from data_prep.splits import Patients
from data_prep.writers.deeplesion import write_dl_info

IMAGES_FOLDER = "Images_png"

FEWEST_FOR_PROCESSES = 32
"""Starting processes costs more than exporting fewer slices than this."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What an export wrote: ``reasons`` counts the lesions not exported, ``problems`` what is odd about series."""

    lesions: int
    not_exported: int
    reasons: dict[str, int]
    patients: int
    series: int
    slices: int
    slices_unreadable: int
    problems: int
    key: Path

    def __str__(self) -> str:
        return (
            f"{self.lesions} lesions of {self.patients} patients exported with {self.slices} slices of {self.series} "
            f"series; {self.not_exported} lesions not exported, {self.problems} problems with series. "
            f"Keep {self.key} apart: it leads back to the patients."
        )


@dataclass(slots=True)
class _Plan:
    """What to export, before it has names."""

    lesions: list[tuple[Lesion, ImageRecord]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # lesion id -> reason
    slices: dict[str, dict[int, ImageRecord]] = field(default_factory=lambda: defaultdict(dict))
    ranges: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # of key slices: first, last index


@dataclass(frozen=True, slots=True)
class _Job:
    image: str
    target: str
    source: str
    frame_number: int
    rows: int
    columns: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class _Done:
    image: str
    reason: str | None = None
    body_px: Box | None = None


def export(
    lesions: str | os.PathLike[str],
    dicom: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    margin_mm: float = 30.0,
    workers: int = 1,
    progress: bool = True,
    key: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    seed: int | None = None,
) -> ExportSummary:
    """Write the lesions of ``lesions.parquet`` and the CT slices around them in DeepLesion's format.

    ``OUT/DL_info.csv``, ``OUT/Images_png/PPPPPP_SS_RR/NNN.png`` (HU to the bit; NNN is the slice's 1-based number in
    its series, sorted towards +S), ``OUT/lesions_not_exported.csv`` and ``OUT/series_problems.csv``. Nothing in OUT
    names a patient, a date or a UID; the key file does. Killed and run again, it goes on where it was.

    Args:
        lesions: made by ``harvest``.
        dicom: the folder of the images.
        out: the output folder.
        margin_mm: how far on each side of a key slice its neighbours are exported.
        workers: processes.
        progress: show progress bars.
        key: the key file; by default beside OUT, ``OUT_key.csv``. It must not lie in OUT.
        cache: where to keep the index of the images; it holds patients' IDs. None: it is not kept.
        seed: for made data only; see :meth:`ExportKey.assign`.

    Raises:
        DataPrepError: bad arguments, unreadable ``lesions``, no such folder, OUT not writable, or a key file that does
            not fit OUT.
    """
    if not (np.isfinite(margin_mm) and margin_mm >= 0):
        raise DataPrepError(f"the margin must be a length in mm, not {margin_mm}")
    all_lesions = read_lesions(lesions)
    out = make_folder(out)
    export_key = _load_key(out, None if key is None else Path(key))
    if cache is not None and Path(cache).resolve().is_relative_to(out.resolve()):
        raise DataPrepError(
            f"{cache}: the index holds patients' IDs and must not lie in the export; name a place beside it"
        )
    index = ImageIndex.build(dicom, cache=None if cache is None else Path(cache), workers=workers, progress=progress)

    plan = _plan(all_lesions, index, margin_mm)
    names = export_key.assign(plan.slices, seed=seed)
    export_key.save()  # before the first slice: what is in OUT can always be led back

    key_slices = {(record.series_key, record.slice_index) for _, record in plan.lesions}
    jobs = [
        _Job(
            image=names[series_key, slice_index],
            target=str(out / IMAGES_FOLDER / names[series_key, slice_index]),
            source=str(record.path),
            frame_number=record.frame_number,
            rows=record.rows,
            columns=record.columns,
            is_key=(series_key, slice_index) in key_slices,
        )
        for series_key, slices in plan.slices.items()
        for slice_index, record in slices.items()
    ]
    jobs.sort(key=lambda job: (job.source, job.frame_number))
    done = {}
    with tqdm(total=len(jobs), desc="exporting slices", unit="slice", disable=not progress) as bar:
        for result in _run(jobs, workers):
            done[result.image] = result
            bar.update()

    rows = list(_rows(plan, names, done))
    rows.sort(key=lambda row: (row.image or "", row.box_px or (), row.lesion_id))
    reasons = Counter(plan.refused.values())
    problems = list(_problems(plan, names, done, index))
    write_csv(out / "lesions_not_exported.csv", ("lesion_id", "reason"), sorted(plan.refused.items()))
    write_csv(out / "series_problems.csv", ("series", "problem"), sorted(problems))
    write_dl_info(rows, out / "DL_info.csv")
    written = [image for image, result in done.items() if result.reason is None]
    return ExportSummary(
        lesions=len(rows),
        not_exported=len(plan.refused),
        reasons=dict(reasons.most_common()),
        patients=len({image.partition("_")[0] for image in written}),
        series=len({image.partition("/")[0] for image in written}),
        slices=len(written),
        slices_unreadable=len(done) - len(written),
        problems=len(problems),
        key=export_key.path,
    )


def _load_key(out: Path, path: Path | None) -> ExportKey:
    path = path or out.resolve().with_name(out.resolve().name + "_key.csv")
    if path.resolve().is_relative_to(out.resolve()):
        raise DataPrepError(f"{path}: the key file must not lie in the export itself; name a place beside it")
    export_key = ExportKey.load(path)
    images = out / IMAGES_FOLDER
    for half_written in images.glob("*/.*.part.png"):  # of a run that was killed
        half_written.unlink()
    known = {name.partition("/")[0] for name in export_key.rows}
    if {image.parent.name for image in images.glob("*/*.png")} - known:
        raise DataPrepError(
            f"{out}: holds images that {path} does not know; put its key file back or export to an empty folder"
        )
    return export_key


def _plan(lesions: Sequence[Lesion], index: ImageIndex, margin_mm: float) -> _Plan:
    """Which lesions and slices are exported, and why the others are not."""
    plan = _Plan()
    found: list[tuple[Lesion, ImageRecord]] = []
    for lesion in lesions:
        record = index.find(lesion.image_uid, lesion.frame_number) if lesion.image_uid else None
        reason = _refusal(lesion, record, index.is_shared(lesion.image_uid or ""))
        if reason is not None:
            plan.refused[lesion.lesion_id] = reason
        elif record is not None:
            found.append((lesion, record))
    # Where images share a position, the marked one is exported; of two marked ones the first by instance UID.
    for lesion, record in sorted(found, key=lambda item: (item[1].sop_instance_uid or "", item[0].lesion_id)):
        held = plan.slices[record.series_key].setdefault(record.slice_index, record)
        if (held.sop_instance_uid, held.frame_number) != (record.sop_instance_uid, record.frame_number):
            plan.refused[lesion.lesion_id] = "another marked image at the same position of the series is exported"
        else:
            plan.lesions.append((lesion, record))
    for series_key in list(plan.slices):
        if not plan.slices[series_key]:
            del plan.slices[series_key]
    for _, record in plan.lesions:
        key_slice = (record.series_key, record.slice_index)
        if key_slice not in plan.ranges:
            around = _around(record, index.series_of(record), margin_mm)
            for neighbour in around:
                plan.slices[record.series_key].setdefault(neighbour.slice_index, neighbour)
            indices = [neighbour.slice_index for neighbour in around]
            plan.ranges[key_slice] = min(indices), max(indices)
    return plan


def _refusal(lesion: Lesion, record: ImageRecord | None, uid_is_shared: bool) -> str | None:
    """Why a lesion is not exported, in words that quote nothing of the patient."""
    if lesion.withheld:
        return lesion.withheld
    if lesion.box_px is None:
        return "a location without a box"
    if lesion.recist_px is None:
        return "a box without measured diameters, for which DL_info.csv has no place"
    if not lesion.image_uid:
        return "no image UID: nothing says which DICOM image it is on"
    if uid_is_shared:
        return "images of several patients or studies bear the UID of its image"
    if record is None:
        return "its image is not in the DICOM folder"
    if record.frame_count > 1 and lesion.frame_number is None:
        return "it names no frame of its multi-frame image"
    if record.modality != "CT" and record.sop_class_uid not in CT_SOP_CLASSES:
        return f"not a CT image ({known_modality(record.modality)}): its pixels are not Hounsfield units"
    if clip_box(lesion.box_px, record.columns, record.rows) is None:
        return "its box lies outside its image"
    return None


def _around(record: ImageRecord, series: SeriesReport, margin_mm: float) -> list[ImageRecord]:
    """The images of a series within the margin of a key slice, itself among them; only itself without positions."""
    along = positions_along_normal(series.records)
    # A frame of a multi-frame image without functional groups is no record of the series: its place is unknown.
    own = next((i for i, other in enumerate(series.records) if other == record), None)
    if along is None or own is None:
        return [record]
    near = np.abs(along - along[own]) <= margin_mm + 1e-3  # stored positions are rounded
    return [other for other, is_near in zip(series.records, near, strict=True) if is_near]


def _run(jobs: Sequence[_Job], workers: int) -> Iterator[_Done]:
    if workers <= 1 or len(jobs) < FEWEST_FOR_PROCESSES:
        yield from map(_export_slice, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_export_slice, jobs, chunksize=8)


def _export_slice(job: _Job) -> _Done:
    """Write one slice, unless it is there already: PNGs appear whole or not at all."""
    try:
        hu = _existing(job)
        if hu is None:
            hu = read_slice_hu(job.source, job.frame_number)
            write_hu(job.target, hu)
    except UnreadableError as error:
        return _Done(job.image, str(error).removeprefix(f"{job.source}: "))
    return _Done(job.image, body_px=body_box_px(hu) if job.is_key else None)


def _existing(job: _Job) -> np.ndarray | None:
    target = Path(job.target)
    if not target.is_file():
        return None
    try:
        hu = read_hu(target)
    except UnreadableError:
        return None
    return hu if hu.shape == (job.rows, job.columns) else None


def _rows(plan: _Plan, names: dict[tuple[str, int], str], done: dict[str, _Done]) -> Iterator[Lesion]:
    """The lesions as rows of DL_info.csv; those whose slice could not be read are added to ``plan.refused``."""
    patients = Patients()
    identifiers = {}
    for lesion, record in plan.lesions:
        identifiers[lesion.lesion_id] = (
            record.patient_id,
            record.study_uid,
            record.series_uid,
            record.sop_instance_uid,
            record.series_key,
        )
        patients.add(identifiers[lesion.lesion_id], lesion.split)
    for lesion, record in plan.lesions:
        key_slice = (record.series_key, record.slice_index)
        result = done[names[key_slice]]
        if result.reason is not None:
            plan.refused[lesion.lesion_id] = f"its slice: {result.reason}"
            continue
        norm_x, norm_y = _relative_place(lesion, result.body_px)
        first, last = plan.ranges[key_slice]
        has_window = lesion.window_min_hu is not None and lesion.window_max_hu is not None
        yield replace(
            lesion,
            image=result.image,
            rows=record.rows,
            columns=record.columns,
            spacing_x_mm=record.spacing_x_mm,
            spacing_y_mm=record.spacing_y_mm,
            # Slices are numbered towards the head; a positive step would say towards the feet (Lesion.numbers_lead_to).
            spacing_z_mm=None if record.spacing_z_mm is None else -record.spacing_z_mm,
            window_min_hu=lesion.window_min_hu if has_window else record.window_min_hu,
            window_max_hu=lesion.window_max_hu if has_window else record.window_max_hu,
            norm_x=norm_x,
            norm_y=norm_y,
            norm_z=None,  # DeepLesion's is the height in the whole body, which a scan of a part does not tell
            slice_first=first + 1,
            slice_last=last + 1,
            patient_sex=coarse_sex(record.patient_sex),
            patient_age=coarse_age(record.patient_age),
            split=patients.of(identifiers[lesion.lesion_id])[1],
        )


def _relative_place(lesion: Lesion, body_px: Box | None) -> tuple[float | None, float | None]:
    """The centre of the box relative to the body on its slice, 0 at its left and upper bound, 1 at the others."""
    if lesion.box_px is None or body_px is None:
        return None, None
    (x0, y0, x1, y1), (left, top, right, bottom) = lesion.box_px, body_px
    return ((x0 + x1) / 2 - left) / (right - left), ((y0 + y1) / 2 - top) / (bottom - top)


def _problems(
    plan: _Plan, names: dict[tuple[str, int], str], done: dict[str, _Done], index: ImageIndex
) -> Iterator[tuple[str, str]]:
    """(series as exported, what is odd about it)."""
    for series_key, slices in plan.slices.items():
        series = names[series_key, next(iter(slices))].partition("/")[0]
        for problem in index.series_of(next(iter(slices.values()))).problems:
            yield series, problem
    for image, result in done.items():
        if result.reason is not None:
            series, _, name = image.partition("/")
            yield series, f"slice {name.removesuffix('.png')} is not exported: {result.reason}"
