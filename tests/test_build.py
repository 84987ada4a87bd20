"""setup.py's decisions, and what the built module says of itself."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import resnet_min

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_toolkit(home: Path, include: str = "include") -> str:
    for file in (home / "bin/nvcc", home / include / "cuda_runtime.h"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (home / "bin/nvcc").chmod(0o755)
    return str(home)


def fake_package(site: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))


@pytest.fixture
def bare(build, monkeypatch):
    """A machine with no toolkit, no GPU and no ninja."""
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "output_of", lambda *command: "")
    monkeypatch.setattr(build.os, "access", lambda path, mode: "/usr/" not in path and os.path.exists(path))
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return build


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler.36424714_0", "13.0"),
        ("Cuda compilation tools, release 12.10, V12.10.1", "12.10"),
        ("nvcc: not a compiler", ""),
        ("", ""),
    ],
)
def test_nvcc_version(build, text, expected):
    assert build.nvcc_version(text) == expected


def test_numbers(build):
    assert build.numbers("2.15.0+cu132") == [2, 15, 0]
    assert build.numbers("2.9.0a0+git123") < build.numbers(build.MINIMUM_TORCH) < build.numbers("2.15")


@pytest.mark.parametrize(
    "versions, torch_cuda, expected",
    [
        ({"/a": "13.0", "/b": "13.2"}, "13.2", ("/b", "")),
        ({"/a": "13.0", "/b": "13.1"}, "13.2", ("/a", "")),
        ({"/a": "12.4"}, "13.2", (None, "nvcc 12.4 does not match torch's CUDA 13.2")),
        ({}, "13.2", (None, "no nvcc at install")),
        ({"/a": "13.0"}, None, (None, "torch at install had no CUDA")),
    ],
)
def test_choose_cuda(build, versions, torch_cuda, expected):
    assert build.choose_cuda(versions, torch_cuda) == expected


@pytest.mark.parametrize(
    "capabilities, asked, expected",
    [
        ([], None, "8.0+PTX;9.0a"),
        ([], "", "8.0+PTX;9.0a"),
        ([], "native", "8.0+PTX;9.0a"),
        ([(9, 0), (9, 0)], None, "9.0a"),
        ([(9, 0), (8, 6)], None, "8.6;9.0a"),
        ([(10, 0), (9, 0)], None, "9.0a;10.0"),
        ([(9, 0)], "8.0;9.0a", "8.0;9.0a"),
        ([(9, 0)], "8.0 8.6+PTX", "8.0;8.6+PTX"),
    ],
)
def test_choose_archs(build, capabilities, asked, expected):
    assert build.choose_archs(capabilities, asked) == expected


def test_finds_the_wheels_nvcc(bare, tmp_path):
    site = tmp_path / "with [odd] name*"
    home = fake_toolkit(site / "nvidia/cu13")
    assert bare.cuda_homes([str(site), str(tmp_path), str(site)]) == [home]


def test_nvcc_without_headers_is_no_toolkit(bare, tmp_path, monkeypatch):
    script = tmp_path / "bin/nvcc"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(bare.shutil, "which", lambda name: str(script) if name == "nvcc" else None)
    assert bare.cuda_homes([]) == []
    fake_toolkit(tmp_path, "targets/x86_64-linux/include")
    assert bare.cuda_homes([]) == [str(tmp_path)]


def test_the_users_toolkit_comes_first(bare, tmp_path, monkeypatch):
    own, wheel = fake_toolkit(tmp_path / "own"), fake_toolkit(tmp_path / "site/nvidia/cu13")
    monkeypatch.setenv("CUDA_HOME", own)
    assert bare.cuda_homes([str(tmp_path / "site")]) == [own, wheel]


def test_build_requires(bare, tmp_path, monkeypatch):
    old, new, with_cuda = (str(tmp_path / name) for name in ("old", "new", "with_cuda"))
    fake_package(Path(old), "torch", "2.10.0")
    fake_package(Path(new), "torch", "2.13.0+cpu", ("filelock",))
    fake_package(Path(with_cuda), "torch", "2.15.0", ("filelock", 'cuda-toolkit[cudart]==13.2.2; sys_platform == "x"'))
    assert bare.build_requires([]) == ["torch>=2.11", "torchvision", "ninja"]
    assert bare.build_requires([old]) == ["torch>=2.11", "torchvision", "ninja"]
    assert bare.build_requires([new]) == ["ninja"]
    assert bare.build_requires([with_cuda]) == ["ninja"]

    monkeypatch.setattr(bare.shutil, "which", lambda name: "/bin/nvidia-smi" if name == "nvidia-smi" else None)
    assert bare.build_requires([]) == ["torch>=2.11", "torchvision", "ninja", "cuda-toolkit[nvcc,cccl]"]
    assert bare.build_requires([new]) == ["ninja"]
    assert bare.build_requires([with_cuda]) == ["ninja", "cuda-toolkit[nvcc,cccl]==13.2.2"]
    fake_toolkit(Path(with_cuda) / "nvidia/cu13")
    assert bare.build_requires([with_cuda]) == ["ninja"]


def test_find_compiler(build, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/bin/{name}" if name in ("g++", "ccache") else None)
    monkeypatch.delenv("CXX", raising=False)
    assert build.find_compiler() == "g++"
    monkeypatch.setenv("CXX", "ccache g++")
    assert build.find_compiler() == "ccache g++"
    monkeypatch.setenv("CXX", "icpx")
    assert build.find_compiler() is None


@pytest.mark.parametrize(
    "line",
    [
        "csrc/ops.cpp:3:10: fatal error: Python.h: No such file or directory",
        'csrc/cuda/crop_flip.cu(12): error: identifier "x" is undefined',
        "nvcc fatal   : Unsupported gpu architecture 'compute_100'",
        "/usr/bin/ld: cannot find -lcudart: No such file or directory",
        "/bin/sh: 1: c++: not found",
    ],
)
def test_first_error(build, line):
    lines = ["[1/3] c++ -Werror -c csrc/ops.cpp -o ops.o", "FAILED: [code=1] ops.o", line, "ninja: build stopped."]
    assert build.first_error(lines, RuntimeError("no")) == " ".join(line.split())
    assert build.first_error([], RuntimeError("two\nlines")) == "RuntimeError: two lines"
    assert len(build.first_error(["error: " + "x" * 500], RuntimeError())) == 200


def test_output_kept(build, capfd):
    lines = []
    with pytest.raises(KeyError), build.output_kept(lines):
        os.system("echo a child; echo and its errors >&2")
        raise KeyError
    assert lines == ["a child", "and its errors"]
    os.system("echo after")
    assert sorted(capfd.readouterr().out.splitlines()) == sorted([*lines, "after"])


def test_target_path_has_this_torch(build):
    assert str(Path(torch.__file__).parent.parent) in build.target_path()


def test_build_info_is_coherent():
    info = resnet_min.build_info()
    if not info["extension"]:
        assert info["cpu"] != "built" and info["cuda"] != "built"
        assert info["cpu"] and "\n" not in info["cpu"]
        return
    assert info["cpu"] == "built" and info["compiler"]
    assert info["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert (info["cuda"] == "built") == bool(info["cuda_version"]) == bool(info["archs"])
    note = json.loads(Path(resnet_min.__file__).with_name("_build.json").read_text())
    assert (note["cpu"], note["cuda"]) == (info["cpu"], info["cuda"])


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_a_gpu_is_asked_in_three_calls_of_ten_minutes():
    """The limits of .ci/gpu's steps, each with a name of its own; nothing is run."""
    command = ["bash", str(ROOT / ".ci/gpu"), "all", "FOLDER"]
    shown = subprocess.run(command, env={**os.environ, "DRY": "1"}, check=True, capture_output=True, text=True).stdout
    steps = [line.split("\t") for line in shown.splitlines()]
    assert {call for call, *_ in steps} == {"1", "2", "3"}
    for call in "123":
        assert sum(int(limit) for of, limit, *_ in steps if of == call) <= 600
    assert len({name for _, _, name, _ in steps}) == len(steps)
    assert [name for _, _, name, _ in steps][:4] == ["device", "build", "info", "kernel-tests"]
