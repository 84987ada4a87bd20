"""bn_add_relu against float64 PyTorch, its checks, and the blocks that call it."""

import copy
import functools
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resnet_min import kernels, model, ops, reference
from resnet_min.model import resnet

from .conftest import (
    REFUSAL,
    assert_as_close_as_eager,
    needs_extension,
    needs_gpu,
    outcomes_by_threads,
    relative_error,
    run_under,
    skip_without_kernels,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
EPS = 1e-5
FLAGS = list(itertools.product((False, True), (False, True)))  # (residual, relu)


def draw(shape, dtype=torch.float32, device="cpu", residual=True, seed=0):
    """x, gamma, beta, residual and a gradient of the output, all channels_last; means and scales differ by channel."""
    g = torch.Generator().manual_seed(seed)
    channels, figures = shape[1], torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    x = normal(*shape) * normal(channels, 1, 1).exp() + normal(channels, 1, 1)
    gamma, beta = normal(channels).abs() + 0.1, normal(channels)
    tensors = [x, normal(*shape), normal(*shape)]
    x, extra, grad = (t.to(device, dtype).contiguous(memory_format=torch.channels_last) for t in tensors)
    gamma, beta = (t.to(device, figures) for t in (gamma, beta))
    return x, gamma, beta, extra if residual else None, grad


def buffers(x, device="cpu"):
    """A batch norm's, after some batches: for a call to change."""
    figures = torch.float64 if x.dtype == torch.float64 else torch.float32
    draw = torch.Generator().manual_seed(1)
    mean, variance = torch.randn(2, x.shape[1], generator=draw, dtype=torch.float64).to(device, figures)
    return mean, variance.abs(), torch.tensor(7, device=device)


def eager(x, gamma, beta, residual, eps, relu):
    out = F.batch_norm(x, None, None, gamma, beta, True, 0.0, eps)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def results(function, x, gamma, beta, residual, grad, relu):
    """[out, grad_x, grad_gamma, grad_beta, grad_residual where there is a residual] of a call."""
    inputs = [t.detach().requires_grad_() for t in (x, gamma, beta, residual) if t is not None]
    out = function(*inputs, *[None] * (4 - len(inputs)), EPS, relu)
    out = out if isinstance(out, torch.Tensor) else out[0]
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def doubled(*tensors):
    return [t if t is None else t.cpu().double() for t in tensors]


def check_all(*args):
    """As close as eager, the output and all gradients."""
    *tensors, relu = args
    floor = 1e-13 if tensors[0].dtype == torch.float64 else 0.0  # what is exact has such errors itself, by long sums
    exact = results(eager, *doubled(*tensors), relu)
    for each in zip(results(ops.bn_add_relu, *args), results(eager, *args), exact, strict=True):
        assert_as_close_as_eager(*each, floor)


def assert_close(*args, **tolerance):
    *tensors, relu = args
    exact = results(eager, *doubled(*tensors), relu)
    for o, e in zip(results(ops.bn_add_relu, *tensors, relu), exact, strict=True):
        torch.testing.assert_close(o.cpu().double(), e, **(tolerance or TOLERANCE[tensors[0].dtype]))


TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.bfloat16: {"rtol": 0.02, "atol": 0.02},
    torch.float16: {"rtol": 0.005, "atol": 0.005},
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
}


@functools.cache
def layer_shapes():
    """(channels, side) of every batch normalisation in the nets of the results, for 32×32 images."""
    v1, v2 = {"blocks": (1, 1, 1, 1)}, {"widths": (64, 128, 128, 128)}
    shapes = set()
    for arch, options in [("resnet18", {}), ("resnet50", {}), ("resnet20", {}), ("resnet18", v1), ("resnet18", v2)]:
        with torch.device("meta"):
            net = resnet(arch, **options).eval()
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.register_forward_hook(lambda _, __, out: shapes.add(out.shape[1:3]))
            net(torch.empty(1, 3, 32, 32))
    return sorted(tuple(shape) for shape in shapes)


