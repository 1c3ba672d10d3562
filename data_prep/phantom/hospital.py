"""The phantom hospital as a whole: patients in a process pool, each finished or not there; then the tables."""

from __future__ import annotations

import dataclasses
import datetime
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep import atomic
from data_prep.archive import png
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion
from data_prep.phantom import radiologist, release
from data_prep.phantom.anatomy import Anatomy
from data_prep.phantom.dicom_series import Study, write_series
from data_prep.phantom.lesions import place_lesions
from data_prep.phantom.scanner import plan_canvas, sample_protocol, scan
from data_prep.schemas import validate
from data_prep.splits import tuning_patients
from data_prep.writers.deeplesion import write_dl_info

VERSION = 1
"""Raised when the same parameters no longer give the same bytes, so that an old folder is not taken for a new one."""

DEFAULT_PATIENTS = 52
MOST_PATIENTS = 9999  # what the four digits of an invented PatientID hold

SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}
"""Patients a split, as in DeepLesion."""

LESIONS_PER_LEVEL = ((1, 0.18), (2, 0.50), (3, 0.32))
"""How many lesions lie at a level, and how often. One is marked, so about half of those on a key slice are."""

LEVELS, LEVEL_PITCH_MM = 5, 38.0

DICOM, IMAGES, TRUTH, CSV, PARAMETERS = "dicom", "Images_png", "truth", "DL_info.csv", "phantom.json"


def make(
    out: str | os.PathLike[str],
    *,
    patients: int = DEFAULT_PATIENTS,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
    forms: Sequence[str] = ("sr",),
) -> None:
    """Write a synthetic hospital.

    ``out`` gets ``dicom/`` (CT series and reports), ``Images_png/`` with ``DL_info.csv`` (the same in DeepLesion's
    form), ``truth/datalist.json`` (every lesion on the key slices) and ``phantom.json`` (the parameters). The same
    parameters give the same bytes. An interrupted call goes on where it stopped; a finished one returns at once.

    Args:
        patients: at least 3 give every split a patient.
        seed: not negative.
        workers: processes.
        forms: how the marks are written into the archive: any of ``sr``, ``gsps``, ``aim``, ``seg``.

    Raises:
        DataPrepError: parameters out of range; ``out`` is not empty and holds something else, or a phantom of other
            parameters; it cannot be written.
    """
    if not 1 <= patients <= MOST_PATIENTS or seed < 0 or workers < 1:
        raise DataPrepError(
            f"a phantom has 1 to {MOST_PATIENTS} patients, a seed that is not negative and at least one worker"
        )
    unknown = [name for name in forms if name not in radiologist.FORMS]
    if unknown or not forms:
        raise DataPrepError(f"unknown form {unknown[0] if unknown else '(none)'}; use {', '.join(radiologist.FORMS)}")
    folder = _claim(Path(out), {"version": VERSION, "patients": patients, "seed": seed, "forms": sorted(set(forms))})
    done = folder / TRUTH / "datalist.json"
    if done.is_file() and (folder / CSV).is_file():
        return
    todo = [n for n in range(1, patients + 1) if not _record_path(folder, n).is_file()]
    jobs = [(folder, n, seed, tuple(sorted(set(forms)))) for n in todo]
    bar = tqdm(total=patients, initial=patients - len(todo), desc="phantom", unit="patient", disable=not progress)
    try:
        with bar:
            for _ in _finished(jobs, workers):
                bar.update()
        _write_tables(folder, patients, seed)
    except OSError as error:
        raise DataPrepError(
            f"{folder}: cannot write ({error.strerror or error}); make room or choose another folder, then run "
            "again to go on"
        ) from error


