"""All marks of other people's software at once: the whole folder of real bookmarks through one harvest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.bookmark import Bookmark, read_bookmarks
from data_prep.harvest import HarvestSummary, harvest
from data_prep.lesion import Lesion, read_lesions
from tests.data_prep.harvests import rejected

Harvested = tuple[Path, Path, HarvestSummary]


@pytest.fixture(scope="module")
def harvested(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Harvested:
    """(source folder, output folder, counts)"""
    source, out = shared_data / "bookmarks", tmp_path_factory.mktemp("real") / "out"
    return source, out, harvest([source], out, progress=False)


@pytest.fixture(scope="module")
def marks(harvested: Harvested) -> dict[str, list[Bookmark]]:
    """Path below the source folder -> its marks."""
    source, out, _ = harvested
    found: dict[str, list[Bookmark]] = {}
    for mark in read_bookmarks(out / "bookmarks.parquet"):
        found.setdefault(Path(mark.source_file).relative_to(source).as_posix(), []).append(mark)
    return found


def lesion_of(harvested: Harvested, mark: Bookmark) -> Lesion:
    (lesion,) = (x for x in read_lesions(harvested[1] / "lesions.parquet") if mark.bookmark_id in x.bookmark_ids)
    return lesion


def test_every_file_is_accounted_for(harvested: Harvested, marks: dict[str, list[Bookmark]]) -> None:
    """Marks, an image, or a reason; and only licences are no format that is known."""
    source, out, summary = harvested
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    rows = rejected(out)
    listed = {Path(row["source_file"]).relative_to(source).as_posix() for row in rows}
    images = {name for name in files if name.startswith("aim_xml_and_sr/images/")}
    images |= {f"gsps/real0{number}.dcm" for number in (1, 2, 3)}
    assert summary.files == len(files)
    assert summary.images == len(images) == 8
    assert files == set(marks) | listed | images
    assert not images & (set(marks) | listed)
    assert {name for name in listed if "LICEN" in name} == {name for name in files if "LICEN" in name}
    assert all("LICEN" in name for name in listed), "a mark was refused"


@pytest.mark.parametrize(
    ("name", "form", "long_mm", "short_mm"),
    [
        ("sr/bidirectional_sr.dcm", "bidirectional", 28.27, 14.13),
        ("sr/dcmjs_bidirectional_sr.dcm", "bidirectional", 64.45, 42.97),
        ("sr/ccc2017_length_sr.dcm", "length", 51.87, None),
    ],
)
def test_stated_millimetres(
    harvested: Harvested,
    marks: dict[str, list[Bookmark]],
    name: str,
    form: str,
    long_mm: float,
    short_mm: float | None,
) -> None:
    (mark,) = marks[name]
    assert mark.form == form
    for found in (mark, lesion_of(harvested, mark)):
        assert found.stated_long_mm == pytest.approx(long_mm, abs=0.01)
        assert found.stated_short_mm == (None if short_mm is None else pytest.approx(short_mm, abs=0.01))


def test_units_that_had_to_be_guessed_are_flagged(marks: dict[str, list[Bookmark]]) -> None:
    (dcmjs,) = marks["sr/dcmjs_bidirectional_sr.dcm"]
    assert "unit `1`: read as mm" in (dcmjs.note or "")
    epad = [mark for name, found in marks.items() if name.startswith("aim_json/") for mark in found]
    assert len(epad) == 6
    for mark in epad:
        assert "'linear' taken as cm" in (mark.note or "")
        assert mark.stated_long_mm is not None
        pixels = float(np.hypot(*np.diff(mark.points, axis=0)[0]))
        assert 0.4 < mark.stated_long_mm / pixels < 1.5  # a pixel of a CT or MR image, in mm


def test_aim_and_report_of_one_mark_agree(marks: dict[str, list[Bookmark]]) -> None:
    pairs = 0
    for name, found in marks.items():
        if name.startswith("aim_xml_and_sr/annotations/") and name.endswith(".xml"):
            (aim,), (report,) = found, marks[name.replace(".xml", ".dcm")]
            assert (aim.form, aim.image_uid) == (report.form, report.image_uid)
            np.testing.assert_allclose(aim.points_px, report.points_px, atol=0.01)
            pairs += 1
    assert pairs == 10


def test_twenty_marks_on_five_slices_are_five_lesions(harvested: Harvested, marks: dict[str, list[Bookmark]]) -> None:
    on_slices = {mark.bookmark_id for name, found in marks.items() if "annotations/" in name for mark in found}
    lesions = [x for x in read_lesions(harvested[1] / "lesions.parquet") if on_slices & set(x.bookmark_ids)]
    assert len(on_slices) == 20
    assert len({lesion.image_uid for lesion in lesions}) == len(lesions) == 5
    assert all(len(lesion.bookmark_ids) == 4 and lesion.box_px is not None for lesion in lesions)
