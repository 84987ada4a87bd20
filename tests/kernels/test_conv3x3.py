"""The 3×3 convolution in Winograd's forms: against float64 and its reference, alone and in training."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resnet_min import ops
from resnet_min.errors import UserError
from resnet_min.kernels import conv3x3
from resnet_min.model import resnet
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import hardware
from resnet_min.training.distributed import World

from .conftest import REFUSAL, assert_as_close_as_eager, needs_extension, outcomes_by_threads, run_under

CHANNELS_LAST = torch.channels_last
# The forms, and how many times eager PyTorch's error theirs may be. With AMX bfloat16 has kernels of its own.
FORMS = {"2x2": 1.5, "4x4": 4.0, "bf16": 1.5}
by_winograd = pytest.mark.parametrize(
    "form",
    [*list(FORMS)[:2], pytest.param("bf16", marks=pytest.mark.skipif(conv3x3.HAS_AMX, reason="bfloat16 is AMX's"))],
)


def draw(batch=4, inputs=64, outputs=64, size=(8, 8)):
    """x as a ReLU leaves it, a weight, and a gradient of the output."""
    x = torch.randn(batch, inputs, *size).relu()
    weight = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
    grad = torch.randn(batch, outputs, *size)
    return *(t.contiguous(memory_format=CHANNELS_LAST) for t in (x, weight)), grad


def results(function, x, weight, grad):
    """(output, gradient of x, gradient of weight)"""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = function(x, weight)
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def eager(x, weight):
    return F.conv2d(x, weight, padding=1)


def in_form(form, *args):
    """conv3x3 in one of FORMS, and its arguments in that form's dtype."""
    if form == "bf16":
        return ops.conv3x3, *(t.bfloat16() for t in args)
    return partial(ops.conv3x3, winograd="4x4" if form == "4x4" else None), *args


def check_layer(form, *args):
    """As close as eager, the output and both gradients."""
    ours, *args = in_form(form, *args)
    exact = results(eager, *(t.double() for t in args))
    for each in zip(results(ours, *args), results(eager, *args), exact, strict=True):
        assert_as_close_as_eager(*each, times=FORMS[form])


# batch, inputs, outputs, side: batches that make the weight's gradient a sum as long as in training
LAYERS = [
    (16, 16, 16, 32), (24, 32, 32, 16), (24, 16, 48, 9), (24, 80, 32, 8),
    (6, 64, 64, 32), (12, 128, 128, 16), (24, 256, 256, 8), (64, 512, 512, 4), (24, 64, 128, 8), (24, 192, 64, 7),
]  # fmt: skip


@needs_extension
@by_winograd
@pytest.mark.parametrize("batch, inputs, outputs, side", LAYERS)
def test_every_layer_shape(batch, inputs, outputs, side, form):
    check_layer(form, *draw(batch, inputs, outputs, (side, side)))


@pytest.mark.parametrize("size", [(2, 2), (2, 5), (3, 3), (5, 7), (9, 2), (1, 6), (1, 1), (31, 33)])
@pytest.mark.parametrize("batch", [1, 7])
@by_winograd
def test_odd_maps(batch, size, form):
    """Tiles that reach beyond the map; one pixel and one row, which the reference takes or which fill few of a tile."""
    check_anywhere(form, batch, (4, 8), *size)


def check_anywhere(form, batch, channels, height, width):
    ours, *args = in_form(form, *draw(batch, *(16 * number for number in channels), (height, width)))
    for got, true in zip(results(ours, *args), results(eager, *(t.double() for t in args)), strict=True):
        room = (0.01, 0.01 * true.abs().max().item()) if form == "bf16" else (1e-4, 1e-3)
        torch.testing.assert_close(got.double(), true, rtol=room[0], atol=room[1])


ANYWHERE = {
    "batch": st.integers(1, 40),
    "channels": st.tuples(*[st.integers(1, 9)] * 2),
    "height": st.integers(1, 12),
    "width": st.integers(1, 12),
}


@needs_extension
@by_winograd
@settings(max_examples=10, deadline=None)
@given(**ANYWHERE)
def test_anywhere(form, batch, channels, height, width):
    check_anywhere(form, batch, channels, height, width)


@pytest.mark.slow
@needs_extension
@by_winograd
@settings(max_examples=300, deadline=None)
@given(**ANYWHERE)
def test_anywhere_at_length(form, batch, channels, height, width):
    check_anywhere(form, batch, channels, height, width)


