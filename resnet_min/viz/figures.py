"""Figures of runs: curves, the loss of every step, comparisons. Each function writes one file.

Drawn through matplotlib's objects (no pyplot): nothing global is touched, no display is needed.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ..config import Figure as JudgedBy
from ..errors import UserError
from ..files import printable, write_whole

# Okabe and Ito's colours, told apart with any kind of colour vision; their yellow is too faint for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")  # each seven runs share one
SPLITS = {"train": "training", "val": "validation", "test": "test"}
DPI = 150
WRITTEN = {"svg.fonttype": "none", "pdf.fonttype": 42}  # text stays text, to be searched and edited
KINDS = ("png", "svg", "pdf")
NAME_WIDTH = 26  # characters of a name in one line beside a plot


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose layout keeps labels apart."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in KINDS:
        raise UserError(f"cannot draw {path}: pictures are .png, .pdf or .svg")
    with rc_context(WRITTEN), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font has not: boxes
        write_whole(path, partial(figure.savefig, format=kind))


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: it reads $…$ as mathematics, leaves _names out of legends, and draws no
    control characters. Lines stay lines."""
    text = "\n".join(map(printable, text.split("\n")))
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def entitle(figure: Figure, text: str, size: float = 11) -> None:
    """A title over a figure, in as many lines as it needs to be no wider."""
    width = int(figure.get_figwidth() * 122 / size)
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
    figure.suptitle(plain("\n".join(lines)), fontsize=size)


