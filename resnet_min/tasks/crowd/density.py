"""Density maps of a crowd: each head a Gaussian that sums to one inside the image, so that a map sums to the count.

    F(x) = sum over heads i of G(x - x_i; sigma_i),  sigma_i = beta * mean distance to the k nearest heads

(Zhang et al., "Single-Image Crowd Counting via Multi-Column Convolutional Neural Network", CVPR 2016). A Gaussian is a
profile along x times one along y, so the map of n heads is one matrix product, [h, n] by [n, w]: nothing is cut off, a
crop takes a slice of the profiles, and a coarser map sums them cell by cell.

Points are (x, y) in pixels from the image's top left corner; the pixel in row i and column j covers [i, i + 1) and
[j, j + 1), so mirroring an image takes x to width - x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, BETA = 3, 0.3  # of the geometry-adaptive widths, the values of Zhang et al.
ALONE = 15.0  # pixels: the width for the only head of an image, which has no neighbour
NARROWEST = 1.0  # pixels: for heads at one place; narrower ones would fall between the pixels' centres


def head_widths(points: Tensor, sigma: float | None = None) -> Tensor:
    """Standard deviation of each head's Gaussian in pixels, float32 [n], for the heads of an image, `points` [n, 2].

    sigma: the same for all; None: geometry-adaptive, and then from the neighbours there are where those are fewer than
    3, 15 pixels for a head alone, and never less than 1. points are on the CPU.
    """
    if sigma is not None:
        return torch.full((len(points),), float(sigma))
    neighbours = min(NEIGHBOURS, len(points) - 1)
    if neighbours < 1:
        return torch.full((len(points),), ALONE)
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(points).query(points, k=neighbours + 1)  # the first is the head itself, or one at its place
    return torch.from_numpy(BETA * distances[:, 1:].mean(1)).float().clamp(min=NARROWEST)


def draw(
    points: Tensor,
    widths: Tensor,
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
    stride: int = 1,
) -> Tensor:
    """The density map of `window` = (top, left, height, width) in an image of `size` = (height, width).

    points float32 [n, 2] inside the image; widths float32 [n], in pixels, at least about .2; window: the whole image.
    Returns float32 [ceil(height / stride), ceil(width / stride)]: a cell is the sum of stride × stride pixels.
    Equivalent to drawing the whole image, cutting the window out and sum-pooling it.
    """
    top, left, height, width = window or (0, 0, *size)
    rows = _profiles(points[:, 1], widths, size[0])[:, top : top + height]
    columns = _profiles(points[:, 0], widths, size[1])[:, left : left + width]
    return _cells(rows, stride).T @ _cells(columns, stride)


def _profiles(centres: Tensor, widths: Tensor, length: int) -> Tensor:
    """[n] -> [n, length]: each a Gaussian at the pixels' centres that sums to one over the image's whole length."""
    pixels = torch.arange(length, device=centres.device) + 0.5
    profiles = (((pixels - centres[:, None]) / widths[:, None]) ** 2 / -2).exp_()
    return profiles.div_(profiles.sum(1, keepdim=True))


def _cells(profiles: Tensor, stride: int) -> Tensor:
    """Sums of `stride` neighbours, [n, length] -> [n, ceil(length / stride)]."""
    length = profiles.shape[1]
    cells = -(-length // stride)
    return F.pad(profiles, (0, cells * stride - length)).view(len(profiles), cells, stride).sum(2)
