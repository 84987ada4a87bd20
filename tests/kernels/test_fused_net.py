"""fused_net: values against float64, its checks, what it keeps between calls, and what it is as an operator."""

import gc
import itertools
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_min import ops, reference
from resnet_min.inference.fuse import fuse
from resnet_min.kernels import backend as kernels
from resnet_min.kernels import fused_net as module
from resnet_min.kernels.fused_net import CONVOLUTION, DIRECT, FASTER, LINEAR, MAX_POOL, MEAN_POOL, Layer
from resnet_min.kernels.fused_net import WINOGRAD_2X2 as F2
from resnet_min.kernels.fused_net import WINOGRAD_4X4 as F4
from resnet_min.model import resnet

from .conftest import REFUSAL, assert_as_close_as_eager, needs_extension, outcomes_by_threads
from .test_conv_bn_relu import layer_shapes

LOOSER = 3e-6  # of F(4×4, 3×3), whose matrices have numbers up to 8: about 25 times float32's eps
operator = torch.ops.resnet_min.fused_net if kernels._C else None


class Net:
    """Layers, with drawn weights, whose outputs have about the variance of their inputs."""

    def __init__(self, channels, seed=0):
        self.channels, self.layers, self.weights, self.biases = [channels], [], [], []
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def add(self, kind, outputs=None, kernel=1, source=None, **rest):
        """The new value."""
        source = len(self.layers) if source is None else source
        inputs = self.channels[source]
        if outputs:
            shape = (outputs, inputs) if kind == LINEAR else (outputs, inputs, kernel, kernel)
            self.weights.append(self.draw(*shape) / (inputs * kernel**2) ** 0.5)
            self.biases.append(self.draw(outputs))
        self.layers.append(Layer(kind, source, **rest))
        self.channels.append(outputs or inputs)
        return len(self.layers)

    def conv(self, outputs, kernel=3, stride=1, padding=1, relu=True, **rest):
        return self.add(CONVOLUTION, outputs, kernel, stride=stride, padding=padding, relu=relu, **rest)

    def args(self, x):
        return x, self.weights, self.biases, [int(number) for layer in self.layers for number in layer]


def small(form=FASTER):
    """A net with a layer of each kind and both residuals, and images for it."""
    net = Net(3)
    block = net.add(MAX_POOL, source=net.conv(16, form=form), size=3, stride=2, padding=1)
    same = net.conv(16, residual=block, form=form)
    net.conv(24, stride=2, residual=same, residual_stride=2)
    net.add(MEAN_POOL)
    net.add(LINEAR, 5)
    return net.args(net.draw(2, 3, 18, 15))


def plain(dtype, x, weights, biases, plan):
    """The contract, in that dtype: what `reference` does, in other words."""
    values, used = [x.to(dtype)], iter(range(len(weights)))
    for kind, source, residual, every, stride, padding, size, relu, _ in module.layers_of(plan):
        value = values[source]
        if kind == MAX_POOL:
            value = F.max_pool2d(value, size, stride, padding)
        elif kind == MEAN_POOL:
            value = value.sum((2, 3), keepdim=True) / value[0, 0].numel()
        elif kind == LINEAR:
            i = next(used)
            value = value[:, :, 0, 0] @ weights[i].to(dtype).t() + biases[i].to(dtype)
        else:
            i = next(used)
            value = F.conv2d(value, weights[i].to(dtype), biases[i].to(dtype), stride, padding)
            if residual >= 0:
                added = values[residual][:, :, ::every, ::every]
                value = torch.cat([value[:, : added.shape[1]] + added, value[:, added.shape[1] :]], dim=1)
            value = torch.where(value <= 0, 0.0, value) if relu else value
        values.append(value)
    return values[-1]



# ---- values ----