# ---- values ----


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels, side", layer_shapes())
def test_every_layer_shape(channels, side, dtype, device):
    batch = max(2, min(8, 2**18 // (channels * side * side)))
    for residual, relu in FLAGS:
        args = draw((batch, channels, side, side), dtype, device, residual)
        check_all(*args, relu)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 1), (3, 3, 5, 7), (2, 17, 3, 3), (5, 100, 1, 2), (1, 8, 9, 1), (40, 5, 31, 33), (3, 70, 9, 9)]
)
def test_odd_shapes(shape, dtype, device):
    """Few channels, channels that fill no vector, rows that fill no block."""
    small = shape[0] * shape[2] * shape[3] < 16  # the gradient of x is what is left of a cancellation
    tolerance = {"rtol": 0.1, "atol": 0.3} if small and dtype == torch.bfloat16 else TOLERANCE[dtype]
    for residual, relu in FLAGS:
        assert_close(*draw(shape, dtype, device, residual), relu, **tolerance)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_reference_is_eager(dtype, device):
    for residual, relu in FLAGS:
        args = *draw((4, 16, 5, 5), dtype, device, residual), relu
        for got, expected in zip(results(reference.bn_add_relu, *args), results(eager, *args), strict=True):
            assert torch.equal(got, expected)


@needs_extension
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability):
    """The loops that other processors run, which torch's own switch selects."""
    code = (
        "from tests.kernels.test_bn_add_relu import *\n"
        "for dtype, shape in itertools.product(DTYPES, [(4, 16, 9, 9), (4, 64, 8, 8), (3, 70, 9, 9)]):\n"
        "    for residual, relu in FLAGS:\n"
        "        check_all(*draw(shape, dtype, residual=residual), relu)\n"
    )
    run_under(capability, code)


def any_shape(largest):
    sizes = st.integers(1, largest)
    return st.tuples(st.integers(1, 9), st.integers(1, 150), sizes, sizes).filter(lambda s: s[0] * s[2] * s[3] > 15)


def check_anywhere(shape, dtype, residual, relu, seed):
    args = draw(shape, dtype, residual=residual, seed=seed)
    ours, theirs = (results(f, *args, relu) for f in (ops.bn_add_relu, reference.bn_add_relu))
    exact = results(eager, *doubled(*args), relu)
    for o, t, e in zip(ours, theirs, exact, strict=True):
        assert (o.cpu() - e).abs().max() <= max(2 * (t.cpu() - e).abs().max(), TOLERANCE[dtype]["atol"])


arguments = {
    "dtype": st.sampled_from(DTYPES),
    "residual": st.booleans(),
    "relu": st.booleans(),
    "seed": st.integers(0, 99),
}


@needs_extension
@settings(max_examples=40, deadline=None)
@given(shape=any_shape(12), **arguments)
def test_anywhere(shape, dtype, residual, relu, seed):
    check_anywhere(shape, dtype, residual, relu, seed)


