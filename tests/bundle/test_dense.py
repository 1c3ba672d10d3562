"""The dense task: its target beside rasterised ellipses, its loss beside MONAI's and the closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss
from scripts.anchors import ExactAnchorGenerator
from scripts.checkpoint import facts, load_model, read, save_model
from scripts.contract import make
from scripts.dense import FAR_WEIGHT, dense_loss, dense_target, ellipse_radius, end_points
from scripts.detector import LesionDetector
from scripts.network import LesionNet
from skimage.draw import ellipse

MARGIN = torch.tensor([5.5, 5.5])
UNKNOWN = torch.full((4, 2), torch.nan)


def diameters(centre: tuple[float, float], half: tuple[float, float], degrees: float) -> torch.Tensor:
    """(4, 2) end points of an ellipse's axes, the first ``degrees`` from +x towards +y."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    first, second = torch.tensor([cos, sin]) * half[0], torch.tensor([-sin, cos]) * half[1]
    return torch.stack([-first, first, -second, second]) + torch.tensor(centre)


def box_of(ends: torch.Tensor) -> torch.Tensor:
    return torch.cat([ends.amin(-2) - 5.5, ends.amax(-2) + 5.5], -1)


def target_of(*lesions: torch.Tensor, size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    ends = torch.stack(lesions)[None]
    real = torch.ones(ends.shape[:2], dtype=torch.bool)
    return dense_target(box_of(ends), real, ends, (size // 4, size // 4))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    centre=st.tuples(st.floats(60, 190), st.floats(60, 190)),
    half=st.tuples(st.floats(5, 40), st.floats(5, 40)),
    degrees=st.floats(-90, 90),
)
def test_the_target_is_a_rasterised_ellipse(
    centre: tuple[float, float], half: tuple[float, float], degrees: float
) -> None:
    share, near = target_of(diameters(centre, half, degrees))
    # A raster of 2 px; skimage counts from pixel centres.
    raster = torch.zeros(1, 1, 128, 128)
    where, radii = [c / 2 - 0.5 for c in centre], [h / 2 for h in half]
    raster[0, 0][ellipse(*where, *radii, shape=(128, 128), rotation=math.radians(degrees))] = 1
    differences = 4 * (share - F.avg_pool2d(raster, 2)).abs().sum()
    assert float(differences) <= 4  # points that lie on the outline
    assert float(share.sum()) * 16 == pytest.approx(math.pi * half[0] * half[1], abs=0.7 * math.pi * sum(half))
    assert near[share > 0].all()


def test_the_outline_goes_through_all_four_end_points() -> None:
    # The short diameter near one end of the long one, not at a right angle.
    ends = torch.tensor([[40.0, 50], [110, 70], [58, 40], [52, 66]])
    for x, y in ends.tolist():
        assert float(ellipse_radius(ends, torch.tensor([x]), torch.tensor([y]))) == pytest.approx(1, abs=1e-4)
    crossing = torch.tensor([55.2, 54.3])
    assert float(ellipse_radius(ends, crossing[:1], crossing[1:])) < 0.1
    assert float(ellipse_radius(ends, torch.tensor([125.0]), torch.tensor([75.0]))) > 1


def test_diameters_that_do_not_cross_still_give_a_lesion() -> None:
    share, _ = target_of(torch.tensor([[50.0, 100], [150, 100], [100, 110], [100, 150]]))
    assert torch.isfinite(share).all()
    assert 0.2 < float(share.sum()) * 16 / (math.pi * 50 * 25) < 2


@pytest.mark.parametrize(
    "recist",
    [UNKNOWN, torch.zeros(4, 2), torch.tensor([[60.0, 60], [90, 60], [70, 60], [70, 60]]),
     torch.tensor([[60.0, 60], [90, 60], [60, 62], [90, 62]])],
)  # fmt: skip
def test_without_usable_diameters_the_ellipse_is_the_boxs_own(recist: torch.Tensor) -> None:
    box = torch.tensor([60.0, 70, 100, 95])
    ends = end_points(box, recist, MARGIN)
    expected = [[65.5, 82.5], [94.5, 82.5], [80, 75.5], [80, 89.5]]
    torch.testing.assert_close(ends, torch.tensor(expected))
    tiny = end_points(torch.tensor([10.0, 10, 18, 18]), UNKNOWN, MARGIN)  # smaller than its margins
    torch.testing.assert_close(tiny[1] - tiny[0], torch.tensor([2.0, 0.0]))


def test_known_diameters_stay_and_padding_is_no_lesion() -> None:
    ends = diameters((100, 80), (20, 9), 30)
    assert torch.equal(end_points(box_of(ends), ends, MARGIN), ends)
    both = torch.stack([ends, diameters((30, 200), (12, 12), 0)])[None]
    share, near = dense_target(box_of(both), torch.tensor([[True, False]]), both, (64, 64))
    alone = target_of(ends)
    assert torch.equal(share, alone[0])
    assert torch.equal(near, alone[1])
    assert near[0, 0, 25, 20]  # a cell of the lesion, x first
    assert not near[0, 0, 20, 35]
    assert not near[0, 0, 7, 50]


def test_the_loss_is_cross_entropy_and_dice_near_the_marks() -> None:
    torch.manual_seed(0)
    share, near = target_of(diameters((100, 80), (20, 14), 30), diameters((200, 40), (8, 6), 0))
    hard = (share > 0.5).float()
    logits = torch.randn_like(share)
    p = logits.sigmoid()
    weight = torch.where(near, 1.0, FAR_WEIGHT)
    entropy = -(weight * (hard * p.log() + (1 - hard) * (1 - p).log())).sum() / weight.sum()
    dice = DiceLoss(sigmoid=False)(p * near, hard * near)
    torch.testing.assert_close(dense_loss(logits, hard, near), entropy + dice)


def test_tissue_far_from_the_marks_may_look_like_a_lesion() -> None:
    share, near = target_of(diameters((100, 80), (20, 14), 30))
    right = torch.logit(share.clamp(0.001, 0.999))
    unmarked, beside = right.clone(), right.clone()
    unmarked[0, 0, 50:55, 50:55] = 4.0
    assert not near[0, 0, 50:55, 50:55].any()
    place = torch.nonzero(near[0, 0] & (share[0, 0] == 0))[:25]
    beside[0, 0, place[:, 0], place[:, 1]] = 4.0
    losses = [float(dense_loss(x, share, near)) for x in (right, unmarked, beside)]
    assert losses[0] < losses[1] < losses[2]
    # Its share of the cross entropy alone is a tenth, and the Dice loss does not see it.
    assert losses[2] - losses[0] > 10 * (losses[1] - losses[0])


def test_the_optimum_on_lesion_like_tissue_is_the_documented_one() -> None:
    marked = 0.5  # of lesion-like tissue; the rest lies far from any mark
    logit = torch.zeros(2, requires_grad=True)
    answer = marked / (marked + (1 - marked) * FAR_WEIGHT)
    with torch.no_grad():
        logit += math.log(answer / (1 - answer))
    loss = F.binary_cross_entropy_with_logits(logit, torch.tensor([1.0, 0.0]), torch.tensor([1.0, FAR_WEIGHT]))
    loss.backward()
    assert logit.grad is not None
    assert float(logit.grad.sum()) == pytest.approx(0, abs=1e-6)
    assert answer == pytest.approx(0.91, abs=0.005)


def targets(*boxes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [
        {"box": b, "label": torch.zeros(len(b), dtype=torch.long), "recist_px": UNKNOWN.repeat(len(b), 1, 1),
         "margin_px": MARGIN}
        for b in boxes
    ]  # fmt: skip


@pytest.fixture
def net() -> LesionNet:
    torch.manual_seed(0)
    return LesionNet(num_classes=1, num_anchors=1, pretrained=False, channels=32, folded=True, dense=True)


GENERATOR = ExactAnchorGenerator([[16.0], [32.0], [64.0], [128.0]])


@pytest.mark.parametrize("slices", [0, 1, 2])
def test_every_parameter_gets_a_gradient_with_and_without_lesions(net: LesionNet, slices: int) -> None:
    detector = LesionDetector(net, GENERATOR, dense_weight=0.5).train()
    lesion, nothing = torch.tensor([[20.0, 24, 44, 40]]), torch.zeros(0, 4)
    losses = detector(torch.rand(2, 3, 64, 64), targets(*([lesion] * slices + [nothing] * (2 - slices))))
    assert set(losses) == {"classification", "box_regression", "dense"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert net.dense_head is not None
    assert float(net.dense_head.output.weight.grad.abs().sum()) > 0
    twice = LesionDetector(net, GENERATOR, dense_weight=1.0).train()
    torch.manual_seed(1)
    images = torch.rand(1, 3, 64, 64)
    half, whole = (d(images, targets(lesion))["dense"] for d in (detector, twice))
    torch.testing.assert_close(whole, 2 * half)


def test_the_dense_head_learns_where_the_lesion_is(net: LesionNet) -> None:
    detector = LesionDetector(net, GENERATOR, dense_weight=1.0).train()
    image = torch.rand(1, 3, 96, 96) * 0.2
    image[:, :, 48:72, 20:36] += 0.6  # x first
    target = targets(torch.tensor([[42.5, 14.5, 77.5, 41.5]]))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for _ in range(40):
        loss = sum(detector(image, target).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = net(image)["dense"][0][0, 0]
    assert divmod(int(found.argmax()), 24)[0] in range(12, 18)
    assert divmod(int(found.argmax()), 24)[1] in range(5, 9)
    assert (found[14:16, 6:8] > 0).all()  # a probability above one half
    assert (found[:9] < 0).all()


def test_inference_knows_nothing_of_it(net: LesionNet) -> None:
    plain = LesionNet(num_classes=1, num_anchors=1, pretrained=False, channels=32, folded=True)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("dense_head.")})
    images = torch.rand(1, 3, 64, 64)
    calls: list[int] = []
    assert net.dense_head is not None
    net.dense_head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        ours, other = net.eval()(images), plain.eval()(images)
    assert ours.keys() == other.keys()
    assert all(torch.equal(a, b) for key in ours for a, b in zip(ours[key], other[key], strict=True))
    assert not calls


def test_models_with_and_without_the_head_are_one_format(net: LesionNet, tmp_path: Path) -> None:
    contract, anchors = make(3, [[-175, 275]], 64), [[16.0], [32.0], [64.0], [128.0]]
    plain = LesionNet(num_classes=1, num_anchors=1, pretrained=False, channels=32, folded=True)
    for name, source in (("dense", net), ("plain", plain)):
        save_model(tmp_path / name, source, contract, ["lesion"], anchors)
        assert read(tmp_path / name)["model"].keys() == plain.state_dict().keys()
        assert facts(tmp_path / name)["channels"] == 32
        for dense in (False, True):
            torch.manual_seed(5)
            into = LesionNet(num_classes=1, num_anchors=1, pretrained=False, channels=32, folded=True, dense=dense)
            load_model(tmp_path / name, into, contract, anchors)
            for key, tensor in plain.state_dict().items():
                assert torch.equal(into.state_dict()[key], source.state_dict()[key]), key
                assert tensor.shape == into.state_dict()[key].shape
    wrong = LesionNet(num_classes=2, num_anchors=1, pretrained=False, channels=32, folded=True, dense=True)
    with pytest.raises(ValueError, match="does not fit"):
        load_model(tmp_path / "plain", wrong, contract, anchors)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(net: LesionNet, weight: float) -> None:
    with pytest.raises(ValueError, match="dense_weight"):
        LesionDetector(net, GENERATOR, dense_weight=weight)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    ends = torch.stack([diameters((100, 80), (20, 14), 30), diameters((200, 40), (8, 6), 0)])[None]
    real = torch.ones(1, 2, dtype=torch.bool)
    logits = torch.randn(1, 1, 64, 64)
    cpu = dense_loss(logits, *dense_target(box_of(ends), real, ends, (64, 64)))
    on = [t.cuda() for t in (box_of(ends), real, ends)]
    torch.testing.assert_close(dense_loss(logits.cuda(), *dense_target(*on, (64, 64))).cpu(), cpu, rtol=1e-3, atol=1e-4)
