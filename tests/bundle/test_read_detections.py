"""Files of findings: what goes on which slice, what is counted, what is refused; and the commands on top of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.checkpoint import facts
from scripts.errors import BundleError, root_message
from scripts.read_detections import load_predictions, place
from tiny import here, make_hospital, options

from scripts import compare

BOX = [10.0, 10.0, 30.0, 30.0]
ITEMS: list[dict[str, Any]] = [
    {"image": [f"s/{i - 1}.png", f"s/{i}.png", f"s/{i + 1}.png"], "meta": {"slice_index": i, "image_size": [96, 80]}}
    for i in (4, 5)
] + [{"image": ["t/7.png"], "meta": {"slice_index": 7}}]


def finding(**more: Any) -> dict[str, Any]:
    return {"box_px": BOX, "score": 0.5, "slice_index": 4, "image_uid": "1.2.3", "label": 0, **more}


def series(*findings: dict[str, Any], origin: str = "s", **more: Any) -> dict[str, Any]:
    return {"source": {"origin": origin}, "grid": {"columns": 96, "rows": 80}, "findings": list(findings), **more}


def write(folder: Path, content: Any) -> Path:
    path = folder / "found.json"
    path.write_text(content if isinstance(content, str) else json.dumps({"schema_version": 1, **content}))
    return path


def test_findings_go_on_the_slice_that_their_image_or_origin_and_index_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "series": [
                series(finding(), finding(slice_index=5, score=0.7), finding(slice_index=5), finding(slice_index=60)),
                series(finding(image="t/7.png"), finding(image="t/9.png"), origin="somewhere"),
            ]
        },
    )
    placed = place(path, ITEMS)
    assert {image: len(boxes) for image, boxes in placed.boxes_px.items()} == {"s/4.png": 1, "s/5.png": 2, "t/7.png": 1}
    assert placed.scores["s/5.png"].tolist() == [0.7, 0.5]
    assert placed.boxes_px["t/7.png"].tolist() == [BOX]
    assert placed.facts["findings"] == 6
    assert placed.facts["findings_on_other_slices"] == 2
    assert placed.facts["slices_not_mentioned"] == 0
    assert len(placed.facts["sha256"]) == 64


def test_a_searched_series_without_a_finding_has_slices_without_findings(tmp_path: Path) -> None:
    placed = place(write(tmp_path, {"series": [series(), series(origin="t")]}), ITEMS)
    assert all(boxes.shape == (0, 4) for boxes in placed.boxes_px.values())
    assert placed.facts["slices_not_mentioned"] == 0


def test_slices_that_nobody_searched_are_an_error_or_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {"images": [{"image": "s/5.png", "box_px": [BOX], "score": [0.5]}]})
    with pytest.raises(BundleError, match=r"nothing of 2 of the 3 slices of this section, first s/4\.png"):
        place(path, ITEMS)
    placed = place(path, ITEMS, missing="empty")
    assert placed.facts["slices_not_mentioned"] == 2
    assert len(placed.boxes_px) == 3
    assert len(placed.boxes_px["s/5.png"]) == 1
    with pytest.raises(BundleError, match="--missing_slices must be"):
        place(path, ITEMS, missing="ignore")


def test_findings_of_another_data_set_are_not_taken_for_none(tmp_path: Path) -> None:
    path = write(tmp_path, {"series": [series(finding(), finding(), origin="CT")]})
    with pytest.raises(BundleError, match="none of its 2 findings is on a slice of this section"):
        place(path, ITEMS, missing="empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "schema_version 1"),
        ({"schema_version": 2}, "schema_version 1"),
        ({}, "neither a detections.json"),
        ({"series": [3]}, r"series\[0\]: 'findings' must be a list"),
        ({"series": [series(3)]}, r"findings\[0\]: not an object"),  # type: ignore[arg-type]
        ({"series": [series(finding(box_px=[1, 2, 3]))]}, r"findings\[0\]: a finding needs a box"),
        ({"series": [series(finding(box_px=[1, 2, 3, "4"]))]}, "a finding needs a box"),
        ({"series": [series(finding(box_px=[9, 2, 3, 4]))]}, "turned round"),
        ({"series": [series(finding(box_px=[1, 2, 3, 10**400]))]}, "not finite"),
        ({"series": [series(finding(box_px=[1, 2, 3, float("nan")]))]}, "not finite"),
        ({"series": [series(finding(score=1.5))]}, "not between 0 and 1"),
        ({"series": [series(finding(score=True))]}, "a box x0, y0, x1, y1 and a score"),
        (
            {"series": [series(finding(), grid={"columns": 512, "rows": 512})]},
            "512 x 512 px, the slice s/4.png 96 x 80",
        ),
        ({"images": [{"box_px": [], "score": []}]}, r"images\[0\]: 'image' must be"),
        ({"images": [{"image": "a", "box_px": [BOX], "score": []}]}, "lists of the same length"),
        ({"images": [{"image": "a", "box_px": [], "score": []}] * 2}, "there twice"),
    ],
)
def test_bad_files_are_one_clear_line(content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(BundleError, match=message) as error:
        place(path, ITEMS, missing="empty")
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        place(tmp_path / "no.json", ITEMS)
    with pytest.raises(BundleError, match=r"not a predictions\.json"):
        load_predictions(write(tmp_path, {"series": []}))


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hospital(tmp_path_factory.mktemp("hospital"))


def evaluate_file(hospital: Path, output: Path, detections: Path, **more: Any) -> dict[str, Any]:
    here(
        "train", "evaluate", "evaluate_detections",
        **options(hospital, output, detections=detections, bootstrap=20, **more),
        tracking_uri=f"sqlite:///{hospital.parent / 'runs.db'}",  # one store, whose making takes a second or two
    )  # fmt: skip
    metrics: dict[str, Any] = json.loads((output / "evaluation" / "validation" / "metrics.json").read_text())
    return metrics


@pytest.fixture
def perfect(hospital: Path, tmp_path: Path) -> Path:
    """A detections.json of another program: the marked boxes, and one finding on a training slice."""
    content = json.loads(hospital.read_text())
    found = [finding(image=i["image"][1], box_px=i["box"][0], score=0.8) for i in content["validation"]]
    found.append(finding(image=content["training"][0]["image"][1]))
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"schema_version": 1, "series": [{"findings": found}]}))
    return path


def test_a_file_is_evaluated_like_weights(
    hospital: Path, perfect: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate_file(hospital, tmp_path / "out", perfect)
    assert metrics["images"] == metrics["lesions"] == 6
    assert metrics["average_sensitivity"]["value"] == metrics["average_precision"]["value"] == 1
    assert metrics["calibration"]["laece"]["value"] == pytest.approx(0.2)
    assert list(metrics["by_category"]) == ["small", "large"]
    assert metrics["detections"]["findings_on_other_slices"] == 1
    assert "operating_points" not in metrics
    folder = tmp_path / "out" / "evaluation" / "validation"
    assert {p.name for p in folder.iterdir()} == {
        "metrics.json", "predictions.json", "report.html", "froc.png", "accuracy_over_iou.png", "reliability.png",
        "overlays.png",
    }  # fmt: skip
    page = (folder / "report.html").read_text()
    assert "detections.json (sha256" in page
    # What an evaluation writes evaluates to the same figures.
    again = evaluate_file(hospital, tmp_path / "again", folder / "predictions.json")
    assert {k: v for k, v in again.items() if k != "detections"} == {
        k: v for k, v in metrics.items() if k != "detections"
    }
    capsys.readouterr()
    assert compare.main([str(folder), str(tmp_path / "again" / "evaluation" / "validation")]) == 0
    assert "+0.000" in capsys.readouterr().out


def test_a_file_that_misses_slices_is_refused_by_the_command(hospital: Path, perfect: Path, tmp_path: Path) -> None:
    content = json.loads(perfect.read_text())
    last = content["series"][0]["findings"][5]["image"].split("/")[0]
    content["series"][0]["findings"] = [f for f in content["series"][0]["findings"] if not f["image"].startswith(last)]
    perfect.write_text(json.dumps(content))
    with pytest.raises(Exception, match=r".") as error:
        evaluate_file(hospital, tmp_path / "out", perfect)
    assert "says nothing of 3 of the 6 slices" in (root_message(error.value) or "")


def test_calibrating_weights_that_find_nothing_is_not_attainable(hospital: Path, tmp_path: Path) -> None:
    given = options(hospital, tmp_path)
    here("train", "untrained", **given)
    with pytest.raises(Exception, match=r".") as error:
        here("train", "evaluate", "calibrate", **given, alpha=0.3)
    assert "not attainable: on 2 validation patients with 6 marked lesions" in (root_message(error.value) or "")
    assert facts(tmp_path / "model.pt")["operating_points"] == {}
    with pytest.raises(Exception, match=r".") as error:
        here("train", "evaluate", "calibrate", **given, calibrate_on="tuning")
    assert "--calibrate_on tuning" in (root_message(error.value) or "")


def test_comparing_says_which_is_ahead_and_refuses_other_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    runs: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    for number in range(40):
        for name, skill in (("a", 0.0), ("b", 0.8)):
            good = bool(rng.random() < 0.2 + skill)
            runs[name].append(
                {
                    "image": f"{number:02d}.png", "patient": number % 20, "true_box_px": [BOX],
                    "box_px": [BOX if good else [50.0, 50.0, 70.0, 70.0], [80.0, 80.0, 90.0, 90.0]],
                    "score": [0.9, float(np.round(rng.random() / 2, 3))],
                }
            )  # fmt: skip
    for name, images in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.json").write_text(json.dumps({"schema_version": 1, "images": images}))
    written = tmp_path / "comparison.json"
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--bootstrap", "200", "--output", str(written)]
    assert compare.main(words) == 0
    out = capsys.readouterr().out
    comparison = json.loads(written.read_text())
    headline = comparison["difference"]["average_sensitivity"]
    assert headline["low"] > 0
    assert headline["p"] < 0.05
    expected = (
        comparison["second"]["average_sensitivity"]["value"] - comparison["first"]["average_sensitivity"]["value"]
    )
    assert headline["value"] == pytest.approx(expected)
    assert f"{headline['value']:+.3f}" in out
    for images, message in ((runs["b"][1:], "differ in images"), ([], "no image")):
        (tmp_path / "b" / "predictions.json").write_text(json.dumps({"schema_version": 1, "images": images}))
        assert compare.main(words) == 1
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert message in line
    del runs["a"][3]["patient"]
    (tmp_path / "a" / "predictions.json").write_text(json.dumps({"schema_version": 1, "images": runs["a"]}))
    assert compare.main(words) == 1
    assert "evaluate again" in capsys.readouterr().err
