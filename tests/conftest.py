"""Fixtures of all tests: the devices to test on, the same seed, the figures that were drawn."""

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import make_shades
from hypothesis import settings

settings.register_profile("same", derandomize=True)  # a run tests what the one before it did
settings.load_profile("same")

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


# A job in the background ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The processes of `-n auto`: as many as processors, at most four, which share out their threads."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(4, processors)
    os.environ.setdefault("OMP_NUM_THREADS", str(processors // workers))
    return workers


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same weights and images in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.device(request.param)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that were drawn, in order."""
    from resnet_min.viz import figures

    made, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (made.append(figure), save(figure, path)))
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The images of `make_shades`, as the working directory's `shades`."""
    make_shades(tmp_path / "shades")
    monkeypatch.chdir(tmp_path)
    return "shades"
