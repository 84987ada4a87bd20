"""A trained ResNet, ours or torchvision's, in the form it serves in: batch norm folded into the convolutions."""

from __future__ import annotations

import copy
import sys

import torch
from torch import nn

from .. import model as ours
from ..errors import UserError
from ..kernels.fused_net import FASTER, WINOGRAD_4X4
from .fused import FusedBlock, FusedConv, FusedResNet

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FORMS = {None: FASTER, "4x4": WINOGRAD_4X4}


def theirs(name: str) -> type[nn.Module]:
    """A class of torchvision's ResNets. Whoever has a model of it has imported it, so we need not: it takes seconds."""
    module = sys.modules.get("torchvision.models.resnet")
    return getattr(module, name) if module else type(name, (nn.Module,), {"__module__": "torchvision.models.resnet"})


@torch.inference_mode(False)  # whose tensors have no versions, by which the kernels see that a weight was written to
@torch.no_grad()
def fuse(model: nn.Module, dtype: torch.dtype | None = None, winograd: str | None = None) -> nn.Module:
    """The fused inference form of a ResNet, ours or torchvision's, or of a module that holds one of ours; in eval mode.

    `model` is left as it is.

    dtype    of the weights, and so of images and logits: float32, bfloat16, float16 or float64; None for the model's.
             Batch norm is folded in float32 (in float64 from or to float64) before it is rounded.
    winograd "4x4" for F(4×4, 3×3) in float32 on a CPU, in layers of at least 64 channels and maps of at least 8×8:
             faster and less exact (BENCHMARKS.md has both), so it is not the default
    returns  a module: images [B, 3, H, W] -> the model's logits. Nothing in it trains, and images must not require
             grad. It can be moved, copied, saved, compiled, and exported with a dynamic batch; its layers may be
             replaced and its weights written to, but not through `.data`, which a kernel cannot see.

    Layers keep their names. The max-pool and what follows the last block (pooling, dropout, `fc`) are kept, whatever
    they are; so is all of a module around a ResNet. Raises UserError for a model in training mode, and for one it does
    not understand, naming the layer.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"fuse: the model is {type(model).__name__}; wanted a module")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    modules = model.named_modules(remove_duplicate=False)
    held = [name for name, module in modules if name and isinstance(module, ours.ResNet)]
    if len(held) == 1:
        return fuse_inside(model, held[0], dtype, winograd)
    if held:
        raise UserError(f"fuse: the model holds several ResNets, {', '.join(held)}; wanted one: fuse each by itself")
    expect(model, {model: "the model"}, ours.ResNet, theirs("ResNet"))
    for name, module in [("the model", model), *list(model.named_modules())[1:]]:
        if module.training:
            raise UserError(f"fuse: {name} is in training mode; wanted eval mode: call model.eval() first")
        if module._forward_hooks or module._forward_pre_hooks:
            raise UserError(f"fuse: {name} has hooks, which the fused form would not call; remove them first")
    dtype = dtype or model.conv1.weight.dtype
    if dtype not in DTYPES:
        raise UserError(f"fuse: dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    if winograd not in FORMS:
        raise UserError(f'fuse: winograd must be "4x4" or None; got {winograd!r}')
    fold_in = torch.promote_types(torch.promote_types(model.conv1.weight.dtype, dtype), torch.float32)
    model = copy.deepcopy(model).to(fold_in)
    names = {module: name for name, module in model.named_modules()}

    layers = {"conv1": fold(model.conv1, model.bn1, model.relu, names), "maxpool": model.maxpool}
    for stage in [f"layer{i + 1}" for i in range(getattr(model, "stages", 4))]:
        blocks = expect(getattr(model, stage), names, nn.Sequential)
        layers[stage] = nn.Sequential(*(fuse_block(block, names) for block in blocks))
    layers |= {"avgpool": model.avgpool, "flatten": nn.Flatten()}
    layers |= {name: getattr(model, name) for name in ("dropout", "fc") if hasattr(model, name)}
    fused = FusedResNet(layers, FORMS[winograd]).to(dtype).requires_grad_(False).eval()
    if isinstance(model, ours.ResNet):
        fused.classes, fused.preprocessing = model.classes, model.preprocessing
    return fused


def fuse_inside(model: nn.Module, name: str, dtype: torch.dtype | None, winograd: str | None) -> nn.Module:
    """`model` with the ResNet called `name` in it fused, all in one dtype."""
    if model.training:
        raise UserError("fuse: the model is in training mode; wanted eval mode: call model.eval() first")
    fused = copy.deepcopy(model)
    inner = fuse(model.get_submodule(name), dtype, winograd)
    fused.set_submodule(name, inner)
    return fused.to(inner.conv1.weight.dtype).requires_grad_(False)


def fuse_block(block: nn.Module, names: dict[nn.Module, str]) -> FusedBlock:
    """A block of ours or torchvision's, fused."""
    expect(block, names, ours.BasicBlock, ours.Bottleneck, theirs("BasicBlock"), theirs("Bottleneck"))
    if isinstance(block, ours.Block):
        layers = block.layers()
    else:
        numbers = (1, 2) if isinstance(block, theirs("BasicBlock")) else (1, 2, 3)
        layers = [(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), block.relu) for i in numbers]
    convs = [fold(*layer, names) for layer in layers]
    if getattr(block, "plain", False):
        return FusedBlock(convs, None)
    if block.downsample is None:
        return FusedBlock(convs, nn.Identity())
    shortcut = expect(block.downsample, names, ours.Projection, ours.PadShortcut, nn.Sequential)
    if isinstance(shortcut, ours.PadShortcut):
        return FusedBlock(convs, shortcut)
    if len(shortcut) != 2:
        raise UserError(f"fuse: {names[shortcut]} has {len(shortcut)} layers; wanted a convolution and its batch norm")
    return FusedBlock(convs, fold(*shortcut, None, names))


