import dataclasses
import json

import pytest

from resnet_min.recipes import RECIPES, scaled
from resnet_min.runs import results, tables
from resnet_min.runs.environment import describe_data, environment, revision, say_processes
from resnet_min.tasks import make_config


def make_run(runs, recipe, *, seed=0, accuracy=90.0, done=None, **settings):
    """A run's folder as train.py leaves it, without checkpoints; `done` epochs of those that it is to have."""
    config = make_config({**RECIPES[recipe].settings, "seed": seed, **settings})
    folder = results.folder_of(runs, recipe, seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    starts = [{"device": "old", "remark": "slow"}, {"device": "a GPU", "torch": "2.14", "data": "cifar10"}]
    (folder / "environment.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    lines = []
    for epoch in range(1, (done or config.epochs) + 1):
        key = config.figure.key
        line = {"epoch": epoch, "step": epoch, "train_loss": 1 / epoch, f"train_{key}": 98.5, "seconds": 2.0}
        if epoch == 3:
            line[f"train_{key}"] = 99.0
        if config.val_size:
            line |= {f"val_{key}": 50.0, "val_mse": 60.0}
        if not config.val_size or epoch == config.epochs:  # the first epoch is the best on test
            line |= {f"test_{key}": accuracy + (epoch == 1), "test_mse": 30.0}
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [
        ([2.0, 1.0, 0.5, 0.5, 0.5], 3),
        ([2.0, 0.539, 0.5, 0.5, 0.5], 3),  # 2% of the fall of 1.5 is 0.03
        ([2.0, 0.529, 0.5, 0.5], 2),
        ([2.0, 3.0, 0.5, 0.6, 0.7], 3),
        ([1.0, 1.5, 2.0], 1),
        ([2.0, 1.0, 0.5], None),  # it may fall on
        ([2.0, 1.0, 0.5, 0.499], None),
        ([2.0] * 9 + [0.0] * 3, None),
        ([2.0, 1.0, 0.5, 0.499, 0.499], 3),
        ([1.0], None),
        ([2.0, 1.0, 0.0, 0.0, 0.0], 3),
        ([2.0, 1.0, 0.5, 0.04, 0.0], None),  # it fell until the last quarter
        ([2.0, 1.0, 0.5, 0.1, 0.04, 0.03, 0.02, 0.01, 0.0], 5),
        ([2.0, 0.5, 0.5, 0.5, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5], 2),  # the fifth was lucky
        ([2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.3], 2),
        ([2.0, 1.8, 1.6, 0.5, 1.4, 1.2, 1.1, 1.0, 0.9, 0.8], None),
    ],
)
def test_epoch_to_converge(losses, epoch):
    rows = [{"epoch": e, "train_loss": loss} for e, loss in enumerate(losses, start=1)]
    assert results.epoch_to_converge(rows) == epoch


def test_a_table_puts_ours_beside_the_published(tmp_path):
    make_run(tmp_path, "yuan-resnet18", accuracy=88.14)
    make_run(tmp_path, "li-resnet34-scratch", accuracy=91.0)
    make_run(tmp_path, "nctu-resnet18", accuracy=93.0)
    make_run(tmp_path, "nctu-resnet18", accuracy=92.0, seed=1)
    make_run(tmp_path, "nctu-resnet18", accuracy=94.0, seed=12)
    make_run(tmp_path, "gupta-finetune", pretrained="none", accuracy=70.0)
    make_run(tmp_path, "nctu-resnet50", done=60)
    make_run(tmp_path, "crowd-best", accuracy=24.0)
    found, damaged = results.read_all(tmp_path)
    table = tables.read_markdown(
        tables.markdown(tables.table(found, {"yuan-v1-adam": "failed: the loss is nan"})) + "\n"
    )
    assert not damaged and list(table) == [
        "li-resnet34-scratch", "yuan-resnet18", "yuan-v1-adam", "gupta-finetune", "nctu-resnet18", "nctu-resnet50",
        "crowd-best",
    ]  # fmt: skip
    yuan = table["yuan-resnet18"]
    assert yuan["test, last epoch"] == "88.14%" and yuan["best epoch on test¹"] == "89.14%"
    assert yuan["published"] == "86.14%" and yuan["gap"] == "+2.00" and yuan["parameters"] == "11,173,962"
    assert yuan["training: last, best (published)"] == "98.50%, 99.00% (89.81%)"
    assert yuan["training time (published)"] == "100 s" and yuan["hardware"] == "a GPU"
    assert yuan["remark"] == "slow" and yuan["seeds"] == "1" and yuan["epochs"] == "50 of 50 epochs"
    li = table["li-resnet34-scratch"]
    assert li["best epoch on test¹"] == "not looked at" and li["gap"] == "-0.31"
    assert li["converged at² (published)"] == "41 (100)"  # 1/e - 1/200 is 2% of the fall
    assert li["validation (published)"] == "50.00%"
    nctu = table["nctu-resnet18"]
    assert nctu["test, last epoch"] == "93.00% ± 1.00" and nctu["published"] == "> 91%" and nctu["seeds"] == "3"
    assert [result.seed for result in found["nctu-resnet18"]] == [0, 1, 12]
    gupta = table["gupta-finetune"]
    assert gupta["started from"] == "**random**, ImageNet weights unavailable"
    assert gupta["training time (published)"] == "40 s (362 s)"
    assert gupta["validation (published)"] == "50.00% (80.8%)"
    begun = table["nctu-resnet50"]
    assert (
        begun["test, last epoch"] == "in epoch 61 of 164" and begun["seeds"] == begun["converged at² (published)"] == ""
    )
    assert table["yuan-v1-adam"]["test, last epoch"] == "failed: the loss is nan"
    crowd = table["crowd-best"]
    assert crowd["test, last epoch"] == "MAE 24.00, MSE 30.00" and crowd["published"] == "MAE 26.4, MSE 41.3"
    assert crowd["validation (published)"] == "MAE 50.00, MSE 60.00" and crowd["gap"] == "-2.40"
    assert crowd["parameters"] == "791,553, under 5M"
    assert "- data: cifar10\n- torch: 2.14" in tables.heading(found, smoke=False)


def test_a_row_is_of_the_runs_that_are_the_most_of_their_recipe(tmp_path):
    make_run(tmp_path, "nctu-resnet18", accuracy=80.0, **scaled(RECIPES["nctu-resnet18"].settings, 0.05))
    for seed, accuracy in ((1, 84.0), (2, 86.0)):
        make_run(
            tmp_path, "nctu-resnet18", seed=seed, accuracy=accuracy, **scaled(RECIPES["nctu-resnet18"].settings, 0.1)
        )
    make_run(tmp_path, "nctu-resnet18", seed=3, done=9)
    make_run(tmp_path, "digits", limit=50)
    found, _ = results.read_all(tmp_path)
    row = tables.table(found, {})["nctu-resnet18"]
    assert row["test, last epoch"] == "85.00% ± 1.41" and row["seeds"] == "2"
    assert row["epochs"] == "16 of 164 epochs, schedule scaled by 0.1"
    assert tables.table(found, {})["digits"]["epochs"] == "20 of 20 epochs, 50 images of each split"


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"processor": "AMD EPYC (family 25, model 1), 2 cores, AVX2"}, "EPYC 25/1 AVX2 (1 thread), float32"),
        (
            {"processor": "Intel(R) Xeon(R) Processor (family 6, model 207), 2 cores, AVX512, bf16"},
            "Xeon 6/207 AVX512 bf16 (1 thread), float32",
        ),
        ({"processor": "Intel(R) Xeon(R) Processor"}, "Xeon (1 thread), float32"),
        ({}, "cpu without a name (1 thread), float32"),
        ({"device": "NVIDIA H200, float32", "processor": "AMD EPYC"}, "NVIDIA H200, float32"),
    ],
)
def test_a_row_says_which_machine_it_is_of(tmp_path, start, said):
    make_run(tmp_path, "digits")
    (tmp_path / "digits" / "environment.jsonl").write_text(json.dumps({"device": "cpu (1 thread), float32"} | start))
    assert tables.table(results.read_all(tmp_path)[0], {})["digits"]["hardware"] == said


