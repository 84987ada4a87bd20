"""Runs that an earlier version made still load, resume and evaluate.

fixtures/runs.tar.xz holds, as revision 7ea0511 wrote them, a finished and an interrupted run of classes (48 digits) and
of a crowd (`helpers.make_part`), three epochs each, with the figures of `eval.py --json`. They were made on a
processor with AVX2; elsewhere sums round otherwise, so figures are compared with room for that.
"""

import importlib
import json
from pathlib import Path

import pytest
from helpers import unpack_runs

import train
from resnet_min.training import checkpoint

evaluate = importlib.import_module("eval")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The folder of the four runs, the working directory."""
    monkeypatch.chdir(tmp_path)
    return unpack_runs(tmp_path)


def rows(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["classes", "crowd"])
def test_an_interrupted_run_resumes(runs, task):
    train.main(["--resume", f"{task}-interrupted"])
    for got, wanted in zip(rows(f"{task}-interrupted"), rows(f"{task}-finished"), strict=True):
        assert got.keys() == wanted.keys()
        for key in set(wanted) - {"seconds", "images_per_second"}:
            room = 100 / 48 if "accuracy" in key else 0.01 * abs(wanted[key])  # of one image, of rounding
            assert got[key] == pytest.approx(wanted[key], abs=1.5 * room), key
    ours, theirs = (checkpoint.load(f"{task}-{state}")["model"] for state in ("interrupted", "finished"))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-2 for name in theirs)


@pytest.mark.parametrize("task", ["classes", "crowd"])
def test_a_finished_run_goes_on(runs, task):
    train.main(["--resume", f"{task}-finished", "--epochs", "4"])
    assert [row["epoch"] for row in rows(f"{task}-finished")] == [1, 2, 3, 4]


@pytest.mark.parametrize("task", ["classes", "crowd"])
def test_a_finished_run_evaluates(runs, task):
    wanted = json.loads(Path(f"{task}-finished", "eval.json").read_text())
    evaluate.main([f"{task}-finished", "--amp", "off", "--json", "now.json"])
    got = json.loads(Path("now.json").read_text())
    assert got.keys() >= wanted.keys()
    for key in {"accuracy", "top5", "loss", "calibration_error", "mae", "mse", "parameters", "macs"} & wanted.keys():
        room = 100 / 360 if key in ("accuracy", "top5") else 0.01 * wanted[key]
        assert got[key] == pytest.approx(wanted[key], abs=1.5 * room), key
