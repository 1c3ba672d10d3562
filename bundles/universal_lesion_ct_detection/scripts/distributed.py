"""Several processes, one training or evaluation (torchrun): who has which slices, who writes, what all must agree on.

Without torchrun there is one process and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from typing import Any

import torch
import torch.distributed as dist
from ignite import distributed as idist
from torch import nn
from torch.utils.data import Sampler

from scripts.device import choose
from scripts.errors import BundleError


def start(name: str | torch.device = "auto") -> torch.device:
    """Join the processes that torchrun started: NCCL on GPUs, one each, else gloo.

    Args:
        name: ``auto`` (CUDA where there are GPUs), ``cuda`` or ``cpu``.

    Returns:
        This process's device.

    Raises:
        BundleError: not started by torchrun, or more processes than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        raise BundleError("multi_gpu_train.yaml is for torchrun: torchrun --nproc_per_node=N -m monai.bundle run ...")
    device = choose(name)
    if device.type == "cuda":
        device = choose(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        idist.initialize("nccl" if device.type == "cuda" else "gloo")
    return device


def finish() -> None:
    """Leave the other processes, in good order."""
    if dist.is_initialized():
        idist.finalize()


def is_main() -> bool:
    """Whether this process writes files and talks to MLflow."""
    return idist.get_rank() == 0


def agree(decision: bool) -> bool:
    """The first process's decision, in all of them: clocks differ."""
    return bool(idist.broadcast(torch.tensor(int(decision), device=idist.device()), src=0)) if _several() else decision


def same_weights(network: nn.Module) -> None:
    """Give every process the first one's weights and buffers; statistics of batches differ between them."""
    if _several():
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, src=0)


class Shard(Sampler[int]):
    """Every ``world``-th item from this process's rank on. Shards may be uneven: nothing is repeated to even them."""

    def __init__(self, data: Sized) -> None:
        self.indices = range(idist.get_rank(), len(data), idist.get_world_size())

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def gather(items: list[Any]) -> list[Any]:
    """What all processes collected from their :class:`Shard`, in the order of the data; the same in each of them."""
    if not _several():
        return items
    shards: list[list[Any]] = [[] for _ in range(idist.get_world_size())]
    dist.all_gather_object(shards, items)
    longest = max(map(len, shards))
    return [shard[place] for place in range(longest) for shard in shards if place < len(shard)]


def _several() -> bool:
    return idist.get_world_size() > 1
