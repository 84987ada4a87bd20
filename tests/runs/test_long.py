"""Runs that are long: memory and open files stay as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, make_shades

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
MEASURED = """
import os, sys
import train
from resnet_min.runs import folder, pace

room, name, every = {"epochs": (folder.Run, "log", 1), "steps": (pace.Pace, "ask", 1000)}[sys.argv.pop(1)]
real, calls = getattr(room, name), 0

def measured(*args, **options):
    global calls
    calls += 1
    if calls % every == 0:
        with open("/proc/self/statm") as file:
            pages = file.read().split()[1]
        print("measured", pages, len(os.listdir("/proc/self/fd")), file=sys.stderr)
    return real(*args, **options)

setattr(room, name, measured)
train.main(sys.argv[1:])
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc"),
]


def measure(unit, *flags):
    """Pages in memory and open files at each of a run's epochs, or at each thousandth of its steps."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, unit, *TINY, "--data", "shades", "--out", "r", *map(str, flags)],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = re.findall(r"^measured (\d+) (\d+)$", done.stderr, re.M)
    return zip(*(map(int, line) for line in lines), strict=True)


def test_two_hundred_epochs_take_no_more_memory_than_a_few(folder):
    pages, files = measure("epochs", "--image-size", 16, "--epochs", 200, "--limit", 16, "--val-size", 6)
    assert len(pages) == 200
    print(f"epoch 20: {pages[19]} pages, epoch 200: {pages[199]}; open files: {sorted(set(files))}")
    assert pages[199] <= 1.02 * pages[19] and len(set(files)) == 1


def test_a_day_of_steps_takes_no_more_memory_than_a_minute(tmp_path, monkeypatch):
    """Scaled to a twentieth, and to the smallest of nets and batches.

    resnet20 trains on 857 images a second (results/training-resnet20-xeon.json): a day is 86,400 * 857 / 128, about
    578,000 steps of 128 images. Here they are 30,000 steps, of one image of 8x8 each, in 3 epochs, each saved every
    second or so: what a step left behind would show as what a day's left behind, twentyfold.
    """
    monkeypatch.chdir(tmp_path)
    make_shades(tmp_path / "shades", train=10)
    for path in list(Path("shades", "train").rglob("*.png")):
        for copy in range(499):
            os.link(path, path.with_name(f"{path.stem}-{copy}.png"))
    net = "--blocks 1 --widths 4 --image-size 8 --batch-size 1 --lr 0.01".split()
    pages, files = measure("steps", *net, "--epochs", 3, "--val-size", 0, "--save-every", 0.02)
    assert len(pages) == 30
    print(f"pages at every thousandth step: {pages}; open files: {sorted(set(files))}")
    assert pages[-1] <= 1.02 * pages[0] and len(set(files)) == 1
    assert pages[-1] <= 1.002 * pages[10]  # after the first epoch: less than 100 bytes a step
