"""The reverse ResNet: a layer's maps projected back to the pixels, layer by layer.

After Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014: every convolution runs
transposed with its trained weights, max-pooling puts values back where the maxima were (the recorded switches), and
where the network has a ReLU the signal is rectified by its own sign. Backpropagation would gate by the sign of the
forward activation instead, guided backpropagation (Springenberg et al., 2015) by both. Shortcuts are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..model import PadShortcut, ResNet
from .layers import IMAGE, geometry, graph, locate, outputs

SHORTCUTS = {"add": 1, "subtract": -1, "main": 0}  # what a shortcut's share is multiplied by


@torch.no_grad()
def reconstruct(
    model: ResNet, images: Tensor, name: str, signal: Tensor, *, rectify: bool = True, shortcut: str = "add"
) -> Tensor:
    """Project `signal`, in the place of the maps that the layer `name` makes of `images`, back to the pixels.

    model     in eval mode, with any block, stem or option, plain or not; it is left as it is
    images    [B, 3, H, W] as the model takes them: they set the switches
    name      a module before the global pooling: "conv1", "layer2.0.bn1", "layer3", …
    signal    [S, C, h, w], shaped as that layer's maps: all of them, one channel with zeros elsewhere, one value.
              S is B, or anything where B is 1
    rectify   False leaves the signal's negative parts in
    shortcut  how a block y = relu(F(x) + s(x)) hands its signal ŷ to its input:
              "add"       Fᵀŷ + sᵀŷ, along both paths, as a gradient goes
              "subtract"  Fᵀŷ - sᵀŷ, what the branch F carries less what the shortcut s does
              "main"      Fᵀŷ, as if there were no shortcut
    returns   [S, 3, H, W], in units of the normalised pixels up to a factor

    Batch norm is folded: it scales each channel by weight / sqrt(running_var + eps). Its shift is no part of a
    projection, which knows only what is multiplied by the signal. Without rectification the projection is linear in
    `signal`, and with "add" the transposed Jacobian of the network whose ReLUs are left out on the way back.

    Raises UserError for an unknown layer or shortcut, a layer without spatial output, a model in training mode, and a
    signal of another shape.
    """
    if shortcut not in SHORTCUTS:
        raise UserError(f"unknown shortcut {shortcut!r}; known: {', '.join(SHORTCUTS)}")
    layers, start = graph(model), locate(model, name)
    _, maps = outputs(model, images, layers)
    maps[IMAGE] = images
    if signal.shape[1:] != maps[start].shape[1:] or len(images) not in (1, len(signal)):
        raise UserError(f"the signal for {name} is {list(signal.shape)}; its maps are {list(maps[start].shape)}")
    signals = {start: signal}
    for layer in reversed(layers):
        if layer not in signals:
            continue
        module, inputs = layers[layer].module, layers[layer].inputs
        back = transpose(module, signals.pop(layer), maps[inputs[0]], rectify)
        for source, factor in zip(inputs, (1, SHORTCUTS[shortcut]), strict=False):
            signals[source] = signals.get(source, 0) + factor * back
    return signals[IMAGE]


def transpose(module: nn.Module, signal: Tensor, x: Tensor, rectify: bool) -> Tensor:
    """One layer in reverse: a signal in the shape of its output becomes one in the shape of its input `x`."""
    if isinstance(module, nn.Conv2d):
        kernel, stride, padding = geometry(module)
        whole = [(size - 1) * stride - 2 * padding + kernel for size in signal.shape[2:]]
        rest = [size - made for size, made in zip(x.shape[2:], whole, strict=True)]  # rows that no window began in
        return F.conv_transpose2d(signal, module.weight, None, stride, padding, rest)
    if isinstance(module, nn.BatchNorm2d):
        return signal * (module.weight / torch.sqrt(module.running_var + module.eps))[:, None, None]
    if isinstance(module, nn.ReLU):
        return signal.clamp(min=0) if rectify else signal
    if isinstance(module, nn.MaxPool2d):
        return unpool(signal, x, module)
    if isinstance(module, PadShortcut):  # the channels that it added, and the pixels that it passed over, are zero
        back = signal.new_zeros(len(signal), *x.shape[1:])
        back[:, :, :: module.stride, :: module.stride] = signal[:, : x.shape[1]]
        return back
    return signal  # Identity


def unpool(signal: Tensor, x: Tensor, pool: nn.MaxPool2d) -> Tensor:
    """Put each value back where the maximum of its window was in `x`.

    Windows that overlap can share a maximum: it gets their sum, where `F.max_unpool2d` would keep one of them.
    """
    _, switches = F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, return_indices=True)
    back = signal.new_zeros(len(signal), x.shape[1], x.shape[2] * x.shape[3])
    back.scatter_add_(2, switches.expand_as(signal).flatten(2), signal.flatten(2))
    return back.unflatten(2, x.shape[2:])