@pytest.mark.slow
@needs_extension
@settings(max_examples=2000, deadline=None)
@given(shape=any_shape(50), **arguments)
def test_anywhere_at_length(shape, dtype, residual, relu, seed):
    check_anywhere(shape, dtype, residual, relu, seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_invstd(dtype, backend, device):
    x, gamma, beta, *_ = draw((6, 24, 7, 7), dtype, device)
    _, mean, invstd = ops.bn_add_relu(x.requires_grad_(), gamma, beta, None, EPS, True)
    assert not mean.requires_grad and not invstd.requires_grad
    assert mean.dtype == invstd.dtype == gamma.dtype and mean.shape == invstd.shape == (24,)
    exact = x.detach().cpu().double()
    tolerance = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    torch.testing.assert_close(mean.cpu().double(), exact.mean((0, 2, 3)), **tolerance)
    exact = (exact.var((0, 2, 3), correction=0) + EPS).rsqrt()
    torch.testing.assert_close(invstd.cpu().double(), exact, **tolerance)


@needs_extension
@pytest.mark.parametrize("case", ["mean far from 0", "outliers first", "rows drift", "constant", "huge", "tiny"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_statistics(case, dtype, device):
    """Where sums of squares, or a badly chosen shift, would lose the variance."""
    x, gamma, beta, _, grad = draw((16, 32, 16, 16), dtype, device)
    if case == "mean far from 0":
        x = x + 3000
    elif case == "outliers first":
        x[:1] += 1e4
    elif case == "rows drift":
        x += torch.linspace(-1e3, 1e3, 16, device=device, dtype=dtype)[:, None, None, None]
    elif case == "constant":
        x = torch.full_like(x, 0.3)
    else:
        x *= 1e15 if case == "huge" else 1e-15
    _, mean, invstd = ops.bn_add_relu(x, gamma, beta, None, EPS, False)
    _, their_mean, their_invstd = reference.bn_add_relu(x, gamma, beta, None, EPS, False)
    exact = x.cpu().double()
    exact_mean, exact_invstd = exact.mean((0, 2, 3)), (exact.var((0, 2, 3), correction=0) + EPS).rsqrt()
    for ours, theirs, e in ((mean, their_mean, exact_mean), (invstd, their_invstd, exact_invstd)):
        floor = 1e-13 if dtype == torch.float64 else 4 * torch.finfo(torch.float32).eps
        assert relative_error(ours, e) <= max(1.5 * relative_error(theirs, e), floor)
    if case != "constant" and dtype != torch.float64:
        check_all(x, gamma, beta, None, grad, True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf(dtype, backend, device):
    """As eager: in x they spoil their channel, in the residual their place, and no ReLU hides a NaN."""
    nan, inf = float("nan"), float("inf")
    x, gamma, beta, residual, grad = draw((4, 16, 5, 5), dtype, device)
    x[1, 3, 2, 2], x[2, 5, 0, 0], residual[0, 7, 1, 1], residual[3, 9, 4, 4] = nan, inf, nan, -inf
    residual[3, 10, 4, 4] = inf
    for with_residual in (False, True):
        args = x, gamma, beta, residual if with_residual else None, grad, True
        for name, o, e in zip("oxgbr", results(ops.bn_add_relu, *args), results(eager, *args), strict=False):
            if name != "r":
                torch.testing.assert_close(o.isnan(), e.isnan())
            torch.testing.assert_close(o.isinf(), e.isinf())
    out = ops.bn_add_relu(x, gamma, beta, residual, EPS, True)[0]
    assert out[:, [3, 5]].isnan().all() and out[0, 7, 1, 1].isnan() and out[3, 10, 4, 4] == inf and out[3, 9, 4, 4] == 0
    assert out.isnan().sum() == 2 * 4 * 25 + 1


@needs_extension
@pytest.mark.parametrize("channels", [8, 7])
def test_a_constant_whose_square_overflows(channels, device):
    """Its variance is 0, which it is not everywhere in torch."""
    skip_without_kernels(device)
    x = torch.full((2, channels, 4, 4), 2e19, device=device).contiguous(memory_format=torch.channels_last)
    _, mean, invstd = ops.bn_add_relu(
        x, *torch.tensor([[1.0], [0.0]], device=device).expand(2, channels), None, EPS, True
    )
    torch.testing.assert_close(mean, torch.full_like(mean, 2e19))
    torch.testing.assert_close(invstd, torch.full_like(invstd, EPS**-0.5))


def test_a_constant_channel_without_eps(backend, device):
    """As in torch: its inverse standard deviation is 0, and the channel becomes its beta."""
    x = torch.full((2, 8, 4, 4), 3.0, device=device).contiguous(memory_format=torch.channels_last)
    gamma, beta = torch.ones(8, device=device), torch.linspace(-1, 1, 8, device=device)
    out, _, invstd = ops.bn_add_relu(x, gamma, beta, None, 0.0, False)
    assert torch.equal(invstd, torch.zeros_like(invstd)) and torch.equal(out, beta.view(8, 1, 1).expand_as(out))


def test_nan_passes_the_mask(backend, device):
    """`!(out <= 0)`: where the output is NaN, the gradient goes through."""
    x, gamma, beta, residual, grad = draw((4, 16, 5, 5), device=device)
    residual[0, 7, 1, 1] = float("nan")
    *_, grad_residual = results(ops.bn_add_relu, x, gamma, beta, residual, grad, True)
    assert grad_residual[0, 7, 1, 1] == grad[0, 7, 1, 1]


def test_gradients_that_are_not_asked_for(backend, device):
    x, gamma, beta, residual, grad = draw((4, 16, 5, 5), device=device)
    everything = results(ops.bn_add_relu, x, gamma, beta, residual, grad, True)[1:]
    for i in range(4):
        inputs = [t.detach().requires_grad_(i == j) for j, t in enumerate((x, gamma, beta, residual))]
        ops.bn_add_relu(*inputs, EPS, True)[0].backward(grad)
        assert [t.grad is not None for t in inputs] == [i == j for j in range(4)]
        torch.testing.assert_close(inputs[i].grad, everything[i])
    assert not ops.bn_add_relu(x, gamma, beta, residual, EPS, True)[0].requires_grad


def test_layouts(backend, device):
    """Any strides give what channels_last copies give, and the inputs are left alone."""
    x, gamma, beta, residual, grad = draw((6, 16, 8, 8), device=device)
    wanted = results(ops.bn_add_relu, x, gamma, beta, residual, grad, True)
    wide = torch.stack([gamma, gamma], 1)[:, 0]
    layouts = {
        "all NCHW": [t.contiguous() for t in (x, gamma, beta, residual, grad)],
        "residual NCHW": [x, gamma, beta, residual.contiguous(), grad],
        "gradient NCHW": [x, gamma, beta, residual, grad.contiguous()],
        "gaps": [torch.cat([x, x], 3)[..., :8], wide, beta, torch.cat([residual, x], 1)[:, :16], grad],
    }
    for name, args in layouts.items():
        before = [t.clone() for t in args]
        for o, w in zip(results(ops.bn_add_relu, *args, True), wanted, strict=True):
            torch.testing.assert_close(o, w, msg=lambda text, name=name: f"{name}: {text}")
        assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True)), name
    ones = torch.ones(1, 1, 1, 1, device=device)
    expanded = results(ops.bn_add_relu, x, gamma, beta, residual, ones.expand_as(grad), True)
    full = results(ops.bn_add_relu, x, gamma, beta, residual, torch.ones_like(grad), True)
    assert all(torch.equal(a, b) for a, b in zip(expanded, full, strict=True))


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    args = draw((32, 16, 32, 32), dtype)
    runs = outcomes_by_threads(lambda: results(ops.bn_add_relu, *args, True))
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


def test_eager_float16(device):
    """On a CPU no kernel takes it, and the reference does."""
    assert ops.supported("bn_add_relu", *draw((4, 16, 5, 5), torch.float16, device)[:4]) == (
        device.type == "cuda" and "cuda" in kernels.backend._kernel_devices
    )
    for residual, relu in FLAGS:
        check_all(*draw((8, 16, 8, 8), torch.float16, device, residual), relu)


# ---- backward, the operator itself ----


@pytest.mark.parametrize("dtype", DTYPES)
@needs_extension
def test_backward_equals_its_reference(dtype, device):
    x, gamma, beta, residual, grad = draw((4, 20, 6, 6), dtype, device)
    for with_residual, relu in FLAGS:
        out, mean, invstd = ops.bn_add_relu(x, gamma, beta, residual if with_residual else None, EPS, relu)
        args = grad, x, gamma, beta, mean, invstd, out if with_residual and relu else None, relu
        ours, theirs = torch.ops.resnet_min.bn_add_relu_backward(*args), reference.bn_add_relu_backward(*args)
        for o, t in zip(ours, theirs, strict=True):
            torch.testing.assert_close(o, t, **TOLERANCE[dtype])


@pytest.mark.parametrize("residual, relu", FLAGS)
def test_gradcheck(residual, relu, backend, device):
    args = [t for t in draw((3, 5, 3, 2), torch.float64, device, residual)[:4] if t is not None]

    def out(*args):
        return ops.bn_add_relu(*args, *[None] * (4 - len(args)), EPS, relu)[0]

    assert torch.autograd.gradcheck(out, [t.requires_grad_() for t in args])


@needs_extension
def test_no_second_derivative():
    x, gamma, beta, *_ = draw((4, 16, 5, 5))
    out = ops.bn_add_relu(x.requires_grad_(), gamma, beta, None, EPS, True)[0]
    with pytest.raises(
        RuntimeError,
        match="bn_add_relu: its compiled kernel has no second derivative",
    ):
        torch.autograd.grad(out.sum(), x, create_graph=True)


# ---- errors ----


BAD = {  # argument: (what makes it bad, the message)
    "x": [
        (lambda t: t.long(), "x must be DTYPES [B, C, H, W]; got int64 [4, 16, 5, 5]"),
        (lambda t: t[0], "x must be DTYPES [B, C, H, W]; got float32 [16, 5, 5]"),
        (lambda t: t[:1, :, :1, :1], "x must have VALUES; got float32 [1, 16, 1, 1]"),
        (lambda t: t[:0], "x must have VALUES; got float32 [0, 16, 5, 5]"),
        (lambda t: t[:, :0], "x must have VALUES; got float32 [4, 0, 5, 5]"),
        (lambda t: t.double(), "gamma must be float64 [16]; got float32 [16]"),
        (lambda t: t[:, :8], "gamma must be float32 [8]; got float32 [16]"),
    ],
    "gamma": [
        (lambda t: t.bfloat16(), "gamma must be float32 [16]; got bfloat16 [16]"),
        (lambda t: t[:, None], "gamma must be float32 [16]; got float32 [16, 1]"),
    ],
    "beta": [(lambda t: t[1:], "beta must be float32 [16]; got float32 [15]")],
    "residual": [
        (lambda t: t.bfloat16(), "residual must be float32 [4, 16, 5, 5]; got bfloat16 [4, 16, 5, 5]"),
        (lambda t: t[:, :1], "residual must be float32 [4, 16, 5, 5]; got float32 [4, 1, 5, 5]"),
    ],
    "eps": [
        (lambda e: -1.0, "eps must be finite and at least 0; got -1"),
        (lambda e: float("nan"), "eps must be finite and at least 0; got nan"),
        (lambda e: float("inf"), "eps must be finite and at least 0; got inf"),
    ],
    "running_mean": [
        (lambda t: t.double(), "running_mean must be float32 [16]; got float64 [16]"),
        (lambda _: None, "running_mean, running_var and num_batches_tracked go together; got not all"),
    ],
    "running_var": [(lambda t: t[1:], "running_var must be float32 [16]; got float32 [15]")],
    "num_batches_tracked": [
        (lambda t: t.float(), "num_batches_tracked must be int64 []; got float32 []"),
        (lambda t: t[None], "num_batches_tracked must be int64 []; got int64 [1]"),
    ],
}
BAD_BACKWARD = {
    "grad": [(lambda t: t[1:], "grad must be float32 [4, 16, 5, 5]; got float32 [3, 16, 5, 5]")],
    "x": BAD["x"][:5],
    "gamma": BAD["gamma"],
    "beta": BAD["beta"],
    "mean": [(lambda t: t.double(), "mean must be float32 [16]; got float64 [16]")],
    "invstd": [(lambda t: t[:1], "invstd must be float32 [16]; got float32 [1]")],
    "out": [(lambda t: t.double(), "out must be float32 [4, 16, 5, 5]; got float64 [4, 16, 5, 5]")],
    "relu": [(lambda _: False, "out must be None without relu; got float32 [4, 16, 5, 5]")],
}


def flat(bad):
    return pytest.mark.parametrize("name, spoil, message", [(n, *case) for n, cases in bad.items() for case in cases])


def forward_arguments(device):
    x, gamma, beta, residual, _ = draw((4, 16, 5, 5), device=device)
    given = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, "eps": EPS, "relu": True}
    return given | dict(zip(("running_mean", "running_var", "num_batches_tracked"), buffers(x, device), strict=True))


def backward_arguments(device):
    x, gamma, beta, residual, grad = draw((4, 16, 5, 5), device=device)
    out, mean, invstd = reference.bn_add_relu(x, gamma, beta, residual, EPS, True)
    return dict(grad=grad, x=x, gamma=gamma, beta=beta, mean=mean, invstd=invstd, out=out, relu=True)


def assert_refused(operator, function, args, name, spoil, message):
    args[name] = spoil(args[name])
    if name == "x" and args[name].dim() == 4:
        args[name] = args[name].contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError) as error:
        function(**args)
    message = message.replace("DTYPES", "float32, bfloat16, float16 or float64")
    message = message.replace("VALUES", "channels, and more than 1 value per channel")
    assert str(error.value).splitlines()[0] in (f"{operator}: {message}", REFUSAL.format(operator))
    return str(error.value)


