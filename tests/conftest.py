"""What several test files share: the devices to test on, the same seed, and how to look at pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

settings.register_profile("same", derandomize=True)  # a run tests what the one before it did
settings.load_profile("same")

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same weights and images in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.device(request.param)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that were drawn, in order."""
    from resnet_min import plots

    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def check_legible(figure: Figure, path: Path, most_bytes: int = 400_000) -> None:
    """Every text is inside the picture and on no other text (slanted ones are not compared); the file is small."""
    with Image.open(path) as image:
        size = np.array(image.size)
    beyond = set()  # the labels of ticks beyond an axis' limits are never drawn
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in beyond]
    boxes = np.array([text.get_window_extent().get_points() for text in texts])  # [N, low or high, x or y]
    names = [text.get_text() for text in texts]
    assert names
    outside = [names[i] for i in np.flatnonzero((boxes[:, 0] < -1).any(1) | (boxes[:, 1] > size + 1).any(1))]
    assert not outside
    level = np.array([text.get_rotation() in (0, 90) for text in texts])
    low, high = boxes[level, 0] + 1, boxes[level, 1] - 1
    on = (low[:, None] < high[None]).all(2) & (low[None] < high[:, None]).all(2)
    names = [name for name, is_level in zip(names, level, strict=True) if is_level]
    assert not [(names[i], names[j]) for i, j in zip(*np.nonzero(np.triu(on, 1)), strict=True)]
    assert path.stat().st_size < most_bytes
