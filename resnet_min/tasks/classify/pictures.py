"""Pictures of a classifier: confusion matrix, ROC curves, reliability, its worst mistakes, its answer for one image."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from torch import Tensor

from ...data import Split
from ...viz import figures
from ...viz.figures import COLOURS, new_figure, plain, shorten
from ...viz.pictures import Panel, panels
from . import report
from .report import Calibration, Report

MOST_CURVES = 10  # of classes, each in its own colour


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
        worst(split, probabilities, found.classes, options.worst, picture_of("worst"), title=title)


def worst(
    split: Split, probabilities: np.ndarray, classes: Sequence[str], count: int, path: Path, *, title: str
) -> None:
    """The `count` mistakes of the highest probability [N, C], with true and predicted class."""
    labels, predicted = split.labels.numpy(), probabilities.argmax(axis=1)
    mistakes = report.worst(labels, probabilities, count)
    if not len(mistakes):
        print("no mistakes, so no picture of them")
        return
    shown = [
        Panel(
            split.images[i].numpy(),
            f"{shorten(classes[labels[i]])} →\n"
            f"{shorten(classes[predicted[i]], 14)} {100 * probabilities[i, predicted[i]]:.1f}%",
        )
        for i in mistakes.tolist()
    ]
    columns = max(4, math.ceil(math.sqrt(1.5 * len(shown))))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    title += "\nthe mistakes it was most confident of: true class → predicted class, its probability"
    panels(rows, path, title=title)
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
    figure.suptitle(plain(title), fontsize=11)
    figures.save(figure, path)


def confusion(matrix: Any, classes: Sequence[str], path: str | Path, *, title: str) -> None:
    """A confusion matrix twice, side by side: images, and each row in percent of its class.

    matrix: int [C, C], images of class `row` that were predicted as class `column`. A class without images has no
    shares: its row on the right is grey.
    """
    matrix = np.asarray(matrix)
    count = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100 * matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    side = min(max(3.6, 1.2 + 0.46 * count), 12)
    figure = new_figure(2 * side + 2.4, side + 0.3)
    left, right = figure.subplots(1, 2)
    _heat(left, matrix.astype(float), classes, "images", max(1, int(matrix.max())), ",.0f")
    _heat(right, shares, classes, "% of the true class", 100, ".1f")
    right.set_facecolor("0.85")
    figure.suptitle(plain(title), fontsize=12)
    figures.save(figure, path)


def _heat(axes: Axes, values: np.ndarray, classes: Sequence[str], title: str, top: float, form: str) -> None:
    """One matrix as colours; its numbers too, where there is room for them."""
    picture = axes.imshow(np.ma.masked_invalid(values), "Blues", Normalize(0, top))
    axes.figure.colorbar(picture, ax=axes, fraction=0.046)
    axes.set_title(title, fontsize=11)
    step = max(1, math.ceil(len(classes) / 50))
    ticks = range(0, len(classes), step)
    names = [plain(shorten(name)) for name in classes[::step]]
    crowded = len(classes) > 25
    slant = {"rotation": 90} if crowded else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, fontsize=6 if crowded else 9, **slant)
    axes.set_yticks(ticks, names, fontsize=6 if crowded else 9)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if crowded:
        return
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else "0" if value == 0 else format(value, form)
        colour = "white" if value > 0.7 * top else "0.5" if value == 0 else "black"
        number = axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        number.set_in_layout(False)  # it is inside its cell; asking 2 × 625 of them where they are takes seconds


def roc(report: Report, labels: Any, probabilities: Any, path: str | Path, *, title: str) -> None:
    """ROC curves, each class against the rest and all decisions at once (micro), whole and the upper left corner.

    labels: int [N]; probabilities: float [N, C], the scores that images are ranked by; report: of the same predictions.
    With more than MOST_CURVES classes, the five of the lowest AUC are in colour, the others grey.
    """
    from sklearn.metrics import roc_curve

    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    is_class = labels[:, None] == np.arange(len(report.classes))
    order = np.argsort(report.auc)  # undefined ones are NaN, and last
    named = set(range(len(order)) if len(order) <= MOST_CURVES else order[:5].tolist())
    figure = new_figure(12.5, 5)
    whole, corner = figure.subplots(1, 2)
    handles: list[Line2D] = []
    for index, (name, area) in enumerate(zip(report.classes, report.auc, strict=True)):
        colour, dashes = "0.8", "-"
        if index in named:
            colour, dashes = COLOURS[len(handles) % 6], "-" if len(handles) < 6 else "--"  # black is the average's
            said = "undefined" if np.isnan(area) else f"{area:.4f}"
            handles.append(Line2D([], [], color=colour, linestyle=dashes, label=plain(f"{shorten(name)}: {said}")))
        if not np.isnan(area):
            x, y, _ = roc_curve(is_class[:, index], probabilities[:, index])
            for axes in (whole, corner):
                axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.4, zorder=2 + (index in named))
    if len(named) < len(order):
        handles.append(Line2D([], [], color="0.8", label="the other classes"))
    if not np.isnan(report.auc_micro):
        x, y, _ = roc_curve(is_class.ravel(), probabilities.ravel())
        for axes in (whole, corner):
            (line,) = axes.plot(x, y, color="black", linewidth=2.4, linestyle=(0, (1, 1)), zorder=4)
        line.set_label(f"micro average: {report.auc_micro:.4f}")
        handles.append(line)
    for axes, limits in ((whole, (0, 1)), (corner, (0, 0.2))):
        (chance,) = axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle="--", label="chance: 0.5")
        axes.set(xlim=limits, ylim=(0, 1.005) if axes is whole else (0.8, 1.001), xlabel="false positive rate")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    whole.set_ylabel("true positive rate")
    corner.set_title("the upper left corner", fontsize=10)
    figure.legend(handles=[*handles, chance], loc="outside right center", frameon=False, title="area under the curve")
    figure.suptitle(plain(title), fontsize=12)
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
    figure.suptitle(plain(f"{title}\nexpected calibration error {calibration.error:.2f}%"), fontsize=11)
    figures.save(figure, path)