@flat(BAD)
def test_bad_argument(name, spoil, message, backend, device):
    said = assert_refused("bn_add_relu", ops.bn_add_relu, forward_arguments(device), name, spoil, message)
    assert "kernel" not in said


@needs_extension
@flat(BAD)
def test_kernel_refuses(name, spoil, message, device):
    operator = torch.ops.resnet_min.bn_add_relu
    assert "kernel" in assert_refused("bn_add_relu", operator, forward_arguments(device), name, spoil, message)


@needs_extension
@flat(BAD_BACKWARD)
def test_backward_refuses(name, spoil, message, device):
    for holder in (torch.ops.resnet_min, reference):
        function, args = holder.bn_add_relu_backward, backward_arguments(device)
        said = assert_refused("bn_add_relu_backward", function, args, name, spoil, message)
        assert ("kernel" in said) == (holder is torch.ops.resnet_min)


@needs_extension
def test_kernel_refuses_other_layouts(device):
    """`ops.bn_add_relu` sends them to the reference; the operators themselves say no."""
    operators = torch.ops.resnet_min
    for operator, args in (
        (operators.bn_add_relu, forward_arguments(device)),
        (operators.bn_add_relu_backward, backward_arguments(device)),
    ):
        args["x"] = args["x"].contiguous()
        with pytest.raises(ValueError, match=r"x must be channels_last; got strides \[400, 25, 5, 1\]"):
            operator(**args)


