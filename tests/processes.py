"""Functions called by several processes at once, as torchrun would start them, but from one that has imported torch."""

import multiprocessing
import os
import pickle
import socket
import tempfile
from pathlib import Path


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_world(size, function, *args, **environment):
    """What `function(*args)`, a module's, returns in each of `size` processes, in rank order."""
    codes, results = run_world(size, function, *args, **environment)
    assert codes == [0] * size
    return results


def run_world(size, function, *args, **environment):
    """Exit codes of the processes, and what each returned or None. `environment`: further variables."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch.nn.parallel", "torch._dynamo", "resnet_min.tasks.trained", "resnet_min.viz.figures", "train"]
    )
    environment |= dict(WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(size)]
        processes = [
            context.Process(
                target=_call,
                args=({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, os.getcwd(), file, function, args),
            )
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
            process.join()
        results = [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
    return [process.exitcode for process in processes], results


def _call(environment, folder, file, function, args):
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(environment)
    file.write_bytes(pickle.dumps(function(*args)))
