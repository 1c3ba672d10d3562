"""Propose a name for each category by a stated rule, from words, intensities and place; see docs/categories.md.

The official coarse types of lesions take no part.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep import frames
from data_prep.archive.png import read_hu
from data_prep.categorize.balance import Labels
from data_prep.categorize.crops import CropSettings, stated_spacing_mm
from data_prep.categorize.features import file_in_folder
from data_prep.categorize.words import normalise, words
from data_prep.category_names import unique
from data_prep.errors import UnreadableError
from data_prep.lesion import Lesion

SAMPLE = 100
"""Lesions of a category, drawn at random, whose slices are looked at; fewer where there are many categories."""

MOST_SLICES = 2000
"""Looked at in all, so that many categories take no longer."""

MIN_REST = 0.25
"""Share of a category's lesions that may name it when their commonest place names another category."""

MAJORITY = 0.5
"""Share of the lesions that speak which the commonest organ or place must reach."""

MIN_SPEAKING = 0.2
"""Share of a category's lesions that must name an organ before words decide."""

ONE_SIDED = 0.8
"""Share of the lesions on one side from which on the name says the side."""

RING_MM = 10.0
"""Width of the ring around the box."""

LUNG_HU = (-950.0, -500.0)
FAT_HU = (-200.0, -30.0)
SOLID_HU = (0.0, 200.0)
BONE_HU = 250.0
CLIPPED_HU = -200.0
"""A slice without a voxel below this has been clipped: air, lung and fat are all its lowest value."""

MIN_BONE, MIN_SOLID, MIN_CLIPPED_AIR = 0.1, 0.7, 0.6
"""Shares from which a lesion lies in bone, in a solid organ, and on a clipped slice in lung: fat around a lymph node is
as dark there. Like the heights below set by looking at slices of training patients, without their types."""

CHEST_Z, ABDOMEN_Z, PELVIS_Z = 0.3, 0.55, 0.75
"""Normalised heights (0 head, 1 foot) at which these begin: the thoracic inlet, the dome of the diaphragm, the iliac
crest."""

MIDDLE_X = (0.35, 0.65)
"""Normalised place from the patient's right (0) to left (1) that counts as the middle of the chest."""

RIGHT_X, LEFT_X = 0.45, 0.55

_ORGANS = {
    "lung": "lung pulmonary",
    "pleura": "pleura pleural",
    "mediastinum": "mediastinum mediastinal hilum hilar paratracheal subcarinal",
    "liver": "liver hepatic",
    "kidney": "kidney renal",
    "adrenal gland": "adrenal suprarenal",
    "spleen": "spleen splenic",
    "pancreas": "pancreas pancreatic",
    "stomach": "stomach gastric",
    "bowel": "bowel colon colonic ileum jejunum duodenum rectum rectal",
    "bladder": "bladder vesical",
    "prostate": "prostate prostatic",
    "uterus": "uterus uterine",
    "ovary": "ovary ovarian",
    "breast": "breast mammary",
    "thyroid": "thyroid",
    "brain": "brain cerebral cerebellar",
    "axilla": "axilla axillary",
    "groin": "groin inguinal",
    "retroperitoneum": "retroperitoneum retroperitoneal paraaortic",
    "mesentery": "mesentery mesenteric",
    "peritoneum": "peritoneum peritoneal omentum omental",
    "bone": "bone osseous vertebra vertebrae vertebral rib sacrum sacral femur femoral skeleton skeletal",
    "neck": "neck cervical",
    "pelvis": "pelvis pelvic",
    "abdomen": "abdomen abdominal",
    "muscle": "muscle muscular psoas",
    "subcutaneous": "subcutaneous subcutis",
    "soft tissue": "soft",
    "lymph node": "lymph node nodal lymphadenopathy",
}
ORGAN_OF_WORD = {normalise(word): organ for organ, said in _ORGANS.items() for word in said.split()}
"""Normalised English word -> organ. On a tie the organ that stands earlier wins."""

SIDED = frozenset(
    ["lung", "pleura", "kidney", "adrenal gland", "breast", "axilla", "groin", "chest", "abdomen", "pelvis", "neck"]
)
"""Places of which the name may say the side."""

_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A name and, in words, why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies around and in a lesion on its slice; shares from 0 to 1.

    Attributes:
        clipped: whether the slice's HU are clipped, so that air, lung and fat look the same.
        air: of the ring, at lung attenuation; of a clipped slice, at its lowest value.
        fat: of the ring; 0 on a clipped slice.
        outside: of the neighbourhood crop, air outside the body; 0 on a clipped slice.
        solid: of the neighbourhood crop, at the attenuation of soft tissue.
        bone: of the box.
    """

    clipped: bool
    air: float
    fat: float
    outside: float
    solid: float
    bone: float


def organs_named(lesion: Lesion) -> set[str]:
    """The organs that a lesion's words name. Negations are not understood."""
    found = (ORGAN_OF_WORD.get(word) for word in _LETTERS.findall(normalise(words(lesion))))
    return {organ for organ in found if organ is not None}


