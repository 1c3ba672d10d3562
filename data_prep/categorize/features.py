"""Features of many lesions: batched, each slice read once, cached by content so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from data_prep import frames
from data_prep.archive.png import read_hu
from data_prep.atomic import atomic_path, make_folder
from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.crops import SCALES, CropSettings, crop_boxes_px, cut, window
from data_prep.errors import DataPrepError, UnreadableError
from data_prep.lesion import Lesion

FeatureArray = npt.NDArray[np.float16]

DIGEST_BYTES = 16
SHARD_LESIONS = 256
"""Lesions between two writes of the cache: what a killed run loses at most."""

_log = logging.getLogger(__name__)


def file_in_folder(folder: Path, relative: str) -> Path:
    """The file ``relative`` below ``folder``.

    Raises:
        UnreadableError: no such file, or the path leads out of the folder.
    """
    parts = PurePosixPath(relative)
    path = folder / parts
    try:
        # By its words, not resolved: links that the user put below the images folder may lead anywhere.
        there = not parts.is_absolute() and ".." not in parts.parts and path.is_file()
    except (OSError, ValueError):  # a NUL or an endless name
        there = False
    if not there:
        raise UnreadableError(f"{relative}: no such file in {folder}")
    return path


class FeatureCache:
    """Feature vectors on disk by a digest of what they were computed from.

    One subfolder per network and crop settings, in it immutable ``*.safetensors`` shards with ``digests``
    (N, 16) uint8 and ``features`` (N, scales, width) float16. A damaged shard is ignored and computed again.
    """

    def __init__(self, folder: Path, identity: str, width: int) -> None:
        self.folder = make_folder(folder / hashlib.sha256(identity.encode()).hexdigest()[:16])
        self._found: dict[bytes, FeatureArray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = load_file(path)
                digests, features = shard["digests"], shard["features"]
            except (SafetensorError, KeyError, OSError, ValueError) as error:
                _log.warning("%s: damaged, its features are computed again (%s)", path, error)
                continue
            if digests.shape != (len(features), DIGEST_BYTES) or features.shape[1:] != (len(SCALES), width):
                _log.warning("%s: not a shard of these features, ignored", path)
                continue
            self._found.update(zip((row.tobytes() for row in digests), features, strict=True))

    def get(self, digest: bytes) -> FeatureArray | None:
        """(scales, width) features, or None."""
        return self._found.get(digest)

    def put(self, digests: Sequence[bytes], features: FeatureArray) -> None:
        """Keep (N, scales, width) features."""
        if not digests:
            return
        name = hashlib.sha256(b"".join(digests)).hexdigest()[:16]
        keys = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        with atomic_path(self.folder / f"{name}.safetensors") as path:
            save_file({"digests": keys, "features": np.ascontiguousarray(features)}, path)
        self._found.update(zip(digests, features, strict=True))


@dataclass(slots=True)
class Extraction:
    """What :func:`extract` found; ``features[i]`` belongs to lesion number ``kept[i]`` of the input."""

    features: FeatureArray
    kept: list[int]
    computed: int = 0  # lesions that were not in the cache
    problems: dict[str, int] = field(default_factory=dict)  # why a lesion has no features -> how many
    messages: list[str] = field(default_factory=list)  # one a file that could not be read


@dataclass(slots=True)
class _Slice:
    """The lesions of one image that the cache lacks, and what was found about them."""

    path: Path
    lesions: list[tuple[int, bytes, npt.NDArray[np.float64]]]


def _digest(file_sha256: bytes, lesion: Lesion, boxes_px: npt.NDArray[np.float64]) -> bytes:
    rounded = np.rint(boxes_px * 1000).astype("<i8").tolist()  # a thousandth of a pixel is the same crop
    # All that `_misfit` looks at is part of it: a lesion that does not fit its image must not find another's features.
    stated = (lesion.box_px, lesion.rows, lesion.columns)
    return hashlib.sha256(file_sha256 + repr((stated, rounded)).encode()).digest()[:DIGEST_BYTES]


def extract(
    lesions: Sequence[Lesion],
    images: Path,
    extractor: FeatureExtractor,
    settings: CropSettings,
    cache_folder: Path,
    *,
    batch_size: int = 96,
    progress: bool = True,
) -> Extraction:
    """Features of lesions that have an image and a box.

    Args:
        lesions: each with ``image`` and a box.
        images: the images folder.
        extractor: the network.
        settings: what it sees.
        cache_folder: where features are kept between runs.
        batch_size: crops at a time.

    Returns:
        (N, 3, width) float16 for the lesions whose slice could be read, in the order of the input. Values are rounded
        to float16 before use, so a cached run and a fresh one give the same categories.
    """
    identity = json.dumps({"network": extractor.identity, "crops": asdict(settings)}, sort_keys=True)
    cache = FeatureCache(cache_folder, identity, extractor.width)
    digests: dict[int, bytes] = {}
    problems: dict[str, int] = defaultdict(int)
    messages: list[str] = []

    def fail(kind: str, count: int, message: str) -> None:
        problems[kind] += count
        messages.append(message)

    by_image: dict[str, list[int]] = defaultdict(list)
    for index, lesion in enumerate(lesions):
        by_image[lesion.image or ""].append(index)
    missing: list[_Slice] = []
    for image, members in sorted(by_image.items()):
        try:
            path = file_in_folder(images, image)
            file_sha256 = hashlib.sha256(path.read_bytes()).digest()
        except UnreadableError as error:
            fail("image missing", len(members), str(error))
            continue
        except OSError as error:
            fail("image unreadable", len(members), f"{image}: cannot be read ({error.strerror})")
            continue
        wanted = _Slice(path, [])
        for index in members:
            boxes = crop_boxes_px(lesions[index], settings)
            digests[index] = _digest(file_sha256, lesions[index], boxes)
            if cache.get(digests[index]) is None:
                wanted.lesions.append((index, digests[index], boxes))
        if wanted.lesions:
            missing.append(wanted)

    total = sum(len(wanted.lesions) for wanted in missing)
    with tqdm(total=total, desc="features", unit="lesion", disable=not progress or not total) as bar:

        def crops() -> Iterator[tuple[bytes, torch.Tensor]]:
            for wanted in missing:
                bar.update(len(wanted.lesions))
                try:
                    hu = read_hu(wanted.path)
                except UnreadableError as error:
                    fail("image unreadable", len(wanted.lesions), str(error))
                    continue
                image = window(hu, settings.window_min_hu, settings.window_max_hu)
                for index, digest, boxes in wanted.lesions:
                    reason = _misfit(lesions[index], hu.shape)
                    if reason:
                        fail(reason, 1, f"lesion {lesions[index].lesion_id}: {reason}")
                        continue
                    yield digest, cut(image, boxes, settings.side_px)

        computed = _compute(crops(), extractor, cache, batch_size)

    kept = [i for i in range(len(lesions)) if i in digests and cache.get(digests[i]) is not None]
    rows = [row for i in kept if (row := cache.get(digests[i])) is not None]
    features = np.stack(rows) if rows else np.empty((0, len(SCALES), extractor.width), np.float16)
    return Extraction(features, kept, computed, dict(problems), messages)


def _misfit(lesion: Lesion, shape: tuple[int, ...]) -> str | None:
    rows, columns = shape
    if (lesion.rows or rows, lesion.columns or columns) != (rows, columns):
        return "image has another size than stated"
    if lesion.box_px is None or frames.clip_box(lesion.box_px, columns, rows) is None:
        return "box outside the image"
    return None


def _compute(
    crops: Iterator[tuple[bytes, torch.Tensor]], extractor: FeatureExtractor, cache: FeatureCache, batch_size: int
) -> int:
    """Run the network over batches; returns how many lesions were computed."""
    waiting: list[tuple[bytes, torch.Tensor]] = []
    done: list[tuple[bytes, FeatureArray]] = []
    computed = 0

    def forward() -> None:
        if waiting:
            batch = torch.cat([crop for _, crop in waiting]).expand(-1, 3, -1, -1)
            features = extractor(batch).reshape(len(waiting), len(SCALES), -1)
            if not np.isfinite(features).all():
                raise DataPrepError("the network gave features that are not finite; use --device cpu")
            done.extend(zip((digest for digest, _ in waiting), features.astype(np.float16), strict=True))
            waiting.clear()

    def flush() -> None:
        nonlocal computed
        if done:
            cache.put([digest for digest, _ in done], np.stack([row for _, row in done]))
            computed += len(done)
            done.clear()

    for item in crops:
        waiting.append(item)
        if len(waiting) * len(SCALES) >= batch_size:
            forward()
        if len(done) >= SHARD_LESIONS:
            flush()
    forward()
    flush()
    return computed
