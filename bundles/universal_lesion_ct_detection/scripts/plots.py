"""Pictures of an evaluation: FROC, accuracy over IoU, reliability, and slices with hits, misses and false positives.

Curves are drawn from `metrics.json`; the pictures go through matplotlib's object interface, so no window system and no
global state is touched. Colours are Okabe and Ito's, which colour-blind readers tell apart; overlays differ in line
style too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from scripts.froc import FP_PER_IMAGE, Array, box_iou

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
HIT, MISS, FALSE_POSITIVE, FINDING = "#2CDB7E", "#FF4D4D", "#FFA62B", "#4DB3FF"
"""On grey CT: a found lesion's box and the box that found it, a lesion without a box, a box without a lesion."""

WINDOW_HU = (-160.0, 240.0)
STYLE: dict[str, Any] = {"linewidth": 1.6, "solid_capstyle": "round"}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def _runs(metrics: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None, label: str) -> dict[str, Any]:
    return {label: metrics, **(others or {})}


def _floats(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def plot_froc(
    metrics: Mapping[str, Any],
    path: str | Path,
    *,
    label: str = "this detector",
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Sensitivity over false positives per image (log axis), with the interval as a band and the six usual points.

    Args:
        metrics: content of `metrics.json`.
        path: picture to write; its ending names the format (png, svg, pdf).
        label: the run's name in the legend.
        others: further runs by name, drawn beside it.
    """
    figure, axes = _figure(4.8, 3.6)
    for colour, (name, run) in zip(COLOURS, _runs(metrics, others, label).items(), strict=False):
        curve = run["froc_curve"]
        rates = _floats(curve["fp_per_image"])
        axes.fill_between(rates, _floats(curve["low"]), _floats(curve["high"]), color=colour, alpha=0.18, linewidth=0)
        average = run["average_sensitivity"]["value"]
        text = name if average is None else f"{name} (mean of ½, 1, 2, 4: {average:.3f})"
        axes.plot(rates, _floats(curve["sensitivity"]), color=colour, label=text, **STYLE)
        points = _floats([run["froc"][f"{rate:g}"]["value"] for rate in FP_PER_IMAGE])
        axes.plot(FP_PER_IMAGE, points, "o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.6)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.125, 16 * 1.06)
    ticks = (0.125, 0.25, *FP_PER_IMAGE)
    axes.set_xticks(ticks, [{0.125: "⅛", 0.25: "¼", 0.5: "½"}.get(tick, f"{tick:g}") for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("false positives per image")
    axes.set_ylabel(f"sensitivity (IoU ≥ {metrics['iou_threshold']:g})")
    _legend(axes, metrics)
    _save(figure, path)


def plot_accuracy_over_iou(
    metrics: Mapping[str, Any],
    path: str | Path,
    *,
    label: str = "this detector",
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Share of images whose highest-scoring box hits a lesion, over the IoU of a hit; arguments as above."""
    figure, axes = _figure(4.8, 3.6)
    for colour, (name, run) in zip(COLOURS, _runs(metrics, others, label).items(), strict=False):
        figures = list(run["accuracy_at_iou"].values())
        thresholds = _floats([float(iou) for iou in run["accuracy_at_iou"]])
        low, value, high = (_floats([figure[part] for figure in figures]) for part in ("low", "value", "high"))
        axes.fill_between(thresholds, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(thresholds, value, "o-", color=colour, label=name, markersize=4, markeredgecolor="white",
                  markeredgewidth=0.6, **STYLE)  # fmt: skip
    axes.set_xlim(0.08, 0.92)
    axes.set_xticks(np.arange(1, 10) / 10)
    axes.set_ylim(0, 1)
    axes.set_xlabel("IoU threshold")
    axes.set_ylabel("accuracy of the highest-scoring box")
    _legend(axes, metrics)
    _save(figure, path)


def plot_reliability(metrics: Mapping[str, Any], path: str | Path) -> None:
    """Reliability diagram: what the boxes of each bin of score are worth, and below how many there are (log axis).

    On the diagonal a score is what it says: the chance of a hit, or with the box's fit counted, its expected IoU.

    Args:
        metrics: content of `metrics.json`; without its ``calibration`` an empty diagram says why.
        path: picture to write; its ending names the format.
    """
    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for each in (axes, counts):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25, linewidth=0.6)
        each.set_axisbelow(True)
    axes.plot((0, 1), (0, 1), color="0.6", linestyle="--", linewidth=1, label="calibrated")
    if "calibration" in metrics:
        part = metrics["calibration"]["reliability"]
        score = _floats(part["mean_score"])
        for colour, marker, key, name, figure_key in (
            (COLOURS[0], "o", "precision", "hits a lesion", "d_ece"),
            (COLOURS[1], "s", "precision_times_iou", "hits, times IoU", "laece"),
        ):
            low, value, high = (_floats(part[key + end]) for end in ("_low", "", "_high"))
            bars = np.clip(np.nan_to_num(np.stack([value - low, high - value])), 0, None)
            error = metrics["calibration"][figure_key]["value"]
            short = {"d_ece": "D-ECE", "laece": "LaECE"}[figure_key]
            text = name if error is None else f"{name} ({short} {error:.3f})"
            axes.errorbar(
                score, value, bars, color=colour, marker=marker, label=text, markersize=4, elinewidth=0.8, capsize=1.5,
                markeredgecolor="white", markeredgewidth=0.6, linewidth=1.2,
            )  # fmt: skip
        edges = np.linspace(0, 1, len(score) + 1)
        counts.stairs(_floats(part["boxes"]), edges, fill=True, color="0.6")
        counts.set_yscale("symlog", linthresh=1)
    else:
        axes.text(0.5, 0.5, "the scores are not between 0 and 1", ha="center", color="0.3")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of boxes, or mean IoU")
    counts.set_ylabel("boxes")
    counts.set_xlabel("score")
    _legend(axes, metrics, "lower right")
    _save(figure, path)


def _legend(axes: Axes, metrics: Mapping[str, Any], where: Literal["best", "lower right"] = "best") -> None:
    level = metrics["interval"]["level"]
    title = f"{metrics['images']:,} images, {metrics['lesions']:,} lesions, {metrics['patients']:,} patients"
    axes.set_title(title, fontsize=9, loc="left", color="0.3")
    handles, labels = axes.get_legend_handles_labels()
    if metrics["interval"]["replicates"]:
        bars = any(isinstance(container, ErrorbarContainer) for container in axes.containers)
        handles.append(
            Line2D([], [], color="0.5", linewidth=0.8, marker="|")
            if bars
            else Rectangle((0, 0), 1, 1, facecolor="0.5", alpha=0.3)
        )
        labels.append(f"{level:.0%} bootstrap interval by patient")
    axes.legend(handles, labels, fontsize=8, loc=where, framealpha=0.85, edgecolor="none")


# --- overlays ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice of an overlay sheet; arguments as in `overlay`. ``true_boxes_px`` is None where nobody marked it."""

    image_hu: npt.NDArray[Any]
    true_boxes_px: npt.ArrayLike | None
    boxes_px: npt.ArrayLike
    scores: npt.ArrayLike
    title: str = ""


def _draw_box(axes: Axes, box_px: Array, colour: str, style: str) -> None:
    x0, y0, x1, y1 = box_px
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linestyle=style, linewidth=1.1))


