"""The hardware a process runs on, and how it is used."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass, replace

import torch

from ..config import Config
from ..errors import UserError
from ..kernels.backend import has_bf16, set_backend
from ..kernels.conv3x3 import set_winograd
from .distributed import World


@dataclass(frozen=True)
class Hardware:
    """Where a model runs and in what type its convolutions do: `dtype` is float32, or bfloat16 under autocast.

    `world`: the processes that run it together, each on a device of its own.
    """

    device: torch.device
    dtype: torch.dtype
    world: World = World()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def alone(self) -> Hardware:
        """This process' device, for what it does by itself."""
        return replace(self, world=World())

    def __str__(self) -> str:
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            threads = torch.get_num_threads()
            where = f"{self.device} ({threads} thread{'s' * (threads > 1)})"
        return f"{where}, {'bf16 autocast' if self.dtype == torch.bfloat16 else 'float32'}{self.world}"


def set_up(config: Config, world: World) -> Hardware:
    """Choose device, kernels, algorithms and the way memory is kept, for the whole process, as the options say.

    Raises UserError for a device or kernels that are not there.
    """
    set_backend(config.kernels)
    set_winograd(config.winograd)
    where = hardware(config.device, config.amp, world)
    choose_algorithms(config.deterministic)
    if where.device.type == "cpu":
        keep_freed_memory()
    return where


def hardware(device: str = "auto", amp: str = "auto", world: World = World()) -> Hardware:  # noqa: B008 a constant
    """Resolve `--device` and `--amp`; every process of a machine has a GPU of its own.

    Raises UserError for a device that is not there.
    """
    if world.size > 1 and device == "auto" and torch.cuda.is_available():
        device = "cuda"
    if world.size > 1 and device.startswith("cuda"):
        if device != "cuda":
            raise UserError(f"--device {device} is one GPU; of several processes each takes its own: --device cuda")
        device = f"cuda:{world.local_rank}"
    where = find_device(device)
    bf16 = amp == "bf16" or (amp == "auto" and has_bf16(where))
    return Hardware(where, torch.bfloat16 if bf16 else torch.float32, world)


def find_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is a GPU where there is one. Raises UserError where there is none of that name.

    A GPU becomes CUDA's current device: what has no tensor to go by (a stream, an event, a graph) belongs to that.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"--device is auto, cpu, cuda or cuda:N; got {name!r:.80}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here: {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def cpu() -> Hardware:
    """The CPU, in float32."""
    return Hardware(torch.device("cpu"), torch.float32)


def choose_algorithms(deterministic: bool) -> None:
    """Have cuDNN find its fastest algorithm for every shape; or torch use those that give the same bits again.

    Where there is none (a max-pool's gradient on CUDA) torch warns.
    """
    if deterministic:  # cuBLAS reads it when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep what this process frees for its next allocation; `keep=False` has it as it is by default.

    By default glibc gives large blocks back to the system, so that every training step on a CPU has its activations'
    pages handed out and zeroed anew. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # malloc.h's names for them
        mallopt(mmap_max, 0 if keep else 65536)
        mallopt(trim_threshold, -1 if keep else 64 << 20)  # the default ones rise to these as large blocks are freed
        mallopt(mmap_threshold, 32 << 20)
        mallopt(top_pad, 64 << 20 if keep else 128 << 10)
