"""The CUDA operators with their kernels run from PTX on a CPU: builds the interpreter and calls them in it."""

import ctypes
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import cpp_extension

from resnet_min.kernels import OPERATORS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CUDA_OPERATORS = [operator.name for operator in OPERATORS if operator.cuda_threads]
# What operators.cpp registers, for all of CUDA_OPERATORS.
REGISTERED = ("bn_add_relu", "bn_add_relu_backward", "conv_bn_relu", "crop_flip")


class Kernel(NamedTuple):
    """What has been run of a kernel: launches, instructions, how many of those were executed, and the others."""

    launches: int
    instructions: int
    executed: int
    left_out: list[str]


def flags() -> list[str]:
    """What every compiler is told."""
    system = [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
    return ["-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", *system]


def compile_ptx(nvcc: str, operator: str, arch: str, folder: Path) -> str:
    """The PTX of an operator's kernels for an architecture ("sm_90a"), as nvcc writes it with the build's flags."""
    to = folder / f"{operator}.{arch}.ptx"
    source = ROOT / "csrc" / operator / "cuda.cu"
    command = [nvcc, "-ptx", f"-arch={arch}", *flags(), "--expt-relaxed-constexpr", str(source), "-o", str(to)]
    subprocess.run(command, check=True)
    return to.read_text()


class Interpreter:
    """The operators of resnet_min_ptx, which are those of resnet_min for CUDA, on tensors of the CPU."""

    def __init__(self, nvcc: str, folder: Path) -> None:
        """Compile, in `folder`: launches by nvcc (its PTX inside is not used), the rest by g++."""
        include = next(Path(nvcc).resolve().parents[1].glob("**/include/cuda_runtime_api.h")).parent
        objects = []

        def compile_to(name: str, *command: str) -> None:
            objects.append(str(folder / f"{name}.o"))
            subprocess.run([*command, "-o", objects[-1]], check=True)

        for name in CUDA_OPERATORS:
            options = ["-gencode=arch=compute_80,code=compute_80", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC"]
            compile_to(name, nvcc, "-c", *options, *flags(), str(ROOT / "csrc" / name / "cuda.cu"))
        gcc = ["g++", "-c", "-fPIC", f"-I{HERE / 'stand_ins'}", *flags(), "-isystem", str(include), "-Wall", "-Wextra"]
        compile_to("operators", *gcc, "-O1", str(HERE / "operators.cpp"))
        compile_to("runtime", *gcc, "-O2", "-ffp-contract=off", str(HERE / "runtime.cpp"))
        library = folder / "ptx.so"
        torchs = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10"]
        # Of the runtime's functions ours, not those of the library that torch has loaded.
        subprocess.run(["g++", "-shared", "-Wl,-Bsymbolic", *objects, *torchs, "-o", str(library)], check=True)

        self.schemas = torch.library.Library("resnet_min_ptx", "DEF")
        for name in REGISTERED:
            schema = str(getattr(torch.ops.resnet_min, name).default._schema)
            self.schemas.define(schema.removeprefix("resnet_min::"))
        self.library = ctypes.CDLL(str(library))
        for name in ("ptx_load", "ptx_faults", "ptx_coverage"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.ptx_instructions.restype = ctypes.c_uint64

    def load(self, texts: Iterable[str]) -> None:
        """Take the kernels of these PTX texts from now on."""
        encoded = [text.encode() for text in texts]
        wrong = self.library.ptx_load((ctypes.c_char_p * len(encoded))(*encoded), len(encoded))
        if wrong:
            raise RuntimeError(wrong.decode())

    def call(
        self, name: str, *args: Any, order: int = 0, early: bool = False, multiprocessors: int = 132
    ) -> torch.Tensor | Sequence[torch.Tensor]:
        """An operator's outputs, and its changes to arguments; whatever is wrong is an AssertionError.

        `order`, `early`: as in warp.h's Options. `multiprocessors`: of the GPU that the launches are planned for.
        """
        operator = getattr(torch.ops.resnet_min_ptx, name)
        self.library.ptx_set(order, ctypes.c_bool(early), multiprocessors)
        failed = None
        self.library.ptx_allocate(ctypes.c_bool(True))
        given = [known(arg) for arg in args]
        try:
            with torch.no_grad():
                outputs = operator(*given)
        except RuntimeError as error:
            failed = error
        finally:
            self.library.ptx_allocate(ctypes.c_bool(False))
        count, *faults = self.library.ptx_faults().decode().splitlines()
        assert count == "0", f"{count} faults: " + "\n".join(faults)
        if failed:
            raise failed
        for arg, copy, of in zip(args, given, operator.default._schema.arguments, strict=False):
            if of.alias_info is not None and arg is not None:
                arg.copy_(copy)
        return outputs

    def coverage(self) -> dict[str, Kernel]:
        """What has been run of each kernel since they were loaded."""
        found: dict[str, Kernel] = {}
        name = ""
        for line in self.library.ptx_coverage().decode().splitlines():
            if line.startswith("\t"):
                found[name].left_out.append(line.strip())
            else:
                *numbers, name = line.split()
                found[name] = Kernel(*map(int, numbers), [])
        return found


def known(arg: Any) -> Any:
    """A tensor with the same values, strides and alignment in memory that the interpreter knows."""
    if not isinstance(arg, torch.Tensor):
        return arg
    size = arg.untyped_storage().nbytes() // arg.element_size()
    whole = arg.as_strided((size,), (1,), 0).clone()
    return whole.as_strided(arg.shape, arg.stride(), arg.storage_offset())


def plain(symbol: str) -> str:
    """A kernel's name with its template arguments, without its parameters."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"resnet_min::|c10::|\(anonymous namespace\)::|^void ", "", name)
    return name.split("(")[0]
