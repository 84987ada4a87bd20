import json

import pytest
import torch
from PIL import Image

import visualize
from resnet_min import checkpoint
from resnet_min.config import Config
from resnet_min.errors import UserError
from resnet_min.model import from_config


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder of an untrained net, and the working directory above runs/."""
    config = Config(
        arch="resnet50", blocks=(1, 1), widths=(4, 8), stem="imagenet", image_size=40, data="digits",
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    model = from_config(config, 10)
    folder = tmp_path / "runs" / "small-1"
    folder.mkdir(parents=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpoint.save(folder / "last.pt", checkpoint.snapshot(model, optimizer, config, tuple("0123456789"), 1, 1))
    monkeypatch.chdir(tmp_path)
    return folder


def write_rows(folder, epochs=3):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"epoch": e, "train_loss": 1 / e, "train_accuracy": 90.0, "test_accuracy": 80.0} for e in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_filters_of_the_newest_run(run, capsys):
    visualize.main(["--layer", "conv1"])
    text = capsys.readouterr().out
    assert "runs/small-1/last.pt (the newest run)" in text
    assert "filters: runs/small-1/filters-conv1.png\n" in text
    assert Image.open(run / "filters-conv1.png").size[0] > 800


def test_filters_of_a_deeper_layer_say_what_was_cut(run, tmp_path, capsys):
    visualize.main([str(run), "--layer", "layer2.0.conv1", "--out", str(tmp_path / "deep" / "f.png")])
    assert "f.png (shown: the first 4 of 16 input channels)" in capsys.readouterr().out
    assert (tmp_path / "deep" / "f.png").is_file()


@pytest.mark.parametrize(
    "name, said",
    [
        ("conv2", "unknown layer 'conv2', did you mean conv1"),
        ("layer1.0.cnv2", "did you mean layer1.0.conv2"),
        ("zzz", "unknown layer 'zzz'; --list-layers"),
        ("", "unknown layer ''"),
        ("layer1", "layer1 is a Sequential and has no filters; inside it are layer1.0.conv1, layer1.0.conv2"),
        ("fc", "fc is a Linear and has no filters; --layer takes a convolution"),
        ("bn1", "bn1 is a BatchNorm2d"),
    ],
)
def test_a_layer_without_filters(run, name, said):
    with pytest.raises(UserError) as error:
        visualize.main([str(run), "--layer", name])
    assert said in str(error.value)


def test_list_layers(run, capsys):
    visualize.main([str(run), "--list-layers"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines[0][-1] == "40x40"
    layers = {name: (kind, " ".join(shape)) for name, kind, *shape in lines[1:]}
    assert layers["conv1"] == ("Conv2d", "4 x 20 x 20")
    assert layers["maxpool"] == ("MaxPool2d", "4 x 10 x 10")
    assert layers["layer2.0.downsample.0"] == ("Conv2d", "32 x 5 x 5")
    assert layers["layer2.0"] == ("Bottleneck", "32 x 5 x 5")
    assert layers["fc"] == ("Linear", "10")
    names = [line[0] for line in lines[1:]]
    assert names.index("layer1") < names.index("layer2.0.conv1") < names.index("fc")  # in the order of use


def test_curves_of_several_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [write_rows(tmp_path / "runs" / name) for name in ("resnet18-1", "resnet18-plain-1")]
    visualize.main(["--curves", str(folders[0]), str(folders[1] / "metrics.jsonl")])
    assert capsys.readouterr().out == "curves: curves.png\n"
    assert Image.open("curves.png").size[0] > 800


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    from resnet_min import plots

    drawn = {}
    monkeypatch.setattr(plots, "curves", lambda runs, path: drawn.update(runs))
    monkeypatch.chdir(tmp_path)
    first, second = (write_rows(tmp_path / place / "run") for place in "ab")
    visualize.main(["--curves", "a/run", "b/run", "--out", "c.png"])
    assert list(drawn) == ["a/run", "b/run"]
    drawn.clear()
    monkeypatch.chdir(first)
    visualize.main(["--curves", "."])
    assert list(drawn) == ["run"]


def test_curves_of_what_is_no_run(tmp_path):
    good = write_rows(tmp_path / "good")
    (tmp_path / "none").mkdir()
    for name, text in (("empty", ""), ("corrupt", '{"epoch": 1}\n\0\0\0\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    for name, said in (("missing", "no run at"), ("none", "no metrics"), ("empty", "no epoch"), ("corrupt", "line 2")):
        with pytest.raises(UserError, match=said):
            visualize.main(["--curves", str(good), str(tmp_path / name), "--out", str(tmp_path / "c.png")])
    assert not (tmp_path / "c.png").exists()


def test_the_command_line_wants_one_thing(capsys):
    for argv in ([], ["--layer", "conv1", "--list-layers"], ["run", "--curves", "other"], ["--lay", "conv1"]):
        with pytest.raises(SystemExit) as left:
            visualize.main(argv)
        assert left.value.code == 2
    assert "name runs after --curves" in capsys.readouterr().err
