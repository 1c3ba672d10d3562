"""Weights on disk: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.atomic import atomic_path
from scripts.contract import InputContract, make
from scripts.errors import BundleError, first_line

SUMS = "SHA256SUMS"  # beside weights that are shipped: what `sha256sum --check` reads
TRAINING_ONLY = "dense_head."  # weights of scripts.network.LesionNet that inference has no use for


def save(path: str | PathLike[str], content: dict[str, Any]) -> None:
    """``torch.save`` to a temporary file beside ``path``, then rename."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Load a file of tensors and plain values (``weights_only``: no code in it is run).

    Raises:
        BundleError: no such file, or not such a file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such weights; train first, or give --ckpt_path") from error
    except Exception as error:
        raise BundleError(f"{path}: not a readable weights file ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: not a weights file of this bundle")
    return content


def sha256(path: str | PathLike[str]) -> str:
    """Hash of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sum(path: str | PathLike[str]) -> str:
    """The hash of a file, which must be the one that ``SHA256SUMS`` beside it states, where that names the file.

    Raises:
        BundleError: it is another one.
    """
    found, stated = sha256(path), _stated(path).get(Path(path).name)
    if stated not in (None, found):
        raise BundleError(
            f"{path}: its SHA-256 is {found}, but {SUMS} beside it says {stated}: get the file anew, or take its line "
            f"out of {SUMS} if you put other weights there"
        )
    return found


def _stated(path: str | PathLike[str]) -> dict[str, str]:
    """Name -> hash, of ``SHA256SUMS`` beside a file; empty where there is none."""
    sums = Path(path).with_name(SUMS)
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    parts = [line.partition(" ") for line in lines]
    return {name.lstrip(" *"): digest for digest, _, name in parts}


def state_sum(path: str | PathLike[str]) -> None:
    """State the file's present hash in ``SHA256SUMS`` beside it."""
    known = {**_stated(path), Path(path).name: sha256(path)}
    with atomic_path(Path(path).with_name(SUMS)) as temporary:
        temporary.write_text("".join(f"{digest}  {name}\n" for name, digest in known.items()), encoding="utf-8")


def read_model(path: str | PathLike[str]) -> tuple[dict[str, Any], str]:
    """The content of a ``model.pt`` and its SHA-256.

    Raises:
        BundleError: not a weights file of this bundle, or not the one that was shipped (:func:`check_sum`).
    """
    digest = check_sum(path) if Path(path).is_file() else ""
    content = read(path)
    if not {"model", "contract", "anchor_sizes", "categories"} <= content.keys():
        raise BundleError(f"{path}: not weights of this bundle (no 'model', 'contract', ... in it)")
    return content, digest


def _looks(content: Mapping[str, Any]) -> dict[str, Any]:
    """How slices are looked at; older files do not say."""
    return {
        "flip_average": bool(content.get("flip_average", False)),
        "scale_average": [float(scale) for scale in content.get("scale_average") or []],
    }


def _in_words(looks: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in looks.items())


def facts(path: str | PathLike[str]) -> dict[str, Any]:
    """What a ``model.pt`` says of itself: everything needed to build its network and use it, without the weights.

    Returns:
        ``file`` (its name), ``sha256``, ``contract``, ``anchor_sizes``, ``categories``, ``channels``,
        ``convolutions``, ``folded`` (batch norm folded into the convolutions, as in a network trained from ImageNet),
        ``flip_average`` and ``scale_average`` (used in choosing weights and thresholds, see
        :class:`scripts.network.LesionNet` and :class:`scripts.scale_average.ScaleAverage`),
        ``operating_score``, the score threshold chosen in training (0.05 where none was), ``operating_points``, those
        of conformal risk control by their alpha (see :mod:`scripts.conformal`), and ``across_slices``, the model of
        :mod:`scripts.across_slices` with its own ``score`` threshold, or None.

    Raises:
        BundleError: not a weights file of this bundle, or not the one that was shipped (:func:`check_sum`).
    """
    content, digest = read_model(path)
    weights: dict[str, Any] = content["model"]
    tower = [tensor for name, tensor in weights.items() if name.startswith("feature_extractor.tower.")]
    score = (content.get("operating_point") or {}).get("score")
    return {
        "file": Path(path).name,
        "sha256": digest,
        "contract": content["contract"],
        "anchor_sizes": content["anchor_sizes"],
        "categories": content["categories"],
        "channels": int(weights["classification_head.output.weight"].shape[1]),
        "convolutions": sum(tensor.ndim == 4 for tensor in tower),
        "folded": not any(name.endswith("running_mean") for name in weights),
        **_looks(content),
        "operating_score": 0.05 if score is None else float(score),
        "operating_points": dict(content.get("operating_points") or {}),
        "across_slices": content.get("across_slices"),
    }


