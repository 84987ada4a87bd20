"""The CPU kernels under the compiler's sanitizers: no access out of bounds, nothing undefined, on any shape."""

import os
import shutil
import subprocess
import sys

import pytest

from resnet_min.kernels import OPERATORS

from .conftest import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") or not sys.platform.startswith("linux"), reason="no g++ on Linux")
def test_address_and_undefined_behaviour(tmp_path):
    """The operators' tests, the long ones on drawn shapes too, in a copy of the project whose kernels are instrumented.

    Leaks are not looked for: Python and torch leave many. What compiles needs a compiler that is not.
    """
    for name in ("csrc", "resnet_min", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "*.cu", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined\n')
    compiler.chmod(0o755)

    def run(*command, **environment):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "RESNET_MIN_REQUIRE_EXT": "1", **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    run("setup.py", "build_ext", "--inplace", CXX=str(compiler), RESNET_MIN_CUDA="0")
    libraries = (
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    )
    # The runtimes come first in the process, and keep memory that was freed.
    chosen = ["-m", "slow or not slow", "-k", "not compile and not memory_is_flat"]
    names = [operator.name for operator in OPERATORS] + ["sync_bn", "hostile_calls"]
    tests = [f"tests/kernels/test_{name}.py" for name in names]
    options = "detect_leaks=0:allocator_may_return_null=1"  # what asks for too much memory gets torch's error
    environment = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": options}
    assert " passed" in run("-m", "pytest", "-q", "-x", *chosen, *tests, **environment)
