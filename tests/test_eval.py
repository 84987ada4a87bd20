"""eval.py on runs of small nets; `run` is what test_visualize uses too."""

import dataclasses
import importlib
import json
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_min.errors import UserError
from resnet_min.tasks import read_config, trained
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.tasks.classify.task import FlipAverage
from resnet_min.training import checkpoint

script = importlib.import_module("eval")
CLASSES = ["blue", "green", "red"]


def make_images(root: Path, classes=CLASSES, splits=("train", "test")) -> Path:
    """An image folder: `classes[i]` are noisy pictures brightest in channel i."""
    rng = np.random.default_rng(0)
    for split in splits:
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(5 + index):
                pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                pixels[..., index % 3] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture
def run(tmp_path, images):
    """A run folder whose net tells the classes apart by their mean colour."""
    config = ClassifyConfig(
        arch="resnet20", blocks=(1, 1), widths=(4, 8), data=str(images), cache_dir=str(tmp_path / "cache"),
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    torch.manual_seed(0)
    model = config.make_task().build(CLASSES)
    with torch.no_grad():  # one channel through the whole net for each colour
        for weight in (p for p in model.parameters() if p.dim() == 4):
            weight.zero_()
        for channel in range(3):
            model.conv1.weight[channel, channel, 1, 1] = 1
        model.fc.weight.copy_(10 * torch.eye(3, 8))
        model.fc.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    folder = tmp_path / "runs" / "colours-1"
    folder.mkdir(parents=True)
    checkpoint.save(folder / "last.pt", checkpoint.snapshot(model, optimizer, config, tuple(CLASSES), 3, 30))
    return folder


def change(run: Path, **entries) -> Path:
    saved = checkpoint.load(run / "last.pt")
    saved.update(entries)
    checkpoint.save(run / "last.pt", saved)
    return run


def test_a_runs_own_options_are_not_written_over(run):
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json: a run keeps a file of its own by that name"):
        script.main([str(run), "--json", str(run / "config.json")])
    assert (run / "config.json").read_text() == "{}"


def test_evaluates_a_run_and_draws(run, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        script.main([str(run), "--confusion", "--json", str(run / "figures.json"), "--amp", "off"])
    text = capsys.readouterr().out
    assert "test accuracy 100.00% (18 of 18), loss 0." in text
    assert "resnet20, cifar stem" in text and "18 test images; 3 classes" in text
    assert "float32" in text and "kernels:" in text
    assert [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["green"]] == ["6"]
    assert f"confusion matrix: {run / 'confusion.png'}" in text
    assert Image.open(run / "confusion.png").size[0] > 500
    figures = json.loads((run / "figures.json").read_text())
    assert figures["accuracy"] == 100 and figures["confusion"] == [[5, 0, 0], [0, 6, 0], [0, 0, 7]]
    assert figures["split"] == "test" and figures["classes"]["red"]["recall"] == 100


def test_every_picture(run, tmp_path, capsys):
    change(run, mean=[0.0, 0.0, 1.0])  # "red" is taken for another colour
    (run / "last.pt").rename(run / "best.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        script.main(
            [str(run / "best.pt"), "--confusion", "--roc", "--reliability", "--worst", "9", "--out", str(tmp_path)]
        )
    text = capsys.readouterr().out
    assert f"most confident mistakes: {tmp_path / 'best-worst.png'} (all 7 there are)" in text
    for name in ("confusion", "roc", "reliability", "worst"):
        assert Image.open(tmp_path / f"best-{name}.png").size[0] > 400


def test_a_report_has_everything_of_every_network(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "runs" / "blind-1"
    shutil.copytree(run, other)
    change(other, mean=[0.0, 0.0, 1.0])
    for folder in (run, other):
        row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 50.0, "test_loss": 1.0, "test_accuracy": 40.0}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run / "environment.jsonl").write_text(json.dumps({"torch": "9.9", "device": "an abacus"}) + "\n")
    labels = ["--label", "sees", "<b>blind</b>"]
    script.main([str(run), str(other), "--report", "page.html", "--out", "drawn", *labels])
    text = Path("page.html").read_text()
    assert capsys.readouterr().out.endswith("comparison: drawn/comparison.png\nreport: page.html\n")
    drawn = {path.stem for path in Path("drawn", "<b>blind<-b>").iterdir()}
    inside = {"filters", "features", "top", "reconstruct", "gradcam"}
    assert drawn == {"confusion", "roc", "reliability", "worst", *inside}
    assert text.count("<img ") == 2 * len(drawn) - 1 + 2  # one makes no mistakes; the curves and the comparison
    assert "&lt;b&gt;blind" in text and "<b>" not in text
    assert "none: options of its own" in text and "an abacus" in text and "9.9" in text
    assert text.count("<td>undefined</td>") > 0 and "sees and &lt;b&gt;blind" in text
    with pytest.raises(UserError, match="--report puts pictures into a page: --format png or svg"):
        script.main([str(run), "--report", "page.html", "--format", "pdf"])


def test_labels_a_title_and_a_format(run, tmp_path, capsys):
    script.main([str(run), "--confusion", "--title", "the <title> of $5", "--format", "svg", "--label", "mine"])
    assert "the &lt;title&gt; of" in (run / "confusion.svg").read_text()
    with pytest.raises(UserError, match="--label wants 1 different names"):
        script.main([str(run), "--label", "a", "b"])


def test_no_mistakes_no_picture(run, capsys):
    script.main([str(run), "--worst", "3"])
    assert "no mistakes, so no picture of them" in capsys.readouterr().out
    assert not (run / "worst.png").exists()


def test_several_checkpoints_are_compared(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "runs" / "blind-1"
    shutil.copytree(run, other)
    change(other, mean=[0.0, 0.0, 1.0])
    script.main([str(run), str(other), str(run), "--confusion", "--out", "pictures", "--json", "f.json"])
    text = capsys.readouterr().out
    rows = [line.split() for line in text[text.rindex("network ") :].splitlines()]
    assert [row[:2] for row in rows[1:3]] == [["colours-1", "100.00%"], ["blind-1", "61.11%"]]
    assert rows[1][5:7] == ["1,343", rows[2][6]]
    assert Path("pictures/comparison.png").is_file() and Path("pictures/blind-1/confusion.png").is_file()
    figures = json.loads(Path("f.json").read_text())
    assert [f["name"] for f in figures] == ["colours-1", "blind-1"]
    assert figures[0]["macs"] > 0 and figures[1]["classes"]["red"]["precision"] is None


def test_test_time_flips_average_an_image_and_its_mirror(run, tmp_path, capsys):
    figures = []
    for options in ([], ["--tta", "flip"]):
        script.main([str(run), *options, "--json", str(tmp_path / "f.json")])
        figures.append(json.loads((tmp_path / "f.json").read_text()))
    out = capsys.readouterr().out
    assert "(18 of 18, each and its mirror image)" in out and "trained without flips" not in out
    assert figures[1]["macs"] == 2 * figures[0]["macs"] and figures[1]["tta"] == "flip"
    change(run, config={**checkpoint.load(run)["config"], "flip": 0.0})
    script.main([str(run), "--tta", "flip"])
    assert "trained without flips" in capsys.readouterr().out
    x, model = torch.randn(2, 3, 32, 32), trained.load(run).net
    both = FlipAverage(model)
    torch.testing.assert_close(both(x), (model(x) + model(x.flip(-1))) / 2)
    torch.testing.assert_close(both(x), both(x.flip(-1)))


def test_the_checkpoint_decides_the_normalisation(run, capsys):
    change(run, mean=[0.0, 0.0, 1.0])  # "red" is far below the mean, so never the brightest
    script.main([str(run / "last.pt")])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("red"))
    assert line.split()[1:4] == ["7", "0.00%", "undefined"]


def test_without_a_checkpoint_the_newest_run(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    script.main([])
    assert "checkpoint: runs/colours-1/last.pt (the newest run)" in capsys.readouterr().out
    (run / "last.pt").unlink()
    with pytest.raises(UserError, match="train a network first"):
        script.main([])


def test_batch_size_and_backend_change_nothing(run, tmp_path, capsys):
    figures = []
    for options in (
        ["-b", "1"],
        ["-b", "5", "--kernels", "reference"],
        ["--out", str(tmp_path / "new"), "--confusion"],
    ):
        script.main([str(run), "--amp", "off", "--json", str(tmp_path / "f.json"), *options])
        figures.append(json.loads((tmp_path / "f.json").read_text()))
    assert (tmp_path / "new" / "confusion.png").is_file() and not (run / "confusion.png").exists()
    for figure in figures:
        del figure["images_per_second"]
    rounded = [[figure.pop(key) for key in ("loss", "calibration_error")] for figure in figures]
    bins = [figure.pop("calibration")["images"] for figure in figures]
    assert figures[0] == figures[1] == figures[2] and bins[0] == bins[1] == bins[2]
    assert rounded == [pytest.approx(rounded[0], rel=1e-5)] * 3


def test_another_data_set_of_the_same_classes(run, tmp_path, capsys):
    other = make_images(tmp_path / "other", splits=("train", "val", "test"))
    script.main([str(run), "--data", str(other), "--split", "val"])
    assert f"data: {other}: 18 val images" in capsys.readouterr().out


def test_the_runs_own_validation_images(run, capsys):
    config = dataclasses.replace(read_config(checkpoint.load(run)["config"]), val_size=6)
    change(run, config=dataclasses.asdict(config))
    script.main([str(run), "--split", "val"])
    assert "6 val images" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [["blue", "green"], ["blue", "green", "yellow"], [*CLASSES, "yellow"]])
def test_classes_that_differ(run, tmp_path, classes):
    with pytest.raises(UserError, match="are not those trained on: it has .* the checkpoint has 3"):
        script.main([str(run), "--data", str(make_images(tmp_path / "other", classes))])


def test_refusals(run, tmp_path):
    cases = [
        (["--split", "val"], "no validation images"),
        (["--batch-size", "0"], "at least 1"),
        (["--worst", "0"], "--worst draws 1 to 100 images; got 0"),
        (["--device", "abacus"], "abacus"),
        (["--data", str(tmp_path / "nothing")], "nothing"),
    ]
    for options, said in cases:
        with pytest.raises(UserError, match=said):
            script.main([str(run), *options])
    weights = {
        name: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.load(run)["model"].items()
    }
    change(run, model=weights)
    with pytest.raises(UserError, match="diverged"):
        script.main([str(run)])


def test_a_place_where_nothing_can_be_written_is_an_error_before_the_work(run, tmp_path, capsys):
    (tmp_path / "f.json").mkdir()
    with pytest.raises(UserError, match="f.json is a folder; name a file"):
        script.main([str(run), "--json", str(tmp_path / "f.json")])
    with pytest.raises(OSError, match="last.pt"):
        script.main([str(run), "--report", str(run / "last.pt" / "page.html")])
    assert capsys.readouterr().out == ""


class Evil:
    def __reduce__(self):
        return (Path("owned").touch, ())


def spoil_missing(path):
    path.unlink()


def spoil_truncated(path):
    path.write_bytes(path.read_bytes()[:-5000])


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_code(path):
    torch.save({"model": Evil()}, path)


def spoil_bare_pickle(path):
    path.write_bytes(pickle.dumps(Evil()))


def spoil_foreign(path):
    torch.save({"state_dict": {}}, path)


def spoil_crowd(path):
    change(path.parent, config={**checkpoint.load(path)["config"], "task": "crowd"})


def spoil_arch(path):
    config = {**checkpoint.load(path)["config"], "arch": "resnet18", "widths": None, "blocks": None}
    change(path.parent, config=config)


SPOILERS = {
    spoil_missing: "no checkpoint at",
    spoil_truncated: "truncated|damaged",
    spoil_empty: "truncated|damaged",
    spoil_code: "is refused",
    spoil_bare_pickle: "is refused",
    spoil_foreign: "not a checkpoint of this project",
    spoil_crowd: "another architecture",
    spoil_arch: "another architecture",
}


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("name", ["eval", "visualize"])
def test_bad_checkpoints_are_refused(run, monkeypatch, name, spoil):
    monkeypatch.chdir(run)
    spoil(run / "last.pt")
    with pytest.raises(UserError, match=SPOILERS[spoil]) as error:
        importlib.import_module(name).main(
            [str(run / "last.pt"), *(["--layer", "conv1"] if name == "visualize" else [])]
        )
    assert str(run / "last.pt") in str(error.value)
    assert not Path("owned").exists()  # the code in it was not run


@pytest.mark.parametrize("name", ["eval", "visualize"])
def test_help_waits_for_nothing_heavy(name):
    code = (
        f"import sys, {name} as script; script.get_parser().format_help(); "
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    script_path = Path(__file__).parent.parent / "eval.py"
    command = [sys.executable, str(script_path), str(tmp_path / "none.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: no checkpoint at {tmp_path / 'none.pt'}\n")
    done = subprocess.run([sys.executable, str(script_path), "--confus"], capture_output=True, text=True)
    said = "error: unknown argument '--confus', did you mean --confusion?; --help lists what there is\n"
    assert (done.returncode, done.stderr) == (2, said)
