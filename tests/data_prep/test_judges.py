"""All that we write, judged by software nobody here wrote: dciodvfy, dsrdump, dcmpschk and Orthanc."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from pydicom import Dataset

from data_prep import phantom
from data_prep.bookmark import read_bookmarks
from data_prep.harvest import harvest
from data_prep.writers.report import report

if TYPE_CHECKING:
    from tests.conftest import Judges, Orthanc

IODS = {
    "ct": "CTImage",
    "sr": "ComprehensiveSR",
    "report": "ComprehensiveSR",
    "gsps": "GrayscaleSoftcopyPresentationState",
    "seg": "Segmentation",
}
"""What we write -> what dciodvfy calls it."""

_NUM = re.compile(r'NUM:\(,,"([^"]*)"\)="([^"]*)" \(([^,)]*)')


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A patient's DICOM folder, and one of the reports made of the lesions in it."""
    folder = tmp_path_factory.mktemp("written")
    phantom.make(folder / "phantom", patients=1, seed=29, workers=1, progress=False, forms=("sr", "gsps", "seg"))
    dicom, reports = folder / "phantom" / "dicom", folder / "reports"
    harvest(sorted(dicom.glob("*/*/REPORTS/sr.dcm")), folder / "harvest", images=dicom, progress=False)
    assert report(folder / "harvest" / "lesions.parquet", dicom, reports, progress=False) == 2  # one for each study
    return dicom, reports


@pytest.fixture(scope="module")
def written(folders: tuple[Path, Path]) -> dict[str, list[Path]]:
    """The files of each kind."""
    dicom, reports = folders
    out = {kind: sorted(dicom.glob(f"*/*/REPORTS/{kind}.dcm")) for kind in ("sr", "gsps", "seg")}
    return out | {"report": sorted(reports.glob("*.dcm")), "ct": sorted(dicom.glob("*/*/CT/*.dcm"))}


@pytest.mark.parametrize("kind", IODS)
def test_dciodvfy_finds_no_error(kind: str, written: dict[str, list[Path]], judges: Judges) -> None:
    for path in written[kind][:3]:
        assert judges.dciodvfy(path, IODS[kind]) == []


def test_dciodvfy_finds_errors_where_there_are_some(
    written: dict[str, list[Path]], tmp_path: Path, judges: Judges
) -> None:
    dataset = pydicom.dcmread(written["sr"][0])
    del dataset.VerificationFlag
    dataset.save_as(tmp_path / "wrong.dcm", enforce_file_format=True)
    assert any("VerificationFlag" in error for error in judges.dciodvfy(tmp_path / "wrong.dcm", "ComprehensiveSR"))


@pytest.mark.parametrize("kind", ["sr", "report"])
def test_dsrdump_reads_every_measurement(kind: str, written: dict[str, list[Path]], judges: Judges) -> None:
    for path in written[kind]:
        measured = Counter(measurements(pydicom.dcmread(path)))
        assert {name for name, _, _ in measured} >= {"Long axis", "Short axis"}
        printed = _NUM.findall(judges.dsrdump(path))
        assert Counter((name, float(value), unit) for name, value, unit in printed) == measured


def measurements(item: Dataset) -> Iterator[tuple[str, float, str]]:
    """Concept, value and unit of every NUM below a content item."""
    if item.get("ValueType") == "NUM":
        (value,) = item.MeasuredValueSequence
        unit = value.MeasurementUnitsCodeSequence[0].CodeValue
        yield item.ConceptNameCodeSequence[0].CodeMeaning, float(value.NumericValue), unit
    for child in item.get("ContentSequence") or ():
        yield from measurements(child)


def test_dcmpschk_passes(written: dict[str, list[Path]], judges: Judges) -> None:
    for path in written["gsps"]:
        assert judges.dcmpschk(path) == []


def test_orthanc_takes_everything_and_gives_it_back(
    folders: tuple[Path, Path], written: dict[str, list[Path]], orthanc: Orthanc, tmp_path: Path
) -> None:
    sent = [path for kind in IODS for path in written[kind]]
    for start in range(0, len(sent), 50):
        some = sent[start : start + 50]
        taken, refused = orthanc.store(some)
        assert refused == []
        assert len(taken) == len(some)
    assert len(orthanc.download(tmp_path / "back")) == len(sent)
    ours, given_back = marks(folders, tmp_path / "ours"), marks([tmp_path / "back"], tmp_path / "given back")
    assert given_back == ours
    assert {mark["source"] for mark in ours.values()} == {"dicom-sr", "dicom-gsps", "dicom-seg"}


def marks(sources: Sequence[Path], out: Path) -> dict[str, dict[str, Any]]:
    """Bookmark id -> all that a harvest of these folders says of the mark, but for the name of its file."""
    summary = harvest(sources, out, progress=False)
    assert (summary.rejected, summary.with_dicom) == (0, summary.lesions)
    said = {mark.bookmark_id: asdict(mark) for mark in read_bookmarks(out / "bookmarks.parquet")}
    for mark in said.values():
        del mark["source_file"]
    return said