def _draw(axes: Axes, panel: Panel, score_threshold: float, window_hu: tuple[float, float], iou: float) -> None:
    rows, columns = panel.image_hu.shape
    axes.imshow(
        panel.image_hu, cmap="gray", vmin=window_hu[0], vmax=window_hu[1], interpolation="nearest",
        extent=(0, columns, rows, 0),  # corner px, where imshow's own frame has (0, 0) at the first pixel's centre
    )  # fmt: skip
    known = panel.true_boxes_px is not None
    true = np.asarray(panel.true_boxes_px if known else [], dtype=np.float64).reshape(-1, 4)
    scores = np.asarray(panel.scores, dtype=np.float64).reshape(-1)
    kept = scores >= score_threshold
    boxes = np.asarray(panel.boxes_px, dtype=np.float64).reshape(-1, 4)[kept]
    overlap = box_iou(boxes, true)  # (n, m)
    for box, best in zip(true, overlap.max(axis=0, initial=0.0), strict=True):
        found = best >= iou
        _draw_box(axes, box, HIT if found else MISS, ":" if found else "--")
    for box, score, best in zip(boxes, scores[kept], overlap.max(axis=1, initial=0.0), strict=True):
        colour = FINDING if not known else HIT if best >= iou else FALSE_POSITIVE
        _draw_box(axes, box, colour, "-")
        above = box[1] > 0.06 * rows
        anchor = (float(np.clip(box[0], 0, 0.9 * columns)), float(box[1] if above else box[3]))
        axes.annotate(
            f"{score:.2f}", anchor, (0, 1.5 if above else -1.5),
            textcoords="offset points", va="bottom" if above else "top", color=colour, fontsize=6.5,
            annotation_clip=True, path_effects=[withStroke(linewidth=1.4, foreground="black")],
        )  # fmt: skip
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_axis_off()
    if panel.title:
        axes.set_title(panel.title, fontsize=7, pad=3)


