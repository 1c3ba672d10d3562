"""Train on from the weights of a ``model.pt``: on another hospital's marks, or for another round on the same."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from torch import Tensor, nn

from scripts.checkpoint import facts, fill, read
from scripts.errors import BundleError

CLASSIFIER = "classification_head.output."


def started(network: nn.Module, path: str | PathLike[str], categories: Sequence[str]) -> nn.Module:
    """Put the weights of ``model.pt`` into a network that is to be trained on.

    The classifier is taken over where the categories are the same. Otherwise each new category starts as the mean of
    the old ones: what tells a lesion from the rest is kept, what tells lesions apart is learnt anew. What is not in the
    file because only training uses it stays as the network has it.

    Args:
        network: :class:`scripts.network.LesionNet` of the file's channels, convolutions and anchors a location.
        path: of the weights.
        categories: that will be trained, in the order of their labels.

    Returns:
        ``network``.

    Raises:
        BundleError: not weights of this bundle, or of another shape of network.
    """
    old: list[str] = list(facts(path)["categories"])
    weights: dict[str, Tensor] = read(path)["model"]
    if old != list(categories):
        for name in [name for name in weights if name.startswith(CLASSIFIER)]:
            # (anchors x categories, ...), category fastest, see LesionDetector._reshape_maps
            each = weights[name].unflatten(0, (-1, len(old)))
            weights[name] = each.mean(1, keepdim=True).expand(-1, len(categories), *each.shape[2:]).flatten(0, 1)
    try:
        fill(network, weights)
    except RuntimeError as error:
        raise BundleError(
            f"{path}: does not fit the network that is to be trained on ({str(error).splitlines()[-1].strip()}); "
            "configs/finetune.yaml takes slices, windows, channels and anchors from the weights: give none of them"
        ) from error
    return network
