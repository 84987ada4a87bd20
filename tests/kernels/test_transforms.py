"""torch.func's transforms and forward-mode derivatives: right, or an error, with kernels as without."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from resnet_min import fuse, ops
from resnet_min.model import resnet

from .conftest import needs_extension

CHANNELS_LAST = torch.channels_last


def images(count=4, size=8) -> Tensor:
    return torch.randn(count, 3, size, size).contiguous(memory_format=CHANNELS_LAST)


def training_net() -> nn.Module:
    """Without running statistics: transforms refuse what is written to in passing."""
    net = resnet("resnet20").to(memory_format=CHANNELS_LAST)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return net


def test_gradient_of_a_training_net(backend):
    net, x = training_net(), images()
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    gradients = torch.func.grad(lambda p: torch.func.functional_call(net, p, (x,)).square().mean())(parameters)
    net(x).square().mean().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-3, atol=2e-4)


def test_vmap_of_a_training_net(backend):
    net, batches = training_net(), torch.stack([images(), images()])
    torch.testing.assert_close(torch.vmap(net)(batches), torch.stack([net(x) for x in batches]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_net_has_its_derivative_or_none(backend, dtype):
    net = resnet("resnet20").eval().to(dtype, memory_format=CHANNELS_LAST)
    fast, x = fuse(net), images().to(dtype)
    with torch.no_grad():
        _, wanted = torch.func.jvp(net, (x,), (torch.ones_like(x),))
        _, got = torch.func.jvp(fast, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.05 if dtype == torch.bfloat16 else 1e-4)
    with pytest.raises(RuntimeError, match="inputs must not require grad"):
        torch.func.grad(lambda x: fast(x)[0, 0])(x)


@needs_extension
@pytest.mark.parametrize("op", ["conv_bn_relu", "fused_net", "crop_flip", "conv3x3", "bn_add_relu"])
def test_no_tangent_is_dropped(op):
    x, weight, ones = images(), torch.randn(16, 3, 3, 3), torch.ones(16)
    wide, square = (
        images().repeat(1, 6, 1, 1)[:, :16].contiguous(memory_format=CHANNELS_LAST),
        torch.randn(16, 16, 3, 3),
    )
    table, chosen = torch.randn(3, 256), torch.arange(2)
    calls = {
        "conv_bn_relu": (x, lambda x: ops.conv_bn_relu(x, weight, ones, None, 1, 1, True)),
        "fused_net": (x, lambda x: ops.fused_net(x, [weight], [ones], [0, 0, -1, 1, 1, 1, 0, 1, 0])),
        "crop_flip": (
            table,
            lambda table: ops.crop_flip(
                torch.zeros(2, 4, 4, 3, dtype=torch.uint8), chosen, torch.ones(2, 2).long(), chosen > 0, table, 1
            ),
        ),
        "conv3x3": (wide, lambda x: ops.conv3x3(x, square)),
        "bn_add_relu": (wide, lambda x: ops.bn_add_relu(x, ones, ones, None, 1e-5, True)[0]),
    }
    argument, call = calls[op]
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="(?i)forward|derivative|jvp"):
        forward_ad.unpack_dual(call(forward_ad.make_dual(argument, torch.ones_like(argument)))).tangent.sum().item()


@needs_extension
def test_crop_flip_does_not_differentiate():
    table, chosen = torch.randn(3, 256, requires_grad=True), torch.arange(2)
    out = ops.crop_flip(
        torch.zeros(2, 4, 4, 3, dtype=torch.uint8), chosen, torch.ones(2, 2).long(), chosen > 0, table, 1
    )
    with pytest.raises(RuntimeError, match="not implemented"):
        out.sum().backward()
