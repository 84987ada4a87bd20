"""What ptxas makes of the CUDA kernels; `python -m pytest -m slow -s -k sass` prints it."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from ptx.interpreter import CUDA_OPERATORS, ROOT, flags, plain

from resnet_min.kernels import OPERATORS

NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
SHARED = {"sm_80": 164 << 10, "sm_90a": 228 << 10, "sm_100": 228 << 10}  # bytes a multiprocessor
THREADS = {operator.name: operator.cuda_threads for operator in OPERATORS}
# Blocks that a multiprocessor has room for, where more than the two of any other kernel are planned.
BLOCKS = {"moments_kernel": 4}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc")]


def nvdisasm() -> str:
    """The disassembler, of the toolkit or of torch's Triton."""
    triton = pytest.importorskip("triton")
    return shutil.which("nvdisasm") or str(Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm")


def compiled(operator: str, arch: str, folder: Path) -> tuple[dict[str, list[str]], str]:
    """The instructions of each kernel, {symbol: ["LDG.E.128 …", …]} without predicates, and what ptxas reports."""
    cubin = folder / f"{operator}.{arch}.cubin"
    source = ROOT / "csrc" / operator / "cuda.cu"
    options = ["-cubin", f"-arch={arch}", "-Xptxas=-v", "-Xcompiler=-Wall", "-Werror=all-warnings"]
    command = [NVCC, *options, *flags(), "--expt-relaxed-constexpr", str(source), "-o", str(cubin)]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    listing = subprocess.run([nvdisasm(), "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    code: dict[str, list[str]] = {}
    for name, body in re.findall(r"^\.text\.(\S+):\n(.*?)(?=^\.text\.|^\s*\.section|\Z)", listing, re.S | re.M):
        code[name] = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?(.*?)\s*;", body)
    return code, report


def loads_under_way(code: list[str]) -> int:
    """The most loads from global memory of which no instruction has yet used the value."""
    under_way, most = set(), 0
    for instruction in code:
        to, *rest = re.findall(r"\bR\d+\b", instruction) or [""]
        if instruction.startswith("LDG."):
            under_way -= set(rest)
            under_way.add(to)
            most = max(most, len(under_way))
        else:
            under_way -= {to, *rest}
    return most


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("operator", CUDA_OPERATORS)
def test_sass(operator, arch, tmp_path):
    """No warnings, nothing in local memory, the occupancy that is planned; and what each kernel is made of."""
    code, report = compiled(operator, arch, tmp_path)
    figures = r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?"
    kernels = re.findall(figures, report, re.S)
    assert {symbol for symbol, *_ in kernels} == set(code) and len(code) == report.count("Compiling entry function") > 0
    for symbol, spills, registers, static in kernels:
        name, instructions = plain(symbol), code[symbol]
        count = Counter(re.match(r"\w+", instruction)[0] for instruction in instructions)
        tile = re.search(r"Tile<(\d+), (\d+), (\d+), (\d+), (\d+)>", name)
        pixels, channels, warp_pixels, warp_channels, planned = map(int, tile.groups()) if tile else [0] * 5
        shared = 4 * (pixels + channels) * 64 if tile else int(static or 0)
        threads = THREADS[operator]
        room = 65536 // (threads * -(-int(registers) // 8) * 8), SHARED[arch] // (shared + 1024), 2048 // threads
        blocks = min(room)
        print(f"{arch} {name}: {registers} registers, {shared} bytes shared, {blocks} blocks of {threads} threads")
        assert spills == "0" and not count["LDL"] and not count["STL"], name
        assert blocks >= (planned or BLOCKS.get(name.split("<")[0], 2)), name
        if tile:  # of a stage, 32 deep: products, rows of both matrices to registers, and from global memory
            assert count["HMMA"] == warp_pixels // 16 * (warp_channels // 8) * 2
            assert count["LDSM"] == (warp_pixels + warp_channels) // 16 * 3  # and the first half of the first stage
            assert count["LDGSTS"] % ((pixels + channels) // 32) == 0 and count["LDGSTS"] >= (pixels + channels) // 16
            assert count["LDGDEPBAR"] >= 2 and count["DEPBAR"] >= 3
        if name.startswith("finish_") and operator == "bn_add_relu":  # 2 before the loops were unrolled
            assert loads_under_way(instructions) >= (20 if "moments" in name else 6), name
        if name.startswith("input_gradient"):  # one division, whose slow path is a call; 16 before
            assert count["CALL"] <= 2, name
            first = next(i for i, one in enumerate(instructions) if one.startswith("STG"))
            assert first < 480, name  # of about 340; 660 before figures came by 16 bytes
