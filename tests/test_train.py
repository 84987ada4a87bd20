import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_same_run, rows

import train
from resnet_min.errors import UserError, run_script
from resnet_min.model import resnet
from resnet_min.recipes import RECIPES
from resnet_min.runs import job
from resnet_min.tasks import read_config
from resnet_min.training import checkpoint, loop

evaluate = importlib.import_module("eval")
ROOT = Path(__file__).parent.parent


def run(folder, *flags):
    train.main([*TINY, "--data", folder, "--image-size", "16", *map(str, flags)])


def test_a_run_writes_what_it_promises(folder, capsys):
    run(folder, "--epochs", 2)
    run(folder, "--epochs", 1, "--plain")
    out = capsys.readouterr().out
    assert sorted(os.listdir("runs")) == ["resnet20-plain-shades-1", "resnet20-shades-1"]
    path = Path("runs/resnet20-shades-1")
    assert sorted(os.listdir(path)) == [
        "config.json", "curves.png", "environment.jsonl", "last.pt", "metrics.jsonl", "steps.jsonl"
    ]  # fmt: skip
    lines = rows(path)
    assert [line["epoch"] for line in lines] == [1, 2] and [line["step"] for line in lines] == [5, 10]
    wanted = {"epoch", "step", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    assert all(set(line) == wanted for line in lines)
    steps = [json.loads(line) for line in (path / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 11)) and set(steps[0]) == {"step", "lr", "loss"}
    config = json.loads((path / "config.json").read_text())
    assert read_config(config).data == str(Path(folder).resolve())
    assert "best on test" in out and "only to compare" in out
    assert " 2 epochs in " in out and " 1 epoch in " in out


def test_the_test_set_does_not_select(folder, capsys):
    run(folder, "--epochs", 3, "--val-size", 8, "--out", "r")
    lines = rows("r")
    assert ["test_accuracy" in line for line in lines] == [False, False, True]
    best = max(lines, key=lambda line: line["val_accuracy"])["epoch"]
    assert checkpoint.load("r/best.pt")["epoch"] == best
    assert "best on test" not in capsys.readouterr().out


def test_statistics_frozen_in_the_last_epochs(folder):
    """Batch norms then train as they are evaluated, and their running statistics stay."""

    def statistics(path):
        return {name: value for name, value in checkpoint.load(path)["model"].items() if "running" in name}

    flags = "--frozen-stats", 0.5, "--schedule", "constant", "--seed", 3
    run(folder, "--epochs", 2, *flags, "--out", "half")
    run(folder, "--epochs", 1, "--schedule", "constant", "--seed", 3, "--out", "one")
    run(folder, "--epochs", 2, "--schedule", "constant", "--seed", 3, "--out", "none")
    half, one, none = map(statistics, ("half", "one", "none"))
    assert all(torch.equal(half[name], one[name]) for name in one)
    assert not all(torch.equal(none[name], one[name]) for name in one)
    assert rows("half")[0]["train_loss"] == rows("none")[0]["train_loss"]
    assert rows("half")[1]["train_loss"] != rows("none")[1]["train_loss"]


def test_validation_every_so_many_epochs(folder, drawn):
    run(folder, "--epochs", 5, "--val-size", 8, "--val-every", 2, "--out", "r")
    lines = rows("r")
    assert [line["epoch"] for line in lines if "val_accuracy" in line and "val_loss" in line] == [2, 4, 5]
    best = max((line for line in lines if "val_accuracy" in line), key=lambda line: line["val_accuracy"])["epoch"]
    assert checkpoint.load("r/best.pt")["epoch"] == best
    (curves,) = drawn
    assert [2, 4, 5] in [list(line.get_xdata()) for axes in curves.axes for line in axes.lines]
    run(folder, "--epochs", 3, "--val-every", 3, "--out", "t")
    assert ["test_accuracy" in line for line in rows("t")] == [False, False, True]


def test_a_scaled_recipe(folder, capsys):
    flags = ("--recipe", "nctu-resnet18", *TINY, "--data", folder, "--image-size", "16", "--limit", "17", "--out", "r")
    train.main([*flags, "--scale", "0.003"])
    out = capsys.readouterr().out
    said = "1 of 164 epochs, 49.2% of the training images, schedule scaled by 0.003, 17 images of each split"
    assert f"the recipe's schedule, shrunk: {said}\n" in out and "--scale 0.003 (" not in out
    assert "8 train, 12 test" in out and len(rows("r")) == 1
    assert json.loads(Path("r/config.json").read_text())["scale"] == 0.003


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--val-size", 6, "--schedule", "cosine"),
        ("--amp", "bf16"),
        ("--grow", 8, 12),  # within the part of 12 pixels
        ("--freeze", "first-last", "--freeze-epochs", 1),  # resumed within the second phase
        ("--freeze", "first-last", "--freeze-epochs", 2, "--freeze-lr", 0.2, "--freeze-bn"),  # and where it begins
    ],
    ids=str,
)
def test_resume_is_bit_exact(folder, monkeypatch, flags):
    run(folder, "--epochs", 4, "--out", "whole", *flags)

    real, calls = loop.train_one_epoch, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:  # in the middle of the third epoch
            options["after_step"] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        return real(*args, **options)

    monkeypatch.setattr(loop, "train_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "--epochs", 4, "--out", "parts", *flags)
    monkeypatch.setattr(loop, "train_one_epoch", real)
    with open("parts/metrics.jsonl", "a") as file:  # an epoch that was logged and never saved, and a line cut short
        file.write(json.dumps({**rows("parts")[-1], "epoch": 3, "train_loss": 99}) + '\n{"epo')
    torch.randn(7)  # whatever the new process has drawn before
    train.main(["--resume", "parts"])
    assert_same_run("whole", "parts")


def test_the_second_phase_trains_everything(folder):
    flags = ("--freeze", "first-last", "--freeze-epochs", 2, "--freeze-lr", 0.2, "--milestones", 1, "--epochs", 2 + 2)
    run(folder, *flags, "--out", "r")
    rates = [line["lr"] for line in rows("r")]
    assert rates == pytest.approx([0.2, 0.2, 0.05, 0.005])  # the milestone counts from the second phase
    run(folder, "--freeze", "first-last", "--epochs", 1, "--out", "one")
    run(folder, "--freeze", "first-last", "--epochs", 2, "--out", "two")
    one, two, whole = (checkpoint.load(path)["model"] for path in ("one", "two", "r"))
    for name, weight in one.items():
        moves = name in ("conv1.weight", "fc.weight", "fc.bias") or "running" in name or "tracked" in name
        assert torch.equal(weight, two[name]) != moves, name
        assert not torch.equal(weight, whole[name]), name


def test_resume_after_a_kill(folder):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--data", folder, "--image-size", "16", "--epochs", "400"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--out", "killed"], env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    done = checkpoint.load("killed")["epoch"]
    assert 3 <= done < 400
    saved = checkpoint.load("killed")
    saved["config"]["epochs"] = done + 2
    checkpoint.save("killed/last.pt", saved)
    train.main(["--resume", "killed"])
    run(folder, "--epochs", done + 2, "--out", "whole")
    assert_same_run("killed", "whole")


