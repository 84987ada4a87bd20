"""Accuracy under shift: corruptions made here, and arrays as CIFAR-10.1 and CIFAR-10-C publish them."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import check_legible

from resnet_min.data import Split
from resnet_min.errors import UserError
from resnet_min.tasks.classify import shift
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import checkpoint

script = importlib.import_module("eval")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pictures(count):
    """Cloudy colours."""
    coarse = torch.rand(count, 3, 11, 11, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    return (40 + 140 * images).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_every_corruption_grows_with_its_severity_and_is_the_same_every_time():
    split = Split(pictures(6), torch.arange(6))
    found = list(shift.variants(split, "all", 10))
    assert [(name, severity) for name, severity, _ in found] == [
        (name, severity) for name in shift.CORRUPTIONS for severity in range(1, 6)
    ]
    for name in shift.CORRUPTIONS:
        mine = [some.images for what, _, some in found if what == name]
        off = [(images.float() - split.images.float()).square().mean().item() for images in mine]
        assert all(images.dtype == torch.uint8 and images.shape == split.images.shape for images in mine)
        assert off[0] > 0 and off == sorted(off), name
        again = [some.images for _, _, some in shift.variants(split, name, 10)]
        assert all(torch.equal(one, two) for one, two in zip(mine, again, strict=True))
    with pytest.raises(UserError, match="--corrupt fog: neither a folder nor one of all, noise"):
        list(shift.variants(split, "noise,fog", 10))


def corrupted(image, name):
    """An image [H, W, 3], by severity: what `variants` makes of it."""
    split = Split(image[None], torch.zeros(1, dtype=torch.int64))
    return [some.images[0].float() for _, _, some in shift.variants(split, name, 10)]


def test_noise_has_the_deviation_that_its_level_says():
    made = corrupted(torch.full((128, 128, 3), 128, dtype=torch.uint8), "noise")
    for image, level in zip(made, shift.CORRUPTIONS["noise"][1], strict=True):
        assert (image / 255).std().item() == pytest.approx(level, rel=0.03) and abs(image.mean() - 128) < 2


def test_pixelated_images_have_that_share_of_pixels_and_these_are_means():
    ramp = torch.arange(0, 200, 2, dtype=torch.uint8)[None, :, None].expand(100, 100, 3)
    for image, level in zip(corrupted(ramp, "pixelate"), shift.CORRUPTIONS["pixelate"][1], strict=True):
        assert len(image[0, :, 0].unique()) == round(level * 100)
    board = 255 * (torch.arange(60)[:, None] + torch.arange(60)).remainder(2).to(torch.uint8)
    assert all((image - 127.5).abs().max() < 60 for image in corrupted(board[..., None].expand(60, 60, 3), "pixelate"))


def test_the_table_has_the_clean_images_every_severity_and_the_means():
    rows = [{"corruption": "fog", "accuracy": 10.0 * n, "calibration_error": float(n)} for n in range(5, 0, -1)]
    assert shift.table(rows, {"accuracy": 90.0, "calibration_error": 2.5}) == [
        ["corruption", *(f"severity {number}" for number in range(1, 6)), "mean", "mean ECE"],
        ["none", "", "", "", "", "", "90.00%", "2.50%"],
        ["fog", "50.00%", "40.00%", "30.00%", "20.00%", "10.00%", "30.00%", "3.00%"],
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose net says "airplane" of dark images; CIFAR-10.1 and CIFAR-10-C, small."""
    monkeypatch.chdir(tmp_path)
    config = ClassifyConfig(
        arch="resnet20", blocks=(1,), widths=(4,), strides=(1,), data="digits", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    net = config.make_task().build(CLASSES)
    with torch.no_grad():
        for weight in (p for p in net.parameters() if p.dim() == 4):
            weight.zero_()
        net.conv1.weight[0, :, 1, 1] = 1
        net.fc.weight.zero_()
        net.fc.weight[1, 0] = 9
        net.fc.bias.copy_(torch.tensor([2.0] + [0.0] * 9))
    Path("run").mkdir()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    checkpoint.save(Path("run/last.pt"), checkpoint.snapshot(net, optimizer, config, CLASSES, 1, 1))
    dark = np.zeros((4, 32, 32, 3), np.uint8)
    np.save("cifar10.1_v6_data.npy", dark)
    np.save("cifar10.1_v6_labels.npy", np.zeros(4, np.int32))
    Path("C").mkdir()
    np.save("C/fog.npy", np.concatenate([dark + level for level in (0, 10, 20, 250, 250)]).astype(np.uint8))
    np.save("C/labels.npy", np.zeros(20, np.uint8))
    return "run"


def test_arrays_as_published(run, capsys, drawn):
    script.main([run, "--data", "cifar10.1_v6_data.npy", "--corrupt", "C", "--json", "f.json", "--amp", "off"])
    out, figures = capsys.readouterr().out, json.loads(Path("f.json").read_text())
    assert figures["accuracy"] == 100 and figures["images"] == 4
    rows = figures["corruptions"]
    assert [(row["corruption"], row["severity"], row["accuracy"]) for row in rows] == [
        ("fog", 1, 100), ("fog", 2, 100), ("fog", 3, 100), ("fog", 4, 0), ("fog", 5, 0),
    ]  # fmt: skip
    assert rows[3]["calibration_error"] > 50 and "accuracy under shift: run/corruptions.png" in out
    assert [line.split()[:8] for line in out.splitlines() if line.startswith("fog")][0][-2] == "60.00%"
    accuracy = drawn[0].axes[0]
    assert accuracy.lines[0].get_xydata().tolist() == [[0, 100], [1, 100], [2, 100], [3, 100], [4, 0], [5, 0]]
    check_legible(drawn[0], Path("run/corruptions.png"))
    with pytest.raises(UserError, match=r"C holds arrays, as CIFAR-10-C does: eval.py --corrupt \S+C takes all"):
        script.main([run, "--data", "C"])
    script.main([run, "--data", "C/fog.npy", "--json", "f.json"])
    assert json.loads(Path("f.json").read_text())["accuracy"] == 60


def test_corruptions_of_the_test_images(run, capsys, drawn):
    script.main([run, "--data", "cifar10.1_v6_data.npy", "--corrupt", "brightness,noise"])
    assert {text.get_text() for text in drawn[0].axes[0].texts} == {"brightness", "noise"}


def test_bad_arrays(run, capsys):
    def refuse(said, *flags):
        with pytest.raises(UserError, match=said):
            script.main([run, "--data", "cifar10.1_v6_data.npy", *flags])
        assert "accuracy" not in capsys.readouterr().out  # before anything is evaluated

    refuse("no labels.npy and NAME.npy", "--corrupt", "run")
    refuse("neither a folder nor one of", "--corrupt", "nowhere")
    refuse("--corrupt : neither a folder nor one of", "--corrupt", "")
    refuse("needs the files none_data.npy and none_labels.npy; there is no", "--data", "none_data.npy")
    np.save("C/fog.npy", np.zeros((19, 32, 32, 3), np.uint8))
    np.save("C/labels.npy", np.zeros(19, int))
    refuse("fog.npy has 19 images, which are not five severities", "--corrupt", "C")
    np.save("C/fog.npy", np.zeros((20, 32, 32, 3), np.uint8))
    np.save("C/labels.npy", np.full(20, 10))
    refuse("has the class 10; the network tells 10", "--corrupt", "C")
    np.save("C/labels.npy", np.zeros(19, int))
    refuse(r"labels.npy is int64 \[19\]; wanted 20 classes", "--corrupt", "C")
    np.save("C/labels.npy", np.zeros(20, int))
    np.save("C/fog.npy", np.zeros((20, 32, 32), np.uint8))
    refuse(r"fog.npy is uint8 \[20, 32, 32\]; wanted uint8 \[N, H, W, 3\]", "--corrupt", "C")
    np.save("C/fog.npy", np.array([{}], dtype=object), allow_pickle=True)
    refuse("cannot read the arrays", "--corrupt", "C")
    import train

    with pytest.raises(UserError, match="has test images only"):
        train.main(["--data", "cifar10.1_v6_data.npy"])
