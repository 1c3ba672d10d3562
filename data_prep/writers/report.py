"""Findings back into the archive: detections.json or lesions.parquet as DICOM structured reports, one per series."""

from __future__ import annotations

import datetime
import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pydicom
from pydicom import Dataset
from tqdm import tqdm

from data_prep.archive.index import ImageIndex, ImageRecord
from data_prep.atomic import atomic_path, make_folder, write_csv
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError, UnreadableError
from data_prep.lesion import Lesion, read_lesions
from data_prep.quiet import quiet_pydicom
from data_prep.readers import Rejection, detections_json
from data_prep.readers.dicom_kind import DAMAGE
from data_prep.writers.dicom_sr import build_report, derive_uid

LESION_CODE = "52988006^SCT^Lesion"
"""The finding where the source states none."""

UNWRITABLE = (ValueError, TypeError, AttributeError, KeyError, IndexError)
"""What highdicom and pydicom raise about a header."""

_log = logging.getLogger(__name__)


def report(source: Path, dicom: Path, out: Path, *, cache: Path | None = None, progress: bool = True) -> int:
    """Write one TID 1500 report per image series that has findings.

    Lesions are written as their axes (bidirectional or length) with their diameters, else as their box, else as a
    point; detections as their box with the score as certainty and the model as algorithm (TID 4019). Reading the
    reports back gives the same points to 2e-5 px. Lesions that a person rejected are left out. What cannot be written
    is listed in ``out/rejected.csv``.

    The content date is the time of change of ``source``, and all UIDs are derived from content: the same input gives
    the same files. Images without Study or Series Instance UID get derived ones, which a warning says; such a report
    can be sent to an archive only with images that carry the same UIDs.

    Args:
        source: ``detections.json`` or ``lesions.parquet``.
        dicom: folder of the images that were marked; searched with its subfolders.
        out: folder for the reports, ``<SOP instance UID>.dcm``.
        cache: where to keep the index of the images; it holds patients' IDs. None: it is not kept.
        progress: show progress bars.

    Returns:
        The number of reports written.

    Raises:
        DataPrepError: an unreadable source, no such folder, no finding whose image is there, or ``out`` not writable.
    """
    marks, rejected, algorithm = _findings(source)
    make_folder(out)
    index = ImageIndex.build(dicom, cache=cache, progress=progress)
    groups: dict[tuple[str, ...], list[tuple[Bookmark, ImageRecord]]] = defaultdict(list)
    for mark in marks:
        record = _find(index, mark)
        if record is None:
            rejected.append(Rejection("", mark.bookmark_id, "its image is not in the DICOM folder"))
        else:
            key = (record.patient_id or "", record.study_uid or "", record.series_uid or record.series_key)
            groups[key].append((mark, record))
    if marks and not groups:
        raise DataPrepError(f"{dicom}: none of the images of the {len(marks)} findings in {source} are in this folder")
    created = datetime.datetime.fromtimestamp(source.stat().st_mtime)
    written = without_uids = 0
    for place, found in tqdm(sorted(groups.items()), desc="writing reports", unit="report", disable=not progress):
        found.sort(key=lambda pair: (pair[1].slice_index, pair[1].frame_number, pair[0].bookmark_id))
        without_uids += not (found[0][1].study_uid and found[0][1].series_uid)
        try:
            with quiet_pydicom():
                _write(place, found, out, created, algorithm)
        except UNWRITABLE as error:  # its words may quote the header
            reason = f"no report can be made with the header of {found[0][1].path} ({type(error).__name__})"
            rejected += [Rejection("", mark.bookmark_id, reason) for mark, _ in found]
            continue
        written += 1
    if without_uids:
        _log.warning("%d series have no Study or Series Instance UID: their reports use derived ones", without_uids)
    _write_rejected(rejected, source, out)
    return written


# --- findings ------------------------------------------------------------------------------------------------------


def _findings(source: Path) -> tuple[list[Bookmark], list[Rejection], tuple[str, str] | None]:
    """Bookmarks to write, what is left out, and the algorithm that made them (None: people did)."""
    try:
        with source.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataPrepError(f"{source}: cannot be read ({error.strerror or error})") from error
    if head.startswith(b"PAR1"):
        read = [lesion_to_bookmark(lesion) for lesion in read_lesions(source)]
        algorithm = None
    elif detections_json.recognise(head, source):
        read = [_as_finding(mark) for mark in detections_json.read(source)]
        model = detections_json.load(source).get("model") or {}
        version = model.get("version") or str(model.get("sha256") or "unknown")[:12]
        algorithm = (str(model.get("name") or "lesion detector"), str(version))
    else:
        raise DataPrepError(f"{source}: neither a detections.json nor a lesions.parquet")
    marks = [mark for mark in read if isinstance(mark, Bookmark)]
    return marks, [mark for mark in read if isinstance(mark, Rejection)], algorithm


def _as_finding(mark: Bookmark | Rejection) -> Bookmark | Rejection:
    if isinstance(mark, Rejection):
        return mark
    uid = mark.tracking_uid or derive_uid("tracking", mark.bookmark_id)
    return replace(mark, finding_code=mark.finding_code or LESION_CODE, tracking_uid=uid)


