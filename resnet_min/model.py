"""Residual networks and their plain twins (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016).

Parameter names are torchvision's: with `stem="imagenet"` its weights load into ours and ours into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from . import weights as packaged
from .config import ARCHS, did_you_mean, is_count
from .errors import UserError

if TYPE_CHECKING:
    from .data.preprocessing import Preprocessing


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """`conv(x)`; in training by `ops.conv3x3`, where that does the same."""
    return kernels.conv3x3.in_place_of(conv, x) if kernels.conv3x3.stands_for(conv, x) else conv(x)


def bn_add_relu(x: Tensor, bn: nn.Module, relu: nn.Module | None = None, residual: Tensor | None = None) -> Tensor:
    """`relu(bn(x) + residual)`; in training by `ops.bn_add_relu`, where that does the same."""
    if kernels.bn_add_relu.stands_for(bn, relu, x, residual):
        return kernels.bn_add_relu.in_place_of(bn, relu, x, residual)
    if isinstance(bn, kernels.sync_bn.SyncBatchNorm):
        return bn(x, residual, relu is not None)
    out = bn(x)
    if residual is not None:
        out = out + residual
    return out if relu is None else relu(out)


class Projection(nn.Sequential):
    """Option B of He et al., section 3.3: 1×1 convolution and bn where input and output differ in size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        conv, bn = self
        return bn_add_relu(conv(x), bn)


class PadShortcut(nn.Module):
    """Option A of He et al., section 3.3: every stride-th pixel, new channels zero. No parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        # As [B, H, W, C]: autograd makes the gradient of what is indexed contiguous in the order of its dimensions.
        pixels = x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride]
        return F.pad(pixels, (0, self.extra)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """What both kinds of block share: `depth` times conv, bn, ReLU, where the shortcut joins before the last ReLU.

    x [B, inputs, H, W] -> [B, width * expansion, ceil(H / stride), ceil(W / stride)]. A plain block has no shortcut.
    """

    expansion: int
    depth: int

    def __init__(self, inputs: int, width: int, stride: int, plain: bool, option: str) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.plain = plain
        self.downsample: nn.Module | None = None
        if not plain and (stride != 1 or inputs != outputs):
            self.downsample = (PadShortcut if option == "A" else Projection)(inputs, outputs, stride)

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]]:
        """The block's (conv, bn, relu), first to last."""
        return [tuple(getattr(self, f"{kind}{i + 1}") for kind in ("conv", "bn", "relu")) for i in range(self.depth)]

    def forward(self, x: Tensor) -> Tensor:
        *first, (conv, bn, relu) = self.layers()
        out = x
        for c, b, r in first:
            out = bn_add_relu(convolve(c, out), b, r)
        out = convolve(conv, out)
        shortcut = None if self.plain else x if self.downsample is None else self.downsample(x)
        return bn_add_relu(out, bn, relu, shortcut)


class BasicBlock(Block):
    """Two 3×3 convolutions (He et al., figure 5 left); the first one strides."""

    expansion, depth = 1, 2

    def __init__(self, inputs: int, width: int, stride: int, plain: bool, option: str) -> None:
        super().__init__(inputs, width, stride, plain, option)
        self.conv1, self.bn1, self.relu1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = conv3x3(width, width), nn.BatchNorm2d(width), nn.ReLU()


class Bottleneck(Block):
    """1×1, 3×3, 1×1 (He et al., figure 5 right); the 3×3 strides, as in torchvision ("ResNet v1.5")."""

    expansion, depth = 4, 3

    def __init__(self, inputs: int, width: int, stride: int, plain: bool, option: str) -> None:
        super().__init__(inputs, width, stride, plain, option)
        outputs = width * self.expansion
        self.conv1, self.bn1, self.relu1 = conv1x1(inputs, width), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = conv3x3(width, width, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = conv1x1(width, outputs), nn.BatchNorm2d(outputs), nn.ReLU()


#      arch          block       blocks          widths               option
ARCH: dict[str, tuple[type[Block], tuple[int, ...], tuple[int, ...], str]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), "B"),
    "resnet34": (BasicBlock, (3, 4, 6, 3), (64, 128, 256, 512), "B"),
    "resnet50": (Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), "B"),
    "resnet101": (Bottleneck, (3, 4, 23, 3), (64, 128, 256, 512), "B"),
    "resnet152": (Bottleneck, (3, 8, 36, 3), (64, 128, 256, 512), "B"),
    "resnet20": (BasicBlock, (3, 3, 3), (16, 32, 64), "A"),
    "resnet32": (BasicBlock, (5, 5, 5), (16, 32, 64), "A"),
    "resnet44": (BasicBlock, (7, 7, 7), (16, 32, 64), "A"),
    "resnet56": (BasicBlock, (9, 9, 9), (16, 32, 64), "A"),
    "resnet110": (BasicBlock, (18, 18, 18), (16, 32, 64), "A"),
}
assert tuple(ARCH) == ARCHS
MOST = 65_536  # blocks of a stage, channels, pixels of a stride


