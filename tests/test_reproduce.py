import dataclasses
import json
from pathlib import Path

import pytest

import reproduce
from resnet_min import engine, plots, recipes
from resnet_min.errors import UserError


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Every preset with a small net and the digits, and empty files for pictures: only what these cost is left out."""
    monkeypatch.chdir(tmp_path)
    for name, preset in list(recipes.RECIPES.items()):
        if preset.settings.get("task") == "crowd":
            continue
        stages = 3 if preset.settings["arch"] in ("resnet20", "resnet56") else 4
        # No fewer channels: backward, torch 2.14's strided 1x1 convolution of 8 channels writes out of bounds.
        tiny = dict(preset.settings, data="digits", blocks=(1,) * stages, widths=(16,) * stages)
        monkeypatch.setitem(recipes.RECIPES, name, dataclasses.replace(preset, settings=tiny))
    monkeypatch.setattr(reproduce, "no_weights", lambda arch: "no network")
    monkeypatch.setattr(plots, "curves", lambda runs, path, figure: (path.parent.mkdir(exist_ok=True), path.touch()))


def rows(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_every_preset_is_alive(capsys):
    reproduce.main(["all", "--smoke"])
    text = Path("runs/smoke/RESULTS.md").read_text()
    out = capsys.readouterr().out
    names = [name for name, preset in recipes.RECIPES.items() if preset.settings.get("task") != "crowd"]
    for name in names:
        assert [row["epoch"] for row in rows(f"runs/smoke/{name}")] == [1, 2], name
        assert f"| {name} " in text
    assert text.count("**random**, ImageNet's not to be had") == 4 and "accuracy" not in text
    assert "learning rates" not in out and not list(Path("runs").rglob("*.pt"))
    reproduce.main(["all", "--smoke"])
    assert capsys.readouterr().out.count(": done\n") == len(names)


def test_all_begins_with_what_tells_most():
    chosen = reproduce.select(["all"], crowds=True)
    assert chosen[:4] == ["digits", "nctu-resnet18", "nctu-resnet18-plain", "nctu-resnet50"]
    assert set(chosen) == set(recipes.RECIPES) and len(chosen) == len(recipes.RECIPES)
    assert reproduce.select(["gupta-f*", "digits", "gupta-freeze6"], crowds=False) == [
        "gupta-finetune", "gupta-freeze6", "gupta-freeze10", "digits"
    ]  # fmt: skip


def test_a_sweep_goes_on_where_it_was(monkeypatch, capsys):
    names = ["digits", "ours-resnet20", "gupta-scratch"]
    reproduce.main([*names, "--smoke", "--runs", "whole"])
    real, calls = engine.train_one_epoch, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 4:  # the second epoch of the second run
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(engine, "train_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.main([*names, "--smoke", "--runs", "parts"])
    text = Path("parts/RESULTS.md").read_text()
    assert "| digits " in text and "| ours-resnet20 " in text and "gupta" not in text
    calls.clear(), capsys.readouterr()
    monkeypatch.setattr(engine, "train_one_epoch", real)
    reproduce.main([*names, "--smoke", "--runs", "parts"])
    out = capsys.readouterr().out
    assert "parts/digits: done" in out and out.count("\nepoch 1/2") == 1 and out.count("\nepoch 2/2") == 2
    for name in names:
        assert [row["train_loss"] for row in rows(f"whole/{name}")] == [
            row["train_loss"] for row in rows(f"parts/{name}")
        ]
        assert len(Path("parts", name, "environment.jsonl").read_text().splitlines()) == 1 + (name == "ours-resnet20")


def test_what_fails_leaves_the_others_be(monkeypatch):
    real = engine.train_one_epoch

    def diverging(net, *args, **options):
        if net.conv1.kernel_size == (7, 7):
            raise engine.Diverged("the loss is nan")
        return real(net, *args, **options)

    monkeypatch.setattr(engine, "train_one_epoch", diverging)
    with pytest.raises(UserError, match="1 of 3 recipes failed: qiu-resnet18$"):
        reproduce.main(["digits", "qiu-resnet18", "yuan-v2-sgd", "--smoke"])
    text = Path("runs/smoke/RESULTS.md").read_text()
    assert "| failed: epoch 1: the loss is nan; no epoch was finished before it; try a lower --lr" in text
    assert "| digits " in text and "| yuan-v2-sgd " in text


def test_seeds_and_the_table_alone(monkeypatch, capsys):
    monkeypatch.setitem(recipes.RECIPES["digits"].settings, "epochs", 1)
    reproduce.main(["digits", "--seeds", "2"])
    assert sorted(p.name for p in Path("runs/reproduce").iterdir()) == ["digits", "digits-seed1"]
    assert rows("runs/reproduce/digits")[0]["train_loss"] != rows("runs/reproduce/digits-seed1")[0]["train_loss"]
    text = Path("RESULTS.md").read_text()
    assert "(n = 2)" in text and "chosen by looking at the test set" in text
    Path("RESULTS.md").unlink(), capsys.readouterr()
    reproduce.main([])
    assert Path("RESULTS.md").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digit"], "unknown recipe 'digit', did you mean digits?"),
        (["x*"], "no recipe fits 'x\\*'"),
        (["digits", "--seeds", "0"], "--seeds must be at least 1; got 0"),
        ([], "nothing has run in runs/reproduce"),
    ],
)
def test_bad_input(arguments, says):
    with pytest.raises(UserError, match=says):
        reproduce.main(arguments)
    assert not Path("RESULTS.md").exists()


def test_a_folder_that_holds_another_experiment_is_left_alone():
    reproduce.main(["digits", "--smoke", "--runs", "r"])
    before = Path("r/digits/metrics.jsonl").read_text()
    with pytest.raises(UserError, match="1 of 1 recipes failed"):
        reproduce.main(["digits", "--runs", "r"])
    assert Path("r/digits/metrics.jsonl").read_text() == before
    assert "holds another experiment (--limit 16, wanted None; " in Path("RESULTS.md").read_text()


def test_data_that_cannot_be_had_is_one_error(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES["nctu-resnet18"].settings, "data", "cifar10")
    with pytest.raises(UserError, match="--data nowhere is neither a folder"):
        reproduce.main(["all", "--smoke", "--data", "nowhere"])
    assert not Path("runs").exists()
