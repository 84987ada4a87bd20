"""eval.py --images: what a net says of images that belong to no data set; and --data with test images alone."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_min
from resnet_min.errors import UserError
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import checkpoint

script = importlib.import_module("eval")
CLASSES = ("blue", "green", "red")
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose net tells colours apart, and the working directory above it; with a folder of pictures."""
    monkeypatch.chdir(tmp_path)
    return save("run", CLASSES)


def save(folder, classes):
    config = ClassifyConfig(
        arch="resnet20", blocks=(1, 1), widths=(4, 8), data="digits", mean=(0.5,) * 3, std=(0.25,) * 3, amp="off"
    )
    net = config.make_task().build(classes)
    with torch.no_grad():  # one channel through the whole net for each colour, blue first
        for weight in (p for p in net.parameters() if p.dim() == 4):
            weight.zero_()
        for channel in range(3):
            net.conv1.weight[channel, 2 - channel, 1, 1] = 1
        net.fc.weight.copy_(2 * torch.eye(len(classes), 8))
        net.fc.bias.zero_()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    Path(folder).mkdir()
    checkpoint.save(Path(folder, "last.pt"), checkpoint.snapshot(net, optimizer, config, tuple(classes), 3, 30))
    return folder


@pytest.fixture
def pictures(run):
    """Pictures of several sizes, kinds and depths of folder; and two that are none."""
    Path("pictures/deeper/.hidden").mkdir(parents=True)
    Image.new("RGB", (90, 40), COLOURS["red"]).save("pictures/a.jpg")
    Image.new("RGBA", (5, 7), (*COLOURS["green"], 10)).save("pictures/b.PNG")
    Image.new("RGB", (32, 32), COLOURS["blue"]).save("pictures/deeper/d.webp")
    Path("pictures/c.jpg").write_bytes(Path("pictures/a.jpg").read_bytes()[:400])
    Path("pictures/notes.txt").write_text("no picture")
    for hidden in ("pictures/.a.jpg", "pictures/deeper/.hidden/a.jpg"):
        Path(hidden).write_text("no picture")
    return ["pictures/a.jpg", "pictures/b.PNG", "pictures/c.jpg", "pictures/deeper/d.webp"]


def said(text):
    """The lines of answers, without those before the empty line."""
    return text.split("\n\n", 1)[1].splitlines()


@pytest.mark.parametrize("batch", [[], ["-b", "1"], ["-b", "2"]], ids=str)
def test_a_folder_is_answered_and_what_is_damaged_is_named(run, pictures, capsys, batch):
    script.main([run, "--images", "pictures", "--json", "answers.json", *batch])
    text = capsys.readouterr()
    lines, content = said(text.out), json.loads(Path("answers.json").read_text())
    assert [line.split(" (")[0] for line in lines[:3]] == [
        "pictures/a.jpg: predicted red", "pictures/b.PNG: predicted green", "pictures/deeper/d.webp: predicted blue",
    ]  # fmt: skip
    assert lines[3:] == ["answers: answers.json", "3 answered, 1 skipped"]
    (skipped,) = text.err.splitlines()
    assert skipped.startswith("skipped: cannot read the image pictures/c.jpg: ")
    assert content["checkpoint"] == "run/last.pt" and content["classes"] == list(CLASSES)
    assert [row["image"] for row in content["images"]] == pictures
    assert [row.get("predicted") for row in content["images"]] == ["red", "green", None, "blue"]
    assert "c.jpg" in content["images"][2]["error"]
    shares = content["images"][0]["probabilities"]
    assert list(shares) == list(CLASSES) and sum(shares.values()) == pytest.approx(1)
    assert f"predicted red ({100 * shares['red']:.1f}%), " in lines[0]


def test_it_says_what_predict_says(run, pictures, capsys):
    script.main([run, "--images", *pictures, "--json", "f.json"])
    rows = json.loads(Path("f.json").read_text())["images"]
    readable = [row for row in rows if "error" not in row]
    net = resnet_min.load(run)
    wanted = net.predict([Image.open(row["image"]) for row in readable])
    got = torch.tensor([list(row["probabilities"].values()) for row in readable])
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["empty"], r"no images in empty \(looked for \.jpg"),
        (["notes"], r"no images in notes \(looked for \.jpg"),
        (["notes/notes.txt"], "cannot read the image notes/notes.txt: cannot identify"),
        (["none.jpg"], "cannot read the image none.jpg: .*No such file"),
        (["empty", "none.jpg", "notes"], "none of the 3 images could be read"),
    ],
)
def test_nothing_that_could_be_read(run, paths, said, capsys):
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=said) as error:
        script.main([run, "--images", *paths])
    assert "\n" not in str(error.value)
    assert len(capsys.readouterr().err.splitlines()) == (len(paths) if len(paths) > 1 else 0)


