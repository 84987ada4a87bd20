"""Times ours beside what a user would pick instead: same data, one process, in turn, each checked before it is timed.

    python benchmark.py --table augment [--device cpu] [--json augment.json]
    python benchmark.py --table training --arch resnet20
    python benchmark.py --table inference --arch resnet18 --batch 256

A table is a function that yields rows, one dict each; `TABLES` names them. Rows are printed as they come, and the JSON
file, written again after each, also holds the command, hardware, versions and threads.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, cycle
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from resnet_min import data, engine, fuse, ops, reference
from resnet_min.augment import Batches
from resnet_min.augment import draw as draw_epoch
from resnet_min.config import ARCHS, Config
from resnet_min.errors import UserError, run_script
from resnet_min.model import resnet

WINDOWS = 7  # timed windows of each contender; figures are medians over them
SECONDS = 0.2  # at least, each window
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's training images

Row = dict[str, Any]


# ---- timing ----


def side_by_side(contenders: dict[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """Calls a second of each contender, window by window in turn, so that a disturbance meets all alike."""

    def window(call: Callable[[], object], calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, call in contenders.items():
        window(call, 2)  # warm-up: caches, memory pools, compilation
        calls[name] = max(1, round(SECONDS / window(call, 2)))
        window(call, calls[name])
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(WINDOWS):
        for name, call in contenders.items():
            rates[name].append(1 / window(call, calls[name]))
    return rates


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compared(rates: dict[str, list[float]], ours: str, units: int, **about: object) -> Iterator[Row]:
    """A row for each contender: units (images) a second, and how many times that ours is, window against window."""
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(rates[ours], values, strict=True)]
        row = {**about, "name": name}
        for key, numbers in (("per_second", [v * units for v in values]), ("ours_is", ratios)):
            row |= {key: statistics.median(numbers), f"{key}_min": min(numbers), f"{key}_max": max(numbers)}
        yield row


# ---- augment: images to a normalised, randomly cropped and flipped batch ----


def augment(args: argparse.Namespace) -> Iterator[Row]:
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
            check_augment(images, planar, draws[0], table)
            rates = side_by_side(augment_contenders(images, planar, draws, table), args.device)
            yield from compared(rates, "ours", batch, dtype=str(dtype).removeprefix("torch."), batch=batch)


def augment_contenders(
    images: Tensor, planar: Tensor, draws: list[tuple[Tensor, Tensor, Tensor]], table: Tensor
) -> dict[str, Callable[[], Tensor]]:
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

    def over_all_draws(call: Callable[..., Tensor]) -> Callable[[], Tensor]:
        draw = cycle(draws)
        return lambda: call(*next(draw))

    return {name: over_all_draws(call) for name, call in calls.items()}


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


def check_augment(images: Tensor, planar: Tensor, draw: tuple[Tensor, Tensor, Tensor], table: Tensor) -> None:
    """All contenders, given the same draws, must make the same batch: ours and the twin to the bit."""
    ours = ops.crop_flip(images, *draw, table, 4)
    torch.testing.assert_close(ours, reference.crop_flip(images, *draw, table, 4), rtol=0, atol=0)
    for gather in (batched_gather, flat_gather):
        torch.testing.assert_close(ours, gather(images, *draw, table.dtype))
    for functional in (v1.functional, v2.functional):
        for out, i, (top, left), flip in zip(ours, *(t.tolist() for t in draw), strict=True):
            image = functional.crop(functional.pad(planar[i], [4]), top, left, 32, 32)
            image = (functional.hflip(image) if flip else image).float() / 255
            torch.testing.assert_close(out, functional.normalize(image, MEAN, STD).to(table.dtype))


# ---- training: whole steps, from uint8 images to updated weights ----


def training(args: argparse.Namespace) -> Iterator[Row]:
    """`engine.train_one_epoch` on our kernels against hand-written loops in plain PyTorch.

    The same network from the same weights, SGD with Nesterov's momentum, random crop and flip. A hand-written loop
    makes its batches by `batched_gather`. The images are random: no step's time depends on what they show.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8192, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = data.Split(images, torch.randint(0, 10, (len(images),), generator=generator))
    for batch in args.batch or ([128] if args.device.type == "cpu" else [128, 512, 1024]):
        rates = side_by_side(training_contenders(args, split, batch), args.device)
        yield from compared(rates, "ours", batch, arch=args.arch, batch=batch)


