"""Pictures: curves of runs, filters of a layer, confusion matrices. Each function writes one file.

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

# Okabe and Ito's colours, told apart with any kind of colour vision; their yellow is too faint for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")  # each seven runs share one
SPLITS = {"train": "training", "val": "validation", "test": "test"}
DPI = 110
MOST_FILTERS, MOST_INPUTS = 64, 4  # of one picture; RGB is 3
GAP = 2  # pixels of a mosaic between two filters


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose layout keeps labels apart."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    kind = path.suffix[1:].lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UserError(f"cannot draw {path}: pictures are .png, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        figure.savefig(file, format=kind)


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: it reads $…$ as mathematics and leaves _names out of legends."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """Loss and accuracy per epoch, of one run or of several over each other.

    runs: label -> rows of `metrics.jsonl` (`metrics.read_rows`); figures a row lacks are left out. A run has one
    colour: its training curve is dashed with hollow markers, its validation or test curve solid. Where it has both of
    these, the test curve is dotted, or a star where the test set was looked at once.
    Raises UserError for a path that does not end in .png, .pdf or .svg, OSError where it cannot be written.
    """
    figure = _figure(11, 4.6)
    loss, accuracy = figure.subplots(1, 2)
    entries, styles = [], {}
    for number, (label, rows) in enumerate(runs.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        validated = any("val_loss" in row for row in rows)
        for split in SPLITS:
            style = {"linestyle": "-", "marker": marker, "markersize": 4, "linewidth": 1.6}
            if split == "train":
                style |= {"linestyle": "--", "markerfacecolor": "white"}
            elif split == "test" and validated:
                once = sum("test_loss" in row for row in rows) == 1
                style |= {"linestyle": "none", "marker": "*", "markersize": 10} if once else {"linestyle": ":"}
            for axes, what in ((loss, "loss"), (accuracy, "accuracy")):
                points = [(row["epoch"], row[f"{split}_{what}"]) for row in rows if f"{split}_{what}" in row]
                if points:
                    every = math.ceil(len(points) / 20)
                    axes.plot(*zip(*points, strict=True), color=colour, markevery=every, **style)
                    styles.setdefault(split, style)
        entries.append(Line2D([], [], color=colour, marker=marker, markersize=4, label=_ending(label, rows)))

    epochs = [row["epoch"] for rows in runs.values() for row in rows]
    for axes, what in ((loss, "loss (cross-entropy)"), (accuracy, "accuracy (%)")):
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
    # One column where names are long, so that the legend is never wider than the figure.
    columns = 1 if max((len(entry.get_label()) for entry in entries), default=0) > 55 else 2
    figure.legend(handles=entries, loc="outside lower left", ncols=columns, frameon=False)
    # What the line styles mean, where they leave room for it.
    loss.legend(handles=[Line2D([], [], color="0.3", label=SPLITS[split], **style) for split, style in styles.items()])
    _save(figure, path)


def _ending(label: str, rows: Sequence[Mapping[str, float]]) -> str:
    """A run's name with its last accuracies, for a legend."""
    last = rows[-1] if rows else {}
    figures = [f"{split} {last[f'{split}_accuracy']:.1f}%" for split in SPLITS if f"{split}_accuracy" in last]
    return _plain(f"{label}: {', '.join(figures)}" if figures else label)