class Classifier:
    """What a network of classes has beside its layers, and its fused form too: pixels in, probabilities out."""

    classes: tuple[str, ...] = ()  # their names, where they are known
    preprocessing: Preprocessing | None = None  # what its images go through, where that is known

    @torch.no_grad()
    def predict(self, images: Any, batch_size: int = 256) -> Tensor:
        """The probabilities of images of any size, float32 [N, classes] (float64 from a net of that) on its device.

        images      one or several: uint8 [H, W, 3] or [B, H, W, 3], arrays or tensors; Pillow images; or a list of
                    these. They are resized and normalised as `preprocessing` says.
        batch_size  images that the network takes at a time

        Raises ValueError where no normalisation is known, for a net in training mode, for other images than these, and
        where the weights give no finite numbers.
        """
        if self.preprocessing is None:
            raise UserError(
                "predict: how this net's images are normalised is not known; load it with its mean and std, as in "
                "resnet_min.load(source, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))"
            )
        if self.training:
            raise UserError("predict: the net is in training mode; call .eval() first")
        if not is_count(batch_size):
            raise UserError(f"predict: batch_size is a whole number of at least 1; got {batch_size!r}")
        weight = next(t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point())
        batches = self.preprocessing.batches(images, int(batch_size), weight.device, weight.dtype)
        logits = torch.cat([self(batch) for batch in batches])
        check_finite(logits)
        return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


class ResNet(Classifier, nn.Module):
    """images [B, 3, H, W] -> logits [B, num_classes]. Stages are `layer1` … `layerN`; `fc` is the last layer.

    `stride` is the pixels of a cell of the last stage's maps, in both directions.

    Convolutions have no bias; weights are drawn by kaiming_normal (fan out), as torchvision's are.
    """

    freeze_bn = False  # whether batch norms with frozen parameters stay in eval mode: `train` would wake them

    def __init__(
        self,
        block: type[Block],
        blocks: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        stem: str,
        plain: bool,
        option: str,
        dropout: float,
    ) -> None:
        super().__init__()
        channels = widths[0]  # of the paper's nets, ImageNet's and CIFAR's alike
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(3, channels)
        self.bn1, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = len(blocks)
        self.stride = math.prod(strides) * {"imagenet": 4, "cifar": 1, "cifar-pool": 2}[stem]
        for stage, (count, width, stride) in enumerate(zip(blocks, widths, strides, strict=True), start=1):
            stack = []
            for index in range(count):
                stack.append(block(channels, width, stride if index == 0 else 1, plain, option))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*stack))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        for module in self.modules() if self.freeze_bn else ():
            if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not module.weight.requires_grad:
                module.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """images [B, 3, H, W] -> the last stage's maps [B, C, h, w]."""
        x = self.maxpool(bn_add_relu(self.conv1(x), self.bn1, self.relu))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.avgpool(self.features(x)).flatten(1)))


