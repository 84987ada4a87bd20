"""Pictures of crowds: density maps beside their images, and over one. Each function writes one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from torch import Tensor

from ...viz import figures
from .density import draw, head_widths
from .reader import Split


def maps(
    split: Split, predicted: Sequence[Tensor], stride: int, sigma: float | None, path: str | Path, *, title: str
) -> None:
    """A row for each image of `split`: the image with its heads, its true and its predicted density in one scale.

    predicted: float [h, w] each, in cells of stride × stride pixels. sigma: see `density.head_widths`. The scale is the
    same for all rows, heads in 1,000 pixels; colours are by the root, so that few heads show beside many.
    """
    per_1000 = 1000 / stride**2
    true = [
        draw(points, head_widths(points, sigma), tuple(image.shape[:2]), stride=stride)
        for image, points in zip(split.images, split.points, strict=True)
    ]
    scale = PowerNorm(0.5, 0, max(per_1000 * float(density.max()) for density in (*true, *predicted)) or 1)
    heights = [image.shape[0] / image.shape[1] for image in split.images]
    figure = figures.new_figure(11.4, sum(3.35 * height + 0.3 for height in heights) + 0.75)
    grid = figure.subplots(len(split), 3, squeeze=False, height_ratios=heights)
    rows = zip(grid, split.images, split.points, split.names, true, predicted, strict=True)
    for row, image, points, name, *densities in rows:
        height, width = image.shape[:2]
        row[0].imshow(image.numpy())
        mark(row[0], points)
        row[0].set_title(figures.plain(f"{name}: {len(points)} heads"), fontsize=9)
        for axes, what, shown in zip(row[1:], ("true", "predicted"), densities, strict=True):
            edges = (0, stride * shown.shape[1], stride * shown.shape[0], 0)
            layer = axes.imshow(per_1000 * shown.numpy(), "magma", scale, extent=edges)
            axes.set_title(f"{what} density: {shown.sum():.1f} heads", fontsize=9)
        for axes in row:  # whatever is annotated or predicted beyond the image
            axes.set(xlim=(0, width), ylim=(height, 0))
            axes.set_axis_off()
    figure.colorbar(layer, ax=grid[:, 2], label="heads in 1,000 pixels", shrink=0.8, aspect=30)
    figure.legend(handles=grid[0, 0].lines, loc="outside lower left", frameon=False, fontsize=8)
    figures.entitle(figure, title)
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
    figure = figures.new_figure(9, 7.6 * height / width + 0.8)
    axes = figure.subplots()
    axes.imshow(image.numpy().mean(2), "gray", Normalize(0, 255), extent=(0, width, height, 0))
    edges = (0, stride * density.shape[1], stride * density.shape[0], 0)
    layer = axes.imshow(rate, "inferno", scale, extent=edges, alpha=np.sqrt(scale(rate).filled()))
    figure.colorbar(layer, ax=axes, label="predicted heads in 1,000 pixels", shrink=0.8)
    if points is not None:
        mark(axes, points)
        figure.legend(handles=axes.lines, loc="outside lower left", frameon=False, fontsize=8)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    figures.entitle(figure, title)
    figures.save(figure, path)


def mark(axes: Axes, points: Tensor) -> None:
    """A small cross at each head."""
    axes.plot(*points.numpy().T, "+", color="#56B4E9", markersize=5, markeredgewidth=0.8, label="a head, as annotated")
