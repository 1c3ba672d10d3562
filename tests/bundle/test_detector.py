"""The detector beside MONAI's own, wherever MONAI is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from scripts.anchors import ExactAnchorGenerator, best_possible_recall, fit_sizes
from scripts.detector import LesionDetector, decode, quality_focal_loss
from scripts.errors import BundleError
from scripts.matching import atss, by_iou, pad_boxes, pairwise_iou
from scripts.network import LesionNet
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, complete_box_iou_loss, sigmoid_focal_loss

SIZES = [[16.0, 20.0], [32.0, 40.0], [64.0, 80.0], [128.0, 160.0]]


@pytest.fixture(scope="module")
def network() -> LesionNet:
    torch.manual_seed(0)
    net = LesionNet(num_classes=3, num_anchors=2, pretrained=False, channels=32)
    # Fresh heads give near-constant scores; spread them so that an order is worth comparing.
    for head in (net.classification_head, net.regression_head):
        torch.nn.init.normal_(head.output.weight, std=0.3)
    return net.eval()


def random_boxes(count: int, extent: float = 256.0) -> torch.Tensor:
    corner = torch.rand(count, 2) * extent * 0.8
    return torch.cat([corner, corner + 6 + torch.rand(count, 2) * 60], 1)


def test_anchors_equal_monais_where_its_rounding_does_nothing() -> None:
    images = torch.zeros(1, 3, 64, 96)
    maps = [torch.zeros(1, 1, 64 // s, 96 // s) for s in (4, 8)]
    ours = ExactAnchorGenerator([[16], [32]])(images, maps)[0]
    monai = AnchorGenerator(sizes=((16,), (32,)), aspect_ratios=((1.0,), (1.0,)))(images, maps)[0]
    torch.testing.assert_close(ours, monai)


def test_anchors_stay_float32_and_unrounded_in_bfloat16() -> None:
    images = torch.zeros(1, 3, 512, 512)
    maps = [torch.zeros(1, 1, 128, 128, dtype=torch.bfloat16)]
    anchors = ExactAnchorGenerator([[11.0]])(images, maps)[0]
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors[:, 2] - anchors[:, 0], torch.full((len(anchors),), 11.0))
    torch.testing.assert_close(anchors[-1], torch.tensor([510 - 5.5, 510 - 5.5, 510 + 5.5, 510 + 5.5]))


def test_decode_equals_monais_box_coder() -> None:
    torch.manual_seed(1)
    anchors, deltas = random_boxes(50), torch.randn(50, 4)
    torch.testing.assert_close(decode(deltas, anchors), BoxCoder((1.0,) * 4).decode_single(deltas, anchors))


def test_pairwise_iou_equals_torchvisions() -> None:
    torch.manual_seed(2)
    a, b = random_boxes(20), random_boxes(30)
    torch.testing.assert_close(pairwise_iou(a[:, None], b[None]), box_iou(a, b))


@pytest.mark.parametrize("seed", range(5))
def test_atss_equals_monais_matcher_image_by_image(seed: int) -> None:
    torch.manual_seed(seed)
    images = torch.zeros(3, 3, 256, 256)
    maps = [torch.zeros(3, 1, 256 // s, 256 // s) for s in (4, 8, 16, 32)]
    anchors = ExactAnchorGenerator(SIZES)(images, maps)[0]
    locations = [m.shape[2:].numel() for m in maps]
    boxes = [random_boxes(1), random_boxes(4), random_boxes(0)]
    padded, real = pad_boxes(boxes)
    matched = atss(anchors, [2 * n for n in locations], padded, real, candidates=9 * 2)
    monai = ATSSMatcher(num_candidates=9, similarity_fn=box_iou, center_in_gt=True)
    for index in (0, 1):
        _, expected = monai(boxes[index], anchors, locations, 2)
        assert torch.equal(matched[index], expected)
    assert (matched[2] == -1).all()


@pytest.mark.parametrize("seed", range(5))
def test_matching_by_iou_equals_torchvisions_matcher_image_by_image(seed: int) -> None:
    torch.manual_seed(seed)
    anchors = ExactAnchorGenerator(SIZES)(
        torch.zeros(3, 3, 256, 256), [torch.zeros(3, 1, 256 // s, 256 // s) for s in (4, 8, 16, 32)]
    )[0]
    small = torch.tensor([[1.0, 1.0, 5.0, 4.0]])  # overlaps no anchor much, and learns all the same
    boxes = [torch.cat([random_boxes(4), small]), random_boxes(2), random_boxes(0)]
    matched = by_iou(anchors, *pad_boxes(boxes))
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for index in (0, 1):
        expected = matcher(box_iou(boxes[index], anchors))
        assert torch.equal(matched[index], expected)
        assert set(expected.tolist()) >= {-2, -1, *range(len(boxes[index]))}
    assert (matched[2] == -1).all()


def test_anchors_between_the_thresholds_learn_nothing(network: LesionNet) -> None:
    said, box = classification_and_box_loss(network)
    by_thresholds, other = classification_and_box_loss(network, matching="iou")
    assert said != by_thresholds
    assert box != other
    with pytest.raises(BundleError, match="matching must be atss or iou"):
        LesionDetector(network, ExactAnchorGenerator(SIZES), matching="hungarian")


def test_selection_equals_monais_for_a_single_class() -> None:
    torch.manual_seed(3)
    net = LesionNet(num_classes=1, num_anchors=2, pretrained=False, channels=32).eval()
    for head in (net.classification_head, net.regression_head):
        torch.nn.init.normal_(head.output.weight, std=0.3)
    generator = ExactAnchorGenerator(SIZES)
    ours, monai = LesionDetector(net, generator), RetinaNetDetector(net, generator)
    monai.set_target_keys("box", "label")
    settings = {"score_thresh": 0.02, "topk_candidates_per_level": 5000, "nms_thresh": 0.4, "detections_per_img": 50}
    ours.set_box_selector_parameters(**settings)
    monai.set_box_selector_parameters(**settings)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours.eval()(images), monai.eval()(images), strict=True):
            assert len(a["box"]) > 5
            torch.testing.assert_close(a["label_scores"], b["label_scores"])
            torch.testing.assert_close(a["box"], b["box"])


def selected_by_both(
    logits: torch.Tensor, deltas: torch.Tensor, anchors: torch.Tensor, **settings: Any
) -> list[list[dict[str, torch.Tensor]]]:
    """What our detector and MONAI's select of the same candidates (B, A, 1), image by image."""
    net = LesionNet(num_classes=1, num_anchors=1, pretrained=False, channels=32)
    generator = ExactAnchorGenerator([[8.0]])
    count, found = len(logits), []
    for detector in (LesionDetector(net, generator), RetinaNetDetector(net, generator)):
        detector.set_target_keys("box", "label")
        detector.set_box_selector_parameters(**settings)
        outputs = {detector.cls_key: logits, detector.box_reg_key: deltas}
        found.append(detector.postprocess_detections(outputs, [anchors] * count, [[512, 512]] * count, [len(anchors)]))
    return found


