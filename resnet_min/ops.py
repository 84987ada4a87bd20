"""The operators. Loads the compiled kernels, decides which backend runs where; nothing else knows whether they exist.

Each operator here has a twin of the same name in `reference.py`, which holds its documentation.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import reference
from .errors import UserError


def crop_flip(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> Tensor:
    """See `reference.crop_flip`."""
    if supported("crop_flip", images, index, offset, flip, table):
        return torch.ops.resnet_min.crop_flip(images, index, offset, flip, table, padding)
    return reference.crop_flip(images, index, offset, flip, table, padding)


def conv_bn_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> Tensor:
    """See `reference.conv_bn_relu`. The compiled CPU kernel also takes a weight that `reordered` made."""
    if supported("conv_bn_relu", x, weight, bias, *([] if residual is None else [residual])):
        return torch.ops.resnet_min.conv_bn_relu(x, weight, bias, residual, stride, padding, relu)
    return reference.conv_bn_relu(x, weight, bias, residual, stride, padding, relu)


def reordered(weight: Tensor, x: Tensor, stride: int, padding: int) -> Tensor:
    """`conv_bn_relu`'s weight as its CPU kernel computes with it: opaque, best for x's shape and right for any.

    Transformed, for a convolution in Winograd's form where that is faster; in oneDNN's order elsewhere. Only where
    `takes_reordered(x, weight)`. Without it, each call reorders the weight.
    """
    tiles = len(x) * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2)
    if stride == padding == 1 and weight.shape[2:] == (3, 3) and tiles >= 16 and _takes_conv3x3(x, weight):
        return torch.ops.resnet_min._winograd_weight(weight)
    reorder = torch.ops.mkldnn._reorder_convolution_weight
    return reorder(weight, (padding, padding), (stride, stride), (1, 1), 1, tuple(x.shape))


def takes_reordered(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv_bn_relu` gains by computing these with a weight that `reordered` made."""
    return x.device.type == "cpu" and supported("conv_bn_relu", x, weight) and weight.dtype in _onednn_dtypes()


@functools.cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """What oneDNN convolves on this processor. None, where torch lacks the private operators that we call it by."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return ()
    bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """See `reference.conv3x3`. The compiled one is for CPUs."""
    if supported("conv3x3", x, weight):
        return torch.ops.resnet_min.conv3x3(x, weight)
    return reference.conv3x3(x, weight)


def bn_add_relu(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.bn_add_relu`."""
    if supported("bn_add_relu", x, gamma, beta, residual):
        return torch.ops.resnet_min.bn_add_relu(x, gamma, beta, residual, eps, relu)
    return reference.bn_add_relu(x, gamma, beta, residual, eps, relu)


def make_table(mean: Any, std: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """`crop_flip`'s table for normalised images: [3, 256], table[c, v] = (v / 255 - mean[c]) / std[c].

    mean, std  3 numbers each, of values in 0 to 1. Computed in float32, as torchvision does, then rounded to `dtype`.
    """
    mean, std = (torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1) for x in (mean, std))
    if mean.numel() != 3 or std.numel() != 3 or not (std > 0).all():
        raise ValueError(f"make_table: mean and std must be 3 numbers each, std above 0; got {mean} and {std}")
    return ((torch.arange(256, dtype=torch.float32) / 255 - mean) / std).to(dtype)


# ---- which backend runs ----


def supported(operator: str, *tensors: Tensor | None) -> bool:
    """Whether the compiled `operator` takes these tensors: by device, dtype and layout, never by values.

    The layouts and dtypes that kernels take are fewer than those of the twins.
    """
    device = tensors[0].device
    if _backend == "reference" or any(t is not None and t.device != device for t in tensors):
        return False
    if device.type not in _kernel_devices:
        if _backend == "extension":
            raise UserError(f"no compiled kernels for {device.type}: {_why_not(device.type)}")
        return False
    return _takes[operator](*tensors)


def _takes_crop_flip(images: Tensor, *_: Tensor) -> bool:
    # Pixels with gaps between them (a permuted NCHW data set) would have to be copied whole, every time.
    return images.dim() != 4 or (images.stride(3) == 1 and (images.shape[2] == 1 or images.stride(2) == 3))


def _takes_conv_bn_relu(x: Tensor, *_: Tensor) -> bool:
    # Earlier GPUs lack the instructions; their bfloat16 would be emulated besides.
    on_tensor_cores = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)
    return not on_tensor_cores or torch.cuda.get_device_properties(x.device).major >= 8


def _takes_bn_add_relu(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None) -> bool:
    figures = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        x.dim() == 4
        and (x.dtype in (torch.float32, torch.bfloat16, torch.float64) or (x.dtype == torch.float16 and x.is_cuda))
        and gamma.dtype == beta.dtype == figures
        and (residual is None or residual.dtype == x.dtype)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _takes_conv3x3(x: Tensor, weight: Tensor) -> bool:
    # Maps of one pixel are a quarter of a tile. bfloat16 has instructions of its own where it is fast.
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == weight.dim() == 4
        and min(x.shape[2:]) > 1
        and all(channels > 0 and channels % 64 == 0 for channels in weight.shape[:2])
    )


