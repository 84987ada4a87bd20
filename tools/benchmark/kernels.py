"""Each layer of a network by itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resnet_min import fuse, ops, reference
from resnet_min.inference import cudnn
from resnet_min.inference import fused as inference
from resnet_min.kernels import fused_net as plans
from resnet_min.kernels.conv3x3 import strides
from resnet_min.model import resnet

from . import timing
from .timing import Call, Case, Row, check_close, dtypes, name_of

Layer = dict[str, Any]
Contenders = dict[str, Callable[[], Call]]
Convolution = Callable[[Tensor, Tensor | None], Tensor]  # of x and a residual

CHAIN = 8  # convolutions in a call of fused_net, so that copying the images in is little of it
ROUNDS = 10**6  # of multiply-adds in registers: a few milliseconds


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Every operator of `OPERATORS` on every layer of a network, once for each shape it has.

    `ops.fused_net`, on a CPU, and `ops.conv_bn_relu` as in inference, batch norm folded where the contender can; the
    others as in training, forward and backward. On random values: no layer's time depends on them.
    """
    for batch in args.batch or ([64] if args.device.type == "cpu" else [128, 1024]):
        if args.device.type == "cpu":
            yield from fused_net(layers(args.arch), batch)
        for dtype in dtypes(args.device):
            if args.device.type == "cpu":
                yield from conv3x3(layers(args.arch), batch, dtype)
            for name, contenders_of in OPERATORS.items():
                for layer, contenders in contenders_of(layers(args.arch), batch, dtype, args.device):
                    about = {"batch": batch, "dtype": name_of(dtype), "kernel": name, "layer": layer}
                    yield Case(about, batch, contenders, check)


def run(case: Case, device: torch.device) -> Iterator[Row]:
    """A row for each contender, as `timing.run` has them, and on a CPU

    of_fma   of `ops.fused_net`'s convolutions and `ops.conv3x3`'s: their multiply-adds a second as a part of those that
             the processor does in registers, in float32, with the loops' instructions and on all threads; in turn,
             window against window. The multiply-adds are those of the definition, padding's among them. F(2×2, 3×3)
             does 2.25 times fewer, and AMX in bfloat16 up to 16 times as many at a time, so 1 is no limit for "ours"
             where those are faster; it is one for "ours, direct".

    Those rows have no peak_mib: `fused_net`'s maps are not torch's allocator's.
    """
    if not isinstance(case, Convolutions):
        for row in timing.run(case, device):
            yield row | ({"of_fma": None} if device.type == "cpu" else {})
        return
    calls = {name: make() for name, make in case.contenders.items()}
    case.check({name: call() for name, call in calls.items()})
    numbers = registers()
    rates = timing.side_by_side(calls | {"registers": registers}, device)
    most = [rate * numbers for rate in rates.pop("registers")]
    for row in timing.rows(case, rates):
        done = [rate * case.units * case.multiply_adds for rate in rates[row["name"]]]
        yield row | {"peak_mib": None, "of_fma": max(done) / max(most)}  # each at its best, undisturbed


def registers() -> int:
    """Multiply-adds of what is in registers, on all of torch's threads; returns how many."""
    return torch.ops.resnet_min._multiply_adds(ROUNDS)


def layers(arch: str) -> list[Layer]:
    """The distinct convolutions of a network on 32x32 images, in the order of use, each with what follows it."""
    found: dict[str, Layer] = {}

    def note(module: inference.FusedConv, inputs: tuple[Any, ...], out: Tensor) -> None:
        (_, channels, side, _), (filters, _, kernel, _) = inputs[0].shape, module.weight.shape
        residual = len(inputs) > 1 and inputs[1] is not None
        after = "+add" * residual + "+relu" * module.relu
        name = f"{channels}-{filters} {kernel}x{kernel}/{module.stride} on {side}x{side} {after}".strip()
        found[name] = {
            "name": name, "norm": f"{filters} on {out.shape[2]}x{out.shape[3]} {after}".strip(), "residual": residual,
            "input": tuple(inputs[0].shape[1:]), "output": tuple(out.shape[1:]), "conv": module,
        }  # fmt: skip

    net = fuse(resnet(arch).eval())
    for module in net.modules():
        if isinstance(module, inference.FusedConv):
            module.register_forward_hook(note)
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    return list(found.values())


@dataclass(frozen=True)
class Convolutions(Case):
    """With the multiply-adds of a convolution of one image, as its definition has them."""

    multiply_adds: int


def fused_net(layers: list[Layer], batch: int) -> Iterator[Convolutions]:
    """Every convolution with what follows it, in float32, `CHAIN` of its shape in one call of `ops.fused_net`."""
    for layer in layers:
        x = torch.randn(batch, *layer["input"]).contiguous(memory_format=torch.channels_last)
        if ops.supported("fused_net", x):
            about = {"batch": batch, "dtype": name_of(x.dtype), "kernel": "fused_net", "layer": layer["name"]}
            _, height, width = layer["output"]
            multiply_adds = height * width * layer["conv"].weight.numel()
            yield Convolutions(about, CHAIN * batch, chain_contenders(x, layer), check, multiply_adds)


