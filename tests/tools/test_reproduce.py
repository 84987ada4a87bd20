import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_min import recipes
from resnet_min.errors import UserError
from resnet_min.recipes import scaled
from resnet_min.runs import budget, results, tables
from resnet_min.training import loop
from resnet_min.viz import figures
from tools import reproduce

REPOSITORY = Path(__file__).parents[2]
RECIPES_HERE = dict(recipes.RECIPES)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder: two classes of noise, 48 images to train on and 16 to test."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch, images):
    """Every recipe with a small net, few images, and empty files for pictures: only what these cost is left out."""
    monkeypatch.chdir(tmp_path)
    for name, item in list(recipes.RECIPES.items()):
        if item.settings.get("task") == "crowd":
            continue
        stages = 4 if item.settings["arch"] in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152") else 3
        # No fewer channels: backward, torch 2.14's strided 1x1 convolution of 8 channels writes out of bounds.
        tiny = dict(item.settings, data=str(images), blocks=(1,) * stages, widths=(16,) * stages)
        tiny["batch_size"] = 16
        if "resize" in tiny:
            tiny["resize"] = 40
        monkeypatch.setitem(recipes.RECIPES, name, dataclasses.replace(item, settings=tiny))
    monkeypatch.setattr(reproduce, "no_weights", lambda arch: "no network")
    monkeypatch.setattr(
        figures, "curves", lambda runs, path, figure: (path.parent.mkdir(exist_ok=True), path.write_text(""))
    )