_takes = {
    "conv3x3": _takes_conv3x3,
    "crop_flip": _takes_crop_flip,
    "conv_bn_relu": _takes_conv_bn_relu,
    "bn_add_relu": _takes_bn_add_relu,
}


def set_backend(name: str) -> None:
    """Choose for all operators: "auto", the compiled kernels where there are some; "extension"; or "reference".

    Raises UserError for another name, and for "extension" where none is built.
    """
    global _backend
    if name not in ("auto", "extension", "reference"):
        raise UserError(f"kernels are auto, extension or reference; got {name!r}")
    if name == "extension" and _C is None:
        raise UserError(f"no compiled kernels: {_why_not('cpu')}")
    _backend = name


def backend_line(device: torch.device | str) -> str:
    """What runs on `device` and why, in one line for start-up: "kernels: cpu extension (torch 2.15)"."""
    kind = torch.device(device).type
    if _backend == "reference":
        return "kernels: reference (asked for)"
    if _C is None:
        return f"kernels: reference ({_why_not('cpu')})"
    if kind not in _kernel_devices:
        return f"kernels: cpu extension, {kind} reference ({_why_not(kind)})"
    archs = [f"sm_{arch.replace('.', '')}" for arch in (_C.build_info()["archs"] or "").split(";") if kind == "cuda"]
    return f"kernels: {kind} extension ({', '.join([*archs, f'torch {_minor(torch.__version__)}'])})"


def build_info() -> dict[str, Any]:
    """Whether the extension is in use, and how it was built.

    extension     True or False
    cpu, cuda     "built", or why there are no kernels for it
    torch, cuda_version, archs, compiler    what it was built for and with; None without an extension or without CUDA
    """
    built = dict(_C.build_info()) if _C else dict.fromkeys(("torch", "cuda", "archs", "compiler"))
    return {
        "extension": _C is not None,
        **{kind: "built" if kind in _kernel_devices else _why_not(kind) for kind in ("cpu", "cuda")},
        "torch": built["torch"],
        "cuda_version": built["cuda"],
        "archs": built["archs"],
        "compiler": built["compiler"],
    }


def _why_not(kind: str) -> str:
    if _C is None:
        return _load_error
    reason = _record.get(kind)
    return "not built" if reason in (None, "built") else reason


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _read_record() -> dict[str, str]:
    """What setup.py noted: {"cpu": "built" or a reason, "cuda": likewise, "torch": version}; empty without a note."""
    path = Path(__file__).with_name("_build.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _load(record: dict[str, str]) -> tuple[ModuleType | None, str]:
    """The compiled module, or None and why."""
    if record.get("cpu", "built") != "built":
        return None, record["cpu"]
    built_for = record.get("torch", torch.__version__)  # a module built for another torch may crash when imported
    try:
        if _minor(built_for) == _minor(torch.__version__):
            module = importlib.import_module(f"{__package__}._C")
            built_for = module.build_info()["torch"]
            if _minor(built_for) == _minor(torch.__version__):
                return module, ""
    except ModuleNotFoundError:
        return None, "not built"
    except ImportError as error:
        return None, str(error).splitlines()[0]
    return None, f"built for torch {built_for}, this is {torch.__version__}: install again"


_backend = "auto"
_record = _read_record()
_C, _load_error = _load(_record)
_kernel_devices = () if _C is None else ("cpu", "cuda") if _C.build_info()["cuda"] else ("cpu",)

if _C is not None:

    @torch.library.register_fake("resnet_min::crop_flip")
    def _(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> Tensor:
        reference.check_crop_flip(images, index, offset, flip, table, padding)
        return table.new_empty((index.shape[0], *images.shape[1:])).permute(0, 3, 1, 2)

    @torch.library.register_fake("resnet_min::conv_bn_relu")
    def _(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
    ) -> Tensor:
        reference.check_conv_bn_relu(x, weight, bias, residual, stride, padding)
        b, o, h, w = reference.conv_output_shape(x, weight, stride, padding)
        return x.new_empty((b, h, w, o)).permute(0, 3, 1, 2)

    @torch.library.register_fake("resnet_min::conv3x3")
    def _(x: Tensor, weight: Tensor) -> Tensor:
        reference.check_conv3x3(x, weight)
        b, o, h, w = reference.conv_output_shape(x, weight, 1, 1)
        return x.new_empty((b, h, w, o)).permute(0, 3, 1, 2)

    @torch.library.register_fake("resnet_min::conv3x3_backward")
    def _(grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
        channels_last = torch.channels_last
        return tuple(
            torch.empty_like(tensor, memory_format=channels_last) if wanted else tensor.new_empty(0)
            for tensor, wanted in ((x, for_x), (weight, for_weight))
        )

    @torch.library.register_fake("resnet_min::bn_add_relu")
    def _(
        x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float, relu: bool
    ) -> tuple[Tensor, ...]:
        reference.check_bn_add_relu(x, gamma, beta, residual, eps)
        return torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma)

    @torch.library.register_fake("resnet_min::bn_add_relu_backward")
    def _(grad: Tensor, x: Tensor, gamma: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *_, out, _ = rest
        reference.check_bn_add_relu_backward(grad, x, gamma, *rest)
        grad_residual = x.new_empty(0) if out is None else torch.empty_like(x)
        return torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma), grad_residual