@needs_extension
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability):
    code = (
        "from tests.kernels.test_conv3x3 import *\n"
        "torch.manual_seed(0)\n"
        "for form in FORMS:\n"
        "    for *shape, side in LAYERS: check_layer(form, *draw(*shape, (side, side)))\n"
    )
    run_under(capability, code)


@needs_extension
@pytest.mark.parametrize(
    "batch, channels, side", [(40, 64, 16), (9, 256, 4), (150, 64, 3), (2, 512, 4), (5, 16, 32), (3, 48, 9)]
)
@by_winograd
def test_any_number_of_threads_gives_the_same_bits(batch, channels, side, form):
    """However the tiles are cut into blocks, and where the outputs are shared out instead."""
    ours, *args = in_form(form, *draw(batch, channels, channels, (side, side)))
    runs = outcomes_by_threads(lambda: results(ours, *args), (1, 2, 3, 7))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@needs_extension
def test_layouts():
    """Any strides come in; the output and both gradients are channels_last."""
    x, weight, grad = draw(3, 64, 128, (6, 5))
    wanted = results(ops.conv3x3, x, weight, grad)
    assert wanted[0].is_contiguous(memory_format=CHANNELS_LAST)
    spread = torch.randn(3, 64, 12, 5)[:, :, ::2].copy_(x)
    for other in (x.contiguous(), spread):
        for got, same in zip(results(ops.conv3x3, other, weight.contiguous(), grad), wanted, strict=True):
            assert torch.equal(got, same)
    ones = torch.ones(()).expand_as(grad)
    for got, same in zip(*(results(ops.conv3x3, x, weight, g) for g in (ones, ones.clone())), strict=True):
        assert torch.equal(got, same)


def test_no_images():
    out, grad_x, grad_weight = results(ops.conv3x3, *draw(0, 64, 128, (6, 5)))
    assert out.shape == (0, 128, 6, 5) and grad_x.shape == (0, 64, 6, 5)
    assert grad_weight.shape == (128, 64, 3, 3) and not grad_weight.any()


def test_gradients_that_are_not_asked_for():
    x, weight, grad = draw()
    _, wanted_x, wanted_weight = results(ops.conv3x3, x, weight, grad)
    frozen = weight.clone()
    (got,) = torch.autograd.grad(ops.conv3x3(x.requires_grad_(), frozen), x, grad)
    assert torch.equal(got, wanted_x)
    (got,) = torch.autograd.grad(ops.conv3x3(x.detach(), frozen.requires_grad_()), frozen, grad)
    assert torch.equal(got, wanted_weight)


