"""conv_bn_relu: values against float64, its checks, and what it is as an operator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resnet_min import ops, reference
from resnet_min.kernels import conv_bn_relu
from resnet_min.model import resnet

from .conftest import REFUSAL, assert_as_close_as_eager, needs_extension, needs_gpu, outcomes_by_threads

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NETS = [
    ("resnet18", {}),
    ("resnet50", {}),
    ("resnet20", {}),
    ("resnet18", {"blocks": (1, 1, 1, 1)}),  # V1
    ("resnet18", {"widths": (64, 128, 128, 128)}),  # V2
    ("resnet18", {"stem": "imagenet"}),
]


def draw(
    batch=2, inputs=16, size=(8, 8), outputs=16, kernel=3, stride=1, padding=1, relu=True,
    dtype=torch.float32, device="cpu", residual=True, seed=0,
):  # fmt: skip
    """Arguments of conv_bn_relu, all channels_last; the convolution's output has about the residual's variance."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        values = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).to(device)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    x, weight = normal(batch, inputs, *size), normal(outputs, inputs, kernel, kernel)
    weight /= (inputs * kernel**2) ** 0.5
    shape = reference.conv_output_shape(x, weight, stride, padding)
    return x, weight, normal(outputs), normal(*shape) if residual else None, stride, padding, relu


def in_float64(x, weight, bias, residual, *options):
    """The contract, on the CPU."""
    tensors = [None if t is None else t.cpu().double() for t in (x, weight, bias, residual)]
    return reference.conv_bn_relu(*tensors, *options)


def assert_close_enough(got, args):
    """The design's rule: at most 1.5 times eager PyTorch's error in the same dtype, or the dtype's eps."""
    exact = in_float64(*args)
    assert got.dtype == args[0].dtype and got.shape == exact.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))  # with one, torch has small 1×1 convolutions done by another library
    eager = reference.conv_bn_relu(*args)
    torch.set_num_threads(threads)
    assert_as_close_as_eager(got, eager, exact)


def layer_shapes():
    """{(inputs, size, outputs, kernel, stride, padding)} of our nets' convolutions, on 32×32 images."""
    found = set()

    def note(conv, inputs):
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
        found.add((conv.in_channels, inputs[0].shape[2:], conv.out_channels, kernel, stride, padding))

    with torch.device("meta"), torch.no_grad():
        for arch, options in NETS:
            net = resnet(arch, **options).eval()
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_pre_hook(note)
            net(torch.empty(1, 3, 32, 32))
    return sorted(found)


# ---- values ----


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layer_of_our_nets(dtype, device):
    for seed, (inputs, size, outputs, kernel, stride, padding) in enumerate(layer_shapes()):
        for residual in (False, True):
            relu = residual or kernel > 1  # without: a projection, whose output is another convolution's residual
            args = draw(
                2, inputs, size, outputs, kernel, stride, padding, relu,
                dtype=dtype, device=device, residual=residual, seed=seed,
            )  # fmt: skip
            assert_close_enough(ops.conv_bn_relu(*args), args)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_it_is_what_its_contract_says(residual, relu, backend, device):
    """One value at a time."""
    x, weight, bias, other, stride, padding, relu = args = draw(
        2, 2, (5, 4), 3, 3, 2, 1, relu, dtype=torch.float64, device=device, residual=residual
    )
    got = ops.conv_bn_relu(*args).cpu()
    padded = nn.functional.pad(x, (padding,) * 4).cpu()
    assert got.shape == (2, 3, 3, 2)
    for b, o, i, j in [(b, o, i, j) for b in range(2) for o in range(3) for i in range(3) for j in range(2)]:
        window = padded[b, :, stride * i : stride * i + 3, stride * j : stride * j + 3]
        value = (window * weight[o].cpu()).sum() + bias[o].cpu() + (other[b, o, i, j].cpu() if residual else 0)
        torch.testing.assert_close(got[b, o, i, j], value.clamp(min=0) if relu else value)


@needs_extension
@pytest.mark.parametrize("residual", [False, True])
def test_bfloat16_in_an_output_one_column_wide(residual, device):
    """With AMX, oneDNN reads beyond these maps where it strides, and eager PyTorch is wrong."""
    for seed, layer in enumerate(
        [(2, (11, 3), 1, 3, 2, 0), (30, (17, 1), 4, 7, 2, 3), (38, (19, 5), 19, 7, 3, 1), (64, (19, 5), 20, 7, 2, 1)]
    ):
        args = draw(2, *layer, True, dtype=torch.bfloat16, device=device, residual=residual, seed=seed)
        got = ops.conv_bn_relu(*args)
        assert got.dtype == torch.bfloat16 and got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got.cpu().double(), in_float64(*args), rtol=0.03, atol=0.03)


