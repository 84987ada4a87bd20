"""What the compilers make of the kernels; `python -m pytest -m slow -s` with this file prints it for CUDA's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from resnet_min.kernels import OPERATORS
from resnet_min.kernels import backend as kernels

from .conftest import ROOT, needs_extension

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


@needs_extension
@pytest.mark.parametrize("loops, rows", [("avx2", 6), ("avx512", 12)])
def test_products_on_a_cpu_keep_their_sums_in_registers(loops, rows):
    """No vector goes to the stack or comes from it in the innermost loops of fused_net's largest products."""
    if not shutil.which("objdump") or "clang" in (kernels._C.build_info()["compiler"] or ""):
        pytest.skip("no objdump, or another compiler than GCC")
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", kernels._C.__file__]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = r"(Convolution const&|Points const&|float const\*, long, float\*)"  # other operators have such names too
    found = {}
    for head, *lines in map(str.splitlines, re.split(r"\n{2,}", code)):
        if name := re.search(rf"::{loops}::(convolve|multiply)(_rows)?<.*{theirs}", head):
            found.setdefault(name[1], []).extend(innermost(lines))
    if not found:
        pytest.skip("no symbols in the built module, or not for this processor")
    for name in ("convolve", "multiply"):
        products = [loop for loop in found[name] if sum("vfmadd" in line for line in loop) == 2 * rows]
        assert products, f"no loop of {name} has the {2 * rows} sums that it should"
        spilled = [line for line in sum(products, []) if re.search(r"%[xyz]mm.*\(%r[sb]p|\(%r[sb]p.*%[xyz]mm", line)]
        assert not spilled, name


def innermost(lines):
    """The loops of a function that have no jump in them but the last."""
    places = {line.split(":")[0].strip(): i for i, line in enumerate(lines)}
    for i, line in enumerate(lines):
        jump = re.search(r":\s+j\w+\s+([0-9a-f]+)", line)
        begin = places.get(jump[1]) if jump else None
        if begin is not None and begin < i and not any(re.search(r":\s+j", other) for other in lines[begin:i]):
            yield lines[begin:i]
