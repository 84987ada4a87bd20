import importlib
import json
import os
import signal
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_part
from PIL import Image
from processes import free_port, in_world, run_world

import train
from resnet_min import ops
from resnet_min.config import Config
from resnet_min.data.batches import share
from resnet_min.errors import UserError, run_script
from resnet_min.model import resnet
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import checkpoint, loop
from resnet_min.training.distributed import joined, launch
from resnet_min.training.hardware import Hardware
from resnet_min.training.optimizer import make_optimizer

NETS = {
    "small": dict(arch="resnet20", blocks=(1,), widths=(4,)),
    "pad": dict(arch="resnet20", blocks=(1, 1), widths=(4, 8)),
    "projection": dict(arch="resnet18", blocks=(1, 1), widths=(8, 16)),
}
TINY = "--arch resnet20 --blocks 1 1 --widths 4 8 --batch-size 8 --lr 0.05 --amp off --dropout 0.3".split()
RAGGED = [8, 8, 7, 8, 1, 8, 2]  # images of a batch: they do not divide, or are fewer than the processes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An image folder of two classes that differ in colour, as the working directory's `shades`."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 17), ("test", 8)):
        for name, level in (("dark", 60), ("light", 180)):
            (tmp_path / "shades" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (level + draw.integers(-50, 50, (16, 16, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "shades" / split / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return "shades"


def trained(*args):
    with joined() as world:
        return train_net(world, *args)


def train_net(world, sizes, dtype=torch.float32, lr=0.05, net="pad", sync_bn=True, kernels="auto"):
    """(losses, figure, weights and statistics) after a step on a batch of each of `sizes`."""
    ops.set_backend(kernels)
    torch.manual_seed(0)
    net = resnet(num_classes=5, dropout=0.3, **NETS[net]).to(dtype, memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(0)
    batches = []
    for size in sizes:
        images, labels = torch.randn(size, 3, 8, 8, generator=draw), torch.randint(0, 5, (size,), generator=draw)
        mine = share(size, world.part)
        batches.append((images[mine].to(dtype, memory_format=torch.channels_last), labels[mine]))
    model, optimizer = world.parallel(net, sync_bn), make_optimizer(Config(wd=1e-3), net)
    where, task = Hardware(torch.device("cpu"), dtype, world), ClassifyConfig(label_smoothing=0.1).make_task()
    losses, figure = loop.train_one_epoch(model, batches, optimizer, [lr] * len(sizes), where, task.loss)
    world.settle(net)
    return losses, figure, net.state_dict()


def assert_like_one(several, one, tolerance):
    """Every process ends with the same bits, and near what one by itself does."""
    for losses, figure, state in several:
        torch.testing.assert_close(losses, one[0], rtol=0, atol=tolerance)
        assert figure == pytest.approx(one[1])
        assert state.keys() == one[2].keys()
        for name, value in state.items():
            assert torch.equal(value, several[0][2][name]), name
            torch.testing.assert_close(value, one[2][name], rtol=0, atol=100 * tolerance, msg=name)


@pytest.mark.parametrize(
    ("size", "net", "kernels"), [(2, "pad", "auto"), (3, "projection", "auto"), (3, "pad", "reference")]
)
def test_several_processes_train_as_one_does(size, net, kernels):
    sizes = (RAGGED * 3)[:20]
    args = (sizes, torch.float32, 0.05, net, True, kernels)
    assert_like_one(in_world(size, trained, *args), trained(*args), 1e-4)
    ops.set_backend("auto")


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_hundred_steps_in_float64(size):
    sizes = (RAGGED * 29)[:200]
    args = (sizes, torch.float64, 0.02, "small")
    assert_like_one(in_world(size, trained, *args), trained(*args), 1e-8)


def test_without_synchronised_statistics_processes_still_agree():
    ours, theirs = in_world(2, trained, [8, 7, 8], torch.float32, 0.05, "pad", False)
    one = trained([8, 7, 8])
    for name, value in ours[2].items():
        assert torch.equal(value, theirs[2][name]), name
    assert not torch.allclose(ours[0], one[0], atol=1e-4)


# ---- the scripts ----


def run(folder, *flags):
    train.main([*TINY, "--data", folder, "--image-size", "16", *map(str, flags)])


def resume(*args):
    train.main(["--resume", *args])


def run_until(folder, steps, *flags):
    """Die, as by SIGKILL, in rank 1 after so many steps of its own."""
    real, taken = loop.set_rate, []

    def count(*args):
        taken.append(1)
        if len(taken) > steps and os.environ["RANK"] == "1":
            os._exit(9)
        return real(*args)

    loop.set_rate = count
    run_script(lambda: run(folder, *flags))


def content(run):
    """All that is the same to the bit in runs that are the same."""
    saved = checkpoint.load(run)
    weights = [*saved["model"].values(), *(s["momentum_buffer"] for s in saved["optimizer"]["state"].values())]
    return b"".join(t.numpy().tobytes() for t in [*weights, saved["rng"]["cpu"]]), Path(run, "steps.jsonl").read_text()


def losses(run):
    return [json.loads(line)["loss"] for line in Path(run, "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "freeze", [pytest.param((), marks=pytest.mark.slow), ("--freeze", "first-last", "--freeze-epochs", 1)], ids=str
)
def test_a_run_of_several_is_like_a_run_of_one(folder, freeze):
    flags = ("--epochs", 2, "--val-size", 5, *freeze)
    run(folder, *flags, "--out", "one")
    in_world(3, run, folder, *flags)  # 29 images: the last batch has 5
    assert sorted(os.listdir("runs")) == ["resnet20-shades-1"]
    several = Path("runs/resnet20-shades-1")
    assert sorted(os.listdir(several)) == sorted(os.listdir("one"))
    assert losses(several) == pytest.approx(losses("one"), abs=1e-4)
    rows = [[json.loads(line) for line in Path(r, "metrics.jsonl").read_text().splitlines()] for r in ("one", several)]
    for ours, theirs in zip(*rows, strict=True):
        for key in ours.keys() - {"seconds", "images_per_second"}:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-3), key
    assert json.loads((several / "environment.jsonl").read_text())["processes"] == 3


def test_a_killed_rank_ends_all_and_a_resumed_run_is_the_same_to_the_bit(folder):
    flags = ("--epochs", 3)
    in_world(3, run, folder, *flags, "--out", "whole")
    began = time.monotonic()
    codes, _ = run_world(3, run_until, folder, 8, *flags, "--out", "killed")  # in the second epoch of 5 steps
    assert codes == [2, 9, 2] and time.monotonic() - began < 30
    in_world(3, resume, "killed")
    assert content("killed") == content("whole")


def wait_for_nobody():
    """Rank 1 dies before it joins, and torchrun then sends SIGTERM to rank 0."""
    if os.environ["RANK"] == "1":
        os._exit(9)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    run_script(lambda: trained([8]))


def test_who_waits_for_one_that_never_comes_ends_by_sigterm(folder):
    began = time.monotonic()
    codes, _ = run_world(2, wait_for_nobody)
    assert codes == [-signal.SIGTERM, 9] and time.monotonic() - began < 30


@pytest.mark.slow
def test_another_number_of_processes_goes_on(folder, capsys):
    flags = ("--epochs", 3)
    run(folder, *flags, "--out", "whole")
    run_world(2, run_until, folder, 8, *flags, "--out", "killed")
    resume("killed")
    assert "processes: 1, before 2: the same batches" in capsys.readouterr().out
    assert losses("killed") == pytest.approx(losses("whole"), abs=1e-4)


@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 8], ids=["in the first epoch", "later"])
def test_what_torchrun_starts_again_goes_on(folder, steps):
    """With the same command line, in the folder of the same launch."""
    flags = ("--epochs", 2)
    in_world(2, run, folder, *flags, TORCHELASTIC_RUN_ID="one")
    run_world(2, run_until, folder, steps, *flags, TORCHELASTIC_RUN_ID="two")
    in_world(2, run, folder, *flags, TORCHELASTIC_RUN_ID="two", TORCHELASTIC_RESTART_COUNT="1")
    assert sorted(os.listdir("runs")) == ["resnet20-shades-1", "resnet20-shades-2"]
    assert content("runs/resnet20-shades-2") == content("runs/resnet20-shades-1")


def test_an_evaluation_shared_out_gives_the_same_figures(folder):
    run(folder, "--epochs", 1, "--out", "r")
    evaluation = importlib.import_module("eval")
    evaluation.main(["r", "-b", "5", "--json", "one.json"])
    in_world(3, evaluation.main, ["r", "-b", "5", "--json", "several.json", "--worst", "2"])
    one, several = (json.loads(Path(name).read_text()) for name in ("one.json", "several.json"))
    assert one.pop("images_per_second") and several.pop("images_per_second") and one == several


def test_a_crowd_counted_by_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_part(tmp_path / "crowd", train=5)
    flags = (
        "--strides",
        "1",
        "2",
        "--val-size",
        "0",
        "--epochs",
        "1",
        "--crop",
        "32",
        "--schedule",
        "constant",
        "--lr",
        "0.001",
    )
    for size, name in ((1, "one"), (3, "several")):
        command = ["--task", "crowd", "--data", "crowd", *TINY, "--batch-size", "4", *flags, "--out", name]
        del command[command.index("--dropout") : command.index("--dropout") + 2]
        in_world(size, train.main, command)
    assert losses("several") == pytest.approx(losses("one"), rel=1e-4)
    one, several = (json.loads(Path(name, "metrics.jsonl").read_text()) for name in ("one", "several"))
    assert several["test_mae"] == pytest.approx(one["test_mae"], rel=1e-4)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'; wanted a whole number of at least 1: start .* by torchrun"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''; wanted"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; wanted"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '9{79}; wanted"),
        ({"RANK": "x"}, "RANK is 'x'; wanted a whole number from 0 to 1: start"),
        ({"RANK": "5"}, "RANK is '5'; wanted a whole number from 0 to 1: start"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 2, but MASTER_ADDR is not set: start the processes by torchrun"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'; wanted a whole number from 0 to 1"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'; wanted a whole number from 1 to 65535"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999'; wanted a whole number from 1 to 65535"),
        ({"MASTER_ADDR": "no-such-host.invalid"}, "MASTER_ADDR is 'no-such-host.invalid', which has no address here"),
        ({"MASTER_ADDR": "a" * 70}, "MASTER_ADDR is 'a{70}', which has no address here"),
    ],
)
def test_an_environment_that_is_wrong_is_said_at_once(given, said, monkeypatch):
    whole = dict(WORLD_SIZE="2", RANK="1", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    for name, value in (whole | given).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("resnet_min.training.distributed.PATIENCE", timedelta(seconds=1))
    began = time.monotonic()
    with pytest.raises(UserError, match=f"^{said}") as error, joined():
        pass
    assert "\n" not in str(error.value) and time.monotonic() - began < 20


def test_a_port_that_is_taken(monkeypatch):
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        whole = dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for name, value in whole.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: something listens at MASTER_PORT already"), joined():
            pass


def test_a_launch_without_an_id_is_told_by_its_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert launch() == "job"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launch() == launch() != "none" and f":{os.getppid()}:" in launch()
