"""The rule that proposes a name for each category, on made evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.archive.png import write_hu
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.names import (
    ORGAN_OF_WORD,
    Proposal,
    organs_named,
    place_of,
    propose_names,
    region_of,
    side_of,
    surroundings,
)
from data_prep.category_names import name_problem
from data_prep.lesion import COARSE_TYPES, Lesion

SETTINGS = CropSettings()
SIZE = 128
LUNG, FAT, WATER, LIVER, BONE, AIR = -850.0, -100.0, -10.0, 100.0, 700.0, -1000.0


def lesion(number: int = 0, **values: Any) -> Lesion:
    """A lesion of 10 mm in the middle of a slice of 128 mm."""
    facts: dict[str, Any] = {
        "lesion_id": f"{number}",
        "bookmark_ids": (),
        "source": "csv",
        "image": f"S/{number:03d}.png",
        "patient_id": f"p{number}",
        "rows": SIZE,
        "columns": SIZE,
        "spacing_x_mm": 1.0,
        "spacing_y_mm": 1.0,
        "x0": 59.0,
        "y0": 59.0,
        "x1": 69.0,
        "y1": 69.0,
    }
    return Lesion(**facts | values)


def image(around: float, inside: float = 40.0) -> npt.NDArray[np.float32]:
    """A slice of one tissue, with outside air in a corner so that it is not taken for a clipped one."""
    hu = np.full((SIZE, SIZE), around, np.float32)
    hu[59:69, 59:69] = inside
    hu[:10, :10] = AIR
    return hu


def clip(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As the sample of DeepLesion that has 0 to 255 HU only."""
    return np.clip(hu, 0, 255)


def lies(x: float, z: float) -> dict[str, Any]:
    return {"norm_x": x, "norm_y": 0.5, "norm_z": z}


def skin() -> npt.NDArray[np.float32]:
    """Fat below the skin: outside air in 15 of the 80 mm."""
    hu = image(FAT)
    hu[:, 89:] = AIR
    return hu


def half_lung() -> npt.NDArray[np.float32]:
    """A nodule at the pleura: 55 % of the ring is lung."""
    hu = image(LIVER)
    hu[:, :66] = LUNG
    hu[59:69, 59:69] = 40
    return hu


def vertebra(share: float) -> npt.NDArray[np.float32]:
    """Bone in so much of the box, soft tissue around."""
    hu = image(20.0)
    hu[59:69, 59:69] = np.where(np.arange(100) < 100 * share, BONE, 20.0).reshape(10, 10)
    return hu


@pytest.mark.parametrize(
    ("hu", "where", "place"),
    [
        (image(LUNG), {}, "lung"),
        (image(LUNG), lies(0.5, 0.62), "lung"),  # what is seen goes before the height
        (half_lung(), {}, "lung"),
        (image(-970.0), {}, None),  # outside the body, or an emphysema's bulla
        (clip(image(LUNG)), lies(0.3, 0.45), "lung"),
        (clip(half_lung()), lies(0.3, 0.45), "chest"),  # on a clipped slice that may be fat
        (clip(image(FAT)), lies(0.3, 0.65), "abdomen"),
        (clip(image(LUNG)), {}, "air or fat"),
        (vertebra(0.12), lies(0.5, 0.45), "bone"),
        (vertebra(0.08), lies(0.5, 0.45), "mediastinum"),
        (clip(vertebra(0.12)), {}, "bone"),
        (skin(), lies(0.5, 0.45), "subcutaneous"),
        (image(FAT), lies(0.5, 0.45), "mediastinum"),
        (image(FAT), {}, "fat"),
        (image(LIVER), lies(0.3, 0.6), "liver"),
        (clip(image(LIVER)), lies(0.3, 0.6), "liver"),
        (image(LIVER), lies(0.7, 0.6), "abdomen"),
        (image(FAT), lies(0.3, 0.6), "abdomen"),
        (image(LIVER), lies(0.3, 0.8), "pelvis"),
        (image(LIVER), lies(0.8, 0.45), "chest"),
        (image(LIVER), lies(0.5, 0.2), "neck"),
        (image(LIVER), {}, "solid tissue"),
        (image(WATER), {}, None),
        (image(WATER), {"norm_x": float("nan"), "norm_z": float("nan")}, None),
    ],
)
def test_each_line_of_the_table(hu: npt.NDArray[np.float32], where: dict[str, Any], place: str | None) -> None:
    one = lesion(**where)
    seen = surroundings(hu, one, SETTINGS)
    assert seen is not None
    assert place_of(seen, one) == place