def threshold(
    facts: Mapping[str, Any],
    score: float | None = None,
    risk: float | None = None,
    across_slices: bool = False,
    looks: Mapping[str, Any] | None = None,
) -> float:
    """The score threshold that inference uses.

    Args:
        facts: of the weights, see :func:`facts`.
        score: a threshold that the user gives.
        risk: an alpha of conformal risk control, whose threshold is stored with the weights.
        across_slices: whether the scores are those of the model across slices, which has a threshold of its own.
        looks: ``flip_average`` and ``scale_average`` that are in use; None: the weights' own.

    Returns:
        ``score``, or else the threshold of ``risk``, or else the one chosen on the tuning patients.

    Raises:
        BundleError: both are given, or the weights have no threshold for this risk.
    """
    if risk is None:
        return _default_score(facts, across_slices) if score is None else float(score)
    if score is not None:
        raise BundleError("give --score_threshold or --risk, not both")
    points = facts["operating_points"]
    point = points.get(_alpha(risk))
    if point is None:
        known = f"only for {', '.join(sorted(points))}" if points else "for none"
        raise BundleError(
            f"{facts['file']}: no threshold is stored for --risk {risk} ({known}); configs/calibrate.yaml makes one"
        )
    if bool(point.get("across_slices", False)) != across_slices:
        made, now = ("with", "without") if not across_slices else ("without", "with")
        raise BundleError(
            f"{facts['file']}: the threshold of --risk {risk} was calibrated {made} the model across slices and does "
            f"not hold {now} it; give --across_slices {not across_slices}, or calibrate anew"
        )
    made_with, in_use = _looks(point.get("looks") or facts), _looks(looks or facts)
    if made_with != in_use:
        raise BundleError(
            f"{facts['file']}: the threshold of --risk {risk} was calibrated with {_in_words(made_with)} and does not "
            f"hold with {_in_words(in_use)}; give the former, or calibrate anew"
        )
    return float(point["score"])


def _default_score(facts: Mapping[str, Any], across_slices: bool) -> float:
    return float(across_slices_of(facts)["score"] if across_slices else facts["operating_score"])


