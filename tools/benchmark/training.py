"""Whole training steps, from uint8 images to updated weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, cycle, islice

import torch
from torch import Tensor, nn

from resnet_min import data, ops
from resnet_min.data.batches import Batches
from resnet_min.data.batches import draw as draw_epoch
from resnet_min.model import resnet
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training.cuda_graph import Recorder
from resnet_min.training.distributed import World
from resnet_min.training.hardware import hardware, keep_freed_memory
from resnet_min.training.loop import train_one_epoch
from resnet_min.training.optimizer import make_optimizer

from .augment import batched_gather
from .timing import MEAN, STD, Call, Case, dtypes, name_of


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """`train_one_epoch` on our kernels against hand-written loops in plain PyTorch.

    The same network from the same weights, SGD with Nesterov's momentum, random crop and flip. A hand-written loop
    makes its batches by `batched_gather`. The images are random: no step's time depends on what they show.
    """
    split = random_images()
    for dtype in dtypes(args.device)[:2]:  # float16 would need its losses scaled; bfloat16 is as fast
        for batch in args.batch or ([128] if args.device.type == "cpu" else [128, 512, 1024]):
            about = {"arch": args.arch, "batch": batch, "dtype": name_of(dtype)}
            steps = 1 if args.device.type == "cpu" else len(split.images) // batch  # a call; only then the host waits
            yield Case(about, steps * batch, contenders_of(args, split, batch, steps, dtype), check)


def random_images() -> data.Split:
    """As many as the steps of these tables take turns with."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8192, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return data.Split(images, torch.randint(0, 10, (len(images),), generator=generator))


def contenders_of(
    args: argparse.Namespace, split: data.Split, batch: int, steps: int, dtype: torch.dtype
) -> dict[str, Callable[[], Call]]:
    """Each takes `steps` steps a call, convolutions in `dtype`, and returns the first one's loss."""
    on_cpu = args.device.type == "cpu"
    ours = partial(our_steps, args, split, batch, steps, amp="bf16" if dtype == torch.bfloat16 else "off")
    plain = partial(plain_steps, args, split, batch, steps, dtype)
    contenders = {"ours": ours, "eager, NCHW": plain}
    if on_cpu and dtype == torch.float32:
        contenders["ours, --winograd 4x4"] = partial(ours, winograd="4x4")
    if not on_cpu:
        contenders["ours, --cuda-graph"] = partial(ours, Recorder())
    plain = partial(plain, torch.channels_last)
    contenders["eager, channels_last"] = plain
    if on_cpu:
        contenders["the same, memory kept"] = partial(plain, keep=True)
    else:
        contenders["the same, CUDA graph"] = partial(plain, graph=True)
    for mode in ["default"] if on_cpu else ["default", "reduce-overhead", "max-autotune"]:
        contenders[f"compile {mode}"] = partial(plain, mode=mode)
    return contenders


def check(losses: dict[str, float]) -> None:
    for name, loss in losses.items():
        if not abs(loss - losses["eager, NCHW"]) < 0.05:
            wanted = losses["eager, NCHW"]
            raise AssertionError(f"{name} computes something else: its first loss is {loss}, not {wanted}")


def new_net(args: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = resnet(args.arch).to(args.device)
    return net, make_optimizer(ClassifyConfig(lr=0.01, nesterov=True, wd=5e-4), net)


def our_steps(
    args: argparse.Namespace,
    split: data.Split,
    batch: int,
    steps: int,
    recorder: Recorder | None = None,
    *,
    amp: str = "auto",
    winograd: str | None = None,
    world: World = World(),  # noqa: B008 a constant
    parallel: Callable[[nn.Module], nn.Module] = lambda net: net,
) -> Call:
    """What train.py does; `parallel` makes of a network what is trained in a `world` of several."""
    net, optimizer = new_net(args)
    net.to(memory_format=torch.channels_last)
    where = hardware(str(args.device), amp, world)
    net = parallel(net)
    batches = Batches(
        split, batch_size=batch, mean=MEAN, std=STD, device=args.device, dtype=where.dtype, padding=4, flip=0.5,
        part=world.part,
    )  # fmt: skip
    endless = chain.from_iterable(batches.epoch(epoch) for epoch in count(1))

    def call() -> float:
        ops.set_backend("auto")
        ops.set_winograd(winograd)
        keep_freed_memory()
        some = islice(endless, steps)
        losses, _ = train_one_epoch(
            net, some, optimizer, [0.01] * steps, where, ClassifyConfig().make_task().loss, recorder=recorder
        )
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

    mode: of torch.compile. graph: the whole step as a CUDA graph. keep: `keep_freed_memory`, as ours has it.
    """
    net, optimizer = new_net(args)
    net.to(memory_format=memory_format)
    if mode:
        net.compile(mode=mode)
    images, labels = split.images.to(args.device), split.labels.to(args.device)
    drawn = draw_epoch(len(images), epoch=1, seed=0, padding=4, flip=0.5)  # the draws that ours begins with
    parts = (t.to(args.device).split(batch) for t in (drawn.index, drawn.offset, drawn.flip))
    draws = list(zip(*parts, strict=True))
    draw = cycle(draws)

    def step(index: Tensor, offset: Tensor, flip: Tensor) -> Tensor:
        inputs = batched_gather(images, index, offset, flip, torch.float32).contiguous(memory_format=memory_format)
        with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(net(inputs), labels[index])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    ops.set_backend("reference")
    if graph:
        step = graphed(step, [t.clone() for t in draws[0]], optimizer)

    def call() -> float:
        ops.set_backend("reference")
        keep_freed_memory(keep)
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
