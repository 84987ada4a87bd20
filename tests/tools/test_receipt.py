"""tools.export on runs of both tasks: the file, the receipt, and what is refused."""

import json
import re

import pytest
import torch
from helpers import unpack_runs

from resnet_min.errors import UserError
from resnet_min.inference import export, runtimes
from resnet_min.training import checkpoint
from tools import export as tool

FORMATS = [
    pytest.param(*flags, marks=pytest.mark.skipif(bool(runtimes.missing(*packages)), reason=f"needs {packages}"))
    for name, packages in export.PACKAGES.items()
    for flags in [(name, [])] + [(name, ["--fused"])] * (name == "pt2")
]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    return unpack_runs(tmp_path)


@pytest.mark.parametrize("task", ["classes", "crowd"])
@pytest.mark.parametrize("name, flags", FORMATS)
def test_the_receipt(task, name, flags, runs, capsys):
    run = runs / f"{task}-finished"
    tool.main([str(run), "--to", name, *flags])
    said = capsys.readouterr().out
    key, unit = {"classes": ("accuracy", "%"), "crowd": ("mae", "")}[task]
    wanted = json.loads((run / "eval.json").read_text())[key]
    got = float(re.search(rf"test images, {key} ([\d.]+){unit}\n", said, re.IGNORECASE)[1])
    assert got == pytest.approx(wanted, rel=0.02)
    assert "largest difference from eager PyTorch: " in said and " ms, eager PyTorch " in said

    file = run / f"last{'-fused' * bool(flags)}.{name}"
    about = export.load(file, tool.rebuilt).about
    assert about["task"] == about["config"]["task"] and len(about["mean"]) == len(about["std"]) == 3
    assert len(about["classes"]) == {"classes": 10, "crowd": 0}[task] and str(runs) not in json.dumps(about)


@pytest.mark.parametrize("name, flags", FORMATS)
def test_weights_of_the_package_without_a_run_or_data(name, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    tool.main(["--weights", "cifar10", "--to", name, *flags])
    said = capsys.readouterr().out
    file = f"resnet20-cifar10{'-fused' * bool(flags)}.{name}"
    assert (
        "256 random images\n" in said and f"wrote: {file}" in said and "accuracy" not in said and "newest" not in said
    )
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert len(export.load(tmp_path / file, tool.rebuilt).about["classes"]) == 10


def test_a_file_that_is_there_stays(runs):
    run, file = str(runs / "classes-finished"), runs / "mine.pt2"
    file.write_text("mine")
    with pytest.raises(UserError, match="mine.pt2 is there already: --force writes over it"):
        tool.main([run, "--to", "pt2", "--out", str(file)])
    assert file.read_text() == "mine"
    tool.main([run, "--to", "pt2", "--out", str(file), "--force"])
    assert export.load(file, tool.rebuilt).about["task"] == "classify"


def test_a_file_that_computes_something_else_is_not_passed_over(runs, monkeypatch):
    folded = export.folded

    def spoilt(model):
        net = folded(model)
        with torch.no_grad():
            net.fc.bias[0] += 0.1
        return net

    monkeypatch.setattr(export, "folded", spoilt)
    run = runs / "classes-finished"
    (run / "last.pt2").write_text("good")
    before = sorted(run.iterdir())
    with pytest.raises(UserError, match="does not compute what the network does: .*last.pt2 was not written"):
        tool.main([str(run), "--to", "pt2", "--force"])
    assert (run / "last.pt2").read_text() == "good" and sorted(run.iterdir()) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_diverged_is_what_is_wrong(bad, runs):
    run = runs / "classes-finished"
    saved = checkpoint.load(run)
    saved["model"]["fc.bias"][0] = bad
    checkpoint.save(run / "last.pt", saved)
    with pytest.raises(UserError, match="the weights are from a run that diverged"):
        tool.main([str(run), "--to", "pt2"])
    assert not (run / "last.pt2").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--to", "onnx", "--fused"], "--fused is for --to pt2"),
        (["--to", "onnx", "--out", "net.pt2"], "--out net.pt2 must end in .onnx"),
        (["--to", "pt2", "-b", "0"], "--batch-size must be at least 1; got 0"),
        (["no-such-run", "--to", "pt2"], "no checkpoint at no-such-run"),
        (
            ["--weights", "cifar11", "--to", "pt2"],
            "no weights 'cifar11' come with the package; it has resnet20-cifar10",
        ),
        (["run", "--weights", "cifar10", "--to", "pt2"], "run and --weights cifar10 both say what to export"),
    ],
)
def test_what_is_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        tool.main(flags)


def test_a_missing_package_is_named_before_any_work(runs, monkeypatch):
    monkeypatch.setattr(runtimes, "missing", lambda *packages: list(packages))
    with pytest.raises(UserError, match=r"--to onnx needs onnx and onnxscript and onnxruntime, not installed here"):
        tool.main([str(runs / "classes-finished"), "--to", "onnx"])