def surroundings(hu: npt.NDArray[np.float32], lesion: Lesion, settings: CropSettings) -> Surroundings | None:
    """Measure (rows, columns) HU around a lesion; None where its box lies outside."""
    box = lesion.box_px
    if box is None:
        return None
    spacing_mm = np.array(stated_spacing_mm(lesion) or (settings.assumed_spacing_mm,) * 2)
    corners = np.array(box).reshape(2, 2)
    ring_px, half_px = RING_MM / spacing_mm, settings.near_mm / 2 / spacing_mm
    centre = corners.mean(axis=0)
    inner = _pixels(corners, hu.shape)
    outer = _pixels(corners + np.stack([-ring_px, ring_px]), hu.shape)
    near = _pixels(np.stack([centre - half_px, centre + half_px]), hu.shape)
    if inner is None or outer is None or near is None:
        return None
    in_ring = np.zeros(hu.shape, dtype=np.bool_)
    in_ring[outer] = True
    in_ring[inner] = False
    ring = hu[in_ring]
    lowest = float(hu.min())
    clipped = lowest >= CLIPPED_HU
    context = hu[near]
    solid = (context > max(SOLID_HU[0], lowest)) & (context <= SOLID_HU[1])
    return Surroundings(
        clipped=clipped,
        air=_share(ring == lowest) if clipped else _share((ring >= LUNG_HU[0]) & (ring <= LUNG_HU[1])),
        fat=0.0 if clipped else _share((ring >= FAT_HU[0]) & (ring <= FAT_HU[1])),
        outside=0.0 if clipped else _share(context < LUNG_HU[0]),
        solid=_share(solid),
        bone=_share(hu[inner] > BONE_HU),
    )


