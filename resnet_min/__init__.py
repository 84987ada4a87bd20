"""Residual networks for small images: models, and fused kernels, each with a reference in PyTorch."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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


# A saved graph names our operators, and torch must know them to load one. `import resnet_min` is to be enough for that,
# and not to import torch by itself; so they are registered now if torch is there, else once it has been imported.


class _AfterTorch:
    """An import finder that leaves all modules to the others, and registers the operators behind torch."""

    def find_spec(self, name: str, *where: Any) -> ModuleSpec | None:
        if name != "torch":
            return None
        found = (finder.find_spec(name, *where) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
                importlib.import_module(f"{__name__}.kernels")

            spec.loader.exec_module = execute_and_register
        return spec


if "torch" in sys.modules:
    importlib.import_module(f"{__name__}.kernels")
else:
    sys.meta_path.insert(0, _AfterTorch())