def shorten(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path, judged_by: JudgedBy, *, title: str = ""
) -> None:
    """Loss and the task's figure per epoch, of one run or of several over each other.

    runs: label -> rows of `metrics.jsonl`; figures a row lacks are left out. A run has one colour, in which its name
    and last figures stand beside the ends of its lines: its training curve is dashed with hollow markers, its
    validation or test curve solid. Where it has both of these, the test curve is dotted, or a star where the test set
    was looked at once. Early losses far above all others are triangles at the upper edge: see `_ceiling`.
    title: "" for one that says what is drawn.
    Raises UserError for a path that does not end in .png, .pdf or .svg, OSError where it cannot be written.
    """
    names = {label: _ending(label, rows, judged_by) for label, rows in runs.items()}
    lines = sum(2 + name.count("\n") for name in names.values())
    figure = new_figure(11.5, max(4.4, 0.18 * lines + 1.2))
    loss, score = figure.subplots(1, 2)
    styles, colours = {}, {}
    for number, (label, rows) in enumerate(runs.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        colours[label] = colour
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
                    axes.plot(*zip(*points, strict=True), color=colour, markevery=every, gid=split, **style)
                    styles.setdefault(split, style)

    epochs = [row["epoch"] for rows in runs.values() for row in rows]
    for axes, what in ((loss, "loss"), (score, judged_by.axis)):
        axes.set_xlabel("epoch")
        axes.set_title(what, fontsize=10, loc="left")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(set(epochs)) == 1:
            axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    top, highest = _ceiling(loss), max(0.0, loss.dataLim.y1)
    if top > 10:  # a net that nearly diverged would press all others to the floor
        _logarithmic(loss)
    elif loss.lines:
        loss.set_ylim(0, 1.05 * top)
        if highest > top:
            _mark_above(loss, 1.05 * top)
            loss.set_title(f"loss (▲: above, up to {highest:.3g})", fontsize=10, loc="left")
    if judged_by.log:  # its first values may be many times the last ones
        _logarithmic(score)
    # What the line styles mean, where they leave room for it.
    loss.legend(handles=[Line2D([], [], color="0.3", label=SPLITS[split], **style) for split, style in styles.items()])
    name_lines(score, {names[label]: (_end(rows, judged_by), colours[label]) for label, rows in runs.items()})
    said = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    entitle(figure, title or f"{said}: loss and {judged_by.title} after each epoch")
    save(figure, path)


def _ceiling(axes: Axes) -> float:
    """The highest value drawn to scale: of all, unless early ones far above would press the others to the floor.

    Then it is the highest training loss, or of what the other curves are after their first third.
    """
    usual = highest = 0.0
    for line in axes.lines:
        values = line.get_ydata()
        late = values[0 if line.get_gid() == "train" else len(values) // 3 :]
        usual, highest = max(usual, *late), max(highest, *values)
    return highest if highest <= 2 * usual else usual


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis whose numbers are written out: 20, not 2 × 10¹."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_above(axes: Axes, top: float) -> None:
    """A triangle at the upper edge for each value above `top`."""
    for line in list(axes.lines):
        for x, y in line.get_xydata().tolist():
            if y > top:
                axes.plot(x, 0.98 * top, marker="^", color=line.get_color(), markersize=7)


def _end(rows: Sequence[Mapping[str, float]], judged_by: JudgedBy) -> float | None:
    """Where a run's most telling curve ends: the test figure's, else validation's, else training's."""
    for split in reversed(SPLITS):
        if values := [value for row in rows if (value := judged_by.of(row, split)) is not None]:
            return values[-1]
    return None


def _ending(label: str, rows: Sequence[Mapping[str, float]], judged_by: JudgedBy) -> str:
    """A run's name with its last figures, to stand beside its lines."""
    last = rows[-1] if rows else {}
    values = {split: value for split in SPLITS if (value := judged_by.of(last, split)) is not None}
    figures = [f"{split} {value:.1f}{judged_by.unit}" for split, value in values.items()]
    return plain("\n".join([*textwrap.wrap(label, NAME_WIDTH), *textwrap.wrap(", ".join(figures), NAME_WIDTH + 4)]))


def name_lines(axes: Axes, names: Mapping[str, tuple[float | None, str]]) -> None:
    """Names at the right of `axes`, in their colours, as high as their (value, colour) and none on another."""
    line = 0.18 / (axes.figure.get_figheight() - 1.2)  # height of one, where the axes are 1
    scale = axes.transScale + axes.transLimits

    def height(value: float | None) -> float:
        return 0.5 if value is None else float(scale.transform((1, value))[1])

    placed = sorted((height(value), name, colour) for name, (value, colour) in names.items())
    sizes = [line * (1.4 + name.count("\n")) for _, name, _ in placed]
    highest, middles = 1 + line, []
    for (middle, _, _), size in zip(reversed(placed), reversed(sizes), strict=True):  # from the top downwards
        middles.append(min(middle, highest - size / 2))
        highest = middles[-1] - size / 2
    lowest = -line
    for (_, name, colour), size, middle in zip(placed, sizes, reversed(middles), strict=True):  # and up again
        middle = max(middle, lowest + size / 2)
        lowest = middle + size / 2
        axes.text(1.03, middle, name, transform=axes.transAxes, color=colour, va="center", fontsize=9)


def sweep(
    runs: Sequence[tuple[float, Mapping[str, float]]], path: str | Path, judged_by: JudgedBy, option: str, title: str
) -> None:
    """The task's figure after the last epoch over an option's value.

    runs: (value, last row of `metrics.jsonl`) of each; several of one value are drawn with their mean.
    """
    figure = new_figure(7, 4.6)
    axes = figure.subplots()
    for split, colour, marker in zip(SPLITS, COLOURS, MARKERS, strict=False):
        found: dict[float, list[float]] = {}
        for value, row in runs:
            if (score := judged_by.of(row, split)) is not None:
                found.setdefault(value, []).append(score)
        if not found:
            continue
        places = sorted(found)
        means = [float(np.mean(found[value])) for value in places]
        axes.plot(places, means, color=colour, marker=marker, label=SPLITS[split])
        for value in places:
            axes.plot([value] * len(found[value]), found[value], marker, color=colour, markersize=3, alpha=0.5)
        if split == "test":
            for value, mean in zip(places, means, strict=True):
                text = axes.annotate(judged_by.shown(mean), (value, mean), (0, 7), textcoords="offset points")
                text.set(ha="center", fontsize=8, color=colour)
    axes.set(xlabel=option, ylabel=judged_by.axis, xticks=sorted({value for value, _ in runs}))
    axes.margins(0.1, 0.15)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    entitle(figure, title or f"{judged_by.title} after the last epoch, over {option}")
    save(figure, path)


def steps(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path, *, title: str = "") -> None:
    """The training loss of every step, of one run or of several: pale as it was, and the mean of the steps before.

    runs: label -> rows of `steps.jsonl`. The mean is over a fiftieth of the longest run. Of the pale lines, the highest
    hundredth may lie above the picture.
    """
    window = max(1, max(len(rows) for rows in runs.values()) // 50)
    figure = new_figure(9, 4.6)
    axes, top, highest = figure.subplots(), 0.0, 0.0
    for number, (label, rows) in enumerate(runs.items()):
        colour, dashes = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
        step, loss = (np.array([row[key] for row in rows], dtype=float) for key in ("step", "loss"))
        sums = np.cumsum(np.insert(loss, 0, 0))
        ends = np.arange(1, len(loss) + 1)
        starts = np.maximum(0, ends - window)
        axes.plot(step, loss, color=colour, alpha=0.25, linewidth=0.6, zorder=1)
        mean = (sums[ends] - sums[starts]) / (ends - starts)
        axes.plot(step, mean, color=colour, linestyle=dashes, linewidth=1.8, zorder=3, label=plain(label))
        top, highest = max(top, 1.1 * float(np.quantile(loss, 0.99))), max(highest, loss.max())
    axes.set(xlabel="step", ylabel="training loss", ylim=(0, top or 1))
    above = f", up to {highest:.3g} above this picture" if highest > top > 0 else ""
    axes.set_title(f"pale: every step{above}; line: mean of the last {window} steps", fontsize=9, loc="left")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    said = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    if len(runs) > 1:
        figure.legend(loc="outside lower left", ncols=1 if max(map(len, runs)) > 40 else 2, frameon=False)
    entitle(figure, title or f"{said}: training loss of every step")
    save(figure, path)


def comparison(rows: Mapping[str, Mapping[str, float]], path: str | Path, judged_by: JudgedBy, *, title: str) -> None:
    """Several networks side by side: rows are label -> the task's figure, parameters, macs.

    What is the same of all is not drawn, but said below the title.
    """
    panels = {
        judged_by.key: (judged_by.title, judged_by.shown),
        "parameters": ("parameters", lambda value: f"{value / 1e6:,.2f} M"),
        "macs": ("multiply-accumulates an image", lambda value: f"{value / 1e6:,.1f} M"),
    }
    same = [key for key in panels if key != judged_by.key and len({row[key] for row in rows.values()}) == 1]
    first = next(iter(rows.values()))
    said = [f"{panels[key][1](first[key])} {panels[key][0]}" for key in same]
    drawn = {key: panel for key, panel in panels.items() if key not in same}
    figure = new_figure(3.6 + 3 * len(drawn), 1.3 + 0.42 * len(rows))
    grid = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    place = range(len(rows))
    for axes, (key, (what, words)) in zip(grid, drawn.items(), strict=True):
        values = [row[key] for row in rows.values()]
        axes.barh(place, values, color=COLOURS[0] if key == judged_by.key else "0.6", height=0.7)
        for y, value in zip(place, values, strict=True):
            axes.text(value, y, f" {words(value)}", va="center", fontsize=9)
        axes.set_xlim(0, 1.4 * max(values) or 1)  # room for the numbers
        axes.set_title(what, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    grid[0].set_yticks(place, [plain(label) for label in rows])
    grid[0].invert_yaxis()
    entitle(figure, title + (f"\neach has {' and '.join(said)}" if said else ""))
    save(figure, path)


def depths(runs: Mapping[str, Sequence[tuple[int, Mapping[str, float]]]], path: str | Path, *, title: str) -> None:
    """Final training and test error over the number of layers (He et al., figure 6 and its plain twin).

    runs: label -> (layers, last row of `metrics.jsonl`) of each; several of one depth are drawn with their mean.
    """
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    names, every = {}, sorted({layers for points in runs.values() for layers, _ in points})
    for (label, points), colour, marker in zip(runs.items(), COLOURS, MARKERS, strict=False):
        for split, style in (("train", {"linestyle": "--", "markerfacecolor": "white"}), ("test", {})):
            found: dict[int, list[float]] = {}
            for layers, row in points:
                found.setdefault(layers, []).append(100 - row[f"{split}_accuracy"])
            means = {layers: float(np.mean(found[layers])) for layers in sorted(found)}
            axes.plot(list(means), list(means.values()), color=colour, marker=marker, **style)
            for layers, errors in found.items():
                if len(errors) > 1:
                    axes.plot([layers] * len(errors), errors, marker, color=colour, markersize=3, alpha=0.5)
        names[label] = (means[max(means)], colour)
    styles = (Line2D([], [], color="0.3", linestyle="--", label="training"), Line2D([], [], color="0.3", label="test"))
    axes.set(xlabel="layers", xticks=every, ylim=(0, None))
    axes.set_title("error (%)", loc="left", fontsize=10)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=styles)
    name_lines(axes, names)
    entitle(figure, title)
    save(figure, path)
