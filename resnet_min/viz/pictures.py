"""Pictures of networks and images: filters of a layer, images with what was made of them. Each writes one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.patheffects import withStroke

from ..errors import UserError
from . import figures

MOST_FILTERS, MOST_INPUTS = 64, 4  # of one picture; RGB is 3
HEAT = "inferno"  # the colours of what is laid over an image
GAP = 2  # pixels of a mosaic between two filters


def filters(weight: Any, path: str | Path, *, layer: str, title: str = "") -> str:
    """The filters of one convolution, and what was left out of the picture ("" for nothing).

    weight: float [outputs, inputs, kh, kw], an array or a CPU tensor. Each panel shows one input channel of every
    filter, in colours symmetric about zero with one scale for all panels; with three inputs a further panel shows them
    fused as RGB. A filter's number is its row's label plus its column's. title: "" for one that says what is drawn.
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
    said = f"{layer}: {outputs} filters of {inputs}×{height}×{width}" + (f" (shown: {cut})" if cut else "")
    figures.entitle(figure, title or said)
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
    """A grid of pictures, row by row. labels: at the left of each row; note: below all, what the pictures show.

    Where there is heat, a bar says what its colours mean.
    """
    columns = max(len(row) for row in rows)
    lines = 1 + max(panel.caption.count("\n") for row in rows for panel in row)
    across = 1.5 * columns + 0.09 * max((len(line) for label in labels for line in label.split("\n")), default=0)
    heights = [
        1.5 * max(panel.picture.shape[0] / panel.picture.shape[1] for panel in row) + 0.16 * lines for row in rows
    ]
    figure = figures.new_figure(max(5.5, across), sum(heights) + 0.9)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
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
                axes.imshow(panel.heat / top, HEAT, Normalize(0, 1), alpha=0.6, **smooth)
    for label, line in zip(labels, grid, strict=False):
        line[0].set_ylabel(figures.plain(label), rotation=0, ha="right", va="center", fontsize=9)
    if any(panel.heat is not None for row in rows for panel in row):
        colours = ScalarMappable(Normalize(0, 100), HEAT)
        bar = figure.colorbar(colours, ax=grid[:, -1:], ticks=(0, 50, 100), shrink=0.8, aspect=18, fraction=0.08)
        bar.set_label("% of the map's peak", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    figures.entitle(figure, title)
    if note:
        figure.supxlabel(figures.plain(note), fontsize=8)
    figures.save(figure, path)


def _mark(axes: Axes, box: tuple[int, int, int, int]) -> None:
    """A rectangle, white on black, so that it shows on any picture, inside which its lines lie."""
    top, left, bottom, right = box
    inset = 0.015 * abs(axes.get_ylim()[0] - axes.get_ylim()[1])
    for colour, width in (("black", 2.8), ("white", 1.2)):
        corner, width_, height = (left + inset, top + inset), right - left - 2 * inset, bottom - top - 2 * inset
        axes.add_patch(Rectangle(corner, width_, height, fill=False, color=colour, linewidth=width))


def centred(values: Any) -> np.ndarray:
    """A signal [3, H, W] as RGB: grey is zero; its scale is its own, from the highest of all but 0.5% of magnitudes."""
    values = np.moveaxis(np.asarray(values, dtype=np.float64), 0, -1)
    scale = np.quantile(np.abs(values), 0.995) or np.abs(values).max()
    return np.clip(0.5 + 0.5 * values / (scale or 1), 0, 1)


def scale_of(values: Any, grey: bool = False) -> ScalarMappable:
    """Colours for maps: symmetric about zero where some are negative, otherwise from dark (zero) to light."""
    values = np.asarray(values)
    limit, signed = float(np.abs(values).max()) or 1.0, bool(values.min() < 0)
    colours = "gray" if grey else "RdBu_r" if signed else "viridis"
    return ScalarMappable(Normalize(-limit if signed else 0, limit), colours)


def coloured(values: Any, scale: ScalarMappable) -> np.ndarray:
    """Maps [..., h, w] as RGB [..., h, w, 3] in a scale."""
    return colormaps[scale.get_cmap().name](scale.norm(np.asarray(values)))[..., :3]


def mosaic(
    image: Any,
    tiles: Any,
    path: str | Path,
    *,
    title: str,
    numbers: Sequence[int],
    scale: ScalarMappable | None = None,
    label: str = "",
    circled: int | None = None,
    note: str = "",
) -> None:
    """An image and beside it what a layer makes of it, as one grid of tiles, each under its number.

    image: RGB [H, W, 3]; tiles: RGB 0 to 1 [N, h, w, 3], of the channels called `numbers`. scale: what their colours
    mean, drawn as a bar with `label`. circled: the place of the tile that a red circle points out.
    """
    tiles = np.asarray(tiles, dtype=np.float64)
    side = math.ceil(math.sqrt(len(tiles)))
    columns = next((c for c in range(side, 2 * side) if len(tiles) % c == 0), side)  # full rows, where there are any
    rows = math.ceil(len(tiles) / columns)
    many = len(tiles) > 100
    tall = max(3.2, (0.5 if many else 0.85) * rows)
    figure = figures.new_figure(2.8 + tall * columns / rows + 1.2, tall + 0.9)
    left, right = figure.subplots(1, 2, width_ratios=(2.6, tall * columns / rows))
    left.imshow(np.asarray(image))
    left.set_title("image", fontsize=9)
    right.imshow(np.nan_to_num(np.stack([_mosaic(part, columns) for part in np.moveaxis(tiles, 3, 0)], 2), nan=1.0))
    pitch_y, pitch_x = (_zoom(tiles[0, ..., 0][None]) * side + GAP for side in tiles.shape[1:3])
    for place, number in enumerate(numbers if len(numbers) > 1 else ()):
        y, x = GAP + pitch_y * (place // columns), GAP + pitch_x * (place % columns)
        style = {"ha": "left", "va": "top", "fontsize": 4 if many else 6, "color": "white"}
        text = right.text(x + 0.03 * pitch_x, y + 0.04 * pitch_y, number, **style)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
        text.set_in_layout(False)
        if place == circled:
            middle = (x + (pitch_x - GAP) / 2, y + (pitch_y - GAP) / 2)
            size = (pitch_x - GAP, pitch_y - GAP)
            right.add_patch(Ellipse(middle, *size, fill=False, color="red", linewidth=2, zorder=3))
    if scale is not None:
        figure.colorbar(scale, ax=right, label=label, aspect=30, shrink=0.8)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figures.entitle(figure, title)
    if note:
        figure.supxlabel(figures.plain(note), fontsize=8)
    figures.save(figure, path)