def _finished(jobs: Sequence[tuple[Path, int, int, tuple[str, ...]]], workers: int) -> Iterator[None]:
    """Make the patients, yielding after each."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            _make_patient(*job)
            yield
        return
    # Spawned, not forked: a parent that has threads (PyTorch, OpenCV) would hand over locked locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures = [pool.submit(_make_patient, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        finally:
            # After a failure the rest would only fail too, or run for minutes before the message.
            pool.shutdown(cancel_futures=True)


def split_of_patients(patients: int, seed: int) -> dict[int, str]:
    """Patient number -> split; shares as in DeepLesion, by a shuffle of the seed."""
    order = np.random.default_rng([seed, 70_15_15]).permutation(np.arange(1, patients + 1))
    out: dict[int, str] = {}
    start, total = 0, 0.0
    for name, share in SHARES.items():
        total += share
        stop = round(patients * total)
        out.update((int(n), name) for n in order[start:stop])
        start = stop
    return dict(sorted(out.items()))


# --- one patient ---------------------------------------------------------------------------------------------------


def _make_patient(folder: Path, number: int, seed: int, forms: tuple[str, ...]) -> None:
    """Write one patient; the record below ``truth/patients`` comes last and marks it as finished."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    body = Anatomy.sample(rng)
    centre_z = float(rng.uniform(-92, 30))
    levels = [centre_z + LEVEL_PITCH_MM * (k - (LEVELS - 1) / 2) + float(rng.uniform(-5, 5)) for k in range(LEVELS)]
    counts, chances = zip(*LESIONS_PER_LEVEL, strict=True)
    lesions = place_lesions(
        rng, body, plan_canvas(body, levels), levels, [int(n) for n in rng.choice(counts, LEVELS, p=chances)]
    )
    first_day = datetime.datetime(2019, 1, 7, 8, 0) + datetime.timedelta(days=3 * number, minutes=7 * (number % 60))
    sex = "FM"[int(rng.integers(2))]
    birth_date = datetime.date(2019 - int(rng.integers(28, 86)), int(rng.integers(1, 13)), int(rng.integers(1, 29)))
    second_day = first_day + datetime.timedelta(days=int(rng.integers(42, 180)), hours=int(rng.integers(0, 6)))

    part = folder / ".part" / f"{number:06d}"
    shutil.rmtree(part, ignore_errors=True)
    items: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    before: list[int] = []
    for date, day in enumerate((first_day, second_day)):
        study = Study(seed, number, date + 1, sex, birth_date, day)
        protocol = sample_protocol(rng, body, thick=bool(rng.random() < 0.6), centre_z_mm=centre_z)
        series = scan(rng, body, lesions, date, protocol)
        chosen = radiologist.choose(rng, series, before)
        before = [lesion for lesion, _ in chosen]
        marks = [radiologist.draw(rng, index, series.seen[index][lesion]) for lesion, index in chosen]
        home = part / DICOM / study.patient_id / f"STUDY{study.study}"
        images = write_series(study, series, home / "CT")
        radiologist.write_reports(study, series, marks, images, forms, home / "REPORTS")
        keys = sorted({mark.slice_index for mark in marks})
        release.write_images(study, series, keys, part / IMAGES)
        items += [release.truth_item(study, series, key, marks) for key in keys]
        rows += [dataclasses.asdict(release.marked_lesion(study, series, body, mark)) for mark in marks]
    _move_in(part, folder, number)
    atomic.write_json(_record_path(folder, number), {"items": items, "lesions": rows})


def _move_in(part: Path, folder: Path, number: int) -> None:
    """Rename a patient's folders into place, over what a killed run may have left of the same patient."""
    for parent, pattern in ((DICOM, f"PHANTOM{number:04d}"), (IMAGES, f"{number:06d}_*")):
        (folder / parent).mkdir(exist_ok=True)
        for old in (folder / parent).glob(pattern):
            shutil.rmtree(old)
        for new in sorted((part / parent).glob(pattern)):
            new.rename(folder / parent / new.name)
    shutil.rmtree(part)


def _record_path(folder: Path, number: int) -> Path:
    return folder / TRUTH / "patients" / f"{number:06d}.json"


# --- the whole -----------------------------------------------------------------------------------------------------


def _claim(out: Path, parameters: dict[str, Any]) -> Path:
    """Make the folder ours, or find that it is."""
    file = out / PARAMETERS
    try:
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found != parameters:
                raise DataPrepError(
                    f"{out}: holds a phantom made with other parameters ({_words(found)}; asked for "
                    f"{_words(parameters)}); remove it or choose another folder"
                )
            return out
        if out.is_dir() and any(out.iterdir()):
            raise DataPrepError(f"{out}: is not empty and not a phantom; choose an empty folder")
    except (OSError, ValueError) as error:
        raise DataPrepError(f"{file}: cannot be read ({error}); remove {out} or choose another folder") from error
    atomic.make_folder(out)
    atomic.write_json(file, parameters)
    return out


def _words(parameters: Any) -> str:
    if not isinstance(parameters, dict):
        return "unreadable"
    return ", ".join(f"{k} {v}" for k, v in sorted(parameters.items()))


def _write_tables(folder: Path, patients: int, seed: int) -> None:
    split = split_of_patients(patients, seed)
    truth: dict[str, Any] = {"schema_version": 1, "kind": "truth"}
    truth |= {"training": [], "tuning": [], "validation": [], "test": [], "categories": ["lesion"]}
    tuning = tuning_patients(f"{number:06d}" for number, name in split.items() if name == "train")
    lesions: list[Lesion] = []
    for number in range(1, patients + 1):
        record = json.loads(_record_path(folder, number).read_text(encoding="utf-8"))
        name = split[number]
        for item in record["items"]:
            key = item.pop("key_image")
            image = png.neighbours(folder / IMAGES, key, 3)
            section = ("tuning" if item["patient_id"] in tuning else "training") if name == "train" else name
            truth[section].append({"image": image, **item})
        for row in record["lesions"]:
            row |= {"bookmark_ids": tuple(row["bookmark_ids"]), "recist_px": tuple(row["recist_px"]), "split": name}
            if name == "train":
                row["coarse_type"] = None  # as in the release, where no training row has a type
            lesions.append(Lesion(**row))
    validate(truth, "datalist")
    shutil.rmtree(folder / ".part", ignore_errors=True)
    write_dl_info(lesions, folder / CSV)
    atomic.write_json(folder / TRUTH / "datalist.json", truth)
