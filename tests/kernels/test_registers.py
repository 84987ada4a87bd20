"""What the compiler makes of the CPU's kernels; tests/ptx/test_sass.py has what it makes of CUDA's."""

import re
import shutil
import subprocess

import pytest

from resnet_min.kernels import backend as kernels

from .conftest import needs_extension


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
