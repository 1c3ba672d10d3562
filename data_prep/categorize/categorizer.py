"""The fitted categoriser and its file: labels new lesions without fitting again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_prep.atomic import atomic_path
from data_prep.categorize.backbone import Tail, tail_sha256
from data_prep.categorize.balance import Array, Labels
from data_prep.categorize.clustering import METHODS, Clustering
from data_prep.categorize.crops import SCALES, CropSettings
from data_prep.categorize.space import BlockWeights, FeatureSpace
from data_prep.errors import DataPrepError

MODEL_VERSION = 2
KIND = "lesion-categorizer"
TAIL_PREFIX = "network."


@dataclass(frozen=True, slots=True)
class Categorizer:
    """Everything that turns features and positions into categories.

    Attributes:
        crops: what the network must see.
        network: identity of the network that made the features it was fitted on.
        tail: the network's pretrained or fine-tuned weights; None where it is ImageNet's.
        space: features and position -> points.
        clustering: points -> categories.
        names: of the categories.
        fitted_on: ``{"lesions": n, "patients": n, "seed": seed}``, for the record.
    """

    crops: CropSettings
    network: str
    space: FeatureSpace
    clustering: Clustering
    names: tuple[str, ...]
    fitted_on: dict[str, int]
    tail: Tail | None = None

    def __post_init__(self) -> None:
        space, clustering = self.space, self.clustering
        blocks, components, width = space.projection.shape if space.projection.ndim == 3 else (0, 0, 0)
        dimensions = len(SCALES) * components + (3 if space.uses_position else 0)
        arrays = (space.mean, space.sd, space.projection, space.position_mean, space.position_sd)
        good = (
            blocks == len(SCALES)
            and components > 0
            and space.mean.shape == space.sd.shape == (blocks, width)
            and space.position_mean.shape == space.position_sd.shape == (3,)
            and bool((space.sd > 0).all())
            and clustering.method in METHODS
            and len(self.names) > 0
            and len(set(self.names)) == len(self.names)
            and clustering.centroids.shape == (len(self.names), dimensions)
            and clustering.points.shape == (len(clustering.labels), dimensions)
            and bool((clustering.labels >= 0).all() and (clustering.labels < len(self.names)).all())
            and all(np.isfinite(array).all() for array in (*arrays, clustering.centroids, clustering.points))
            and (self.tail is None or self.network.endswith(":" + tail_sha256(self.tail)))
        )
        if not good:
            raise ValueError("the parts of this categoriser do not fit together")

    def assign(self, features: npt.NDArray[np.floating], position: Array) -> tuple[Labels, Array]:
        """Categories of (N, 3, width) features and (N, 3) positions (NaN where unknown), and distances to their
        centroids."""
        if not len(features):
            return np.empty(0, np.int32), np.empty(0)
        X = self.space.transform(features, position)
        labels = self.clustering.assign(X)
        return labels, self.clustering.distance(X, labels)

    def save(self, path: Path) -> None:
        """Write the file (safetensors: arrays and a JSON header, nothing executable). Atomic."""
        header = {
            "kind": KIND,
            "schema_version": MODEL_VERSION,
            "crops": asdict(self.crops),
            "network": self.network,
            "weights": asdict(self.space.weights),
            "clustering": self.clustering.method,
            "repairs": self.clustering.repairs,
            "names": list(self.names),
            "fitted_on": self.fitted_on,
        }
        arrays: dict[str, npt.NDArray[Any]] = {
            "mean": self.space.mean,
            "sd": self.space.sd,
            "projection": self.space.projection,
            "position_mean": self.space.position_mean,
            "position_sd": self.space.position_sd,
            "centroids": self.clustering.centroids,
            "points": self.clustering.points,
            "labels": self.clustering.labels,
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        arrays |= {TAIL_PREFIX + name: tensor.numpy() for name, tensor in (self.tail or {}).items()}
        with atomic_path(path) as temporary:
            save_file(arrays, temporary, metadata={"categorizer": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Categorizer:
        """Read a file that :meth:`save` wrote.

        Raises:
            DataPrepError: no such file, damaged, of another kind, or of another version.
        """
        if not path.is_file():
            raise DataPrepError(f"{path}: no such categoriser; `categorize` without --model makes one")
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {})["categorizer"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if header["kind"] == KIND and header["schema_version"] != MODEL_VERSION:
                raise DataPrepError(
                    f"{path}: version {header['schema_version']} of the categoriser's file is not {MODEL_VERSION}; "
                    "use the program that wrote it, or fit again"
                )
            return cls._from_parts(header, arrays)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise DataPrepError(
                f"{path}: not a categoriser that `categorize` wrote, or damaged ({type(error).__name__})"
            ) from error

    @classmethod
    def _from_parts(cls, header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Categorizer:
        if header["kind"] != KIND:
            raise ValueError("another kind of file")
        named = ("mean", "sd", "projection", "position_mean", "position_sd", "centroids", "points")
        *parts, centroids, points = (np.asarray(arrays[name], dtype=np.float64) for name in named)
        space = FeatureSpace(BlockWeights(**header["weights"]), *parts)
        labels = np.asarray(arrays["labels"], dtype=np.int32)
        clustering = Clustering(header["clustering"], centroids, points, labels, int(header["repairs"]))
        tail = {
            name.removeprefix(TAIL_PREFIX): torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith(TAIL_PREFIX)
        }
        return cls(
            CropSettings(**header["crops"]),
            str(header["network"]),
            space,
            clustering,
            tuple(map(str, header["names"])),
            {str(key): int(value) for key, value in header["fitted_on"].items()},
            tail or None,
        )
