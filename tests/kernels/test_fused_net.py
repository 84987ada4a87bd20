"""fused_net: values against float64, its checks, what it keeps between calls, and what it is as an operator."""

import gc
import itertools
import os
import re
import sys
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
            value = value.sum((2, 3), keepdim=True) / (value.shape[2] * value.shape[3])
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
        net = Net(inputs, seed)
        projected = net.conv(outputs, 1, stride, 0, relu=False)
        net.conv(outputs, kernel, stride, padding, source=0)
        x, weights, biases, _ = net.args(net.draw(5, inputs, *size))
        x = x.contiguous(memory_format=torch.channels_last)  # as inside a net; eager PyTorch's error is not NCHW's
        torch.set_num_threads(max(2, threads))  # with one, torch has small 1×1 convolutions done by another library
        eager, exact = (
            [
                F.conv2d(*(t.to(dtype) for t in (x, weights[i], biases[i])), stride, pad)
                for i, pad in ((0, 0), (1, padding))
            ]
            for dtype in (torch.float32, torch.float64)
        )
        torch.set_num_threads(threads)
        first, last = net.layers
        alone, padded = last._replace(relu=seed % 2 == 0), last._replace(residual=0, residual_stride=stride)
        cases = [([alone], 1, torch.zeros(())), ([first, last._replace(residual=projected)], 0, None)]
        if inputs <= outputs:
            added = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, outputs - inputs))
            cases.append(([padded], 1, added))
        for layers, begin, added in cases:
            theirs, true = (both[1] + (both[0] if added is None else added) for both in (eager, exact))
            if layers[-1].relu:
                theirs, true = theirs.relu(), true.relu()
            tiled = (kernel, stride) == (3, 1) and min(size) > 1  # a pixel alone is a quarter of a tile
            for form in [FASTER, DIRECT, F2, F4] if tiled else [FASTER, DIRECT]:
                plan = [int(n) for layer in (*layers[:-1], layers[-1]._replace(form=form)) for n in layer]
                for batch in (1, 2, 5):
                    got = ops.fused_net(x[:batch], weights[begin:], biases[begin:], plan)
                    assert got.is_contiguous(memory_format=torch.channels_last)
                    # A sum in turn; eager PyTorch adds up parts of those of 1×1 convolutions, which is more exact.
                    floor = LOOSER if form == F4 else 0.0
                    assert_as_close_as_eager(got, theirs[:batch], true[:batch], floor)


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


