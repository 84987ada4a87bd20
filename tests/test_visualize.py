import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import check_legible
from PIL import Image

import visualize
from resnet_min.errors import UserError
from resnet_min.tasks import make_config, read_config
from resnet_min.training import checkpoint
from resnet_min.viz import pictures


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder of an untrained net, and the working directory above runs/."""
    config = make_config(dict(
        arch="resnet50", blocks=(1, 1), widths=(4, 8), stem="imagenet", image_size=40, data="digits",
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    ))  # fmt: skip
    model = config.make_task().build(range(10))
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
    assert text.endswith("filters: runs/small-1/filters-conv1.png\n")
    assert Image.open(run / "filters-conv1.png").size[0] > 800


def test_filters_of_a_deeper_layer_say_what_was_cut(run, tmp_path, capsys):
    visualize.main([str(run), "--layer", "layer2.0.conv1", "--out", str(tmp_path / "deep" / "f.png")])
    assert "shown: the first 4 of 16 input channels\n" in capsys.readouterr().out
    assert (tmp_path / "deep" / "f.png").is_file()


@pytest.mark.parametrize(
    "name, said",
    [
        ("conv2", "unknown layer 'conv2', did you mean conv1"),
        ("layer1.0.cnv2", "did you mean layer1.0.conv2"),
        ("zzz", "unknown layer 'zzz'; --list-layers"),
        ("", "unknown layer ''"),
        ("layer1", "layer1 is a Sequential and has no filters; inside it are layer1.0.conv1, layer1.0.conv2"),
        ("fc", "fc is a Linear and has no filters; conv1 is a convolution"),
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
    layers = {name: (kind, sees, " ".join(shape)) for name, kind, sees, *shape in lines[1:]}
    assert layers["conv1"] == ("Conv2d", "7x7", "4 x 20 x 20")
    assert layers["maxpool"] == ("MaxPool2d", "11x11", "4 x 10 x 10")
    assert layers["layer2.0.downsample.0"] == ("Conv2d", "19x19", "32 x 5 x 5")
    assert layers["layer2.0"] == ("Bottleneck", "27x27", "32 x 5 x 5")
    assert layers["avgpool"] == ("AdaptiveAvgPool2d", "all", "32 x 1 x 1")
    assert layers["fc"] == ("Linear", "all", "10")
    names = [line[0] for line in lines[1:]]
    assert names.index("layer1") < names.index("layer2.0.conv1") < names.index("fc")  # in the order of use


WHATS = {
    "features": ["--layer", "layer1.0.bn2", "--what", "features", "--image", "3"],
    "features of one channel": ["--layer", "layer1.0.relu1", "--what", "features", "--channel", "3"],
    "features of all": ["--layer", "all"],
    "every map in grey": ["--layer", "layer2", "--what", "features", "--channel", "all", "--grey", "--scale", "map"],
    "some channels": ["--layer", "layer2", "--what", "features", "--channel", "3", "30"],
    "top of some": ["--layer", "layer1", "--what", "top", "--channel", "2", "3"],
    "every channel reconstructed": ["--layer", "stem", "--what", "reconstruct", "--channel", "all"],
    "top": ["--layer", "layer1", "--what", "top"],
    "top of one channel": ["--layer", "maxpool", "--what", "top", "--channel", "2"],
    "reconstruct": ["--layer", "layer2.0.downsample", "--what", "reconstruct", "--shortcut", "subtract"],
    "reconstruct one channel": ["--layer", "layer2", "--what", "reconstruct", "--channel", "31", "--no-rectify"],
    "reconstruct all": ["--layer", "all", "--what", "reconstruct"],
    "gradcam": ["--layer", "layer2", "--what", "gradcam", "--class", "7"],
    "gradcam of all": ["--layer", "all", "--what", "gradcam"],
}


@pytest.mark.parametrize("argv", WHATS.values(), ids=WHATS)
def test_every_kind_of_picture_is_legible(run, drawn, capsys, argv):
    visualize.main([str(run), *argv])
    text = capsys.readouterr().out
    what = argv[3] if len(argv) > 2 else "features"
    after = argv[argv.index("--channel") + 1 :] if "--channel" in argv else []
    channel = "".join(f"-{value}" for value in after if value == "all" or value.isdecimal())
    picture = run / f"{what}-{argv[1]}{channel}.png"
    assert text.endswith(f"{what}: {picture}\n")
    if what != "top":
        number = 3 if "--image" in argv else 0
        assert f"test image {number} (" in text and ": predicted " in text
    check_legible(drawn[0], picture)


def test_what_the_pictures_show(run, monkeypatch):
    shown = {}
    monkeypatch.setattr(pictures, "panels", lambda rows, path, **said: shown.update(said, rows=rows))
    visualize.main([str(run), "--layer", "all", "--what", "reconstruct"])
    assert shown["labels"] == ["shortcuts: add", "shortcuts: subtract", "shortcuts: main"]
    add, subtract, main = ([panel.picture for panel in row] for row in shown["rows"])
    # No shortcut is before the first block: the stem's projection is drawn once, as the image is.
    assert [panel.caption for panel in shown["rows"][0]] == ["image", "stem", "layer1", "layer2"]
    assert all(row[place] is pictures.BLANK for row in shown["rows"][1:] for place in (0, 1))
    assert not (add[3] == subtract[3]).all() and not (add[3] == main[3]).all()
    assert shown["title"].startswith("resnet50 (small-1): test image 0 (")
    visualize.main([str(run), "--layer", "layer2", "--what", "reconstruct", "--channel", "5", "--shortcut", "main"])
    assert [panel.caption for panel in shown["rows"][0]] == ["image", "its map", "channel 5", "its peak alone"]
    assert "shortcuts: main" in shown["title"] and shown["rows"][0][3].box is not None

    visualize.main([str(run), "--layer", "conv1", "--what", "top", "--channel", "0"])
    peaks = [float(panel.caption.split()[-1]) for row in shown["rows"] for panel in row]
    assert len(peaks) == 16 and peaks == sorted(peaks, reverse=True)
    for row in shown["rows"]:
        for panel in row:
            top, left, bottom, right = panel.box
            assert 0 <= top < bottom <= 40 and 4 <= bottom - top <= 7 and 4 <= right - left <= 7


def test_a_plain_net_has_no_shortcuts_to_go_through(run, monkeypatch):
    saved = checkpoint.load(run)
    config = read_config({**saved["config"], "plain": True})
    saved.update(config=dataclasses.asdict(config), model=config.make_task().build(range(10)).state_dict())
    checkpoint.save(run / "last.pt", saved)
    shown = {}
    monkeypatch.setattr(pictures, "panels", lambda rows, path, **said: shown.update(said, rows=rows))
    visualize.main([str(run), "--layer", "all", "--what", "reconstruct"])
    assert len(shown["rows"]) == 1 and not shown["labels"]
    with pytest.raises(UserError, match="plain"):
        visualize.main([str(run), "--layer", "layer2", "--what", "reconstruct", "--shortcut", "main"])


def test_weights_of_a_run_that_diverged(run):
    saved = checkpoint.load(run)
    saved["model"]["fc.bias"][:] = float("nan")
    checkpoint.save(run / "last.pt", saved)
    with pytest.raises(UserError, match="diverged"):
        visualize.main([str(run), "--layer", "layer1", "--what", "top"])


def save_grey(path):
    Image.fromarray(np.arange(60 * 50).reshape(60, 50).astype(np.uint16) * 20).save(path)


def save_palette(path):
    Image.effect_noise((32, 32), 50).convert("P").save(path, transparency=3)


def save_rgba(path):
    Image.new("RGBA", (90, 30), (200, 30, 30, 128)).save(path)


@pytest.mark.parametrize(
    "save, said", [(save_grey, "50x60 I;16 PNG"), (save_palette, "32x32 P PNG"), (save_rgba, "90x30 RGBA PNG")]
)
def test_a_picture_of_another_size_or_mode_is_converted_and_that_is_said(run, tmp_path, capsys, save, said):
    save(tmp_path / "p.png")
    visualize.main([str(run), "--layer", "layer1", "--what", "gradcam", "--image", "p.png"])
    text = capsys.readouterr().out
    assert f"converted: {said} to 40x40 RGB" in text and "p.png: predicted" in text


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["layer1", "features", "--image", "none.png"],
            "--image none.png: no such file; wanted a picture, or the number",
        ),
        (["layer1", "features", "--image", "360"], "digits has the test images 0 to 359"),
        (["layer1", "features", "--image", "-1"], "no such file"),
        (["layer1", "features", "--image", __file__, "--data", "digits"], "--data says where a test image is from"),
        (["layer1", "features", "--image", "runs/small-1/last.pt"], "cannot read the image runs/small-1/last.pt"),
        (["layer1", "features", "--channel", "16"], "--channel 16: layer1 has the channels 0 to 15"),
        (["layer1", "top", "--channel", "-1"], "--channel -1: layer1 has the channels 0 to 15"),
        (["layer1", "reconstruct", "--channel", "99"], "--channel 99: layer1 has"),
        (["fc", "features"], "fc is a Linear and has no spatial output; the last layer that has one is layer2"),
        (["avgpool", "reconstruct"], "no spatial output"),
        (["dropout", "gradcam"], "no spatial output"),
        (["layr1", "top"], "did you mean layer1"),
        (["layer1", "gradcam", "--class", "cat"], "--class cat: the classes are 0, 1, 2"),
        (["layer1", "features", "--data", "nowhere"], "nowhere"),
        (["layer1", "features", "--out", "p.doc"], "argument --out: 'p.doc' must end in .png or .pdf or .svg"),
    ],
)
def test_bad_input(run, argv, said):
    layer, what, *rest = argv
    with pytest.raises(UserError) as error:
        visualize.main([str(run), "--layer", layer, "--what", what, *rest])
    assert said in str(error.value)
    assert not list(run.glob("*.png"))


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["--layer", "conv1", "--image", "3"],
            "--image goes with --layer and --what features or reconstruct or gradcam",
        ),
        (["--layer", "conv1", "--channel", "3"], "--channel goes with --layer and --what features or top"),
        (["--layer", "conv1", "--what", "top", "--class", "3"], "--class goes with --layer and --what gradcam"),
        (["--layer", "conv1", "--what", "top", "--rectify"], "--rectify goes with --layer and --what reconstruct"),
        (["--layer", "all", "--what", "reconstruct", "--channel", "3"], "with --channel K only features"),
        (["--layer", "all", "--what", "top"], "several layers go with"),
        (["--layer", "conv1", "layer1", "--what", "filters"], "several layers go with"),
        (["--layer", "all", "layer1"], "--layer all is all of them"),
        (["--layer", "layer1", "--what", "top", "--channel", "all"], "--channel all is every one"),
        (["--layer", "layer1", "--what", "features", "--channel", "all", "3"], "--channel all is every one"),
        (["--layer", "layer1", "--what", "top", "--grey"], "--grey goes with --layer and --what features"),
        (["--layer", "conv1", "--label", "a"], "go with --curves"),
        (["--curves", "a", "--steps", "--over", "lr"], "draw one of them"),
        (["--curves", "a", "--out", "a.png", "--format", "svg"], "leave --format out"),
        (["--list-layers", "--what", "top"], "--what goes with --layer"),
        (["--list-layers", "--image", "3"], "--image goes with --layer"),
        (["--curves", "a", "--data", "digits"], "--data goes with --layer and --what features or top or reconstruct"),
        (["--layer", "conv1", "--data", "digits"], "--data goes with --layer and --what features or top"),
        (["--list-layers", "--data-dir", "d"], "--data-dir goes with --layer"),
        (["--curves", "a", "--cache-dir", "d"], "--cache-dir goes with --layer"),
        (["--list-layers", "--title", "hi"], "--list-layers draws none"),
        (["--list-layers", "--out", "z.png"], "--list-layers draws none"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(run, argv, said):
    with pytest.raises(UserError) as left:
        visualize.main(argv)
    assert said in str(left.value)


def test_curves_of_several_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [write_rows(tmp_path / "runs" / name) for name in ("resnet18-1", "resnet18-plain-1")]
    visualize.main(["--curves", str(folders[0]), str(folders[1] / "metrics.jsonl")])
    assert capsys.readouterr().out == "curves: curves.png\n"
    assert Image.open("curves.png").size[0] > 800


def test_the_loss_of_every_step(tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(name).mkdir()
        losses = np.random.default_rng(0).random(120)
        lines = [json.dumps({"step": step, "lr": 0.1, "loss": loss}) for step, loss in enumerate(losses, start=1)]
        Path(name, "steps.jsonl").write_text("\n".join(lines) + "\n")
    visualize.main(["--curves", "one", "two", "--steps"])
    assert capsys.readouterr().out == "curves: steps.png\n"
    raw, mean, *_ = drawn[0].axes[0].lines
    np.testing.assert_allclose(raw.get_ydata(), losses)
    np.testing.assert_allclose(mean.get_ydata(), [losses[0], *((losses[1:] + losses[:-1]) / 2)])
    check_legible(drawn[0], Path("steps.png"))
    with pytest.raises(UserError, match="go with --curves"):
        visualize.main(["--layer", "conv1", "--steps"])
    Path("two", "steps.jsonl").write_text('{"step": 1, "loss": null}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        visualize.main(["--curves", "two", "--steps"])


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    from resnet_min.viz import figures

    drawn = {}
    monkeypatch.setattr(figures, "curves", lambda runs, path, figure, title: drawn.update(runs))
    monkeypatch.chdir(tmp_path)
    first, second = (write_rows(tmp_path / place / "run") for place in "ab")
    visualize.main(["--curves", "a/run", "b/run", "--out", "c.png"])
    assert list(drawn) == ["a/run", "b/run"]
    drawn.clear()
    monkeypatch.chdir(first)
    visualize.main(["--curves", "."])
    assert list(drawn) == ["run"]


def test_a_run_that_is_named_twice_is_drawn_once(tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "run")
    visualize.main(["--curves", "run", "./run", "run/metrics.jsonl", "--label", "mine"])
    assert [text.get_text().split("\n")[0] for text in drawn[0].axes[1].texts] == ["mine"]


def test_curves_begin_with_the_loss_before_anything_was_learnt(tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "run")
    lines = [json.dumps({"step": step, "lr": 0.1, "loss": loss}) for step, loss in ((1, 2.3), (2, 2.1))]
    Path("run/steps.jsonl").write_text("\n".join(lines) + "\n")
    visualize.main(["--curves", "run/metrics.jsonl"])
    loss, accuracy = drawn[0].axes
    assert loss.lines[0].get_xydata()[:2].tolist() == [[0, 2.3], [1, 1]]
    assert list(accuracy.lines[0].get_xdata()) == [1, 2, 3]


def test_labels_a_title_and_a_format(tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_rows(tmp_path / name)
    visualize.main("--curves one two --label residual plain --format svg --title".split() + ["the argument"])
    assert Path("curves.svg").is_file() and drawn[0].get_suptitle() == "the argument"
    assert {text.get_text().split("\n")[0] for text in drawn[0].axes[1].texts} == {"residual", "plain"}
    for labels in (["one"], ["same", "same"]):
        with pytest.raises(UserError, match="--label wants 2 different names"):
            visualize.main(["--curves", "one", "two", "--label", *labels])


def test_figures_over_an_option_of_the_runs(tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.chdir(tmp_path)
    for name, rate in (("one", 0.1), ("two", 0.4)):
        write_rows(tmp_path / name)
        Path(name, "config.json").write_text(json.dumps({"dropout": rate, "arch": "resnet18"}))
    visualize.main(["--curves", "one", "two", "--over", "dropout"])
    assert capsys.readouterr().out == "curves: dropout.png\n" and Path("dropout.png").is_file()
    assert [tick for tick in drawn[0].axes[0].get_xticks()] == [0.1, 0.4]
    for option, said in (("arch", "has no number"), ("drop-out", "has no number")):
        with pytest.raises(UserError, match=said):
            visualize.main(["--curves", "one", "two", "--over", option])
    Path("two", "config.json").unlink()
    with pytest.raises(UserError, match="two holds no readable config.json"):
        visualize.main(["--curves", "one", "two", "--over", "dropout"])


def test_the_same_channels_of_several_layers(run, monkeypatch):
    shown = {}
    monkeypatch.setattr(pictures, "panels", lambda rows, path, **said: shown.update(said, rows=rows))
    layers = ["--layer", "conv1", "layer2", "--what", "features"]
    visualize.main([str(run), *layers, "--channel", "3", "1", "--title", "mine"])
    assert [[panel.caption for panel in row] for row in shown["rows"]] == [[""], ["3", "1"], ["3", "1"]]
    assert [label.split("\n")[0] for label in shown["labels"]] == ["image", "conv1", "layer2"]
    assert shown["labels"][1].split("\n")[2].split(" to ")[0].startswith("-") and shown["title"] == "mine"
    with pytest.raises(UserError, match="--channel 4: conv1 has the channels 0 to 3"):
        visualize.main([str(run), *layers, "--channel", "4"])


def test_an_image_as_training_draws_it(run, monkeypatch, capsys):
    shown = {}
    monkeypatch.setattr(pictures, "panels", lambda rows, path, **said: shown.update(said, rows=rows))
    visualize.main([str(run), "--augment", "--image", "3"])
    assert capsys.readouterr().out.endswith(f"augmented: {run / 'augment-3.png'}\n")
    (row,) = shown["rows"]
    original, moved, flipped = (panel.picture for panel in row[:3])
    assert [panel.caption for panel in row][:4] == ["original", "translated", "and flipped", "epoch 2"] and len(
        row
    ) == 8
    assert not (moved == original).all() and (flipped == moved[:, ::-1]).all()


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


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "one of --layer"),
        (["--layer", "conv1", "--list-layers"], "not allowed with"),
        (["run", "--curves", "other"], "name runs after --curves"),
        (["--lay", "conv1"], "unknown argument '--lay', did you mean --layer"),
    ],
)
def test_the_command_line_wants_one_thing(argv, said):
    with pytest.raises(UserError, match=said):
        visualize.main(argv)
