"""Functions called by several processes at once, as torchrun would start them, but from one that has imported torch."""

import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor

from resnet_min.training import distributed


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_world(size, function, *args):
    """What `function(world, *args)`, a module's, returns in each of `size` processes, in rank order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.nn.parallel", "torch._dynamo", "resnet_min.tasks.trained", "tqdm"])
    port = free_port()
    with ProcessPoolExecutor(size, context) as pool:
        calls = [pool.submit(_call, rank, size, port, function, args) for rank in range(size)]
        return [call.result(timeout=120) for call in calls]


def _call(rank, size, port, function, args):
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with distributed.joined() as world:
        return function(world, *args)