def test_selection_of_5000_candidates_equals_monais_up_to_ties() -> None:
    torch.manual_seed(4)
    anchors = random_boxes(5000, 480.0)
    logits, deltas = torch.randn(1, 5000, 1) * 2, torch.randn(1, 5000, 4) * 0.1
    logits[0, 1000:1200] = logits[0, 0]  # ties
    settings = {"score_thresh": 0.02, "topk_candidates_per_level": 5000, "nms_thresh": 0.5, "detections_per_img": 300}
    (ours,), (monai,) = selected_by_both(logits, deltas, anchors, **settings)
    assert len(ours["box"]) == 300
    torch.testing.assert_close(ours["label_scores"], monai["label_scores"])
    untied = ours["label_scores"] != logits[0, 0].sigmoid()
    assert untied.sum() > 200
    torch.testing.assert_close(ours["box"][untied], monai["box"][untied])


@pytest.mark.parametrize("threshold", [0.02, 0.6])
def test_selection_equals_monais_where_the_best_candidates_are_one_lesion(threshold: float) -> None:
    torch.manual_seed(5)
    anchors = random_boxes(900, 480.0)
    anchors[:300] = torch.tensor([100.0, 100, 140, 130]) + torch.rand(300, 1)  # more than are compared at first
    logits, deltas = torch.rand(2, 900, 1) - 1, torch.zeros(2, 900, 4)
    logits[:, :300] += 3
    logits[1] -= 2.5  # an image with fewer above the threshold
    settings = {
        "score_thresh": threshold, "topk_candidates_per_level": 900, "nms_thresh": 0.5, "detections_per_img": 50
    }  # fmt: skip
    found = selected_by_both(logits, deltas, anchors, **settings)
    assert len(found[1][0]["box"]) == (50 if threshold < 0.5 else 1)
    for ours, monai in zip(*found, strict=True):
        torch.testing.assert_close(ours["label_scores"], monai["label_scores"])
        torch.testing.assert_close(ours["box"], monai["box"])


