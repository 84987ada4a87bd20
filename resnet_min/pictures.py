"""Pictures of networks and images: filters of a layer, images with what was made of them. Each writes one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from . import plots
from .errors import UserError

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
    figure = plots.new_figure(panels * size + 1.1, size * rows / columns * height / width + 1.1)
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
    plots.save(figure, path)
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


def images(pictures: Any, captions: Sequence[str], path: str | Path, *, title: str) -> None:
    """A grid of images, each with a caption of one or two lines. pictures: uint8 [N, H, W, 3], N at least 1."""
    columns = min(len(pictures), max(4, math.ceil(math.sqrt(1.5 * len(pictures)))))
    rows = math.ceil(len(pictures) / columns)
    figure = plots.new_figure(max(5, 1.6 * columns), 2 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, picture, caption in zip(grid, np.asarray(pictures), captions, strict=False):
        axes.imshow(picture)
        axes.set_title(plots.plain(caption), fontsize=8)
    for axes in grid:
        bare(axes)
    figure.suptitle(plots.plain(title), fontsize=11)
    plots.save(figure, path)


def bare(axes: Axes) -> None:
    """Leave only what is inside the axes, and their title."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