def rows(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_every_recipe_is_alive(capsys):
    reproduce.main(["all", "--smoke"])
    text = Path("runs/smoke/RESULTS.md").read_text()
    out = capsys.readouterr().out
    names = [name for name, item in recipes.RECIPES.items() if item.settings.get("task") != "crowd"]
    for name in names:
        assert [row["epoch"] for row in rows(f"runs/smoke/{name}")] == [1, 2], name
        assert f"| {name} " in text
    assert text.count("**random**, ImageNet weights unavailable") == 4 and "accuracy" not in text
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
    real, calls = loop.train_one_epoch, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 4:  # the second epoch of the second run
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(loop, "train_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.main([*names, "--smoke", "--runs", "parts"])
    text = Path("parts/RESULTS.md").read_text()
    assert "| digits " in text and "| ours-resnet20 " in text and "gupta" not in text
    calls.clear(), capsys.readouterr()
    monkeypatch.setattr(loop, "train_one_epoch", real)
    reproduce.main([*names, "--smoke", "--runs", "parts"])
    out = capsys.readouterr().out
    assert "parts/digits: done" in out and out.count("\nepoch 1/2") == 1 and out.count("\nepoch 2/2") == 2
    for name in names:
        assert [row["train_loss"] for row in rows(f"whole/{name}")] == [
            row["train_loss"] for row in rows(f"parts/{name}")
        ]
        assert len(Path("parts", name, "environment.jsonl").read_text().splitlines()) == 1 + (name == "ours-resnet20")


def test_what_fails_leaves_the_others_be(monkeypatch):
    real = loop.train_one_epoch

    def diverging(net, *args, **options):
        if net.conv1.kernel_size == (7, 7):
            raise loop.Diverged("the loss is nan")
        return real(net, *args, **options)

    monkeypatch.setattr(loop, "train_one_epoch", diverging)
    with pytest.raises(UserError, match="1 of 3 recipes failed: qiu-resnet18$"):
        reproduce.main(["digits", "qiu-resnet18", "yuan-v2-sgd", "--smoke"])
    text = Path("runs/smoke/RESULTS.md").read_text()
    assert "| failed: epoch 1: the loss is nan; no epoch was finished; try a lower --lr" in text
    assert "| digits " in text and "| yuan-v2-sgd " in text


def test_seeds_and_the_table_alone(monkeypatch, capsys):
    monkeypatch.setitem(recipes.RECIPES["digits"].settings, "epochs", 1)
    reproduce.main(["digits", "--seeds", "2"])
    assert sorted(p.name for p in Path("runs/reproduce").iterdir()) == ["digits", "digits-seed1"]
    assert rows("runs/reproduce/digits")[0]["train_loss"] != rows("runs/reproduce/digits-seed1")[0]["train_loss"]
    text = Path("RESULTS.md").read_text()
    row = tables.read_markdown(text)["digits"]
    assert row["seeds"] == "2" and "±" in row["test, last epoch"] and "chosen by looking at the test set" in text
    for name in ("digits", "digits-seed1"):
        assert sorted(p.name for p in Path("results", name).iterdir()) == [
            "config.json", "environment.jsonl", "metrics.jsonl"
        ]  # fmt: skip
    Path("RESULTS.md").unlink(), shutil.rmtree("runs")
    reproduce.main([])
    assert Path("RESULTS.md").read_text() == text


# ---- what is known stays ----


def make_run(folder, recipe, done, seed=0, **settings):
    """A run's folder as train.py leaves it, without checkpoints: with `done` epochs."""
    config = recipes.recipe(recipe).settings | {"seed": seed} | settings
    folder = results.folder_of(Path(folder), recipe, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.jsonl").write_text(json.dumps({"device": "cpu", "started": "2026-01-01"}) + "\n")
    row = {"step": 1, "train_loss": 1.0, "train_accuracy": 50.0, "test_accuracy": 60.0, "seconds": 2.0}
    lines = [json.dumps({"epoch": epoch + 1, **row}) + "\n" for epoch in range(done)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def interrupted(*args, **options):
    raise KeyboardInterrupt


def test_the_table_here_is_what_the_records_here_give(monkeypatch):
    for name, item in RECIPES_HERE.items():
        monkeypatch.setitem(recipes.RECIPES, name, item)
    shutil.copytree(REPOSITORY / "results", "results", ignore=shutil.ignore_patterns("*.png"))
    reproduce.main(["--out", "."])
    assert Path("RESULTS.md").read_text() == (REPOSITORY / "RESULTS.md").read_text()


def test_an_interrupted_first_epoch_leaves_all_as_it_was(monkeypatch):
    for name in ("ours-resnet20", "ours-resnet20-plain"):
        make_run("results", name, 4)
    reproduce.main([])
    text = Path("RESULTS.md").read_text()
    assert "![ours-resnet20, ours-resnet20-plain](results/overlay-depth.png)" in text
    monkeypatch.setattr(loop, "train_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(["ours-resnet20"])
    assert Path("RESULTS.md").read_text() == text


def test_errors_over_depth_are_those_of_every_finished_run(monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "depths", lambda runs, path, title: drawn.update(runs, title=title))
    make_run("results", "ours-resnet20", 4)
    make_run("results", "ours-resnet20-plain", 4)
    reproduce.main([])
    assert not drawn and "depth.png" not in Path("RESULTS.md").read_text().replace("overlay-depth.png", "")
    make_run("results", "ours-resnet20", 4, seed=1)
    make_run("results", "ours-resnet56-plain", 4)
    make_run("results", "ours-resnet110", 3)
    reproduce.main([])
    assert {kind: [layers for layers, _ in drawn[kind]] for kind in ("plain", "with shortcuts")} == {
        "plain": [20, 56], "with shortcuts": [20, 20]
    }  # fmt: skip
    assert drawn["title"] == "CIFAR-10's networks after 4 epochs"
    assert "-plain, ours-resnet56-plain, ours-resnet110](results/depth.png)" in Path("RESULTS.md").read_text()


def test_findings_are_taken_as_they_are(monkeypatch):
    make_run("results", "digits", 4)
    Path("results/findings.md").write_text("## Digits\n\nThey hold.\n")
    for _ in range(2):
        reproduce.main([])
        assert Path("RESULTS.md").read_text().count("\n\n## Digits\n\nThey hold.\n\n") == 1


def test_the_findings_are_in_the_order_of_the_tables():
    heads = re.findall("^## (.+)$", (REPOSITORY / "results" / "findings.md").read_text(), re.MULTILINE)
    sources = list(dict.fromkeys(item.source for item in RECIPES_HERE.values()))
    assert heads.pop(0).startswith("He et al.") and sources[0] == "ours"
    places = [next(place for place, source in enumerate(sources) if source.startswith(head)) for head in heads]
    assert places == sorted(places) and len(heads) == 5


def test_what_has_no_run_for_want_of_weights_is_said():
    make_run("results", "gupta-freeze6", 20, pretrained="none")
    make_run("results", "gupta-freeze10", 20, pretrained="none")
    reproduce.main([])
    text = Path("RESULTS.md").read_text()
    assert " say nothing without them: li-resnet34-finetune, gupta-finetune.\n" in text
    assert reproduce.wanting(["digits"]) == ""


def test_where_nothing_is_known_nothing_is_written(monkeypatch):
    monkeypatch.setattr(loop, "train_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(["digits"])
    assert not Path("RESULTS.md").exists() and not Path("results").exists()


def test_one_recipe_leaves_the_other_rows_be(monkeypatch):
    make_run("results", "ours-resnet56", 4)
    reproduce.main([])
    monkeypatch.setitem(recipes.RECIPES["digits"].settings, "epochs", 1)
    reproduce.main(["digits"])
    text = Path("RESULTS.md").read_text()
    assert "| ours-resnet56 " in text and "| digits " in text


def test_a_record_gives_way_only_to_more_epochs_of_its_experiment(capsys):
    run = make_run("runs/reproduce", "digits", 2)
    reproduce.main([])
    record = Path("results/digits")
    remarked = json.loads((record / "environment.jsonl").read_text()) | {"remark": "other work beside"}
    (record / "environment.jsonl").write_text(json.dumps(remarked) + "\n")
    make_run("runs/reproduce", "digits", 3)
    reproduce.main([])
    assert len(rows(record)) == 3 and "| other work beside |" in Path("RESULTS.md").read_text()  # the same start
    text, before = Path("RESULTS.md").read_text(), {file: file.read_bytes() for file in record.iterdir()}

    def unchanged(says):
        reproduce.main([])
        assert says in capsys.readouterr().out
        assert {file: file.read_bytes() for file in record.iterdir()} == before
        assert Path("RESULTS.md").read_text() == text

    unchanged("")
    make_run("runs/reproduce", "digits", 1)
    unchanged("")
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics.replace("60.0", "70.0"))
    unchanged("not recorded: results/digits holds another run of as many epochs; move it away to record runs/")
    make_run("runs/reproduce", "digits", 20, epochs=30)
    unchanged("not recorded: results/digits holds another experiment (--epochs 20, wanted 30); move it away")
    make_run("runs/reproduce", "digits", 20, lr=0.5)
    unchanged("not recorded: runs/reproduce/digits is another experiment than its name says (--lr 0.5, wanted 0.2)")
    make_run("runs/reproduce", "digits", 20, limit=100)
    unchanged("")  # it is less
    shutil.rmtree(run)
    unchanged("")


def test_a_record_names_no_place_of_one_machine():
    make_run(
        "runs/reproduce", "ours-resnet20", 4, data="/home/me/cifar10", data_dir="/home/me/data", cache_dir="/cache"
    )
    reproduce.main([])
    config = json.loads(Path("results/ours-resnet20/config.json").read_text())
    assert (config["data"], config["data_dir"], config["cache_dir"]) == ("cifar10", "data", None)


def test_a_record_gives_way_to_a_larger_scale_once_that_is_finished(capsys):
    def recorded(scale, done, **settings):
        """The scale and the epochs of the record that there is with a run of `scale` and as many epochs."""
        settings = scaled(recipes.RECIPES["digits"].settings, scale) | settings
        folder = make_run("runs/reproduce", "digits", done, **settings)
        reproduce.main([])
        shutil.rmtree(folder)
        config = json.loads(Path("results/digits/config.json").read_text())
        return config["scale"] if "scale" in config else 1, len(rows("results/digits"))

    assert recorded(0.1, 2, limit=90) == (0.1, 2)
    assert recorded(0.1, 1) == (0.1, 2)  # not yet finished
    assert recorded(0.1, 2) == (0.1, 2)
    assert "| 2 of 20 epochs, schedule scaled by 0.1 " in Path("RESULTS.md").read_text()  # and no limit
    assert recorded(0.2, 3) == (0.1, 2) and recorded(0.2, 4) == (0.2, 4)
    assert recorded(0.1, 2) == (0.2, 4) and recorded(1, 20, limit=90) == (0.2, 4)
    assert "| 4 of 20 epochs, schedule scaled by 0.2 " in Path("RESULTS.md").read_text()
    capsys.readouterr()
    assert recorded(0.25, 5, lr=0.3) == (0.2, 4)
    assert "is another experiment than its name says (--lr 0.3, wanted 0.2)" in capsys.readouterr().out
    assert recorded(1, 19) == (0.2, 4) and recorded(1, 20) == (1, 20) and recorded(0.5, 10) == (1, 20)
    assert "| 20 of 20 epochs " in Path("RESULTS.md").read_text()
    make_run("results", "digits", 10, lr=0.5, **scaled({"epochs": 20}, 0.5))
    assert (
        recorded(1, 20) == (0.5, 10) and "results/digits holds another experiment (--lr 0.5" in capsys.readouterr().out
    )


def test_rows_whose_records_are_gone_stay():
    for seed in (0, 1):
        make_run("results", "ours-resnet20", 4, seed)
    for name in ("ours-resnet20-plain", "ours-resnet56"):
        make_run("results", name, 4)
    reproduce.main([])
    old = tables.read_markdown(Path("RESULTS.md").read_text())
    for name in ("ours-resnet20-seed1", "ours-resnet20-plain", "ours-resnet56"):
        shutil.rmtree(Path("results", name))
    picture = Path("results/overlay-depth.png")
    picture.write_text("of three")
    make_run("results", "ours-resnet20-plain", 3)
    make_run("results", "digits", 20)
    for _ in range(2):
        reproduce.main([])
        text = Path("RESULTS.md").read_text()
        new = tables.read_markdown(text)
        assert list(new) == ["digits", "ours-resnet20", "ours-resnet20-plain", "ours-resnet56"]
        assert {name: new[name] for name in old} == old
        assert "rest on: ours-resnet20, ours-resnet20-plain, ours-resnet56.\n" in text
        assert "![ours-resnet20, ours-resnet20-plain, ours-resnet56](results/overlay-depth.png)" in text
        assert picture.read_text() == "of three"
    for name, done, seed in (("ours-resnet20", 4, 1), ("ours-resnet20-plain", 4, 0), ("ours-resnet56", 3, 0)):
        make_run("results", name, done, seed)
    reproduce.main([])
    assert "rest on: ours-resnet56.\n" in Path("RESULTS.md").read_text() and picture.read_text() == "of three"
    make_run("results", "ours-resnet56", 4)
    reproduce.main([])
    assert "rest on" not in Path("RESULTS.md").read_text() and picture.read_text() == ""


def test_damaged_runs_are_skipped_and_named(capsys):
    make_run("results", "ours-resnet20", 4)
    for name, file, text in (
        ("digits", "config.json", ""),
        ("ours-resnet56", "config.json", "[]"),
        ("nctu-resnet18", "environment.jsonl", '{"device": "cp'),
        ("nctu-resnet50", "metrics.jsonl", "[]\n"),
        ("yuan-resnet18", "metrics.jsonl", '{"epoch": 1, "step": 1, "train_loss": 1.0}\n'),
    ):
        folder = make_run("runs/reproduce", name, 1)
        (folder / file).write_text(text)
    make_run("runs/reproduce", "digits", 20).rename("runs/reproduce/digits-seed²")
    folder = make_run("runs/reproduce", "digits", 1)
    (folder / "config.json").write_text("")
    reproduce.main([])
    out = capsys.readouterr().out
    assert [line.split(": ")[1].split(",")[0] for line in out.splitlines() if line.startswith("skipped: ")] == [
        "runs/reproduce/digits-seed²",
        "runs/reproduce/digits/config.json holds no run's options",
        "runs/reproduce/ours-resnet56/config.json holds no run's options",
        "runs/reproduce/yuan-resnet18/metrics.jsonl has a line without the number seconds",
        "runs/reproduce/nctu-resnet18/environment.jsonl",
        "runs/reproduce/nctu-resnet50/metrics.jsonl",
    ]
    assert list(tables.read_markdown(Path("RESULTS.md").read_text())) == ["ours-resnet20"]


def test_text_that_cannot_be_written_is_escaped():
    folder = make_run("results", "digits", 20)
    (folder / "environment.jsonl").write_text(json.dumps({"device": "a\ud800", "torch": "\ud800"}) + "\n")
    for _ in range(2):
        reproduce.main([])
        assert "| a\\ud800 " in Path("RESULTS.md").read_text()
    Path("RESULTS.md").write_bytes(Path("RESULTS.md").read_bytes() + b"\xff")
    reproduce.main([])


def test_a_run_that_cannot_be_read_is_named(capsys, monkeypatch):
    make_run("results", "ours-resnet20", 4)
    make_run("runs/reproduce", "digits", 1)
    real = results.read_rows

    def failing(folder):
        if folder.name == "digits":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(results, "read_rows", failing)
    reproduce.main([])
    assert "skipped: [Errno 13] Permission denied: 'runs/reproduce/digits'" in capsys.readouterr().out


def test_a_run_without_its_curves_is_gone_on_with(monkeypatch, capsys):
    monkeypatch.setitem(recipes.RECIPES["digits"].settings, "epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr(figures, "curves", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reproduce.main(["digits"])
    reproduce.main(["digits"])
    assert Path("runs/reproduce/digits/curves.png").exists() and "result: " in capsys.readouterr().out
    reproduce.main(["digits"])
    assert "runs/reproduce/digits: done" in capsys.readouterr().out


def test_a_run_cut_off_before_its_first_epoch_begins_anew(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES["digits"].settings, "epochs", 1)
    Path("runs/reproduce/digits").mkdir(parents=True)
    Path("runs/reproduce/digits/config.json").touch()
    reproduce.main(["digits"])
    assert len(rows("results/digits")) == 1


def test_a_table_of_something_else_is_left_alone():
    make_run("results", "digits", 20)
    Path("RESULTS.md").write_text("# Every recipe alive\n")
    with pytest.raises(UserError, match="RESULTS.md was not written by this command: name another --out"):
        reproduce.main([])
    assert Path("RESULTS.md").read_text() == "# Every recipe alive\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digit"], "unknown recipe 'digit', did you mean digits?"),
        (["x*"], "no recipe matches 'x\\*'"),
        (["digits", "--seeds", "0"], "--seeds must be at least 1; got 0"),
        (["digits", "--scale", "0"], "--scale must be positive; got 0.0"),
        (["digits", "--budget", "-1"], "--budget must be positive; got -1"),
        (["digits", "--val-every", "0"], "--val-every must be at least 1; got 0"),
        ([], "no runs in runs/reproduce"),
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


# ---- schedules that are shrunk ----


def test_a_scaled_run_goes_on_at_its_scale(monkeypatch, capsys):
    real, calls = loop.train_one_epoch, []

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) == 2:  # the second epoch
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(loop, "train_one_epoch", stopped)
    command = ["digits", "--scale", "0.1", "--limit", "48", "--val-every", "2"]
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(command)
    assert len(rows("results/digits")) == 1 and "| in epoch 2 of 2 " in Path("RESULTS.md").read_text()
    reproduce.main(command)
    assert [("test_accuracy" in row) for row in rows("results/digits")] == [False, True]
    row = tables.read_markdown(Path("RESULTS.md").read_text())["digits"]
    assert row["epochs"] == "2 of 20 epochs, schedule scaled by 0.1, 48 images of each split"
    capsys.readouterr()
    reproduce.main(command)
    assert "runs/reproduce/digits: done" in capsys.readouterr().out
    for other in ("--scale 0.2 --limit 48", "--limit 48", "--scale 0.1"):
        with pytest.raises(UserError, match="1 of 1 recipes failed"):
            reproduce.main(["digits", *other.split()])
    assert "holds another experiment (--scale 0.1, wanted 0.2; --epochs 2, wanted 4)" in capsys.readouterr().err
    reproduce.main(["digits", "--epochs", "1", "--limit", "48", "--runs", "other", "--out", "other"])
    assert "| 1 of 20 epochs, schedule scaled by 0.05, 48 images of each split " in Path("other/RESULTS.md").read_text()


def test_a_budget_picks_the_scale_once(monkeypatch, capsys):
    picked = []

    def fitting(settings, flags, minutes):
        picked.append((flags["limit"], minutes))
        return 0.1 / len(picked), "1 image/s"

    monkeypatch.setattr(budget, "fitting", fitting)
    command = ["digits", "--budget", "3", "--limit", "32", "--seeds", "2"]
    reproduce.main(command)
    assert picked == [(32, 3.0)] and "digits: 1 image/s; 3 minutes: --scale 0.1\n" in capsys.readouterr().out
    row = tables.read_markdown(Path("RESULTS.md").read_text())["digits"]
    assert row["epochs"].startswith("2 of 20 epochs, schedule scaled by 0.1") and row["seeds"] == "2"
    reproduce.main(command)
    out = capsys.readouterr().out
    assert len(picked) == 1 and out.count(": done\n") == out.count("digits: --scale 0.1, as it began\n") == 2


def test_a_recipe_that_does_not_fit_into_a_budget_has_no_row(monkeypatch, capsys):
    monkeypatch.setitem(recipes.RECIPES["digits"].settings, "epochs", 1)

    def fitting(settings, flags, minutes):
        if settings["arch"] == "resnet56":
            raise budget.TooShort("--budget 3 is too short")
        return 1.0, "1 image/s"

    monkeypatch.setattr(budget, "fitting", fitting)
    with pytest.raises(UserError, match="1 of 2 recipes do not fit into --budget 3: ours-resnet56$"):
        reproduce.main(["ours-resnet56", "digits", "--budget", "3"])
    assert "ours-resnet56: not run: --budget 3 is too short\n" in capsys.readouterr().err
    assert list(tables.read_markdown(Path("RESULTS.md").read_text())) == ["digits"]