@needs_extension
def test_every_convolution_of_our_nets():
    """In each form that it has, for each batch, alone and with each residual."""
    threads = torch.get_num_threads()
    for seed, (inputs, size, outputs, kernel, stride, padding) in enumerate(layer_shapes()):
        nets = []
        for residual in ("none", "projected", "padded"):
            net = Net(inputs, seed)
            about = dict(stride=stride, padding=padding, source=0, relu=(seed + len(nets)) % 2 == 0)
            if residual == "projected":
                about["residual"] = net.conv(outputs, 1, stride, 0, relu=False)
            elif residual == "padded" and inputs <= outputs:
                about |= dict(residual=0, residual_stride=stride)
            net.conv(outputs, kernel, **about)
            nets.append(net)
        x = net.draw(5, inputs, *size)
        for net in nets:
            torch.set_num_threads(max(2, threads))  # with one, torch has small 1×1 convolutions done by another library
            eager = plain(torch.float32, *net.args(x))
            torch.set_num_threads(threads)
            exact = plain(torch.float64, *net.args(x))
            forms = [FASTER, DIRECT, F2, F4] if (kernel, stride) == (3, 1) else [FASTER]
            for batch, form in itertools.product((1, 2, 5), forms):
                net.layers[-1] = net.layers[-1]._replace(form=form)
                got = ops.fused_net(*net.args(x[:batch]))
                assert got.is_contiguous(memory_format=torch.channels_last)
                assert_as_close_as_eager(got, eager[:batch], exact[:batch], LOOSER if form == F4 else 0.0)


@pytest.mark.parametrize("form", [FASTER, DIRECT, F2, F4])
def test_whole_net(form, backend):
    x, weights, biases, plan = small(form)
    exact = plain(torch.float64, x, weights, biases, plan)
    for cut in (x, x[:1], x[:0], torch.cat([x, -x, 2 * x])):
        args = cut, weights, biases, plan
        got = ops.fused_net(*args)
        assert got.shape == (len(cut), 5) and got.dtype == torch.float32
        torch.testing.assert_close(got.double(), plain(torch.float64, *args), rtol=1e-5, atol=1e-5)
    assert exact.std() > 0.1


CHANNELS = [1, 3, 5, 7, 8, 12, 16, 20, 32, 33, 64]
LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], dim=3).repeat_interleave(2, 1)[:, ::2, :, : x.shape[3]],
    "expanded": lambda x: x[:, :1].expand(x.shape),
    "one image": lambda x: x[:1].expand(x.shape),
}


