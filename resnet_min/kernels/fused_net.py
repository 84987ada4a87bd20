"""A whole net, batch norm folded, as a list of layers: inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .checks import check as check_argument
from .checks import check_device, describe

CONVOLUTION, MAX_POOL, MEAN_POOL, LINEAR = range(4)
FASTER, DIRECT, WINOGRAD_2X2, WINOGRAD_4X4 = range(4)


class Layer(NamedTuple):
    """One layer of a plan. Value 0 is the images, layer i makes value i + 1, and the last value is the result.

    kind             CONVOLUTION, MAX_POOL (its windows size × size), MEAN_POOL (over whole maps, to one pixel),
                     LINEAR (of maps of one pixel; it comes last)
    source           the value it works on
    residual         the value that a convolution adds, or -1; missing channels are zeros
    residual_stride  every so many of its pixels are added, in both directions
    relu             whether ReLU comes last, in a convolution
    form             how the sums of a convolution are worked out: FASTER is DIRECT, or WINOGRAD_2X2 where that fits and
                     is faster. WINOGRAD_4X4 takes F(4×4, 3×3) for at least 64 channels and maps of 8×8, which is faster
                     and less exact, and is FASTER elsewhere.
    """

    kind: int
    source: int
    residual: int = -1
    residual_stride: int = 1
    stride: int = 1
    padding: int = 0
    size: int = 0
    relu: bool = False
    form: int = FASTER


def fused_net(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], plan: Sequence[int]) -> Tensor:
    """A net in one call: the layers of `plan`, in their order.

    x        float32 [B, C, H, W], any strides
    weights  those of convolutions [O, C, h, w] and of linear layers [O, C], float32, in the order of the plan
    biases   [O] each, float32
    plan     the numbers of all `Layer`s in a row
    returns  float32: [B, O] where a linear layer comes last, [B, O, H', W'] in channels_last elsewhere

    Raises ValueError for a plan, dtypes, shapes or devices that do not fit together; RuntimeError for an input that
    requires grad while grad is on. The kernel keeps weights in an order of its own, by tensor and version, and memory
    for maps of the last eight sizes, at most 256 MiB beside the last one's; the next call with other weights frees what
    belonged to weights that are gone. Any number of threads may call it. A weight that is written to through `.data`,
    or under `torch.inference_mode`, has no new version: the kernel does not notice.
    NaN and infinity stay, but in Winograd's forms either makes NaN of every pixel of a tile that has it in its input,
    and finite values may overflow to them: beyond 8e37 in F(2×2), where up to four are added, 3e36 in F(4×4).
    Equivalent to `conv_bn_relu`, `max_pool2d`, `mean((2, 3))` and `linear` in turn.
    """
    if backend.supported("fused_net", x):
        return backend.call("fused_net", check, x, weights, biases, plan)
    return reference(x, weights, biases, plan)


def reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], plan: Sequence[int]) -> Tensor:
    """`fused_net` in PyTorch, on any device."""
    check(x, weights, biases, plan)
    values, parameters = [x], iter(zip(weights, biases, strict=True))
    with torch.autocast(x.device.type, enabled=False):
        for layer in layers_of(plan):
            source = values[layer.source]
            if layer.kind == CONVOLUTION:
                out = F.conv2d(source, *next(parameters), layer.stride, layer.padding)
                if layer.residual >= 0:
                    added = values[layer.residual][:, :, :: layer.residual_stride, :: layer.residual_stride]
                    out = out + F.pad(added, (0, 0, 0, 0, 0, out.shape[1] - added.shape[1]))
                values.append(out.relu() if layer.relu else out)
            elif layer.kind == MAX_POOL:
                values.append(F.max_pool2d(source, layer.size, layer.stride, layer.padding))
            elif layer.kind == MEAN_POOL:
                values.append(source.mean((2, 3), keepdim=True))
            else:
                values.append(F.linear(source.flatten(1), *next(parameters)))
    return values[-1] if values[-1].dim() == 2 else values[-1].contiguous(memory_format=torch.channels_last)


def layers_of(plan: Sequence[int]) -> list[Layer]:
    """The layers of a plan. Raises ValueError where it is not made of such."""
    fields = len(Layer._fields)
    if not plan or len(plan) % fields:
        raise ValueError(f"fused_net: plan must have {fields} numbers for each of at least one layer; got {len(plan)}")
    layers = [Layer(*plan[i : i + fields]) for i in range(0, len(plan), fields)]
    for value, layer in enumerate(layers):
        last = value == len(layers) - 1
        fits = (
            layer.kind in range(4)
            and layer.form in range(4)
            and 0 <= layer.source <= value
            and -1 <= layer.residual <= value
            and 1 <= layer.stride <= 2**15
            and 0 <= layer.padding <= 2**15
            and 1 <= layer.residual_stride <= 2**15
            and (layer.kind == CONVOLUTION or layer.residual == -1 and not layer.relu)
            and (layer.kind != MAX_POOL or 1 <= layer.size <= 2**15 and 2 * layer.padding <= layer.size)
            and (layer.kind != LINEAR or last and layer.stride == 1 and layer.padding == 0)
        )
        if not fits:
            raise ValueError(f"fused_net: layer {value} of the plan cannot be run: {layer}")
    return layers


def check(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], plan: Sequence[int]
) -> list[tuple[int, int, int]]:
    """The checks of `fused_net` that need metadata only; channels, height and width of each value."""
    op, float32 = "fused_net", (torch.float32,)
    check_argument(op, "x", x, "float32 [B, C, H, W]", float32, (None,) * 4)
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x must have no empty dimension but the first; got {describe(x)}")
    layers = layers_of(plan)
    wanted = sum(layer.kind in (CONVOLUTION, LINEAR) for layer in layers)
    if not len(weights) == len(biases) == wanted:
        raise ValueError(f"{op}: the plan wants {wanted} weights and biases; got {len(weights)} and {len(biases)}")
    check_device(op, x, **{f"weight {i}": w for i, w in enumerate(weights)})
    check_device(op, x, **{f"bias {i}": b for i, b in enumerate(biases)})
    values, used = [tuple(x.shape[1:])], 0
    for number, layer in enumerate(layers):
        channels, height, width = values[layer.source]
        size = (layer.size, layer.size)
        if layer.kind in (CONVOLUTION, LINEAR):
            weight, name = weights[used], f"weight {used}"
            if layer.kind == LINEAR:
                check_argument(op, name, weight, f"float32 [O, {channels}]", float32, (None, channels))
                if (height, width) != (1, 1):
                    raise ValueError(f"{op}: layer {number} takes maps of one pixel; got {height}×{width}")
            else:
                check_argument(
                    op, name, weight, f"float32 [O, {channels}, h, w]", float32, (None, channels, None, None)
                )
            if weight.numel() == 0:
                raise ValueError(f"{op}: {name} must have no empty dimension; got {describe(weight)}")
            channels, size = weight.shape[0], tuple(weight.shape[2:]) or (1, 1)
            check_argument(op, f"bias {used}", biases[used], f"float32 [{channels}]", float32, (channels,))
            used += 1
        if layer.kind == MEAN_POOL:
            height = width = 1
        else:
            if height + 2 * layer.padding < size[0] or width + 2 * layer.padding < size[1]:
                raise ValueError(f"{op}: layer {number} does not fit into {height}×{width} and its padding")
            height, width = (
                (n + 2 * layer.padding - k) // layer.stride + 1 for n, k in ((height, size[0]), (width, size[1]))
            )
        if layer.residual >= 0:
            added, *shape = values[layer.residual]
            if added > channels or [-(-n // layer.residual_stride) for n in shape] != [height, width]:
                raise ValueError(
                    f"{op}: layer {number} adds {[added, *shape]}, every {layer.residual_stride} pixels, to "
                    f"{[channels, height, width]}"
                )
        values.append((channels, height, width))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights, *biases)):
        raise RuntimeError(f"{op}: it is for inference, inputs must not require grad; use torch.no_grad()")
    return values


@backend.takes("fused_net")
def takes(x: Tensor) -> bool:
    """There is a kernel for float32, and for CPUs only."""
    return x.device.type == "cpu" and x.dtype == torch.float32


@backend.fake("fused_net")
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], plan: Sequence[int]) -> Tensor:
    channels, height, width = check(x, weights, biases, plan)[-1]
    if layers_of(plan)[-1].kind == LINEAR:
        return x.new_empty((x.shape[0], channels))
    return x.new_empty((x.shape[0], height, width, channels)).permute(0, 3, 1, 2)