def test_a_table_is_read_as_it_was_written():
    rows = {"a": {"recipe": "a", "gap": "-1 | or | more", "hardware": ""}, "b": {"recipe": "b", "more": "|"}}
    text = f"# Results\n\n- torch: 2\n\n{tables.markdown(rows)}\n\n| another |\n| - |\n| c |\n"
    assert text.count("| recipe |") == 2  # `more` is of the second table
    wanted = {"a": {**rows["a"], "more": ""}, "b": {"recipe": "b", "gap": "", "hardware": "", "more": "|"}}
    assert tables.read_markdown(text) == wanted and tables.read_markdown("# Results\n") == {}


def test_of_two_rows_the_one_that_rests_on_more_counts():
    def row(said, seeds="", epochs="9 of 10 epochs"):
        return {"test, last epoch": said, "seeds": seeds, "epochs": epochs}

    def counts(more, less):
        """Of two rows the former, whichever is the older."""
        one, other = {"a": {"recipe": "a", **more}}, {"a": {"recipe": "a", **less}}
        return tables.keep(other, one) == (one, ["a"]) and tables.keep(one, other) == (one, [])

    assert counts(row("90.00% ± 1.00", "3"), row("91.00% ± 1.00", "2"))
    assert counts(row("90.00%", "1"), row("in epoch 99 of 100")) and counts(row("MAE 4.00", "1"), row("failed: x"))
    assert counts(row("in epoch 9 of 10"), row("in epoch 8 of 10")) and counts(
        row("in epoch 2 of 10"), row("failed: x")
    )
    tenth = "1 of 10 epochs, schedule scaled by 0.1"
    assert counts(row("90.00%", "1"), row("95.00%", "3", tenth))
    assert counts(row("90.00%", "1", tenth), row("95.00%", "1", "1 of 10 epochs, 50% of the training images, schedule"))
    assert counts(row("90.00%", "1", tenth), row("95.00%", "1", "10 of 10 epochs, 90 images of each split"))
    old, new = row("1.00", "1"), row("2.00", "1")
    assert tables.keep({"a": new}, {"a": old}) == ({"a": new}, [])  # as much
    assert tables.keep({}, {"a": old, "b": old}) == ({"a": old, "b": old}, ["a", "b"])


def test_a_folder_of_jpeg_files_is_named_so(tmp_path):
    (tmp_path / "small" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "small" / "train" / "cat" / "1.jpg").touch()
    assert describe_data(str(tmp_path / "small")).startswith("small, a folder of .jpg files: not the original pixels")
    assert describe_data("cifar10") == "cifar10"


def test_a_run_that_has_no_epoch_yet_is_no_result(tmp_path):
    make_run(tmp_path, "digits")
    (tmp_path / "digits" / "metrics.jsonl").write_text('{"epo')
    assert results.read(tmp_path, "digits", 0) is None and results.read_all(tmp_path) == ({}, [])


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
