"""The phantom's archive -> harvest -> export -> harvest of the export, for every form its marks are written in."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data_prep import phantom
from data_prep.archive.export import ExportSummary, export
from data_prep.archive.png import read_hu
from data_prep.archive.volume import read_slice_hu
from data_prep.bookmark import read_bookmarks
from data_prep.harvest import HarvestSummary, harvest
from data_prep.lesion import Lesion, read_lesions

SOURCES = {"sr": "dicom-sr", "gsps": "dicom-gsps", "aim": "aim-xml", "seg": "dicom-seg"}
FORMS = (*SOURCES, "together")
PATIENTS, SEED = 2, 23


@dataclass(frozen=True)
class Trip:
    """One form's way through the program; ``origin`` leads from an exported slice to its SOP instance UID."""

    folder: Path
    harvested: HarvestSummary
    exported: ExportSummary
    harvested_again: HarvestSummary
    before: list[Lesion]
    after: list[Lesion]
    origin: dict[str, str]

    @property
    def images(self) -> Path:
        """The exported slices."""
        return self.folder / "export" / "Images_png"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DICOM folder of a small hospital that wrote every mark in all four forms."""
    out = tmp_path_factory.mktemp("round_trip") / "phantom"
    phantom.make(out, patients=PATIENTS, seed=SEED, workers=2, progress=False, forms=tuple(SOURCES))
    return out / "dicom"


@pytest.fixture(scope="module")
def trips(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trip]:
    """The way of each form alone, and of all of them together."""
    cache = tmp_path_factory.mktemp("index") / "index.parquet"
    return {form: travel(form, archive, tmp_path_factory.mktemp(form), cache) for form in FORMS}


@pytest.fixture(scope="module", params=FORMS)
def trip(trips: dict[str, Trip], request: pytest.FixtureRequest) -> Trip:
    return trips[request.param]


@pytest.fixture(scope="module")
def slices(archive: Path) -> dict[str, Path]:
    """SOP instance UID -> file of every CT slice."""
    files = archive.glob("*/*/CT/*")
    return {str(pydicom.dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): file for file in files}


def travel(form: str, archive: Path, folder: Path, cache: Path) -> Trip:
    # "sr.dcm", "aim.xml", ... in the REPORTS of each study
    reports = sorted(archive.glob("*/*/REPORTS/*" if form == "together" else f"*/*/REPORTS/{form}.*"))
    assert len(reports) == 2 * PATIENTS * (len(SOURCES) if form == "together" else 1)
    harvested = harvest(reports, folder / "first", images=archive, progress=False)
    exported = export(folder / "first" / "lesions.parquet", archive, folder / "export", progress=False, cache=cache)
    table, images = folder / "export" / "DL_info.csv", folder / "export" / "Images_png"
    again = harvest([table], folder / "second", images=images, progress=False)
    with exported.key.open(newline="") as file:
        origin = {row["image"]: row["image_uid"] for row in csv.DictReader(file)}
    before, after = (read_lesions(folder / name / "lesions.parquet") for name in ("first", "second"))
    return Trip(folder, harvested, exported, again, before, after, origin)


def by_image(lesions: Iterable[Lesion], origin: dict[str, str] | None = None) -> dict[str, list[Lesion]]:
    """SOP instance UID -> its lesions, from left to right."""
    out: dict[str, list[Lesion]] = defaultdict(list)
    for lesion in lesions:
        out[str(lesion.image_uid if origin is None else origin[str(lesion.image)])].append(lesion)
    return {uid: sorted(found, key=lambda lesion: lesion.box_px or ()) for uid, found in out.items()}


def pairs(one: dict[str, list[Lesion]], other: dict[str, list[Lesion]]) -> list[tuple[Lesion, Lesion]]:
    """The lesions of two harvests, one to one by image."""
    assert {uid: len(found) for uid, found in one.items()} == {uid: len(found) for uid, found in other.items()}
    return [pair for uid in one for pair in zip(one[uid], other[uid], strict=True)]


def numbers(lesion: Lesion) -> np.ndarray:
    """(14,): the box (px), the four end points (px), long and short diameter (mm)."""
    stated = (*(lesion.box_px or ()), *(lesion.recist_px or ()), lesion.long_diameter_mm, lesion.short_diameter_mm)
    values = np.array(stated, dtype=np.float64)
    assert values.shape == (14,)
    assert np.isfinite(values).all()
    return values


def test_nothing_is_lost_on_the_way(trip: Trip) -> None:
    assert (trip.harvested.rejected, trip.harvested_again.rejected) == (0, 0)
    assert (trip.exported.not_exported, trip.exported.slices_unreadable, trip.exported.problems) == (0, 0, 0)
    counted = [
        trip.harvested.with_box,
        trip.harvested.with_dicom,
        trip.exported.lesions,
        trip.harvested_again.with_image,
    ]
    assert counted == [len(trip.before)] * 4
    assert len(trip.before) >= 3 * 2 * PATIENTS  # at least three levels of a study have a lesion to mark
    assert trip.harvested.patients == trip.harvested_again.patients == PATIENTS


def test_boxes_and_diameters_are_the_same_before_and_after(trip: Trip) -> None:
    for before, after in pairs(by_image(trip.before), by_image(trip.after, trip.origin)):
        np.testing.assert_allclose(numbers(after), numbers(before), rtol=0, atol=0.01)
        assert not before.measurement_disagrees
        assert not after.measurement_disagrees
        assert before.slice_index is not None
        assert after.slice_index == before.slice_index + 1  # the release counts slices from 1
        for name in ("split", "rows", "columns", "modality", "patient_sex", "patient_age", "spacing_x_mm"):
            assert getattr(after, name) == getattr(before, name), name


def test_hu_are_the_same_to_the_bit(trip: Trip, trips: dict[str, Trip], slices: dict[str, Path]) -> None:
    exported = {path.relative_to(trip.images).as_posix(): path for path in trip.images.glob("*/*.png")}
    assert sorted(exported) == sorted(trip.origin)
    assert len(exported) == trip.exported.slices
    if trip is not trips["sr"]:  # the same slices, whose numbers are drawn anew in each export
        first = trips["sr"]
        contents = {uid: (first.images / image).read_bytes() for image, uid in first.origin.items()}
        assert {uid: exported[image].read_bytes() for image, uid in trip.origin.items()} == contents
        return
    for image, uid in trip.origin.items():
        hu = read_hu(exported[image])
        assert hu.tobytes() == read_slice_hu(slices[uid]).tobytes()
        dataset = pydicom.dcmread(slices[uid])
        stored = dataset.pixel_array.astype(np.int64)
        np.testing.assert_array_equal(hu, stored * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept))


@pytest.mark.parametrize(("form", "within_px"), [("gsps", 0.01), ("aim", 0.01), ("seg", 1.5), ("together", 1.5)])
def test_the_forms_agree(form: str, within_px: float, trips: dict[str, Trip]) -> None:
    for report, other in pairs(by_image(trips["sr"].before), by_image(trips[form].before)):
        np.testing.assert_allclose(numbers(other)[:4], numbers(report)[:4], rtol=0, atol=within_px)


def test_four_forms_of_one_mark_are_one_lesion(trips: dict[str, Trip]) -> None:
    trip = trips["together"]
    source = {mark.bookmark_id: mark.source for mark in read_bookmarks(trip.folder / "first" / "bookmarks.parquet")}
    assert len(trip.before) == len(trips["sr"].before)
    for lesion in trip.before:
        assert sorted(source[mark] for mark in lesion.bookmark_ids) == sorted(SOURCES.values())
