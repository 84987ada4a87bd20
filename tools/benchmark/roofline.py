"""What memory and arithmetic allow: bytes and FLOPs of every CUDA kernel and of whole steps, before a GPU is asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_min import fuse, ops
from resnet_min.inference.cudnn import milliseconds
from resnet_min.model import resnet

from .timing import MEAN, STD, Call, Case, Row

# Bytes and FLOPs a second: of memory as measured on each, of the tensor cores in bfloat16 as measured on either.
MEMORY = {"H100": 3.0e12, "H200": 4.3e12}
ARITHMETIC = 790e12
BYTES = 2  # of a value, in bfloat16
OPTIMIZER = 20  # bytes a parameter: weight, gradient and momentum are read, weight and momentum written, in float32
CAST = 6  # bytes a parameter, that autocast reads and writes


@dataclass(frozen=True)
class Work(Case):
    """A kernel's, or a step's: what it moves and computes, each byte once, as if nothing stayed in a cache."""

    bytes: float = field(kw_only=True)
    flops: float = field(kw_only=True)


@dataclass(frozen=True)
class Layer:
    """A convolution and the batch norm after it, of one image: elements of input, output and weight."""

    channels: int
    filters: int
    kernel: int
    stride: int
    side: int
    residual: bool
    relu: bool

    @property
    def input(self) -> int:
        return self.channels * self.side**2

    @property
    def output(self) -> int:
        return self.filters * (self.side // self.stride) ** 2

    @property
    def weight(self) -> int:
        return self.filters * self.channels * self.kernel**2

    @property
    def flops(self) -> float:
        return 2.0 * self.weight * (self.side // self.stride) ** 2

    def __str__(self) -> str:
        after = "+add" * self.residual + "+relu" * self.relu
        name = f"{self.channels}-{self.filters} {self.kernel}x{self.kernel}/{self.stride} on {self.side}x{self.side}"
        return f"{name} {after}".strip()

    def moved(self, kernel: str) -> int:
        """Elements that a kernel reads and writes of an image's maps."""
        x, y, added = self.input, self.output, self.output * self.residual
        masked = self.relu and self.residual  # ReLU's mask comes from the output, and the masked gradient is kept
        return {
            "conv_bn_relu": x + y + added,
            "bn forward": y + (2 * y + added),  # two passes, one that only reads
            "bn backward": (4 if masked else 2) * y + 3 * y,
            "conv forward": x + y,
            "conv backward": (y + x) * 2,  # of the input, of the weight
        }[kernel]