def check_anywhere(shape, kernel, outputs, stride, padding, relu, residual, dtype, seed):
    batch, inputs, *size = shape
    size = [max(n, kernel - 2 * padding) for n in size]
    args = draw(batch, inputs, size, outputs, kernel, stride, padding, relu, dtype, residual=residual, seed=seed)
    got, expected = ops.conv_bn_relu(*args), in_float64(*args)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


anywhere = given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    kernel=st.sampled_from([1, 2, 3, 5, 7]),
    outputs=st.integers(1, 40),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    relu=st.booleans(),
    residual=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
test_any_shape = needs_extension(settings(max_examples=60, deadline=None)(anywhere(check_anywhere)))
test_any_shape_long = pytest.mark.slow(
    needs_extension(settings(max_examples=3000, deadline=None)(anywhere(check_anywhere)))
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(dtype, backend, device):
    """Any strides give what channels_last does, bit for bit, and the inputs are left alone."""
    args = draw(4, 16, (12, 10), 16, dtype=dtype, device=device)
    x, weight, bias, residual, *rest = args
    expected = ops.conv_bn_relu(*args)
    wide, doubled = torch.cat([x, x], dim=3), torch.stack([bias, bias], dim=1)
    layouts = {
        "NCHW": (x.contiguous(), weight, bias, residual),
        "all NCHW": (x.contiguous(), weight.contiguous(), bias, residual.contiguous()),
        "columns of a wider map": (wide[..., :10], weight, bias, residual),
        "every second value of bias": (x, weight, doubled[:, 0], residual),
        "every second value of weight": (x, torch.stack([weight, weight], dim=-1)[..., 0], bias, residual),
        "width before height": (x.transpose(2, 3).contiguous().transpose(2, 3), weight, bias, residual),
    }
    for name, tensors in layouts.items():
        before = [t.clone() for t in tensors]
        assert torch.equal(ops.conv_bn_relu(*tensors, *rest), expected), name
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True)), name


def test_overlapping_strides(backend, device):
    x, weight, bias, residual, *rest = draw(3, 16, (8, 8), 16, device=device)
    x, residual = x[:1].expand(3, -1, -1, -1), residual[:, :, :1].expand(-1, -1, 8, -1)
    got = ops.conv_bn_relu(x, weight, bias, residual, *rest)
    assert torch.equal(got, ops.conv_bn_relu(x.clone(), weight, bias, residual.clone(), *rest))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
def test_empty_batch(residual, dtype, backend, device):
    out = ops.conv_bn_relu(*draw(0, 16, (8, 6), 32, stride=2, dtype=dtype, device=device, residual=residual))
    assert out.shape == (0, 32, 4, 3) and out.dtype == dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_near(value, backend, device):
    """In whatever form a convolution is: where the input has it, and at most in tiles of 4 × 4 that see it."""
    x, weight, bias, *_ = draw(2, 64, (16, 16), 64, device=device)
    x[1, 3, 8, 8] = value
    out = ops.conv_bn_relu(x, weight, bias, None, 1, 1, False)
    assert not out[1, :, 7:10, 7:10].isfinite().any()
    out[1, :, 4:13, 4:13] = 0
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity(dtype, backend, device):
    """NaN is kept, but oneDNN's ReLU, in bfloat16, may make 0 of it, as documented."""
    x, weight, bias, residual, *_ = draw(2, 16, (8, 8), 16, dtype=dtype, device=device)
    for value, spoiled in ((float("nan"), (x, residual)), (float("inf"), (residual,))):
        for tensor in spoiled:
            before = tensor[1, 3, 4, 4].clone()
            tensor[1, 3, 4, 4] = value
            plain = ops.conv_bn_relu(x, weight, bias, residual, 1, 1, False)
            got = ops.conv_bn_relu(x, weight, bias, residual, 1, 1, True)
            tensor[1, 3, 4, 4] = before
            assert torch.equal(plain[0].relu(), got[0]), "another image"
            nan = plain.isnan()
            assert nan.any() == (value != value) and plain.isinf().any() == (value == float("inf"))
            assert torch.equal(got[~nan], plain[~nan].relu())
            zeros_allowed = backend == "extension" and device.type == "cpu" and dtype == torch.bfloat16
            assert (got[nan].isnan() | ((got[nan] == 0) & zeros_allowed)).all()


def test_more_than_one_thread_gives_the_same(backend):
    args = draw(17, 32, (9, 9), 48)
    outs = outcomes_by_threads(lambda: ops.conv_bn_relu(*args))
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_autocast_changes_nothing(backend, device, dtype, kernel):
    """The dtype is x's, which here has to be the residual's as well."""
    args = draw(kernel=kernel, dtype=dtype, device=device)
    wanted = ops.conv_bn_relu(*args)
    for other in (torch.bfloat16, torch.float16):
        with torch.autocast(device.type, other):
            assert torch.equal(ops.conv_bn_relu(*args), wanted)


