"""Marks whose image is not settled are on none rather than on a wrong one; folders that cannot be read are listed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from data_prep.archive.index import ImageIndex
from data_prep.bookmark import Bookmark, read_bookmarks
from data_prep.errors import DataPrepError
from data_prep.frames import dicom_affine, px_to_lps
from data_prep.harvest import harvest
from data_prep.readers._planes import nearest_image
from tests.data_prep.exports import ct, lesion, run, uid_of
from tests.data_prep.files import rows_of

MakeCt = Callable[..., list[Path]]


def harvested(tmp_path: Path, row: str) -> tuple[list[Bookmark], list[dict[str, str]]]:
    """One ellipse on these images: what becomes of it."""
    (tmp_path / "marks.csv").write_text(
        f"form,points_px,patient_id,image_uid,frame_number\nellipse,10 10 30 10 20 5 20 15,{row}\n"
    )
    harvest([tmp_path / "marks.csv"], tmp_path / "out", images=tmp_path / "dicom", progress=False)
    return read_bookmarks(tmp_path / "out" / "bookmarks.parquet"), rows_of(tmp_path / "out" / "rejected.csv")


def two_patients(tmp_path: Path, make_ct: MakeCt) -> list[Path]:
    """Series of two patients whose images bear the same UIDs; the first one's files."""

    def like_the_first(dataset: Dataset, k: int) -> None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid_of(paths[k])

    paths = make_ct(tmp_path / "dicom", ct(3, key=1))
    make_ct(tmp_path / "dicom", ct(3, key=1), name="q", edit=like_the_first)
    return paths


def test_a_uid_of_two_patients_names_no_image(tmp_path: Path, make_ct: MakeCt) -> None:
    paths = two_patients(tmp_path, make_ct)
    index = ImageIndex.build(tmp_path / "dicom", progress=False)
    assert len(index) == 6
    assert index.find(uid_of(paths[1])) is None
    assert index.is_shared(uid_of(paths[1]))
    ((mark,), rejected) = harvested(tmp_path, f"ID-q,{uid_of(paths[1])},")
    assert (mark.patient_id, mark.series_uid, rejected) == ("ID-q", None, [])
    other = make_ct(tmp_path / "dicom", ct(3, key=1), name="r")
    run(tmp_path, [lesion(paths[1], "1"), lesion(other[1], "2")])
    (row,) = rows_of(tmp_path / "out" / "lesions_not_exported.csv")
    assert row["reason"] == "images of several patients or studies bear the UID of its image"


def test_copies_in_two_folders_are_no_two_patients(tmp_path: Path, make_ct: MakeCt) -> None:
    paths = make_ct(tmp_path / "dicom" / "a", ct(3, key=1))
    make_ct(tmp_path / "dicom" / "b", ct(3, key=1))
    index = ImageIndex.build(tmp_path / "dicom", progress=False)
    assert index.find(uid_of(paths[1])) is not None
    assert not index.is_shared(uid_of(paths[1]))


def test_a_mark_that_names_no_frame_is_on_no_slice(tmp_path: Path, make_enhanced_ct: Callable[..., Path]) -> None:
    path = make_enhanced_ct(tmp_path / "dicom" / "e", ct(4, key=1), [6, 4, 2, 0], [1] * 4)
    marks, rejected = harvested(tmp_path, f"ID-e,{uid_of(path)},")
    assert marks == []
    assert [row["reason"] for row in rejected] == [
        "the mark names none of the 4 frames of its image, so it is on no slice"
    ]
    ((mark,), rejected) = harvested(tmp_path, f"ID-e,{uid_of(path)},2")
    assert (mark.frame_number, mark.slice_index, rejected) == (2, 2, [])


def test_a_place_in_the_patient_settles_the_frame(tmp_path: Path, make_enhanced_ct: Callable[..., Path]) -> None:
    z = [6.0, 4.0, 2.0, 0.0]
    path = make_enhanced_ct(tmp_path / "e", ct(4, key=1), z, [1] * 4)
    index = ImageIndex.build(tmp_path, progress=False)
    for number, height in enumerate(z, start=1):
        affine = dicom_affine((-100.0, -120.0, height), (1, 0, 0, 0, 1, 0), (0.8, 0.7), (0, 0, 1.0))
        point = px_to_lps(np.array([[20.0, 30.0, 0.5]]), affine)[0]
        assert nearest_image(index, [(uid_of(path), None)], point) == (uid_of(path), number)


def test_folders_that_cannot_be_listed_are_told(
    tmp_path: Path, make_ct: MakeCt, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_ct(tmp_path / "dicom", ct(3, key=1))
    (tmp_path / "dicom" / "locked").mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, os.strerror(13), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    index = ImageIndex.build(tmp_path / "dicom", progress=False)
    assert index.skipped == [(tmp_path / "dicom" / "locked", "this folder cannot be listed (Permission denied)")]
    assert len(index) == len(paths)
    harvest([tmp_path / "dicom"], tmp_path / "out", progress=False)
    reasons = {row["source_file"]: row["reason"] for row in rows_of(tmp_path / "out" / "rejected.csv")}
    assert reasons[str(tmp_path / "dicom" / "locked")] == "this folder cannot be listed (Permission denied)"


def test_the_index_may_not_lie_in_the_release(tmp_path: Path, make_ct: MakeCt) -> None:
    paths = make_ct(tmp_path / "dicom", ct(3, key=1))
    with pytest.raises(DataPrepError, match="must not lie in the export"):
        run(tmp_path, [lesion(paths[1])], cache=tmp_path / "out" / "index.parquet")
    assert not (tmp_path / "out" / "index.parquet").exists()
