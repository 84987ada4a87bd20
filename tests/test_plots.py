import warnings

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from resnet_min import plots
from resnet_min.errors import UserError


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in order."""
    figures, save = [], plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def check_legible(figure, path, most_bytes=400_000):
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


def rows(epochs, val=False, level=0.0):
    made = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train_loss": 2 / epoch + level, "train_accuracy": 90 - 60 / epoch - 9 * level}
        for split in ["val"] * val + ["test"] * (not val or epoch == epochs):
            row |= {f"{split}_loss": 2.2 / epoch + level, f"{split}_accuracy": 85 - 60 / epoch - 9 * level}
        made.append(row)
    return made


def test_curves_of_two_runs_share_a_colour_within_a_run(tmp_path, drawn):
    plots.curves({"resnet18": rows(30), "resnet18-plain": rows(30, level=0.5)}, tmp_path / "curves.png")
    loss, accuracy = drawn[0].axes
    for axes in (loss, accuracy):
        lines = [(to_hex(line.get_color()).upper(), line.get_linestyle()) for line in axes.lines]
        first, second = plots.COLOURS[:2]
        assert lines == [(first, "--"), (first, "-"), (second, "--"), (second, "-")]
    assert accuracy.lines[1].get_ydata()[-1] == pytest.approx(83)
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["resnet18: train 88.0%, test 83.0%", "resnet18-plain: train 83.5%, test 78.5%"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "test"]
    check_legible(drawn[0], tmp_path / "curves.png")


@pytest.mark.parametrize(
    "runs",
    [
        {"validated": rows(12, val=True)},
        {"one-epoch": rows(1)},
        {f"run-{i}": rows(40, level=i / 10) for i in range(9)},
        {"a-run-with-a-very-long-name-because-every-option-is-in-it-" + str(i): rows(3) for i in range(3)},
        {"high-loss": [{**row, "train_loss": 900 * row["train_loss"]} for row in rows(5)]},
        {"training only": [{"epoch": 1, "train_loss": 1.0, "train_accuracy": 50.0}], "_$odd$name$": rows(4)},
    ],
    ids=lambda runs: next(iter(runs)).strip("_$"),
)
def test_curves_are_legible(tmp_path, drawn, runs):
    plots.curves(runs, tmp_path / "curves.png")
    check_legible(drawn[0], tmp_path / "curves.png")
    assert len(drawn[0].legends[0].get_texts()) == len(runs)


def test_a_test_set_looked_at_once_is_a_star(tmp_path, drawn):
    plots.curves({"run": rows(12, val=True)}, tmp_path / "curves.png")
    star = drawn[0].axes[1].lines[2]
    assert (star.get_marker(), list(star.get_xdata())) == ("*", [12])


def test_filters_of_an_rgb_layer(tmp_path, drawn):
    weight = torch.randn(10, 3, 3, 3)
    weight[3, 1, 0, 2] = -5.0
    weight[7] = 0
    assert plots.filters(weight, tmp_path / "f.png", layer="conv1") == ""
    *signed, fused, bar = (axes for axes in drawn[0].axes)
    fused, bar = (fused, bar) if fused.get_title().startswith("as RGB") else (bar, fused)
    assert [axes.get_title() for axes in signed] == ["red channel", "green channel", "blue channel"]
    for axes in signed:
        assert axes.images[0].get_clim() == (-5, 5)
    zoom, pitch = 8, 3 * 8 + plots.GAP
    top, left = plots.GAP, plots.GAP + 3 * pitch  # filter 3 of 4 columns
    green = np.asarray(signed[1].images[0].get_array())
    np.testing.assert_allclose(green[top, left : left + 3 * zoom : zoom], weight[3, 1, 0])
    colours = np.asarray(fused.images[0].get_array())
    assert colours[top, left + 2 * zoom, 1] == 0  # the most negative weight of its filter
    np.testing.assert_allclose(colours[top, left + 2 * zoom], 0.5 + weight[3, :, 0, 2] / 10, rtol=1e-6)
    assert (colours[plots.GAP + pitch, plots.GAP + 3 * pitch] == 0.5).all()  # a filter of zeros is grey
    first = colours[plots.GAP : plots.GAP + 3 * zoom, plots.GAP : plots.GAP + 3 * zoom]
    assert np.abs(first - 0.5).max() == 0.5  # each filter has its own scale
    assert "each filter\nscaled by its own largest weight" in fused.get_title()
    assert bar.get_ylabel() == "weight"
    check_legible(drawn[0], tmp_path / "f.png")


@pytest.mark.parametrize(
    "shape, cut",
    [
        ((64, 3, 7, 7), ""),
        ((16, 4, 3, 3), ""),
        ((100, 5, 1, 1), "the first 64 of 100 filters and the first 4 of 5 input channels"),
        ((8, 32, 3, 3), "the first 4 of 32 input channels"),
        ((1, 1, 5, 3), ""),
    ],
)
def test_filters_of_any_size_say_what_was_cut(tmp_path, drawn, shape, cut):
    assert plots.filters(np.random.default_rng(0).normal(size=shape), tmp_path / "f.png", layer="layer1.0") == cut
    assert cut in drawn[0].get_suptitle()
    check_legible(drawn[0], tmp_path / "f.png")


def test_filters_refuse_another_weight(tmp_path):
    with pytest.raises(UserError, match="fc has no filters"):
        plots.filters(torch.zeros(10, 64), tmp_path / "f.png", layer="fc")


@pytest.mark.parametrize("classes", [2, 10, 25, 100])
def test_confusion(tmp_path, drawn, classes):
    matrix = np.random.default_rng(0).integers(0, 30, (classes, classes)) + 900 * np.eye(classes, dtype=int)
    matrix[1] = 0  # absent
    names = [f"class {c}{' of a very long name' * (c == 0)}" for c in range(classes)]
    plots.confusion(matrix, names, tmp_path / "c.png", title="resnet20 on $5 bills")
    left, right = drawn[0].axes[:2]
    assert (left.images[0].get_array() == matrix).all()
    shares = right.images[0].get_array()
    assert shares.mask[1].all() and not shares.mask[0].any()
    np.testing.assert_allclose(shares[0].sum(), 100)
    numbers = [[text.get_text() for text in axes.texts] for axes in (left, right)]
    if classes <= 25:
        assert numbers[0][:2] == [f"{matrix[0, 0]:,}", f"{matrix[0, 1]}"]
        assert numbers[1][classes : 2 * classes] == ["–"] * classes
    else:
        assert numbers == [[], []]
    check_legible(drawn[0], tmp_path / "c.png", most_bytes=600_000)


def test_pictures_are_written_by_their_suffix(tmp_path):
    plots.confusion([[1, 0], [0, 1]], "ab", tmp_path / "new" / "c.svg", title="")
    assert "<svg" in (tmp_path / "new" / "c.svg").read_text()
    plots.confusion([[1, 0], [0, 1]], "ab", tmp_path / "plain", title="")
    assert (tmp_path / "plain").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"\.png, \.pdf or \.svg"):
        plots.confusion([[1, 0], [0, 1]], "ab", tmp_path / "c.doc", title="")
    assert not (tmp_path / "c.doc").exists()
