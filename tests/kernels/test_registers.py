"""What the compiler makes of the CUDA kernels; `python -m pytest -m slow -s` with this file prints it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from resnet_min.kernels import OPERATORS

from .conftest import ROOT

NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
SHARED = {"sm_80": 164 << 10, "sm_90a": 228 << 10}  # bytes a multiprocessor


@pytest.mark.slow
@pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc")
@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize(
    "operator", [operator for operator in OPERATORS if operator.cuda_threads], ids=lambda o: o.name
)
def test_no_spills_and_the_planned_occupancy(operator, arch, tmp_path):
    """No warnings either. Occupancy is the lesser of what registers and what shared memory leave room for."""
    flags = ["-std=c++20", "-O3", "-cubin", f"-arch={arch}", "-Xptxas=-v", "-Xcompiler=-Wall", "-Werror=all-warnings"]
    include = [f"-I{ROOT / 'csrc'}", *(f"-isystem={path}" for path in cpp_extension.include_paths())]
    source = ROOT / "csrc" / operator.name / "cuda.cu"
    command = [NVCC, *flags, *include, "--expt-relaxed-constexpr", str(source), "-o", str(tmp_path / "cubin")]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    figures = r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?"
    kernels = re.findall(figures, report, re.S)
    assert len(kernels) == report.count("Compiling entry function") > 0
    for symbol, spills, registers, static in kernels:
        name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
        name = re.sub(r"resnet_min::|\(anonymous namespace\)::|\((resnet_min::)?Mask\)|void ", "", name)
        name = re.sub(r"\(.*", "", name.strip())
        tile = re.search(r"Tile<(\d+), (\d+), \d+, \d+, (\d+)>", name)
        shared = 4 * (int(tile[1]) + int(tile[2])) * 64 if tile else int(static or 0)
        threads = operator.cuda_threads
        blocks = min(65536 // (threads * -(-int(registers) // 8) * 8), SHARED[arch] // (shared + 1024), 2048 // threads)
        print(f"{arch} {name}: {registers} registers, {spills} bytes spilled, {shared} bytes shared,", end=" ")
        print(f"{blocks} blocks of {threads} threads a multiprocessor")
        assert spills == "0"
        assert blocks >= (int(tile[3]) if tile else 2)
