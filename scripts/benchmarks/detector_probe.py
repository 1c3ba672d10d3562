"""The timings of the detector, in a process of its own on two cores; prints JSON. See detector_speed.py.

python scripts/benchmarks/detector_probe.py SERIES REPETITIONS SEED SLICE SLICE SLICE ...

SERIES is a NIfTI file of the slices.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bundles" / "universal_lesion_ct_detection"))  # its package is ``scripts``

CORES = 2
CANDIDATES = 1000  # as many as pass the score threshold of every detector that is timed
KEPT = 100  # boxes of a slice, in train.yaml and inference.yaml
SIZE, TRAINING_SIZE, BATCH = 512, 384, 4
WINDOW_HU = [-175.0, 275.0]
Timings = dict[str, list[float]]


class Clock:
    """Interleaved timings: every repetition goes once through all of them; the first is not kept."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.ways: dict[str, tuple[Callable[[], object], int]] = {}

    def add(self, name: str, way: Callable[[], object], units: int = 1) -> None:
        """A way to time, which does ``units`` slices at once."""
        self.ways[name] = (way, units)

    def run(self, repetitions: int) -> Timings:
        """Seconds a slice of each way."""
        import torch

        found: Timings = defaultdict(list)
        for repetition in range(repetitions + 1):
            for name, (way, units) in self.ways.items():
                started = time.perf_counter()
                way()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                if repetition:
                    found[name].append((time.perf_counter() - started) / units)
        return found


def our_network(anchors: int = 1, **options: Any) -> Any:
    """The network of train.yaml's defaults; random weights in its heads, wide enough for scores that differ."""
    import torch
    from scripts.network import LesionNet

    network = LesionNet(1, anchors, pretrained=True, **options)
    for head in (network.classification_head, network.regression_head):
        torch.nn.init.normal_(head.output.weight, std=0.05)
    return network


def our_detector(network: Any) -> Any:
    from scripts.anchors import ExactAnchorGenerator
    from scripts.detector import LesionDetector

    return LesionDetector(network, ExactAnchorGenerator([[14.0], [25.0], [44.0], [78.0]]))


def select_candidates(detector: Any, images: Any) -> None:
    """Set the score threshold so that the same number of candidates passes as in every other detector."""
    import torch

    with torch.inference_mode():
        outputs = detector.network(images)
    logits = torch.cat([m.float().flatten() for m in outputs[detector.cls_key]])
    detector.set_box_selector_parameters(
        score_thresh=float(logits.topk(CANDIDATES).values[-1].sigmoid()), topk_candidates_per_level=CANDIDATES,
        nms_thresh=0.5, detections_per_img=100,
    )  # fmt: skip


def monai_stock() -> Any:
    """``RetinaNetDetector`` with MONAI's ResNet-50 FPN extractor, at torchvision's strides and anchors."""
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.apps.detection.utils.anchor_utils import AnchorGenerator
    from monai.networks.nets.resnet import resnet50

    body = resnet50(spatial_dims=2, n_input_channels=3, conv1_t_stride=2)
    extractor = resnet_fpn_feature_extractor(body, 2, returned_layers=(2, 3, 4), trainable_backbone_layers=5)
    network = RetinaNet(2, 1, 9, extractor, size_divisible=64)
    sizes = tuple(tuple(s * 2 ** (i / 3) for i in range(3)) for s in (32, 64, 128, 256))
    return RetinaNetDetector(network, AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4))


def torchvision_retinanet(image: Any) -> Any:
    """torchvision's RetinaNet, ResNet-50 FPN, random weights."""
    import torch
    from torchvision.models.detection import retinanet_resnet50_fpn

    model = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=SIZE, max_size=SIZE,
        topk_candidates=CANDIDATES, nms_thresh=0.5, detections_per_img=100,
    ).eval().to(image.device)  # fmt: skip
    with torch.inference_mode():
        scores: list[Any] = []
        hook = model.head.register_forward_hook(lambda _m, _i, out: scores.append(out["cls_logits"]))
        model([image])
        hook.remove()
    model.score_thresh = float(scores[0].float().flatten().topk(CANDIDATES).values[-1].sigmoid())
    return model


