"""The modules that `fuse` makes: on a CPU in float32 a net is one operator, elsewhere one for each convolution."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import model as ours
from .. import ops
from ..kernels import backend
from ..kernels.checks import describe, dtype_name
from ..kernels.fused_net import CONVOLUTION, FASTER, LINEAR, MAX_POOL, MEAN_POOL, Layer
from . import cudnn

# The bytes that a layer of the first stage may write for each thread of a CPU before the next layer reads them, where
# a convolution is a call: more fall out of cache, with fewer the calls weigh. Measured in bfloat16 on 2 Zen 4 cores
# with 1 MiB of L2 and 16 MiB of L3 cache each.
SLICE_BYTES = 3 * 2**20

# Of the layers, what a plan has in it.
NUMBERS = ("form", "stride", "padding", "relu", "kernel_size", "dilation", "ceil_mode", "return_indices", "output_size")


class FusedResNet(ours.Classifier, nn.Sequential):
    """images [B, 3, H, W] -> logits.

    On a CPU in float32 all of it is one call of `ops.fused_net`, as far as that has its layers: what follows the last
    block, where that is not pooling and a linear layer, is called after it. So it is on other devices and in other
    dtypes, while it has hooks, and where its max-pool is another than torch's own: layer by layer, and on a CPU, in
    eager calls, in slices of the batch.
    """

    def __init__(self, layers: dict[str, nn.Module], form: int = FASTER) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.form = form
        self._planned: tuple[Planned, Planned] | None = None

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        whole, _ = self._plans()
        if self._in_one_call(x, whole):
            x = whole(x)
            for layer in whole.rest:
                x = layer(x)
            return x
        run = super().forward
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # a graph is for any batch
            return run(x)
        slices = self.slices(x)
        return run(x) if slices < 2 else torch.cat([run(part) for part in x.chunk(slices)])

    def features(self, x: Tensor) -> Tensor:
        """images [B, 3, H, W] -> the last stage's maps [B, C, h, w]."""
        self._check(x)
        _, maps = self._plans()
        if self._in_one_call(x, maps):
            return maps(x)
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

    def _plans(self) -> tuple[Planned, Planned]:
        """The plan of all of it, and that up to the last stage's maps."""
        if self._planned is None or not self._planned[0].is_of_now():  # a user may replace a layer, such as fc
            self._planned = Planned(self, head=True), Planned(self, head=False)
        return self._planned

    def _check(self, x: Tensor) -> None:
        """Raise TypeError for what is no tensor, ValueError for images of another shape, dtype or device."""
        weight = self.conv1.weight
        if not isinstance(x, Tensor):
            raise TypeError(
                f"images must be a tensor; got {type(x).__name__}: `predict` takes NumPy arrays and pictures"
            )
        if x.dim() != 4 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype or x.device != weight.device:
            channels = weight.shape[1]
            hint = ""
            if x.dim() == 3 and x.shape[0] == channels:
                hint = ": images[None]"
            elif x.dim() == 4 and x.shape[1] != channels and x.shape[3] == channels:
                hint = ": images.permute(0, 3, 1, 2)"
            elif x.dtype != weight.dtype:
                hint = ": `predict` takes uint8" if x.dtype == torch.uint8 else f": images.to({weight.dtype})"
            raise ValueError(
                f"images must be {dtype_name(weight.dtype)} [B, {channels}, H, W] on {weight.device}; "
                f"got {describe(x)} on {x.device}{hint}"
            )

    def _in_one_call(self, x: Tensor, plan: Planned) -> bool:
        return (
            bool(plan.layers)
            and not self.training
            and backend.supported("fused_net", x)
            and self.conv1.weight.dtype == torch.float32
            and not plan.has_hooks()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_planned": None}


class Planned:
    """The layers of a FusedResNet as a plan of `ops.fused_net`, and the tensors it takes. No layers where it has none.

    rest    what of the net is to be called after it
    """

    def __init__(self, net: FusedResNet, head: bool) -> None:
        self.layers: list[Layer] = []
        self.convolutions: list[nn.Module] = []  # and linear layers: what has weights
        names = list(net._modules)
        after = names.index("avgpool")
        self.rest = [net._modules[name] for name in names[after:]] if head else []
        called = [net._modules[name] for name in names[:after]]

        value = self._conv(net.conv1, 0, net.form)
        pool = net.maxpool
        if type(pool) is nn.MaxPool2d and _is_square(pool):
            value = self._add(Layer(MAX_POOL, value, stride=pool.stride, padding=pool.padding, size=pool.kernel_size))
        elif type(pool) is not nn.Identity:
            self.layers = []
            self._remember(net, [])
            return
        for stage in called[2:]:
            for block in stage:
                value = self._block(block, value, net.form)
        if head:
            called += self._head(value)
        self._remember(net, [module for layer in called for module in layer.modules()])
        # The dicts in which modules hold their tensors, whichever these are at a call: faster than attributes.
        self._held = [m._buffers if isinstance(m, FusedConv) else m._parameters for m in self.convolutions]
        self.numbers = [int(number) for layer in self.layers for number in layer]

    def __call__(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            tensors = [(module.weight, module.bias) for module in self.convolutions]
        else:
            tensors = [(held["weight"], held["bias"]) for held in self._held]
        return ops.fused_net(x, [weight for weight, _ in tensors], [bias for _, bias in tensors], self.numbers)

    def _remember(self, net: FusedResNet, called: list[nn.Module]) -> None:
        """What it was made from, and the hooks of modules that will not be called."""
        self._hooks = [hooks for m in called for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        modules = list(net.modules())
        self._children = [module._modules for module in modules]
        self._numbers = [(vars(m), name) for m in modules for name in NUMBERS if name in vars(m)]
        self._made_from = self._now()

    def is_of_now(self) -> bool:
        """Whether the net still has the layers and numbers that it was made from."""
        return self._now() == self._made_from

    def _now(self) -> tuple[list[tuple[nn.Module, ...]], list[Any]]:
        children = [tuple(held.values()) for held in self._children]
        return children, [attributes.get(name) for attributes, name in self._numbers]

    def has_hooks(self) -> bool:
        """Whether a module has hooks that the operator would not call."""
        return any(self._hooks) or nn.modules.module._has_any_global_hook()

    def _add(self, layer: Layer) -> int:
        self.layers.append(layer)
        return len(self.layers)

    def _conv(self, conv: FusedConv, source: int, form: int, residual: int = -1, every: int = 1) -> int:
        self.convolutions.append(conv)
        about = dict(stride=conv.stride, padding=conv.padding, relu=conv.relu, form=form)
        return self._add(Layer(CONVOLUTION, source, residual, every, **about))

    def _block(self, block: FusedBlock, source: int, form: int) -> int:
        *first, last = block.convolutions()
        value, residual, every = source, -1, 1
        for conv in first:
            value = self._conv(conv, value, form)
        if isinstance(block.downsample, FusedConv):  # after the others, so that maps of one size follow one another
            residual = self._conv(block.downsample, source, form)
        elif isinstance(block.downsample, ours.PadShortcut):
            residual, every = source, block.downsample.stride
        elif block.downsample is not None:
            residual = source
        return self._conv(last, value, form, residual, every)

    def _head(self, value: int) -> list[nn.Module]:
        """Takes in what it can of pooling, dropout and fc; returns those."""
        taken = []
        pool, *others = self.rest
        if type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1)):
            idle = [type(layer) in (nn.Flatten, nn.Dropout) for layer in others[:-1]]
            fc = others[-1]
            if all(idle) and others[0].start_dim == 1 and type(fc) is nn.Linear and fc.bias is not None:
                self._add(Layer(MEAN_POOL, value))
                self.convolutions.append(fc)
                self._add(Layer(LINEAR, len(self.layers)))
                taken, self.rest = self.rest, []
        return taken


def _is_square(pool: nn.MaxPool2d) -> bool:
    """Whether it is a plain one, with one number for both directions."""
    numbers = (pool.kernel_size, pool.stride, pool.padding)
    return (
        all(isinstance(n, int) for n in numbers) and pool.dilation == 1 and not (pool.ceil_mode or pool.return_indices)
    )


class FusedBlock(nn.Module):
    """x -> the convolutions in turn, the last one with `downsample(x)` added; nothing is added where that is None."""

    def __init__(self, convs: list[FusedConv], downsample: nn.Module | None) -> None:
        super().__init__()
        self.depth = len(convs)
        for index, conv in enumerate(convs):
            self.add_module(f"conv{index + 1}", conv)
        self.channels = len(convs[-1].bias)  # of the output
        self.downsample = downsample

    def convolutions(self) -> list[FusedConv]:
        return [getattr(self, f"conv{index + 1}") for index in range(self.depth)]

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.convolutions()
        out = x
        for conv in first:
            out = conv(out)
        return last(out, None if self.downsample is None else self.downsample(x))


class FusedConv(nn.Module):
    """`ops.conv_bn_relu` and its weights: x [B, C, H, W], residual [B, O, H', W'] -> [B, O, H', W'].

    On CUDA it is our kernel or cuDNN's fused call, by a trial of both at the first x of a shape; ours without a trial
    under torch's deterministic algorithms, while a graph is captured, and in compiled code.

    In bfloat16 on a CPU the weight is wanted prepacked. That is an opaque tensor, not to be saved, moved or put into a
    graph, so it is kept beside the plain weight and made from it at the first call, or again once the weight is another
    or was written to.
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
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return ops.conv_bn_relu(x, self.weight, *rest)
        if cudnn.fuses(x, self.relu):
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
            if torch.cuda.is_current_stream_capturing() or cudnn.fixed_choice():
                return ops.conv_bn_relu
            args = x, self.weight, self.bias, residual, self.stride, self.padding, self.relu
            try:
                theirs = cudnn.milliseconds(cudnn.conv_bn_relu, args)
            except RuntimeError:  # cuDNN has no engine for such an x, or no room for its workspace
                theirs = math.inf
            ours = cudnn.milliseconds(ops.conv_bn_relu, args)
            self._choices[key] = ops.conv_bn_relu if ours <= theirs else cudnn.conv_bn_relu
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
