"""Which backend runs, and what it says of itself."""

from types import SimpleNamespace

import pytest
import torch

from resnet_min import ops, reference
from resnet_min.errors import UserError
from resnet_min.kernels import backend

from .conftest import needs_extension
from .test_crop_flip import assert_same, draw


def test_set_backend_refuses(monkeypatch):
    with pytest.raises(UserError, match="auto, extension or reference; got 'fast'"):
        ops.set_backend("fast")
    monkeypatch.setattr(backend, "_C", None)
    monkeypatch.setattr(backend, "_load_error", "no compiler at install")
    with pytest.raises(UserError, match="no compiled kernels: no compiler at install"):
        ops.set_backend("extension")


def test_load_gives_its_reason():
    assert backend._load({"cpu": "no compiler at install"}) == (None, "no compiler at install")
    module, reason = backend._load({"cpu": "built", "torch": "2.0.1"})
    assert module is None and reason == f"built for torch 2.0.1, this is {torch.__version__}: install again"


@pytest.mark.parametrize("built_for", [torch.__version__, "2.0.1"])
def test_a_module_is_used_with_its_own_torch_only(built_for, monkeypatch):
    """Where setup.py left no note, the module itself says which it is."""
    module = SimpleNamespace(build_info=lambda: {"torch": built_for})
    monkeypatch.setattr(backend.importlib, "import_module", lambda name: module)
    loaded, reason = backend._load({})
    if built_for == torch.__version__:
        assert (loaded, reason) == (module, "")
    else:
        assert loaded is None and reason.startswith("built for torch 2.0.1, this is")


@pytest.mark.parametrize(
    ("error", "said"), [(ModuleNotFoundError("_C"), "not built"), (ImportError("no symbol x\nat y"), "no symbol x")]
)
def test_a_module_that_does_not_load_says_why_in_one_line(error, said, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(backend.importlib, "import_module", fail)
    assert backend._load({}) == (None, said)


def test_bfloat16_is_asked_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert backend.has_bf16(torch.device("cuda")) and not backend.has_bf16(torch.device("meta"))


def test_without_the_extension_everything_is_the_reference(monkeypatch):
    monkeypatch.setattr(backend, "_C", None)
    monkeypatch.setattr(backend, "_kernel_devices", ())
    monkeypatch.setattr(backend, "_load_error", "no compiler at install")
    args = draw((5, 8, 8), 4, 2)
    assert not ops.supported("crop_flip", *args[:-1])
    assert_same(ops.crop_flip(*args), reference.crop_flip(*args))
    assert ops.backend_line("cpu") == ops.backend_line("cuda") == "kernels: reference (no compiler at install)"
    info = ops.build_info()
    assert info["extension"] is False and info["cpu"] == info["cuda"] == "no compiler at install"


@needs_extension
def test_backend_line(monkeypatch):
    release = ".".join(torch.__version__.split(".")[:2])
    assert ops.backend_line("cpu") == f"kernels: cpu extension (torch {release})"
    monkeypatch.setattr(backend, "_kernel_devices", ("cpu",))
    monkeypatch.setattr(backend, "_record", {"cuda": "no nvcc at install"})
    assert ops.backend_line("cuda:0") == "kernels: cpu extension, cuda reference (no nvcc at install)"
    monkeypatch.setattr(backend, "_backend", "reference")
    assert ops.backend_line("cpu") == "kernels: reference (asked for)"


@pytest.mark.parametrize(
    "archs, gpus, others",
    [
        ("8.0+PTX;9.0a", "8.0 8.6 8.9 9.0 10.0 12.0", "7.5 7.0"),
        ("9.0a", "9.0", "8.0 9.1 10.0"),
        ("8.6", "8.6 8.9", "8.0 9.0 7.5"),
        ("7.5;8.0", "7.5 8.0 8.6", "7.0 9.0"),
        ("Hopper", "9.0 8.0", ""),
    ],
)
def test_has_code(archs, gpus, others):
    def said(names):
        return [backend.has_code(archs, tuple(map(int, name.split(".")))) for name in names.split()]

    assert all(said(gpus)) and not any(said(others))


@needs_extension
def test_a_gpu_that_nothing_was_compiled_for(monkeypatch):
    monkeypatch.setattr(backend, "_kernel_devices", ("cpu", "cuda"))
    monkeypatch.setattr(backend, "_C", SimpleNamespace(build_info=lambda: {"archs": "9.0a"}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(backend, "_missing_codes", {})
    assert not backend.in_use(torch.device("cuda:0")) and backend.in_use(torch.device("cpu"))
    line = "kernels: cpu extension, cuda reference (built for 9.0a, this GPU is 8.0: install again on it)"
    assert ops.backend_line("cuda:0") == line


@needs_extension
def test_extension_is_not_replaced_in_silence(monkeypatch):
    """Asked to use kernels, on a device without any, the operators say so."""
    monkeypatch.setattr(backend, "_backend", "extension")
    monkeypatch.setattr(backend, "_kernel_devices", ())
    with pytest.raises(UserError, match="no compiled kernels for cpu"):
        ops.crop_flip(*draw((5, 8, 8), 4, 2))


@needs_extension
def test_build_info():
    info = ops.build_info()
    assert info["extension"] is True and info["cpu"] == "built" and info["compiler"]
    assert torch.__version__.startswith(info["torch"])
    assert (info["cuda"] == "built") == (info["cuda_version"] is not None) == (info["archs"] is not None)