@contextlib.contextmanager
def precision(device: Any, name: str) -> Iterator[None]:
    """Inference in float32 or bfloat16."""
    import torch

    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
        yield


def selection(device: Any, repetitions: int) -> dict[str, Timings]:
    """Post-processing of 5,000 candidates of one image: decode, score threshold, NMS; by how many boxes are kept."""
    import torch
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from scripts.anchors import ExactAnchorGenerator

    count = 5000
    corner = torch.rand(count, 2) * 440
    anchors = torch.cat([corner, corner + 6 + torch.rand(count, 2) * 60], 1).to(device)
    logits, deltas = torch.randn(1, count, 1, device=device), torch.randn(1, count, 4, device=device) * 0.1
    ours = our_detector(our_network())
    theirs = RetinaNetDetector(ours.network, ExactAnchorGenerator([[8.0]] * 4))
    theirs.set_target_keys("box", "label")
    found = {}
    for kept in (count, KEPT):
        clock = Clock(device)
        for name, detector in (("ours", ours), ("MONAI", theirs)):
            detector.set_box_selector_parameters(
                score_thresh=0.01, topk_candidates_per_level=count, nms_thresh=0.5, detections_per_img=kept
            )
            outputs = {detector.cls_key: logits, detector.box_reg_key: deltas}
            clock.add(
                name, lambda d=detector, o=outputs: d.postprocess_detections(o, [anchors], [[SIZE, SIZE]], [count])
            )
        with torch.inference_mode():
            found[str(kept)] = clock.run(repetitions)
    return found


