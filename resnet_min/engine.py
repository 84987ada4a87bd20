"""One epoch of training, and the hardware it runs on."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import ops
from .config import Config
from .cuda_graph import Recorder
from .errors import UserError


class Diverged(UserError):
    """The loss is not a number any more."""


@dataclass(frozen=True)
class Hardware:
    """Where a model runs and in what type its convolutions do: `dtype` is float32, or bfloat16 under autocast."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def __str__(self) -> str:
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            threads = torch.get_num_threads()
            where = f"{self.device} ({threads} thread{'s' * (threads > 1)})"
        return f"{where}, {'bf16 autocast' if self.dtype == torch.bfloat16 else 'float32'}"


def set_up(config: Config) -> Hardware:
    """Choose device, kernels, algorithms and the way memory is kept, for the whole process, as the options say.

    Raises UserError for a device or kernels that are not there.
    """
    ops.set_backend(config.kernels)
    where = hardware(config.device, config.amp)
    choose_algorithms(config.deterministic)
    if where.device.type == "cpu":
        keep_freed_memory()
    return where


def hardware(device: str = "auto", amp: str = "auto") -> Hardware:
    """Resolve `--device` and `--amp`. Raises UserError for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from None
    bf16 = amp == "bf16" or (amp == "auto" and _has_bf16(where))
    return Hardware(where, torch.bfloat16 if bf16 else torch.float32)


def cpu() -> Hardware:
    """The CPU, in float32."""
    return Hardware(torch.device("cpu"), torch.float32)


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 convolutions are native there: elsewhere they run, but slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # torch's own names for it are private: without them, float32
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


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


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD (Nesterov's or not), Adam or AdamW over the parameters that train."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.wd, nesterov=config.nesterov, fused=True
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, config.lr, weight_decay=config.wd, fused=True, capturable=config.cuda_graph)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; where it is a tensor, in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    where: Hardware,
    loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    after_step: Callable[[], object] = lambda: None,
    recorder: Recorder | None = None,
) -> tuple[Tensor, float]:
    """Train on each of `batches` (images [B,3,H,W], targets) once, step i at learning rate `rates[i]`.

    loss_of: (outputs in float32, targets) -> (loss, a figure of each image [B]).
    recorder: takes the steps as a CUDA graph; one for all epochs.

    Returns (loss of every step [steps] on the CPU, mean figure of the outputs that the steps were taken from).
    Raises Diverged, naming the step of this epoch and its rate, at a loss that is NaN or infinite: on a CPU before that
    step is taken, on a GPU within 50 steps (it is asked rarely, so as not to wait for it).
    """

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with where.autocast():
            outputs = model(images)
        loss, figure = loss_of(outputs.float(), targets)
        if where.device.type != "cpu" or math.isfinite(loss.item()):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach(), figure.sum()

    model.train()
    losses = torch.zeros(len(rates), device=where.device)
    figures, seen, checked = torch.zeros((), dtype=torch.float64, device=where.device), 0, 0
    for number, ((images, targets), rate) in enumerate(zip(batches, rates, strict=True), start=1):
        set_rate(optimizer, rate)
        if recorder is None:
            loss, figure = step(images, targets)
        else:
            loss, figure = recorder.take(step, images, targets, optimizer)
        losses[number - 1] = loss
        figures += figure
        seen += len(images)
        if where.device.type == "cpu" or number % 50 == 0 or number == len(rates):
            for at, value in enumerate(losses[checked:number].tolist(), start=checked):
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {at + 1} of {len(rates)}, learning rate {rates[at]:g}")
            checked = number
        after_step()
    return losses.cpu(), figures.item() / seen
