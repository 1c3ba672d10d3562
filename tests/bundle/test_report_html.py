"""The page of an evaluation: what it shows by which rule, and what it must not contain."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.errors import BundleError
from scripts.froc import Array, ImageResult, box_iou
from scripts.metrics import compute
from scripts.plots import plot_froc
from scripts.report import predictions
from scripts.report_html import GALLERY, PER_PATIENT, galleries, write_page

image_result: Any = ImageResult  # takes lists too


class Page(HTMLParser):
    """Tags, attributes and text; checks that elements are closed in the right order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def classes(self) -> list[str]:
        return [attributes["class"] or "" for _, attributes in self.tags if "class" in attributes]


def simulated(images: int = 60, patients: int = 12) -> list[ImageResult]:
    rng = np.random.default_rng(0)
    results = []
    for index in range(images):
        corner = rng.uniform(20, 150, (int(rng.integers(0, 3)), 2))
        true = np.concatenate([corner, corner + rng.uniform(15, 60, corner.shape)], axis=1)
        near = true + np.tile(rng.normal(0, 3, (len(true), 2)), 2)
        corner = rng.uniform(0, 200, (4, 2))
        boxes = np.concatenate([near, np.concatenate([corner, corner + 20], axis=1)])
        attributes = {"label": rng.integers(0, 2, len(true)).tolist(), "slice_spacing_mm": [5.0] * len(true)}
        results.append(
            image_result(f"s{index % 7}/{index:03d}.png", f"SECRET{index % patients}", boxes,
                         np.round(rng.random(len(boxes)), 6), true, attributes)
        )  # fmt: skip
    return results


def hu(_: str) -> Array:
    rows, columns = np.mgrid[:256, :256]
    return (rows - columns).astype(np.float64)