def filters(weight: Any, path: str | Path, *, layer: str) -> str:
    """The filters of one convolution, and what was left out of the picture ("" for nothing).

    weight: float [outputs, inputs, kh, kw], an array or a CPU tensor. Each panel shows one input channel of every
    filter, in colours symmetric about zero with one scale for all panels; with three inputs a further panel shows them
    fused as RGB. A filter's number is its row's label plus its column's.
    Raises UserError where `weight` is not a convolution's.
    """
    weight = np.asarray(weight, dtype=np.float64)
    if weight.ndim != 4:
        raise UserError(f"{layer} has no filters to draw: its weight is {list(weight.shape)}, wanted [out, in, h, w]")
    outputs, inputs, height, width = weight.shape
    shown = weight[:MOST_FILTERS, :MOST_INPUTS]
    finite = np.abs(weight[np.isfinite(weight)])
    limit = finite.max() if finite.size and finite.max() > 0 else 1.0
    fused = inputs == 3
    names = [f"{colour} channel" for colour in ("red", "green", "blue")]
    if not fused:
        names = [f"input channel {channel}" for channel in range(shown.shape[1])]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)

    panels = len(names) + fused
    size = 3.3 if panels > 2 else 4.5
    figure = _figure(panels * size + 1.1, size * rows / columns * height / width + 1.1)
    grid = figure.subplots(1, panels, squeeze=False)[0]
    for index, (axes, name) in enumerate(zip(grid, names, strict=False)):
        picture = axes.imshow(_mosaic(shown[:, index], columns), "RdBu_r", Normalize(-limit, limit))
        axes.set_title(name, fontsize=10)
    # The scale belongs to the signed panels, not to the fused one.
    figure.colorbar(picture, ax=list(grid[: len(names)]), label="weight", aspect=30, shrink=0.8)
    if fused:
        scale = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
        colours = 0.5 + 0.5 * shown / np.where(scale > 0, scale, 1)
        mosaic = np.stack([_mosaic(colours[:, channel], columns) for channel in range(3)], axis=-1)
        grid[3].imshow(np.nan_to_num(mosaic, nan=1.0))
        grid[3].set_title("as RGB: grey is zero, each filter\nscaled by its own largest weight", fontsize=10)
    pitch_y, pitch_x = (_zoom(shown) * side + GAP for side in (height, width))
    for axes in grid:
        axes.set_facecolor("0.8")  # shows through the gaps, which are NaN
        axes.set_xticks([GAP + pitch_x * (i + 0.5) for i in range(columns)], range(columns), fontsize=7)
        axes.set_yticks([GAP + pitch_y * (i + 0.5) for i in range(rows)], range(0, rows * columns, columns), fontsize=7)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    cuts = []
    if len(shown) < outputs:
        cuts.append(f"the first {len(shown)} of {outputs} filters")
    if shown.shape[1] < inputs:
        cuts.append(f"the first {shown.shape[1]} of {inputs} input channels")
    cut = " and ".join(cuts)
    title = f"{layer}: {outputs} filters of {inputs}×{height}×{width}" + (f" (shown: {cut})" if cut else "")
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("number of a filter = row + column", fontsize=8)
    _save(figure, path)
    return cut


def _zoom(filters: np.ndarray) -> int:
    """Pixels of a mosaic for one weight: enough that a gap stays thin beside a 1×1 filter."""
    return max(1, math.ceil(24 / max(filters.shape[-2:])))


def _mosaic(filters: np.ndarray, columns: int) -> np.ndarray:
    """[N, h, w] -> one image, row by row, the gaps NaN."""
    zoom = _zoom(filters)
    count, height, width = filters.shape
    pitch_y, pitch_x = zoom * height + GAP, zoom * width + GAP
    mosaic = np.full((GAP + pitch_y * math.ceil(count / columns), GAP + pitch_x * columns), np.nan)
    for index, one in enumerate(filters):
        top, left = GAP + pitch_y * (index // columns), GAP + pitch_x * (index % columns)
        mosaic[top : top + zoom * height, left : left + zoom * width] = np.kron(one, np.ones((zoom, zoom)))
    return mosaic


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
    figure = _figure(2 * side + 2.4, side + 0.3)
    left, right = figure.subplots(1, 2)
    _heat(left, matrix.astype(float), classes, "images", max(1, int(matrix.max())), ",.0f")
    _heat(right, shares, classes, "% of the true class", 100, ".1f")
    right.set_facecolor("0.85")
    figure.suptitle(_plain(title), fontsize=12)
    _save(figure, path)


def _heat(axes: Axes, values: np.ndarray, classes: Sequence[str], title: str, top: float, form: str) -> None:
    """One matrix as colours; its numbers too, where there is room for them."""
    picture = axes.imshow(np.ma.masked_invalid(values), "Blues", Normalize(0, top))
    axes.figure.colorbar(picture, ax=axes, fraction=0.046)
    axes.set_title(title, fontsize=11)
    step = max(1, math.ceil(len(classes) / 50))
    ticks = range(0, len(classes), step)
    names = [_plain(name if len(name) <= 16 else name[:15] + "…") for name in classes[::step]]
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