def test_shares_are_those_of_the_image() -> None:
    """Anisotropic pixels: the ring is 10 mm wide in both directions; what sticks out of the image does not count."""
    hu = image(LIVER)
    one = lesion(spacing_x_mm=0.5, spacing_y_mm=2.0)
    hu[54:74, 39:89] = LUNG  # the ring: 10 mm are 20 columns and 5 rows
    hu[59:69, 59:69] = 40
    seen = surroundings(hu, one, SETTINGS)
    assert seen is not None
    assert (seen.air, seen.clipped) == (1.0, False)
    wider = surroundings(hu, lesion(spacing_x_mm=0.5, spacing_y_mm=1.8), SETTINGS)
    assert wider is not None
    assert wider.air < 1
    corner = lesion(x0=-20.0, y0=-20.0, x1=6.0, y1=6.0)
    there = surroundings(image(LIVER), corner, SETTINGS)
    assert there is not None
    assert there.bone == 0
    assert surroundings(hu, lesion(x0=500.0, x1=510.0), SETTINGS) is None
    assert surroundings(hu, lesion(x0=None, y0=None, x1=None, y1=None), SETTINGS) is None


def test_clipped_slices_are_noticed() -> None:
    for hu, clipped in ((image(LUNG), False), (clip(image(LUNG)), True), (np.clip(image(LUNG), -200, 500), True)):
        seen = surroundings(hu, lesion(), SETTINGS)
        assert seen is not None
        assert seen.clipped == clipped
        assert seen.air == 1
        assert seen.fat == 0


def test_regions_and_sides() -> None:
    assert [region_of(z) for z in (0.1, 0.3, 0.54, 0.55, 0.75, 1.0)] == [
        "neck",
        "chest",
        "chest",
        "abdomen",
        "pelvis",
        "pelvis",
    ]
    assert region_of(None) is None
    assert region_of(float("nan")) is None
    assert [side_of(lesion(norm_x=x)) for x in (0.1, 0.5, 0.9)] == ["right", None, "left"]
    assert side_of(lesion(laterality="24028007^SCT^Right")) == "right"
    assert side_of(lesion(text="left and right")) is None
    assert side_of(lesion(norm_x=0.9, laterality="Right")) == "left"


def test_words_name_organs() -> None:
    assert organs_named(lesion(text="Hepatic metastases")) == {"liver"}
    assert organs_named(lesion(site="39607008^SCT^Lung structure")) == {"lung"}
    assert organs_named(lesion(text="mediastinal lymph nodes")) == {"mediastinum", "lymph node"}
    assert organs_named(lesion(text="adrenal nodule")) == {"adrenal gland"}  # not "renal"
    assert organs_named(lesion(text="Lesion 3", site="39607008")) == set()
    assert organs_named(lesion()) == set()
    assert not any(name_problem(organ) for organ in ORGAN_OF_WORD.values())


def write(folder: Path, kinds: list[npt.NDArray[np.float32]]) -> None:
    (folder / "S").mkdir(parents=True)
    for number, hu in enumerate(kinds):
        write_hu(folder / f"S/{number:03d}.png", hu)


def propose(lesions: list[Lesion], labels: list[int], images: Path) -> list[Proposal]:
    return propose_names(lesions, np.array(labels, np.int32), max(labels) + 1, images, SETTINGS)


def test_words_win_where_half_of_those_that_speak_agree(tmp_path: Path) -> None:
    write(tmp_path, [image(LUNG)] * 20)
    says = ["liver metastasis"] * 3 + ["renal cyst"] * 3 + ["Lesion 1", None, None, None]
    lesions = [lesion(number, text=text) for number, text in enumerate(says)]
    assert propose(lesions, [0] * 10, tmp_path)[0].name == "liver"  # 3 of 6, and the tie goes to the earlier organ
    fewer = [*lesions[1:], lesion(10, text="renal mass"), lesion(11, text="pelvic mass")]
    assert propose(fewer, [0] * 11, tmp_path)[0] == Proposal(
        "kidney", "kidney: 4 of 7 lesions whose words name an organ"
    )
    torn = [*fewer, lesion(12, text="splenic cyst"), lesion(13, text="splenic cyst")]
    assert propose(torn, [0] * 13, tmp_path)[0].name == "lung"  # 4 of 9: the images decide
    quiet = lesions[:1] + [lesion(number) for number in range(1, 12)]
    assert propose(quiet, [0] * 12, tmp_path)[0].name == "lung"  # one of twelve does not speak for all


