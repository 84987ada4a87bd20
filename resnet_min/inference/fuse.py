"""A trained ResNet, ours or torchvision's, in the form it serves in: batch norm folded, one operator a convolution."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision.models.resnet as theirs
from torch import Tensor, nn

from .. import model as ours
from .. import ops
from ..errors import UserError
from ..kernels import backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# The bytes that a layer of the first stage may write for each thread of a CPU before the next layer reads them: more
# fall out of cache, with fewer the calls weigh. Measured on 2 Zen 4 cores with 1 MiB of L2 and 16 MiB of L3 cache each.
SLICE_BYTES = 3 * 2**20


@torch.no_grad()
def fuse(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """The fused inference form of a ResNet, ours or torchvision's, or of a module that holds one of ours; in eval mode.

    `model` is left as it is.

    dtype    of the weights, and so of images and logits: float32, bfloat16, float16 or float64; None for the model's.
             Batch norm is folded in float32 (in float64 from or to float64) before it is rounded.
    returns  a module: images [B, 3, H, W] -> the model's logits. Nothing in it trains, and images must not require
             grad. It can be moved, copied, saved, compiled, and exported with a dynamic batch.

    Layers keep their names. The max-pool and what follows the last block (pooling, dropout, `fc`) are kept, whatever
    they are; so is all of a module around a ResNet. Raises UserError for a model in training mode, and for one it does
    not understand, naming the layer.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"fuse: the model is {type(model).__name__}; wanted a module")
    held = [name for name, module in model.named_modules() if name and isinstance(module, ours.ResNet)]
    if len(held) == 1:
        return fuse_inside(model, held[0], dtype)
    expect(model, {model: "the model"}, ours.ResNet, theirs.ResNet)
    for name, module in [("the model", model), *list(model.named_modules())[1:]]:
        if module.training:
            raise UserError(f"fuse: {name} is in training mode; wanted eval mode: call model.eval() first")
        if module._forward_hooks or module._forward_pre_hooks:
            raise UserError(f"fuse: {name} has hooks, which the fused form would not call; remove them first")
    dtype = dtype or model.conv1.weight.dtype
    if dtype not in DTYPES:
        raise UserError(f"fuse: dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    fold_in = torch.promote_types(torch.promote_types(model.conv1.weight.dtype, dtype), torch.float32)
    model = copy.deepcopy(model).to(fold_in)
    names = {module: name for name, module in model.named_modules()}

    layers = {"conv1": fold(model.conv1, model.bn1, model.relu, names), "maxpool": model.maxpool}
    for stage in [f"layer{i + 1}" for i in range(getattr(model, "stages", 4))]:
        blocks = expect(getattr(model, stage), names, nn.Sequential)
        layers[stage] = nn.Sequential(*(fuse_block(block, names) for block in blocks))
    layers |= {"avgpool": model.avgpool, "flatten": nn.Flatten()}
    layers |= {name: getattr(model, name) for name in ("dropout", "fc") if hasattr(model, name)}
    fused = FusedResNet(layers).to(dtype).requires_grad_(False).eval()
    if isinstance(model, ours.ResNet):
        fused.classes, fused.preprocessing = model.classes, model.preprocessing
    return fused


def fuse_inside(model: nn.Module, name: str, dtype: torch.dtype | None) -> nn.Module:
    """`model` with the ResNet called `name` in it fused, all in one dtype."""
    if model.training:
        raise UserError("fuse: the model is in training mode; wanted eval mode: call model.eval() first")
    fused = copy.deepcopy(model)
    inner = fuse(model.get_submodule(name), dtype)
    fused.set_submodule(name, inner)
    return fused.to(inner.conv1.weight.dtype).requires_grad_(False)


def fuse_block(block: nn.Module, names: dict[nn.Module, str]) -> FusedBlock:
    """A block of ours or torchvision's, fused."""
    expect(block, names, ours.BasicBlock, ours.Bottleneck, theirs.BasicBlock, theirs.Bottleneck)
    if isinstance(block, ours.Block):
        layers = block.layers()
    else:
        numbers = (1, 2) if isinstance(block, theirs.BasicBlock) else (1, 2, 3)
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


class FusedResNet(ours.Classifier, nn.Sequential):
    """images [B, 3, H, W] -> logits. On a CPU, in eager calls only, in slices of the batch."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        run = super().forward
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # a graph is for any batch
            return run(x)
        slices = self.slices(x)
        return run(x) if slices < 2 else torch.cat([run(part) for part in x.chunk(slices)])

    def features(self, x: Tensor) -> Tensor:
        """images [B, 3, H, W] -> the last stage's maps [B, C, h, w]."""
        for name, layer in self.named_children():
            if name == "avgpool":
                break
            x = layer(x)
        return x

    def slices(self, x: Tensor) -> int:
        """How many parts of x to take through all layers one by one, so that activations stay in cache."""
        height, width = self.maxpool(self.conv1(x[:1])).shape[2:]
        image = self.layer1[-1].channels * height * width * x.element_size()
        return math.ceil(x.shape[0] * image / (SLICE_BYTES * torch.get_num_threads()))


class FusedBlock(nn.Module):
    """x -> the convolutions in turn, the last one with `downsample(x)` added; nothing is added where that is None."""

    def __init__(self, convs: list[FusedConv], downsample: nn.Module | None) -> None:
        super().__init__()
        self.depth = len(convs)
        for index, conv in enumerate(convs):
            self.add_module(f"conv{index + 1}", conv)
        self.channels = len(convs[-1].bias)  # of the output
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        *first, last = (getattr(self, f"conv{index + 1}") for index in range(self.depth))
        out = x
        for conv in first:
            out = conv(out)
        return last(out, None if self.downsample is None else self.downsample(x))


class FusedConv(nn.Module):
    """`ops.conv_bn_relu` and its weights: x [B, C, H, W], residual [B, O, H', W'] -> [B, O, H', W'].

    On CUDA it is our kernel or cuDNN's fused call, by a trial of both at the first x of a shape; ours without a trial
    under torch's deterministic algorithms, while a graph is captured, and in compiled code.

    The CPU kernel wants the weight prepacked. That is an opaque tensor, not to be saved,
    moved or put into a graph, so it is kept beside the plain weight and made from it at the first call, or again once
    the weight is another or was written to.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int, relu: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.relu = stride, padding, relu
        self._prepacked: tuple[Tensor, int, Tensor] | None = None  # made from which weight, at which version; itself
        self._choices: dict[tuple[Any, ...], Callable[..., Tensor]] = {}

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        rest = self.bias, residual, self.stride, self.padding, self.relu
        if torch.compiler.is_compiling():
            return ops.conv_bn_relu(x, self.weight, *rest)
        if cudnn_fuses(x, self.relu):
            return self._faster(x, residual)(x, self.weight, *rest)
        if not ops.takes_prepacked(x, self.weight):
            warn_where_emulated(x.dtype, x.device)
            return ops.conv_bn_relu(x, self.weight, *rest)
        version = 0 if self.weight.is_inference() else self.weight._version
        if self._prepacked and self._prepacked[0] is self.weight and self._prepacked[1] == version:
            return ops.conv_bn_relu(x, self._prepacked[2], *rest)
        warn_where_emulated(x.dtype, x.device)
        out = ops.conv_bn_relu(x, self.weight, *rest)  # which checks the arguments
        self._prepacked = self.weight, version, ops.prepacked(self.weight, x, self.stride, self.padding)
        return out

    def _faster(self, x: Tensor, residual: Tensor | None) -> Callable[..., Tensor]:
        """Ours or cuDNN's, whichever a trial found faster for such an x: one trial, the first time that one may be."""
        key = x.shape, x.dtype, x.device
        if key not in self._choices:
            if torch.cuda.is_current_stream_capturing() or _fixed_choice():
                return ops.conv_bn_relu
            args = x, self.weight, self.bias, residual, self.stride, self.padding, self.relu
            self._choices[key] = min((ops.conv_bn_relu, cudnn_conv_bn_relu), key=lambda call: milliseconds(call, args))
        return self._choices[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepacked": None, "_choices": {}}

    def extra_repr(self) -> str:
        out, channels, height, width = self.weight.shape
        return f"{channels}, {out}, {height}×{width}, stride={self.stride}, padding={self.padding}, relu={self.relu}"


@functools.cache
def warn_where_emulated(dtype: torch.dtype, device: torch.device) -> None:
    """Warn, once, that a CPU without the instructions for a 16-bit dtype is slow in it."""
    if dtype in (torch.bfloat16, torch.float16) and device.type == "cpu" and not backend.has_bf16(device):
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"this processor emulates {name}: the fused net is several times slower in it than in float32, which "
            "fuse(model, torch.float32) makes",
            stacklevel=2,
        )


def cudnn_fuses(x: Tensor, relu: bool) -> bool:
    """Whether `cudnn_conv_bn_relu` takes such an x: there is always a ReLU in it."""
    sound = x.dim() == 4 and len(x) > 0 and not (x.requires_grad and torch.is_grad_enabled())
    return x.is_cuda and relu and sound and x.dtype != torch.float64 and ops.supported("conv_bn_relu", x)


def cudnn_conv_bn_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> Tensor:
    """`ops.conv_bn_relu` by cuDNN's own fused call."""
    x = x.contiguous(memory_format=torch.channels_last)
    how = bias, (stride, stride), (padding, padding), (1, 1), 1
    with torch.autocast(x.device.type, enabled=False):
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, *how)
        residual = residual.contiguous(memory_format=torch.channels_last)
        return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, *how)


def _fixed_choice() -> bool:
    """Whether the user wants no choice that a measurement makes."""
    return torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic


def milliseconds(call: Callable[..., Tensor], args: tuple[Any, ...], calls: int = 10) -> float:
    """What a call takes on the GPU, the least of three times `calls` in a row, after as many that are not timed."""
    times = []
    for _ in range(4):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call(*args)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times[1:]) / calls


def expect(module: nn.Module, names: dict[nn.Module, str], *kinds: type[nn.Module]) -> nn.Module:
    """`module`, which computes what one of `kinds` does; a subclass with a `forward` of its own does not."""
    for kind in kinds:
        if isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module):
            return module
    wanted = " or ".join(f"{kind.__module__.split('.')[0]}'s {kind.__name__}" for kind in kinds)
    raise UserError(f"fuse: {names[module]} is {type(module).__name__}; wanted {wanted}")