def training_contenders(args: argparse.Namespace, split: data.Split, batch: int) -> dict[str, Callable[[], float]]:
    """Each takes one step a call and returns its loss; all losses of the first step must agree."""
    where = engine.hardware(str(args.device))
    half = (torch.bfloat16,) if args.device.type == "cpu" else (torch.bfloat16, torch.float16)
    options = {
        "eager, NCHW": (torch.contiguous_format, torch.float32, False),
        "eager, channels_last": (torch.channels_last, torch.float32, False),
    }
    for dtype in half:
        name = f"autocast {str(dtype).removeprefix('torch.')}, channels_last"
        options |= {f"{kind}, {name}": (torch.channels_last, dtype, kind == "compile") for kind in ("eager", "compile")}
    contenders: dict[str, Callable[[], float]] = {"ours": our_step(args, split, batch, where)}
    contenders |= {name: plain_step(args, split, batch, *option) for name, option in options.items()}
    losses = {name: step() for name, step in contenders.items()}
    for name, loss in losses.items():
        if abs(loss - losses["eager, NCHW"]) > 0.05:
            raise AssertionError(
                f"{name} computes something else: its first loss is {loss}, not {losses['eager, NCHW']}"
            )
    return contenders


def new_net(args: argparse.Namespace) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = resnet(args.arch).to(args.device)
    return net, engine.make_optimizer(Config(lr=0.01, nesterov=True, wd=5e-4), net)


def our_step(args: argparse.Namespace, split: data.Split, batch: int, where: engine.Hardware) -> Callable[[], float]:
    """What train.py does, a step a call."""
    net, optimizer = new_net(args)
    net.to(memory_format=torch.channels_last)
    batches = Batches(
        split, batch_size=batch, mean=MEAN, std=STD, device=args.device, dtype=where.dtype, padding=4, flip=0.5
    )
    endless = chain.from_iterable(batches.epoch(epoch) for epoch in count(1))

    def step() -> float:
        ops.set_backend("auto")
        losses, _ = engine.train_one_epoch(net, [next(endless)], optimizer, [0.01], where)
        return losses.item()

    return step


def plain_step(
    args: argparse.Namespace,
    split: data.Split,
    batch: int,
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    compiled: bool,
) -> Callable[[], float]:
    """The loop one writes by hand. Plain PyTorch: our kernels are switched off while it runs."""
    net, optimizer = new_net(args)
    net.to(memory_format=memory_format)
    if compiled:
        net.compile()
    images, labels = split.images.to(args.device), split.labels.to(args.device)
    scaler = torch.amp.GradScaler(args.device.type, enabled=dtype == torch.float16)
    drawn = draw_epoch(len(images), epoch=1, seed=0, padding=4, flip=0.5)  # the draws that ours begins with
    parts = (t.to(args.device).split(batch) for t in (drawn.index, drawn.offset, drawn.flip))
    draws = cycle(list(zip(*parts, strict=True)))

    def step() -> float:
        ops.set_backend("reference")
        index, offset, flip = next(draws)
        inputs = batched_gather(images, index, offset, flip, torch.float32).contiguous(memory_format=memory_format)
        with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(net(inputs), labels[index])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


# ---- inference: images to logits ----


def inference(args: argparse.Namespace) -> Iterator[Row]:
    """`fuse(model)` against the model itself, in each memory format and compiled with its weights frozen."""
    torch.manual_seed(0)
    images = torch.randn(max(args.batch or [1024]), 3, 32, 32, device=args.device)
    net = settled(resnet(args.arch).to(args.device), images[:64])
    half = [torch.bfloat16] if args.device.type == "cpu" else [torch.bfloat16, torch.float16]
    for batch in args.batch or ([256] if args.device.type == "cpu" else [128, 512, 1024]):
        for dtype in (torch.float32, *half):
            contenders = inference_contenders(net, images[:batch].to(dtype))
            check_inference(net, images[:batch], contenders)
            rates = side_by_side(contenders, args.device)
            name = str(dtype).removeprefix("torch.")
            yield from compared(rates, "ours", batch, arch=args.arch, dtype=name, batch=batch)