@needs_extension
@pytest.mark.parametrize("form", [F2, F4])
def test_any_number_of_tiles(form):
    """More and fewer than a product's rows; they end in and past the map; a residual ends within a vector."""
    net = Net(20)
    net.conv(64, source=net.conv(64, relu=False), form=form)
    net.conv(64, residual=0, form=form)
    for size in [(rows, 2) for rows in range(1, 55)] if form == F2 else [(n, m) for n in range(8, 19) for m in (9, 17)]:
        args = net.args(net.draw(1, 20, *size))
        exact, bound = plain(torch.float64, *args), 1e-5 if form == F2 else 1e-4
        torch.testing.assert_close(ops.fused_net(*args).double(), exact, rtol=bound, atol=bound)


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
        net.conv(
            outputs, kernel, relu=draw(st.booleans()), form=draw(st.sampled_from([FASTER, DIRECT, F2, F4])), **about
        )
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
    models = [fuse(resnet("resnet20", blocks=(1, 1, 1)).eval()) for _ in range(2)]
    calls = [models[0], models[1], models[0].features, models[1].features]
    batches = [torch.randn(size, 3, 16, 16) for size in (1, 2, 5, 9)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        expected = {(c, b): calls[c](batches[b]) for c in range(4) for b in range(4)}

        def work(seed):
            for i in range(8):
                c, b = (seed + i) % 4, (seed * 3 + i // 4) % 4
                assert torch.equal(calls[c](batches[b]), expected[c, b]), (c, b)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        torch.set_num_threads(before)


def resident():
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")


def call_often(times):
    x, *rest = small()
    x = x.repeat(20, 1, 1, 1)
    for i in range(times):
        ops.fused_net(x[: 1 + i * 7 % 40, :, : 18 - i % 3], *rest)


@needs_extension
@needs_proc
@pytest.mark.parametrize("times", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_is_flat(times):
    call_often(500)
    before = resident()
    call_often(times)
    assert resident() - before < 4 << 20


@needs_extension
@needs_proc
def test_weights_are_let_go():
    """Of 12 nets of 9 MiB, one after another, and 16 MiB where they are packed for Winograd."""
    x = torch.zeros(1, 512, 8, 8)
    for i in range(12):
        net = Net(512)
        net.conv(512, form=F2)
        ops.fused_net(*net.args(x))
        if i == 2:
            before = resident()
    assert resident() - before < 50 << 20


@needs_extension
def test_weights_that_change():
    """A new value is used at the next call, wherever it comes from; what a net of other weights keeps, is not."""
    x, weights, biases, plan = args = small()

    def check():
        torch.testing.assert_close(ops.fused_net(*args), reference.fused_net(*args), rtol=1e-5, atol=1e-5)

    check()
    weights[1].mul_(2)
    check()
    biases[2].add_(1)
    check()
    weights[0] = weights[0].flip(0)
    check()
    weights[3].data = weights[3] * 3
    check()
    weights[1].data = weights[1].data.transpose(2, 3)  # the same memory, as is below
    check()
    pool = Net(3)
    pool.add(MAX_POOL, size=2, stride=2)  # a net without weights, between calls of one with them
    assert torch.equal(ops.fused_net(*pool.args(x)), F.max_pool2d(x, 2))
    check()
    weight, bias = torch.randn(64, 32, 1, 1), torch.randn(64)
    conv = [int(number) for number in Layer(CONVOLUTION, 0)]
    ops.fused_net(torch.randn(1, 32, 4, 4), [weight], [bias], conv)
    weight.data, bias.data = weight.data.view(32, 64, 1, 1), bias.data[:32]
    x = torch.randn(1, 64, 4, 4)
    torch.testing.assert_close(
        ops.fused_net(x, [weight], [bias], conv), F.conv2d(x, weight, bias), rtol=1e-5, atol=1e-5
    )


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory in use")
def test_memory_kept_for_large_maps_is_bounded():
    """Each of these sizes takes 64 MiB."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

    weight, bias = torch.randn(8, 64, 3, 3), torch.zeros(8)
    before = resident()
    for height in range(500, 512):
        ops.conv_bn_relu(torch.ones(1, 64, height, 512), weight, bias, None, 1, 1, True)
    assert resident() - before < 500


# ---- errors ----

BAD = {  # what is bad: (how, the message)
    "x's dtype": (
        lambda x, w, b, p: (x.double(), w, b, p),
        "x must be float32 [B, C, H, W]; got float64 [2, 3, 18, 15]",
    ),
    "x's shape": (lambda x, w, b, p: (x[0], w, b, p), "x must be float32 [B, C, H, W]; got float32 [3, 18, 15]"),
    "x is empty": (
        lambda x, w, b, p: (x[..., :0], w, b, p),
        "x must have no empty dimension but the first; got float32 [2, 3, 18, 0]",
    ),
    "x's channels": (
        lambda x, w, b, p: (x[:, :2], w, b, p),
        "weight 0 must be float32 [O, 2, h, w]; got float32 [16, 3, 3, 3]",
    ),
    "a weight's dtype": (
        lambda x, w, b, p: (x, [w[0].half(), *w[1:]], b, p),
        "weight 0 must be float32 [O, 3, h, w]; got float16 [16, 3, 3, 3]",
    ),
    "fc's weight": (
        lambda x, w, b, p: (x, [*w[:3], w[3][:, :9]], b, p),
        "weight 3 must be float32 [O, 24]; got float32 [5, 9]",
    ),
    "a bias": (lambda x, w, b, p: (x, w, [b[0][1:], *b[1:]], p), "bias 0 must be float32 [16]; got float32 [15]"),
    "a weight is missing": (
        lambda x, w, b, p: (x, w[:3], b[:3], p),
        "the plan wants 4 weights and biases; got 3 and 3",
    ),
    "a bias is missing": (lambda x, w, b, p: (x, w, b[1:], p), "the plan wants 4 weights and biases; got 4 and 3"),
    "a weight too many": (
        lambda x, w, b, p: (x, [*w, w[3]], [*b, b[3]], p),
        "the plan wants 4 weights and biases; got 5 and 5",
    ),
    "no plan": (
        lambda x, w, b, p: (x, [], [], []),
        "plan must have 9 numbers for each of at least one layer; got 0",
    ),
    "part of a layer": (
        lambda x, w, b, p: (x, w, b, p[:-1]),
        "plan must have 9 numbers for each of at least one layer; got 53",
    ),
    "a residual": (
        lambda x, w, b, p: (x, w, b, [*p[:20], 1, *p[21:]]),
        "layer 2 adds [16, 18, 15], every 1 pixels, to [16, 9, 8]",
    ),
    "a kernel": (
        lambda x, w, b, p: (x[..., :1, :1], [torch.ones(16, 3, 4, 4), *w[1:]], b, p),
        "layer 0 does not fit into 1×1 and its padding",
    ),
    "a high kernel": (
        lambda x, w, b, p: (x[..., :1, :], [torch.ones(16, 3, 4, 1), *w[1:]], b, p),
        "layer 0 does not fit into 1×15 and its padding",
    ),
    "fc of a map": (
        lambda x, w, b, p: (x, w[:1] + [torch.ones(5, 16)], b[:1] + b[3:], p[:9] + [LINEAR, 1] + p[47:]),
        "layer 1 takes maps of one pixel; got 18×15",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name, backend):
    spoil, message = BAD[name]
    args = spoil(*small())
    with pytest.raises(ValueError) as error:
        ops.fused_net(*args)
    assert str(error.value).splitlines()[0] == f"fused_net: {message}"
    if backend == "extension":
        with pytest.raises(ValueError) as error:
            operator(*args)
        assert str(error.value).splitlines()[0] == REFUSAL.format("fused_net")


def test_arguments_on_two_devices(backend):
    x, weights, biases, plan = small()
    for which in (weights, biases):
        which[1] = which[1].to("meta")
        with pytest.raises(ValueError, match=r"fused_net: (weight|bias) 1 must be on cpu; got meta"):
            ops.fused_net(x, weights, biases, plan)
        which[1] = torch.zeros(which[1].shape)


@needs_extension
def test_any_numbers_in_a_plan():
    """The kernel refuses those that the checks refuse, and gives what the reference gives of others."""
    x, weights, biases, plan = small()
    refused = 0
    for place, number in itertools.product(
        range(len(plan)), (-(2**62), -(2**31), -1, 0, 1, 2, 3, 7, 2**15, 2**31, 2**40, 2**63 - 1)
    ):
        args = x, weights, biases, [*plan[:place], number, *plan[place + 1 :]]
        if number == 2**15 and Layer._fields[place % 9] == "padding":
            continue  # see test_too_many_elements
        try:
            expected = reference.fused_net(*args)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError) as error:
                operator(*args)
            assert str(error.value).splitlines()[0] == REFUSAL.format("fused_net")
        else:
            torch.testing.assert_close(operator(*args), expected, rtol=1e-5, atol=1e-5)
    assert 100 < refused < 600
    assert (
        module.fused_net(x, weights, biases, plan) - reference.fused_net(x, weights, biases, plan)
    ).abs().max() < 1e-5


@needs_extension
@pytest.mark.parametrize("shape", [(2**31, 1, 1, 1), (2**40, 1, 1, 1), (2**62, 1, 1, 1), (1, 2**31, 1, 1)])
def test_too_many_elements(shape):
    """Sizes with no memory behind them, and paddings that would need it."""
    refusal = re.escape(REFUSAL.format("fused_net"))
    weight, bias = torch.zeros(1).expand(shape), torch.zeros(1).expand(shape[0])
    for x in (torch.zeros(1).expand(2, shape[1], 4, 4) if shape[1] < 2**31 else torch.zeros(2, 1, 4, 4),):
        for batch in (2, 0):
            with pytest.raises(ValueError, match=refusal):
                operator(x[:batch], [weight], [bias], [int(n) for n in Layer(CONVOLUTION, 0)])
    with pytest.raises(ValueError, match=refusal):
        plan = [int(n) for n in Layer(CONVOLUTION, 0, padding=2**15, stride=2**15)]
        operator(torch.zeros(2, 1, 4, 4), [torch.zeros(1, 1, 1, 1)], [torch.zeros(1)], plan)
    plan = [int(n) for n in Layer(MAX_POOL, 0, padding=2**14, size=2**15, stride=2)]
    assert operator(torch.ones(1, 1, 1, 1), [], [], plan).item() == 1


def test_gradients_are_refused(backend):
    x, weights, biases, plan = small()
    for tensor in (x, weights[2], biases[3]):
        tensor.requires_grad_()
        with pytest.raises(RuntimeError, match="fused_net: it is for inference, inputs must not require grad"):
            ops.fused_net(x, weights, biases, plan)
        if backend == "extension":
            with pytest.raises(ValueError, match=re.escape(REFUSAL.format("fused_net"))):
                operator(x, weights, biases, plan)
        with torch.no_grad():
            assert not ops.fused_net(x, weights, biases, plan).requires_grad
        tensor.requires_grad_(False)


# ---- as an operator ----


@needs_extension
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 3, 6])  # layers: of the result, a map or logits
def test_opcheck(batch, depth):
    x, weights, biases, plan = small()
    used = {1: 1, 3: 2, 6: 4}[depth]
    torch.library.opcheck(operator.default, (x[:batch], weights[:used], biases[:used], plan[: 9 * depth]))
    fake = operator(x.to("meta"), [w.to("meta") for w in weights], [b.to("meta") for b in biases], plan)
    assert fake.shape == (2, 5) and fake.is_meta


def test_compiles_without_a_graph_break(backend):
    compiled = torch.compile(ops.fused_net, fullgraph=True, backend="aot_eager")
    x, *rest = small()
    for cut in (x, torch.cat([x, x, x])):
        torch.testing.assert_close(compiled(cut, *rest), ops.fused_net(cut, *rest), rtol=1e-5, atol=1e-5)
