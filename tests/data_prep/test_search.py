"""Finding alike: the command on a tiny archive."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from data_prep import __main__
from data_prep.archive.png import write_hu
from data_prep.categorize import MiningSettings, run
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.features import FeatureCache
from data_prep.categorize.search import SearchSummary, search
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, write_lesions
from tests.data_prep.drawn_lesions import draw_lesions
from tests.data_prep.files import rows_of

ORGANS = ("Liver", "Kidney", "Lung")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Lesion]]:
    """Fifteen lesions of three kinds with the words of their kinds, two a patient, categorised."""
    folder = tmp_path_factory.mktemp("archive")
    drawn, kinds = draw_lesions(folder / "images", 15, size=128)
    lesions = [
        replace(
            lesion,
            lesion_id=f"lesion{number:02d}",
            patient_id=f"secret-{number // 6 * 3 + kind}",  # numbers 0 and 3 are of one patient, and so on
            text=f"confidential {ORGANS[kind]} lesion {number}",
        )
        for number, (lesion, kind) in enumerate(zip(drawn, kinds, strict=True))
    ]
    write_lesions(lesions, folder / "lesions.parquet")
    single = MiningSettings(rounds=1)
    run(
        folder / "lesions.parquet",
        folder / "images",
        folder / "categories",
        categories=len(ORGANS),
        crops=CropSettings(side_px=64),
        device="cpu",
        progress=False,
        mining=single,
    )
    return folder, lesions


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lesions' features each later call put into the cache."""
    counts: list[int] = []
    put = FeatureCache.put

    def counted(self: FeatureCache, digests: list[bytes], features: npt.NDArray[np.float16]) -> None:
        counts.append(len(digests))
        put(self, digests, features)

    monkeypatch.setattr(FeatureCache, "put", counted)
    return counts


def find(folder: Path, out: Path, **options: object) -> SearchSummary:
    arguments = {"categories": folder / "categories", "progress": False, "device": "cpu"} | options
    return search(folder / "lesions.parquet", folder / "images", out, **arguments)  # type: ignore[arg-type]