@st.composite
def nets(draw):
    """A net and the sizes of images for it. Most convolutions are such that Winograd's forms fit."""
    net = Net(draw(st.sampled_from(CHANNELS)), draw(st.integers(0, 99)))
    sizes = [(draw(st.integers(1, 19)), draw(st.integers(1, 19)))]
    image = sizes[0]
    for _ in range(draw(st.integers(1, 6))):
        source = draw(st.sampled_from([len(net.layers)] * 3 + list(range(len(sizes)))))
        kernel, stride, padding = draw(
            st.sampled_from([(3, 1, 1)] * 3) | st.tuples(*map(st.sampled_from, ([1, 2, 3, 5, 7], [1, 2, 3], range(4))))
        )
        pools = draw(st.integers(0, 5)) == 0
        if pools:
            padding = min(padding, kernel // 2)
        if any(n + 2 * padding < kernel for n in sizes[source]):
            continue
        sizes.append(tuple((n + 2 * padding - kernel) // stride + 1 for n in sizes[source]))
        about = dict(source=source, stride=stride, padding=padding)
        if pools:
            net.add(MAX_POOL, size=kernel, **about)
            continue
        outputs = draw(st.sampled_from(CHANNELS))
        fits = [
            (value, every)
            for value, every in itertools.product(range(len(sizes) - 1), (1, 2, 3))
            if net.channels[value] <= outputs and tuple(-(-n // every) for n in sizes[value]) == sizes[-1]
        ]
        if fits and draw(st.booleans()):
            about["residual"], about["residual_stride"] = draw(st.sampled_from(fits))
        net.conv(outputs, kernel, relu=draw(st.booleans()), form=draw(st.sampled_from([FASTER, DIRECT, F2, F4])), **about)
    if not net.layers or draw(st.booleans()):
        net.add(MEAN_POOL)
        net.add(LINEAR, draw(st.sampled_from(CHANNELS)))
    return net, image


def check_anywhere(net_and_image, batch, layout):
    net, image = net_and_image
    args = net.args(LAYOUTS[layout](net.draw(batch, net.channels[0], *image)))
    before = args[0].clone()
    got, exact = operator(*args), plain(torch.float64, *args)
    assert got.dtype == torch.float32 and torch.equal(args[0], before)
    bound = 1e-5 * exact.abs().amax().clamp(min=1) if exact.numel() else 0.0
    if any(layer.form == F4 for layer in net.layers):
        bound *= 10
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=float(bound))
    if batch:
        assert torch.equal(operator(*args), got)  # what the first call left behind changes nothing


anywhere = given(net_and_image=nets(), batch=st.integers(0, 9), layout=st.sampled_from(list(LAYOUTS)))
test_any_net = needs_extension(settings(max_examples=150, deadline=None)(anywhere(check_anywhere)))
test_any_net_long = pytest.mark.slow(
    needs_extension(settings(max_examples=5000, deadline=None)(anywhere(check_anywhere)))
)


@pytest.mark.parametrize("form", [DIRECT, F2, F4])
def test_nan_and_infinity(form, backend):
    """They spoil what they spoil in eager PyTorch; in Winograd's forms, all of the tiles that read them."""
    net = Net(64)
    net.conv(64, form=form)
    net.conv(64, form=form, source=0, residual=1)
    x = net.draw(2, 64, 16, 16)
    clean = ops.fused_net(*net.args(x))
    for bad in (float("nan"), float("inf"), -float("inf")):
        spoiled = x.clone()
        spoiled[1, 3, 6, 9] = bad
        got, expected = ops.fused_net(*net.args(spoiled)), plain(torch.float32, *net.args(spoiled))
        assert torch.equal(got[0], clean[0]), "another image"
        assert got[expected.isnan()].isnan().all() and expected.isnan().any()
        reach = torch.zeros(16, 16, dtype=torch.bool)
        tile = {F2: 2, F4: 4}.get(form, 1) if backend == "extension" else 1
        rows, columns = ([n // tile * tile for n in range(at - 1, at + 2)] for at in (6, 9))
        reach[min(rows) : max(rows) + tile, min(columns) : max(columns) + tile] = True
        torch.testing.assert_close(got[1][:, ~reach], clean[1][:, ~reach], rtol=0, atol=0)
        if tile == 1:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_nan_in_pools(backend):
    net = Net(5)
    net.add(MAX_POOL, size=3, stride=1, padding=1)
    x = net.draw(2, 5, 6, 7)
    x[0, 2, 3, 3], x[1, 1, 0, 0], x[1, 4] = float("nan"), float("inf"), -float("inf")
    assert torch.equal(ops.fused_net(*net.args(x)).nan_to_num(99), F.max_pool2d(x, 3, 1, 1).nan_to_num(99))
    net = Net(5)
    net.add(MEAN_POOL)
    torch.testing.assert_close(ops.fused_net(*net.args(x)), x.mean((2, 3), keepdim=True), equal_nan=True)


def test_images_of_zeros(backend):
    x, *rest = small()
    got = ops.fused_net(torch.zeros_like(x), *rest)
    assert got.isfinite().all() and torch.equal(got[0], got[1])
    net = Net(64)
    net.conv(32, relu=False)
    got = ops.fused_net(*net.args(torch.zeros(1, 64, 9, 9)))
    assert torch.equal(got, net.biases[0][:, None, None].expand(1, 32, 9, 9))


# ---- threads, and what is kept between calls ----


@needs_extension
@pytest.mark.parametrize("form", [FASTER, DIRECT, F2, F4])
def test_more_than_one_thread_gives_the_same(form):
    net = Net(3)
    first = net.conv(64, form=form)
    net.conv(64, form=form, residual=first)
    net.conv(72, 3, 2, residual=first, residual_stride=2)
    net.conv(72, form=form)
    net.add(MEAN_POOL)
    net.add(LINEAR, 10)
    x = net.draw(50, 3, 16, 13)
    for batch in (1, 2, 3, 7, 17, 33, 50):  # of one, two, and three threads' runs, and more
        outs = outcomes_by_threads(lambda batch=batch: ops.fused_net(*net.args(x[:batch])))
        assert all(torch.equal(out, outs[0]) for out in outs), batch


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_from_many_threads(threads):
    """Of two nets, and of two plans with the same weights: each call gives what it gives alone."""
    models = [fuse(resnet("resnet8", num_classes=10).eval()) for _ in range(2)]
    calls = [models[0], models[1], models[0].features, models[1].features]
    batches = [torch.randn(size, 3, 16, 16) for size in (1, 2, 5, 9)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        expected = {(c, b): calls[c](batches[b]) for c in range(4) for b in range(4)}

        def work(seed):
            for i in range(40):
                c, b = (seed + i) % 4, (seed * 3 + i // 4) % 4
                assert torch.equal(calls[c](batches[b]), expected[c, b]), (c, b)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        torch.set_num_threads(before)
