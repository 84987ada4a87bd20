"""Figures of runs and evaluations: curves, confusion matrices, ROC curves. Each function writes one file.

Drawn through matplotlib's objects (no pyplot): nothing global is touched, no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .errors import UserError
from .metrics import Calibration, Report

# Okabe and Ito's colours, told apart with any kind of colour vision; their yellow is too faint for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")  # each seven runs share one
SPLITS = {"train": "training", "val": "validation", "test": "test"}
DPI = 110
MOST_CURVES = 10  # of classes, each in its own colour


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose layout keeps labels apart."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    kind = path.suffix[1:].lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UserError(f"cannot draw {path}: pictures are .png, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        figure.savefig(file, format=kind)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: it reads $…$ as mathematics and leaves _names out of legends."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def shorten(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """Loss and accuracy per epoch, of one run or of several over each other; for crowds MAE in place of accuracy.

    runs: label -> rows of `metrics.jsonl` (`metrics.read_rows`); figures a row lacks are left out. A run has one
    colour: its training curve is dashed with hollow markers, its validation or test curve solid. Where it has both of
    these, the test curve is dotted, or a star where the test set was looked at once.
    Raises UserError for a path that does not end in .png, .pdf or .svg, OSError where it cannot be written.
    """
    figure = new_figure(11, 4.6)
    loss, score = figure.subplots(1, 2)
    counts = any("train_mae" in row for rows in runs.values() for row in rows)
    name = "mae" if counts else "accuracy"
    entries, styles = [], {}
    for number, (label, rows) in enumerate(runs.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        validated = any(f"val_{name}" in row for row in rows)
        for split in SPLITS:
            style = {"linestyle": "-", "marker": marker, "markersize": 4, "linewidth": 1.6}
            if split == "train":
                style |= {"linestyle": "--", "markerfacecolor": "white"}
            elif split == "test" and validated:
                once = sum(f"test_{name}" in row for row in rows) == 1
                style |= {"linestyle": "none", "marker": "*", "markersize": 10} if once else {"linestyle": ":"}
            for axes, what in ((loss, "loss"), (score, name)):
                points = [(row["epoch"], row[f"{split}_{what}"]) for row in rows if f"{split}_{what}" in row]
                if points:
                    every = math.ceil(len(points) / 20)
                    axes.plot(*zip(*points, strict=True), color=colour, markevery=every, **style)
                    styles.setdefault(split, style)
        entries.append(Line2D([], [], color=colour, marker=marker, markersize=4, label=_ending(label, rows)))

    epochs = [row["epoch"] for rows in runs.values() for row in rows]
    titles = ("loss", "MAE of counts (training: of crops)") if counts else ("loss (cross-entropy)", "accuracy (%)")
    for axes, what in zip((loss, score), titles, strict=True):
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(set(epochs)) == 1:
            axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    if loss.dataLim.y1 > 10:  # a net that nearly diverged would press all others to the floor
        loss.set_yscale("log")
    elif loss.lines:
        loss.set_ylim(0, 1.05 * loss.dataLim.y1)
    if counts:  # the first epochs' counts may be many times too high
        score.set_yscale("log")
    # One column where names are long, so that the legend is never wider than the figure.
    columns = 1 if max((len(entry.get_label()) for entry in entries), default=0) > 55 else 2
    figure.legend(handles=entries, loc="outside lower left", ncols=columns, frameon=False)
    # What the line styles mean, where they leave room for it.
    loss.legend(handles=[Line2D([], [], color="0.3", label=SPLITS[split], **style) for split, style in styles.items()])
    save(figure, path)


def _ending(label: str, rows: Sequence[Mapping[str, float]]) -> str:
    """A run's name with its last accuracies or MAEs, for a legend."""
    last = rows[-1] if rows else {}
    name, unit = ("mae", "") if "train_mae" in last else ("accuracy", "%")
    figures = [f"{split} {last[f'{split}_{name}']:.1f}{unit}" for split in SPLITS if f"{split}_{name}" in last]
    return plain(f"{label}: {', '.join(figures)}" if figures else label)


def steps(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """The training loss of every step, of one run or of several: pale as it was, and the mean of the steps before.

    runs: label -> rows of `steps.jsonl`. The mean is over a fiftieth of the longest run.
    """
    window = max(1, max(len(rows) for rows in runs.values()) // 50)
    figure = new_figure(9, 4.6)
    axes = figure.subplots()
    for number, (label, rows) in enumerate(runs.items()):
        colour, dashes = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
        step, loss = (np.array([row[key] for row in rows], dtype=float) for key in ("step", "loss"))
        sums = np.cumsum(np.insert(loss, 0, 0))
        ends = np.arange(1, len(loss) + 1)
        starts = np.maximum(0, ends - window)
        axes.plot(step, loss, color=colour, alpha=0.25, linewidth=0.6, zorder=1)
        mean = (sums[ends] - sums[starts]) / (ends - starts)
        axes.plot(step, mean, color=colour, linestyle=dashes, linewidth=1.8, zorder=3, label=plain(label))
    axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    axes.set_title(f"pale: every step; line: mean of the last {window} steps", fontsize=10)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    save(figure, path)


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
    save(figure, path)


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
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


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
    save(figure, path)


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
    save(figure, path)


def comparison(rows: Mapping[str, Mapping[str, float]], path: str | Path, *, title: str) -> None:
    """Several networks side by side, a bar each: rows are label -> accuracy, parameters, macs, images_per_second."""
    panels = {
        "accuracy": ("accuracy (%)", 1, ".2f"),
        "parameters": ("parameters (millions)", 1e6, ".2f"),
        "macs": ("MACs an image (millions)", 1e6, ",.1f"),
        "images_per_second": ("images/s", 1, ",.0f"),
    }
    figure = new_figure(13, 1.5 + 0.42 * len(rows))
    grid = figure.subplots(1, len(panels), sharey=True)
    place = range(len(rows))
    for axes, (key, (what, unit, form)) in zip(grid, panels.items(), strict=True):
        values = [row[key] / unit for row in rows.values()]
        axes.barh(place, values, color=COLOURS[0], height=0.7)
        for y, value in zip(place, values, strict=True):
            axes.text(value, y, f" {value:{form}}", va="center", fontsize=9)
        axes.set_xlim(0, 1.35 * max(values) or 1)  # room for the numbers
        axes.set_title(what, fontsize=10)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    grid[0].set_yticks(place, [plain(label) for label in rows])
    grid[0].invert_yaxis()
    figure.suptitle(plain(title), fontsize=12)
    save(figure, path)