def test_two_values_per_channel_are_enough(backend, device):
    x = torch.tensor([1.0, 3.0], device=device).view(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    gamma, beta = torch.ones(1, device=device), torch.zeros(1, device=device)
    out, mean, invstd = ops.bn_add_relu(x, gamma, beta, None, 0.0, False)
    assert (out.flatten().tolist(), mean.item(), invstd.item()) == ([-1, 1], 2, 1)


def test_one_value_per_channel_is_eagers_error():
    for error in (lambda x: F.batch_norm(x, None, None, training=True), lambda x: resnet("resnet20").train()(x)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            error(torch.zeros(1, 3, 1, 1).contiguous(memory_format=torch.channels_last))


@needs_gpu
@pytest.mark.parametrize("name", ["gamma", "beta", "residual"])
def test_arguments_on_two_devices(name):
    args = forward_arguments("cuda")
    args[name] = args[name].cpu()
    with pytest.raises(ValueError, match=f"{name} must be on cuda:0; got cpu"):
        ops.bn_add_relu(**args)


# ---- as an operator ----


@needs_extension
@pytest.mark.parametrize("residual, relu", FLAGS)
def test_opcheck(residual, relu, device):
    skip_without_kernels(device)
    for dtype in (torch.float32, torch.bfloat16):
        x, gamma, beta, extra, grad = draw((3, 16, 4, 4), dtype, device, residual)
        args = [t if t is None else t.requires_grad_() for t in (x, gamma, beta, extra)]
        torch.library.opcheck(torch.ops.resnet_min.bn_add_relu.default, (*args, EPS, relu))
        torch.library.opcheck(torch.ops.resnet_min.bn_add_relu.default, (*args, EPS, relu, *buffers(x, device), 0.1))
    args = [t if t is None else t.detach() for t in args]
    out, mean, invstd = torch.ops.resnet_min.bn_add_relu(*args, EPS, relu)
    args = grad, *args[:3], mean, invstd, out if residual and relu else None, relu
    torch.library.opcheck(torch.ops.resnet_min.bn_add_relu_backward.default, args)


def test_compiles_without_a_graph_break(backend, device):
    compiled = torch.compile(ops.bn_add_relu, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 7):
        args = draw((batch, 16, 5, 5), device=device)
        for o, w in zip(results(compiled, *args, True), results(ops.bn_add_relu, *args, True), strict=True):
            torch.testing.assert_close(o, w)


def test_compiled_it_updates_the_buffers_too(backend, device):
    x, gamma, beta, *_ = draw((4, 16, 5, 5), device=device)
    runs = []
    for function in (ops.bn_add_relu, torch.compile(ops.bn_add_relu, fullgraph=True, backend="aot_eager")):
        running = buffers(x, device)
        function(x, gamma.requires_grad_(), beta, None, EPS, True, *running, 0.1)[0].sum().backward()
        runs.append(running)
    torch.testing.assert_close(*runs)
    assert runs[0][2] == 8


# ---- the running statistics ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 16, 5, 5), (2, 3, 1, 1), (3, 70, 9, 9), (40, 5, 31, 33)])
def test_running_statistics_by_the_operator(shape, dtype, backend, device):
    x, gamma, beta, residual, _ = draw(shape, dtype, device)
    for momentum in (0.1, 1.0, 0.0):
        running = buffers(x, device)
        mean, variance, batches = (t.cpu().double() for t in running)
        F.batch_norm(x.cpu().double(), mean, variance, training=True, momentum=momentum)
        versions = [t._version for t in running]
        ops.bn_add_relu(x, gamma, beta, residual, EPS, True, *running, momentum)
        for got, wanted in zip(running, (mean, variance, batches + 1), strict=True):
            torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-4, atol=1e-5)
        if backend == "extension":  # torch does not say that it changes them
            assert all(t._version > before for t, before in zip(running, versions, strict=True))


@needs_extension
def test_buffers_with_gaps_are_the_references(device):
    x, gamma, beta, *_ = draw((4, 16, 5, 5), device=device)
    mean, variance, batches = buffers(x, device)
    spread = torch.zeros(16, 2, device=device)[:, 0].copy_(mean)
    with pytest.raises(ValueError, match="the kernel does not take these arguments"):
        torch.ops.resnet_min.bn_add_relu(x, gamma, beta, None, EPS, True, spread, variance, batches)
    for f, args in (
        (ops.bn_add_relu, (spread, variance.clone(), batches)),
        (reference.bn_add_relu, (mean, variance, batches)),
    ):
        f(x, gamma, beta, None, EPS, True, *args)
    torch.testing.assert_close(spread, mean)


# ---- in the model ----


@pytest.fixture
def calls(monkeypatch):
    """The operator's calls from the model, each with (bn's channels, residual or not, relu)."""
    made, original = [], ops.bn_add_relu

    def counted(x, gamma, beta, residual, eps, relu, *running):
        made.append((len(gamma), residual is not None, relu))
        return original(x, gamma, beta, residual, eps, relu, *running)

    monkeypatch.setattr(kernels.bn_add_relu, "bn_add_relu", counted)
    return made


def images(batch=8, size=16, device="cpu"):
    made = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return made.to(device).contiguous(memory_format=torch.channels_last)


def network(arch="resnet20", device="cpu", **options):
    torch.manual_seed(0)
    return resnet(arch, **options).to(device, memory_format=torch.channels_last)


@needs_extension
@pytest.mark.parametrize(
    "arch, options, count",
    [
        ("resnet20", {}, 19),
        ("resnet18", {}, 20),
        ("resnet18", {"plain": True}, 17),
        ("resnet50", {"blocks": (1, 1, 1, 1)}, 17),
    ],
    ids=["resnet20", "resnet18", "resnet18 plain", "resnet50 V1"],
)
def test_training_calls_it_for_every_layer_and_eval_never(arch, options, count, calls):
    net = network(arch, **options)
    net.train()(images(4))
    assert len(calls) == count == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    net.eval()(images(4))
    assert len(calls) == count


@needs_extension
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_steps_with_and_without_kernels(dtype, memory_format, device):
    """Loss by loss, running statistics and weights; bf16 goes its own ways, but no further than rounding takes it."""
    runs = []
    for name in ("extension", "reference"):
        ops.set_backend(name)
        net = network(device=device, blocks=(1, 1, 1)).to(memory_format=memory_format)
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        losses = []
        for _ in range(3):
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = net(images(16, 16, device).contiguous(memory_format=memory_format))
            loss = F.cross_entropy(logits.float(), torch.arange(16, device=device) % 10)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        runs.append((losses, net.state_dict()))
    ops.set_backend("auto")
    (ours, state), (theirs, their_state) = runs
    assert ours == pytest.approx(theirs, rel=1e-3 if dtype == torch.float32 else 0.1)
    assert ours[-1] < ours[0]
    if dtype == torch.float32:
        torch.testing.assert_close(state, their_state, rtol=1e-2, atol=1e-3)


@needs_extension
def test_gradients_of_a_step(device):
    """One step in float64, where nothing but the arithmetic's order differs: every gradient, every buffer."""
    runs = []
    for name in ("extension", "reference"):
        ops.set_backend(name)
        net = network("resnet18", device, widths=(8, 16, 24, 32)).double()
        F.cross_entropy(net(images(8, 32, device).double()), torch.arange(8, device=device)).backward()
        runs.append({n: p.grad for n, p in net.named_parameters()} | dict(net.named_buffers()))
    ops.set_backend("auto")
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-11)