def page(results: list[ImageResult], path: Path, **options: Any) -> tuple[Page, str]:
    metrics = compute(results, bootstrap=20, category_names=["small", "<b>large</b>"], thresholds={"risk 0.2": 0.4})
    write_page(path, metrics, results, **{"read": hu, "window_hu": (-175.0, 275.0), **options})
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def test_it_needs_nothing_but_itself_and_names_no_patient(tmp_path: Path) -> None:
    results = simulated()
    plot_froc(compute(results, bootstrap=0), tmp_path / "froc.png")
    found, text = page(results, tmp_path / "report.html", figures=[tmp_path / "froc.png"], about={"section": "test"})
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:image/").startswith("data:image/")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "SECRET" not in text
    policy = [a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert {"viewport"} <= {a.get("name") for tag, a in found.tags if tag == "meta"}
    assert all(a.get("alt") for tag, a in found.tags if tag == "img")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_it_has_the_figures_of_the_metrics(tmp_path: Path) -> None:
    results = simulated()
    found, _ = page(results, tmp_path / "report.html")
    metrics = compute(results, bootstrap=20)
    text = " ".join("".join(found.text).split())
    by_spacing = metrics["by_slice_spacing"]["over 2.5 mm"]
    for figure in (metrics["average_sensitivity"], metrics["froc"]["4"], metrics["average_precision"],
                   by_spacing["froc"]["1"], metrics["calibration"]["laece"]):  # fmt: skip
        assert f"{figure['value']:.3f}" in text
        assert f"{figure['low']:.3f} to {figure['high']:.3f}" in text
    for words in ("risk 0.2", "Slice spacing", "over 2.5 mm", "Category", "D-ECE, kept boxes"):
        assert words in text


def test_names_from_the_data_are_text_not_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>/\"'><img src=x onerror=alert(1)>.png"
    box = [10.0, 10, 40, 40]
    results = [image_result(evil, "p", [box], [0.9], [box], {"label": [1]})]
    found, text = page(results, tmp_path / "report.html", about={"<i>": "<u>"})
    assert "<script" not in text
    assert not {"script", "i", "u"} & {tag for tag, a in found.tags if a.get("style") is None}
    assert evil in "".join(found.text)
    assert "<b>large</b>" in "".join(found.text)


def test_galleries_follow_their_rule() -> None:
    results, kept_score = simulated(), 0.5
    shown = galleries(results, kept_score)
    assert all(0 < len(one) <= GALLERY for one in shown.values())
    for one in shown.values():
        ranks = [example.rank for example in one]
        assert ranks == sorted(ranks, reverse=True)
        patients = [example.result.patient_id for example in one]
        assert max(map(patients.count, patients)) <= PER_PATIENT
    for example in shown["hits"]:
        over = box_iou(example.result.boxes_px, example.box_px[None])[:, 0] >= 0.5
        assert example.result.scores[over].max() == example.rank >= kept_score
    for example in shown["misses"]:
        over = box_iou(example.result.boxes_px, example.box_px[None])[:, 0] >= 0.5
        assert (example.result.scores[over] < kept_score).all()
        assert example.rank == (example.box_px[2:] - example.box_px[:2]).max()
    for example in shown["false_positives"]:
        assert (box_iou(example.box_px[None], example.result.true_boxes_px) < 0.5).all()
        assert example.rank >= kept_score
    every_hit = [r.scores[: len(r.true_boxes_px)].max(initial=0) for r in results]
    assert shown["hits"][0].rank == pytest.approx(max(every_hit))
    again = galleries(results[::-1], kept_score)
    for name, one in shown.items():
        assert [(e.result.image, e.caption) for e in one] == [(e.result.image, e.caption) for e in again[name]]


def test_boxes_lie_where_they_are_in_the_crop(tmp_path: Path) -> None:
    box = [100.0, 60, 148, 84]  # 48 px: a crop of 120 px around (124, 72), so from (64, 12)
    found, _ = page([image_result("a/1.png", "p", [box], [0.9], [box])], tmp_path / "report.html")
    rects = [a for tag, a in found.tags if tag == "rect" and a.get("class") == "hit"]
    scale = 192 / 120
    for rect in rects:
        place = [float(rect[name] or "nan") for name in ("x", "y", "width", "height")]
        assert place == pytest.approx([36 * scale, 48 * scale, 48 * scale, 24 * scale], abs=0.06)
    assert len(rects) == 1


@pytest.mark.parametrize(
    "results",
    [
        [image_result("a", "p", [], [], [])],
        [image_result("a", "p", [[0, 0, 9, 9]], [0.5], [])],
        [image_result("a", "p", [], [], [[0, 0, 9, 9]])],
        [image_result("a", "p", [[0, 0, 9, 9]], [7.5], [[0, 0, 9, 9]])],  # scores that are no probabilities
        [image_result("a", "p", [[-40, -40, -9, 9]], [0.5], [[400, 400, 700, 800]])],  # beyond the image
    ],
)
def test_a_page_is_written_whatever_is_missing(results: list[ImageResult], tmp_path: Path) -> None:
    found, _ = page(results, tmp_path / "report.html")
    assert "Lesion detection: evaluation" in found.text


def test_a_box_of_any_size_fits_on_the_page(tmp_path: Path) -> None:
    boxes = ([[0.0, 0.0, 9e8, 9e8]], [0.9], [[10.0, 10, 40, 40]])
    found, _ = page([ImageResult("a", "p", *map(np.array, boxes))], tmp_path / "report.html")
    assert [tag for tag, _ in found.tags if tag == "img"]


def test_a_slice_that_cannot_be_read_leaves_its_frame_empty(tmp_path: Path) -> None:
    def refuse(image: str) -> Array:
        raise BundleError(f"{image}: damaged")

    found, _ = page(simulated(), tmp_path / "report.html", read=refuse)
    assert found.classes().count("none") > 3
    assert not [tag for tag, _ in found.tags if tag == "img"]


def test_predictions_tell_patients_apart_without_naming_them() -> None:
    results = simulated()
    written = predictions(results)
    assert "SECRET" not in str(written)
    number = {image["image"]: image["patient"] for image in written["images"]}
    for one in results:
        for other in results:
            assert (number[one.image] == number[other.image]) == (one.patient_id == other.patient_id)
    assert {i["image"]: i["patient"] for i in predictions(results[::-1])["images"]} == number
