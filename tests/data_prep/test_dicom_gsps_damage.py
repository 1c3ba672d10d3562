"""Presentation states that are damaged or hostile."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import UnreadableError
from data_prep.readers import Rejection, dicom_gsps
from tests.data_prep.gsps_objects import (
    annotation,
    graphic,
    read,
    reference,
    state,
)


def test_wrong_types_give_a_reason(tmp_path: Path) -> None:
    for keyword, vr, value in itertools.chain(
        [("GraphicData", "LO", "many"), ("GraphicData", "OB", b"\1\2\3\4\5\6"), ("GraphicType", "OB", b"POLYLINE")],
        [("GraphicAnnotationUnits", "US", 7)],
    ):
        shape = graphic("POLYLINE", [1, 2, 3, 4])
        del shape[keyword]
        shape.add_new(keyword, vr, value)
        (mark,) = read(state(annotation(graphics=[shape])), tmp_path)
        assert isinstance(mark, Rejection), keyword
    broken = state()
    broken.add_new("GraphicAnnotationSequence", "OB", b"\0" * 8)
    with pytest.raises(UnreadableError):
        read(broken, tmp_path)


@pytest.mark.filterwarnings("ignore:The value for the data element")
def test_absurd_numbers_of_marks_are_refused_at_once(tmp_path: Path) -> None:
    images = [reference(frames=list(range(1, 700)))]
    many = [annotation(graphics=[graphic("POINT", [1, 2])] * 20)] * 2
    started = time.monotonic()
    with pytest.raises(UnreadableError, match="more marks"):
        read(state(*many, images=images), tmp_path)
    outline = np.arange(40_000.0)  # more than 64 KiB: stored with VR UN
    big = [annotation(graphics=[graphic("POLYLINE", outline.tolist())])]
    with pytest.raises(UnreadableError, match="more marks"):
        read(state(*big, images=images), tmp_path)
    assert time.monotonic() - started < 20


def test_no_dicom_at_all(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("nothing here")
    assert not dicom_gsps.recognise(path.read_bytes(), path)
    with pytest.raises(UnreadableError, match="notes"):
        list(dicom_gsps.read(path))
    with pytest.raises(UnreadableError):
        list(dicom_gsps.read(tmp_path / "missing"))
