"""What is seen of a run while it trains."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY

import train
from resnet_min.errors import UserError
from resnet_min.runs import watch
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training.loop import Progress


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min"), (95, "2 min"), (3600, "60 min"), (7200, "2.0 hours"),
     (34200, "9.5 hours"), (68400, "19 hours"), (3 * 86400, "3.0 days"), (40 * 86400, "40 days")],
)  # fmt: skip
def test_a_duration_in_words(seconds, said):
    assert watch.duration(seconds) == said


def job(device="cpu", **options):
    where = SimpleNamespace(device=torch.device(device))
    return SimpleNamespace(config=ClassifyConfig(**options), where=where, steps=10)


def test_the_time_left_is_of_the_whole_run_with_its_evaluations():
    watching, said, written = watch.Watch(job(epochs=6, val_every=2), done=0), [], []
    bar = SimpleNamespace(
        set_postfix_str=lambda text, refresh: said.append(f"{text}, drawn at once" if refresh else text),
        write=written.append,
    )
    progress = Progress(
        torch.full((10,), 2.0), torch.tensor(150.0), taken=4, seen=torch.tensor(4), seconds=watch.TELLING - 2
    )
    watching.after_step(bar, progress)
    assert said == ["run ends in 2 min, loss 2.0000, accuracy 37.50%, 0 images/s"] and not written  # 56 steps of 2 s
    assert watching.left(taken=4) == 56 * 2
    progress.seconds = 12.0
    watching.after_step(bar, progress)
    watching.after_step(bar, progress)
    assert written == ["about 3 min to go, by the first steps"]  # once
    assert watching.finished(2, 30.0, 30.0) == f"  {watch.duration(40 * 3 + 2 * 30)} left"  # after epochs 4 and 6
    assert watching.finished(3, 30.0, None) == f"  {watch.duration(30 * 3 + 2 * 30)} left"
    assert watching.finished(6, 30.0, 30.0) == ""


def test_the_time_left_where_only_the_evaluation_was_left_of_an_epoch():
    assert watch.Watch(job(epochs=3), done=0).finished(1, 200.0, None) == "  7 min left"  # no step was seen


def test_a_gpu_is_asked_for_values_at_every_fiftieth_step_alone():
    watching, said = watch.Watch(job("cuda", epochs=1), done=0), []
    bar = SimpleNamespace(set_postfix_str=lambda text, refresh: said.append(text))
    for taken in range(1, 101):
        watching.after_step(bar, Progress(torch.ones(100), torch.tensor(1.0), taken, seen=taken, seconds=1.0))
        assert len(said) == taken // 50


def test_a_dry_run_says_how_long_and_leaves_nothing(folder, capsys, monkeypatch):
    speeds = iter([100.0, 10.0])
    monkeypatch.setattr(watch.budget, "_speed", lambda take, most: next(speeds))
    train.main([*TINY, "--data", folder, "--epochs", "50", "--val-every", "5", "--dry-run"])
    *_, last = capsys.readouterr().out.splitlines()
    # 50 epochs of 34 images, and ten looks at 12
    assert last == "it would take about 29 s here: 100 images/s in training, 10 in evaluation"
    assert not Path("runs").exists()


def test_a_dry_run_of_one_that_goes_on_is_of_what_is_left(folder, capsys, monkeypatch):
    flags = [*TINY, "--data", folder, "--epochs", "3", "--val-every", "2", "--out", "run", "--schedule", "constant"]
    train.main(flags)
    speeds = iter([1.0, 1.0])
    monkeypatch.setattr(watch.budget, "_speed", lambda take, most: next(speeds))
    train.main(["--resume", "run", "--epochs", "5", "--dry-run"])
    *_, last = capsys.readouterr().out.splitlines()
    # two epochs of 34 images, and the looks at 12 after the fourth and the fifth
    assert last.startswith(f"it would take about {watch.duration(2 * 34 + 2 * 12)} here: ")


def test_main_returns_the_run_and_tensorboard_has_it(folder, capsys):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train.main([*TINY, "--data", folder, "--epochs", "2", "--out", "run", "--log", "tensorboard"])
    assert run.folder == Path("run") and [row["epoch"] for row in run.rows] == [1, 2]
    assert " left\n" in capsys.readouterr().out
    train.main(["--resume", "run", "--epochs", "3", "--log", "tensorboard"])
    read = events.EventAccumulator("run/tensorboard")
    read.Reload()
    tags = read.Tags()
    assert {"loss/train", "loss/test", "accuracy/test", "step/loss", "step/lr"} <= set(tags["scalars"])
    assert not {"epoch", "step", "lr"} & set(tags["scalars"])
    assert [event.step for event in read.Scalars("loss/train")][:2] == [row["step"] for row in run.rows]
    assert tags["images"] == ["curves"]
    scalars = [event.value for event in read.Scalars("loss/train")]
    assert scalars == pytest.approx([row["train_loss"] for row in run.rows] + scalars[2:])
    assert len(scalars) == 3 and len(read.Scalars("step/loss")) == run.rows[0]["step"] * 3


def test_tensorboard_sees_an_epoch_as_it_ends(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    board, done = watch.TensorBoard(tmp_path, 0), []
    monkeypatch.setattr(board.writer, "add_scalar", lambda *figure: done.append(figure))
    monkeypatch.setattr(board.writer, "flush", lambda: done.append("flushed"))
    board.log({"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 2.0}, [{"step": 3, "lr": 0.1, "loss": 2.5}])
    assert done == [("step/loss", 2.5, 3), ("step/lr", 0.1, 3), ("loss/train", 2.0, 3), "flushed"]


def test_tensorboard_is_an_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tensorboard\]'"):
        train.main([*TINY, "--data", folder, "--epochs", "1", "--out", "run", "--log", "tensorboard"])
    assert not Path("run").exists()


def test_without_it_the_run_to_overwrite_stays(folder, monkeypatch):
    flags = [*TINY, "--data", folder, "--epochs", "1", "--out", "run"]
    train.main(flags)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--log tensorboard needs an extra"):
        train.main([*flags, "--overwrite", "--log", "tensorboard"])
    assert Path("run/last.pt").is_file() and Path("run/curves.png").is_file()
