"""What conv_bn_relu's CUDA kernel reads and where it puts it, function by function; on a GPU the whole of it."""

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils import cpp_extension

from resnet_min import ops, reference

from .conftest import ROOT, assert_as_close_as_eager, needs_gpu

HERE = Path(__file__).parent
WIDE, TALL, NARROW = range(3)
TILES = {WIDE: (128, 128), TALL: (256, 64), NARROW: (128, 32)}  # output pixels, output channels

# Channels, size, filters, filter size, stride, padding: of CIFAR's and ImageNet's stems and stages, and odd ones.
SHAPES = [
    (8, 9, 64, 3, 1, 1),
    (8, 12, 64, 7, 2, 3),
    (16, 8, 16, 3, 1, 1),
    (16, 8, 32, 3, 2, 1),
    (16, 8, 32, 1, 2, 0),
    (24, 5, 40, 3, 1, 1),
    (32, 8, 32, 3, 1, 1),
    (40, 7, 72, 3, 2, 1),
    (64, 8, 64, 3, 1, 1),
    (64, 8, 128, 3, 2, 1),
    (64, 9, 256, 1, 1, 0),
    (128, 4, 64, 1, 1, 0),
    (8, 4, 8, 2, 1, 0),
    (8, 6, 8, 5, 3, 2),
    (136, 1, 8, 3, 1, 1),
]


class ConvShape(ctypes.Structure):
    NAMES = (
        "height width channels kernel_height kernel_width stride padding out_height out_width out_channels pixels "
        "chunks_per_tap stages chunk_step tap_x_step tap_y_step"
    )
    _fields_ = [(name, ctypes.c_int) for name in NAMES.split()]


class Plan(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("tile", "splits", "stages_per_split")]


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """tests/kernels/conv_bn_relu_tiles.cpp, compiled."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(compiler[0]):
        pytest.skip("no compiler")
    library = tmp_path_factory.mktemp("tiles") / "conv_bn_relu.so"
    include = [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    flags = ["-O2", "-std=c++20", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    command = [*compiler, *flags, *include, str(HERE / "conv_bn_relu_tiles.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.chunks.restype = ctypes.c_bool
    loaded.tiles.restype = ctypes.c_int64
    return loaded


def shape_of(functions, batch, channels, height, width, filters, kernel, stride, padding):
    """The kernel's own description of a convolution with kernel × kernel filters."""
    out_height, out_width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
    sizes = height, width, channels, kernel, kernel, stride, padding, out_height, out_width, filters
    shape = ConvShape(*sizes, batch * out_height * out_width)
    functions.complete_shape(ctypes.byref(shape))
    return shape


# ---- addresses, layouts, the choice of a tile ----


@pytest.mark.parametrize("channels, size, filters, kernel, stride, padding", SHAPES)
def test_chunks_are_the_windows(functions, channels, size, filters, kernel, stride, padding):
    """Every output pixel gets every tap and channel of its window once, beside the weight's same tap and channel."""
    batch, height, width = 2, size, size + 3
    shape = shape_of(functions, batch, channels, height, width, filters, kernel, stride, padding)
    # What unfold makes of x's own offsets (+ 1, so that 0 is padding): [pixels, taps, channels] as the weight's.
    x = torch.arange(1, batch * height * width * channels + 1, dtype=torch.float64).view(batch, height, width, channels)
    taps = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=padding, stride=stride)
    expected = taps.view(batch, channels, kernel**2, -1).permute(0, 3, 2, 1).reshape(shape.pixels, -1).long() - 1

    in_x, in_filter = (torch.empty(4 * shape.stages, dtype=torch.int64) for _ in range(2))
    for pixel in range(shape.pixels + 1):
        args = ctypes.byref(shape), pixel, *(ctypes.c_void_p(t.data_ptr()) for t in (in_x, in_filter))
        assert functions.chunks(*args)
        if pixel == shape.pixels:  # a ragged tile's next
            assert (in_x == -1).all()
            continue
        real = in_filter >= 0
        assert torch.equal(in_filter[real].sort().values, torch.arange(0, kernel**2 * channels, 8))
        assert (in_x[~real] == -1).all()
        assert torch.equal(in_x[real], expected[pixel, in_filter[real]])


