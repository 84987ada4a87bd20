"""The operators. Loads the compiled kernels, decides which backend runs where; nothing else knows whether they exist.

Each operator here has a twin of the same name in `reference.py`, which holds its documentation.
"""

from __future__ import annotations

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


def make_table(mean: Any, std: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """`crop_flip`'s table for normalised images: [3, 256], table[c, v] = (v / 255 - mean[c]) / std[c].

    mean, std  3 numbers each, of values in 0 to 1. Computed in float32, as torchvision does, then rounded to `dtype`.
    """
    mean, std = (torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1) for x in (mean, std))
    if mean.numel() != 3 or std.numel() != 3 or not (std > 0).all():
        raise ValueError(f"make_table: mean and std must be 3 numbers each, std above 0; got {mean} and {std}")
    return ((torch.arange(256, dtype=torch.float32) / 255 - mean) / std).to(dtype)


# ---- which backend runs ----


def supported(operator: str, *tensors: Tensor) -> bool:
    """Whether the compiled `operator` takes these tensors: by device, dtype and layout, never by values."""
    device = tensors[0].device
    if _backend == "reference" or any(t.device != device for t in tensors):
        return False
    if device.type not in _kernel_devices:
        if _backend == "extension":
            raise UserError(f"no compiled kernels for {device.type}: {_why_not(device.type)}")
        return False
    return _takes[operator](*tensors)


def _takes_crop_flip(images: Tensor, *_: Tensor) -> bool:
    # Pixels with gaps between them (a permuted NCHW data set) would have to be copied whole, every time.
    return images.dim() != 4 or (images.stride(3) == 1 and (images.shape[2] == 1 or images.stride(2) == 3))


_takes = {"crop_flip": _takes_crop_flip}


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
