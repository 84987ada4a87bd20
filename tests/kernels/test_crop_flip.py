"""crop_flip against its reference, plain loops and torchvision; its checks; make_table."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as v1
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as v2

from resnet_min import ops, reference

from .conftest import ROOT, needs_extension, needs_gpu, outcomes_by_threads, run_under, skip_without_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def draw(shape, batch, padding, dtype=torch.float32, device="cpu", seed=0):
    """Arguments of crop_flip: images of `shape` (n, height, width) and `batch` draws, repeats and extremes likely."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=g)
    index = torch.randint(0, max(shape[0], 1), (batch,), generator=g)
    offset = torch.randint(0, 2 * padding + 1, (batch, 2), generator=g)
    flip = torch.rand(batch, generator=g) < 0.5
    table = torch.randn(3, 256, generator=g).to(dtype)  # any table will do, not only straight lines
    return *(t.to(device) for t in (images, index, offset, flip, table)), padding


def one_pixel_at_a_time(images, index, offset, flip, table, padding):
    """crop_flip as its contract says it, slowly."""
    _, height, width, _ = images.shape
    out = torch.empty(len(index), 3, height, width, dtype=table.dtype)
    for b, (i, (top, left), flipped) in enumerate(zip(index.tolist(), offset.tolist(), flip.tolist(), strict=True)):
        for y in range(height):
            for x in range(width):
                row, column = y + top - padding, (width - 1 - x if flipped else x) + left - padding
                inside = 0 <= row < height and 0 <= column < width
                for c in range(3):
                    out[b, c, y, x] = table[c, images[i, row, column, c].item() if inside else 0]
    return out


def assert_same(got, expected):
    """The same bits in the same places."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got.cpu(), expected.cpu())


# ---- crop_flip: values ----


@pytest.mark.parametrize("padding", [0, 1, 4, 9])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 8, 8), (2, 1, 23), (2, 9, 64)])
def test_crop_flip_is_what_its_contract_says(shape, padding, backend, device):
    args = draw(shape, 5, padding, device=device)
    assert_same(ops.crop_flip(*args), one_pixel_at_a_time(*[a.cpu() for a in args[:-1]], padding))


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50, 32, 32), (3, 33, 31), (2, 65, 130), (9, 3, 2), (2, 40, 20)])
def test_kernel_equals_reference(shape, dtype, device):
    args = draw(shape, 37, 4, dtype, device)
    assert_same(ops.crop_flip(*args), reference.crop_flip(*args))


@needs_extension
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)),
    batch=st.integers(0, 9),
    padding=st.integers(0, 80),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_kernel_equals_reference_anywhere(shape, batch, padding, dtype, seed):
    args = draw(shape, batch, padding, dtype, seed=seed)
    assert_same(ops.crop_flip(*args), reference.crop_flip(*args))


@needs_extension
def test_portable_kernel_equals_reference():
    """The kernel for processors without the vector instructions, which torch's own switch selects."""
    code = (
        "from resnet_min import ops, reference; from tests.kernels.test_crop_flip import DTYPES, draw\n"
        "for dtype in DTYPES:\n"
        "    for shape in [(50, 32, 32), (3, 33, 31), (9, 3, 2)]:\n"
        "        args = draw(shape, 37, 4, dtype)\n"
        "        assert torch.equal(ops.crop_flip(*args), reference.crop_flip(*args)), (dtype, shape)"
    )
    run_under("default", code)


def test_without_crop_or_flip_images_come_unchanged(backend, device):
    images, index, offset, flip, table, _ = draw((6, 32, 32), 6, 4, device=device)
    expected = torch.stack([table[c][images[index, ..., c].long()] for c in range(3)], dim=1)
    expected = expected.contiguous(memory_format=torch.channels_last)
    still = torch.zeros_like(flip)
    assert_same(ops.crop_flip(images, index, torch.full_like(offset, 4), still, table, 4), expected)
    assert_same(ops.crop_flip(images, index, torch.zeros_like(offset), still, table, 0), expected)


