"""Residual networks for small images: models, and fused kernels, each with a reference in PyTorch."""

import importlib

__version__ = "0.1.0"

# Imported when first used, so that `train.py --help` does not wait for torch. Name -> the module that has it.
_PUBLIC = {
    "build_info": "ops",
    "fuse": "inference.fuse",
    "load": "tasks.loading",
    "resnet": "model",
    **{f"resnet{depth}": "model" for depth in (18, 20, 32, 34, 44, 50, 56, 101, 110, 152)},
}
_MODULES = ("ops", "reference")
__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
