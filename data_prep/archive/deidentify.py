"""De-identification: numbers of our own in place of IDs and UIDs, and the key file that alone leads back."""

from __future__ import annotations

import csv
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from data_prep.archive.series import ImageRecord
from data_prep.atomic import PRIVATE, write_csv
from data_prep.errors import DataPrepError
from data_prep.writers.deeplesion import IMAGE_PATTERN

OLDEST_AGE = 90.0
"""Ages above 89 name people; they become 90 (as in the HIPAA safe harbour rule)."""

MODALITIES = frozenset({"CR", "CT", "DX", "MG", "MR", "NM", "OT", "PT", "RF", "SC", "US", "XA"})
"""Modality codes that may be quoted; the field of a hostile or careless file may hold anything."""


def coarse_age(age: float | None) -> float | None:
    """Whole years, at most :data:`OLDEST_AGE`."""
    return None if age is None else min(float(int(age)), OLDEST_AGE)


def coarse_sex(sex: str | None) -> str | None:
    """M or F; everything else, which may be any text, is unknown."""
    return sex if sex in ("M", "F") else None


def known_modality(modality: str | None) -> str:
    """The modality if it is a usual code, else words that quote nothing."""
    return modality if modality in MODALITIES else "unknown modality"


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One exported slice and where it came from; one row of the key file."""

    image: str  # PPPPPP_SS_RR/NNN.png
    patient_id: str
    study_uid: str
    series_uid: str
    series_key: str
    image_uid: str
    frame_number: int

    @property
    def patient(self) -> tuple[str, ...]:
        """Who it is; without a patient ID nothing says that two studies are of one patient."""
        return ("id", self.patient_id) if self.patient_id else ("no id", *self.study)

    @property
    def study(self) -> tuple[str, ...]:
        """Which study it is."""
        return ("uid", self.patient_id, self.study_uid) if self.study_uid else ("no uid", self.series_key)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Which image it is."""
        return (self.series_key, self.image_uid, self.frame_number)


_COLUMNS = [field.name for field in fields(KeyRow)]


class ExportKey:
    """The key file: which number in an export is which patient, study, series and image.

    It is a CSV readable by its owner only (mode 0600). Numbers once given are never changed: later exports with the
    same key add to it. New patients, and the studies and series of each, are numbered in random order, so that no
    number tells of a name, an ID or a date.
    """

    def __init__(self, path: Path, rows: Sequence[KeyRow] = ()) -> None:
        self.path = path
        self.rows = {row.image: row for row in rows}

    @classmethod
    def load(cls, path: Path) -> ExportKey:
        """Read a key file; an empty key where there is none yet.

        Raises:
            DataPrepError: it is not a key file.
        """
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file, strict=True)
                if reader.fieldnames != _COLUMNS:
                    raise DataPrepError(f"{path}: not a key file of an export; move it away or name another with --key")
                rows = [KeyRow(frame_number=int(row.pop("frame_number")), **row) for row in reader]
                if not all(IMAGE_PATTERN.fullmatch(row.image) for row in rows):
                    raise ValueError
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise DataPrepError(f"{path}: the key file is damaged ({type(error).__name__})") from None
        return cls(path, rows)

    def assign(
        self, selection: Mapping[str, Mapping[int, ImageRecord]], *, seed: int | None = None
    ) -> dict[tuple[str, int], str]:
        """Give every slice its name, the old one where it has one.

        Args:
            selection: series key -> slice index -> image.
            seed: for made data only: makes the random order, and so the numbers, repeatable.

        Returns:
            (series key, slice index) -> ``PPPPPP_SS_RR/NNN.png``; NNN is the slice index + 1.

        Raises:
            DataPrepError: a name stands for another image already, because the series has changed in the archive.
        """
        shuffler = random.Random(seed) if seed is not None else secrets.SystemRandom()
        wanted = {
            (series_key, index): _row(record)
            for series_key, slices in sorted(selection.items())
            for index, record in sorted(slices.items())
        }
        patients, studies, series = _Numbers(), _Numbers(), _Numbers()
        for row in self.rows.values():
            match = IMAGE_PATTERN.fullmatch(row.image)
            assert match is not None  # checked in load
            patient, study, number = map(int, match.groups()[:3])
            patients.take((), row.patient, patient)
            studies.take(row.patient, row.study, study)
            series.take(row.study, (row.series_key,), number)
        new = list({row.series_key: row for row in wanted.values()}.values())
        shuffler.shuffle(new)
        for row in new:
            patients.give((), row.patient)
            studies.give(row.patient, row.study)
            series.give(row.study, (row.series_key,))
        names = {}
        for (series_key, index), row in wanted.items():
            name = (
                f"{patients.of[row.patient]:06d}_{studies.of[row.study]:02d}_{series.of[row.series_key,]:02d}"
                f"/{index + 1:03d}.png"
            )
            old = self.rows.get(name)
            if old is not None and old.origin != row.origin:
                raise DataPrepError(
                    f"{self.path}: {name} stands for another image; the series has changed in the archive since: "
                    "export to a new folder"
                )
            names[series_key, index] = name
            self.rows[name] = KeyRow(name, *astuple(row)[1:])
        return names

    def save(self) -> None:
        """Write the key file, atomically, readable by its owner only."""
        rows = (astuple(self.rows[name]) for name in sorted(self.rows))
        write_csv(self.path, _COLUMNS, rows, mode=PRIVATE)  # a temporary file is its owner's alone from the start


class _Numbers:
    """1, 2, 3, ... for the things in each group."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, ...], int] = {}
        self._last: dict[tuple[str, ...], int] = {}

    def take(self, group: tuple[str, ...], thing: tuple[str, ...], number: int) -> None:
        self.of[thing] = number
        self._last[group] = max(self._last.get(group, 0), number)

    def give(self, group: tuple[str, ...], thing: tuple[str, ...]) -> None:
        if thing not in self.of:
            self.take(group, thing, self._last.get(group, 0) + 1)


def _row(record: ImageRecord) -> KeyRow:
    return KeyRow(
        image="",
        patient_id=record.patient_id or "",
        study_uid=record.study_uid or "",
        series_uid=record.series_uid or "",
        series_key=record.series_key,
        image_uid=record.sop_instance_uid or "",
        frame_number=record.frame_number,
    )
