import copy

import pytest
import torch
from torch import nn

from resnet_min import model as models
from resnet_min.errors import UserError
from resnet_min.viz.deconvnet import reconstruct, unpool
from resnet_min.viz.layers import graph, locate, outputs


class StraightThrough(torch.autograd.Function):
    """ReLU that is left out on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class LinearBackReLU(nn.Module):
    def forward(self, x):
        return StraightThrough.apply(x)


def network(arch="resnet18", blocks=(2, 1), widths=(4, 6), strides=None, **options):
    """A small net in float64 whose batch norms do something, and its twin whose ReLUs are linear on the way back."""
    net = models.resnet(arch, 5, blocks=blocks, widths=widths, strides=strides, **options).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            module.weight.data[0] *= -1
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    linear = copy.deepcopy(net)
    for parent in list(linear.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, LinearBackReLU())
    return net, linear


NETS = {
    "basic": dict(),
    "option A": dict(arch="resnet20"),
    "bottleneck": dict(arch="resnet50", blocks=(1, 2)),
    "plain": dict(plain=True),
    "plain bottleneck": dict(arch="resnet50", plain=True),
    "imagenet stem": dict(stem="imagenet", strides=(1, 2)),
    "bottleneck, imagenet stem": dict(arch="resnet50", stem="imagenet"),
    "pooled cifar stem": dict(stem="cifar-pool", strides=(2, 3), arch="resnet20"),
}


def compare_with_autograd(net, linear, names, size, **options):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    _, maps = outputs(linear, x, graph(linear))
    for name in names:
        signal = torch.randn_like(maps[locate(net, name)])
        (expected,) = torch.autograd.grad(maps[locate(net, name)], x, signal, retain_graph=True)
        assert expected.abs().max() > 1e-3
        got = reconstruct(net, x.detach(), name, signal, rectify=False, **options)
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(17, 22), (16, 16)])
@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_unrectified_it_is_the_transposed_jacobian_at_every_depth(options, size):
    net, linear = network(**options)
    names = [name for name, _ in net.named_modules() if name and name not in ("avgpool", "dropout", "fc")]
    assert {"conv1", "maxpool", "layer1", "layer1.0", "layer2.0.bn2"} < set(names)
    compare_with_autograd(net, linear, names, size)


def test_subtract_is_the_transposed_jacobian_of_branch_less_shortcut(monkeypatch):
    def bn_add_relu(x, bn, relu=None, residual=None):
        return add(x, bn, relu, None if residual is None else -residual)

    add = models.bn_add_relu
    net, linear = network(stem="imagenet")
    monkeypatch.setattr(models, "bn_add_relu", bn_add_relu)  # the pool comes before: its switches stay
    compare_with_autograd(net, linear, ["layer1.0.relu2", "layer2"], (24, 24), shortcut="subtract")


def test_main_is_the_transposed_jacobian_of_the_plain_twin():
    net, _ = network(arch="resnet20", stem="cifar-pool")
    plain, linear = network(arch="resnet20", stem="cifar-pool", plain=True)
    for twin in (plain, linear):
        twin.load_state_dict(net.state_dict())
    x, name = torch.randn(1, 3, 20, 20, dtype=torch.float64), "layer2"
    signal = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    compare_with_autograd(plain, linear, [name], (20, 20))
    expected = reconstruct(plain, x, name, signal)
    torch.testing.assert_close(reconstruct(net, x, name, signal, shortcut="main"), expected)
    # In a plain net there is nothing to add.
    torch.testing.assert_close(reconstruct(plain, x, name, signal, shortcut="subtract"), expected)


@pytest.mark.parametrize("shortcut", ["add", "subtract", "main"])
def test_linear_in_the_signal_until_rectified(shortcut):
    net, _ = network(stem="imagenet")
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    one, two = torch.randn(2, 1, 6, 4, 4, dtype=torch.float64)

    def project(signal, rectify=False):
        return reconstruct(net, x, "layer2", signal, rectify=rectify, shortcut=shortcut)

    torch.testing.assert_close(project(3 * one - two), 3 * project(one) - project(two))
    assert not torch.allclose(project(3 * one - two, True), 3 * project(one, True) - project(two, True))
    torch.testing.assert_close(project(3 * one, True), 3 * project(one, True))  # of positive factors it still is


def test_rectified_by_the_signal_and_not_by_the_activation():
    net, _ = network()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    _, maps = outputs(net, x, ["relu"])
    signal = torch.ones_like(maps["relu"])
    assert (maps["relu"] == 0).any()  # where backpropagation would stop the signal
    torch.testing.assert_close(reconstruct(net, x, "relu", signal), reconstruct(net, x, "bn1", signal))
    assert reconstruct(net, x, "relu", -signal).abs().max() == 0
    torch.testing.assert_close(reconstruct(net, x, "bn1", -signal), -reconstruct(net, x, "bn1", signal))


def test_a_maximum_that_two_windows_share_gets_both_values():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 1, 1] = 9  # in all four windows of 3 by 3
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    signal = torch.tensor([[1.0, 2, 0], [4, 8, 0], [0, 0, 16]])[None, None]
    back = unpool(signal, x, pool)
    assert back[0, 0, 1, 1] == 15 and back.sum() == 31


def test_one_image_carries_many_signals():
    net, _ = network(stem="imagenet", arch="resnet20")
    x = torch.randn(1, 3, 20, 20, dtype=torch.float64)
    signals = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    together = reconstruct(net, x, "layer2", signals)
    for one, signal in zip(together, signals, strict=True):
        torch.testing.assert_close(one, reconstruct(net, x, "layer2", signal[None])[0])


def test_the_network_is_left_as_it_was():
    net, _ = network()
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    reconstruct(net, x, "layer2", torch.randn(1, 6, 4, 4, dtype=torch.float64))
    assert all(not module._forward_hooks for module in net.modules())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_refusals():
    net, _ = network()
    x, signal = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.randn(1, 6, 4, 4, dtype=torch.float64)
    for name, said in (("fc", "no spatial output"), ("avgpool", "no spatial output"), ("layer3", "did you mean layer")):
        with pytest.raises(UserError, match=said):
            reconstruct(net, x, name, signal)
    with pytest.raises(UserError, match="known: add, subtract, main"):
        reconstruct(net, x, "layer2", signal, shortcut="both")
    with pytest.raises(UserError, match=r"\[1, 6, 4, 4\]; its maps are \[1, 4, 8, 8\]"):
        reconstruct(net, x, "layer1", signal)
    with pytest.raises(UserError, match="training mode"):
        reconstruct(net.train(), x, "layer2", signal)
