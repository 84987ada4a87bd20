"""Pictures of a classifier: confusion matrix, ROC curves, reliability, its worst mistakes, its answer for one image."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from torch import Tensor

from ...data import Split
from ...viz import figures
from ...viz.figures import COLOURS, new_figure, plain, shorten
from ...viz.pictures import Panel, panels
from . import report
from .report import Calibration, Report

MOST_CURVES = 10  # of classes, each in its own colour and dashes
DASHES = ("-", (0, (5, 1.5)))  # of the first five classes, and of the others


def draw(
    found: Report,
    split: Split,
    logits: Tensor,
    picture_of: Callable[[str], Path],
    options: argparse.Namespace,
    title: str,
) -> None:
    """Draw what `options` ask for."""
    probabilities, labels = report.softmax(logits), split.labels.numpy()
    if options.confusion:
        picture = picture_of("confusion")
        confusion(found.confusion, found.classes, picture, title=title)
        print(f"confusion matrix: {picture}")
    if options.roc:
        picture = picture_of("roc")
        roc(found, labels, probabilities, picture, title=title)
        print(f"ROC curves: {picture}")
    if options.reliability:
        picture = picture_of("reliability")
        reliability(found.calibration, picture, title=title)
        print(f"reliability diagram: {picture}")
    if options.worst:
        worst(split, probabilities, found.classes, options.worst, picture_of, title=title)


def worst(
    split: Split,
    probabilities: np.ndarray,
    classes: Sequence[str],
    count: int,
    picture_of: Callable[[str], Path],
    *,
    title: str,
) -> None:
    """The `count` mistakes of the highest probability [N, C], with true and predicted class."""
    labels, predicted = split.labels.numpy(), probabilities.argmax(axis=1)
    mistakes = report.worst(labels, probabilities, count)
    if not len(mistakes):
        print("no mistakes, so no picture of them")
        return
    path = picture_of("worst")
    shown = [
        Panel(
            split.images[i].numpy(),
            f"image {i}, {100 * probabilities[i, predicted[i]]:.1f}%\n"
            f"{shorten(classes[labels[i]], 11)} → {shorten(classes[predicted[i]], 11)}",
        )
        for i in mistakes.tolist()
    ]
    columns = max(5, math.ceil(math.sqrt(1.25 * len(shown))))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    title += "\nthe mistakes it was most confident of: true class → predicted class"
    panels(rows, path, title=title, note="The number is what visualize.py --image takes; the share is its confidence.")
    fewer = f" (all {len(mistakes)} there are)" if len(mistakes) < count else ""
    print(f"most confident mistakes: {path}{fewer}")


def answer(image: Tensor, probabilities: Tensor, classes: Sequence[str], path: Path, *, title: str) -> None:
    """An image, uint8 [H, W, 3], beside the classes that the network gives the highest probabilities [C]."""
    best = probabilities.topk(min(5, len(classes)))
    figure = new_figure(7, 3.2)
    left, right = figure.subplots(1, 2)
    left.imshow(image.numpy())
    left.set_axis_off()
    place = range(len(best.values))
    right.barh(place, 100 * best.values.numpy(), color=COLOURS[0], height=0.7)
    for y, share in zip(place, best.values.tolist(), strict=True):
        right.text(100 * share, y, f" {100 * share:.1f}%", va="center", fontsize=9)
    right.set_yticks(place, [plain(shorten(classes[index])) for index in best.indices.tolist()])
    right.set(xlim=(0, 125), xticks=[0, 50, 100], xlabel="probability (%)")
    right.invert_yaxis()
    right.spines[["top", "right"]].set_visible(False)
    figures.entitle(figure, title)
    figures.save(figure, path)


def confusion(matrix: Any, classes: Sequence[str], path: str | Path, *, title: str) -> None:
    """A confusion matrix: each row in percent of its class, and where there is room the number of images below.

    matrix: int [C, C], images of class `row` that were predicted as class `column`. A class without images has no
    shares: its row is grey. Colours are by the root of the share, so that rare mistakes show.
    """
    matrix = np.asarray(matrix)
    count = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100 * matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    side = min(max(4.5, 1.6 + 0.56 * count), 11)
    figure = new_figure(side + 0.4, side)
    axes = figure.subplots()
    norm = PowerNorm(0.5, 0, 100)
    picture = axes.imshow(np.ma.masked_invalid(shares), "Blues", norm)
    axes.set_facecolor("0.85")
    step = max(1, math.ceil(count / 50))
    ticks = range(0, count, step)
    names = [plain(shorten(name)) for name in classes[::step]]
    crowded = count > 25
    slant = {"rotation": 90} if crowded else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, fontsize=6 if crowded else 10, **slant)
    axes.set_yticks(ticks, names, fontsize=6 if crowded else 10)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    what = "each row in % of its true class"
    if crowded:
        figure.colorbar(picture, ax=axes, fraction=0.046, ticks=(0, 1, 5, 20, 50, 100))
    else:
        counts = count <= 12
        what += ", images below" if counts else ""
        for (row, column), share in np.ndenumerate(shares):
            if matrix[row, column] == 0 and not np.isnan(share):
                continue
            text = "–" if np.isnan(share) else f"{share:.1f}"
            colour = "white" if norm(share) > 0.65 else "black"
            lift = 0.12 if counts else 0
            below = f"{matrix[row, column]:,}" if counts and not np.isnan(share) else ""
            for y, said, size in ((row - lift, text, 10 if counts else 7.5), (row + 0.26, below, 6.5)):
                number = axes.text(column, y, said, ha="center", va="center", fontsize=size, color=colour)
                number.set_in_layout(False)  # it is inside its cell; asking 1,250 of them where they are takes seconds
    axes.set_title(what, fontsize=9)
    figures.entitle(figure, title)
    figures.save(figure, path)


def roc(report: Report, labels: Any, probabilities: Any, path: str | Path, *, title: str) -> None:
    """ROC curves, each class against the rest and all decisions at once (micro): where they turn, and small the whole.

    labels: int [N]; probabilities: float [N, C], the scores that images are ranked by; report: of the same predictions.
    With more than MOST_CURVES classes, the five of the lowest AUC are in colour, the others grey.
    """
    from sklearn.metrics import roc_curve

    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    is_class = labels[:, None] == np.arange(len(report.classes))
    order = np.argsort(report.auc)  # undefined ones are NaN, and last
    named = (order if len(order) <= MOST_CURVES else order[:5]).tolist()
    figure = new_figure(9.5, 5.4)
    axes = figure.subplots()
    whole = axes.inset_axes((0.56, 0.06, 0.4, 0.4))
    handles: list[Line2D] = []
    corner = [0.02, 0.9]  # the picture's right and lower edge
    for index in range(len(order)):
        area, style = report.auc[index], {"color": "0.8", "linewidth": 1.0, "zorder": 2}
        if index in named:
            place = sorted(named).index(index)
            style = {"color": COLOURS[place % 5], "linestyle": DASHES[place // 5], "linewidth": 1.6, "zorder": 3}
            said = "undefined" if np.isnan(area) else f"{area:.4f}"
            handles.append(Line2D([], [], label=plain(f"{said}  {shorten(report.classes[index])}"), **style))
        if np.isnan(area):
            continue
        x, y, _ = roc_curve(is_class[:, index], probabilities[:, index])
        corner[0] = max(corner[0], x[np.argmax(y >= 0.99)])
        corner[1] = min(corner[1], y[np.searchsorted(x, 0.005, side="right") - 1])
        for one in (axes, whole):
            one.plot(x, y, **style)
    handles.sort(key=lambda handle: handle.get_label(), reverse=True)  # as the curves lie over each other
    if len(named) < len(order):
        handles.append(Line2D([], [], color="0.8", label="the other classes"))
    if not np.isnan(report.auc_micro):
        x, y, _ = roc_curve(is_class.ravel(), probabilities.ravel())
        style = {"color": "black", "linewidth": 2.2, "linestyle": (0, (1, 1)), "zorder": 4}
        for one in (axes, whole):
            one.plot(x, y, **style)
        handles.append(Line2D([], [], label=f"{report.auc_micro:.4f}  micro average", **style))
    for one in (axes, whole):
        (chance,) = one.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle="--", label="0.5  chance")
        one.grid(color="0.9")
        one.spines[["top", "right"]].set_visible(False)
    right, low = corner[0], 0.95 * corner[1]
    axes.set(xlim=(-0.01 * right, right), ylim=(low, 1 + 0.02 * (1 - low)))
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    whole.set(xlim=(0, 1), ylim=(0, 1.01), xticks=(0, 1), yticks=(0, 1))
    whole.tick_params(labelsize=7)
    whole.indicate_inset((0, low, right, 1 - low), edgecolor="0.3")
    whole.set_title("whole", fontsize=8)
    figure.legend(handles=[*handles, chance], loc="outside right center", frameon=False, title="area under the curve")
    figures.entitle(figure, f"{title}\nROC curves: one class against the rest")
    figures.save(figure, path)


def reliability(calibration: Calibration, path: str | Path, *, title: str) -> None:
    """A reliability diagram: above, the share of the predictions of a confidence that is right; below, how many."""
    figure = new_figure(6, 6.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(calibration.images)
    middle, full = (np.arange(bins) + 0.5) / bins, calibration.images > 0
    accuracy, confidence = calibration.accuracy[full], calibration.confidence[full]
    style = {"width": 0.92 / bins, "zorder": 2}
    above.bar(middle[full], accuracy, color=COLOURS[0], label="accuracy", **style)
    above.bar(
        middle[full], confidence - accuracy, bottom=accuracy, color="none", edgecolor=COLOURS[1], hatch="///",
        label="gap to the mean confidence", **style,
    )  # fmt: skip
    above.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=1, zorder=3, label="perfectly calibrated")
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    above.legend(loc="upper left")
    below.bar(middle, 100 * calibration.images / calibration.images.sum(), color="0.5", **style)
    below.set(xlabel="confidence: the highest probability", ylabel="% of images")
    for axes in (above, below):
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figures.entitle(figure, f"{title}\nexpected calibration error {calibration.error:.2f}%")
    figures.save(figure, path)


def corruptions(rows: Sequence[Mapping[str, Any]], clean: Mapping[str, float], path: Path, *, title: str) -> None:
    """Accuracy and calibration error over the severity of each corruption; 0 is the image as it is.

    rows: corruption, severity, accuracy, calibration_error, by severity; clean: the latter two.
    """
    names = list(dict.fromkeys(row["corruption"] for row in rows))
    figure = new_figure(11, max(4.4, 0.26 * len(names) + 1.2))
    left, right = figure.subplots(1, 2)
    for axes, key, what in ((left, "accuracy", "accuracy (%)"), (right, "calibration_error", "calibration error (%)")):
        ends = {}
        for number, name in enumerate(names):
            mine = [row for row in rows if row["corruption"] == name]
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % 2]}
            values = [clean[key], *(row[key] for row in mine)]
            axes.plot([0, *(row["severity"] for row in mine)], values, marker="o", markersize=4, **style)
            ends[plain(name)] = (values[-1], style["color"])
        axes.set_title(what, fontsize=10, loc="left")
        axes.set(xlabel="severity", ylim=(0, None))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        figures.name_lines(axes, ends)
    figures.entitle(figure, f"{title}\nand when they are corrupted")
    figures.save(figure, path)