@pytest.mark.parametrize("functional", [v1, v2])
def test_crop_flip_agrees_with_torchvision(functional, backend, device):
    """RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor and Normalize, given the same draws."""
    images, index, offset, flip, _, padding = draw((10, 32, 32), 20, 4, device=device)
    got = ops.crop_flip(images, index, offset, flip, ops.make_table(MEAN, STD).to(device), padding)
    for b in range(20):
        image = functional.to_pil_image(images[index[b]].cpu().numpy())
        image = functional.crop(functional.pad(image, [padding]), *offset[b].tolist(), 32, 32)
        image = functional.hflip(image) if flip[b] else image
        expected = functional.normalize(v1.to_tensor(image), MEAN, STD)
        torch.testing.assert_close(got[b].cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape, batch", [((4, 32, 32), 0), ((0, 32, 32), 0), ((2, 0, 5), 3), ((2, 5, 0), 3)])
def test_empty(shape, batch, backend, device):
    args = draw(shape, batch, 4, torch.bfloat16, device)
    out = ops.crop_flip(*args)
    assert out.shape == (batch, 3, *shape[1:]) and out.dtype == torch.bfloat16


def test_layouts(backend, device):
    """Any strides give what a contiguous copy gives, and the inputs are left alone."""
    images, index, offset, flip, table, padding = draw((8, 40, 36), 12, 4, device=device)
    index = index // 2
    offset2 = torch.stack([offset, offset], dim=2)[:, :, 1]
    flip2 = flip.repeat_interleave(2)[::2]
    table2 = table.t().contiguous().t()
    cuts = {
        "every second image": images[::2],
        "rows and columns": images[:4, 3:35, 2:34],
        "every second row": images[:4, ::2],
        "every second column": images[:4, :, ::2],
        "colours reversed": images.flip(-1)[:4],
        "planar": images[:4].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "one image, four times": images[:1].expand(4, -1, -1, -1),
        "a single column": images[:4, :, :1],
    }
    assert ops.supported("crop_flip", images[:4, :, ::36], index, offset, flip, table) == (backend == "extension")
    for name, cut in cuts.items():
        before = cut.clone()
        got = ops.crop_flip(cut, index, offset2, flip2, table2, padding)
        expected = reference.crop_flip(cut.contiguous(), index, offset, flip, table, padding)
        assert torch.equal(got, expected) and torch.equal(cut, before), name


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_memory_mapped_images(backend, tmp_path):
    """The first and last images of a read-only file: a read outside them would end the process."""
    images, _, offset, flip, table, padding = draw((64, 32, 32), 2, 4)  # 48 pages, to the last byte
    images.numpy().tofile(tmp_path / "images")
    mapped = torch.from_numpy(np.memmap(tmp_path / "images", np.uint8, "r", shape=(64, 32, 32, 3)))
    index = torch.tensor([0, 63])
    for corner in ([0, 0], [0, 8], [8, 0], [8, 8], [4, 4]):
        for mirrored in (False, True):
            args = index, torch.tensor([corner] * 2), torch.tensor([mirrored] * 2), table, padding
            assert_same(ops.crop_flip(mapped, *args), reference.crop_flip(images, *args))


def test_more_than_one_thread_gives_the_same(backend):
    args = draw((20, 32, 32), 256, 4, torch.bfloat16)
    outs = outcomes_by_threads(lambda: ops.crop_flip(*args))
    assert all(torch.equal(out, outs[0]) for out in outs)


# ---- crop_flip: errors ----


@pytest.mark.parametrize("value", [-1, 5, 2**40])
def test_index_out_of_range(value, backend):
    images, index, *rest = draw((5, 8, 8), 4, 2)
    index[2] = value
    with pytest.raises(IndexError):
        ops.crop_flip(images, index, *rest)


@pytest.mark.parametrize("value", [-1, 5, 2**40])
@pytest.mark.parametrize("which", [0, 1])
def test_offset_out_of_range(value, which, backend):
    images, index, offset, *rest = draw((5, 8, 8), 4, 2)
    offset[3, which] = value
    with pytest.raises(IndexError):
        ops.crop_flip(images, index, offset, *rest)


@needs_gpu
@pytest.mark.parametrize("backend_name", ["reference", "auto"])
def test_out_of_range_on_cuda_is_a_device_assertion(backend_name):
    """In a process of its own: nothing works on a device after an assertion."""
    code = (
        "import torch; from resnet_min import ops; from tests.kernels.test_crop_flip import draw\n"
        f"ops.set_backend({backend_name!r}); images, index, *rest = draw((5, 8, 8), 4, 2, device='cuda')\n"
        "ops.crop_flip(images, index + 5, *rest); print('no wait'); torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "no wait" in done.stdout and "device-side assert" in done.stderr


BAD = {  # argument: (what makes it bad, the message)
    "images": [
        (lambda t: t.float(), "images must be uint8 [N, H, W, 3]; got float32 [5, 8, 8, 3]"),
        (lambda t: t.permute(0, 3, 1, 2), "images must be uint8 [N, H, W, 3]; got uint8 [5, 3, 8, 8]"),
        (lambda t: t[0], "images must be uint8 [N, H, W, 3]; got uint8 [8, 8, 3]"),
    ],
    "index": [
        (lambda t: t.int(), "index must be int64 [B]; got int32 [4]"),
        (lambda t: t[None], "index must be int64 [B]; got int64 [1, 4]"),
    ],
    "offset": [
        (lambda t: t.float(), "offset must be int64 [4, 2]; got float32 [4, 2]"),
        (lambda t: t[:3], "offset must be int64 [4, 2]; got int64 [3, 2]"),
        (lambda t: t.t(), "offset must be int64 [4, 2]; got int64 [2, 4]"),
    ],
    "flip": [
        (lambda t: t.byte(), "flip must be bool [4]; got uint8 [4]"),
        (lambda t: t[:1], "flip must be bool [4]; got bool [1]"),
    ],
    "table": [
        (lambda t: t.long(), "table must be float32, bfloat16, float16 or float64 [3, 256]; got int64 [3, 256]"),
        (lambda t: t.t(), "table must be float32, bfloat16, float16 or float64 [3, 256]; got float32 [256, 3]"),
    ],
    "padding": [
        (lambda p: -1, "padding must be 0 to 2**24; got -1"),
        (lambda p: 2**24 + 1, "padding must be 0 to 2**24; got 16777217"),
    ],
}


@pytest.mark.parametrize("name, spoil, message", [(name, *case) for name, cases in BAD.items() for case in cases])
def test_bad_argument(name, spoil, message, backend, device):
    args = dict(zip(BAD, draw((5, 8, 8), 4, 2, device=device), strict=True))
    args[name] = spoil(args[name])
    with pytest.raises(ValueError) as error:
        ops.crop_flip(**args)
    assert str(error.value).splitlines()[0] == f"crop_flip: {message}"


@needs_gpu
@pytest.mark.parametrize("name", ["index", "offset", "flip", "table"])
def test_arguments_on_two_devices(name):
    args = dict(zip(BAD, draw((5, 8, 8), 4, 2, device="cuda"), strict=True))
    args[name] = args[name].cpu()
    with pytest.raises(ValueError, match=f"{name} must be on cuda:0; got cpu"):
        ops.crop_flip(**args)


@needs_extension
def test_kernel_refuses_pixels_with_gaps():
    """`ops.crop_flip` sends them to the reference; the operator itself says no."""
    images, *rest = draw((5, 8, 8), 4, 2)
    with pytest.raises(ValueError, match=r"images must have strides \[any, any, 3, 1\]; got \[192, 24, 6, 1\]"):
        torch.ops.resnet_min.crop_flip(images[:, :, ::2], *rest)


# ---- crop_flip: as an operator ----


@needs_extension
@pytest.mark.parametrize("shape, batch", [((5, 8, 6), 4), ((5, 8, 6), 0), ((2, 1, 1), 1)])
def test_opcheck(shape, batch, device):
    skip_without_kernels(device)
    torch.library.opcheck(torch.ops.resnet_min.crop_flip.default, draw(shape, batch, 4, torch.bfloat16, device))


def test_compiles_without_a_graph_break(backend, device):
    compiled = torch.compile(ops.crop_flip, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 7):
        args = draw((5, 8, 8), batch, 2, device=device)
        assert_same(compiled(*args), reference.crop_flip(*args))


# ---- make_table ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_make_table(dtype):
    table = ops.make_table(MEAN, STD, dtype)
    assert table.shape == (3, 256) and table.dtype == dtype
    exact = [[(v / 255 - m) / s for v in range(256)] for m, s in zip(MEAN, STD, strict=True)]
    torch.testing.assert_close(table.double(), torch.tensor(exact, dtype=torch.float64), rtol=0.01, atol=1e-6)
    assert torch.equal(table, ops.make_table(torch.tensor(MEAN), list(STD)).to(dtype))


@pytest.mark.parametrize("mean, std", [((0.5,), (1, 1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, float("nan"), 1))])
def test_make_table_refuses(mean, std):
    with pytest.raises(ValueError, match="3 numbers each, std above 0"):
        ops.make_table(mean, std)