@needs_extension
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, 0.0, None])
def test_running_statistics_are_batchnorms(momentum, device):
    ours = nn.BatchNorm2d(16, momentum=momentum, eps=1e-3).to(device)
    theirs = copy.deepcopy(ours)
    for seed in range(4):
        x = draw((4, 16, 5, 5), device=device, seed=seed)[0]
        model.bn_add_relu(x, ours)
        theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-6)
    assert ours.num_batches_tracked == 4


def watch(net):
    seen = []
    net.layer1[0].bn1.register_forward_hook(lambda *_: seen.append("bn"))
    net.layer1[1].relu2.register_forward_pre_hook(lambda *_: seen.append("relu"))
    net.layer2[0].bn2.register_full_backward_hook(lambda *_: seen.append("gradient"))
    return seen


class LoudBatchNorm(nn.BatchNorm2d):
    pass


def replace(net, make):
    net.layer1[0].bn1 = make(16)
    net.layer2[0].bn2 = make(32)


@needs_extension
@pytest.mark.parametrize(
    "change, left_out",
    [
        (watch, 3),
        (lambda net: net.layer1.eval(), 6),
        (lambda net: net.layer1.requires_grad_(False), 0),  # frozen weights still normalise by the batch
        (lambda net: replace(net, LoudBatchNorm), 2),
        (lambda net: replace(net, functools.partial(nn.BatchNorm2d, affine=False)), 2),
        (lambda net: replace(net, functools.partial(nn.BatchNorm2d, track_running_stats=False)), 2),
        (lambda net: replace(net, nn.SyncBatchNorm), 2),
        (lambda net: setattr(net.layer1[0], "relu1", nn.LeakyReLU()), 1),
        (lambda net: net.bfloat16(), 19),
        (lambda net: net.to(memory_format=torch.contiguous_format), 19),
    ],
    ids=["hooks", "frozen", "no grad", "subclass", "no affine", "no tracking", "sync", "leaky", "bf16 weights", "NCHW"],
)  # fmt: skip
def test_what_the_operator_cannot_do_the_modules_do(change, left_out, calls):
    net = network().train()
    x = images()
    seen = change(net)
    if left_out == 19:
        x = x.to(net.conv1.weight.dtype).contiguous()
    twin = copy.deepcopy(net)
    out = net(x)
    assert len(calls) == 19 - left_out
    out.sum().backward()
    if isinstance(seen, list):
        assert seen == ["bn", "relu", "gradient"]
    ops.set_backend("reference")
    room = 0.03 if out.dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(out, twin(x), rtol=room, atol=room)
    ops.set_backend("auto")
    torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()), rtol=room, atol=room)