def _key(figure: Figure, known: bool) -> None:
    if not known:
        handles = [Line2D([], [], color=FINDING, linestyle="-", label="finding (score)")]
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=7)
        return
    handles = [
        Line2D([], [], color=HIT, linestyle="-", label="hit (score)"),
        Line2D([], [], color=HIT, linestyle=":", label="found lesion"),
        Line2D([], [], color=MISS, linestyle="--", label="missed lesion"),
        Line2D([], [], color=FALSE_POSITIVE, linestyle="-", label="false positive (score)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=7)


def overlay(
    image_hu: npt.NDArray[Any],
    true_boxes_px: npt.ArrayLike | None,
    boxes_px: npt.ArrayLike,
    scores: npt.ArrayLike,
    where: str | Path | Axes,
    *,
    score_threshold: float = 0.0,
    window_hu: tuple[float, float] = WINDOW_HU,
    iou_threshold: float = 0.5,
    title: str = "",
) -> None:
    """A slice with the lesions found and missed and the false positives.

    Args:
        image_hu: (rows, columns) HU: what is displayed, so the transpose of a [C, X, Y] tensor's plane.
        true_boxes_px: (m, 4) marked lesions, half-open px; None where they are not known.
        boxes_px: (n, 4) predicted boxes, half-open px.
        scores: (n,) their scores.
        where: picture to write, or axes to draw into.
        score_threshold: boxes below it are not drawn and find nothing.
        window_hu: HU shown as black and as white.
        iou_threshold: IoU from which a box hits a lesion.
    """
    panel = Panel(image_hu, true_boxes_px, boxes_px, scores, title)
    if isinstance(where, Axes):
        _draw(where, panel, score_threshold, window_hu, iou_threshold)
    else:
        overlay_sheet(
            [panel], where, columns=1, panel_inches=4.5, score_threshold=score_threshold, window_hu=window_hu,
            iou_threshold=iou_threshold,
        )  # fmt: skip


def overlay_sheet(
    panels: Sequence[Panel],
    path: str | Path,
    columns: int = 4,
    *,
    score_threshold: float = 0.0,
    window_hu: tuple[float, float] = WINDOW_HU,
    iou_threshold: float = 0.5,
    panel_inches: float = 2.4,
) -> None:
    """Many slices on one sheet, row by row, with one key below; arguments as in `overlay`.

    Raises:
        ValueError: without panels.
    """
    if not panels:
        raise ValueError("no slices to draw")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(columns * panel_inches, 4.5), rows * panel_inches + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.ravel(), panels, strict=False):
        _draw(axes, panel, score_threshold, window_hu, iou_threshold)
    _key(figure, any(panel.true_boxes_px is not None for panel in panels))
    _save(figure, path)