def forward_paths(device: Any, series: Path, slices: list[Path], repetitions: int) -> dict[str, Timings]:
    """Batch 1: the bare network, the whole path over a series, and the rivals' forward paths."""
    import torch
    from monai.data import DataLoader
    from scripts.contract import make
    from scripts.evaluation import DetectStep
    from scripts.inference import SeriesDataset
    from scripts.training import collate
    from scripts.transforms import read_slice

    dataset = SeriesDataset(series, make(3, [WINDOW_HU], SIZE), progress=False)
    loader = DataLoader(dataset, batch_size=1, num_workers=0, collate_fn=collate)  # as configs/inference.yaml
    image = dataset[len(slices) // 2]["image"][None].to(device, memory_format=torch.channels_last)
    network = our_network().eval().to(device, memory_format=torch.channels_last)
    detector = our_detector(network).eval()
    select_candidates(detector, image)
    monai = monai_stock().eval().to(device)
    select_candidates(monai, image)
    torchvision = torchvision_retinanet(image[0])
    # Compiling for a CPU needs a C++ compiler; the first call, which compiles, is not timed.
    can = device.type != "cpu" or any(map(shutil.which, ("g++", "clang++")))
    compiled = torch.compile(network) if can else None
    found = {}
    for kind in ("float32", "bfloat16"):
        step = DetectStep(detector, device, amp=kind == "bfloat16")

        def whole(step: Any = step, read: bool = False) -> None:
            for batch, path in zip(loader, slices, strict=True):
                if read:
                    read_slice(path)
                step(None, batch)

        def bare() -> None:
            for _ in slices:
                network(image)

        clock = Clock(device)
        clock.add("network", bare, len(slices))
        if compiled is not None:
            clock.add("network, compiled", lambda: compiled(image))
        clock.add("whole path", whole, len(slices))
        clock.add("with reading", lambda whole=whole: whole(read=True), len(slices))
        clock.add("forward", lambda: detector(image))
        clock.add("torchvision", lambda: torchvision([image[0]]))
        clock.add("MONAI", lambda: monai(image))
        clock.add("MONAI network", lambda: monai.network(image))
        with precision(device, kind):
            found[kind] = clock.run(repetitions)
    return found


def training(device: Any, repetitions: int) -> dict[str, Timings]:
    """Forward, backward and AdamW on one batch: ours as configured, with less of it, and MONAI's detector."""
    import torch
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.networks.retinanet_network import RetinaNet
    from monai.apps.detection.utils.anchor_utils import AnchorGenerator
    from scripts.network import PyramidBackbone

    corner = torch.rand(BATCH, 2, 2) * 300
    boxes = torch.cat([corner, corner + 15 + torch.rand(BATCH, 2, 2) * 40], 2).to(device)
    labels = torch.zeros(BATCH, 2, dtype=torch.long, device=device)

    def stock() -> Any:
        # The same body and pyramid; MONAI's heads, matcher, losses and anchors, nothing frozen.
        network = RetinaNet(2, 1, 1, PyramidBackbone(3, 96, 0, pretrained=True), size_divisible=32)
        network.requires_grad_(True)
        detector = RetinaNetDetector(network, AnchorGenerator(((14,), (25,), (44,), (78,)), ((1.0,),) * 4))
        detector.set_target_keys("box", "label")
        detector.set_atss_matcher(num_candidates=9, center_in_gt=True)
        return detector

    def step(detector: Any, last: bool, kind: str) -> Callable[[], None]:
        detector = detector.to(device).train()
        images = torch.rand(BATCH, 3, TRAINING_SIZE, TRAINING_SIZE, device=device)
        if last:
            detector.to(memory_format=torch.channels_last)
            images = images.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], 1e-5, fused=True)

        def run() -> None:
            targets = [{"box": b, "label": k} for b, k in zip(boxes, labels, strict=True)]
            with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16"):
                loss = sum(detector(images, targets).values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()

        return run

    found = {}
    for kind in ("float32", "bfloat16"):
        clock = Clock(device)
        clock.add("ours", step(our_detector(our_network()), True, kind), BATCH)
        clock.add("ours, channels first", step(our_detector(our_network()), False, kind), BATCH)
        clock.add("ours, nothing frozen", step(our_detector(our_network().requires_grad_(True)), True, kind), BATCH)
        clock.add("MONAI", step(stock(), False, kind), BATCH)
        found[kind] = clock.run(repetitions)
    return found


def augmentation(slices: list[Path], repetitions: int) -> Timings:
    """Our augmentation of one slice in a single thread, beside MONAI's transforms for what those can do."""
    import torch
    from monai.apps.detection.transforms.dictionary import RandFlipBoxd, RandZoomBoxd
    from monai.transforms import Compose, RandAdjustContrastd, RandScaleIntensityd, RandShiftIntensityd
    from scripts.contract import make
    from scripts.transforms import RandAugmentLesiond, read_slice, window_and_resize

    hu = torch.from_numpy(read_slice(slices[0]))[None].expand(3, -1, -1)
    image = window_and_resize(hu, make(3, [WINDOW_HU], SIZE))
    box, label = torch.tensor([[100.0, 150, 130, 190]]), torch.tensor([0])
    monai = Compose([
        RandFlipBoxd(["image"], ["box"], ["image"], prob=1.0, spatial_axis=0),
        RandZoomBoxd(["image"], ["box"], ["image"], prob=1.0, min_zoom=0.8, max_zoom=1.25, mode="bilinear",
                     padding_mode="constant"),
        RandScaleIntensityd(["image"], 0.15, prob=1.0),
        RandShiftIntensityd(["image"], 0.08, prob=1.0),
        RandAdjustContrastd(["image"], prob=1.0, gamma=(0.86, 1.16)),
    ])  # fmt: skip
    ours = RandAugmentLesiond(["image"], rotation=10, gamma=0.15)
    clock = Clock(torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process
    clock.add("ours", lambda: ours({"image": image, "box": box, "label": label}))
    clock.add("MONAI", lambda: monai({"image": image.float() / 255, "box": box, "label": label}))
    found = clock.run(5 * repetitions)
    torch.set_num_threads(threads)
    return found


def main() -> None:
    series, repetitions, seed, *paths = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    import torch

    torch.manual_seed(int(seed))
    torch.set_num_threads(CORES)
    slices = [Path(path) for path in paths]
    found: dict[str, Any] = {"augmentation": augmentation(slices, int(repetitions))}
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        device = torch.device(name)
        found[name] = {
            "selection": selection(device, min(3, int(repetitions))),
            "forward": forward_paths(device, Path(series), slices, int(repetitions)),
            "training": training(device, int(repetitions)),
        }
        print(f"{name}: measured", file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
