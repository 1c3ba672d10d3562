"""Lesion: bookmarks merged into one thing on one slice, with a box, millimetres and a review state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike

from data_prep.bookmark import DETECTOR, arrow_schema, read_table, records_to_table, table_to_records, write_table

REVIEW_STATES = ("unreviewed", "accepted", "rejected")

COARSE_TYPES = {
    1: "bone",
    2: "abdomen",
    3: "mediastinum",
    4: "liver",
    5: "lung",
    6: "kidney",
    7: "soft tissue",
    8: "pelvis",
}
"""DeepLesion's official coarse lesion types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """One lesion on one key slice; one row of ``lesions.parquet``.

    The box ``x0, y0, x1, y1`` is half-open px, not clipped to the image, by the rule of
    :func:`data_prep.frames.box_from_recist` (DeepLesion rows keep the release's own box); all four are None for a
    mere location (``centre_x, centre_y`` then says where). ``recist_px`` is long axis start, end, short axis start,
    end (8 numbers), only the long axis (4), or None. Diameters are null without the image's spacing.

    Raises:
        ValueError: half a box, an empty or non-finite box, an unknown review state.
    """

    lesion_id: str
    bookmark_ids: tuple[str, ...]
    source: str
    image: str | None = None
    patient_id: str | None = None
    modality: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    image_uid: str | None = None
    frame_number: int | None = None
    slice_index: int | None = None
    rows: int | None = None
    columns: int | None = None
    spacing_x_mm: float | None = None
    spacing_y_mm: float | None = None
    spacing_z_mm: float | None = None
    window_min_hu: float | None = None
    window_max_hu: float | None = None
    norm_x: float | None = None
    norm_y: float | None = None
    norm_z: float | None = None
    slice_first: int | None = None
    slice_last: int | None = None
    patient_sex: str | None = None
    patient_age: float | None = None
    x0: float | None = None
    y0: float | None = None
    x1: float | None = None
    y1: float | None = None
    centre_x: float | None = None
    centre_y: float | None = None
    recist_px: tuple[float, ...] | None = None
    long_diameter_mm: float | None = None
    short_diameter_mm: float | None = None
    stated_long_mm: float | None = None
    stated_short_mm: float | None = None
    measurement_disagrees: bool = False
    text: str | None = None
    site: str | None = None
    laterality: str | None = None
    finding_code: str | None = None
    tracking_uid: str | None = None
    split: str | None = None
    coarse_type: int | None = None
    possibly_noisy: bool = False
    review: str = "unreviewed"
    score: float | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        box = (self.x0, self.y0, self.x1, self.y1)
        given = [value for value in box if value is not None]
        if given and not (
            len(given) == 4 and all(map(math.isfinite, given)) and given[0] < given[2] and given[1] < given[3]
        ):
            raise ValueError(f"lesion {self.lesion_id}: {box} is not a box")
        if self.review not in REVIEW_STATES:
            raise ValueError(f"lesion {self.lesion_id}: unknown review state {self.review!r}")

    @property
    def box_px(self) -> tuple[float, float, float, float] | None:
        """The box, or None for a mere location."""
        if self.x0 is None or self.y0 is None or self.x1 is None or self.y1 is None:
            return None
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def numbers_lead_to(self) -> str:
        """Where the slices of rising number lie: ``head``, or ``feet``.

        In DeepLesion's format the third spacing is positive where they lead to the feet, so that number k lies at
        S = -spacing * k (the release's ``DL_save_nifti.py``). Everywhere else slices are numbered towards the head.
        """
        to_feet = self.source == "deeplesion-csv" and (self.spacing_z_mm or 0.0) > 0
        return "feet" if to_feet else "head"

    @property
    def awaits_review(self) -> bool:
        """Whether software found it and nobody has accepted it."""
        return self.source == DETECTOR and self.review != "accepted"

    @property
    def withheld(self) -> str | None:
        """Why, by its review, it is no training data and no part of a release; None where it may be."""
        if self.review == "rejected":
            return "rejected in review"
        return "detection that nobody accepted" if self.awaits_review else None


LESION_SCHEMA = arrow_schema(Lesion, "lesions")


def write_lesions(lesions: Iterable[Lesion], path: str | PathLike[str]) -> None:
    """Write ``lesions.parquet``."""
    write_table(records_to_table(lesions, Lesion, LESION_SCHEMA), path)


def read_lesions(path: str | PathLike[str]) -> list[Lesion]:
    """Read ``lesions.parquet``; raises DataPrepError on a file that is not one."""
    return list(table_to_records(read_table(path, LESION_SCHEMA), Lesion))
