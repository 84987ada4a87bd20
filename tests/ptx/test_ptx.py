"""The CUDA kernels as nvcc's PTX in an interpreter: all of them, for both architectures, and mutants to be caught."""

import itertools
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kernels import test_bn_add_relu as bn
from kernels import test_conv_bn_relu_cuda as conv
from kernels import test_crop_flip as crop
from kernels.conftest import needs_extension
from ptx.interpreter import CUDA_OPERATORS, Interpreter, compile_ptx, plain

from resnet_min import kernels, reference

NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
ARCHS = ("sm_80", "sm_90a")
# Orders of blocks and warps, and whether copies are made early: see Options in warp.h.
WAYS = [{"order": order, "early": early} for order, early in itertools.product((0, 1, 2), (False, True))]

pytestmark = [
    pytest.mark.slow,
    needs_extension,
    pytest.mark.skipif(not Path(NVCC).exists() or not shutil.which("g++"), reason="no nvcc or no g++"),
]


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return Interpreter(NVCC, tmp_path_factory.mktemp("interpreter"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Of an architecture, the PTX of each operator: the built library's own where it has any, else nvcc's."""
    built = ptx_of_the_library()
    folder, found = tmp_path_factory.mktemp("ptx"), {}

    def of(arch: str) -> dict[str, str]:
        if arch not in found:
            theirs = built.get(arch, {})
            found[arch] = {name: theirs.get(name) or compile_ptx(NVCC, name, arch, folder) for name in CUDA_OPERATORS}
        return found[arch]

    return of


def ptx_of_the_library() -> dict[str, dict[str, str]]:
    """{architecture: {operator: PTX}} in the built module, by cuobjdump, which comes with torch's Triton."""
    triton = pytest.importorskip("triton")
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    module = kernels.backend._C.__file__
    listed = subprocess.run([str(cuobjdump), "-ptx", module], capture_output=True, text=True).stdout
    found: dict[str, dict[str, str]] = {}
    for text in re.findall(r"^(\.version .*?)(?=^Fatbin|\Z)", listed, re.S | re.M):
        arch = re.search(r"^\.target (\w+)", text, re.M)[1]
        for name, kernel in {
            "bn_add_relu": "moments_kernel",
            "conv_bn_relu": "convolve_",
            "crop_flip": "crop_",
        }.items():
            if kernel in text:
                found.setdefault(arch, {})[name] = text
    return found


# ---- one call each, compared with float64 ----


def unaligned(tensor):
    """The same values and strides, one element away from where 16 bytes begin."""
    return (
        torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)
    )


def check_bn(interpreter, shape, dtype, residual, relu, offset="", **way):
    """Forward and backward. `offset`: "x" or "gamma", which is not on 16 bytes."""
    x, gamma, beta, extra, grad = bn.draw(shape, dtype, residual=residual)
    if dtype == torch.float32 and x.numel() < 9999:  # more values, and rounding takes one across ReLU's 0
        x += 10
    x, gamma = unaligned(x) if offset == "x" else x, unaligned(gamma) if offset == "gamma" else gamma
    tiny = shape[0] * shape[2] * shape[3] < 4  # the gradient of x is what is left of a cancellation
    tolerance = {"rtol": 1, "atol": 1} if tiny else bn.TOLERANCE[dtype]
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else tolerance
    exact = bn.results(bn.eager, *bn.doubled(x, gamma, beta, extra, grad), relu)
    running = bn.buffers(x) if relu else ()  # without: none
    moved = bn.doubled(*running)
    out, mean, invstd = interpreter.call("bn_add_relu", x, gamma, beta, extra, bn.EPS, relu, *running, **way)
    args = grad, x, gamma, beta, mean, invstd, out if residual and relu else None, relu
    *grads, grad_residual = interpreter.call("bn_add_relu_backward", *args, **way)
    got = [out, *grads, *([grad_residual if relu else grad] if residual else [])]
    if running:
        F.batch_norm(x.double(), *moved[:2], training=True, momentum=0.1)
        got, exact = [*got, *running], [*exact, *moved[:2], moved[2] + 1]
    for ours, theirs in zip(got, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **tolerance)


def check_conv(interpreter, batch, channels, size, filters, kernel, stride, padding, dtype, residual, relu, **way):
    how = {"stride": stride, "padding": padding, "residual": residual}
    args = conv.sample(batch, channels, size, size + 2, filters, kernel, dtype, **how)
    out = interpreter.call("conv_bn_relu", *args, stride, padding, relu, **way)
    conv.assert_rounded_once(out, *args, stride, padding, relu)


def check_crop(interpreter, shape, padding, dtype, **way):
    args = crop.draw(shape, 3, padding, dtype)
    crop.assert_same(interpreter.call("crop_flip", *args, **way), reference.crop_flip(*args))


# ---- every kernel ----


def run_bn(interpreter, ways):
    odd = [(2, 1, 1, 1), (3, 3, 5, 7), (4, 16, 9, 9), (2, 24, 7, 5), (1, 260, 3, 7), (4, 64, 16, 16), (2, 512, 4, 4)]
    for dtype, (residual, relu) in itertools.product([*bn.DTYPES, torch.float16], bn.FLAGS):
        vector = 16 // dtype.itemsize
        # More rows than a grid does at once; 33 lanes' channels make two tiles, one nearly empty: fewer values.
        long = [(6, 33, 40, 40), (6, 33 * vector, 40, 40)]
        for shape in [*odd, *long]:
            check_bn(interpreter, shape, dtype, residual, relu, **next(ways))
    for dtype in [*bn.DTYPES, torch.float16]:
        for offset in ("x", "gamma"):
            check_bn(interpreter, (9, 16, 5, 5), dtype, True, True, offset, **next(ways))
    check_bn(interpreter, (22, 33, 40, 40), torch.bfloat16, True, True, **next(ways))


def run_conv(interpreter, ways):
    # One multiprocessor has the large tiles, and in smaller grids two splits; many have narrow ones in many splits.
    deep = [(128, 3, 128, 3, 1, 1), (128, 3, 192, 3, 1, 1), (3, 9, 13, 3, 1, 1)]
    for dtype, residual, relu in itertools.product((torch.bfloat16, torch.float16), (False, True), (False, True)):
        for layer, batch, sms in itertools.product([*conv.SHAPES, *deep], (1, 3), (1, 4, 132)):
            check_conv(interpreter, batch, *layer, dtype, residual, relu, multiprocessors=sms, **next(ways))
    for dtype, residual, relu in itertools.product((torch.float32, torch.float64), (False, True), (False, True)):
        for filters in (12, 13):  # by 16 bytes and one by one
            check_conv(interpreter, 2, 5, 6, filters, 3, 1, 1, dtype, residual, relu, **next(ways))


def run_crop(interpreter, ways):
    shapes = [(4, 32, 32), (3, 1, 1), (3, 5, 7), (2, 33, 31), (2, 40, 52)]
    for dtype, shape, padding in itertools.product(crop.DTYPES, shapes, (0, 4, 40)):
        check_crop(interpreter, shape, padding, dtype, **next(ways))
    images, *rest = crop.draw((4, 40, 36), 7, 4)
    args = images[::2, 3:35:2, 2:34], rest[0] // 2, *rest[1:]
    crop.assert_same(interpreter.call("crop_flip", *args), reference.crop_flip(*args))


RUNS = {"bn_add_relu": run_bn, "conv_bn_relu": run_conv, "crop_flip": run_crop}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel(interpreter, texts, arch):
    """Right in every order, without a fault, and hardly an instruction that is not executed."""
    interpreter.load(texts(arch).values())
    for run in RUNS.values():
        run(interpreter, itertools.cycle(WAYS))
    found = interpreter.coverage()
    executed, all_of_them = (sum(kernel[i] for kernel in found.values()) for i in (2, 1))
    print(f"\n{arch}: {len(found)} kernels, {executed} of {all_of_them} instructions executed")
    assert not [plain(name) for name, kernel in found.items() if not kernel.launches]
    assert executed >= 0.95 * all_of_them, {plain(name): kernel.left_out for name, kernel in found.items()}


@pytest.mark.parametrize("channels", [8, 7])
def test_a_constant_whose_square_overflows(interpreter, texts, channels):
    """Its variance is 0, though most threads have no value of it."""
    interpreter.load(texts(ARCHS[0]).values())
    x = torch.full((2, channels, 4, 4), 2e19).contiguous(memory_format=torch.channels_last)
    _, mean, invstd = interpreter.call("bn_add_relu", x, torch.ones(channels), torch.zeros(channels), None, 1e-5, True)
    torch.testing.assert_close(mean, torch.full_like(mean, 2e19))
    torch.testing.assert_close(invstd, torch.full_like(invstd, 1e-5**-0.5))


def test_nan_and_infinity(interpreter, texts):
    interpreter.load(texts(ARCHS[0]).values())
    x, weight, bias, residual = conv.sample(1, 8, 8, 8, 8, 3, torch.bfloat16)
    x[0, 3, 4, 5], bias[2], residual[0, 5, 0, 0] = float("nan"), float("inf"), float("-inf")
    args = x, weight, bias, residual, 1, 1, True
    out = interpreter.call("conv_bn_relu", *args)
    assert out.isnan().sum() == 9 * 8 and out.isinf().sum() == 64 - 9 and out[0, 5, 0, 0] == 0
    conv.assert_rounded_once(out, *args)


def test_any_convolution(interpreter, texts):
    interpreter.load(texts(ARCHS[0]).values())
    draw = random.Random(0)
    for way in itertools.islice(itertools.cycle(WAYS), 120):
        kernel, stride, padding = draw.randint(1, 5), draw.randint(1, 3), draw.randint(0, 3)
        size = max(1, kernel - 2 * padding) + draw.randint(0, 9)
        batch, channels, filters = draw.randint(1, 5), draw.randint(1, 80), draw.randint(1, 144)
        dtype, residual, relu = draw.choice((torch.bfloat16, torch.float16)), *draw.choice(bn.FLAGS)
        layer = channels, size, filters, kernel, stride, padding
        check_conv(interpreter, batch, *layer, dtype, residual, relu, multiprocessors=draw.choice((1, 4, 132)), **way)


def test_a_wrong_index_is_an_assertion(interpreter, texts):
    interpreter.load(texts(ARCHS[0]).values())
    images, index, *rest = crop.draw((5, 8, 8), 4, 2)
    for wrong in (-1, 5, 2**40):
        index[2] = wrong
        with pytest.raises(AssertionError, match="an assertion failed"):
            interpreter.call("crop_flip", images, index, *rest)


# ---- mutants ----


def changed(pattern: str, to: str | Callable[[re.Match], str]) -> Callable[[str], str]:
    """What changes every match in a text."""
    return lambda text: re.sub(pattern, to, text, flags=re.S)


def exchanged(first: int, second: int) -> Callable[[re.Match], str]:
    """What exchanges two of the operands that a match names."""

    def exchange(match: re.Match) -> str:
        operands = re.findall(r"%\w+", match[0])
        operands[first], operands[second] = operands[second], operands[first]
        rest = iter(operands)
        return re.sub(r"%\w+", lambda _: next(rest), match[0])

    return exchange


MMA = r"mma\.sync[^;]*;"
MUTANTS = {
    # What a sanitizer sees.
    "a wait for one group less": ("conv_bn_relu", changed(r"cp\.async\.wait_group 2", "cp.async.wait_group 3")),
    "no wait before the end": ("conv_bn_relu", changed(r"cp\.async\.wait_group 0;", "")),
    "copies that are no group": ("conv_bn_relu", changed(r"cp\.async\.commit_group;", "")),
    "no barrier in conv_bn_relu": ("conv_bn_relu", changed(r"bar\.sync\s+0;", "")),
    "no barrier in bn_add_relu": ("bn_add_relu", changed(r"bar\.sync\s+0;", "")),
    "no barrier in crop_flip": ("crop_flip", changed(r"bar\.sync\s+0;", "")),
    "every second barrier": ("conv_bn_relu", changed(r"(bar\.sync[^;]*;.*?)bar\.sync[^;]*;", r"\1")),
    # What only the values show.
    "exchanged sums": ("conv_bn_relu", changed(MMA, exchanged(0, 1))),
    "exchanged rows of the left matrix": ("conv_bn_relu", changed(MMA, exchanged(4, 5))),
    "exchanged halves of the right matrix": ("conv_bn_relu", changed(MMA, exchanged(8, 9))),
    "exchanged matrices": ("conv_bn_relu", changed(r"ldmatrix[^;]*;", exchanged(1, 2))),
    "float16 for bfloat16": ("conv_bn_relu", changed(r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32")),
    "padding that is copied": ("conv_bn_relu", changed(r"(cp\.async\.c[^;]*, 16), %r\d+;", r"\1;")),
    "a ReLU that is not": ("bn_add_relu", changed(r"setp\.le\.f32", "setp.gt.f32")),
    "a store 16 bytes on": ("bn_add_relu", changed(r"(st\.global\.v4\.u32\s+\[%rd\d+)\]", r"\1+16]")),
    "a store that is not aligned": ("bn_add_relu", changed(r"(st\.global\.v4\.u32\s+\[%rd\d+)\]", r"\1+8]")),
    "sums that are not shared": ("bn_add_relu", changed(r"st\.shared\.f32[^;]*;", "")),
    "a parameter of its neighbour": ("crop_flip", changed(r"_param_6\+24\]", "_param_6+32]")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(interpreter, texts, name):
    operator, change = MUTANTS[name]
    original = texts(ARCHS[0])
    mutant = {**original, operator: change(original[operator])}
    assert mutant != original

    def check(call):
        if operator == "bn_add_relu":
            check_bn(call, (4, 16, 9, 9), torch.bfloat16, False, True)
        elif operator == "crop_flip":
            check_crop(call, (3, 5, 7), 4, torch.float32)
        else:
            check_conv(call, 1, 128, 3, 128, 3, 1, 1, torch.bfloat16, True, True, multiprocessors=1)
            check_conv(call, 2, 5, 6, 12, 3, 1, 1, torch.float32, True, True)

    interpreter.load(original.values())
    check(interpreter)
    interpreter.load(mutant.values())
    with pytest.raises(AssertionError):
        check(interpreter)