def test_exit_codes(run, pictures):
    Path("empty").mkdir()
    command = [sys.executable, Path(script.__file__), run, "--images"]
    some = subprocess.run([*command, "pictures", "empty"], capture_output=True, text=True)
    assert some.returncode == 0 and len(some.stderr.splitlines()) == 2
    none = subprocess.run([*command, "pictures/c.jpg"], capture_output=True, text=True)
    assert none.returncode == 2 and none.stderr.startswith("error: cannot read the image pictures/c.jpg: ")
    assert len(none.stderr.splitlines()) == 1


def test_odd_names_stay_on_their_line(run, capsys):
    odd = save("odd", ("two\nlines", "\x1b[31mred", "$x_1$ naïve 猫", "\udcff"))
    Image.new("RGB", (9, 9), COLOURS["green"]).save(os.fsencode("a\nb") + b"\xff.png")
    script.main([odd, "--images", ".", "--json", "answers.json"])
    (line, *_) = said(capsys.readouterr().out)
    assert line.startswith(r"./a\nb\udcff.png: predicted \x1b[31mred (") and line.isprintable()
    (row,) = json.loads(Path("answers.json").read_text())["images"]
    assert row["predicted"] == "\x1b[31mred" and os.fsencode(row["image"]) == b"./a\nb\xff.png"


@pytest.mark.parametrize(
    "options", [["--split", "test"], ["--data", "digits"], ["--confusion"], ["--tta", "flip"], ["--worst", "2"]]
)
def test_options_that_would_change_nothing_are_refused(run, options):
    with pytest.raises(UserError, match=f"{options[0]} would change nothing: --images only says"):
        script.main([run, "--images", "a.png", *options])
    with pytest.raises(UserError, match="--images asks one network; got 2 checkpoints"):
        script.main([run, run, "--images", "a.png"])


def test_weights_of_a_run_that_diverged(run, pictures):
    saved = checkpoint.load(run)
    saved["model"]["fc.bias"][:] = float("nan")
    checkpoint.save(Path(run, "last.pt"), saved)
    with pytest.raises(UserError, match="diverged"):
        script.main([run, "--images", "pictures"])


def make_images(root, splits, classes=CLASSES):
    """An image folder, three pictures a class and split."""
    for split in splits:
        rng = np.random.default_rng(0)
        for name in classes:
            Path(root, split, name).mkdir(parents=True)
            for number in range(3):
                noise = rng.integers(-40, 40, (32, 32, 3)) + COLOURS.get(name, (0, 0, 0))
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(Path(root, split, name, f"{number}.png"))
    return root


def test_a_folder_of_test_images_is_enough_to_evaluate(run, capsys):
    figures = []
    for splits in (["test"], ["train", "test"]):
        root = make_images("-".join(splits), splits)
        script.main([run, "--data", root, "--json", "f.json"])
        figures.append(json.loads(Path("f.json").read_text()))
    assert "9 test images; 3 classes" in capsys.readouterr().out and figures[0]["accuracy"] == 100
    assert figures[0]["confusion"] == figures[1]["confusion"] and figures[0]["loss"] == figures[1]["loss"]


def test_validation_images_need_no_training_images(run, capsys):
    script.main([run, "--data", make_images("images", ["val", "test"]), "--split", "val"])
    assert "9 val images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("splits", "classes", "options", "said"),
    [
        (["train"], CLASSES, [], "has no test/ folder; wanted test/CLASS/\\*$"),
        (["test"], CLASSES[:2], [], "are not those trained on: it has 2 .* the checkpoint has 3"),
        (["test"], CLASSES[:1], [], r"two or more classes; got \['blue'\]"),
        (["test"], CLASSES, ["--split", "val"], "no validation images"),
    ],
)
def test_folders_that_are_not_enough(run, splits, classes, options, said):
    with pytest.raises(UserError, match=said):
        script.main([run, "--data", make_images("images", splits, classes), *options])


def test_training_still_needs_training_images(tmp_path):
    import train

    with pytest.raises(UserError, match=r"has no train/ folder; wanted train/CLASS/\* and test/CLASS/\*"):
        train.main(["--data", str(make_images(tmp_path / "images", ["test"]))])