def test_the_command(
    archive: tuple[Path, list[Lesion]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    computed: list[int],
) -> None:
    folder, lesions = archive
    files = ["search", folder / "lesions.parquet", "--images", folder / "images"]
    files += ["--categories", folder / "categories", "--out", tmp_path]
    wanted = ["--like", "lesion04", "--count", "6", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["lesion-bookmarks", *map(str, files), *wanted])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path / "hits.csv")
    assert [*rows[0]] == ["rank", "lesion_id", "similarity", "image", "category", "long_diameter_mm", "same_patient"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    by_id = {lesion.lesion_id: lesion for lesion in lesions}
    assert {row["lesion_id"] for row in rows[:4]} == {f"lesion{n:02d}" for n in (1, 7, 10, 13)}  # all of its kind
    scores = [float(row["similarity"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert -1 <= scores[-1] < scores[0] < 1
    assert len({row["category"] for row in rows[:4]}) == 1
    for row in rows:
        lesion = by_id[row["lesion_id"]]
        assert row["image"] == lesion.image
        assert float(row["long_diameter_mm"]) == pytest.approx(lesion.long_diameter_mm, abs=0.01)
        assert row["same_patient"] == ("true" if row["lesion_id"] == "lesion01" else "false")
        assert row["lesion_id"] in printed
    assert printed.count("(same patient)") == 1
    assert "searched 14 of 15 lesions" in printed
    assert computed == []  # the features were there
    for text in (printed, (tmp_path / "hits.csv").read_text()):
        assert "secret" not in text
        assert "confidential" not in text
    sheet = cv2.imread(str(tmp_path / "hits.png"))
    assert sheet is not None
    assert sheet.shape[1] > 4 * sheet.shape[0]  # one row: the query and six hits
    red = (sheet[..., 2] > 180) & (sheet[..., 1] < 80) & (sheet[..., 0] < 80)
    assert red.sum() > 7 * 50  # boxes


def test_other_patients(archive: tuple[Path, list[Lesion]], tmp_path: Path) -> None:
    summary = find(archive[0], tmp_path, like="lesion04", other_patients=True, count=99)
    found = [hit.lesion.lesion_id for hit in summary.hits]
    assert len(found) == 13 == summary.searched
    assert not {"lesion01", "lesion04"} & set(found)
    assert not any(hit.same_patient for hit in summary.hits)


def test_words_need_no_categoriser(archive: tuple[Path, list[Lesion]], tmp_path: Path) -> None:
    summary = find(archive[0], tmp_path, text="kidney  lesions", categories=None, count=7)
    found = [hit.lesion.lesion_id for hit in summary.hits]
    # The five of the kidney, then those that share "lesion" alone; equal ones in the order of the file.
    assert found == [f"lesion{number:02d}" for number in (1, 4, 7, 10, 13, 0, 2)]
    assert summary.searched == 15
    assert summary.hits[0].similarity > 0.2
    assert all(hit.category is None and hit.same_patient is None for hit in summary.hits)
    only = find(archive[0], tmp_path, text="kidney", count=20)
    assert len(only.hits) == only.searched == 5  # what shares no word is no hit
    assert len({hit.category for hit in only.hits} - {None}) == 1


def test_both_rank_by_the_mean(archive: tuple[Path, list[Lesion]], tmp_path: Path) -> None:
    alike = find(archive[0], tmp_path, like="lesion00", count=99)
    said = find(archive[0], tmp_path, text="lung", count=99)
    both = find(archive[0], tmp_path, like="lesion00", text="lung", count=99)
    spoken = {hit.lesion.lesion_id: hit.similarity for hit in said.hits}
    expected = {v.lesion.lesion_id: (v.similarity + spoken.get(v.lesion.lesion_id, 0)) / 2 for v in alike.hits}
    assert {hit.lesion.lesion_id: hit.similarity for hit in both.hits} == pytest.approx(expected, abs=3e-6)
    assert [hit.similarity for hit in both.hits] == pytest.approx(sorted(expected.values(), reverse=True), abs=3e-6)


def test_missing_features_are_computed_and_the_points_kept(
    archive: tuple[Path, list[Lesion]], tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without caches the same hits; then without features; and an edited slice is computed again."""
    folder = tmp_path / "copy"
    shutil.copytree(archive[0], folder)
    expected = find(archive[0], tmp_path / "a", like="lesion02")
    shutil.rmtree(folder / "categories" / "features")
    index = folder / "categories" / "search.safetensors"
    index.unlink(missing_ok=True)
    fresh = find(folder, tmp_path / "b", like="lesion02")
    assert sum(computed) == 15
    np.testing.assert_allclose(
        [hit.similarity for hit in fresh.hits], [hit.similarity for hit in expected.hits], atol=2e-3
    )
    points = load_file(index)["points"]
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)

    with monkeypatch.context() as kept:
        kept.setattr("data_prep.categorize.search.extract", lambda *_a, **_k: pytest.fail("the points were kept"))
        assert find(folder, tmp_path / "c", like="lesion02").hits == fresh.hits

    index.write_bytes(index.read_bytes()[:200])
    assert find(folder, tmp_path / "d", like="lesion02").hits == fresh.hits
    assert sum(computed) == 15
    write_hu(folder / "images" / "000005_01_01/007.png", np.zeros((128, 128)))
    edited = find(folder, tmp_path / "e", like="lesion02")
    assert sum(computed) == 16
    assert edited.hits != fresh.hits


def test_rejected_lesions_and_lesions_without_a_picture(archive: tuple[Path, list[Lesion]], tmp_path: Path) -> None:
    """A rejected lesion is never found; one without an image is found by its words alone."""
    folder, lesions = archive
    changed = [replace(lesions[0], image=None), replace(lesions[3], review="rejected"), *lesions[6:9]]
    write_lesions(changed, tmp_path / "lesions.parquet")
    options = {"categories": folder / "categories", "progress": False, "device": "cpu"}
    arguments = (tmp_path / "lesions.parquet", folder / "images", tmp_path / "out")
    alike = search(*arguments, like="lesion06", **options)  # type: ignore[arg-type]
    assert {hit.lesion.lesion_id for hit in alike.hits} == {"lesion07", "lesion08"}
    said = search(*arguments, text="liver", **options)  # type: ignore[arg-type]
    assert {hit.lesion.lesion_id for hit in said.hits} == {"lesion00", "lesion06"}
    assert (tmp_path / "out" / "hits.png").stat().st_size > 1000
    with pytest.raises(DataPrepError, match="lesion00 cannot be compared: no image"):
        search(*arguments, like="lesion00", **options)  # type: ignore[arg-type]
    with pytest.raises(DataPrepError, match="rejected in review"):
        search(*arguments, like="lesion03", **options)  # type: ignore[arg-type]


def test_bad_input_is_one_clear_error(archive: tuple[Path, list[Lesion]], tmp_path: Path) -> None:
    folder, lesions = archive
    out = tmp_path / "out"
    with pytest.raises(DataPrepError, match=r"--like LESION_ID, --text"):
        find(folder, out)
    with pytest.raises(DataPrepError, match=r"--like LESION_ID, --text"):
        find(folder, out, text="  ")
    with pytest.raises(DataPrepError, match=r"none of its 15 lesions .*lesion_id"):
        find(folder, out, like="nobody")
    with pytest.raises(DataPrepError, match="needs --categories"):
        find(folder, out, like="lesion00", categories=None)
    with pytest.raises(DataPrepError, match="no such categoriser"):
        find(folder, out, like="lesion00", categories=tmp_path)
    with pytest.raises(DataPrepError, match="no such folder"):
        find(folder, out, text="liver", categories=tmp_path / "none")
    with pytest.raises(DataPrepError, match="with --like"):
        find(folder, out, text="liver", other_patients=True)
    with pytest.raises(DataPrepError, match="at least 1"):
        find(folder, out, text="liver", count=0)
    with pytest.raises(DataPrepError, match="try other words"):
        find(folder, out, text="spleen")
    with pytest.raises(DataPrepError, match="no such images folder"):
        search(folder / "lesions.parquet", tmp_path / "none", out, text="liver")
    write_lesions([replace(lesion, text=None) for lesion in lesions], tmp_path / "mute.parquet")
    with pytest.raises(DataPrepError, match="no lesion has words"):
        search(tmp_path / "mute.parquet", folder / "images", out, text="liver")
    write_lesions(lesions[:1], tmp_path / "one.parquet")
    with pytest.raises(DataPrepError, match="no other lesion"):
        search(
            tmp_path / "one.parquet",
            folder / "images",
            out,
            like="lesion00",
            categories=folder / "categories",
            device="cpu",
            progress=False,
        )
    assert not (out / "hits.csv").exists()
