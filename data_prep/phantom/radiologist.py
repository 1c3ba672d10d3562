"""The phantom's radiologist: marks about half of the lesions, a little off the truth, and reports them.

The marks are bookmarks like those any reader harvests; ``FORMS`` says which writers can put them in the archive.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from data_prep import frames
from data_prep.bookmark import Bookmark, make_id
from data_prep.phantom.dicom_series import Study, phantom_uid, slice_number
from data_prep.phantom.scanner import MATRIX, Scan, Seen

JITTER_PX = 0.7
"""Standard deviation of a drawn end point about the true one, each coordinate; cut off at three times this."""

SAME_TARGET = 0.75
"""How often the second reading measures the lesion that the first one measured at that level."""

FINDING = "4147007^SCT^Mass"

_BONE_WINDOW = (-450.0, 1050.0)
_LUNG_WINDOW = (-1350.0, 250.0)
_SOFT_WINDOW = (-160.0, 240.0)


@dataclass(frozen=True)
class Mark:
    """One measured lesion: where, what truly lies there, and the drawn axes (4, 2) in px."""

    slice_index: int
    seen: Seen
    points_px: npt.NDArray[np.float64]


def window_hu(coarse_type: int) -> tuple[float, float]:
    """The display window (HU) in which a lesion of this DeepLesion type is read."""
    return {1: _BONE_WINDOW, 5: _LUNG_WINDOW}.get(coarse_type, _SOFT_WINDOW)


def choose(rng: np.random.Generator, scan: Scan, before: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Which lesions get measured: one at each level, at its key slice.

    Args:
        before: numbers of the lesions measured at an earlier date.

    Returns:
        (lesion number, slice index), by slice.
    """
    levels: dict[int, list[int]] = {}
    for number, level in sorted({(n, s.lesion.level) for found in scan.seen.values() for n, s in found.items()}):
        if scan.key_slice(number) is not None:
            levels.setdefault(level, []).append(number)
    chosen = []
    for _, numbers in sorted(levels.items()):
        again = [n for n in numbers if n in before]
        keep = again and rng.random() < SAME_TARGET
        number = again[0] if keep else int(rng.choice(numbers))
        index = scan.key_slice(number)
        assert index is not None
        chosen.append((number, index))
    return sorted(chosen, key=lambda pair: (pair[1], pair[0]))


def draw(rng: np.random.Generator, slice_index: int, seen: Seen) -> Mark:
    """Measure a lesion by hand: its true axes with every end point a little off."""
    jitter = rng.normal(0, JITTER_PX, (4, 2)).clip(-3 * JITTER_PX, 3 * JITTER_PX)
    drawn: npt.NDArray[np.float64] = seen.recist_px + jitter
    long_px, short_px = (float(np.hypot(*(drawn[k + 1] - drawn[k]))) for k in (0, 2))
    # Of a round lesion the longer of the two is called the long axis.
    return Mark(slice_index, seen, drawn if long_px >= short_px else drawn[[2, 3, 0, 1]])


def bookmark(study: Study, scan: Scan, mark: Mark) -> Bookmark:
    """A mark as the bookmark that a report holds."""
    lesion = mark.seen.lesion
    image_uid = study.uid("ct", mark.slice_index)
    spacing = scan.protocol.spacing_mm
    low, high = window_hu(lesion.kind.coarse_type)
    long_mm, short_mm = (frames.length_mm(mark.points_px[k], mark.points_px[k + 1], (spacing, spacing)) for k in (0, 2))
    return Bookmark(
        bookmark_id=make_id("phantom", image_uid, lesion.number),
        source="dicom-sr",
        form="bidirectional",
        points_px=tuple(float(v) for v in mark.points_px.ravel()),
        text=f"Lesion {lesion.number}",
        finding_code=FINDING,
        # The same at both dates: that is how a follow-up names its target.
        tracking_uid=phantom_uid(study.seed, study.patient, "lesion", lesion.number),
        patient_id=study.patient_id,
        modality="CT",
        study_uid=study.uid(),
        series_uid=study.uid("ct"),
        image_uid=image_uid,
        slice_index=mark.slice_index,
        rows=MATRIX,
        columns=MATRIX,
        spacing_x_mm=spacing,
        spacing_y_mm=spacing,
        spacing_z_mm=scan.protocol.slice_mm,
        stated_long_mm=long_mm,
        stated_short_mm=short_mm,
        window_min_hu=low,
        window_max_hu=high,
        observer=f"READER^{'AB'[study.patient % 2]}",
        patient_sex=study.sex,
        patient_age=float(study.age),
    )


Writer = Callable[[Sequence[Bookmark], Sequence[Dataset], Study, Path], None]


def _write_dicom(ds: Dataset, path: Path) -> None:
    ds.save_as(path, enforce_file_format=True)


def _write_sr(bookmarks: Sequence[Bookmark], evidence: Sequence[Dataset], study: Study, folder: Path) -> None:
    from data_prep.writers.dicom_sr import build_report

    report = build_report(
        bookmarks,
        evidence,
        sop_instance_uid=study.uid("sr", 1),
        series_instance_uid=study.uid("sr"),
        created=study.created + datetime.timedelta(hours=1),
        observer_name=bookmarks[0].observer,
        series_number=100,
    )
    _write_dicom(report, folder / "sr.dcm")


def _write_gsps(bookmarks: Sequence[Bookmark], evidence: Sequence[Dataset], study: Study, folder: Path) -> None:
    from data_prep.writers.dicom_gsps import build_presentation_state

    state = build_presentation_state(
        bookmarks,
        evidence,
        sop_instance_uid=study.uid("gsps", 1),
        series_instance_uid=study.uid("gsps"),
        created=study.created + datetime.timedelta(hours=1),
    )
    _write_dicom(state, folder / "gsps.dcm")


def _write_aim(bookmarks: Sequence[Bookmark], evidence: Sequence[Dataset], study: Study, folder: Path) -> None:
    from data_prep.writers.aim_xml import build_annotations

    created = study.created + datetime.timedelta(hours=1)
    (folder / "aim.xml").write_bytes(build_annotations(bookmarks, evidence, created=created, uid=study.uid("aim")))


def _write_seg(bookmarks: Sequence[Bookmark], evidence: Sequence[Dataset], study: Study, folder: Path) -> None:
    from data_prep.writers.dicom_seg import build_segmentation

    segmentation = build_segmentation(
        bookmarks,
        evidence,
        sop_instance_uid=study.uid("seg", 1),
        series_instance_uid=study.uid("seg"),
        created=study.created + datetime.timedelta(hours=1),
    )
    _write_dicom(segmentation, folder / "seg.dcm")


FORMS: Mapping[str, Writer] = {"sr": _write_sr, "gsps": _write_gsps, "aim": _write_aim, "seg": _write_seg}
"""What ``make(forms=...)`` takes -> who writes it (each imports its writer when it is used)."""


def write_reports(
    study: Study, scan: Scan, marks: Sequence[Mark], images: Mapping[int, Dataset], forms: Sequence[str], folder: Path
) -> None:
    """Write the study's marks in every asked form; nothing where there is no mark."""
    if not marks:
        return
    folder.mkdir(parents=True)
    evidence = [images[index] for index in sorted({mark.slice_index for mark in marks})]
    bookmarks = [bookmark(study, scan, mark) for mark in marks]
    for name in forms:
        FORMS[name](bookmarks, evidence, study, folder)


def image_name(study: Study, index: int) -> str:
    """``PPPPPP_SS_RR/NNN.png`` of a slice (0-based towards +S)."""
    return f"{study.series_name}/{slice_number(index):03d}.png"
