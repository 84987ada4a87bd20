"""Loads the compiled kernels and decides what runs where; nothing else knows whether they exist."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(operator: str) -> Callable[[Function], Function]:
    """Register what says whether the compiled `operator` takes these tensors, which are on a device with kernels."""
    return lambda function: _takes.setdefault(operator, function)


def fake(operator: str) -> Callable[[Function], Function]:
    """Register the compiled operator's fake kernel, where there is an operator."""
    return (lambda function: function) if _C is None else torch.library.register_fake(f"resnet_min::{operator}")


def supported(operator: str, *tensors: Tensor | None) -> bool:
    """Whether the compiled `operator` takes these tensors: by device, dtype and layout, never by values.

    The layouts and dtypes that kernels take are fewer than those of the references. Raises UserError where kernels were
    asked for on a device without.
    """
    device = tensors[0].device
    if _backend == "reference" or _is_transformed() or any(t is not None and t.device != device for t in tensors):
        return False
    if missing := _missing(device):
        if _backend == "extension":
            raise UserError(f"no compiled kernels for {device.type}: {missing}")
        return False
    return _takes[operator](*tensors)


def call(operator: str, check: Callable[..., None], *args: Any) -> Any:
    """The compiled operator's result; where it refuses the arguments, `check` has the words for what is wrong."""
    try:
        return getattr(torch.ops.resnet_min, operator)(*args)
    except (ValueError, RuntimeError):
        check(*args)
        raise


def in_use(device: torch.device) -> bool:
    """Whether compiled kernels run on `device`, for what they take."""
    return _backend != "reference" and not _missing(device) and not _is_transformed()


def _is_transformed() -> bool:
    """Whether a transform of torch.func is at work: vmap, grad and jvp have rules for PyTorch's operators only."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def has_hooks(*modules: nn.Module | None) -> bool:
    """Whether any of these modules has hooks, its own or torch's global ones."""
    return nn.modules.module._has_any_global_hook() or any(
        getattr(module, hooks) for module in modules if module is not None for hooks in _HOOKS
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are native there: elsewhere they run, but slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # torch's own names for it are private: without them, float32
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


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
    device = torch.device(device)
    kind = device.type
    if _backend == "reference":
        return "kernels: reference (asked for)"
    if _C is None:
        return f"kernels: reference ({_why_not('cpu')})"
    if missing := _missing(device):
        return f"kernels: cpu extension, {kind} reference ({missing})"
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


def _missing(device: torch.device) -> str:
    """Why no compiled kernels run on `device`; nothing where they do."""
    if device.type not in _kernel_devices:
        return _why_not(device.type)
    return _missing_code(device) if device.type == "cuda" else ""


@torch.compiler.assume_constant_result
def _missing_code(device: torch.device) -> str:
    """Why this GPU cannot run what was compiled; nothing where it can."""
    if device not in _missing_codes:
        archs, capability = _C.build_info()["archs"], torch.cuda.get_device_capability(device)
        gpu = "{}.{}".format(*capability)
        told = "" if has_code(archs, capability) else f"built for {archs}, this GPU is {gpu}: install again on it"
        _missing_codes[device] = told
    return _missing_codes[device]


def has_code(archs: str, capability: tuple[int, int]) -> bool:
    """Whether what was compiled for `archs` ("8.0+PTX;9.0a") runs on a GPU of this capability.

    Machine code runs within a major version on the same minor version and later ones, or with "a" on that one alone;
    PTX on all later GPUs. A name that torch has for an architecture ("Hopper") passes.
    """
    for arch in archs.split(";"):
        found = re.fullmatch(r"(\d+)\.(\d+)(a?)(\+PTX)?", arch)
        if found is None:
            return True
        built = int(found[1]), int(found[2])
        if capability == built:
            return True
        later = capability > built and not found[3]
        if later and (found[4] or capability[0] == built[0]):
            return True
    return False


def _why_not(kind: str) -> str:
    if _C is None:
        return _load_error
    reason = _record.get(kind)
    return "not built" if reason in (None, "built") else reason


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _read_record() -> dict[str, str]:
    """What setup.py noted: {"cpu": "built" or a reason, "cuda": likewise, "torch": version}; empty without a note."""
    path = _PACKAGE / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _load(record: dict[str, str]) -> tuple[ModuleType | None, str]:
    """The compiled module, or None and why."""
    if record.get("cpu", "built") != "built":
        return None, record["cpu"]
    built_for = record.get("torch", torch.__version__)  # a module built for another torch may crash when imported
    try:
        if _minor(built_for) == _minor(torch.__version__):
            module = importlib.import_module(f"{_PACKAGE.name}._C")
            built_for = module.build_info()["torch"]
            if _minor(built_for) == _minor(torch.__version__):
                return module, ""
    except ModuleNotFoundError:
        return None, "not built"
    except ImportError as error:
        return None, str(error).splitlines()[0]
    return None, f"built for torch {built_for}, this is {torch.__version__}: install again"


_PACKAGE = Path(__file__).parent.parent
_takes: dict[str, Callable[..., bool]] = {}
_missing_codes: dict[torch.device, str] = {}
_backend = "auto"
_record = _read_record()
_C, _load_error = _load(_record)
_kernel_devices = () if _C is None else ("cpu", "cuda") if _C.build_info()["cuda"] else ("cpu",)