def resnet(
    arch: str,
    num_classes: int = 10,
    stem: str = "cifar",
    plain: bool = False,
    *,
    blocks: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    option: str | None = None,
    dropout: float = 0.0,
    weights: str | None = None,
) -> ResNet:
    """A ResNet by name: resnet18/34/50/101/152, or the paper's CIFAR nets resnet20/32/44/56/110.

    stem: "cifar" (3×3 stride 1), "imagenet" (7×7 stride 2, max-pool), "cifar-pool" (3×3 stride 1, max-pool).
    plain: the same convolutions without shortcuts (and so without projections).
    blocks, widths, strides: one number a stage, instead of the arch's own; strides default to 1, 2, 2, ….
    option: the CIFAR nets' shortcuts where sizes differ: "A" (padded with zeros; their own) or "B" (projections).
    weights: trained ones that come with the package, such as "cifar10", for the arch as it is; the net is in eval mode.

    Raises UserError for an unknown name or numbers that do not fit together.

    >>> sum(p.numel() for p in resnet("resnet18").parameters())
    11173962
    """
    if arch not in ARCHS:  # whatever it may be
        raise UserError(f"unknown arch {arch!r:.80}{did_you_mean(str(arch), ARCH)}; known: {', '.join(ARCH)}")
    if not is_count(num_classes):
        raise UserError(f"num_classes is a whole number of at least 1; got {num_classes!r}")
    if stem not in ("cifar", "imagenet", "cifar-pool"):
        raise UserError(f"unknown stem {stem!r}; known: cifar, imagenet, cifar-pool")
    if weights is not None and (stem != "cifar" or any((plain, blocks, widths, strides, option))):
        raise UserError(f"weights {weights!r} are for {arch} as it is: leave stem, plain, option and numbers out")
    block, own_blocks, own_widths, own_option = ARCH[arch]
    if option not in (None, "A", "B"):
        raise UserError(f"unknown option {option!r}; known: A (padding), B (projections)")
    if option and plain:
        raise UserError(f"option {option} says which shortcuts, and a plain network has none: leave one of them out")
    if option == "A" and own_option == "B":
        raise UserError(f"option A is of the paper's CIFAR nets (resnet20, …); the shortcuts of {arch} are option B")
    option = option or own_option
    for name, numbers in (("blocks", blocks), ("widths", widths), ("strides", strides)):
        if numbers is not None and not isinstance(numbers, (tuple, list)):
            raise UserError(f"{name} are a tuple, one number a stage; got {numbers!r:.80}")
    if not 0 <= dropout <= 1:
        raise UserError(f"dropout must be between 0 and 1; got {dropout}")
    blocks, widths = tuple(blocks or own_blocks), tuple(widths or own_widths)
    strides = tuple(strides or (1, *(2,) * (len(blocks) - 1)))
    if not len(blocks) == len(widths) == len(strides):
        raise UserError(
            f"blocks, widths and strides need one number a stage; got {len(blocks)}, {len(widths)} and {len(strides)}"
        )
    if min(*blocks, *widths, *strides) < 1 or max(*blocks, *widths, *strides) > MOST:
        raise UserError(f"blocks, widths and strides are from 1 to {MOST:,}; got {blocks}, {widths}, {strides}")
    if option == "A" and list(widths) != sorted(widths):
        raise UserError(f"{arch}'s zero-padded shortcuts cannot drop channels; got widths {widths}")
    net = ResNet(
        block, blocks, widths, strides,
        num_classes=num_classes, stem=stem, plain=plain, option=option, dropout=dropout,
    )  # fmt: skip
    if weights is not None:
        packaged.fill(net, weights, arch)
    return net


def backbone_of(net: nn.Module) -> ResNet:
    """The ResNet that `net` is or holds."""
    return next(module for module in net.modules() if isinstance(module, ResNet))


def check_finite(outputs: Tensor) -> None:
    """Raise UserError where a network's outputs are not all finite."""
    if not outputs.isfinite().all():
        raise UserError("the model's outputs are not all finite: the weights are from a run that diverged")


def count_parameters(model: nn.Module, trained_only: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained_only)


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one image's forward pass (convolutions, matrix products), at height × width `size`."""
    from torch.utils.flop_counter import FlopCounterMode

    first = next(model.parameters())
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *size, device=first.device, dtype=first.dtype))
    model.train(training)
    return counter.get_total_flops() // 2


def _named(arch: str) -> Callable[..., ResNet]:
    """`resnet` for one arch, as a function with a name and a help text of its own."""

    def build(num_classes: int = 10, stem: str = "cifar", plain: bool = False, **options: Any) -> ResNet:
        return resnet(arch, num_classes, stem, plain, **options)

    build.__name__ = build.__qualname__ = arch
    build.__doc__ = f"""`resnet("{arch}", …)`, whose help says what the arguments and further options are."""
    return build


resnet18, resnet34, resnet50, resnet101, resnet152 = map(_named, ARCHS[:5])
resnet20, resnet32, resnet44, resnet56, resnet110 = map(_named, ARCHS[5:])