def layers(arch: str) -> list[Layer]:
    """Every convolution of a network on 32x32 images, in the order of use, as often as it is used."""
    found: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        filters, channels, kernel, _ = module.weight.shape
        residual = len(inputs) > 1 and inputs[1] is not None
        found.append(Layer(channels, filters, kernel, module.stride, inputs[0].shape[2], residual, module.relu))

    fused = fuse(resnet(arch).eval())
    for module in fused.modules():
        if hasattr(module, "relu") and hasattr(module, "weight"):
            module.register_forward_hook(note)
    with torch.inference_mode():
        fused(torch.zeros(1, 3, 32, 32))
    return found


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Each kernel on each layer it has, then whole steps, in bfloat16, at 128, 512 and 1024 images."""
    every, device = layers(args.arch), args.device
    parameters = sum(p.numel() for p in resnet(args.arch).parameters())
    kinds = ("bn forward", "bn backward", "conv forward", "conv backward")
    trained = sum(layer.moved(kind) for layer in every for kind in kinds)
    inferred = sum(layer.moved("conv_bn_relu") for layer in every)
    flops = sum(layer.flops for layer in every)
    for batch in args.batch or [128, 512, 1024]:
        work = partial(work_of, batch)
        yield work("crop_flip", "32x32", 1.5 * 3 * 32 * 32, 0, partial(crop_flip, batch, device))  # a byte in, two out
        for layer in dict.fromkeys(every):
            moved = layer.moved("conv_bn_relu") + layer.weight / batch
            yield work("conv_bn_relu", layer, moved, layer.flops, partial(conv_bn_relu, layer, batch, device))
            for way in ("forward", "backward"):
                moved = layer.moved(f"bn {way}")
                yield work(f"bn {way}", layer, moved, 0, partial(bn_add_relu, layer, batch, device, way))
        moved = trained + (OPTIMIZER + CAST) / BYTES * parameters / batch
        yield work("training step", args.arch, moved, 3 * flops, partial(training_step, args.arch, batch, device))
        moved = inferred + parameters / batch
        yield work("inference", args.arch, moved, flops, partial(inference_step, args.arch, batch, device))


def work_of(batch: int, kernel: str, layer: object, elements: float, flops: float, make: Callable[[], Call]) -> Work:
    """`elements` and `flops` are those of an image."""
    about = {"batch": batch, "kernel": kernel, "layer": str(layer)}
    return Work(about, batch, {"ours": make}, lambda _: None, bytes=BYTES * elements * batch, flops=flops * batch)


def run(case: Work, device: torch.device) -> Iterator[Row]:
    """The time that either limit allows, the longer one, on each GPU; and what it takes, where there is one."""
    allowed = {f"{gpu}_ms": 1e3 * max(case.bytes / rate, case.flops / ARITHMETIC) for gpu, rate in MEMORY.items()}
    measured = None
    if device.type == "cuda":
        with torch.cuda.device(device):
            call = case.contenders["ours"]()
            measured = milliseconds(lambda _: call(), (torch.empty(0, device=device),))
    yield {**case.about, "mib": case.bytes / 2**20, "gflop": case.flops / 1e9, **allowed, "measured_ms": measured}


def print_row(row: Row, first: bool) -> None:
    """A line, with a head above the first one."""
    numbers = ("mib", "gflop", *(f"{gpu}_ms" for gpu in MEMORY), "measured_ms")
    if first:
        heads = "".join(f"{name:>13}" for name in numbers)
        print(f"{'batch':>6}  {'kernel':<14}  {'layer':<36}{heads}{'of H200':>9}")
    figures = "".join(f"{'-' if row[name] is None else format(row[name], ',.4f'):>13}" for name in numbers)
    share = "-" if row["measured_ms"] is None else f"{row['H200_ms'] / row['measured_ms']:.0%}"
    print(f"{row['batch']:>6}  {row['kernel']:<14}  {row['layer']:<36}{figures}{share:>9}", flush=True)


# ---- what is timed where there is a GPU ----


def maps(batch: int, channels: int, side: int, device: torch.device) -> Tensor:
    values = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
    return values.contiguous(memory_format=torch.channels_last)


def crop_flip(batch: int, device: torch.device) -> Call:
    images = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8, device=device)
    index, flip = torch.arange(batch, device=device), torch.zeros(batch, dtype=torch.bool, device=device)
    offset, table = torch.full((batch, 2), 4, device=device), ops.make_table(MEAN, STD, torch.bfloat16).to(device)
    return partial(ops.crop_flip, images, index, offset, flip, table, 4)


def conv_bn_relu(layer: Layer, batch: int, device: torch.device) -> Call:
    x = maps(batch, layer.channels, layer.side, device)
    weight = maps(layer.filters, layer.channels, layer.kernel, device)
    bias, added = torch.zeros(layer.filters, device=device, dtype=torch.bfloat16), None
    if layer.residual:
        added = maps(batch, layer.filters, layer.side // layer.stride, device)
    return partial(ops.conv_bn_relu, x, weight, bias, added, layer.stride, layer.kernel // 2, layer.relu)


def bn_add_relu(layer: Layer, batch: int, device: torch.device, way: str) -> Call:
    x = maps(batch, layer.filters, layer.side // layer.stride, device)
    gamma, beta = torch.ones(layer.filters, device=device), torch.zeros(layer.filters, device=device)
    added = torch.randn_like(x) if layer.residual else None
    forward = partial(ops.bn_add_relu, x, gamma, beta, added, 1e-5, layer.relu)
    if way == "forward":
        return forward
    inputs = [t.requires_grad_() for t in (x, gamma, beta, added) if t is not None]
    out = forward()[0]
    return partial(torch.autograd.grad, out, inputs, torch.randn_like(x), retain_graph=True)


def training_step(arch: str, batch: int, device: torch.device) -> Call:
    net = resnet(arch).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=1e-4, fused=True)
    images, labels = maps(batch, 3, 32, device).float(), torch.randint(10, (batch,), device=device)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference_step(arch: str, batch: int, device: torch.device) -> Call:
    net, images = fuse(resnet(arch).eval().to(device), torch.bfloat16), maps(batch, 3, 32, device)
    return partial(torch.inference_mode()(net), images)
