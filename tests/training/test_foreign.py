"""Others' weights give the logits of their code.

fixtures/foreign.json holds, of one network of each repository, names and shapes of its state_dict and its logits. Its
weights were drawn by `drawn` here, its images by `images`, so that neither need be kept; the network was put into eval
mode and ran once, in float32 on a CPU, by torch 2.14.1. A repository's version is the commit whose source was run
(akamaster's option B as the argument of its blocks), timm's is its release.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import resnet_min
from resnet_min.errors import UserError
from resnet_min.model import PadShortcut, Projection
from resnet_min.training import transfer

THEIRS = json.loads(Path(__file__).parents[1].joinpath("fixtures", "foreign.json").read_text())
PADDED = "akamaster/pytorch_resnet_cifar10 resnet20"


def drawn(name, shape):
    """A tensor that its name and shape decide; RandomState draws the same in every version of numpy."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if name.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 0.2 * draw.standard_normal(shape) + name.endswith("weight")
    return torch.from_numpy(values.astype(np.float32))


def images(side):
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, side, side)).astype(np.float32))


def weights_of(name):
    return {tensor: drawn(tensor, shape) for tensor, shape in THEIRS[name]["tensors"].items()}


def saved(name):
    """What the repository saves."""
    weights = weights_of(name)
    parallel = {f"module.{key}": value for key, value in weights.items()}
    return {
        "kuangliu": {"net": parallel, "acc": 95.2, "epoch": 199},
        "akamaster": {"state_dict": parallel, "best_prec1": 91.7, "epoch": 200},
        "timm": {"epoch": 3, "arch": "resnet18", "state_dict": weights, "args": argparse.Namespace(lr=0.1, seed=42)},
    }.get(name.partition("/")[0].partition(" ")[0], weights)


@torch.no_grad()
def check_logits(net, name):
    wanted = torch.tensor(THEIRS[name]["logits"])
    got = net(images(THEIRS[name]["side"]))
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", [name for name, about in THEIRS.items() if about["logits"]])
def test_logits_are_those_of_their_code(name, tmp_path):
    torch.save(saved(name), tmp_path / "theirs.pth")
    check_logits(resnet_min.load(tmp_path / "theirs.pth", THEIRS[name]["arch"]), name)


def test_weights_of_a_network_that_trains_come_before_their_average():
    padded = weights_of(PADDED)
    content = {"state_dict_ema": {name: 0 * value for name, value in padded.items()}, "state_dict": padded}
    check_logits(resnet_min.load(content, "resnet20"), PADDED)