def lesion_to_bookmark(lesion: Lesion) -> Bookmark | Rejection:
    """The mark that says most about a lesion: its axes, else its box, else its place."""
    if lesion.review == "rejected":
        return Rejection("", lesion.lesion_id, "a person rejected it")
    if lesion.awaits_review:  # it would come back as a person's
        return Rejection("", lesion.lesion_id, "a detection that nobody accepted; write the detections.json itself")
    points: tuple[float, ...]
    if lesion.recist_px is not None and len(lesion.recist_px) in (4, 8):
        form, points = ("length" if len(lesion.recist_px) == 4 else "bidirectional"), lesion.recist_px
    elif lesion.box_px is not None:
        form, points = "box", lesion.box_px
    elif lesion.centre_x is not None and lesion.centre_y is not None:
        form, points = "point", (lesion.centre_x, lesion.centre_y)
    else:
        return Rejection("", lesion.lesion_id, "it has neither axes nor a box nor a place")
    long_mm = lesion.long_diameter_mm if lesion.long_diameter_mm is not None else lesion.stated_long_mm
    short_mm = lesion.short_diameter_mm if lesion.short_diameter_mm is not None else lesion.stated_short_mm
    drawn = form in ("length", "bidirectional")  # a box states no diameters of its own
    mark = Bookmark(
        bookmark_id=lesion.lesion_id,
        source=lesion.source,
        form=form,
        points_px=tuple(points),
        text=lesion.text,
        finding_code=lesion.finding_code,
        tracking_uid=lesion.tracking_uid,
        site=lesion.site,
        laterality=lesion.laterality,
        image_uid=lesion.image_uid,
        series_uid=lesion.series_uid,
        frame_number=lesion.frame_number,
        slice_index=lesion.slice_index,
        rows=lesion.rows,
        columns=lesion.columns,
        stated_long_mm=long_mm if drawn else None,
        stated_short_mm=short_mm if form == "bidirectional" else None,
        score=lesion.score,
    )
    return _as_finding(mark)


def _find(index: ImageIndex, mark: Bookmark) -> ImageRecord | None:
    """The image of a finding: by its UID; without one by its slice, where only one series can be meant."""
    if mark.image_uid:
        return index.find(mark.image_uid, mark.frame_number)
    if mark.slice_index is None:
        return None
    meant = [
        series
        for series in index.series
        if (series.series_uid or None) == mark.series_uid
        and series.records
        and (series.records[0].rows, series.records[0].columns) == (mark.rows, mark.columns)
    ]
    if len(meant) != 1:
        return None
    return next((record for record in meant[0].records if record.slice_index == mark.slice_index), None)


# --- reports -------------------------------------------------------------------------------------------------------


def _write(
    key: tuple[str, ...],
    found: list[tuple[Bookmark, ImageRecord]],
    out: Path,
    created: datetime.datetime,
    algorithm: tuple[str, str] | None,
) -> None:
    study_uid = found[0][1].study_uid or derive_uid("study", *key)
    series_uid = found[0][1].series_uid or derive_uid("series", *key)
    evidence: dict[str, Dataset] = {}
    marks = []
    for mark, record in found:
        image_uid = record.sop_instance_uid or derive_uid("image", *key, record.slice_index, record.frame_number)
        if image_uid not in evidence:
            evidence[image_uid] = _header(record, study_uid, series_uid, image_uid)
        frame = record.frame_number if record.frame_count > 1 else None
        marks.append(replace(mark, image_uid=image_uid, frame_number=frame))
    content = (study_uid, series_uid, created.isoformat(), *(f"{m.bookmark_id} {m.points_px}" for m in marks))
    sop_instance_uid = derive_uid("report", *content)
    dataset = build_report(
        marks,
        list(evidence.values()),
        sop_instance_uid=sop_instance_uid,
        series_instance_uid=derive_uid("report-series", *content),
        created=created,
        algorithm=algorithm,
        series_description="Detected lesions" if algorithm else "Lesion measurements",
    )
    with atomic_path(out / f"{sop_instance_uid}.dcm") as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _header(record: ImageRecord, study_uid: str, series_uid: str, image_uid: str) -> Dataset:
    """The image's header with every UID that a reference needs."""
    try:
        header = pydicom.dcmread(record.path, force=True, stop_before_pixels=True)  # some have no preamble
        sop_class = record.sop_class_uid or str(header.file_meta.get("MediaStorageSOPClassUID") or "")
    except DAMAGE as error:
        raise UnreadableError(f"{record.path}: damaged DICOM file ({type(error).__name__})") from None
    header.StudyInstanceUID, header.SeriesInstanceUID = study_uid, series_uid
    header.SOPInstanceUID, header.SOPClassUID = image_uid, sop_class
    return header


def _write_rejected(rejected: Iterable[Rejection], source: Path, out: Path) -> None:
    rows = [(source.name, item.row, item.reason) for item in rejected]
    if rows:
        write_csv(out / "rejected.csv", ("source_file", "row", "reason"), rows)
        _log.warning("%d findings were not written: see %s", len(rows), out / "rejected.csv")