def test_batched_equals_single(network: LesionNet) -> None:
    detector = LesionDetector(network, ExactAnchorGenerator(SIZES)).eval()
    images = torch.rand(3, 3, 96, 64)
    with torch.no_grad():
        together = detector(images)
        for index in range(3):
            alone = detector(images[index : index + 1])[0]
            torch.testing.assert_close(together[index]["box"], alone["box"], atol=0.02, rtol=1e-3)


def test_boxes_stay_in_an_image_that_had_to_be_padded(network: LesionNet) -> None:
    detector = LesionDetector(network, ExactAnchorGenerator(SIZES)).eval()
    with torch.no_grad():
        found = detector([torch.rand(3, 70, 50)])[0]["box"]
    assert len(found)
    assert found.min() >= 0
    assert found[:, [0, 2]].max() <= 70
    assert found[:, [1, 3]].max() <= 50


def test_flip_average_finds_the_same_in_the_mirror(network: LesionNet) -> None:
    torch.manual_seed(5)
    images = torch.rand(1, 3, 64, 96)
    detector = LesionDetector(network, ExactAnchorGenerator(SIZES)).eval()
    detector.set_box_selector_parameters(score_thresh=0.0, nms_thresh=0.5, detections_per_img=20)
    with torch.no_grad():
        plain = detector.predict(images)
        network.flip_average = True
        try:
            logits, _, _ = detector.predict(images)
            (found,), (mirrored,) = detector(images), detector(images.flip(2))
        finally:
            network.flip_average = False
    assert not torch.allclose(logits, plain[0])
    torch.testing.assert_close(mirrored["label_scores"], found["label_scores"])
    x0, y0, x1, y1 = found["box"].unbind(1)
    torch.testing.assert_close(mirrored["box"], torch.stack([64 - x1, y0, 64 - x0, y1], 1), atol=1e-3, rtol=0)


def test_quality_focal_loss_is_the_papers_formula() -> None:
    logits, quality = torch.randn(100), torch.rand(100)
    p = logits.sigmoid()
    expected = -((quality - p).abs() ** 2) * ((1 - quality) * torch.log(1 - p) + quality * torch.log(p))
    torch.testing.assert_close(quality_focal_loss(logits, quality), expected)