def chain_contenders(x: Tensor, layer: Layer) -> Contenders:
    """`CHAIN` convolutions, each with weights of its own; returns the last one's result.

    Each works on the result before it, or on x where that result has another shape than x. What is added, where the
    layer adds something, is the result before it too; so in the latter case the first one adds nothing.
    """
    like, chained = layer["conv"], layer["input"] == layer["output"]
    weights = [torch.randn_like(like.weight) * like.weight[0].numel() ** -0.5 for _ in range(CHAIN)]
    biases = [torch.randn_like(like.bias) for _ in range(CHAIN)]
    adds = [layer["residual"] and (chained or number > 0) for number in range(CHAIN)]

    def ours(form: int) -> Call:
        how = {"stride": like.stride, "padding": like.padding, "relu": like.relu, "form": form}
        plan: list[int] = []
        for number in range(CHAIN):
            source, residual = number if chained else 0, number if adds[number] else -1
            plan += map(int, plans.Layer(plans.CONVOLUTION, source, residual, **how))
        own = [weight.clone() for weight in weights]  # the operator keeps one plan's packed weights for a tensor
        return lambda: ops.fused_net(x, own, biases, plan)

    def one_by_one(make: Callable[[Tensor, Tensor], Convolution]) -> Call:
        convolutions = list(map(make, weights, biases))

        def call() -> Tensor:
            last = x
            for number, convolution in enumerate(convolutions):
                last = convolution(last if chained else x, last if adds[number] else None)
            return last

        return call

    def eager(weight: Tensor, bias: Tensor) -> Convolution:
        def convolution(x: Tensor, residual: Tensor | None) -> Tensor:
            out = nn.functional.conv2d(x, weight, bias, like.stride, like.padding)
            out = out if residual is None else out.add_(residual)
            return out.relu_() if like.relu else out

        return convolution

    def fused(weight: Tensor, bias: Tensor) -> Convolution:
        return inference.FusedConv(weight, bias, like.stride, like.padding, like.relu)

    contenders = {"ours": partial(ours, plans.FASTER)}
    if like.weight.shape[2:] == (3, 3) and like.stride == 1:
        contenders["ours, direct"] = partial(ours, plans.DIRECT)
    contenders |= {"eager, channels_last": partial(one_by_one, eager), "conv_bn_relu": partial(one_by_one, fused)}
    return {name: partial(without_grad, make) for name, make in contenders.items()}


def conv_bn_relu(
    layers: list[Layer], batch: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Contenders]]:
    """Every convolution with what follows it."""
    for layer in layers:
        x = torch.randn(batch, *layer["input"], device=device, dtype=dtype)
        yield layer["name"], conv_contenders(x.contiguous(memory_format=torch.channels_last), layer)


def conv_contenders(x: Tensor, layer: Layer) -> Contenders:
    """relu(bn(conv(x)) + residual) in eval mode; batch norm is folded for all but "eager"."""
    folded, out = layer["conv"], layer["output"]
    stride, padding, relu = folded.stride, folded.padding, folded.relu
    weight = torch.randn_like(folded.weight, device=x.device) * folded.weight[0].numel() ** -0.5
    weight, bias = weight.to(x.dtype), torch.randn(out[0], device=x.device).to(x.dtype)
    residual = torch.randn(len(x), *out, device=x.device).to(x).contiguous(memory_format=torch.channels_last)
    residual = residual if layer["residual"] else None
    rest = stride, padding, relu

    def ours() -> Call:
        module = inference.FusedConv(weight, bias, *rest)
        return lambda: module(x, residual)

    def eager(memory_format: torch.memory_format) -> Call:
        conv = nn.Conv2d(x.shape[1], out[0], folded.weight.shape[2], stride, padding, bias=False)
        module = nn.Sequential(conv, nn.BatchNorm2d(out[0])).to(x).to(memory_format=memory_format).eval()
        conv.weight.copy_(weight)
        module[1].bias.copy_(bias)
        module[1].running_var.fill_(1 - module[1].eps)
        moved, other = (t if t is None else t.contiguous(memory_format=memory_format) for t in (x, residual))

        def call() -> Tensor:
            y = module(moved)
            y = y if other is None else y + other
            return y.relu_() if relu else y

        return call

    contenders = {
        "ours": ours,
        "eager, NCHW": partial(eager, torch.contiguous_format),
        "eager, channels_last": partial(eager, torch.channels_last),
        "folded, library": lambda: lambda: reference.conv_bn_relu(x, weight, bias, residual, *rest),
    }
    if cudnn.fuses(x, relu):
        contenders["cuDNN, fused"] = lambda: lambda: cudnn.conv_bn_relu(x, weight, bias, residual, *rest)
        contenders["our kernel"] = lambda: lambda: ops.conv_bn_relu(x, weight, bias, residual, *rest)
    return {name: partial(without_grad, make) for name, make in contenders.items()}


