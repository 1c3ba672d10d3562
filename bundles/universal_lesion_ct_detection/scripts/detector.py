"""The detector: MONAI's ``RetinaNetDetector`` with its slow and imprecise parts replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from torch import Tensor
from torchvision.ops import batched_nms, generalized_box_iou_loss, nms

from scripts.dense import DENSE_KEY, loss_of_targets
from scripts.errors import BundleError
from scripts.matching import BETWEEN, atss, by_iou, pad_boxes, pairwise_iou

if TYPE_CHECKING:
    from scripts.unmarked import Remedy

BOX_WEIGHT = 2.0  # of the box loss beside the classification loss, as in Generalized Focal Loss


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """|quality - sigmoid(logits)|^beta x binary cross entropy, elementwise (Li et al., NeurIPS 2020, eq. 2)."""
    weight = (quality - logits.sigmoid()).abs().pow(beta)
    return weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


class LesionDetector(RetinaNetDetector):
    """``RetinaNetDetector`` with

    * anchors, box decoding and losses in float32 outside autocast (MONAI makes anchors in the features' dtype);
    * ATSS for the whole batch without a loop over boxes (:mod:`scripts.matching`);
    * quality focal loss (a box's score is its expected IoU) and GIoU loss unless told otherwise, both divided by the
      number of positives and attached to the graph when there are none, so that DistributedDataParallel gets all
      gradients;
    * selection by top-k and torchvision's NMS, of the best candidates first and of all only where those do not suffice;
      classes compete for a place (NMS ignores the class) unless ``class_aware_nms``;
    * in training, a remedy for lesions without a mark (``unmarked``, see :mod:`scripts.unmarked`; None: all that is
      not marked is background), and the loss of a dense task where the network has a head for it
      (:mod:`scripts.dense`);
    * no test for NaN on every tensor, which makes the host wait for the device; the trainer tests the loss once.

    The interface (``forward``, ``set_target_keys``, ``set_box_selector_parameters``, the sliding-window inferer) is
    MONAI's. Boxes are ``x0, y0, x1, y1`` in px of the network's input, which is [C, X, Y].

    Args:
        network: :class:`scripts.network.LesionNet` or another network of that shape.
        anchor_generator: :class:`scripts.anchors.ExactAnchorGenerator`.
        class_aware_nms: suppress only boxes of the same class.
        matching: which anchors learn a box: ``atss``, or ``iou`` for the fixed thresholds of the RetinaNet paper.
        candidates: of ATSS.
        dense_weight: of the dense task's loss beside the classification loss; 0 without a head for it.
        quality_targets: a positive anchor's target score is the IoU of its box. False: it is 1, and the loss the focal
            loss of the RetinaNet paper without its class weight.
        box_loss: (N, 4) boxes and (N, 4) goals -> (N,) losses, such as torchvision's.

    Raises:
        BundleError: ``dense_weight`` is negative or not finite, or ``matching`` is unknown.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        anchor_generator: Any,
        class_aware_nms: bool = False,
        matching: str = "atss",
        candidates: int = 9,
        dense_weight: float = 0.0,
        quality_targets: bool = True,
        box_loss: Callable[[Tensor, Tensor], Tensor] = generalized_box_iou_loss,
    ) -> None:
        super().__init__(network=network, anchor_generator=anchor_generator)
        if not 0 <= dense_weight < math.inf:
            raise BundleError(f"dense_weight must be 0 or more, got {dense_weight}")
        if matching not in ("atss", "iou"):
            raise BundleError(f"matching must be atss or iou, got {matching!r}")
        self.matching = matching
        self.dense_weight = dense_weight
        self.class_aware_nms = class_aware_nms
        self.candidates = candidates
        self.quality_targets = quality_targets
        self.box_loss = box_loss
        self.unmarked: Remedy | None = None
        self.set_target_keys(box_key="box", label_key="label")
        self._anchor_cache: dict[tuple[Any, ...], list[Tensor]] = {}

    # -- MONAI's steps, replaced ------------------------------------------------------------------------------------

    def _check_detector_training_components(self) -> None:
        """The matcher and the losses are part of this class; there is nothing to set before training."""

    def generate_anchors(self, images: Tensor, head_outputs: dict[str, list[Tensor]]) -> None:
        maps = head_outputs[self.cls_key]
        key = (tuple(images.shape), images.device, *(tuple(m.shape[2:]) for m in maps))
        if key not in self._anchor_cache:
            self._anchor_cache.clear()
            with torch.autocast(images.device.type, enabled=False):
                self._anchor_cache[key] = self.anchor_generator(images, maps)
        self.anchors = self._anchor_cache[key]

    def _reshape_maps(self, result_maps: list[Tensor]) -> Tensor:
        """B, A * k, X, Y maps -> (B, all anchors, k) in float32."""
        flat = []
        for m in result_maps:
            channels = m.shape[1] // self.num_anchors_per_loc
            split = m.float().unflatten(1, (self.num_anchors_per_loc, channels))
            flat.append(split.permute(0, 3, 4, 1, 2).flatten(1, 3))
        return torch.cat(flat, dim=1)

    def compute_loss(
        self,
        head_outputs_reshape: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        anchors: list[Tensor],
        num_anchor_locs_per_level: Sequence[int],
    ) -> dict[str, Tensor]:
        logits, deltas = head_outputs_reshape[self.cls_key], head_outputs_reshape[self.box_reg_key]
        with torch.autocast(logits.device.type, enabled=False):
            boxes, real = pad_boxes([t[self.target_box_key].to(logits) for t in targets])
            labels = torch.zeros_like(real, dtype=torch.long)
            for index, target in enumerate(targets):
                labels[index, : len(target[self.target_label_key])] = target[self.target_label_key]
            worth = torch.ones_like(boxes[..., 0])
            marks, are_marks = boxes, real
            if "unmarked_box" in targets[0]:
                boxes = torch.cat([boxes, torch.stack([t["unmarked_box"] for t in targets])], 1)
                labels = torch.cat([labels, torch.stack([t["unmarked_label"] for t in targets])], 1)
                worth = torch.cat([worth, torch.stack([t["unmarked_score"] for t in targets])], 1)
                real = torch.cat([real, worth[:, real.shape[1] :] > 0], 1)
            per_level = [n * self.num_anchors_per_loc for n in num_anchor_locs_per_level]
            with torch.no_grad():
                if self.matching == "atss":
                    matched = atss(anchors[0], per_level, boxes, real, self.candidates * self.num_anchors_per_loc)
                else:
                    matched = by_iou(anchors[0], boxes, real)
            image, anchor = torch.nonzero(matched >= 0, as_tuple=True)
            box = matched[image, anchor]
            decoded = decode(deltas[image, anchor], anchors[0][anchor])
            goal, kind, certainty = boxes[image, box], labels[image, box], worth[image, box]
            quality = torch.zeros_like(logits)
            iou = pairwise_iou(decoded.detach(), goal)
            quality[image, anchor, kind] = iou if self.quality_targets else torch.ones_like(iou)
            positives = certainty.sum().clamp(min=1.0)
            losses = quality_focal_loss(logits, quality)
            if self.matching == "iou":
                losses = losses * (matched != BETWEEN)[..., None]
            if self.unmarked is None:
                classification = losses.sum() / positives
            else:
                share = self.unmarked.anchor_weight(logits, deltas, anchors[0], marks, are_marks)
                share[image, anchor] = certainty
                positive = torch.zeros_like(logits, dtype=torch.bool)
                positive[image, anchor, kind] = True
                classification = self.unmarked.total(losses * share[..., None], logits, positive) / positives
            # A box's loss counts with its quality, so that good boxes are made better before bad ones (GFL, eq. 9).
            weight = logits.detach()[image, anchor].amax(-1).sigmoid() * certainty if len(image) else iou
            regression = (self.box_loss(decoded, goal) * weight).sum() / weight.sum().clamp(min=1.0)
            named = {self.cls_key: classification, self.box_reg_key: BOX_WEIGHT * regression + 0.0 * deltas.sum()}
            if DENSE_KEY in head_outputs_reshape:
                named[DENSE_KEY] = self.dense_weight * loss_of_targets(head_outputs_reshape[DENSE_KEY][0], targets)
            return named

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What every anchor says, before any selection.

        Args:
            images: (B, C, X, Y), sides multiples of the greatest stride.

        Returns:
            Logits (B, A, classes), box regression (B, A, 4) and anchors (A, 4), float32.
        """
        maps = self.network(images)
        self.generate_anchors(images, maps)
        assert self.anchors is not None
        return self._reshape_maps(maps[self.cls_key]), self._reshape_maps(maps[self.box_reg_key]), self.anchors[0]

    def postprocess_detections(
        self,
        head_outputs_reshape: dict[str, Tensor],
        anchors: list[Tensor],
        image_sizes: list[list[int]],
        num_anchor_locs_per_level: Sequence[int],
        need_sigmoid: bool = True,
    ) -> list[dict[str, Tensor]]:
        logits, deltas = head_outputs_reshape[self.cls_key], head_outputs_reshape[self.box_reg_key]
        selector = self.box_selector
        # Classes are told apart before the selection, or after it, when each location stands with its best class.
        classes = logits.shape[-1]
        scored = logits.flatten(1) if self.class_aware_nms else logits.amax(-1)
        every = min(selector.topk_candidates_per_level, scored.shape[1])
        # Greedy: the best survivors need only the best candidates, so most slices never sort or compare all of them.
        few = min(2 * selector.detections_per_img, every)

        def as_scores(values: Tensor) -> Tensor:
            return values.sigmoid() if need_sigmoid and selector.apply_sigmoid else values

        def survivors(image: int, values: Tensor, place: Tensor) -> dict[str, Tensor]:
            """Decode an image's candidates, best first, and leave one of those that overlap."""
            where = place // classes if self.class_aware_nms else place
            of_image = logits[image]
            label = place % classes if self.class_aware_nms else of_image[where].argmax(-1)
            score = as_scores(values)
            size_x, size_y = image_sizes[image]
            limit = deltas.new_tensor([size_x, size_y, size_x, size_y])
            box = decode(deltas[image][where], anchors[0][where]).clamp(min=0).minimum(limit)
            # At least a pixel, as MONAI.
            good = (score > selector.score_thresh) & ((box[:, 2:] - box[:, :2]) >= 1).all(-1)
            box, score, label = box[good], score[good], label[good]
            if self.class_aware_nms:
                keep = batched_nms(box, score, label, selector.nms_thresh)
            else:
                keep = nms(box, score, selector.nms_thresh)
            keep = keep[: selector.detections_per_img]
            return {
                self.target_box_key: box[keep],
                self.pred_score_key: score[keep],
                self.target_label_key: label[keep],
            }

        with torch.autocast(logits.device.type, enabled=False):
            results = []
            for image, (values, place) in enumerate(zip(*scored.topk(few), strict=True)):
                found = survivors(image, values, place)
                more = few < every and bool(as_scores(values[-1]) > selector.score_thresh)
                if more and len(found[self.pred_score_key]) < selector.detections_per_img:
                    found = survivors(image, *scored[image].topk(every))
                results.append(found)
        return results


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Box regression -> boxes: (..., 4) of centre shift (in anchor sizes) and log size, as MONAI's ``BoxCoder``."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * size
    half = deltas[..., 2:].clamp(max=4.135166556742356).exp() * size / 2  # log(1000 / 16), the clip of BoxCoder
    return torch.cat([centre - half, centre + half], dim=-1)
