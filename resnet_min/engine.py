"""One epoch of training, one pass of evaluation, and the hardware both run on."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .cuda_graph import Recorder
from .errors import UserError


@dataclass(frozen=True)
class Task:
    """What a net is trained for and judged by."""

    figure: str  # the mean figure of an image, as in the `val_accuracy` of metrics.jsonl
    title: str  # its name, for people
    unit: str
    best: Callable[..., Any]  # of several: max or min
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # see train_one_epoch
    judge: Callable[[nn.Module, Iterable[tuple[Tensor, Tensor]], Hardware], dict[str, float]]  # on held-out batches


def classification(label_smoothing: float = 0.0) -> Task:
    """Classes: trained by cross-entropy, judged by accuracy in percent."""

    def judge(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> dict[str, float]:
        loss, accuracy, _ = evaluate(model, batches, where)
        return {"loss": loss, "accuracy": accuracy}

    return Task("accuracy", "accuracy", "%", max, partial(cross_entropy, label_smoothing=label_smoothing), judge)


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
            where = f"{self.device} ({torch.get_num_threads()} threads)"
        return f"{where}, {'bf16 autocast' if self.dtype == torch.bfloat16 else 'float32'}"


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

    Where there is none (a max-pool's gradient on CUDA) torch warns. cuBLAS wants CUBLAS_WORKSPACE_CONFIG=:4096:8 in the
    environment for it, before its first call.
    """
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


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """What classification trains on: (cross-entropy, 100 for each image that is right and 0 for others [B])."""
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return loss, 100 * (logits.argmax(1) == labels)


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    where: Hardware,
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = cross_entropy,
    after_step: Callable[[], object] = lambda: None,
    recorder: Recorder | None = None,
) -> tuple[Tensor, float]:
    """Train on each of `batches` (images [B,3,H,W], targets) once, step i at learning rate `rates[i]`.

    objective: (outputs in float32, targets) -> (loss, a figure of each image [B]).
    recorder: takes the steps as a CUDA graph; one for all epochs.

    Returns (loss of every step [steps] on the CPU, mean figure of the outputs that the steps were taken from).
    Raises Diverged, naming the step of this epoch and its rate, at a loss that is NaN or infinite: on a CPU before that
    step is taken, on a GPU within 50 steps (it is asked rarely, so as not to wait for it).
    """

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with where.autocast():
            outputs = model(images)
        loss, figure = objective(outputs.float(), targets)
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


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware
) -> tuple[float, float, Tensor]:
    """One pass over `batches` (images [B,3,H,W], labels [B]) in eval mode.

    Returns (mean cross-entropy, accuracy in percent, logits [N, classes] float32 on the CPU).
    """
    model.eval()
    logits, labels = [], []
    for images, target in batches:
        with where.autocast():
            logits.append(model(images).float())
        labels.append(target)
    logits, labels = torch.cat(logits), torch.cat(labels)
    loss = F.cross_entropy(logits, labels).item()
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    return loss, accuracy, logits.cpu()