def test_the_commonest_place_names_a_category(tmp_path: Path) -> None:
    kinds = [image(LUNG)] * 6 + [image(LIVER)] * 6 + [image(WATER)] * 2 + [image(LUNG), image(LIVER), image(WATER)] * 2
    write(tmp_path, kinds)
    lesions = [lesion(number) for number in range(20)]
    labels = [0] * 4 + [1] * 2 + [2] * 6 + [3] * 2 + [4] * 6
    proposals = propose(lesions, labels, tmp_path)
    assert [proposal.name for proposal in proposals] == ["lung", "lung 2", "solid tissue", "mixed 3", "mixed 4"]
    assert proposals[0].reason == "lung: 4 of 4 lesions looked at"
    assert "no place can be told of the 2 lesions" in proposals[3].reason
    assert "(lung 2, solid tissue 2)" in proposals[4].reason
    assert not any(name_problem(proposal.name) for proposal in proposals)


def test_a_place_that_names_a_surer_category_leaves_the_rest_to_name_the_other(tmp_path: Path) -> None:
    write(tmp_path, [image(LUNG)] * 4 + [image(LUNG)] * 5 + [image(LIVER)] * 3 + [image(LUNG)] * 7 + [image(LIVER)])
    lesions = [lesion(number) for number in range(20)]
    proposals = propose(lesions, [0] * 4 + [1] * 8 + [2] * 8, tmp_path)
    # Of category 2 too little is not lung.
    assert [proposal.name for proposal in proposals] == ["lung", "solid tissue", "lung 2"]
    assert proposals[1].reason == (
        "solid tissue: 3 of 3 lesions looked at outside lung, which names another category"
    )  # fmt: skip


def test_the_side_is_said_where_most_lie_there(tmp_path: Path) -> None:
    write(tmp_path, [image(LUNG)] * 15 + [image(LIVER)] * 5)
    across = [0.2] * 4 + [0.8] + [0.2, 0.8, 0.2, 0.8, 0.2] + [0.7] * 5 + [0.2] * 5
    height = [0.4] * 15 + [0.6] * 5
    lesions = [lesion(number, **lies(x, z)) for number, (x, z) in enumerate(zip(across, height, strict=True))]
    proposals = propose(lesions, [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5, tmp_path)
    assert proposals[0].reason == "lung: 5 of 5 lesions looked at; 4 of these right"
    assert [proposal.name for proposal in proposals] == [
        "right lung",
        "lung",
        "left lung",
        "liver",
    ]  # there is one liver


def test_slices_that_cannot_be_read_have_no_voice(tmp_path: Path) -> None:
    write(tmp_path, [image(LUNG)] * 3)
    lesions = [lesion(number) for number in range(6)] + [lesion(7, image="../secret.png")]
    assert [v.name for v in propose(lesions, [0] * 5 + [1] * 2, tmp_path)] == ["lung", "mixed 1"]


def test_the_official_types_take_no_part(tmp_path: Path) -> None:
    write(tmp_path, [image(WATER)] * 6)
    names = {
        tuple(v.name for v in propose([lesion(i, coarse_type=kind) for i in range(6)], [0] * 3 + [1] * 3, tmp_path))
        for kind in (*COARSE_TYPES, None)
    }
    assert names == {("mixed 0", "mixed 1")}


def test_a_large_category_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [image(LUNG)] * 8)
    monkeypatch.setattr("data_prep.categorize.names.MOST_SLICES", 10)
    lesions = [lesion(number % 8) for number in range(40)]
    proposals = propose(lesions, [0] * 20 + [1] * 20, tmp_path)
    assert [v.reason for v in proposals] == ["lung: 5 of 5 lesions looked at"] * 2
    assert proposals == propose(lesions, [0] * 20 + [1] * 20, tmp_path)
