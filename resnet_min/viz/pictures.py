"""Pictures of networks and images: filters of a layer, images with what was made of them. Each writes one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..errors import UserError
from . import figures

MOST_FILTERS, MOST_INPUTS = 64, 4  # of one picture; RGB is 3
GAP = 2  # pixels of a mosaic between two filters


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
    figure = figures.new_figure(panels * size + 1.1, size * rows / columns * height / width + 1.1)
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
    figures.save(figure, path)
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


class Panel(NamedTuple):
    """One picture of a grid: RGB [H, W, 3], uint8 or float 0 to 1, a caption of one or two lines, marks in pixels."""

    picture: np.ndarray
    caption: str = ""
    box: tuple[int, int, int, int] | None = None  # (top, left, bottom, right), the last two exclusive
    heat: np.ndarray | None = None  # [h, w], not negative: laid over the picture, brightest where it is highest


BLANK = Panel(np.ones((1, 1, 3)))


def panels(
    rows: Sequence[Sequence[Panel]], path: str | Path, *, title: str, labels: Sequence[str] = (), note: str = ""
) -> None:
    """A grid of pictures, row by row. labels: at the left of each row; note: below all, what the pictures show."""
    columns = max(len(row) for row in rows)
    lines = 1 + max(panel.caption.count("\n") for row in rows for panel in row)
    across = 1.5 * columns + 0.09 * max(map(len, labels), default=0)
    figure = figures.new_figure(max(5.5, across), (1.5 + 0.16 * lines) * len(rows) + 0.9)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for panel, axes in zip(row, line, strict=False):
            height, width = panel.picture.shape[:2]
            axes.imshow(panel.picture, extent=(0, width, height, 0))
            axes.set_title(figures.plain(panel.caption), fontsize=8)
            if panel.box is not None:
                _mark(axes, panel.box)
            if panel.heat is not None:
                top = panel.heat.max() or 1
                smooth = {"extent": (0, width, height, 0), "interpolation": "bilinear"}
                axes.imshow(panel.heat / top, "inferno", Normalize(0, 1), alpha=0.6, **smooth)
    for label, line in zip(labels, grid, strict=False):
        line[0].set_ylabel(figures.plain(label), rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(figures.plain(title), fontsize=11)
    if note:
        figure.supxlabel(figures.plain(note), fontsize=8)
    figures.save(figure, path)


def _mark(axes: Axes, box: tuple[int, int, int, int]) -> None:
    """A rectangle, white on black, so that it shows on any picture."""
    top, left, bottom, right = box
    for colour, width in (("black", 2.8), ("white", 1.2)):
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=width, clip_on=False)
        )


def centred(values: Any) -> np.ndarray:
    """A signal [3, H, W] as RGB: grey is zero; its scale is its own, from the highest of all but 0.5% of magnitudes."""
    values = np.moveaxis(np.asarray(values, dtype=np.float64), 0, -1)
    scale = np.quantile(np.abs(values), 0.995) or np.abs(values).max()
    return np.clip(0.5 + 0.5 * values / (scale or 1), 0, 1)


def coloured(values: Any, limit: float, signed: bool) -> np.ndarray:
    """A map [h, w] as RGB, with `limit` the end of the scale: red and blue about zero, or from dark to light."""
    colours = colormaps["RdBu_r" if signed else "viridis"]
    return colours(Normalize(-limit if signed else 0, limit or 1)(np.asarray(values)))[..., :3]


def features(image: Any, maps: Any, path: str | Path, *, title: str, numbers: Sequence[int]) -> None:
    """An image and the maps that a layer makes of it, as one grid with one scale.

    image: RGB [H, W, 3]; maps: float [N, h, w], the channels called `numbers`. Maps with negative values are in
    colours symmetric about zero, others from dark (zero) to light.
    """
    maps = np.asarray(maps, dtype=np.float64)
    limit, signed = float(np.abs(maps).max()) or 1.0, bool(maps.min() < 0)
    columns = min(len(maps), math.ceil(math.sqrt(1.3 * len(maps))))
    rows = math.ceil(len(maps) / columns)
    tall = max(3.2, 0.85 * rows)
    figure = figures.new_figure(2.8 + tall * columns / rows + 1.2, tall + 0.8)
    left, right = figure.subplots(1, 2, width_ratios=(2.6, tall * columns / rows))
    left.imshow(np.asarray(image))
    pitch_y, pitch_x = (_zoom(maps) * side + GAP for side in maps.shape[1:])
    colours = ("RdBu_r", Normalize(-limit, limit)) if signed else ("viridis", Normalize(0, limit))
    picture = right.imshow(_mosaic(maps, columns), *colours)
    right.set_facecolor("0.8" if signed else "white")
    for place, number in enumerate(numbers if len(numbers) > 1 else ()):
        y, x = GAP + pitch_y * (place // columns), GAP + pitch_x * (place % columns)
        text = right.text(
            x + 0.03 * pitch_x, y + 0.04 * pitch_y, number, ha="left", va="top", fontsize=6, color="white"
        )
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    figure.colorbar(picture, ax=right, label="activation", aspect=30, shrink=0.8)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.suptitle(figures.plain(title), fontsize=11)
    figures.save(figure, path)
