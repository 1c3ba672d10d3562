"""The kinds of lesions: where they lie, how large and how dense they are."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.phantom.anatomy import Organ


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of lesion.

    ``contrast_hu`` is the range of the difference from the host organ; None where the lesion lies in fat, lung or
    bone, and ``level_hu`` gives its own attenuation instead. ``coarse_type`` is DeepLesion's code
    (:data:`data_prep.lesion.COARSE_TYPES`). ``long_mm`` is median, least and greatest long diameter.
    """

    name: str
    coarse_type: int
    weight: float  # how often, among the kinds for which there is room
    hosts: tuple[Organ, ...]
    over: tuple[Organ, ...] = ()  # what else it grows over
    long_mm: tuple[float, float, float]
    depth: float  # how far inside its host the centre lies at least, in long radii
    contrast_hu: tuple[float, float] | None = None
    level_hu: tuple[float, float] | None = None
    edge_mm: float = 2.0
    lumps: float = 0.1  # amplitude of the outline's lumps, in radii
    rim: float = 0.0  # chance of a brighter rim

    @property
    def range_hu(self) -> tuple[float, float]:
        """``contrast_hu`` or ``level_hu``, whichever is given."""
        given = self.contrast_hu or self.level_hu
        if given is None:
            raise ValueError(f"{self.name}: neither contrast_hu nor level_hu")
        return given


_FAT = (Organ.ABDOMINAL_FAT,)
_BELLY = (Organ.ABDOMINAL_FAT, Organ.BOWEL, Organ.PANCREAS, Organ.MUSCLE, Organ.STOMACH)

# A node is enlarged from a short axis of 10 mm on: the least long diameter leaves room for that.
KINDS: tuple[Kind, ...] = (
    Kind(
        name="liver metastasis",
        coarse_type=4,
        weight=0.26,
        hosts=(Organ.LIVER,),
        over=(Organ.BLOOD, Organ.GALLBLADDER, Organ.ABDOMINAL_FAT),
        long_mm=(22, 13, 45),
        depth=0.8,
        contrast_hu=(-60, -38),
        edge_mm=3.0,
        rim=0.4,
    ),
    Kind(
        name="solid lung nodule",
        coarse_type=5,
        weight=0.20,
        hosts=(Organ.LUNG,),
        over=(Organ.AIRWAY,),
        long_mm=(17, 11, 38),
        depth=0.7,
        level_hu=(10, 60),
        lumps=0.16,
    ),
    Kind(
        name="ground-glass nodule",
        coarse_type=5,
        weight=0.04,
        hosts=(Organ.LUNG,),
        over=(Organ.AIRWAY,),
        long_mm=(20, 13, 34),
        depth=0.8,
        level_hu=(-520, -320),
        edge_mm=4.0,
    ),
    Kind(
        name="mediastinal node",
        coarse_type=3,
        weight=0.16,
        hosts=(Organ.MEDIASTINUM,),
        over=(Organ.LUNG, Organ.MUSCLE, Organ.BOWEL),
        long_mm=(23, 17, 38),
        depth=0.45,
        level_hu=(48, 82),
    ),
    Kind(
        name="abdominal node",
        coarse_type=2,
        weight=0.14,
        hosts=_FAT,
        over=_BELLY,
        long_mm=(24, 17, 42),
        depth=0.55,
        level_hu=(40, 78),
    ),
    Kind(
        name="kidney mass",
        coarse_type=6,
        weight=0.20,
        hosts=(Organ.KIDNEY,),
        over=_FAT,
        long_mm=(22, 13, 42),
        depth=0.35,
        contrast_hu=(-60, -40),
    ),
    Kind(
        name="lytic bone lesion",
        coarse_type=1,
        weight=0.07,
        hosts=(Organ.VERTEBRA,),
        over=(Organ.BONE,),
        long_mm=(17, 10, 28),
        depth=0.3,
        level_hu=(35, 75),
        edge_mm=2.5,
        lumps=0.15,
    ),
    Kind(
        name="spleen lesion",
        coarse_type=2,
        weight=0.12,
        hosts=(Organ.SPLEEN,),
        over=_FAT,
        long_mm=(21, 13, 36),
        depth=0.7,
        contrast_hu=(-60, -40),
        edge_mm=3.0,
    ),
    Kind(
        name="adrenal mass",
        coarse_type=2,
        weight=0.30,  # seldom is there a gland at a level
        hosts=(Organ.ADRENAL,),
        over=_BELLY,
        long_mm=(26, 16, 44),
        depth=0.0,
        level_hu=(25, 60),
    ),
    Kind(
        name="muscle metastasis",
        coarse_type=7,
        weight=0.035,
        hosts=(Organ.MUSCLE,),
        over=(Organ.ABDOMINAL_FAT, Organ.SUBCUTANEOUS_FAT),
        long_mm=(21, 13, 34),
        depth=0.75,
        contrast_hu=(-58, -40),
        edge_mm=3.0,
        rim=0.5,
    ),
    Kind(
        name="subcutaneous nodule",
        coarse_type=7,
        weight=0.025,
        hosts=(Organ.SUBCUTANEOUS_FAT,),
        over=(Organ.MUSCLE, Organ.SKIN),
        long_mm=(16, 11, 26),
        depth=0.5,
        level_hu=(35, 70),
    ),
)