def test_safetensors_of_others(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    name = "timm resnet18"
    file = tmp_path / "model.safetensors"
    safetensors.save_file(weights_of(name), file, {"format": "pt"})
    check_logits(resnet_min.load(file, "resnet18"), name)
    net = resnet_min.resnet18(num_classes=5, stem="imagenet").eval()
    assert transfer.load_pretrained(net, str(file), "resnet18") == ["fc.weight", "fc.bias"]
    assert f"{file} does not say of which network it is" in refused(file, None)
    whole = file.read_bytes()
    for bad in (b"", whole[:100], whole[:-100], b"\xff" * 9 + whole[9:], whole + b"more"):
        file.write_bytes(bad)
        assert refused(file, "resnet18").startswith(f"{file} is not a readable .safetensors file: ")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert refused(file, "resnet18") == f"{file} needs the package safetensors: pip install safetensors"


@pytest.mark.parametrize("kind, opens", [("pt2", "torch.export.load"), ("onnx", "ONNX Runtime")])
def test_graphs_are_named_with_what_opens_them(kind, opens, tmp_path):
    file = tmp_path / f"net.{kind}"
    file.write_bytes(b"PK\3\4")
    assert f"net.{kind} is an exported graph, which {opens} opens; wanted the checkpoint" in refused(file)


def test_the_shortcuts_are_those_of_the_weights():
    for name, kind in ((PADDED, PadShortcut), (f"{PADDED} option B", Projection)):
        assert isinstance(resnet_min.load(saved(name), "resnet20").layer2[0].downsample, kind)


def test_names_decide_whose_padding_it_is():
    """Theirs under our names are taken for ours, and their logits are far from right: nothing else tells them apart."""
    weights = {name.replace("linear", "fc"): value for name, value in weights_of(PADDED).items()}
    net = resnet_min.load(weights, "resnet20")
    assert torch.equal(net.fc.weight, weights["fc.weight"])
    with pytest.raises(AssertionError):
        check_logits(net, PADDED)


@pytest.mark.parametrize("wrapped", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("holder", ["net", "state_dict", "model", "model_state_dict", "state_dict_ema", None])
def test_wrappers_are_taken_off(wrapped, holder):
    content = {wrapped + name: value for name, value in reversed(weights_of(PADDED).items())}
    check_logits(resnet_min.load({holder: content, "epoch": 3} if holder else content, "resnet20"), PADDED)


def test_torchvisions_names_stay():
    weights = torchvision.models.resnet18(num_classes=3).state_dict()
    ours = transfer.weights_in({"model": weights, "epoch": 1}, "theirs.pth")
    assert list(ours) == list(weights) and all(ours[name] is weights[name] for name in weights)


def test_a_run_starts_from_them(tmp_path):
    for name, arch in ((PADDED, "resnet20"), ("kuangliu/pytorch-cifar ResNet18", "resnet18")):
        torch.save(saved(name), tmp_path / "theirs.pth")
        net = resnet_min.resnet(arch, num_classes=5).eval()
        assert transfer.load_pretrained(net, str(tmp_path / "theirs.pth"), arch) == ["fc.weight", "fc.bias"]
        net.fc = resnet_min.load(saved(name), arch).fc
        check_logits(net, name)


def refused(content, arch="resnet20"):
    with pytest.raises(UserError) as error:
        resnet_min.load(content, arch)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_differs_is_named():
    padded, projected = weights_of(PADDED), weights_of(f"{PADDED} option B")
    assert "deep stem (conv1.0.weight, conv1.3.weight, conv1.6.weight)" in refused(weights_of("timm resnet18d"))
    assert "60 tensors differ, such as layer1.3.bn1.bias: not there" in refused(padded, "resnet32")
    assert "such as bn1.bias: [16], wanted [64]" in refused(padded, "resnet18")
    assert "3 tensors differ, such as fc.bias: not there, wanted [10]" in refused(
        {**padded, "fc.weight": torch.ones(10, 64)}
    )
    assert "holds no weights" in refused({**padded, 3: torch.ones(1)})
    assert "holds no weights, but 'state_dict'; wanted" in refused({"state_dict": {"net": padded}})
    assert "no weights, but 'epoch', 3, 'aa" in (
        said := refused({"epoch": 1, 3: 2, "a" * 99: 3, "\n": 4, "b": 5, "c": 6})
    )
    assert said.endswith(r"aa, '\n', 'b', …; wanted a resnet_min checkpoint, or a state_dict of tensors by name")
    assert "holds no weights, but nothing; wanted" in refused({})
    with pytest.raises(UserError, match=r"layer2.0.downsample.0.weight: \[32, 16, 1, 1\], wanted not there"):
        transfer.fill(resnet_min.resnet20(), transfer.weights_in(projected, "theirs.pth"), "theirs.pth")
    gated = {**weights_of("timm resnet18"), "layer1.0.se.fc1.weight": torch.ones(4, 64, 1, 1)}
    assert "such as layer1.0.se.fc1.weight: [4, 64, 1, 1], wanted not there" in refused(gated, "resnet18")


@pytest.mark.parametrize(
    "shape", [(), (0,), (64,), (1, 1, 1, 1), (128, 64, 3, 3), (10**12, 0), (10**12, 0, 3, 3)], ids=str
)
def test_odd_shapes_are_refused_whichever_they_are(shape):
    padded = weights_of(PADDED)
    for name in ("layer1.0.conv2.weight", "layer2.0.conv1.weight", "layer3.0.conv2.weight", "linear.weight"):
        assert refused({**padded, name: torch.ones(shape)})
    assert refused({**padded, "layer03.0.conv2.weight": torch.ones(shape)})
    assert refused({"conv2_x.0.residual_function.2.weight": torch.ones(shape), "fc.weight": torch.ones(shape)})
