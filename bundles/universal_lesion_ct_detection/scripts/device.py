"""Which device to run on, and in which precision."""

from __future__ import annotations

import torch

from scripts.errors import BundleError


def choose(name: str | torch.device = "auto") -> torch.device:
    """The device of a config's ``device_name``.

    Args:
        name: ``auto`` (CUDA where there is a GPU, else the CPU) or anything :class:`torch.device` takes.

    Raises:
        BundleError: a GPU is asked for where there is none, or the name is not a device.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BundleError(f"device_name {name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BundleError(
            f"device_name {str(name)!r}: PyTorch sees {torch.cuda.device_count()} GPU(s) here; use --device_name cpu"
        )
    return device


def autocast_dtype(amp: bool | str, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision on ``device``, or None for float32.

    Args:
        amp: False, True, or ``auto``: on CUDA always; on a CPU only where it has bfloat16 matrix units, because
            elsewhere bfloat16 is emulated and slower than float32.
    """
    if not amp:
        return None
    if amp == "auto" and device.type == "cpu" and not torch.cpu._is_amx_tile_supported():
        return None
    return torch.bfloat16
