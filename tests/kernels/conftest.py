"""What the operators' tests share: both backends, and how close is close."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_min.kernels import backend as kernels

ROOT = Path(__file__).parent.parent.parent

if kernels._C is None and os.environ.get("RESNET_MIN_REQUIRE_EXT") == "1":
    pytest.exit(f"RESNET_MIN_REQUIRE_EXT=1, but there are no compiled kernels: {kernels._load_error}", 1)
needs_extension = pytest.mark.skipif(kernels._C is None, reason=f"no compiled kernels: {kernels._load_error}")
# What an operator called by itself says of arguments that its reference has the words for.
REFUSAL = (
    "{0}: the kernel does not take these arguments; resnet_min.reference.{0} does, or says what is wrong with them"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=["reference", pytest.param("extension", marks=needs_extension)])
def backend(request, device):
    """Both backends, on every device they have kernels for."""
    if request.param == "extension":
        skip_without_kernels(device)
    kernels.set_backend(request.param)
    yield request.param
    kernels.set_backend("auto")


def skip_without_kernels(device):
    if device.type not in kernels._kernel_devices:
        pytest.skip(f"no compiled kernels for {device.type}: {kernels._why_not(device.type)}")


def relative_error(got: Tensor, exact: Tensor) -> float:
    return ((got.cpu().double() - exact).norm() / exact.norm()).item()


def assert_as_close_as_eager(
    ours: Tensor, theirs: Tensor, exact: Tensor, floor: float = 0.0, times: float = 1.5
) -> None:
    """The rule: at most 1.5 times eager PyTorch's error in the same dtype, or the dtype's eps, or `floor`."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    error = relative_error(ours, exact)
    limit = max(times * relative_error(theirs, exact), torch.finfo(ours.dtype).eps, floor)
    assert error <= limit, f"{error:.2e} is more than {limit:.2e}"


def outcomes_by_threads(call, counts=(1, 2, 3)):
    """What `call()` returns with each number of torch's threads."""
    threads, outcomes = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            outcomes.append(call())
    finally:
        torch.set_num_threads(threads)
    return outcomes


def run_under(capability: str, code: str) -> None:
    """Run Python code where torch's own switch selects the loops that lesser processors run.

    Not in a run that selects them itself, as CI has one for each.
    """
    if "ATEN_CPU_CAPABILITY" in os.environ:
        pytest.skip("ATEN_CPU_CAPABILITY is set")
    if torch.backends.cpu.get_cpu_capability() == capability.upper():
        pytest.skip("these are this processor's own loops")
    check = f"import torch; assert torch.backends.cpu.get_cpu_capability() in ('DEFAULT', {capability.upper()!r})\n"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", check + code], cwd=ROOT, env=environment, check=True)