def classification_and_box_loss(network: LesionNet, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one random image with one marked lesion."""
    torch.manual_seed(3)
    detector = LesionDetector(network, ExactAnchorGenerator(SIZES), **options).train()
    target = {"box": torch.tensor([[20.0, 30.0, 44.0, 70.0]]), "label": torch.tensor([1])}
    with torch.no_grad():
        losses = detector(torch.rand(1, 3, 128, 128), [target])
    network.eval()
    return losses[network.cls_key], losses[network.box_reg_key]


def test_without_quality_targets_the_loss_is_torchvisions_focal_loss(network: LesionNet) -> None:
    logits, hard = torch.randn(400), (torch.rand(400) > 0.5).float()
    ours = quality_focal_loss(logits, hard)
    torch.testing.assert_close(ours, sigmoid_focal_loss(logits, hard, alpha=-1, gamma=2))
    quality, box = classification_and_box_loss(network)
    plain, same = classification_and_box_loss(network, quality_targets=False)
    assert plain > quality  # targets of 1 instead of the random boxes' IoU
    assert same == box


def test_another_box_loss_is_used(network: LesionNet) -> None:
    said, giou = classification_and_box_loss(network)
    same, complete = classification_and_box_loss(network, box_loss=complete_box_iou_loss)
    assert same == said
    assert complete != giou
    torch.testing.assert_close(classification_and_box_loss(network, box_loss=lambda a, b: 0 * a[:, 0])[1].item(), 0.0)


def test_all_negative_batch_gives_every_parameter_a_gradient(network: LesionNet) -> None:
    detector = LesionDetector(network, ExactAnchorGenerator(SIZES)).train()
    network.zero_grad()
    empty = {"box": torch.zeros(0, 4), "label": torch.zeros(0, dtype=torch.long)}
    losses = detector(torch.rand(2, 3, 64, 64), [dict(empty), dict(empty)])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_training_learns_one_slice() -> None:
    torch.manual_seed(0)
    net = LesionNet(num_classes=2, num_anchors=1, pretrained=True, channels=32)
    detector = LesionDetector(net, ExactAnchorGenerator([[s[0]] for s in SIZES]))
    image = torch.rand(1, 3, 128, 128) * 0.2
    image[:, :, 30:60, 70:95] += 0.6
    image[:, :, 90:110, 20:50] += 0.6
    target = {"box": torch.tensor([[30.0, 70, 60, 95], [90, 20, 110, 50]]), "label": torch.tensor([0, 1])}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-3)
    for _ in range(60):
        loss = sum(detector.train()(image, [dict(target)]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = detector.eval()(image)[0]
    best = box_iou(target["box"], found["box"][:2])
    assert best.max(1).values.min() > 0.6
    assert set(found["label"][:2].tolist()) == {0, 1}
    assert found["label"][best.argmax(1)].tolist() == [0, 1]


@pytest.mark.parametrize("windows", [1, 2])
def test_a_network_of_nine_slices_begins_as_one_of_three(windows: int) -> None:
    from scripts.network import PyramidBackbone

    nine = PyramidBackbone(9 * windows, 32, 1, pretrained=True, slices=9, learn_stem=True).eval()
    three = PyramidBackbone(3 * windows, 32, 1, pretrained=True, slices=3).eval()
    images = torch.rand(1, windows, 9, 64, 64)
    with torch.no_grad():
        found = nine.body(images.flatten(1, 2))
        expected = three.body(images[:, :, 3:6].flatten(1, 2))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert nine.body.conv_stem.weight.requires_grad
    assert not three.body.conv_stem.weight.requires_grad


def test_slices_in_windows_share_imagenets_first_convolution() -> None:
    from scripts.network import imagenet_weights, stem_weight
    from timm.models import adapt_input_conv

    weight = imagenet_weights()["conv_stem.weight"]
    torch.testing.assert_close(stem_weight(weight, 3, 1), weight)
    torch.testing.assert_close(stem_weight(weight, 1, 3), weight)
    torch.testing.assert_close(stem_weight(weight, 3, 2), adapt_input_conv(6, weight))
    # A grey slice, the same everywhere, looks the same to all of them.
    for slices, windows in ((3, 2), (5, 1), (9, 2)):
        torch.testing.assert_close(stem_weight(weight, slices, windows).sum(1), weight.sum(1))


def test_imagenet_weights_give_the_packages_own_features() -> None:
    import timm
    from scripts.network import PyramidBackbone, imagenet_weights

    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    weights = imagenet_weights()
    reference.load_state_dict({k: weights[k] for k in reference.state_dict()})
    folded = PyramidBackbone(3, 32, 2, pretrained=True)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        for a, b in zip(reference(x), folded.body(x), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())


def test_best_possible_recall_against_brute_force() -> None:
    torch.manual_seed(0)
    extents = (10 + torch.rand(40, 2) * 60).double()
    sizes, strides = [[16.0], [40.0]], (8, 16)
    recall = best_possible_recall(extents.numpy(), sizes, strides)
    images = torch.zeros(1, 3, 256, 256)
    anchors = ExactAnchorGenerator(sizes)(images, [torch.zeros(1, 1, 256 // s, 256 // s) for s in strides])[0]
    hits = []
    for _ in range(40):  # boxes at random places in the middle of the image
        centre = 100 + torch.rand(40, 2) * 50
        boxes = torch.cat([centre - extents / 2, centre + extents / 2], 1).float()
        hits.append((box_iou(boxes, anchors).max(1).values >= 0.5).float().mean())
    assert recall == pytest.approx(float(torch.stack(hits).mean()), abs=0.06)


def test_fitted_sizes_reach_more_than_the_usual_ones() -> None:
    torch.manual_seed(0)
    extents = torch.exp(torch.randn(500, 2) * 0.4 + 3.1).double().numpy()
    fitted = fit_sizes(extents, (4, 8, 16, 32))
    usual = [[32.0], [64.0], [128.0], [256.0]]
    assert (
        best_possible_recall(extents, fitted, (4, 8, 16, 32))
        > best_possible_recall(extents, usual, (4, 8, 16, 32)) + 0.2
    )
    with pytest.raises(ValueError, match="fewer than two"):
        fit_sizes(extents[:1], (4, 8, 16, 32))


def test_depthwise_kernels_are_float32_only_where_gradients_flow() -> None:
    from scripts.network import Float32Conv2d

    layer = Float32Conv2d(8, 8, 3, padding=1, groups=8)
    x = torch.rand(1, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
        with torch.inference_mode():
            assert layer(x).dtype == torch.bfloat16


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(network: LesionNet) -> None:
    detector = LesionDetector(network, ExactAnchorGenerator(SIZES)).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        cpu = detector(images)
        cuda = detector.cuda()(images.cuda())
    detector.cpu()
    torch.testing.assert_close(cpu[0]["label_scores"][:10], cuda[0]["label_scores"][:10].cpu(), atol=1e-3, rtol=1e-3)
