"""Pictures of crowds: density maps beside their images, and over one. Each function writes one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from ...viz import figures
from .density import draw, head_widths
from .reader import Split


def maps(
    split: Split, predicted: Sequence[Tensor], stride: int, sigma: float | None, path: str | Path, *, title: str
) -> None:
    """A row for each image of `split`: the image with its heads, its true and its predicted density in one scale.

    predicted: float [h, w] each, in cells of stride × stride pixels. sigma: see `density.head_widths`.
    """
    heights = [3.6 * image.shape[0] / image.shape[1] + 0.3 for image in split.images]
    figure = figures.new_figure(11.4, sum(heights) + 0.5)
    grid = figure.subplots(len(split), 3, squeeze=False, height_ratios=heights)
    for row, image, points, name, density in zip(grid, split.images, split.points, split.names, predicted, strict=True):
        true = draw(points, head_widths(points, sigma), tuple(image.shape[:2]), stride=stride)
        row[0].imshow(image.numpy())
        mark(row[0], points)
        row[0].set_title(figures.plain(f"{name}: {len(points)} heads"), fontsize=9)
        scale = Normalize(0, max(true.max().item(), 1e-9))
        for axes, what, shown in ((row[1], "true", true), (row[2], "predicted", density)):
            axes.imshow(shown.numpy(), "magma", scale)
            axes.set_title(f"{what} density: {shown.sum():.1f}", fontsize=9)
    for axes in grid.ravel():
        axes.set_axis_off()
    figure.suptitle(figures.plain(title), fontsize=11)
    figures.save(figure, path)


def overlay(
    image: Tensor, density: Tensor, stride: int, points: Tensor | None, path: str | Path, *, title: str
) -> None:
    """A density map over its image, more opaque where it is denser; true heads as crosses where they are known.

    image: uint8 [H, W, 3]; density: float [h, w], in cells of stride × stride pixels; points: [n, 2], see `density`.
    """
    height, width = image.shape[:2]
    rate = density.numpy() * 1000 / stride**2  # heads in 1,000 pixels, whatever the stride
    scale = Normalize(0, max(rate.max(), 1e-9), clip=True)
    figure = figures.new_figure(9, 9 * height / width + 0.5)
    axes = figure.subplots()
    axes.imshow(image.numpy().mean(2), "gray", Normalize(0, 255), extent=(0, width, height, 0))
    edges = (0, stride * density.shape[1], stride * density.shape[0], 0)
    layer = axes.imshow(rate, "inferno", scale, extent=edges, alpha=np.sqrt(scale(rate).filled()))
    figure.colorbar(layer, ax=axes, label="predicted heads in 1,000 pixels", shrink=0.8)
    if points is not None:
        mark(axes, points)
    axes.set(xlim=(0, width), ylim=(height, 0), title=figures.plain(title))
    axes.set_axis_off()
    figures.save(figure, path)


def mark(axes: Axes, points: Tensor) -> None:
    """A small cross at each head."""
    axes.plot(*points.numpy().T, "+", color="#56B4E9", markersize=4, markeredgewidth=0.7)
