"""What a harvest is measured on: files of one measured RECIST pair each, and a DeepLesion CSV, by our own writers.

Made once in the working folder, in two processes; each folder or piece is renamed into place when it is whole.
"""

from __future__ import annotations

import csv
import datetime
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from pydicom import Dataset
from tqdm import tqdm

from data_prep.bookmark import Bookmark
from data_prep.frames import box_from_recist
from data_prep.lesion import Lesion

KINDS = {"sr": "sr.dcm", "gsps": "gsps.dcm", "aim": "aim.xml"}
"""Kind -> how its files' names end; objects take turns."""

FOLDERS = 20
_CT = "1.2.840.10008.5.1.4.1.1.2"
_SPACING_MM = 0.75
_CREATED = datetime.datetime(2020, 1, 2, 3, 4, 5)
_OBJECTS_PER_PATIENT = 10
_ROWS_PER_PATIENT = 7  # 32,735 lesions of 4,427 patients in the release
_PIECES = 20


def make_objects(work: Path, objects: int, seed: int) -> Path:
    """A folder of files in 20 folders, report, presentation state and AIM file in turn."""
    home = work / f"objects-{objects}-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    bounds = [objects * k // FOLDERS for k in range(FOLDERS + 1)]
    jobs = [(home / f"{k:02d}", bounds[k], bounds[k + 1], seed) for k in range(FOLDERS)]
    _in_two_processes(_make_folder, [job for job in jobs if not job[0].exists()], "making objects")
    return home


def make_csv(work: Path, rows: int, seed: int) -> Path:
    """A ``DL_info.csv`` of so many rows, one lesion each, seven to a patient."""
    path = work / f"rows-{rows}-{seed}.csv"
    if path.exists():
        return path
    work.mkdir(parents=True, exist_ok=True)
    bounds = [rows * k // _PIECES for k in range(_PIECES + 1)]
    pieces = [(work / f"{path.stem}.{k:02d}", bounds[k], bounds[k + 1], seed) for k in range(_PIECES)]
    _in_two_processes(_make_rows, [job for job in pieces if not job[0].exists()], "making rows")
    part = path.with_suffix(".part")
    with part.open("wb") as whole:
        for piece, *_ in pieces:
            with piece.open("rb") as file:
                shutil.copyfileobj(file, whole)
    part.rename(path)
    for piece, *_ in pieces:
        piece.unlink()
    return path


def _in_two_processes(
    make: Callable[[Path, int, int, int], None], jobs: Sequence[tuple[Path, int, int, int]], words: str
) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(make, *job) for job in jobs]
        for future in tqdm(waiting, desc=words, unit="folder", disable=not waiting):
            future.result()


def _recist_pair(rng: np.random.Generator) -> np.ndarray:
    """(4, 2) px: a long axis of 8 to 60 px anywhere in a 512 px image, and a short one across it."""
    long_px = rng.uniform(8, 60)
    along = np.array([np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    centre, short_px = rng.uniform(80, 432, 2), long_px * rng.uniform(0.5, 0.95)
    ends = [centre - along * long_px / 2, centre + along * long_px / 2]
    return np.array([*ends, centre - across * short_px / 2, centre + across * short_px / 2])


# --- objects -------------------------------------------------------------------------------------------------------


def _make_folder(folder: Path, start: int, stop: int, seed: int) -> None:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for number in range(start, stop):
        kind = list(KINDS)[number % len(KINDS)]
        _write_object(part / f"{number:07d}-{KINDS[kind]}", kind, number, seed)
    part.rename(folder)


def _write_object(path: Path, kind: str, number: int, seed: int) -> None:
    from data_prep.writers.aim_xml import build_annotations
    from data_prep.writers.dicom_gsps import build_presentation_state
    from data_prep.writers.dicom_sr import build_report, derive_uid

    uid = partial(derive_uid, "harvest benchmark", seed, number)
    points_px = _recist_pair(np.random.default_rng([seed, number]))
    long_mm, short_mm = np.hypot(*(points_px[1::2] - points_px[::2]).T) * _SPACING_MM
    image = _image(uid, number // _OBJECTS_PER_PATIENT)
    mark = Bookmark(
        bookmark_id=f"b{number}",
        source="csv",
        form="bidirectional",
        points_px=tuple(points_px.ravel().tolist()),
        image_uid=str(image.SOPInstanceUID),
        tracking_uid=uid("tracking"),
        finding_code="52988006^SCT^Lesion",
        stated_long_mm=float(long_mm),
        stated_short_mm=float(short_mm),
        observer="READER^A",
    )
    if kind == "aim":
        path.write_bytes(build_annotations([mark], [image], created=_CREATED, uid=uid("document")))
        return
    build = build_report if kind == "sr" else build_presentation_state
    built: Dataset = build(
        [mark], [image], sop_instance_uid=uid("object"), series_instance_uid=uid("marks"), created=_CREATED
    )
    built.save_as(path, enforce_file_format=True)


def _image(uid: Callable[[str], str], patient: int) -> Dataset:
    image = Dataset()
    image.SOPClassUID = _CT
    image.SOPInstanceUID, image.SeriesInstanceUID, image.StudyInstanceUID = uid("image"), uid("series"), uid("study")
    image.PatientID, image.PatientName, image.PatientSex = f"P{patient:06d}", f"PATIENT^{patient:06d}", "O"
    image.Modality, image.StudyDate, image.StudyTime = "CT", "20200102", "030405"
    image.Rows = image.Columns = 512
    image.SamplesPerPixel, image.PixelSpacing = 1, [_SPACING_MM, _SPACING_MM]
    image.RescaleIntercept, image.RescaleSlope, image.WindowCenter, image.WindowWidth = "-1024", "1", "40", "400"
    return image


# --- rows ----------------------------------------------------------------------------------------------------------


def _make_rows(path: Path, start: int, stop: int, seed: int) -> None:
    from data_prep.readers.deeplesion_csv import COLUMNS
    from data_prep.writers.deeplesion import dl_info_row

    part = path.with_name(f"{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not start:
            writer.writeheader()
        writer.writerows(map(dl_info_row, _lesions(range(start, stop), seed)))
    part.rename(path)


def _lesions(numbers: Iterable[int], seed: int) -> Iterable[Lesion]:
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        points_px = _recist_pair(rng)
        x0, y0, x1, y1 = box_from_recist(points_px).tolist()
        norm_x, norm_y, norm_z = rng.uniform(0.2, 0.8, 3)
        patient, of_patient = divmod(number, _ROWS_PER_PATIENT)
        key = int(rng.integers(20, 400))
        yield Lesion(
            lesion_id=f"l{number}",
            bookmark_ids=(f"b{number}",),
            source="deeplesion-csv",
            image=f"{patient + 1:06d}_{of_patient // 2 + 1:02d}_01/{key:03d}.png",
            patient_id=f"{patient + 1:06d}",
            rows=512, columns=512, spacing_x_mm=_SPACING_MM, spacing_y_mm=_SPACING_MM, spacing_z_mm=5.0,
            window_min_hu=-175.0, window_max_hu=275.0, norm_x=norm_x, norm_y=norm_y, norm_z=norm_z,
            slice_first=key - 6, slice_last=key + 6,
            patient_sex="FM"[patient % 2], patient_age=float(30 + patient % 50),
            x0=x0, y0=y0, x1=x1, y1=y1, recist_px=tuple(points_px.ravel().tolist()),
            split=("train", "train", "validation", "test")[patient % 4],
            coarse_type=None if patient % 4 < 2 else int(rng.integers(1, 9)),
        )  # fmt: skip
