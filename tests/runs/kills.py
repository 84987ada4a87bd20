"""Runs that are killed again and again, and gone on with: `python kills.py IMAGES SEED KILLS…`, in an empty folder.
KILLS: how many of runs of one process, how many of runs of two, and so on.

Every start of a run is a fork of this process, which has imported torch, and is killed at a moment drawn evenly from
those between two calls of Python functions, ours and everybody's, from the decoding of the data to the unlocking of the
folder. Of several processes, as torchrun starts them, one is drawn and killed; the others are left to end by
themselves, or get SIGTERM as torchrun sends it, and none may need SIGKILL.

Prints how many were killed, and how often the others ended with which exit codes, before SIGTERM or after. Exits with
what `assert_same_run` and the other assertions say.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import filelock  # noqa: F401
import torch
import torch._dynamo  # noqa: F401
import tqdm  # noqa: F401
from helpers import TINY, assert_same_run
from torch.distributed import TCPStore

import train
from resnet_min.errors import run_script
from resnet_min.files import write_whole
from resnet_min.runs import environment, job  # noqa: F401  (what a start imports is imported once, here)
from resnet_min.training import checkpoint
from resnet_min.viz import figures

EPOCHS = 3
FLAGS = ["--image-size", "16", "--epochs", str(EPOCHS), "--val-size", "6"]
FILES = ["best.pt", "config.json", "curves.png", "environment.jsonl", "last.pt", "metrics.jsonl", "steps.jsonl"]
FORK = multiprocessing.get_context("fork")
# What would be most of a start and of the moments in it, and is nothing of ours:
environment.revision = lambda: None
figures.curves = lambda runs, path, figure: write_whole(path, "a picture")
torch.use_deterministic_algorithms(False)  # imports torch's compiler


def counted(arguments, variables, rank, most, calls):
    """Run the script, kill this process after `most` calls, and put into `calls[rank]` how many it made."""

    def count(frame, event, argument):
        calls[rank] += 1
        if calls[rank] == most:
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
    sys.stdout, sys.stderr = open("log", "a"), open(f"said{rank}", "w")
    sys.setprofile(count)
    try:
        run_script(partial(train.main, arguments))
    finally:
        sys.setprofile(None)


def start(arguments, size, victim=0, most=-1, patience=20.0):
    """Exit codes and calls of `size` processes, of which the victim is killed after `most` calls; and whether SIGTERM
    was sent to the others, `patience` seconds after one of them ended."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's own, which outlives processes
    variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    calls = FORK.RawArray("q", size)
    processes = [
        FORK.Process(target=counted, args=(arguments, variables, rank, most if rank == victim else -1, calls))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    while (alive := left(processes)) and not any(process.exitcode for process in processes):
        assert wait([process.sentinel for process in alive], timeout=120), "no process ends"
    join(alive, patience)
    late = left(processes)
    for process in late:
        process.terminate()
    join(late, 30)  # until torchrun would send SIGKILL
    codes = [process.exitcode for process in processes]
    for process in left(processes):
        process.kill()
        process.join()
    return codes, list(calls), bool(late)


def left(processes):
    return [process for process in processes if process.exitcode is None]


def join(processes, seconds):
    """Wait for the end of all, no longer than `seconds`."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, until - time.monotonic()))


def said(rank):
    return Path(f"said{rank}").read_text()


def kill_and_go_on(images, cache, flags, draw, calls):
    """A run in `killed`, killed about three times; of each kill, what became of the other processes."""
    for folder in ("killed", cache):
        shutil.rmtree(folder, ignore_errors=True)
    size, became = len(calls), []
    while True:
        begin = [*TINY, "--data", images, *flags, "--out", "killed", "--overwrite"]
        begun = Path("killed/last.pt").exists()
        victim = draw.randrange(size)
        most = draw.randrange(1, calls[victim]) if draw.random() < 0.9 else -1
        patience = draw.choice((0.1, 0.1, 20))  # torchrun's, or enough to see that none is needed
        codes, _, late = start(["--resume", "killed"] if begun else begin, size, victim, most, patience)
        words = [said(rank) for rank in range(size)]
        assert None not in codes and all(text.count("\n") <= 1 for text in words), [codes, *words]
        if Path("killed/last.pt").exists():
            assert checkpoint.load("killed")["epoch"] <= EPOCHS
        killed = codes.pop(victim) == -signal.SIGKILL
        if not killed:
            finished = "has already finished" in words[0]  # and was killed while it left
            assert set(codes) <= {2 if finished else 0}, [codes, *words]
            return became
        if late and patience > 1:  # of those that were not yet together
            assert set(codes) == {-signal.SIGTERM}, [codes, *words]
        became.append((*codes, "after" if late else "before"))


def main(images, wanted, draw, size):
    became, runs = [], 0
    whole, cache = f"whole{size}", os.path.join(images, ".resnet_min_cache")
    codes, calls, _ = start([*TINY, "--data", images, *FLAGS, "--out", whole], size)
    assert set(codes) == {0} and sorted(os.listdir(whole)) == FILES, [codes, *map(said, range(size))]
    while len(became) < wanted:
        flags = FLAGS + (["--save-every", "1e-9"] if draw.random() < 0.5 else [])  # minutes: after every step
        became += kill_and_go_on(images, cache, flags, draw, calls)
        runs += 1
        assert sorted(os.listdir("killed")) == FILES
        assert len(os.listdir(cache)) == 1
        assert_same_run(whole, "killed", "last.pt")
        assert_same_run(whole, "killed", "best.pt")
    others = f"; the others: {dict(Counter(became))}" if size > 1 else ""
    print(f"{size}: {len(became)} kills in {runs} runs of {calls} calls{others}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, wanted in enumerate(sys.argv[3:], start=1):
        main(sys.argv[1], int(wanted), random.Random(int(sys.argv[2])), number)
