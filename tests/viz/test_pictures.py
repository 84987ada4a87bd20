import warnings

import numpy as np
import pytest
import torch
from helpers import check_legible

from resnet_min.errors import UserError
from resnet_min.viz import pictures


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_filters_of_an_rgb_layer(tmp_path, drawn):
    weight = torch.randn(10, 3, 3, 3)
    weight[3, 1, 0, 2] = -5.0
    weight[7] = 0
    assert pictures.filters(weight, tmp_path / "f.png", layer="conv1") == ""
    *signed, fused, bar = (axes for axes in drawn[0].axes)
    fused, bar = (fused, bar) if fused.get_title().startswith("as RGB") else (bar, fused)
    assert [axes.get_title() for axes in signed] == ["red channel", "green channel", "blue channel"]
    for axes in signed:
        assert axes.images[0].get_clim() == (-5, 5)
    zoom, pitch = 8, 3 * 8 + pictures.GAP
    top, left = pictures.GAP, pictures.GAP + 3 * pitch  # filter 3 of 4 columns
    green = np.asarray(signed[1].images[0].get_array())
    np.testing.assert_allclose(green[top, left : left + 3 * zoom : zoom], weight[3, 1, 0])
    colours = np.asarray(fused.images[0].get_array())
    assert colours[top, left + 2 * zoom, 1] == 0  # the most negative weight of its filter
    np.testing.assert_allclose(colours[top, left + 2 * zoom], 0.5 + weight[3, :, 0, 2] / 10, rtol=1e-6)
    assert (colours[pictures.GAP + pitch, pictures.GAP + 3 * pitch] == 0.5).all()  # a filter of zeros is grey
    first = colours[pictures.GAP : pictures.GAP + 3 * zoom, pictures.GAP : pictures.GAP + 3 * zoom]
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
    assert pictures.filters(np.random.default_rng(0).normal(size=shape), tmp_path / "f.png", layer="layer1.0") == cut
    assert cut in drawn[0].get_suptitle()
    check_legible(drawn[0], tmp_path / "f.png")


def test_filters_refuse_another_weight(tmp_path):
    with pytest.raises(UserError, match="fc has no filters"):
        pictures.filters(torch.zeros(10, 64), tmp_path / "f.png", layer="fc")


@pytest.mark.parametrize("columns, rows", [(1, 1), (3, 1), (8, 4)])
def test_panels(tmp_path, drawn, columns, rows):
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    panel = pictures.Panel(image, "automobile →\n_auto$mobile$ 100%", box=(0, 5, 32, 40), heat=np.eye(4))
    grid = [[panel] * columns] * (rows - 1) + [[panel, pictures.BLANK][:columns]]
    labels = [f"layer{row}.0.conv2\n512 × 4 × 4" for row in range(rows)]
    pictures.panels(grid, tmp_path / "p.png", title="cat.jpg, predicted cat (52.1%)", labels=labels, note="a note")
    first = drawn[0].axes[0]
    assert first.images[1].get_array().max() == 1 and first.images[1].get_extent() == [0, 40, 32, 0]
    left, top, width, height = first.patches[0].get_bbox().bounds
    assert 5 < left < 6 and 0 < top < 1 and 39 < left + width < 40 and 31 < top + height < 32  # inside the image
    assert drawn[0].axes[-1].get_ylabel() == "% of the map's peak"
    check_legible(drawn[0], tmp_path / "p.png", most_bytes=600_000)


@pytest.mark.parametrize("count, side, signed", [(1, 32, False), (16, 32, True), (64, 4, False), (512, 4, False)])
def test_a_mosaic_of_maps(tmp_path, drawn, count, side, signed):
    maps = np.random.default_rng(0).normal(size=(count, side, side + 1))
    maps = maps if signed else np.abs(maps)
    numbers, scale = [3 * number for number in range(count)], pictures.scale_of(maps)
    pictures.mosaic(
        np.zeros((32, 32, 3)), pictures.coloured(maps, scale), tmp_path / "f.png", title="cat, predicted cat (9%)\nf",
        numbers=numbers, scale=scale, label="activation", circled=count - 1,
    )  # fmt: skip
    limit = np.abs(maps).max()
    assert scale.get_clim() == (-limit if signed else 0, limit) and drawn[0].axes[2].get_ylabel() == "activation"
    tiles = drawn[0].axes[1]
    assert [text.get_text() for text in tiles.texts] == [str(number) for number in numbers if count > 1]
    if count > 1:
        (circle,) = tiles.patches
        x, y = circle.center
        height, width = tiles.images[0].get_array().shape[:2]
        assert width * 0.9 < x + circle.width / 2 < width and height * 0.9 < y + circle.height / 2 < height
        shown = tiles.images[0].get_array()[int(y), int(x)]
        middle = pictures.coloured(maps[-1], scale)[side // 2, (side + 1) // 2]
        np.testing.assert_allclose(shown, middle)
    check_legible(drawn[0], tmp_path / "f.png", most_bytes=1_500_000)


def test_maps_and_projections_as_colours():
    grey = pictures.centred(np.zeros((3, 4, 5)))
    assert grey.shape == (4, 5, 3) and (grey == 0.5).all()
    signal = np.zeros((3, 4, 4))
    signal[:, 0, 0] = 2, -2, 1
    assert pictures.centred(signal)[0, 0].tolist() == [1, 0, 0.75]

    def shown(*values, **how):
        return pictures.coloured(np.array([values]), pictures.scale_of(np.array(values), **how))[0]

    low, high = shown(0.0, 7.0)
    assert low.sum() < 0.8 < high.sum()
    minus, zero, plus = shown(-7.0, 0.0, 7.0)
    assert minus[2] > minus[0] and plus[0] > plus[2] and zero.min() > 0.9
    np.testing.assert_allclose(shown(0.0, 7.0, grey=True), [[0] * 3, [1] * 3])
    assert shown(0.0, 0.0).shape == (2, 3)


@pytest.mark.parametrize("width, lines", [(20, 1), (6, 2)])
def test_a_title_is_no_wider_than_its_picture(tmp_path, drawn, width, lines):
    from resnet_min.viz import figures

    figure = figures.new_figure(width, 2)
    figures.entitle(figure, "resnet20 (resnet20-cifar10-1): test image 3421 (automobile): predicted automobile (84.7%)")
    figures.save(figure, tmp_path / "t.png")
    assert figure.get_suptitle().count("\n") == lines - 1
    check_legible(figure, tmp_path / "t.png")
