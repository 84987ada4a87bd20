"""Training steps by two processes against one: synchronised batch norm, and what DistributedDataParallel offers."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from unittest import mock

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from resnet_min.errors import UserError
from resnet_min.training.distributed import World, joined

from .timing import Case, Row, rows, side_by_side
from .training import our_steps, random_images

PROCESSES = 2
Parallel = Callable[[World, nn.Module], nn.Module]


def parallel(world: World, net: nn.Module, sync_bn: bool = True, **options: bool) -> nn.Module:
    """As train.py has it, with further options of DistributedDataParallel."""
    with_options = partial(nn.parallel.DistributedDataParallel, **options)
    with mock.patch.object(nn.parallel, "DistributedDataParallel", with_options):
        return world.parallel(net, sync_bn)


def compressed(world: World, net: nn.Module) -> nn.Module:
    """With gradients that are sent as bfloat16."""
    model = world.parallel(net, True)
    model.register_comm_hook(None, bf16_compress_hook)
    return model


WAYS: dict[str, Parallel] = {
    "ours": parallel,
    "ours, --no-sync-bn": partial(parallel, sync_bn=False),
    "gradients as views of buckets": partial(parallel, gradient_as_bucket_view=True),
    "static graph": partial(parallel, static_graph=True),
    "bfloat16 gradients": compressed,
}


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """A step of two processes that share this one's threads, each of `WAYS`, and of this one with all of them.

    Each of the two has every network, and steps the one it is told to. Raises UserError for a device but the CPU.
    """
    if args.device.type != "cpu":
        raise UserError(f"scaling is measured on the CPU; got --device {args.device}")
    for batch in args.batch or [128]:
        with started(args, batch) as step:
            contenders = {name: partial(partial, step, name) for name in WAYS}
            contenders["one process"] = partial(our_steps, args, random_images(), batch, 1)
            yield Case({"arch": args.arch, "batch": batch, "processes": PROCESSES}, batch, contenders, check)


def check(losses: dict[str, float]) -> None:
    for name, loss in losses.items():
        if not abs(loss - losses["one process"]) < 0.05:  # without sync_bn a little off
            wanted = losses["one process"]
            raise AssertionError(f"{name} computes something else: its first loss is {loss}, not {wanted}")


def run(case: Case, device: torch.device) -> Iterator[Row]:
    """timing.py's, without memory: that of other processes does not show."""
    calls = {name: make() for name, make in case.contenders.items()}
    case.check({name: call() for name, call in calls.items()})
    yield from rows(case, side_by_side(calls, device))


@contextlib.contextmanager
def started(args: argparse.Namespace, batch: int) -> Iterator[Callable[[str], float]]:
    """Processes that step together; (a name of `WAYS`) -> the loss of a step of that network."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pipes = []
    for rank in range(PROCESSES):
        ours, theirs = context.Pipe()
        context.Process(target=take_steps, args=(rank, port, theirs, args, batch), daemon=True).start()
        theirs.close()
        pipes.append(ours)

    def step(name: str) -> float:
        for pipe in pipes:
            pipe.send(name)
        return [pipe.recv() for pipe in pipes][0]

    try:
        yield step
    finally:
        for pipe in pipes:
            pipe.close()


def take_steps(rank: int, port: int, pipe: Connection, args: argparse.Namespace, batch: int) -> None:
    """One of the processes: a step for each name that comes, until none does."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    torch.set_num_threads(max(1, torch.get_num_threads() // PROCESSES))
    with joined() as world, contextlib.suppress(EOFError):
        split = random_images()
        calls = {
            name: our_steps(args, split, batch, 1, world=world, parallel=partial(way, world))
            for name, way in WAYS.items()
        }
        while True:
            pipe.send(calls[pipe.recv()]())
