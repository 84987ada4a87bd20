"""Weights in the package: made of a run by tools.package_weights, and used by name from Python and by the scripts.

Those that are made here are of an untrained net, in a folder that stands for the package's. Whatever the package itself
has is looked at too.
"""

import hashlib
import importlib
import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_min
import train
import visualize
from resnet_min import weights
from resnet_min.data import sources
from resnet_min.errors import UserError
from resnet_min.runs import job
from resnet_min.tasks import trained
from resnet_min.training import checkpoint
from tools import package_weights

evaluate = importlib.import_module("eval")
QUICK = "--data digits --arch resnet20 --limit 20 -b 10 --schedule constant --lr 0.001".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "digits-1"
    torch.manual_seed(0)
    train.main([*QUICK, "--epochs", "1", "--seed", "3", "--no-nesterov", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """A folder with its weights, resnet20-digits, and their card."""
    folder = tmp_path_factory.mktemp("made")
    package_weights.main([str(run), "--out", str(folder), "--note", "of a test"])
    return folder


@pytest.fixture
def package(made, tmp_path, monkeypatch):
    """The package's folder, with copies of these; the working directory is another one, empty."""
    folder = shutil.copytree(made, tmp_path / "package")
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(weights, "FOLDER", folder)
    monkeypatch.chdir(tmp_path / "here")
    return folder


def card_of(folder, name="resnet20-digits"):
    return json.loads((folder / f"{name}.json").read_text())


def test_a_file_holds_the_network_and_nothing_of_this_machine(run, made):
    file, card = made / "resnet20-digits.pt", card_of(made)
    assert file.stat().st_size == card["bytes"] <= package_weights.LARGEST
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["sha256"]
    saved, was = torch.load(file, weights_only=True), checkpoint.load(run)
    assert saved["optimizer"] == {"state": {}, "param_groups": []}
    assert str(run.parent) not in str(saved["config"]) and os.getcwd() not in str(saved["config"])
    for name, tensor in was["model"].items():
        assert torch.equal(saved["model"][name], tensor), name
    assert not list(made.glob(".*"))


def test_a_card_says_what_was_done(run, made, package, tmp_path):
    card = card_of(made)
    assert (card["name"], card["parameters"], card["seed"]) == ("resnet20-digits", 269_722, 3)
    assert (card["data"], card["measured_on"], card["note"]) == ("digits", "digits", "of a test")
    assert card["log"] == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(card["environment"]) == 1 and card["environment"][0]["git_revision"]
    python, script, *flags = shlex.split(card["trained_by"])
    assert (python, script) == ("python", "train.py")
    again = job.configure(vars(train.get_parser().parse_args(flags)), None)
    config = checkpoint.load(run)["config"]
    for name in set(config) - {"data_dir", "mean", "std"}:
        assert getattr(again, name) == config[name], name
    python, script, *flags = shlex.split(card["measured_by"])
    assert (python, script) == ("python", "eval.py")
    evaluate.main([*flags, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["accuracy"] == pytest.approx(card["test_accuracy"]) and card["test_images"] == 360


def test_a_card_of_a_folder_says_so_in_both_commands_and_how_images_are_normalised(run, made, tmp_path):
    assert card_of(made)["mean"] == list(checkpoint.load(run)["mean"])
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(2):
                Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / f"pets/{split}/{name}/{number}.png")
    flags = "--arch resnet20 --epochs 1 -b 4 --schedule constant --mean .5 .4 .3 --std .2 .2 .1".split()
    train.main([*flags, "--data", str(tmp_path / "pets"), "--out", str(tmp_path / "run")])
    package_weights.main([str(tmp_path / "run"), "--out", str(tmp_path)])
    card = card_of(tmp_path, "resnet20-pets")
    assert (card["mean"], card["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    assert card["trained_by"].startswith("python train.py --data FOLDER --arch resnet20 ")
    assert card["measured_by"].endswith(" --data FOLDER")


def test_a_net_by_the_name_of_its_weights(run, package):
    picture = Image.effect_noise((40, 30), 90)
    wanted = resnet_min.load(run).predict(picture)
    for net in (resnet_min.resnet20(weights="digits"), resnet_min.resnet("resnet20", weights="resnet20-digits")):
        assert not net.training and net.classes == tuple("0123456789")
        torch.testing.assert_close(net.predict(picture), wanted)
    net = resnet_min.resnet20(num_classes=10, dropout=0.5, weights="digits").train()
    assert net.dropout.p == 0.5 and any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("arch", "options", "says"),
    [
        (
            "resnet20",
            {"weights": "cifar10"},
            "no weights 'cifar10' of resnet20 come with the package; it has resnet20-d",
        ),
        ("resnet20", {"weights": True}, "no weights True of resnet20"),
        ("resnet20", {"weights": ""}, "no weights '' of resnet20"),
        ("resnet32", {"weights": "digits"}, "no weights 'digits' of resnet32"),
        ("resnet20", {"weights": "digits", "num_classes": 5}, "tell 10 classes; got num_classes=5"),
        ("resnet20", {"weights": "digits", "plain": True}, "are for resnet20 as it is: without stem, plain"),
        ("resnet20", {"weights": "digits", "stem": "imagenet"}, "are for resnet20 as it is"),
        ("resnet20", {"weights": "digits", "strides": (1, 2, 1)}, "are for resnet20 as it is"),
        ("resnet20", {"weights": "digits", "option": "B"}, "are for resnet20 as it is"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(package, arch, options, says):
    with pytest.raises(UserError, match=says):
        resnet_min.resnet(arch, **options)


def test_names_that_several_have_a_damaged_file_and_none(package):
    shutil.copy(package / "resnet20-digits.json", package / "resnet32-digits.json")
    with pytest.raises(UserError, match="2 weights 'digits' come with the package; it has resnet20-digits, resnet32-d"):
        weights.find("digits")
    assert weights.find("digits", "resnet20") == weights.find("resnet20-digits") == package / "resnet20-digits.pt"
    with open(package / "resnet20-digits.pt", "r+b") as file:
        file.seek(500_000)
        file.write(b"damage")
    with pytest.raises(UserError, match="resnet20-digits.pt is damaged: its SHA-256 is not the one on its card"):
        resnet_min.resnet20(weights="digits")
    shutil.rmtree(package)
    with pytest.raises(UserError, match="no weights 'digits' come with the package; it has none"):
        weights.find("digits")


def test_eval_takes_them_and_draws_here(run, package, capsys):
    before = sorted(os.listdir(package))
    evaluate.main(["--weights", "digits", "--confusion"])
    out = capsys.readouterr().out
    assert f"checkpoint: {package}/resnet20-digits.pt\n" in out and "360 test images" in out
    assert Path("resnet20-digits-confusion.png").is_file() and sorted(os.listdir(package)) == before
    evaluate.main([str(run), "--weights", "digits", "--out", "both"])
    assert "package/resnet20-digits" in capsys.readouterr().out and Path("both/comparison.png").is_file()
    Image.effect_noise((40, 30), 90).save("a.png")
    evaluate.main(["--weights", "digits", "--images", "a.png"])
    assert "1 answered" in capsys.readouterr().out
    with pytest.raises(UserError, match="asks one network; got 2 checkpoints"):
        evaluate.main([str(run), "--weights", "digits", "--images", "a.png"])
    with pytest.raises(UserError, match="no weights '' come"):
        evaluate.main(["--weights", ""])


def test_visualize_takes_them_and_draws_here(run, package, capsys):
    before = sorted(os.listdir(package))
    visualize.main(["--weights", "digits", "--layer", "conv1"])
    visualize.main(["--weights", "digits", "--layer", "layer3", "--what", "gradcam"])
    assert sorted(os.listdir()) == ["filters-conv1.png", "gradcam-layer3.png"]
    assert sorted(os.listdir(package)) == before
    for others in ([str(run), "--layer", "conv1"], ["--curves", str(run)]):
        with pytest.raises(SystemExit):
            visualize.main([*others, "--weights", "digits"])
        assert "--weights takes the place of CKPT" in capsys.readouterr().err


def test_without_its_data_a_net_is_looked_at_by_pictures_of_ones_own(package, monkeypatch, capsys):
    file = package / "resnet20-digits.pt"
    saved = checkpoint.load(file)
    saved["config"]["data"] = "cifar10"
    checkpoint.save(file.with_name("resnet20-cifar10.pt"), saved)
    digest = hashlib.sha256(file.with_name("resnet20-cifar10.pt").read_bytes()).hexdigest()
    (package / "resnet20-cifar10.json").write_text(json.dumps({"sha256": digest}))
    monkeypatch.setattr(sources, "unreachable", lambda url: "no network")
    Image.effect_noise((40, 30), 90).save("a.png")
    visualize.main(["--weights", "cifar10", "--layer", "all", "--image", "a.png"])
    visualize.main(["--weights", "cifar10", "--layer", "conv1"])
    evaluate.main(["--weights", "cifar10", "--images", "a.png"])
    says = r"^cifar10 is not in data and cannot be downloaded \(no network\); .*; or take a picture of your own$"
    for script, flags in ((visualize, ["--layer", "all"]), (evaluate, [])):
        with pytest.raises(UserError, match=says):
            script.main(["--weights", "cifar10", *flags])
    assert not Path("data").exists()


def test_what_is_no_part_of_the_package(run, package, tmp_path, monkeypatch):
    def refused(*flags):
        with pytest.raises(UserError) as error:
            package_weights.main(list(map(str, flags)))
        return str(error.value)

    before = {path: path.read_bytes() for path in package.iterdir()}
    assert "resnet20-digits.pt is there already: --force writes over it" in refused(run)
    assert "resnet20-a/b is to be letters" in refused(run, "--name", "a/b")
    saved = checkpoint.load(run)
    for name, changed, says in (
        ("unfinished", {"epochs": 3}, "is of epoch 1 of 3: finish the run first"),
        ("strided", {"strides": (1, 1, 2)}, "is no resnet20 as it is: it was trained with --strides"),
    ):
        shutil.copytree(run, tmp_path / name)
        checkpoint.save(tmp_path / name / "last.pt", {**saved, "config": {**saved["config"], **changed}})
        assert says in refused(tmp_path / name, "--name", "other")
    monkeypatch.setattr(package_weights, "LARGEST", 1_000_000)
    assert "bytes of weights; what comes with the package has at most 1,000,000" in refused(run, "--name", "other")
    assert {path: path.read_bytes() for path in package.iterdir()} == before
    monkeypatch.undo()
    package_weights.main([str(run), "--name", "other", "--out", str(package)])
    package_weights.main([str(run), "--name", "other", "--out", str(package), "--force"])
    assert card_of(package, "resnet20-other")["sha256"]


def test_what_the_package_has():
    """Every file has its card, and is small, plain and a network that predicts; a package without any is whole too."""
    cards = sorted(weights.FOLDER.glob("*.json"))
    assert [card.with_suffix(".pt") for card in cards] == sorted(weights.FOLDER.glob("*.pt"))
    for path in cards:
        card, file = json.loads(path.read_text()), weights.find(path.stem)
        assert file.stat().st_size == card["bytes"] <= package_weights.LARGEST
        subject = trained.load(file)
        net = resnet_min.resnet(subject.task.config.arch, len(subject.classes), weights=path.stem)
        assert net.predict(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, len(subject.classes))
        assert 0 < card["test_accuracy"] <= 100 and card["log"]
        assert (tuple(card["mean"]), tuple(card["std"])) == (net.preprocessing.mean, net.preprocessing.std)
        assert ("--data FOLDER" in card["trained_by"]) == ("a folder of" in card["data"])
