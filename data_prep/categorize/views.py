"""Views of lesions for fine-tuning: slightly moved crops, through the part of the network that stays as it is."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import affine_grid, grid_sample
from tqdm import tqdm

from data_prep.archive.png import read_hu
from data_prep.atomic import atomic_path
from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.crops import SCALES, CropSettings, crop_boxes_px, cut, window
from data_prep.categorize.features import file_in_folder
from data_prep.lesion import Lesion

MARGIN = 1.4
"""How much wider than a crop the square is from which a moved crop is taken; see :class:`Augmentation`."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may change between two views of a lesion. No flips: left and right, front and back say which organ it is.

    Attributes:
        shift: largest shift in x and y, as a part of the crop's side.
        scale: largest relative change of size.
        rotation_deg: largest rotation.
        brightness: largest shift of the intensity (1 is the whole window).
        contrast: largest relative change of the contrast.
        noise: largest standard deviation of added noise.
    """

    shift: float = 0.05
    scale: float = 0.1
    rotation_deg: float = 10.0
    brightness: float = 0.05
    contrast: float = 0.15
    noise: float = 0.02

    def __post_init__(self) -> None:
        angle = math.radians(self.rotation_deg)
        reach = (1 + self.scale) * (math.cos(angle) + math.sin(angle)) + 2 * self.shift
        if min(asdict(self).values()) < 0 or self.rotation_deg > 10 or reach > MARGIN:
            raise ValueError("an augmentation must be 0 or more, a rotation at most 10 degrees, and all within MARGIN")


def augment(wide: torch.Tensor, side_px: int, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """One moved view of one lesion.

    Args:
        wide: (N, 1, S, S) intensities of squares :data:`MARGIN` times as wide as the crops, S about MARGIN * side_px.
        side_px: of the result.
        settings: what may change; drawn once for all N, since they show the same place.
        generator: of the draws.

    Returns:
        (N, 1, side_px, side_px) in [0, 1].
    """
    dx, dy, scale, angle, brightness, contrast = (
        torch.rand(6, generator=generator, dtype=torch.float64) * 2 - 1
    ).tolist()
    noise = settings.noise * float(torch.rand(1, generator=generator))
    zoom = (1 + settings.scale * scale) / MARGIN
    radians = math.radians(settings.rotation_deg * angle)
    cos, sin = zoom * math.cos(radians), zoom * math.sin(radians)
    # Sampling coordinates run from -1 to 1 over the wide square, so a shift by a part p of the crop is 2 p / MARGIN.
    shift = 2 * settings.shift / MARGIN
    theta = torch.tensor([[cos, -sin, shift * dx], [sin, cos, shift * dy]], dtype=torch.float32)
    grid = affine_grid(theta.expand(len(wide), 2, 3), [len(wide), 1, side_px, side_px], align_corners=False)
    moved: torch.Tensor = grid_sample(wide, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    moved = (moved - 0.5) * (1 + settings.contrast * contrast) + 0.5 + settings.brightness * brightness
    moved += noise * torch.randn(moved.shape, generator=generator)
    return moved.clamp_(0, 1)


def _generator(seed: int, view: int, lesion: Lesion) -> torch.Generator:
    """A generator that depends on the lesion, not on the order of lesions."""
    digest = hashlib.sha256(f"{seed}\x1f{view}\x1f{lesion.lesion_id}".encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.inference_mode()
def view_activations(
    lesions: Sequence[Lesion],
    images: Path,
    extractor: FeatureExtractor,
    crops: CropSettings,
    path: Path,
    *,
    views: int,
    augmentation: Augmentation,
    seed: int = 0,
    lesions_per_batch: int = 16,
    progress: bool = True,
) -> npt.NDArray[np.float16]:
    """What the trunk makes of every lesion: plain (view 0) and moved (views 1 to ``views``).

    Args:
        lesions: N lesions whose slices can be read.
        images: the images folder.
        extractor: the network, of which only the trunk takes part.
        crops: what it sees.
        path: an ``.npy`` file, used again where it is there: its folder must name what it is made from.
        views: how many moved ones.
        augmentation: how they are moved.
        seed: of the moves.

    Returns:
        (1 + views, N, 3, channels, height, width) float16, mapped from the file: 43 kB a view of a lesion at 128 px.
    """
    if path.is_file():  # complete, because it was renamed; the folder's name says what it was made from
        found: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    trunk = extractor.trunk
    # bfloat16 doubles the speed where the CPU has matrix units for it, and is emulated elsewhere.
    fast = extractor.device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    one = trunk(extractor.prepare(torch.zeros(1, 3, crops.side_px, crops.side_px)))
    shape = (1 + views, len(lesions), len(SCALES), *one.shape[1:])
    by_image: dict[str, list[int]] = defaultdict(list)
    for index, lesion in enumerate(lesions):
        by_image[lesion.image or ""].append(index)
    wide_px = round(MARGIN * crops.side_px)
    with atomic_path(path) as temporary:
        written = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        waiting: list[tuple[int, torch.Tensor]] = []

        def forward(written: npt.NDArray[np.float16]) -> None:
            batch = torch.cat([views_of for _, views_of in waiting]).expand(-1, 3, -1, -1)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                out = trunk(extractor.prepare(batch)).half().cpu().numpy()
            for (index, _), values in zip(waiting, np.split(out, len(waiting)), strict=True):
                written[:, index] = values.reshape(1 + views, len(SCALES), *values.shape[1:])
            waiting.clear()

        with tqdm(total=len(lesions), desc="views", unit="lesion", disable=not progress) as bar:
            for image, members in sorted(by_image.items()):
                hu = read_hu(file_in_folder(images, image))
                intensity = window(hu, crops.window_min_hu, crops.window_max_hu)
                for index in members:
                    lesion = lesions[index]
                    boxes = crop_boxes_px(lesion, crops)
                    made = [cut(intensity, boxes, crops.side_px)]
                    if views:
                        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * MARGIN
                        wide = cut(intensity, np.concatenate([middle - half, middle + half], axis=1), wide_px)
                        made += [
                            augment(wide, crops.side_px, augmentation, _generator(seed, view, lesion))
                            for view in range(1, 1 + views)
                        ]
                    waiting.append((index, torch.cat(made)))
                    if len(waiting) == lesions_per_batch:
                        forward(written)
                    bar.update()
            if waiting:
                forward(written)
        written.flush()
        del written
    mapped: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