def without_grad(make: Callable[[], Call]) -> Call:
    with torch.no_grad():
        return torch.no_grad()(make())


def conv3x3(layers: list[Layer], batch: int, dtype: torch.dtype) -> Iterator[Convolutions]:
    """The 3×3 convolutions, whatever follows them, forward and backward, where the CPU has a kernel for them."""
    for name, layer in {layer["name"].split(" +")[0]: layer for layer in layers}.items():
        x, conv = torch.empty(batch, *layer["input"], dtype=dtype), layer["conv"]
        taken = conv.stride in strides(dtype) and ops.supported("conv3x3", x, conv.weight.to(dtype))
        if " 3x3/" in name and taken:
            about = {"batch": batch, "dtype": name_of(dtype), "kernel": "conv3x3", "layer": name}
            _, height, width = layer["output"]
            multiply_adds = 3 * height * width * conv.weight.numel()  # of the output and of both gradients
            yield Convolutions(about, batch, trained_conv_contenders(batch, dtype, layer), check, multiply_adds)


def trained_conv_contenders(batch: int, dtype: torch.dtype, layer: Layer) -> Contenders:
    """A 3×3 convolution, forward and backward, on the CPU; returns the gradients."""
    x, grad = (torch.randn(batch, *layer[end], dtype=dtype) for end in ("input", "output"))
    weight = torch.randn_like(layer["conv"].weight, dtype=dtype) * layer["conv"].weight[0].numel() ** -0.5
    stride = layer["conv"].stride

    def both_ways(forward: Callable[..., Tensor], memory_format: torch.memory_format) -> Call:
        a, w, g = (t.contiguous(memory_format=memory_format) for t in (x, weight, grad))
        wanted = a.requires_grad_(), w.requires_grad_()
        return lambda: torch.autograd.grad(forward(*wanted), wanted, g)

    ours, eager = partial(ops.conv3x3, stride=stride), partial(nn.functional.conv2d, stride=stride, padding=1)
    contenders = {
        "ours": partial(both_ways, ours, torch.channels_last),
        "eager, NCHW": partial(both_ways, eager, torch.contiguous_format),
        "eager, channels_last": partial(both_ways, eager, torch.channels_last),
    }
    if dtype == torch.float32:
        contenders["ours, winograd 4x4"] = partial(both_ways, partial(ours, winograd="4x4"), torch.channels_last)
    return contenders


def bn_add_relu(
    layers: list[Layer], batch: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Contenders]]:
    """The batch norms with what follows them."""
    for name, layer in {layer["norm"]: layer for layer in layers}.items():
        yield name, norm_contenders(batch, dtype, layer, device)


def norm_contenders(batch: int, dtype: torch.dtype, layer: Layer, device: torch.device) -> Contenders:
    """relu(batch_norm(x) + residual) with the batch's statistics, forward and backward; returns the gradients."""
    channels_last = torch.channels_last
    shape, relu = (batch, *layer["output"]), layer["conv"].relu
    x, other, grad = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=channels_last) for _ in range(3)
    )
    gamma, beta = (torch.rand(shape[1], device=device).requires_grad_() for _ in range(2))
    x.requires_grad_()
    residual = other.requires_grad_() if layer["residual"] else None
    wanted = [x, gamma, beta] + [other] * layer["residual"]

    def eager(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None) -> Tensor:
        out = nn.functional.batch_norm(x, None, None, gamma, beta, training=True)
        out = out if residual is None else out + residual
        return out.relu() if relu else out

    def ours(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None) -> Tensor:
        return ops.bn_add_relu(x, gamma, beta, residual, 1e-5, relu)[0]

    def both_ways(forward: Callable[..., Tensor]) -> Call:
        return lambda: torch.autograd.grad(forward(x, gamma, beta, residual), wanted, grad)

    return {"ours": partial(both_ways, ours), "eager, channels_last": partial(both_ways, eager)}


def check(results: dict[str, Tensor | tuple[Tensor, ...]]) -> None:
    """All contenders must agree, as well as the dtype of their first result lets them: they computed in that."""
    for name, result in results.items():
        pairs = list(zip(*(t if isinstance(t, tuple) else (t,) for t in (result, results["ours"])), strict=True))
        for got, ours in pairs:
            check_close(name, got, ours, pairs[0][0].dtype)


OPERATORS = {"conv_bn_relu": conv_bn_relu, "bn_add_relu": bn_add_relu}