# ---- the prepacked weight ----


@needs_extension
@pytest.mark.parametrize("inputs, kernel, stride, padding", [(3, 7, 2, 3), (16, 3, 1, 1), (64, 1, 2, 0), (17, 3, 2, 1)])
def test_a_prepacked_weight_gives_the_same(inputs, kernel, stride, padding):
    x, weight, *rest = draw(4, inputs, (16, 16), 32, kernel, stride, padding, dtype=torch.bfloat16)
    if not ops.takes_prepacked(x, weight):
        pytest.skip("this processor's oneDNN does not convolve in bfloat16")
    prepacked = ops.prepacked(weight, x, stride, padding)
    assert prepacked.is_mkldnn and torch.equal(prepacked.to_dense(), weight)
    for cut in (x, x[:1], x[:3, :, :9, :13]):  # other shapes than it was made for
        bias, _, *options = rest
        for residual in (None, torch.ones_like(reference.conv_bn_relu(cut, weight, bias, None, *options))):
            got = ops.conv_bn_relu(cut, prepacked, bias, residual, *options)
            assert_close_enough(got, (cut, weight, bias, residual, *options))


@needs_extension
def test_only_onednn_takes_a_prepacked_weight(monkeypatch):
    x, weight, *_ = draw(dtype=torch.bfloat16)
    assert ops.takes_prepacked(x, weight) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(conv_bn_relu, "_onednn_has_bf16", lambda: True)  # whatever the processor
    assert ops.takes_prepacked(x, weight)
    assert not ops.takes_prepacked(x.float(), weight.float())
    assert not ops.takes_prepacked(x.to("meta"), weight)
    ops.set_backend("reference")
    assert not ops.takes_prepacked(x, weight)
    ops.set_backend("auto")


@needs_extension
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own flags() warns
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
def test_where_onednn_is_missing(residual, dtype):
    """Switched off, as in a torch or on a processor without: also for a weight that was prepacked before."""
    args = draw(residual=residual, dtype=dtype)
    x, weight, *rest = args
    weights = [weight, *([ops.prepacked(weight, x, 1, 1)] if ops.takes_prepacked(x, weight) else [])]
    with torch.backends.mkldnn.flags(enabled=False):
        for each in weights:
            assert_close_enough(ops.conv_bn_relu(x, each, *rest), args)


@needs_extension
def test_a_weight_of_five_dimensions_is_refused():
    x, weight, *rest = draw(inputs=40)
    for five in (weight[None], torch.zeros(1, 4, 4, 40, 16)):
        with pytest.raises(ValueError, match=r"weight must be float32 \[O, 40, h, w\]"):
            ops.conv_bn_relu(x, five, *rest)
        with pytest.raises(ValueError, match=REFUSAL.format("conv_bn_relu")):
            torch.ops.resnet_min.conv_bn_relu(x, five, *rest)


@needs_extension
def test_padding_beyond_the_weight():
    """Rows and columns that are nothing but padding; more of it than a map of memory would hold."""
    for size, padding, stride in (((5, 4), 6, 2), ((1, 1), 2**15, 2**15)):
        args = draw(2, 16, size, 16, 3, stride, padding)
        assert_close_enough(ops.conv_bn_relu(*args), args)


@needs_extension
def test_the_first_call_gives_what_the_next_ones_do():
    args = draw(4, 64, (8, 8), 64)
    first, *others = [ops.conv_bn_relu(*args) for _ in range(3)]
    assert all(torch.equal(first, other) for other in others)
    args[1].mul_(2)
    doubled = ops.conv_bn_relu(*args)
    assert torch.equal(doubled, ops.conv_bn_relu(args[0], args[1].clone(), *args[2:]))
    assert not torch.equal(doubled, first)


# ---- errors ----