def test_an_earlier_checkpoint_does_not_rewind_its_run(folder):
    run(folder, "--epochs", 2, "--val-size", 8, "--out", "r")
    saved = checkpoint.load("r/best.pt")
    checkpoint.save("r/best.pt", {**saved, "epoch": 1, "step": saved["step"] // saved["epoch"]})
    before = {path: path.read_bytes() for path in Path("r").iterdir()}
    said = (
        r"r/best.pt is of epoch 1 and would replace r/last.pt, of epoch 2: --resume r goes on; .* a folder of its own"
    )
    with pytest.raises(UserError, match=said):
        train.main(["--resume", "r/best.pt"])
    assert {path: path.read_bytes() for path in Path("r").iterdir()} == before
    Path("r/last.pt").write_bytes(b"damaged")
    train.main(["--resume", "r/best.pt"])
    assert checkpoint.load("r/last.pt")["epoch"] == 2


def test_resume_goes_on_longer_with_epochs(folder):
    run(folder, "--epochs", 1, "--out", "r", "--schedule", "constant")
    with pytest.raises(UserError, match="has already finished its 1 epoch;"):
        train.main(["--resume", "r"])
    with pytest.raises(UserError, match=r"remove --lr$"):
        train.main(["--resume", "r", "--lr", "0.5"])
    train.main(["--resume", "r/last.pt", "--epochs", "2"])
    run(folder, "--epochs", 2, "--out", "whole", "--schedule", "constant")
    assert_same_run("r", "whole")


def test_resume_refuses_other_data(folder):
    run(folder, "--epochs", 1, "--out", "r")
    for path in list(Path(folder, "train").rglob("1*.png")):
        path.unlink()
    with pytest.raises(UserError, match="not the data that"):
        train.main(["--resume", "r", "--epochs", "2"])


def test_a_run_is_not_overwritten(folder):
    run(folder, "--epochs", 1, "--out", "r")
    before = Path("r/last.pt").read_bytes()
    with pytest.raises(UserError, match="already holds a run: --resume r goes on, --overwrite replaces it"):
        run(folder, "--epochs", 1, "--out", "r")
    assert Path("r/last.pt").read_bytes() == before
    Path("r/last.pt").rename("elsewhere.pt")
    with pytest.raises(UserError, match="already holds a run: --overwrite replaces it"):
        run(folder, "--epochs", 1, "--out", "r")
    Path("r/tensorboard").mkdir()
    Path("r/tensorboard/events.out").write_text("of the old run")
    run(folder, "--epochs", 1, "--out", "r", "--overwrite", "--seed", 3)
    assert not Path("r/tensorboard").exists()
    assert len(rows("r")) == 1 and Path("r/last.pt").read_bytes() != before


def test_divergence_names_step_and_rate_and_keeps_the_last_good_checkpoint(folder, monkeypatch):
    run(folder, "--epochs", 1, "--out", "r", "--schedule", "constant")
    before = Path("r/last.pt").read_bytes()
    monkeypatch.setattr("resnet_min.training.optimizer.learning_rate", lambda *_: 1e30)
    with pytest.raises(UserError, match=r"epoch 2: the loss is \w+ at step \d of 5, learning rate 1e\+30; .*epoch 1"):
        train.main(["--resume", "r", "--epochs", "2"])
    assert Path("r/last.pt").read_bytes() == before
    with pytest.raises(UserError, match="no epoch was finished"):
        run(folder, "--epochs", 2, "--out", "new")
    assert not Path("new/last.pt").exists()


def test_dry_run_says_what_would_happen_and_leaves_nothing(folder, capsys):
    run(folder, "--dry-run", "--epochs", 164)
    out = capsys.readouterr().out
    assert "\n164 epochs of 5 steps of 8 images; learning rates:\n" in out
    assert "dark 17, light 17" in out and "from epoch 82: 0.005" in out and "frozen: nothing" in out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--arch", "resnet19"], "unknown arch 'resnet19', did you mean resnet1"),
        (["--recipe", "digit"], "unknown recipe 'digit', did you mean digits?"),
        (["--scale", "0.1"], "--scale shrinks the schedule of a recipe: name it with --recipe"),
        (["--epochs", "0"], "--epochs must be at least 1; got 0"),
        (["--batch-size", "99"], "--batch-size 99 is larger than the data"),
        (["--arch", "resnet18", "--batch-size", "11", "--stem", "imagenet"], "choose another size"),  # 34 images, 16x16
        (["--data", "nowhere"], "nowhere"),
        (["--lr", "nan"], "--lr is a finite number; got nan"),
        (["--lr", "0"], "--lr must be positive"),
        (["--grow", "0", "16"], "--grow must be from 1 to 4,096 pixels; got 0 16"),
        (["--grow", "16", "--cuda-graph"], "--cuda-graph records steps of one size of images: leave out --grow"),
        (["--milestones", "8", "4"], "must be positive and increasing"),
        (["--milestones", "200"], "--milestones 200 is never reached: the schedule ends after 164 epochs"),
        (
            ["--milestones", "5", "820", "--milestone-unit", "iterations"],
            "820 is never reached: the schedule ends after 820 iterations",
        ),
        (["--milestones", "2", "--schedule", "cosine"], "--milestones goes with --schedule step; this is cosine"),
        (["--gamma", "0.5", "--schedule", "cosine"], "--gamma goes with --schedule step; this is cosine"),
        (["--warmup", "0.7", "--schedule", "step"], "--warmup goes with --schedule onecycle; this is step"),
        (["--t-max", "7"], "--t-max goes with --schedule cosine; this is step"),
        (["--momentum", "0.3", "--optimizer", "adam"], "--momentum goes with --optimizer sgd; this is adam"),
        (["--overwrite"], "--overwrite replaces the run in --out: name it"),
        (["--crop", "64"], "--crop is an option of --task crowd; this is --task classify"),
        (["--pretrained", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--pretrained", "imagenet"], "torchvision has no weights for resnet20"),
        (["--option", "B", "--plain"], "option B says which shortcuts, and a plain network has none"),
        (["--arch", "resnet18", "--option", "A"], "the shortcuts of resnet18 are option B"),
        (["--arch", "resnet20", "--freeze-children", "10"], "nothing to train; 9 leaves fc alone"),
        (["--device", "meta"], "--device is auto, cpu, cuda or cuda:N; got 'meta'"),
        (["--device", "mps"], "--device is auto, cpu, cuda or cuda:N; got 'mps'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available here"),
        (["--resume", "nowhere"], "no checkpoint at nowhere"),
        (["--out", "shades/train/dark/0.png"], "is a file"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(folder, flags, says, capsys):
    arguments = (
        flags if flags[0] in ("--resume", "--recipe") else ["-a", "resnet20", "--data", folder, "-b", "8", *flags]
    )
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: train.main(arguments))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and says in err and err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_full_disk_is_one_line(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "last.pt")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: run(folder, "--epochs", 1))
    assert stop.value.code == 2 and capsys.readouterr().err == "error: No space left on device: last.pt\n"


def test_half_an_environment_of_torchrun_is_one_clear_error(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set: start .* by torchrun"):
        run(folder, "--epochs", 1)
    assert not Path("runs").exists()


def test_help_does_not_wait_for_torch():
    code = "import sys, train; train.get_parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_run_from_other_weights(folder, capsys):
    run(folder, "--epochs", 1, "--out", "one")
    flags = ("--pretrained", "one", "--freeze-children", 9, "--freeze-bn", "--stem", "cifar-pool", "--epochs", 2)
    run(folder, *flags, "--dry-run")
    assert "weights: one\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="no checkpoint at nowhere.pt"):
        run(folder, "--pretrained", "nowhere.pt", "--dry-run")
    run(folder, *flags, "--out", "two")
    assert "weights: one\n" in capsys.readouterr().out
    before, after = (checkpoint.load(path)["model"] for path in ("one", "two"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight", "fc.bias"]
    run(folder, *flags, "--stem", "imagenet", "--out", "three")
    assert "weights: one, except conv1.weight\n" in capsys.readouterr().out


def test_shortcuts_of_option_b_are_trained_resumed_and_evaluated(folder, capsys):
    wide = ("--widths", 8, 8, 16)  # not 4: torch 2.14.1 frees memory twice in the gradient of such a projection
    run(folder, *wide, "--option", "B", "--epochs", 1, "--out", "b")
    train.main(["--resume", "b", "--epochs", "2"])
    evaluate.main(["b"])
    assert capsys.readouterr().out.count("model: resnet20, option B, cifar stem") == 3
    weight = "layer3.0.downsample.0.weight"
    saved, drawn = checkpoint.load("b"), resnet("resnet20", 2, blocks=(1, 1, 1), widths=(8, 8, 16), option="B")
    assert saved["model"][weight].shape == drawn.state_dict()[weight].shape
    run(folder, *wide, "--pretrained", "b", "--option", "B", "--epochs", 1, "--out", "c")
    with pytest.raises(UserError, match="holds another architecture: 12 tensors differ, such as layer2.0.downsample"):
        run(folder, *wide, "--pretrained", "b", "--epochs", 1, "--out", "d")


def test_resized_turned_and_limited(folder, capsys):
    run(folder, "--resize", 24, "--rotation", 30, "--limit", 10, "--val-size", 12, "--epochs", 1, "--out", "r")
    out = capsys.readouterr().out
    assert "10 train, 10 val, 10 test; 16x16" in out and "MACs for an image of 24x24" in out
    assert read_config(checkpoint.load("r")["config"]).input_size == (24, 24)


def test_flags_that_contradict_a_recipe_win_and_say_so():
    flags = {"data": "digits", "lr": 0.1, "widths": [4, 4, 8]}
    *_, says = job.describe_recipe("digits", flags, job.configure(flags, "digits"))
    assert says == "flags override the recipe: --lr 0.1 (the recipe's: 0.2), --widths 4 4 8 (the recipe's: None)"


def test_a_flag_that_a_recipe_does_not_go_with_names_both():
    says = r"--nesterov needs --optimizer sgd .*; --no-nesterov drops it \(with the settings of --recipe digits\)"
    with pytest.raises(UserError, match=says):
        job.configure({"optimizer": "adam"}, "digits")
    assert job.configure({"optimizer": "adam", "nesterov": False}, "digits").optimizer == "adam"
    assert job.configure({"schedule": "cosine"}, "nctu-resnet18").milestones  # idle, and nobody typed it


def test_a_scaled_schedule_takes_no_other_length():
    with pytest.raises(UserError, match="--scale and --epochs both say how long the schedule is: give one of them"):
        job.configure({"scale": 0.5, "epochs": 3}, "digits")


def test_flags_override_a_recipe():
    for name in RECIPES:
        config = job.configure({"data": "digits", "epochs": 51}, name)
        assert (config.data, config.epochs) == ("digits", 51)
    assert job.configure({}, "nctu-resnet50-plain").plain
    assert job.configure({"data": "digits"}, None).schedule == "onecycle"
    assert job.configure({"data": "x"}, None).mean is None