def test_chunks_of_two_billion_elements(functions):
    """The last pixel's window, at offsets that in bytes are beyond 32-bit integers."""
    shape = shape_of(functions, 8191, 64, 64, 64, 64, 3, 1, 1)
    in_x, in_filter = (torch.empty(4 * shape.stages, dtype=torch.int64) for _ in range(2))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (in_x, in_filter))
    assert functions.chunks(ctypes.byref(shape), shape.pixels - 1, *pointers)
    tap, channel = in_filter // 64, in_filter % 64
    expected = (shape.pixels - 1 + (tap // 3 - 1) * 64 + tap % 3 - 1) * 64 + channel
    outside = (tap // 3 == 2) | (tap % 3 == 2)
    assert torch.equal(in_x, expected.masked_fill(outside, -1)) and in_x.max() > 2**31 - 2**19


def test_shared_memory_has_no_bank_conflicts(functions):
    """Chunks have places of their own; 8 rows of a column, and 2 rows, are in the 8 different 16-byte banks."""
    place = torch.tensor([[functions.shared_offset_of(row, column) for column in range(4)] for row in range(128)])
    assert torch.equal(place.flatten().sort().values, torch.arange(128 * 4) * 16)
    bank = place // 16 % 8
    for row in range(0, 128, 8):
        for column in range(4):
            assert bank[row : row + 8, column].unique().numel() == 8
    for row in range(0, 128, 2):
        assert bank[row : row + 2].unique().numel() == 8


def test_a_lane_has_adjacent_channels(functions):
    """Its columns of four products, 2 * (lane % 4) and the next, are 8 channels in order."""
    filters = torch.tensor([functions.filter_of(row) for row in range(128)])
    assert torch.equal(filters.sort().values, torch.arange(128))
    for group in range(0, 128, 32):
        for lane in range(4):
            rows = [group + 8 * product + 2 * lane + i for product in range(4) for i in range(2)]
            assert filters[rows].tolist() == list(range(group + 8 * lane, group + 8 * lane + 8))


@pytest.mark.parametrize("batch", [1, 2, 16, 128, 1024])
@pytest.mark.parametrize("sms", [1, 20, 108, 132])
def test_plan_covers_the_window(functions, batch, sms):
    for channels, size, *rest in SHAPES + [(512, 4, 512, 3, 1, 1), (2048, 4, 512, 1, 1, 0), (64, 32, 64, 3, 1, 1)]:
        shape, plan = shape_of(functions, batch, channels, size, size, *rest), Plan()
        functions.plan(ctypes.byref(shape), sms, ctypes.byref(plan))
        assert 1 <= plan.splits <= 8 and (plan.splits - 1) * plan.stages_per_split < shape.stages
        assert plan.splits * plan.stages_per_split >= shape.stages
        tiles = functions.tiles(ctypes.byref(shape), plan.tile)
        pixels, columns = TILES[plan.tile]
        assert tiles == -(-shape.pixels // pixels) * -(-shape.out_channels // columns)
        assert plan.splits == 1 or tiles * plan.splits <= sms * (4 if plan.tile == NARROW else 2)


def test_plan(functions):
    """Large tiles while they fill the GPU, and then splits or narrow tiles."""

    def plan(batch, *conv):
        plan = Plan()
        shape = shape_of(functions, batch, conv[0], conv[1], *conv[1:])
        functions.plan(ctypes.byref(shape), 132, ctypes.byref(plan))
        return plan.tile, plan.splits

    assert plan(1024, 64, 32, 64, 3, 1, 1) == (TALL, 1)
    assert plan(1024, 512, 4, 512, 3, 1, 1) == (WIDE, 1)
    assert plan(1024, 16, 32, 16, 3, 1, 1) == (NARROW, 1)
    assert plan(128, 512, 4, 512, 3, 1, 1) == (WIDE, 4)
    assert plan(1, 512, 4, 512, 3, 1, 1) == (NARROW, 8)


# ---- what tests of the whole kernel share: tests/ptx has them ----


def sample(batch, channels, height, width, filters, kernel, dtype, *, stride=1, padding=1, residual=True):
    """x, weight, bias, residual; x and the residual channels_last. Sums are about 1."""
    out = [batch, filters, *((size + 2 * padding - kernel) // stride + 1 for size in (height, width))]
    x = torch.randn(batch, channels, height, width).to(dtype, memory_format=torch.channels_last)
    weight = (torch.randn(filters, channels, kernel, kernel) / (channels * kernel**2) ** 0.5).to(dtype)
    other = torch.randn(out).to(dtype, memory_format=torch.channels_last) if residual else None
    return x, weight.contiguous(memory_format=torch.channels_last), torch.randn(filters).to(dtype), other


def assert_rounded_once(out, x, weight, bias, residual, stride, padding, relu):
    """`out` is what float64 gives, but for the sums' float32 and one rounding."""
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    exact = exact if residual is None else exact + residual.double()
    exact = exact.relu() if relu else exact
    eps = torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=0.51 * eps, atol=1e-5, equal_nan=True)


# ---- on a GPU ----


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3, 128])
def test_on_a_gpu(batch, dtype):
    """Every layer's shape, by the rule of how close is close; channels of no multiple of 8; unaligned data."""
    if not ops.supported("conv_bn_relu", torch.empty(1, 8, 8, 8, dtype=dtype, device="cuda")):
        pytest.skip("no compiled kernel for this GPU")
    layers = [(3, 32, 64, 3, 1, 1), (3, 32, 64, 7, 2, 3), (5, 9, 13, 3, 2, 1), *SHAPES]
    layers += [(64, 32, 64, 3, 1, 1), (256, 8, 256, 3, 1, 1), (512, 4, 512, 3, 1, 1), (1024, 8, 2048, 1, 2, 0)]
    for channels, size, filters, kernel, stride, padding in layers:
        for residual, relu in [(True, True), (False, True), (True, False)]:
            how = {"stride": stride, "padding": padding, "residual": residual}
            args = sample(batch, channels, size, size, filters, kernel, dtype, **how)
            exact = [None if t is None else t.double() for t in args]
            expected = reference.conv_bn_relu(*exact, stride, padding, relu)
            args = [None if t is None else t.cuda() for t in args]
            bias = torch.empty(filters + 1, dtype=dtype, device="cuda")[1:].copy_(args[2])  # from no 16th byte on
            out = torch.ops.resnet_min.conv_bn_relu(*args[:2], bias, args[3], stride, padding, relu)
            eager = reference.conv_bn_relu(*args, stride, padding, relu)
            assert_as_close_as_eager(out, eager, expected)
            assert out.is_contiguous(memory_format=torch.channels_last) and out.dtype == dtype