def settled(net: torch.nn.Module, images: Tensor) -> torch.nn.Module:
    """`net` in eval mode with these images' statistics: with a new net's there is nothing to fold, and maps explode."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(images)
    return net.eval()


def inference_contenders(net: torch.nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each returns the images' logits."""
    planar = copy.deepcopy(net).to(images.dtype)
    channels_last = copy.deepcopy(planar).to(memory_format=torch.channels_last)
    # Freezing takes the weights for constants: it folds batch norm and lays them out ahead, as `fuse` does.
    options = {"freezing": True, "max_autotune": images.is_cuda}
    moved = images.contiguous(memory_format=torch.channels_last)
    nets = {
        "ours": (fuse(net, images.dtype), moved),
        "eager, NCHW": (planar, images),
        "eager, channels_last": (channels_last, moved),
        "compile, freezing": (torch.compile(copy.deepcopy(channels_last), options=options), moved),
    }
    return {name: partial(torch.no_grad()(module), inputs) for name, (module, inputs) in nets.items()}


def check_inference(net: torch.nn.Module, images: Tensor, contenders: dict[str, Callable[[], Tensor]]) -> None:
    """All must give the logits that the net gives in float64, as well as their dtype can."""
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(images[:16].double())
    for name, call in contenders.items():
        logits = call()
        error = ((logits[:16] - exact).norm() / exact.norm()).item()
        if not error < (1e-4 if logits.dtype == torch.float32 else 0.05):
            raise AssertionError(f"{name} computes something else: its logits are off by {error:.2g}")


TABLES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "augment": augment,
    "training": training,
    "inference": inference,
}


# ---- the script ----


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What a figure needs beside it to mean something."""
    return {
        "table": args.table,
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware(args.device),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "windows": WINDOWS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            **{key: value for key, value in ops.build_info().items() if key in ("compiler", "cuda_version", "archs")},
        },
        "kernels": ops.backend_line(args.device),
    }


def hardware(device: torch.device) -> str:
    """The device's own name, and of a CPU how many of its cores there are."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def print_row(row: Row, first: bool) -> None:
    """The columns a table adds itself, then the name, images a second and the ratio, each with its spread."""
    measured = ("per_second", "ours_is")
    own = {key: value for key, value in row.items() if key != "name" and not key.startswith(measured)}
    if first:
        print(
            "".join(f"{key:<10}" for key in own)
            + f"{'':34}{'images/s':>12}  {'(min-max)':<23}{'ours is':>9}  (min-max)"
        )
    rate = f"{row['per_second']:12,.0f}  {'({per_second_min:,.0f}-{per_second_max:,.0f})'.format(**row):<23}"
    ratio = "{ours_is:8.2f}x  ({ours_is_min:.2f}-{ours_is_max:.2f})".format(**row)
    print("".join(f"{value!s:<10}" for value in own.values()) + f"{row['name']:<34}{rate}{ratio}", flush=True)


def get_args() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--table", choices=TABLES, required=True, help="what to time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--arch", choices=ARCHS, default="resnet18", help="network of a whole-net table")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="batch sizes (default: the table's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here")
    args = parser.parse_args()
    try:
        args.device = torch.empty(0, device=args.device).device
    except RuntimeError as error:
        raise UserError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    return args


def main() -> None:
    """Print the table asked for, and write it where asked."""
    args = get_args()
    facts = about(args)
    print("{hardware}; {threads} threads; torch {versions[torch]}; load {load:.1f}; {kernels}".format(**facts))
    rows: list[Row] = []
    for row in TABLES[args.table](args):
        print_row(row, first=not rows)
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