@needs_extension
def test_another_layout_is_warned_of_once():
    """By whatever block meets it first, where only the layout keeps the kernels from running."""
    kernels.bn_add_relu._warn_of_layout.cache_clear()
    net, nchw = network(blocks=(1, 1, 1)), images().contiguous()

    def warned():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net(nchw)
        return [str(warning.message) for warning in caught]

    net.to(memory_format=torch.contiguous_format)
    ops.set_backend("reference")
    assert not warned()
    ops.set_backend("auto")
    net.eval()
    assert not warned()
    net.half().train()
    nchw = nchw.half()
    assert not warned()  # of another dtype, which no CPU kernel takes
    net.float()
    nchw = nchw.float()
    (message,) = warned()
    assert "channels_last" in message and "net.to(memory_format=torch.channels_last)" in message
    assert not warned()


@needs_extension
def test_global_hooks_see_everything(calls):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        network().train()(images())
    finally:
        handle.remove()
    assert not calls and seen.count(nn.BatchNorm2d) == seen.count(nn.ReLU) == 19


@needs_extension
def test_a_residual_of_another_dtype_is_promoted_as_ever(calls):
    """Under autocast a float32 input meets the block's bfloat16."""
    block = network().layer1[0].train()
    with torch.autocast("cpu", torch.bfloat16):
        out = block(torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last))
    assert out.dtype == torch.float32 and calls == [(16, False, True)]


@needs_extension
def test_autocast_keeps_its_dtypes(calls):
    net = network().train()
    seen = []
    net.layer2[0].register_forward_hook(lambda _, args, out: seen.extend((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        net(images())
    assert len(calls) == 19 and seen == [torch.bfloat16, torch.bfloat16]


@needs_extension
def test_eval_is_the_modules_bit_for_bit():
    net = network().eval()
    with torch.no_grad():
        ours = net(images())
        ops.set_backend("reference")
        theirs = net(images())
        ops.set_backend("auto")
    assert torch.equal(ours, theirs)


@needs_extension
def test_the_net_compiles_without_a_graph_break():
    net, twin = network(blocks=(1,), widths=(16,)).train(), network(blocks=(1,), widths=(16,)).train()
    out = torch.compile(net, fullgraph=True, backend="aot_eager")(images())
    expected = twin(images())
    torch.testing.assert_close(out, expected)
    out.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(
        {n: p.grad for n, p in net.named_parameters()}, {n: p.grad for n, p in twin.named_parameters()}
    )
    torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()))


def test_a_tracer_gets_the_modules():
    graph = torch.fx.symbolic_trace(network().train())
    assert sum(node.op == "call_module" and ".bn" in node.target for node in graph.graph.nodes) == 18