def fold(conv: nn.Module, bn: nn.Module, relu: nn.Module | None, names: dict[nn.Module, str]) -> FusedConv:
    """`relu(bn(conv(x)))` as one operator; without a ReLU where that is None."""
    expect(conv, names, nn.Conv2d)
    expect(bn, names, nn.BatchNorm2d, nn.SyncBatchNorm)
    if relu is not None:
        expect(relu, names, nn.ReLU)
    for option, wanted in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
        if getattr(conv, option) != wanted:
            raise UserError(f"fuse: {names[conv]} has {option}={getattr(conv, option)!r}; wanted {wanted!r}")
    for option in ("stride", "padding"):
        value = getattr(conv, option)
        if isinstance(value, str) or value[0] != value[1]:
            raise UserError(f"fuse: {names[conv]} has {option}={value!r}; wanted one number for both directions")
    if bn.running_mean is None:
        raise UserError(f"fuse: {names[bn]} has no running statistics; wanted a batch norm that tracks them")
    scale = (bn.running_var + bn.eps).rsqrt()
    if bn.affine:
        scale = scale * bn.weight
    bias = -bn.running_mean * scale if conv.bias is None else (conv.bias - bn.running_mean) * scale
    if bn.affine:
        bias = bias + bn.bias
    return FusedConv(conv.weight * scale[:, None, None, None], bias, conv.stride[0], conv.padding[0], relu is not None)


def expect(module: nn.Module, names: dict[nn.Module, str], *kinds: type[nn.Module]) -> nn.Module:
    """`module`, which computes what one of `kinds` does; a subclass with a `forward` of its own does not."""
    for kind in kinds:
        if isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module):
            return module
    wanted = " or ".join(f"{kind.__module__.split('.')[0]}'s {kind.__name__}" for kind in kinds)
    raise UserError(f"fuse: {names[module]} is {type(module).__name__}; wanted {wanted}")
