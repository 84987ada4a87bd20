"""A third task, whole in this file: the angle by which a digit was turned, a regression whose error is to be low.

It shows that nothing outside a task's room asks which task it is: the angle is trained, resumed, evaluated, drawn and
tabled by the scripts and tools as they are, once it has its line in `TASKS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers import check_legible
from PIL import Image
from torch import nn

import resnet_min
import train
import visualize
from resnet_min import data, recipes, tasks
from resnet_min.config import Figure, option
from resnet_min.data import Split
from resnet_min.data.batches import Batches, generator, rotate
from resnet_min.data.decode import pixels
from resnet_min.errors import UserError
from resnet_min.model import count_macs, count_parameters
from resnet_min.recipes import Published, Recipe
from resnet_min.runs.folder import read_rows
from resnet_min.tasks.options import TaskConfig
from resnet_min.tasks.task import Answer, Evaluation, Task, backbone
from resnet_min.training import checkpoint
from resnet_min.viz import figures
from tools import reproduce

evaluate = importlib.import_module("eval")


@dataclass(frozen=True)
class AngleConfig(TaskConfig):
    """Options of a run that learns how far a digit was turned."""

    figure: ClassVar[Figure] = Figure("error", "mean error", "°", min, axis="mean error (degrees)")
    purpose: ClassVar[str] = "tell how far a digit was turned"

    task: str = option("angle", "what to train for")
    data: str = option("digits", "the digits")
    turn: float = option(60.0, "turn each image by up to this many degrees, either way", type=float)

    def make_task(self) -> Angle:
        return Angle(self)


class TurnedBatches(Batches):
    """Digits and their angles, float32 [B]: other ones in every epoch, always the same ones to evaluate on."""

    def __init__(self, split: Split, turn: float, **options) -> None:
        super().__init__(split, **options)
        self.turn = turn

    def _turned(self, batches, epoch):
        angles = torch.from_numpy(generator(self.seed, epoch).uniform(-self.turn, self.turn, len(self.images)))
        for (images, _), angle in zip(batches, angles.split(self.batch_size), strict=True):
            yield rotate(images, angle, self.table[:, 0]), angle.float()

    def epoch(self, epoch):
        return self._turned(super().epoch(epoch), epoch)

    def ordered(self):
        return self._turned(super().ordered(), 0)


class NoClasses(data.Dataset):
    """The digits without their classes."""

    def summary(self):
        return f"{len(self.train)} digits to turn"

    def contents(self):
        return {name: "digits" for name in self.splits}


class Angle(Task):
    def load(self, needed=()):
        config = self.config
        found = data.load("digits", val_size=config.val_size, seed=config.split_seed, limit=config.limit)
        return NoClasses(**{**vars(found), "classes": ()})

    def read(self, file):
        return Split(torch.tensor(pixels(file, 32))[None], torch.tensor([0]))

    def build(self, classes):
        return backbone(self.config, num_classes=1)

    def batches(self, split, where, batch_size=None):
        config = self.config
        return TurnedBatches(
            split, config.turn, batch_size=batch_size or config.batch_size, mean=config.mean, std=config.std,
            device=where.device, dtype=where.dtype, seed=config.seed,
        )  # fmt: skip

    def loss(self, outputs, targets):
        off = outputs[:, 0] - targets / self.config.turn
        return off.square().mean(), self.config.turn * off.detach().abs()

    @torch.inference_mode()
    def judge(self, net, batches, where):
        net.eval()
        errors = [self.loss(net(images).float(), targets)[1] for images, targets in batches]
        return {"error": torch.cat(errors).mean().item()}

    def evaluate(self, net, dataset, split, where, options, picture_of):
        batches = self.batches(dataset.splits[split], where, options.batch_size)
        error = self.judge(net, batches.ordered(), where)["error"]
        print(f"{split} mean error {error:.2f}°")
        if options.worst:
            figures.save(figures.new_figure(3, 3), picture_of("worst"))
        size = {"parameters": count_parameters(net), "macs": count_macs(net, batches.size), "images_per_second": 1.0}
        return Evaluation({"error": error, **size}, {"error": f"{error:.2f}°"})

    @torch.inference_mode()
    def answer(self, net, images, classes, where, batch_size=1, picture=None):
        for name, split in images:
            ((x, _),) = self.batches(split, where, batch_size=1).ordered()
            angle = self.config.turn * net(x).item()
            if picture is not None:
                figures.save(figures.new_figure(3, 3), picture)
            yield Answer(f"{name}: turned by {angle:.1f}°", "", {"predicted": angle})


SETTINGS = dict(
    task="angle", data="digits", arch="resnet20", blocks=(1, 1), widths=(16, 16), strides=(2, 2), flip=0.0, epochs=3,
    batch_size=32, optimizer="adam", wd=0.0, lr=0.003, schedule="cosine", t_max=12, limit=320, val_size=320, amp="off",
)  # fmt: skip


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """The one line in the registry, and a recipe; in an empty working directory."""
    monkeypatch.setitem(tasks.TASKS, "angle", AngleConfig)
    monkeypatch.setitem(recipes.RECIPES, "turned", Recipe(SETTINGS, "this file", Published(test=30, unit="°")))
    monkeypatch.chdir(tmp_path)


def run(out, *flags):
    train.main(["--recipe", "turned", "--device", "cpu", "--out", out, *flags])
    return read_rows(out)


def test_it_learns_and_lower_is_better(capsys):
    rows = run("run", "--epochs", "12")
    assert rows[-1]["test_error"] < 20 < rows[0]["train_error"]  # never turned is 30 on average
    best = min(rows, key=lambda row: row["val_error"])["epoch"]
    assert checkpoint.load("run/best.pt")["epoch"] == best
    out = capsys.readouterr().out
    assert f"result: test mean error {rows[-1]['test_error']:.2f}° (epoch 12, the last)" in out
    assert "chosen by its validation mean error of" in out and "digits to turn" in out
    config = json.loads(Path("run/config.json").read_text())
    assert config["turn"] == 60 and "padding" not in config and "crop" not in config


def test_it_resumes_to_the_bit(capsys):
    whole = run("whole")
    run("parts", "--epochs", "2")
    train.main(["--resume", "parts", "--epochs", "3"])
    one, two = (checkpoint.load(name)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [row["train_loss"] for row in read_rows("parts")] == [row["train_loss"] for row in whole]


def test_it_evaluates_and_compares(capsys):
    rows = run("one"), run("two", "--turn", "20")
    capsys.readouterr()
    evaluate.main(["one", "two", "--json", "f.json", "--device", "cpu", "--worst", "2"])
    out, found = capsys.readouterr().out, json.loads(Path("f.json").read_text())
    # Its own validation split apart, a run is evaluated on all its test images; this one was trained with a limit.
    assert [figures["name"] for figures in found] == ["one", "two"] and all(f["error"] > 0 for f in found)
    assert "network" in out and f"{found[0]['error']:.2f}°" in out and Path("comparison.png").exists()
    assert Path("one/worst.png").exists() and rows[0][-1]["test_error"] > 0
    with pytest.raises(UserError, match="--confusion is for --task classify; one/last.pt is of --task angle"):
        evaluate.main(["one", "--confusion"])
    with pytest.raises(UserError, match="--turn is an option of --task angle; this is --task classify"):
        train.main(["--data", "digits", "--turn", "3"])
    with pytest.raises(UserError, match="--padding is an option of --task classify; this is --task angle"):
        run("three", "--padding", "2")


def test_it_answers(capsys):
    run("run")
    Image.new("L", (40, 30)).save("picture.png")
    evaluate.main(["run", "--images", "picture.png", "none.png", "--json", "f.json", "--device", "cpu"])
    with pytest.raises(UserError, match="run/last.pt is of --task angle: it has no classes to predict"):
        resnet_min.load("run")
    (row, none) = json.loads(Path("f.json").read_text())["images"]
    assert f"picture.png: turned by {row['predicted']:.1f}°" in capsys.readouterr().out and "error" in none


def test_it_is_drawn(drawn, capsys):
    run("run", "--epochs", "2")
    visualize.main(["--curves", "run", "--out", "curves.png"])
    assert drawn[-1].axes[1].get_title("left") == "mean error (degrees)"
    check_legible(drawn[-1], Path("curves.png"))
    visualize.main(["run", "--layer", "layer1", "--what", "features", "--image", "5"])
    assert "test image 5: turned by" in capsys.readouterr().out
    visualize.main(["run", "--image", "5", "--out", "p.png"])
    assert Image.open("p.png").size[0] > 100


def test_it_is_tabled():
    reproduce.main(["turned", "--device", "cpu"])
    text = Path("RESULTS.md").read_text()
    error = read_rows("runs/reproduce/turned")[-1]["test_error"]
    line, _ = (line for line in text.splitlines() if line.startswith("| turned "))
    assert f" {error:.2f}° " in line and " 30° " in line and f" {error - 30:+.2f} " in line


def test_its_options_survive_json():
    config = tasks.make_config({**SETTINGS, "turn": 10})
    assert tasks.read_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert isinstance(config.make_task().build(()), nn.Module) and config.input_size == (64, 64)