@needs_extension
@pytest.mark.parametrize("form, first, last", [("2x2", 3, 6), ("4x4", 3, 8)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_near(value, form, first, last):
    """It makes NaN of every output that it is part of; of the large tiles that see it, of others too."""
    ours, x, weight, _ = in_form(form, *draw(16, size=(12, 12)))  # as many as make large tiles pay
    x[1, 5, 4, 4] = value
    out = ours(x, weight)
    assert (out[1, :, 3:6, 3:6].isnan() if value != value else ~out[1, :, 3:6, 3:6].isfinite()).all()
    assert not out[1, 0, last - 1, last - 1].isfinite()  # it is this form
    out[1, :, first:last, first:last] = 0
    assert out.isfinite().all()


@needs_extension
@pytest.mark.parametrize("form, largest", [("2x2", 8e37), ("4x4", 1e37)])
def test_large_values_do_not_overflow(form, largest):
    """As far as documented."""
    ours, x, weight, _ = in_form(form, *draw(16, size=(8, 8)))
    scale = largest / x.abs().max()
    out, plain = ours(x * scale, weight / 99), ours(x, weight / 99)
    assert out.isfinite().all()
    torch.testing.assert_close(out / scale, plain, rtol=1e-4, atol=1e-5)


@needs_extension
def test_no_second_derivative():
    x, weight, grad = draw()
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="conv3x3: its compiled kernel has no second derivative"):
        torch.autograd.grad(ops.conv3x3(x, weight).pow(2).sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_reference_takes_other_dtypes(dtype, device):
    x, weight, _ = (t.to(device, dtype) for t in draw(2, 16, 24))
    torch.testing.assert_close(ops.conv3x3(x, weight), eager(x, weight))


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_the_reference_strides(size, device):
    x, weight, _ = (t.to(device) for t in draw(2, size=size))
    torch.testing.assert_close(ops.conv3x3(x, weight, 2), F.conv2d(x, weight, stride=2, padding=1))
    with pytest.raises(ValueError, match="conv3x3: stride must be 1 or 2; got 3"):
        ops.conv3x3(x, weight, 3)


BAD = [
    ("x", lambda t: t[0], "x must be {} [B, C, H, W]; got float32 [64, 8, 8]"),
    ("x", lambda t: t.long(), "x must be {} [B, C, H, W]; got int64 [4, 64, 8, 8]"),
    ("weight", lambda t: t[:, :32], "weight must be float32 [O, 64, 3, 3]; got float32 [64, 32, 3, 3]"),
    ("weight", lambda t: t[:, :, :1], "weight must be float32 [O, 64, 3, 3]; got float32 [64, 64, 1, 3]"),
    ("weight", lambda t: t.double(), "weight must be float32 [O, 64, 3, 3]; got float64 [64, 64, 3, 3]"),
    ("weight", lambda t: t.to("meta"), "weight must be on cpu; got meta"),
]


@pytest.mark.parametrize("name, spoil, message", BAD)
def test_bad_argument(name, spoil, message):
    args = dict(zip(("x", "weight"), draw(), strict=False))
    args[name] = spoil(args[name])
    dtypes = "float32, bfloat16, float16 or float64"
    with pytest.raises(ValueError) as error:
        ops.conv3x3(**args)
    assert str(error.value) == f"conv3x3: {message.format(dtypes)}"


@needs_extension
@pytest.mark.parametrize("name, spoil, message", [*BAD[:5], ("weight", lambda t: t[:40], "weight must have multiples")])
def test_kernel_refuses(name, spoil, message):
    args = dict(zip(("x", "weight"), draw(), strict=False))
    args[name] = spoil(args[name])
    message = message if "multiples" in message else REFUSAL.format("conv3x3").removeprefix("conv3x3: ")
    with pytest.raises(ValueError, match=f"conv3x3: {message}"):
        torch.ops.resnet_min.conv3x3(**args, stride=1, large_tiles=False)
    grad = torch.zeros(4, 64, 8, 8)
    with pytest.raises(ValueError, match=f"conv3x3: {message}"):
        torch.ops.resnet_min.conv3x3_backward(grad, *args.values(), 1, False, True, True)
    with pytest.raises(ValueError, match=r"grad must be Float \[4, 64, 8, 8\] as conv3x3's output; got Float \[3,"):
        torch.ops.resnet_min.conv3x3_backward(grad[1:], *draw()[:2], 1, False, True, True)


@needs_extension
def test_opcheck():
    x, weight, grad = draw(3, 64, 128, (6, 5))
    for arguments in ((x, weight), (x.clone().requires_grad_(), weight.clone().requires_grad_())):
        torch.library.opcheck(torch.ops.resnet_min.conv3x3, (*arguments, 1, True))
    torch.library.opcheck(torch.ops.resnet_min.conv3x3_backward, (grad, x, weight, 1, False, True, True))
    torch.library.opcheck(torch.ops.resnet_min.conv3x3_backward, (grad, x, weight, 1, True, False, True))


# ---- in the model ----


@pytest.fixture
def calls(monkeypatch):
    made, original = [], conv3x3.conv3x3
    monkeypatch.setattr(
        conv3x3, "conv3x3", lambda x, weight, *how: made.append(weight.shape[0]) or original(x, weight, *how)
    )
    return made


def network(**options):
    return resnet("resnet18", **options).to(memory_format=CHANNELS_LAST)


@needs_extension
def test_training_calls_it_and_eval_never(calls):
    net = network()
    net(images(2, 32))
    assert calls == [64] * 4 + [128] * 3 + [256] * 3 + [512] * 3  # the stem and the strided ones are others
    net.eval()(images(2, 32))
    assert len(calls) == 13


def images(batch=2, side=8):
    return torch.randn(batch, 3, side, side).contiguous(memory_format=CHANNELS_LAST)


def freeze(net):
    net.layer1[0].conv1.weight.requires_grad_(False)


def hook(net):
    net.layer1[0].conv1.register_forward_hook(lambda *_: None)


def pad_otherwise(net):
    net.layer1[0].conv1.padding_mode = "reflect"


def add_bias(net):
    net.layer1[0].conv1.bias = nn.Parameter(torch.zeros(64))


def group(net):
    net.layer1[0].conv1 = nn.Conv2d(64, 64, 3, padding=1, groups=2, bias=False)


@needs_extension
@pytest.mark.parametrize("change, left", [(freeze, 4), (hook, 3), (pad_otherwise, 3), (add_bias, 3), (group, 3)])
def test_what_the_operator_cannot_do_the_modules_do(change, left, calls):
    net = network(blocks=(2,), widths=(64,))
    change(net)
    net(images())
    assert len(calls) == left


@needs_extension
def test_a_tensor_of_another_class_is_left_to_the_module():
    class Traced(torch.Tensor):
        pass

    conv, x = network(blocks=(1,), widths=(64,)).layer1[0].conv1, draw()[0]
    assert conv3x3.stands_for(conv, x) and not conv3x3.stands_for(conv, x.as_subclass(Traced))


@needs_extension
def test_a_net_in_nchw_stays_in_it(calls):
    network(blocks=(1,), widths=(64,)).to(memory_format=torch.contiguous_format)(torch.randn(2, 3, 8, 8))
    assert not calls


@needs_extension
def test_small_batches_with_amx_and_other_dtypes_are_left_alone(calls):
    net = network(blocks=(1,), widths=(64,))
    with torch.autocast("cpu", torch.bfloat16):
        net(images())
        net.layer1[0](torch.randn(2, 64, 8, 8).contiguous(memory_format=CHANNELS_LAST))  # not yet bfloat16
    assert calls == ([] if conv3x3.HAS_AMX else [64] * 4)
    calls.clear()
    with torch.autocast("cpu", torch.float16):
        net(images(32))
    net.double()(images().double())
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        assert net(images(32).double()).dtype == torch.float64
    assert not calls


@needs_extension
def test_a_weight_of_another_dtype_is_not_cast_in_silence():
    net = network(blocks=(1,), widths=(64,))
    net.layer1[0].conv1.double()
    with pytest.raises(RuntimeError, match="(?i)dtype|type"):
        net(images())


@needs_extension
@by_winograd
def test_training_steps_with_and_without_kernels(form, calls):
    batch, runs = images(16, 16), []
    for name in ("extension", "reference"):
        ops.set_backend(name)
        ops.set_winograd("4x4" if form == "4x4" else None)
        torch.manual_seed(0)
        net = network(blocks=(1, 1), widths=(64, 128))
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        losses = []
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=form == "bf16"):
                loss = F.cross_entropy(net(batch).float(), torch.arange(16) % 10)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        runs.append((losses, net.state_dict()))
    ops.set_backend("auto")
    ops.set_winograd(None)
    assert len(calls) == 9  # three of a step
    (ours, state), (theirs, their_state) = runs
    assert ours == pytest.approx(theirs, rel=0.03 if form == "bf16" else 1e-3)
    room = dict(rtol=0.1, atol=0.03) if form == "bf16" else dict(rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(state, their_state, **room)


@needs_extension
def test_the_form_that_networks_in_training_take():
    """None is the exact one; "4x4" rounds otherwise; another name is refused."""
    conv, x = network(blocks=(1,), widths=(64,)).layer1[0].conv1, draw(batch=16)[0]
    usual = conv3x3.in_place_of(conv, x)
    assert torch.equal(usual, ops.conv3x3(x, conv.weight))
    try:
        ops.set_winograd("4x4")
        assert torch.equal(conv3x3.in_place_of(conv, x), ops.conv3x3(x, conv.weight, winograd="4x4"))
        assert not torch.equal(conv3x3.in_place_of(conv, x), usual)
    finally:
        ops.set_winograd(None)
    hardware.set_up(ClassifyConfig(winograd="4x4"), World())
    assert conv3x3._winograd == "4x4"
    hardware.set_up(ClassifyConfig(), World())
    assert conv3x3._winograd is None
    with pytest.raises(UserError, match='winograd is "4x4" or None; got 4'):
        ops.set_winograd(4)
    with pytest.raises(ValueError, match="conv3x3: winograd must be \"4x4\" or None; got '2x2'"):
        ops.conv3x3(x, conv.weight, winograd="2x2")


@needs_extension
def test_the_net_compiles_without_a_graph_break(calls):
    net = network(blocks=(1,), widths=(64,))
    batch = images()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(batch).sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(batch).sum().backward()
    for got, wanted in zip(grads, net.parameters(), strict=True):
        torch.testing.assert_close(got, wanted.grad, rtol=1e-3, atol=1e-4)
