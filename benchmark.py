"""Times ours beside what a user would pick instead: same data, one process, in turn, each checked before it is timed.

    python benchmark.py --table augment [--device cpu] [--json augment.json]
    python benchmark.py --table kernels --arch resnet18
    python benchmark.py --table training --arch resnet20
    python benchmark.py --table inference --arch resnet18 --batch 256

A table is a function that yields cases (see resnet_min/timing.py); `TABLES` names them. Rows are printed as they come,
and the JSON file, written again after each case, also holds the command, hardware, versions and threads. A table ends
after nine minutes at most: the same command with the same --json then goes on with the cases that are left.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from resnet_min import data, engine, fuse, ops, reference, timing
from resnet_min.augment import Batches
from resnet_min.augment import draw as draw_epoch
from resnet_min.config import ARCHS, Config
from resnet_min.cuda_graph import Recorder
from resnet_min.environment import processor
from resnet_min.errors import UserError, run_script
from resnet_min.inference import fuse as fusion
from resnet_min.model import resnet
from resnet_min.timing import Call, Case, Row

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's training images
MINUTES = 8  # no case is begun after so many
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.05, torch.float16: 0.01}  # a GPU's float32 convolutions are TF32


def dtypes(device: torch.device) -> list[torch.dtype]:
    """float32, and what the device has arithmetic for."""
    if device.type == "cuda":
        return [torch.float32, torch.bfloat16, torch.float16]
    return [torch.float32] + [torch.bfloat16] * (engine.hardware("cpu").dtype == torch.bfloat16)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- augment: images to a normalised, randomly cropped and flipped batch ----


def augment(args: argparse.Namespace) -> Iterator[Case]:
    """`ops.crop_flip` against torchvision image by image, a batched gather, its own twin, and a plain copy.

    Every call takes other images of 50,000 random ones (what they show does not matter to a gather) and drops its
    output. The copy reads and writes an output's worth of memory: what no operator with a fresh output can beat.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8, generator=generator).to(args.device)
    planar = images.permute(0, 3, 1, 2).contiguous()  # torchvision's layout
    for batch in args.batch or (128, 512):
        index = torch.randperm(len(images), generator=generator)[: 50_000 // batch * batch].view(-1, batch)
        offset = torch.randint(0, 9, (*index.shape, 2), generator=generator)
        flip = torch.rand(index.shape, generator=generator) < 0.5
        draws = list(zip(*(t.to(args.device) for t in (index, offset, flip)), strict=True))
        for dtype in (torch.float32, torch.bfloat16):
            table = ops.make_table(MEAN, STD, dtype).to(args.device)
            contenders = augment_contenders(images, planar, draws, table)
            check = partial(check_augment, planar=planar, draw=draws[0])
            yield Case({"dtype": name_of(dtype), "batch": batch}, batch, contenders, check)


def augment_contenders(
    images: Tensor, planar: Tensor, draws: list[tuple[Tensor, Tensor, Tensor]], table: Tensor
) -> dict[str, Callable[[], Call]]:
    """Each makes one batch a call. torchvision draws its own crops, as it does in use."""
    crop_and_flip = [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip()]
    first = v1.Compose([*crop_and_flip, v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)])
    crop_and_flip = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    second = v2.Compose([*crop_and_flip, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    made = ops.crop_flip(images, *draws[0], table, 4)

    def one_by_one(transform: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        return torch.stack([transform(planar[i]) for i in index.tolist()]).to(table.dtype)

    calls: dict[str, Callable[..., Tensor]] = {
        "ours": lambda *draw: ops.crop_flip(images, *draw, table, 4),
        "torchvision v1, image by image": lambda index, *_: one_by_one(first, index),
        "torchvision v2, image by image": lambda index, *_: one_by_one(second, index),
        "batched gather in torch": lambda *draw: batched_gather(images, *draw, table.dtype),
        "batched gather, flat index": lambda *draw: flat_gather(images, *draw, table.dtype),
        "reference": lambda *draw: reference.crop_flip(images, *draw, table, 4),
        "copy of a batch": lambda *_: made.clone(),
    }

    def over_all_draws(call: Callable[..., Tensor]) -> Call:
        draw = cycle(draws)
        return lambda: call(*next(draw))

    return {name: partial(over_all_draws, call) for name, call in calls.items()}


def batched_gather(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, dtype: torch.dtype) -> Tensor:
    """What one writes by hand: pad the batch, crop and flip it in one indexing, normalise."""
    padded, rows, columns = padded_batch(images, index, offset, flip)
    batch = torch.arange(len(index), device=images.device)[:, None, None]
    return normalised(padded[batch, rows[:, :, None], columns[:, None, :]], dtype)


def flat_gather(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, dtype: torch.dtype) -> Tensor:
    """The same for someone who has measured: torch's index_select of whole pixels is its fastest gather on a CPU."""
    padded, rows, columns = padded_batch(images, index, offset, flip)
    batch = torch.arange(len(index), device=images.device)[:, None, None]
    pixels = ((batch * 40 + rows[:, :, None]) * 40 + columns[:, None, :]).view(-1)
    return normalised(padded.view(-1, 3).index_select(0, pixels).view(-1, 32, 32, 3), dtype)


def padded_batch(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's images with their borders, and the rows [B, 32] and columns [B, 32] of each that are wanted."""
    step = torch.arange(32, device=images.device)
    columns = offset[:, 1:] + torch.where(flip[:, None], 31 - step, step)
    return torch.nn.functional.pad(images[index], (0, 0, 4, 4, 4, 4)), offset[:, :1] + step, columns


def normalised(cropped: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 32, 32, 3] to [B, 3, 32, 32] with the data set's mean and deviation taken out."""
    mean, std = (torch.tensor(values, device=cropped.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return cropped.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std).to(dtype)


def check_augment(batches: dict[str, Tensor], planar: Tensor, draw: tuple[Tensor, Tensor, Tensor]) -> None:
    """All that take draws must make the same batch of the first: ours and its twin to the bit; and so torchvision."""
    ours = batches["ours"]
    for name in ("reference", "copy of a batch"):
        torch.testing.assert_close(batches[name], ours, rtol=0, atol=0)
    for name in ("batched gather in torch", "batched gather, flat index"):
        torch.testing.assert_close(batches[name], ours)
    for functional in (v1.functional, v2.functional):
        for out, i, (top, left), flip in zip(ours, *(t.tolist() for t in draw), strict=True):
            image = functional.crop(functional.pad(planar[i], [4]), top, left, 32, 32)
            image = (functional.hflip(image) if flip else image).float() / 255
            torch.testing.assert_close(out, functional.normalize(image, MEAN, STD).to(out.dtype))


# ---- kernels: each layer of a network by itself ----


def kernels(args: argparse.Namespace) -> Iterator[Case]:
    """`ops.conv_bn_relu`, `ops.conv3x3` and `ops.bn_add_relu` on every layer of a network, once for each shape it has.

    conv_bn_relu as in inference, batch norm folded where the contender can; the others as in training, forward and
    backward. On random values: no layer's time depends on them.
    """
    for batch in args.batch or ([64] if args.device.type == "cpu" else [128, 1024]):
        for dtype in dtypes(args.device):
            about = {"batch": batch, "dtype": name_of(dtype)}
            for layer in layers(args.arch):
                images = torch.randn(batch, *layer["input"], device=args.device, dtype=dtype)
                x = images.contiguous(memory_format=torch.channels_last)
                contenders = conv_contenders(x, layer)
                yield Case({**about, "kernel": "conv", "layer": layer["name"]}, batch, contenders, check_kernels)
            for name, layer in {layer["name"].split(" +")[0]: layer for layer in layers(args.arch)}.items():
                x, weight = torch.empty(batch, *layer["input"], device=args.device, dtype=dtype), layer["conv"].weight
                if " 3x3/1 " in name and ops.supported("conv3x3", x, weight.to(dtype)):
                    contenders = trained_conv_contenders(batch, layer)
                    yield Case({**about, "kernel": "conv3x3", "layer": name}, batch, contenders, check_kernels)
            for layer in {layer["norm"]: layer for layer in layers(args.arch)}.values():
                contenders = norm_contenders(batch, dtype, layer, args.device)
                yield Case({**about, "kernel": "bn", "layer": layer["norm"]}, batch, contenders, check_kernels)


def layers(arch: str) -> list[dict[str, Any]]:
    """The distinct convolutions of a network on 32x32 images, in the order of use, each with what follows it."""
    found: dict[str, dict[str, Any]] = {}

    def note(module: fusion.FusedConv, inputs: tuple[Any, ...], out: Tensor) -> None:
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
        if isinstance(module, fusion.FusedConv):
            module.register_forward_hook(note)
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    return list(found.values())


def conv_contenders(x: Tensor, layer: dict[str, Any]) -> dict[str, Callable[[], Call]]:
    """relu(bn(conv(x)) + residual) in eval mode; batch norm is folded for all but "eager"."""
    folded, out = layer["conv"], layer["output"]
    stride, padding, relu = folded.stride, folded.padding, folded.relu
    weight = torch.randn_like(folded.weight, device=x.device) * folded.weight[0].numel() ** -0.5
    weight, bias = weight.to(x.dtype), torch.randn(out[0], device=x.device).to(x.dtype)
    residual = torch.randn(len(x), *out, device=x.device).to(x).contiguous(memory_format=torch.channels_last)
    residual = residual if layer["residual"] else None
    rest = stride, padding, relu

    def ours() -> Call:
        module = fusion.FusedConv(weight, bias, *rest)
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
    if fusion.cudnn_fuses(x, relu):
        contenders["cuDNN, fused"] = lambda: lambda: fusion.cudnn_conv_bn_relu(x, weight, bias, residual, *rest)
        contenders["our kernel"] = lambda: lambda: ops.conv_bn_relu(x, weight, bias, residual, *rest)
    return {name: partial(without_grad, make) for name, make in contenders.items()}


def without_grad(make: Callable[[], Call]) -> Call:
    with torch.no_grad():
        return torch.no_grad()(make())


def trained_conv_contenders(batch: int, layer: dict[str, Any]) -> dict[str, Callable[[], Call]]:
    """A 3×3 convolution, forward and backward, on the CPU; returns the gradients."""
    x, grad = (torch.randn(batch, *layer[end]) for end in ("input", "output"))
    weight = torch.randn_like(layer["conv"].weight) * layer["conv"].weight[0].numel() ** -0.5

    def both_ways(forward: Callable[..., Tensor], memory_format: torch.memory_format) -> Call:
        a, w, g = (t.contiguous(memory_format=memory_format) for t in (x, weight, grad))
        wanted = a.requires_grad_(), w.requires_grad_()
        return lambda: torch.autograd.grad(forward(*wanted), wanted, g)

    eager = partial(nn.functional.conv2d, padding=1)
    return {
        "ours": partial(both_ways, ops.conv3x3, torch.channels_last),
        "eager, NCHW": partial(both_ways, eager, torch.contiguous_format),
        "eager, channels_last": partial(both_ways, eager, torch.channels_last),
    }


def norm_contenders(
    batch: int, dtype: torch.dtype, layer: dict[str, Any], device: torch.device
) -> dict[str, Callable[[], Call]]:
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


def check_kernels(results: dict[str, Tensor | tuple[Tensor, ...]]) -> None:
    """All contenders must agree, as well as their dtype lets them."""
    for name, result in results.items():
        for got, ours in zip(*(t if isinstance(t, tuple) else (t,) for t in (result, results["ours"])), strict=True):
            error = ((got.float() - ours.float()).norm() / ours.float().norm()).item()
            if not error < TOLERANCE[ours.dtype]:
                raise AssertionError(f"{name} computes something else: it is off by {error:.2g}")


# ---- training: whole steps, from uint8 images to updated weights ----


def training(args: argparse.Namespace) -> Iterator[Case]:
    """`engine.train_one_epoch` on our kernels against hand-written loops in plain PyTorch.

    The same network from the same weights, SGD with Nesterov's momentum, random crop and flip. A hand-written loop
    makes its batches by `batched_gather`. The images are random: no step's time depends on what they show.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8192, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = data.Split(images, torch.randint(0, 10, (len(images),), generator=generator))
    for batch in args.batch or ([128] if args.device.type == "cpu" else [128, 512, 1024]):
        about = {"arch": args.arch, "batch": batch}
        steps = 1 if args.device.type == "cpu" else len(images) // batch  # a call; only then does the host wait
        yield Case(about, steps * batch, training_contenders(args, split, batch, steps), check_training)


def training_contenders(
    args: argparse.Namespace, split: data.Split, batch: int, steps: int
) -> dict[str, Callable[[], Call]]:
    """Each takes `steps` steps a call and returns the first one's loss."""
    on_cpu = args.device.type == "cpu"
    plain = partial(plain_steps, args, split, batch, steps)
    contenders = {"ours": partial(our_steps, args, split, batch, steps), "eager, NCHW": partial(plain, torch.float32)}
    if not on_cpu:
        contenders["ours, --cuda-graph"] = partial(our_steps, args, split, batch, steps, Recorder())
    for dtype in dtypes(args.device):
        contenders[f"eager, channels_last, {name_of(dtype)}"] = partial(plain, dtype, torch.channels_last)
    fast = torch.bfloat16 if torch.bfloat16 in dtypes(args.device) else torch.float32
    plain = partial(plain, fast, torch.channels_last)
    if on_cpu:
        contenders[f"the same, {name_of(fast)}, memory kept"] = partial(plain, keep=True)
    else:
        contenders[f"the same, {name_of(fast)}, CUDA graph"] = partial(plain, graph=True)
    for mode in ["default"] if on_cpu else ["default", "reduce-overhead", "max-autotune"]:
        contenders[f"compile {mode}, {name_of(fast)}"] = partial(plain, mode=mode)
    return contenders


def check_training(losses: dict[str, float]) -> None:
    for name, loss in losses.items():
        if not abs(loss - losses["eager, NCHW"]) < 0.05:
            wanted = losses["eager, NCHW"]
            raise AssertionError(f"{name} computes something else: its first loss is {loss}, not {wanted}")


def new_net(args: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = resnet(args.arch).to(args.device)
    return net, engine.make_optimizer(Config(lr=0.01, nesterov=True, wd=5e-4), net)


def our_steps(
    args: argparse.Namespace, split: data.Split, batch: int, steps: int, recorder: Recorder | None = None
) -> Call:
    """What train.py does."""
    net, optimizer = new_net(args)
    net.to(memory_format=torch.channels_last)
    where = engine.hardware(str(args.device))
    batches = Batches(
        split, batch_size=batch, mean=MEAN, std=STD, device=args.device, dtype=where.dtype, padding=4, flip=0.5
    )
    endless = chain.from_iterable(batches.epoch(epoch) for epoch in count(1))

    def call() -> float:
        ops.set_backend("auto")
        engine.keep_freed_memory()
        some = islice(endless, steps)
        losses, _ = engine.train_one_epoch(net, some, optimizer, [0.01] * steps, where, recorder=recorder)
        return losses[0].item()

    return call


def plain_steps(
    args: argparse.Namespace,
    split: data.Split,
    batch: int,
    steps: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
    mode: str | None = None,
    graph: bool = False,
    keep: bool = False,
) -> Call:
    """The loop one writes by hand. Plain PyTorch: our kernels are switched off while it runs.

    mode: of torch.compile. graph: the whole step as a CUDA graph. keep: `engine.keep_freed_memory`, as ours has it.
    """
    net, optimizer = new_net(args)
    net.to(memory_format=memory_format)
    if mode:
        net.compile(mode=mode)
    images, labels = split.images.to(args.device), split.labels.to(args.device)
    scaler = torch.amp.GradScaler(args.device.type, enabled=dtype == torch.float16)
    drawn = draw_epoch(len(images), epoch=1, seed=0, padding=4, flip=0.5)  # the draws that ours begins with
    parts = (t.to(args.device).split(batch) for t in (drawn.index, drawn.offset, drawn.flip))
    draws = list(zip(*parts, strict=True))
    draw = cycle(draws)

    def step(index: Tensor, offset: Tensor, flip: Tensor) -> Tensor:
        inputs = batched_gather(images, index, offset, flip, torch.float32).contiguous(memory_format=memory_format)
        with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(net(inputs), labels[index])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    ops.set_backend("reference")
    if graph:
        step = graphed(step, [t.clone() for t in draws[0]], optimizer)

    def call() -> float:
        ops.set_backend("reference")
        engine.keep_freed_memory(keep)
        losses = [step(*next(draw)) for _ in range(steps)]
        return losses[0].item()

    return call


def graphed(
    step: Callable[..., Tensor], static: list[Tensor], optimizer: torch.optim.Optimizer
) -> Callable[..., Tensor]:
    """`step`, recorded once into a CUDA graph with `static` as its arguments: a call copies its own into these."""
    rates = [group["lr"] for group in optimizer.param_groups]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # a warm-up is not to train
        for _ in range(3):
            step(*static)
    torch.cuda.current_stream().wait_stream(stream)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        loss = step(*static)

    def replay(*arguments: Tensor) -> Tensor:
        for to, given in zip(static, arguments, strict=True):
            to.copy_(given)
        recorded.replay()
        return loss.clone()

    return replay


# ---- inference: images to logits ----


def inference(args: argparse.Namespace) -> Iterator[Case]:
    """`fuse(model)` against the model itself, in each memory format and compiled with its weights frozen."""
    torch.manual_seed(0)
    batches = args.batch or ([256] if args.device.type == "cpu" else [128, 512, 1024])
    images = torch.randn(max(batches), 3, 32, 32, device=args.device)
    net = settled(resnet(args.arch).to(args.device), images[:64])
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(images[:16].double())
    for batch in batches:
        for dtype in dtypes(args.device):
            about = {"arch": args.arch, "batch": batch, "dtype": name_of(dtype)}
            contenders = inference_contenders(net, images[:batch].to(dtype))
            yield Case(about, batch, contenders, partial(check_inference, exact=exact))


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """`net` in eval mode with these images' statistics: with a new net's there is nothing to fold, and maps explode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(images)
    return net.eval()


def inference_contenders(net: nn.Module, images: Tensor) -> dict[str, Callable[[], Call]]:
    """Each returns the images' logits."""
    moved = images.contiguous(memory_format=torch.channels_last)

    def plain(inputs: Tensor, memory_format: torch.memory_format, **options: object) -> Call:
        module = copy.deepcopy(net).to(images.dtype).to(memory_format=memory_format)
        if options:
            module.compile(options=options)
        return partial(torch.no_grad()(module), inputs)

    # Freezing takes the weights for constants: it folds batch norm and lays them out ahead, as `fuse` does.
    options = {"freezing": True} | ({"max_autotune": True} if images.is_cuda else {})
    return {
        "ours": lambda: partial(torch.no_grad()(fuse(net, images.dtype)), moved),
        "eager, NCHW": partial(plain, images, torch.contiguous_format),
        "eager, channels_last": partial(plain, moved, torch.channels_last),
        "compile, freezing": partial(plain, moved, torch.channels_last, **options),
    }


def check_inference(results: dict[str, Tensor], exact: Tensor) -> None:
    """All must give the logits that the net gives in float64, as well as their dtype lets them."""
    for name, logits in results.items():
        count = min(len(logits), len(exact))
        error = ((logits[:count] - exact[:count]).norm() / exact[:count].norm()).item()
        if not error < TOLERANCE[logits.dtype]:
            raise AssertionError(f"{name} computes something else: its logits are off by {error:.2g}")


TABLES: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {
    "augment": augment,
    "kernels": kernels,
    "training": training,
    "inference": inference,
}


# ---- the script ----


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What a figure needs beside it to mean something."""
    return {
        "table": args.table,
        "command": shlex.join(["python", *sys.argv]),
        "hardware": processor(args.device),
        "threads": torch.get_num_threads(),
        "windows": timing.WINDOWS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            **{key: value for key, value in ops.build_info().items() if key in ("compiler", "cuda_version", "archs")},
        },
        "kernels": ops.backend_line(args.device),
    }


def print_row(row: Row, first: bool) -> None:
    """The columns a table adds itself, then the name, images a second, the ratio, each with its spread, and memory."""
    measured = ("name", "per_second", "ours_is", "peak_mib")
    own = {key: value for key, value in row.items() if not key.startswith(measured)}
    wide = {key: 36 if key == "layer" else 10 for key in own}
    if first:
        head = "".join(f"{key:<{wide[key]}}" for key in own)
        print(f"{head}{'':36}{'images/s':>12}  {'(min-max)':<23}{'ours is':>9}  {'(min-max)':<14}{'peak MiB':>9}")
    rate = f"{row['per_second']:12,.0f}  {'({per_second_min:,.0f}-{per_second_max:,.0f})'.format(**row):<23}"
    ratio = f"{row['ours_is']:8.2f}x  {'({ours_is_min:.2f}-{ours_is_max:.2f})'.format(**row):<14}"
    about = "".join(f"{value!s:<{wide[key]}}" for key, value in own.items())
    print(f"{about}{row['name']:<36}{rate}{ratio}{row['peak_mib']:9,.1f}", flush=True)


def get_args() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--table", choices=TABLES, required=True, help="what to time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--arch", choices=ARCHS, default="resnet18", help="network (not of augment)")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="batch sizes (default: the table's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here, or go on with it")
    args = parser.parse_args()
    if args.batch and min(args.batch) < 1:
        raise UserError(f"--batch must be at least 1; got {min(args.batch)}")
    try:
        args.device = torch.empty(0, device=args.device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    return args


def begun(path: Path | None, facts: dict[str, Any]) -> list[Row]:
    """The rows that an earlier run of the same command left in `path`. Raises UserError where they are of another."""
    if path is None or not path.exists():
        return []
    try:
        table = json.loads(path.read_text())
        rows, theirs = table["rows"], {key: table[key] for key in facts}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--json {path} is no table of this script; name another file") from None
    if other := [key for key in facts if theirs[key] != facts[key]]:
        raise UserError(f"--json {path} was made with other {other[0]}; name another file, or remove it")
    return rows


def main() -> None:
    """Print the table asked for, and write it where asked."""
    started = time.monotonic()
    args = get_args()
    facts = about(args)
    rows = begun(args.json, facts)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler, which measures memory, talks
    print("{hardware}; {threads} threads; torch {versions[torch]}; {kernels}".format(**facts))
    for number, row in enumerate(rows):
        print_row(row, first=number == 0)
    for case in TABLES[args.table](args):
        if any(case.about.items() <= row.items() for row in rows):
            continue
        if time.monotonic() - started > 60 * MINUTES:
            print(f"stopped after {MINUTES} minutes; the same command{'' if args.json else ' with --json'} goes on")
            break
        for row in timing.run(case, args.device):
            print_row(row, first=not rows)
            rows.append(row)
        if args.json:
            temporary = args.json.with_name(f".{args.json.name}.tmp")
            temporary.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
            temporary.replace(args.json)


if __name__ == "__main__":
    run_script(main)
