import warnings

import numpy as np
import pytest
import torch
from conftest import check_legible

from resnet_min import pictures
from resnet_min.errors import UserError


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


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_grid_of_images(tmp_path, drawn, count):
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    captions = ["automobile, not\nautomobile 100%"] * (count - 1) + ["_a name, not\n$x$ 3%"]
    pictures.images(images, captions, tmp_path / "i.png", title="the mistakes it was most confident of")
    assert sum(len(axes.images) for axes in drawn[0].axes) == count
    check_legible(drawn[0], tmp_path / "i.png", most_bytes=1_200_000)
