"""Builds resnet_min._C for the torch that will run it, with CUDA kernels where there is an nvcc for that torch's CUDA.

What cannot be built is left out, with the reason in resnet_min/_build.json, and the package runs on its PyTorch
reference instead. Environment: RESNET_MIN_CUDA=0 leaves the CUDA kernels out, RESNET_MIN_REQUIRE_EXT=1 makes a failed
build an error, RESNET_MIN_WERROR=1 a compiler's warning; TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX and MAX_JOBS mean what
they mean to torch.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

NAME = "resnet_min._C"
MINIMUM_TORCH = "2.11"
CUDA_WHEELS = "cuda-toolkit[nvcc,cccl]"
# No cuda.cpp beside a cuda.cu: objects are named after the stem alone.
CUDA_SOURCES = sorted(glob("csrc/*/cuda.cu")) + sorted(glob("csrc/*/cuda_host.cpp"))
CPU_SOURCES = sorted(set(glob("csrc/**/*.cpp", recursive=True)) - set(CUDA_SOURCES))
HEADERS = sorted(glob("csrc/**/*.h", recursive=True))

# ---- what is there ----


def output_of(*command: str) -> str:
    """What a command prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def target_path() -> list[str]:
    """Where the interpreter we install for finds its packages.

    pip builds in an environment of its own, which it makes out of PYTHONPATH and its like: the same interpreter,
    started without them (-E), shows the target's path.
    """
    code = "import json, sys; print(json.dumps([p for p in sys.path if p]))"
    return json.loads(output_of(sys.executable, "-E", "-c", code) or "[]")


def numbers(version: str) -> list[int]:
    """The leading numbers of a version: "2.15.0+cu132" is [2, 15, 0]."""
    return [int(part) for part in re.match(r"[\d.]*\d", version).group().split(".")]


def build_requires(path: list[str]) -> list[str]:
    """What an isolated build environment must bring, where `path` is the target's.

    The target's torch is the one to build for. A target without gets the newest, and so does the build (torchvision
    is in both, so that both resolve alike). For a machine with a GPU and no nvcc, the nvcc that goes with torch: its
    own requirements name the version.
    """
    torch = next(iter(importlib.metadata.distributions(name="torch", path=path)), None)
    if torch and numbers(torch.version) < numbers(MINIMUM_TORCH):
        torch = None
    wanted = [] if torch else [f"torch>={MINIMUM_TORCH}", "torchvision"]
    if not output_of("ninja", "--version"):  # a target's own ninja may be there and not run in isolation
        wanted.append("ninja")
    if shutil.which("nvidia-smi") and not cuda_homes(path):
        pins = re.findall(r"^cuda-toolkit\b.*(==[\d.]+)", "\n".join(torch.requires or []), re.M) if torch else [""]
        wanted += [CUDA_WHEELS + pin for pin in pins[:1]]
    return wanted


def find_compiler() -> str | None:
    """The C++ compiler: CXX, or the first of the usual names."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(shlex.split(name)[0])), None)


def cuda_includes(home: str) -> list[str]:
    """The folders of a toolkit that have CUDA's headers."""
    found = [path for where in (".", "targets/*") for path in Path(home).glob(f"{where}/include/cuda_runtime.h")]
    return [str(path.parent.absolute()) for path in found]


