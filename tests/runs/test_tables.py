import dataclasses
import json

import pytest

from resnet_min.recipes import RECIPES
from resnet_min.runs import tables
from resnet_min.runs.environment import describe_data, environment, revision, say_processes
from resnet_min.tasks import make_config


def make_run(runs, recipe, *, seed=0, accuracy=90.0, epochs=None, **settings):
    """A run's folder as train.py leaves it, without checkpoints; `epochs` done of those that the recipe has."""
    config = make_config({**RECIPES[recipe].settings, "seed": seed, **settings})
    folder = tables.folder_of(runs, recipe, seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    starts = [{"device": "old", "remark": "slow"}, {"device": "a GPU", "torch": "2.14", "data": "cifar10"}]
    (folder / "environment.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    lines = []
    for epoch in range(1, (epochs or config.epochs) + 1):
        line = {"epoch": epoch, "step": epoch, "train_loss": 1 / epoch, "train_accuracy": 99.0, "seconds": 2.0}
        if config.val_size:
            line["val_accuracy"] = 50.0
        if not config.val_size or epoch == config.epochs:
            line["test_accuracy"] = accuracy + (epoch == 1)  # the first epoch is the best on test
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))


def cells(table, recipe):
    head, _, *lines = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in table.splitlines()]
    return dict(zip(head, next(line for line in lines if line[0] == recipe), strict=True))


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [
        ([2.0, 1.0, 0.5, 0.5], 3),
        ([2.0, 0.539, 0.5, 0.5], 3),  # 2% of the fall of 1.5 is 0.03
        ([2.0, 0.529, 0.5, 0.5], 2),
        ([2.0, 3.0, 0.5, 0.6], 3),
        ([1.0, 1.5, 2.0], 1),
        ([2.0, 1.0, 0.5], None),  # it may fall on
        ([2.0, 1.0, 0.5, 0.499], 3),
        ([1.0], None),
    ],
)
def test_epoch_to_converge(losses, epoch):
    rows = [{"epoch": e, "train_loss": loss} for e, loss in enumerate(losses, start=1)]
    assert tables.epoch_to_converge(rows) == epoch


def test_a_table_puts_ours_beside_the_published(tmp_path):
    make_run(tmp_path, "yuan-resnet18", accuracy=88.14)
    make_run(tmp_path, "li-resnet34-scratch", accuracy=91.0)
    make_run(tmp_path, "nctu-resnet18", accuracy=93.0)
    make_run(tmp_path, "nctu-resnet18", accuracy=92.0, seed=1)
    make_run(tmp_path, "nctu-resnet18", accuracy=94.0, seed=12)
    make_run(tmp_path, "gupta-finetune", pretrained="none", accuracy=70.0)
    make_run(tmp_path, "nctu-resnet50", epochs=7)
    found, damaged = tables.read_all(tmp_path)
    table = tables.markdown(tables.table(found, {"yuan-v1-adam": "failed: the loss is nan"}))
    assert not damaged and list(tables.read_markdown(f"# Results\n\n{table}\n")) == [
        "li-resnet34-scratch", "yuan-resnet18", "yuan-v1-adam", "gupta-finetune", "nctu-resnet18", "nctu-resnet50"
    ]  # fmt: skip
    yuan = cells(table, "yuan-resnet18")
    assert yuan["test, last epoch"] == "88.14%" and yuan["best epoch on test¹"] == "89.14%"
    assert yuan["published test"] == "86.14%" and yuan["gap"] == "+2.00" and yuan["parameters"] == "11,173,962"
    assert yuan["training time (published)"] == "100 s" and yuan["device"] == "a GPU"
    assert yuan["remark"] == "slow"
    li = cells(table, "li-resnet34-scratch")
    assert li["best epoch on test¹"] == "not looked at" and li["gap"] == "-0.31"
    assert li["converged at² (published)"] == "41 (100)"  # 1/e - 1/200 is 2% of the fall
    nctu = cells(table, "nctu-resnet18")
    assert nctu["test, last epoch"] == "93.00% ± 1.00 (n = 3)" and nctu["published test"] == "> 91%"
    assert [result.seed for result in found["nctu-resnet18"]] == [0, 1, 12]
    gupta = cells(table, "gupta-finetune")
    assert gupta["started from"] == "**random**, ImageNet weights unavailable"
    assert gupta["training time (published)"] == "40 s (362 s)"
    assert cells(table, "nctu-resnet50")["test, last epoch"] == "in epoch 8 of 164"
    assert cells(table, "yuan-v1-adam")["test, last epoch"] == "failed: the loss is nan"
    assert "- data: cifar10\n- torch: 2.14" in tables.heading(found, smoke=False)


def test_a_table_is_read_as_it_was_written():
    rows = {"a": {"recipe": "a", "gap": "-1 | or | more", "device": ""}, "b": {"recipe": "b", "more": "|"}}
    text = f"# Results\n\n- torch: 2\n\n{tables.markdown(rows)}\n\n| another |\n"
    wanted = {"a": {**rows["a"], "more": ""}, "b": {"recipe": "b", "gap": "", "device": "", "more": "|"}}
    assert tables.read_markdown(text) == wanted and tables.read_markdown("# Results\n") == {}


def test_of_two_rows_the_one_of_more_runs_counts():
    def rows(*said):
        return {name: {"recipe": name, "test, last epoch": text} for name, text in zip("abcdef", said, strict=False)}

    old = rows("90.00% ± 1.00 (n = 3)", "90.00%", "in epoch 9 of 10", "40.20, 14 epochs", "", "failed: x")
    less = rows("91.00% ± 1.00 (n = 2)", "in epoch 99 of 100", "in epoch 8 of 10", "failed: x", "failed: y", "1.00")
    merged, kept = tables.keep(less, old)
    assert kept == ["a", "b", "c", "d"] and merged["a"] == old["a"] and merged["e"] == less["e"]
    assert tables.keep(old, less) == (old | {"f": less["f"]}, ["f"]) and tables.keep({}, old) == (old, list("abcdef"))


def test_a_folder_of_jpeg_files_is_named_so(tmp_path):
    (tmp_path / "small" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "small" / "train" / "cat" / "1.jpg").touch()
    assert describe_data(str(tmp_path / "small")).startswith("small, a folder of .jpg files: not the original pixels")
    assert describe_data("cifar10") == "cifar10"


def test_a_run_that_has_no_epoch_yet_is_no_result(tmp_path):
    make_run(tmp_path, "digits")
    (tmp_path / "digits" / "metrics.jsonl").write_text('{"epo')
    assert tables.read(tmp_path, "digits", 0) is None and tables.read_all(tmp_path) == ({}, [])


def test_the_environment_is_plain_values():
    from resnet_min.training.hardware import hardware

    known = environment(hardware("cpu", "off"), "digits")
    assert json.loads(json.dumps(known)) == known
    assert {"device", "processor", "kernels", "torch", "git_revision", "started"} <= known.keys()
    assert revision() is None or len(revision().rstrip("+")) == 40


def test_another_number_of_processes_is_said():
    assert (
        list(say_processes([], 2)) == list(say_processes([{}], 1)) == list(say_processes([{"processes": 2}], 2)) == []
    )
    (said,) = say_processes([{"processes": 2}, {"processes": 3}], 2)
    assert said.startswith("processes: 2, before 3: ")
