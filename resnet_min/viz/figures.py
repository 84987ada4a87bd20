"""Figures of runs: curves, the loss of every step, comparisons. Each function writes one file.

Drawn through matplotlib's objects (no pyplot): nothing global is touched, no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..config import Figure as JudgedBy
from ..errors import UserError
from ..files import printable, write_whole

# Okabe and Ito's colours, told apart with any kind of colour vision; their yellow is too faint for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")  # each seven runs share one
SPLITS = {"train": "training", "val": "validation", "test": "test"}
DPI = 110


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
    write_whole(path, partial(figure.savefig, format=kind))


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: it reads $…$ as mathematics, leaves _names out of legends, and draws no
    control characters. Lines stay lines."""
    text = "\n".join(map(printable, text.split("\n")))
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def shorten(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path, judged_by: JudgedBy) -> None:
    """Loss and the task's figure per epoch, of one run or of several over each other.

    runs: label -> rows of `metrics.jsonl`; figures a row lacks are left out. A run has one colour: its training curve
    is dashed with hollow markers, its validation or test curve solid. Where it has both of these, the test curve is
    dotted, or a star where the test set was looked at once.
    Raises UserError for a path that does not end in .png, .pdf or .svg, OSError where it cannot be written.
    """
    figure = new_figure(11, 4.6)
    loss, score = figure.subplots(1, 2)
    entries, styles = [], {}
    for number, (label, rows) in enumerate(runs.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        validated = any(judged_by.of(row, "val") is not None for row in rows)
        for split in SPLITS:
            style = {"linestyle": "-", "marker": marker, "markersize": 4, "linewidth": 1.6}
            if split == "train":
                style |= {"linestyle": "--", "markerfacecolor": "white"}
            elif split == "test" and validated:
                once = sum(judged_by.of(row, "test") is not None for row in rows) == 1
                style |= {"linestyle": "none", "marker": "*", "markersize": 10} if once else {"linestyle": ":"}
            for axes, what in ((loss, "loss"), (score, judged_by.key)):
                points = [(row["epoch"], row[f"{split}_{what}"]) for row in rows if f"{split}_{what}" in row]
                if points:
                    every = math.ceil(len(points) / 20)
                    axes.plot(*zip(*points, strict=True), color=colour, markevery=every, **style)
                    styles.setdefault(split, style)
        entries.append(Line2D([], [], color=colour, marker=marker, markersize=4, label=_ending(label, rows, judged_by)))

    epochs = [row["epoch"] for rows in runs.values() for row in rows]
    for axes, what in ((loss, "loss"), (score, judged_by.axis)):
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
    if judged_by.log:  # its first values may be many times the last ones
        score.set_yscale("log")
    # One column where names are long, so that the legend is never wider than the figure.
    columns = 1 if max((len(entry.get_label()) for entry in entries), default=0) > 55 else 2
    figure.legend(handles=entries, loc="outside lower left", ncols=columns, frameon=False)
    # What the line styles mean, where they leave room for it.
    loss.legend(handles=[Line2D([], [], color="0.3", label=SPLITS[split], **style) for split, style in styles.items()])
    save(figure, path)


def _ending(label: str, rows: Sequence[Mapping[str, float]], judged_by: JudgedBy) -> str:
    """A run's name with its last figures, for a legend."""
    last = rows[-1] if rows else {}
    values = {split: value for split in SPLITS if (value := judged_by.of(last, split)) is not None}
    figures = [f"{split} {value:.1f}{judged_by.unit}" for split, value in values.items()]
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


def comparison(rows: Mapping[str, Mapping[str, float]], path: str | Path, judged_by: JudgedBy, *, title: str) -> None:
    """Several networks side by side: rows are label -> the task's figure, parameters, macs, images_per_second."""
    panels = {
        judged_by.key: (judged_by.title + (f" ({judged_by.unit})" if judged_by.unit else ""), 1, ".2f"),
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