def across_slices_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model across slices of these weights, as it is stored.

    Raises:
        BundleError: they have none.
    """
    model: Mapping[str, Any] | None = facts["across_slices"]
    if model is None:
        raise BundleError(
            f"{facts['file']}: --across_slices True, but the weights have no model across slices; "
            "configs/fit_across_slices.yaml fits one"
        )
    return model


def thresholds(facts: Mapping[str, Any], across_slices: bool = False) -> dict[str, float]:
    """The score thresholds stored with the weights, by a name for `metrics.json`.

    Args:
        facts: of the weights, see :func:`facts`.
        across_slices: as in :func:`threshold`; those of the other kind of scores are left out.
    """
    stored = {
        "risk " + alpha: float(point["score"])
        for alpha, point in sorted(facts["operating_points"].items())
        if bool(point.get("across_slices", False)) == across_slices
    }
    return {"default of inference": _default_score(facts, across_slices), **stored}


def _alpha(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def store_operating_point(path: str | PathLike[str], alpha: float, point: Mapping[str, Any] | None) -> None:
    """Keep a threshold of conformal risk control in ``model.pt``, in the place of an earlier one of the same alpha.

    Args:
        path: of the weights; replaced whole.
        alpha: the share of lesions that may be missed.
        point: plain values with ``score``; None takes the earlier one out.
    """
    content = read(path)
    points = {key: value for key, value in (content.get("operating_points") or {}).items() if key != _alpha(alpha)}
    if point is not None:
        points[_alpha(alpha)] = dict(point)
    _replace(path, {**content, "operating_points": points})


def store_default(
    path: str | PathLike[str], point: Mapping[str, Any], flip_average: bool, scale_average: Sequence[float]
) -> list[str]:
    """Keep the default threshold, and how slices are looked at, in ``model.pt``.

    Args:
        path: of the weights; replaced whole.
        point: plain values with ``score``.
        flip_average, scale_average: see :func:`facts`.

    Returns:
        What was dropped, in words: where slices were looked at otherwise before, thresholds of conformal risk control
        and a model across slices no longer hold.
    """
    content = read(path)
    looks = _looks({"flip_average": flip_average, "scale_average": scale_average})
    dropped = []
    if looks != _looks(content):
        dropped = [f"the threshold of --risk {alpha}" for alpha in sorted(content.pop("operating_points", None) or {})]
        dropped += ["the model across slices"] if content.pop("across_slices", None) is not None else []
    _replace(path, {**content, **looks, "operating_point": dict(point)})
    return dropped


def store_across_slices(path: str | PathLike[str], model: Mapping[str, Any] | None) -> list[str]:
    """Keep a model across slices in ``model.pt``, in the place of an earlier one.

    Args:
        path: of the weights; replaced whole.
        model: plain values with ``score``, the threshold of its scores; None takes the earlier one out.

    Returns:
        The alphas whose thresholds of conformal risk control were dropped, because they were chosen on scores that the
        model, or the lack of it, changes.
    """
    content = read(path)
    if model is None and content.get("across_slices") is None:
        return []
    dropped = sorted(content.get("operating_points") or {})
    kept = {key: value for key, value in content.items() if key not in ("across_slices", "operating_points")}
    _replace(path, kept if model is None else {**kept, "across_slices": dict(model)})
    return dropped


def _replace(path: str | PathLike[str], content: dict[str, Any]) -> None:
    """Write ``model.pt`` anew; its sum, where one is stated, is checked before and stated after."""
    named = Path(path).name in _stated(path)
    if named:
        check_sum(path)
    save(path, content)
    if named:
        state_sum(path)


def save_model(
    path: str | PathLike[str],
    network: nn.Module,
    contract: InputContract,
    categories: list[str],
    anchor_sizes: list[list[float]],
    **facts: Any,
) -> None:
    """Write ``model.pt``: weights, input contract, categories, anchors and further plain ``facts``.

    What only training uses (:data:`TRAINING_ONLY`) is left out.
    """
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(TRAINING_ONLY)}
    save(
        path,
        {
            "model": {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
            "contract": contract.to_dict(),
            "categories": list(categories),
            "anchor_sizes": [[float(s) for s in level] for level in anchor_sizes],
            "flip_average": bool(getattr(network, "flip_average", False)),
            **facts,
        },
    )


def fill(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load the weights of a ``model.pt``; what is not in it because only training uses it stays as the network has it.

    Raises:
        RuntimeError: they do not fit the network.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(TRAINING_ONLY)}
    network.load_state_dict({**own, **weights})


def load_model(
    path: str | PathLike[str],
    network: nn.Module,
    contract: InputContract,
    anchor_sizes: list[list[float]],
) -> dict[str, Any]:
    """Put the weights of ``model.pt`` into ``network`` and enforce what they were trained on.

    What only training uses is not in the file; a network that has it keeps its own.

    Returns:
        The file's content without the weights.

    Raises:
        BundleError: the file is not readable, was trained on another input contract or other anchors than the config
            says, or does not fit the network.
    """
    content = read(path)
    if "model" not in content or "contract" not in content:
        raise BundleError(f"{path}: not weights of this bundle (no 'model' and 'contract' in it)")
    trained = make(**content["contract"])
    if trained != contract:
        raise BundleError(
            f"{path}: trained on {trained}, but the config says {contract}; the input must be what the weights saw"
        )
    if [list(map(float, level)) for level in anchor_sizes] != content["anchor_sizes"]:
        raise BundleError(f"{path}: trained with anchors {content['anchor_sizes']}, the config has {anchor_sizes}")
    try:
        fill(network, content.pop("model"))
    except RuntimeError as error:
        raise BundleError(f"{path}: does not fit this network ({str(error).splitlines()[-1].strip()})") from error
    return content