FLOATS = "float32, bfloat16, float16 or float64"
BAD = {  # argument: (what makes it bad, the message)
    "x": [
        (lambda t: t.long(), f"x must be {FLOATS} [B, C, H, W]; got int64 [2, 16, 8, 8]"),
        (lambda t: t[0], f"x must be {FLOATS} [B, C, H, W]; got float32 [16, 8, 8]"),
        (lambda t: t.double(), "weight must be float64 [O, 16, h, w]; got float32 [8, 16, 3, 3]"),
        (lambda t: t[:, :3], "weight must be float32 [O, 3, h, w]; got float32 [8, 16, 3, 3]"),
        (
            lambda t: t[:, :, :0, :0],
            "weight must fit into x and its padding of 1; got weight [8, 16, 3, 3] and x [2, 16, 0, 0]",
        ),
        (lambda t: t[:1], "residual must be float32 [1, 8, 4, 4]; got float32 [2, 8, 4, 4]"),
    ],
    "weight": [
        (lambda t: t[0], "weight must be float32 [O, 16, h, w]; got float32 [16, 3, 3]"),
        (lambda t: t.bfloat16(), "weight must be float32 [O, 16, h, w]; got bfloat16 [8, 16, 3, 3]"),
        (lambda t: t[:0], "weight must have no empty dimension; got [0, 16, 3, 3]"),
        (lambda t: t[:5], "bias must be float32 [5]; got float32 [8]"),
    ],
    "bias": [
        (lambda t: t[:, None], "bias must be float32 [8]; got float32 [8, 1]"),
        (lambda t: t.double(), "bias must be float32 [8]; got float64 [8]"),
    ],
    "residual": [
        (lambda t: t[:, :, :1, :1], "residual must be float32 [2, 8, 4, 4]; got float32 [2, 8, 1, 1]"),
        (lambda t: t.half(), "residual must be float32 [2, 8, 4, 4]; got float16 [2, 8, 4, 4]"),
    ],
    "stride": [
        (lambda s: 0, "stride must be 1 to 2**15; got 0"),
        (lambda s: -2, "stride must be 1 to 2**15; got -2"),
        (lambda s: 2**62, "stride must be 1 to 2**15; got 4611686018427387904"),
        (lambda s: 1, "residual must be float32 [2, 8, 8, 8]; got float32 [2, 8, 4, 4]"),
    ],
    "padding": [
        (lambda p: -1, "padding must be 0 to 2**15; got -1"),
        (lambda p: 2**62, "padding must be 0 to 2**15; got 4611686018427387904"),
    ],
}


@pytest.mark.parametrize("name, spoil, message", [(name, *case) for name, cases in BAD.items() for case in cases])
def test_bad_argument(name, spoil, message, backend, device):
    args = dict(zip([*BAD, "relu"], draw(2, 16, (8, 8), 8, stride=2, device=device), strict=True))
    args[name] = spoil(args[name])
    with pytest.raises(ValueError) as error:
        ops.conv_bn_relu(**args)
    assert str(error.value).splitlines()[0] == f"conv_bn_relu: {message}"


@needs_gpu
@pytest.mark.parametrize("name", ["weight", "bias", "residual"])
def test_arguments_on_two_devices(name):
    args = dict(zip([*BAD, "relu"], draw(device="cuda"), strict=True))
    args[name] = args[name].cpu()
    with pytest.raises(ValueError, match=f"{name} must be on cuda:0; got cpu"):
        ops.conv_bn_relu(**args)


@needs_extension
def test_too_many_elements_are_refused():
    x = torch.zeros(1).expand(2**20, 1, 64, 64)  # no memory behind it
    args = x, torch.ones(1, 1, 1, 1), torch.ones(1), None, 1, 0, True
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 elements; got \[1048576, 1, 64, 64\]"):
        ops.conv_bn_relu(*args)


@pytest.mark.parametrize("which", range(4))
def test_gradients_are_refused(which, backend, device):
    args = list(draw(device=device))
    args[which] = args[which].requires_grad_()
    with pytest.raises(RuntimeError, match="conv_bn_relu: it is for inference, inputs must not require grad"):
        ops.conv_bn_relu(*args)
    with torch.no_grad():
        assert not ops.conv_bn_relu(*args).requires_grad


@needs_extension
def test_the_operator_itself_refuses_gradients():
    x, *rest = draw()
    with pytest.raises(RuntimeError, match="conv_bn_relu: it does not differentiate"):
        torch.ops.resnet_min.conv_bn_relu(x.requires_grad_(), *rest)


# ---- as an operator ----


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 16, (8, 6), 8), (0, 16, (8, 6), 8), (3, 4, (1, 1), 5)])
@pytest.mark.parametrize("residual", [False, True])
def test_opcheck(residual, shape, dtype, device):
    if not ops.supported("conv_bn_relu", torch.empty(1, dtype=dtype, device=device)):
        pytest.skip("no compiled kernel")
    args = draw(*shape, dtype=dtype, device=device, residual=residual)
    torch.library.opcheck(torch.ops.resnet_min.conv_bn_relu.default, args)


def test_compiles_without_a_graph_break(backend, device):
    compiled = torch.compile(ops.conv_bn_relu, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 7):
        args = draw(batch, device=device)
        torch.testing.assert_close(compiled(*args), ops.conv_bn_relu(*args))
