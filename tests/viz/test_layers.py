import pytest
import torch
from torch import nn

from resnet_min import model as models
from resnet_min.errors import UserError
from resnet_min.viz.layers import chosen, field_size, graph, locate, outputs, receptive_field

NETS = {
    "basic": dict(arch="resnet18"),
    "option A": dict(arch="resnet20", stem="cifar-pool"),
    "bottleneck": dict(arch="resnet50", strides=(2, 2)),
    "imagenet stem": dict(arch="resnet18", stem="imagenet", strides=(1, 3)),
    "last windows short of the border": dict(arch="resnet18", strides=(1, 6)),
    "plain": dict(arch="resnet18", plain=True, stem="imagenet"),
}


def network(arch, **options):
    return models.resnet(arch, 3, blocks=(1, 2), widths=(2, 3), **options).eval()


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_the_graph_has_every_layer_after_its_inputs(options):
    net = network(**options)
    layers = graph(net)
    leaves = [name for name, module in net.named_modules() if not list(module.children())]
    assert sorted(layers) == sorted(set(leaves) - {"avgpool", "dropout", "fc"})
    seen = {"image"}
    for name, layer in layers.items():
        assert seen.issuperset(layer.inputs)
        seen.add(name)
    # Run by hand, layer by layer, it is the network.
    x = torch.randn(2, 3, 21, 18)
    maps = {"image": x}
    with torch.no_grad():
        for name, layer in layers.items():
            maps[name] = layer.module(sum(maps[source] for source in layer.inputs))
        torch.testing.assert_close(maps[list(layers)[-1]], net.features(x))
        logits, seen = outputs(net, x, layers)
    torch.testing.assert_close(seen, {name: maps[name] for name in layers})
    torch.testing.assert_close(logits, net(x))


def test_blocks_and_stages_are_their_last_layer():
    net = network("resnet50", stem="imagenet")
    names = ("layer2", "layer2.1", "layer2.0", "layer2.0.downsample", "layer1.0.conv2")
    expected = ["layer2.1.relu3", "layer2.1.relu3", "layer2.0.relu3", "layer2.0.downsample.1", "layer1.0.conv2"]
    assert [locate(net, name) for name in names] == expected
    assert chosen(net, ["all"]) == {"stem": "maxpool", "layer1": "layer1", "layer2": "layer2"}
    assert chosen(net, ["conv1", "stem"]) == {"conv1": "conv1", "stem": "maxpool"}
    assert chosen(network("resnet18"), ["all"])["stem"] == "relu"
    for name in ("fc", "dropout", "avgpool"):
        with pytest.raises(UserError, match=f"{name} is a .* and has no spatial output; .* is layer2"):
            locate(net, name)


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_receptive_fields_are_those_found_by_perturbing_pixels(options):
    net, size = network(**options).double(), (24, 27)
    for module in net.modules():  # positive throughout, so that no ReLU cuts and a larger pixel makes all it reaches
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):  # larger, also through a max-pool
            nn.init.uniform_(module.weight, 0.5, 1)
    pixels = size[0] * size[1]
    base = torch.rand(1, 3, *size, dtype=torch.float64)
    changed = base.repeat(pixels, 1, 1, 1)
    changed.view(pixels, 3, pixels)[torch.arange(pixels), 0, torch.arange(pixels)] += 1e3
    layers = graph(net)
    with torch.no_grad():
        _, before = outputs(net, base, layers)
        _, after = outputs(net, changed, layers)
    for name in layers:
        reached = (before[name] != after[name]).any(1)  # [pixels, h, w]
        height, width = reached.shape[1:]
        for row in {0, 1 % height, height // 2, height - 1}:
            for column in {0, width // 2, width - 1}:
                found = reached[:, row, column].view(size).nonzero()
                box = (*found.amin(0).tolist(), *(found.amax(0) + 1).tolist())
                assert receptive_field(layers, name, (row, column), size) == box, (name, row, column)


def test_sizes_of_receptive_fields():
    layers = graph(models.resnet18(stem="imagenet"))
    sizes = {name: field_size(layers, name) for name in ("conv1", "relu", "maxpool", "layer1.0.conv1")}
    assert sizes == {"conv1": 7, "relu": 7, "maxpool": 11, "layer1.0.conv1": 19}
    assert field_size(layers, "layer4.1.relu2") == 435  # as published for ResNet-18
    assert field_size(graph(models.resnet20()), "layer3.2.relu2") == 81


def test_only_in_eval_mode():
    with pytest.raises(UserError, match="training mode"):
        outputs(network("resnet18").train(), torch.zeros(2, 3, 8, 8), ["conv1"])