def _pixels(corners_px: npt.NDArray[np.float64], shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """The pixels that a box touches, as an index of [row, column]."""
    clipped = frames.clip_box(corners_px.ravel(), shape[1], shape[0])
    if clipped is None:
        return None
    x0, y0, x1, y1 = clipped.tolist()
    return slice(math.floor(y0), math.ceil(y1)), slice(math.floor(x0), math.ceil(x1))


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if mask.size else 0.0


def region_of(norm_z: float | None) -> str | None:
    """Part of the trunk at a normalised height; None where it is not known."""
    if norm_z is None or not math.isfinite(norm_z):
        return None
    if norm_z < CHEST_Z:
        return "neck"
    if norm_z < ABDOMEN_Z:
        return "chest"
    return "abdomen" if norm_z < PELVIS_Z else "pelvis"


def side_of(lesion: Lesion) -> str | None:
    """ "right" or "left" of the patient: by the normalised place, else by what was stated; None near the middle."""
    x = lesion.norm_x
    if x is not None and math.isfinite(x):
        return "right" if x < RIGHT_X else "left" if x > LEFT_X else None
    said = set(_LETTERS.findall(normalise(words(lesion))))
    return next((side for side in ("right", "left") if said & {"right", "left"} == {side}), None)


def place_of(seen: Surroundings, lesion: Lesion) -> str | None:
    """Where a lesion lies; the first line that is true decides (the table in docs/categories.md)."""
    region = region_of(lesion.norm_z)
    x = lesion.norm_x if lesion.norm_x is not None and math.isfinite(lesion.norm_x) else None
    dark = seen.air >= (MIN_CLIPPED_AIR if seen.clipped else MAJORITY)
    if dark and (not seen.clipped or region == "chest"):
        return "lung"
    if seen.bone >= MIN_BONE:
        return "bone"
    if seen.fat >= MAJORITY and seen.outside > 0.1:
        return "subcutaneous"
    if region == "abdomen" and x is not None and x < RIGHT_X and seen.solid >= MIN_SOLID:
        return "liver"
    if region == "chest" and x is not None and MIDDLE_X[0] <= x <= MIDDLE_X[1]:
        return "mediastinum"
    if region is not None:
        return region
    if dark:
        return "air or fat"
    if seen.fat >= MAJORITY:
        return "fat"
    return "solid tissue" if seen.solid >= MIN_SOLID else None


def propose_names(
    lesions: Sequence[Lesion], labels: Labels, count: int, images: Path, settings: CropSettings, *, seed: int = 0
) -> list[Proposal]:
    """Names of ``count`` categories, all different.

    Args:
        lesions: N lesions with a box: the fitted ones.
        labels: (N,) their categories.
        count: of categories.
        images: the images folder; a slice that cannot be read has no voice.
        settings: of the crops, for the size of the neighbourhood.
        seed: of the draw of the lesions that are looked at.
    """
    sample = max(1, min(SAMPLE, MOST_SLICES // count))
    generator = np.random.default_rng(seed)
    proposals: dict[int, Proposal] = {}
    drawn: list[int] = []
    for category in range(count):
        members = np.flatnonzero(labels == category)
        spoken = _by_words([lesions[i] for i in members.tolist()])
        if spoken is not None:
            proposals[category] = spoken
            continue
        drawn += np.sort(generator.permutation(members)[:sample]).tolist()
    places = _look(lesions, drawn, images, settings)
    looked_at = {
        category: [(lesions[i], place) for i, place in places.items() if labels[i] == category]
        for category in range(count)
        if category not in proposals
    }
    proposals |= _by_places(looked_at)
    names = unique(proposals[category].name for category in range(count))
    return [Proposal(name, proposals[category].reason) for category, name in enumerate(names)]


def _look(
    lesions: Sequence[Lesion], drawn: Sequence[int], images: Path, settings: CropSettings
) -> dict[int, str | None]:
    """Number of a drawn lesion -> its place, for those whose slice could be read; each slice is read once."""
    found: dict[int, str | None] = {}
    by_image: defaultdict[str, list[int]] = defaultdict(list)
    for index in drawn:
        by_image[lesions[index].image or ""].append(index)
    for image, members in sorted(by_image.items()):
        try:
            hu = read_hu(file_in_folder(images, image))
        except UnreadableError:
            continue
        for index in members:
            seen = surroundings(hu, lesions[index], settings)
            if seen is not None:
                found[index] = place_of(seen, lesions[index])
    return found


def _by_words(lesions: Sequence[Lesion]) -> Proposal | None:
    """The organ that at least half of the lesions that name any organ name."""
    named = [organs_named(lesion) for lesion in lesions]
    speaking = [index for index, organs in enumerate(named) if organs]
    if not speaking or len(speaking) < MIN_SPEAKING * len(lesions):
        return None
    votes = Counter(organ for index in speaking for organ in named[index])
    organ = max(_ORGANS, key=lambda name: votes[name])
    if votes[organ] < MAJORITY * len(speaking):
        return None
    voters = [lesions[index] for index in speaking if organ in named[index]]
    return _with_side(organ, voters, f"{len(speaking)} lesions whose words name an organ")


def _by_places(seen: Mapping[int, Sequence[tuple[Lesion, str | None]]]) -> dict[int, Proposal]:
    """Each category by its commonest place; of those with one name, all but the surest by the rest of their lesions."""
    found = {category: _by_place(of_category, category) for category, of_category in seen.items()}
    votes = {category: _votes(of_category) for category, of_category in seen.items()}
    share = {category: most[0][1] / len(seen[category]) if most else 0.0 for category, most in votes.items()}
    surest = sorted(found, key=lambda category: (-share[category], category))
    for at, category in enumerate(surest):
        if found[category].name not in {found[other].name for other in surest[:at]}:
            continue
        place = votes[category][0][0]
        rest = [(lesion, where) for lesion, where in seen[category] if where != place]
        second = _by_place(rest, category)
        others = {found[other].name for other in found if other != category}
        enough = len(rest) >= MIN_REST * len(seen[category])
        if enough and second.name not in others and not second.name.startswith("mixed"):
            found[category] = Proposal(second.name, f"{second.reason} outside {place}, which names another category")
    return found


def _votes(seen: Sequence[tuple[Lesion, str | None]]) -> list[tuple[str, int]]:
    """The places of the lesions looked at and how many lie in each, the commonest first."""
    votes = Counter(place for _, place in seen if place is not None)
    return sorted(votes.items(), key=lambda item: (-item[1], item[0]))


def _by_place(seen: Sequence[tuple[Lesion, str | None]], category: int) -> Proposal:
    """The place of at least half of the lesions looked at."""
    most = _votes(seen)
    if not most:
        why = f"no place can be told of the {len(seen)} lesions looked at" if seen else "no slice could be looked at"
        return Proposal(f"mixed {category}", why)
    place, number = most[0]
    if number < MAJORITY * len(seen):
        said = ", ".join(f"{name} {votes}" for name, votes in most[:3])
        return Proposal(f"mixed {category}", f"no place holds half of the {len(seen)} lesions looked at ({said})")
    return _with_side(place, [lesion for lesion, where in seen if where == place], f"{len(seen)} lesions looked at")


def _with_side(place: str, lesions: Sequence[Lesion], of: str) -> Proposal:
    """``place``, with "right" or "left" before it where most of the lesions lie on one side."""
    reason = f"{place}: {len(lesions)} of {of}"
    sides = Counter(side_of(lesion) for lesion in lesions)
    for side in ("right", "left"):
        if place in SIDED and sides[side] >= ONE_SIDED * len(lesions):
            return Proposal(f"{side} {place}", f"{reason}; {sides[side]} of these {side}")
    return Proposal(place, reason)
