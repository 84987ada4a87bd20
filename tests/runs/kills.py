"""Runs that are killed again and again, and gone on with: `python kills.py IMAGES KILLS SEED`, in an empty folder.

Every start of a run is a fork of this process, which has imported torch, and is killed at a moment drawn evenly from
those between two calls of Python functions, ours and everybody's, from the decoding of the data to the unlocking of the
folder. Prints how many were killed. Exits with what `assert_same_run` and the other assertions say.
"""

import os
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path

import filelock  # noqa: F401
import torch
import tqdm  # noqa: F401
from helpers import TINY, assert_same_run

import train
from resnet_min.errors import UserError
from resnet_min.files import write_whole
from resnet_min.runs import environment, job  # noqa: F401  (what a start imports is imported once, here)
from resnet_min.training import checkpoint
from resnet_min.viz import figures

EPOCHS = 3
FLAGS = ["--image-size", "16", "--epochs", str(EPOCHS), "--val-size", "6"]
FILES = ["best.pt", "config.json", "curves.png", "environment.jsonl", "last.pt", "metrics.jsonl", "steps.jsonl"]
# What would be most of a start and of the moments in it, and is nothing of ours:
environment.revision = lambda: None
figures.curves = lambda runs, path, figure: write_whole(path, "a picture")
torch.use_deterministic_algorithms(False)  # imports torch's compiler


def start(arguments, most):
    """Whether `train.main(arguments)` ends in a process that is killed after `most` calls; and how many it made."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(told)
            calls = 0

            def count(frame, event, argument):
                nonlocal calls
                calls += 1
                if calls == most:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.stdout = open("log", "a")
            sys.setprofile(count)
            try:
                train.main(arguments)
            except UserError as error:
                if "has already finished" not in str(error):  # and was killed while it left
                    raise
            sys.setprofile(None)
            os.write(tell, str(calls).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(tell)
    with open(told) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"{arguments} failed, see its traceback"
    return not os.WIFSIGNALED(status), int(said or 0)


def kill_and_go_on(images, cache, flags, draw, calls):
    """A run in `killed`, killed about three times; how often."""
    for folder in ("killed", cache):
        shutil.rmtree(folder, ignore_errors=True)
    kills = 0
    while True:
        begin = [*TINY, "--data", images, *flags, "--out", "killed", "--overwrite"]
        begun = Path("killed/last.pt").exists()
        most = draw.randrange(1, calls) if draw.random() < 0.9 else -1
        ended, _ = start(["--resume", "killed"] if begun else begin, most)
        if Path("killed/last.pt").exists():
            assert checkpoint.load("killed")["epoch"] <= EPOCHS
        if ended:
            return kills
        kills += 1


def main(images, wanted, seed):
    torch.set_num_threads(1)
    draw, kills, runs = random.Random(seed), 0, 0
    cache = os.path.join(images, ".resnet_min_cache")
    ended, calls = start([*TINY, "--data", images, *FLAGS, "--out", "whole"], -1)
    assert ended and sorted(os.listdir("whole")) == FILES
    print(f"{calls:,} calls", flush=True)
    while kills < wanted:
        flags = FLAGS + (["--save-every", "1e-9"] if draw.random() < 0.5 else [])  # minutes: after every step
        kills += kill_and_go_on(images, cache, flags, draw, calls)
        runs += 1
        assert sorted(os.listdir("killed")) == FILES
        assert len(os.listdir(cache)) == 1
        assert_same_run("whole", "killed", "last.pt")
        assert_same_run("whole", "killed", "best.pt")
    print(f"{kills} kills in {runs} runs")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