def cuda_homes(path: list[str]) -> list[str]:
    """Folders with an nvcc and CUDA's headers: the user's word, PATH, the usual place, NVIDIA's wheels on `path`."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        homes.append(os.path.dirname(os.path.dirname(os.path.realpath(nvcc))))
    homes.append("/usr/local/cuda")
    homes += [str(home) for entry in path for home in sorted(Path(entry).glob("nvidia/cu[0-9]*"))]

    def complete(home: str) -> bool:  # an nvcc without headers beside it is a script that calls another
        return os.access(f"{home}/bin/nvcc", os.X_OK) and bool(cuda_includes(home))

    return list(dict.fromkeys(home for home in homes if home and complete(home)))


def nvcc_version(text: str) -> str:
    """The version in what `nvcc --version` prints ("13.0"); nothing where there is none."""
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else ""


def choose_cuda(versions: dict[str, str], torch_cuda: str | None) -> tuple[str | None, str]:
    """Of the toolkits {home: version} the one for torch's CUDA, or None, and why none.

    The same version is best; the same major version is what CUDA promises to be enough.
    """
    if not torch_cuda:
        return None, "torch at install had no CUDA"
    if not versions:
        return None, "no nvcc at install"
    for digits in (2, 1):
        for home, version in versions.items():
            if numbers(version)[:digits] == numbers(torch_cuda)[:digits]:
                return home, ""
    return None, f"nvcc {next(iter(versions.values()))} does not match torch's CUDA {torch_cuda}"


def choose_archs(capabilities: list[tuple[int, int]], asked: str | None) -> str:
    """The architectures to compile for: those asked for, else the visible GPUs' own, else a list that serves most.

    9.0a has Hopper's own instructions, but its PTX runs on nothing newer; 8.0's does.
    """
    if asked and asked != "native":
        return asked.replace(" ", ";")
    names = [f"{major}.{minor}" for major, minor in sorted(set(capabilities))]
    return ";".join("9.0a" if name == "9.0" else name for name in names) or "8.0+PTX;9.0a"


# ---- the build ----


@contextlib.contextmanager
def output_kept(lines: list[str]) -> Iterator[None]:
    """Adds to `lines` what is printed meanwhile, by compilers too (on our descriptors 1 and 2), then prints it."""
    sys.stdout.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            for fd in (1, 2):
                os.dup2(saved[fd - 1], fd)
                os.close(saved[fd - 1])
            log.seek(0)
            text = log.read().decode(errors="replace")
            lines += text.splitlines()
            print(text, end="", flush=True)


def first_error(lines: list[str], error: Exception) -> str:
    """One line that says why a build failed: the first error a compiler or linker printed, else the exception."""
    pattern = re.compile(r"(\berror\b|\bfatal\b).*:|cannot find|not found|undefined reference")
    line = next((line for line in lines if pattern.search(line)), f"{type(error).__name__}: {error}")
    line = " ".join(line.replace(os.getcwd() + os.sep, "").split())
    return line if len(line) <= 200 else line[:199] + "…"


class BuildKernels(build_ext):
    """Fills in the extension, since only the target's torch can tell how, and has torch's own command build it."""

    def run(self) -> None:
        """Build with CUDA, else without, else not at all; write down which, and why."""
        module = Path(self.get_ext_fullpath(NAME)).absolute()
        for stale in (module, Path(self.build_lib, self.get_ext_filename(NAME))):
            stale.unlink(missing_ok=True)  # a build that fails must not leave an older one in its place

        sys.path += [entry for entry in target_path() if entry not in sys.path]
        version = home = None
        compiler = find_compiler()
        cpu = cuda = "no compiler at install"
        try:
            import torch

            version = torch.__version__
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
            cpu = cuda = "no torch at install" if missing else first_error([], error)
        if version and compiler:
            os.environ["CXX"] = compiler  # torch compiles with this one; setuptools is to link with the same
            os.environ["LC_ALL"] = "C"  # errors in English, for `first_error`
            versions = {home: nvcc_version(output_of(f"{home}/bin/nvcc", "--version")) for home in cuda_homes(sys.path)}
            versions = {home: found for home, found in versions.items() if found}
            home, cuda = choose_cuda(versions, torch.version.cuda)
            if os.environ.get("RESNET_MIN_CUDA") == "0":
                home, cuda = None, "RESNET_MIN_CUDA=0 at install"
            if home:
                cpu = cuda = self.build(home, versions[home])
            if cpu != "built":
                cpu = self.build()

        failed = cpu if cpu != "built" else cuda if home and cuda != "built" else None
        if failed and os.environ.get("RESNET_MIN_REQUIRE_EXT") == "1":
            raise SystemExit(f"error: {NAME} was not built: {failed}")
        if failed:
            print(f"warning: {NAME}: {failed}; the PyTorch reference takes its place", file=sys.stderr)
        module.parent.mkdir(parents=True, exist_ok=True)
        note = {"cpu": cpu, "cuda": cuda, "torch": version}
        module.with_name("_build.json").write_text(json.dumps(note, indent=1) + "\n")

    def build(self, cuda_home: str | None = None, cuda_version: str = "") -> str:
        """Compile and link, the CUDA sources too if there is a `cuda_home`. Returns "built" or why it was not."""
        lines: list[str] = []
        try:
            self.describe(self.extensions[0], cuda_home, cuda_version)
            from torch.utils.cpp_extension import BuildExtension

            command = BuildExtension(self.distribution)
            for option in ("inplace", "build_lib", "build_temp", "editable_mode", "parallel", "debug"):
                setattr(command, option, getattr(self, option))
            command.ensure_finalized()
            with output_kept(lines):
                command.run()
        except Exception as error:
            return first_error(lines, error)
        return "built"

    @staticmethod
    def describe(extension: Extension, cuda_home: str | None, cuda_version: str) -> None:
        """Fill in sources, flags and libraries."""
        import torch

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # on no GPU here, on minor versions
        from torch.utils import cpp_extension

        # Others' headers as system headers: their warnings are not ours. `-fopenmp` compiles at::parallel_for's loops;
        # the linker does not get it, so that they run on the threads torch has and not on a second pool.
        system = [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
        cxx = ["-O3", "-g0", "-Wall", "-Wextra", *system] + ["-fopenmp"] * sys.platform.startswith("linux")
        nvcc = ["-O3", "-Xcompiler=-Wall,-Wextra", *system]
        if os.environ.get("RESNET_MIN_WERROR") == "1":
            cxx, nvcc = [*cxx, "-Werror"], [*nvcc, "-Werror=all-warnings", "-Xcompiler=-Werror"]
        extension.sources = (CUDA_SOURCES if cuda_home else []) + CPU_SOURCES
        extension.include_dirs = [os.path.abspath("csrc")]  # ninja compiles in another folder
        extension.library_dirs = cpp_extension.library_paths()
        extension.libraries = ["c10", "torch", "torch_cpu", "torch_python"]
        extension.define_macros, extension.extra_link_args = [], []
        extension.extra_compile_args = {"cxx": cxx, "nvcc": nvcc}
        if not cuda_home:
            return

        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        archs = choose_archs(capabilities, os.environ.get("TORCH_CUDA_ARCH_LIST"))
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs
        nvcc += cpp_extension._get_cuda_arch_flags()  # left to itself, torch adds none if a path has "arch" in it
        cpp_extension.CUDA_HOME = cuda_home
        texts = {"RESNET_MIN_CUDA_VERSION": cuda_version, "RESNET_MIN_CUDA_ARCHS": archs}
        extension.define_macros = [("WITH_CUDA", "1"), *((name, f'"{text}"') for name, text in texts.items())]
        extension.libraries += ["c10_cuda", "torch_cuda"]
        # Not the compiler's own folder, which must stay behind its C++ library's.
        include = cuda_includes(cuda_home)[0]
        cxx += ["-isystem", include] * (include != "/usr/include")
        # By file name: NVIDIA's wheels have a libcudart.so.13 but no libcudart.so, which -lcudart looks for.
        where = ("lib64", "lib", "targets/*/lib")
        cudart = [str(found) for lib in where for found in sorted(Path(cuda_home).glob(f"{lib}/libcudart.so*"))]
        extension.extra_link_args = cudart[:1] or ["-lcudart"]


if __name__ == "__main__":
    setup(
        version=re.search(r'__version__ = "(.+)"', Path("resnet_min/__init__.py").read_text()).group(1),
        packages=find_packages(include=["resnet_min", "resnet_min.*"]),  # and not tests/ or tools/
        package_data={"resnet_min": ["py.typed"], "resnet_min.weights": ["*.pt", "*.json"]},
        setup_requires=build_requires(sys.path + target_path()),
        install_requires=[
            f"torch>={MINIMUM_TORCH}",
            "torchvision",
            "numpy",
            "scikit-learn",
            "matplotlib",
            "tqdm",
            "scipy",
            "pillow",
            "filelock",
        ],
        extras_require={
            "test": ["pytest", "pytest-xdist", "hypothesis"],
            "cuda": [CUDA_WHEELS],
            "tensorboard": ["tensorboard"],
            "serving": ["onnx", "onnxscript", "onnxruntime", "openvino", "safetensors"],
        },
        # optional: setuptools goes on where it was not built. The sources, all of them, are for source distributions.
        ext_modules=[Extension(NAME, CPU_SOURCES + CUDA_SOURCES, depends=HEADERS, optional=True)],
        cmdclass={"build_ext": BuildKernels},
    )
