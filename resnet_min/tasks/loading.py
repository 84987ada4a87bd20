"""`load`: a trained ResNet for Python, from what there is of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.preprocessing import Preprocessing
from ..errors import UserError
from ..model import ResNet, resnet
from ..training import checkpoint, transfer
from . import trained

SIDE = {"imagenet": 224, "cifar": 32}  # of the images that a stem is made for, in pixels


def load(
    source: str | Path | Mapping[str, Tensor],
    arch: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ResNet:
    """A trained ResNet in eval mode, on the CPU, whose `predict` takes pixels.

    source     a run's folder, a checkpoint of ours, or weights as training/foreign.py lists them, as a file or a dict
    arch       of weights, which do not say it: resnet18, …. Their stem is ImageNet's where the first convolution is
               7×7, otherwise CIFAR's; there are as many classes as fc has rows; resnet20's shortcuts and their like
               are option B where there are weights for them.
    classes    their names, instead of those in the checkpoint
    mean, std  of the normalisation, 3 numbers each where white is 1, instead of the checkpoint's. Others' weights say
               none; without them its `predict` raises ValueError, and `forward` takes images you normalised.

    A checkpoint says the size of its images too; for others' weights they are made 224×224 (a 7×7 stem) or 32×32. What
    `predict` does to an image is in the net's `preprocessing`, which may be replaced.

    Raises ValueError (UserError) for what cannot be read, weights of another architecture, a net that does not tell
    classes, and classes, mean or std that do not fit.
    """
    if isinstance(source, Mapping):
        path, content = "the state_dict", dict(source)
    elif not isinstance(source, (str, os.PathLike)):
        got = None if source is None else type(source).__name__
        raise UserError(f"load takes a run's folder, a file, or a state_dict of tensors by name; got {got}")
    else:
        path = checkpoint.find(source)
        content = checkpoint.read(path)
    if checkpoint.is_ours(content):
        subject = trained.revive(content, Path(path))
        net, config = subject.net, subject.task.config
        if not isinstance(net, ResNet) or not net.classes:
            raise UserError(f"{path} is of --task {config.task}: it has no classes to predict; try eval.py --images")
        if arch not in (None, config.arch):
            raise UserError(f"{path} is a {config.arch}; an arch ({arch!r}) is for weights that do not say theirs")
        if config.channels_last:
            net.to(memory_format=torch.channels_last)
    else:
        net = from_state_dict(transfer.weights_in(content, path), arch, str(path))
    if classes is not None:
        names = () if isinstance(classes, str) or not isinstance(classes, Iterable) else tuple(classes)
        if len(names) != net.fc.out_features:
            raise UserError(f"{path} tells {net.fc.out_features} classes; got the names {classes!r}")
        ((name, times),) = Counter(map(str, names)).most_common(1)
        if times > 1:
            raise UserError(f"classes: each one has a name of its own; got {name!r} {times} times")
        net.classes = names
    if (mean is None) != (std is None):
        raise UserError("mean and std go together: give both or neither")
    if mean is not None:
        old = net.preprocessing
        side = SIDE["imagenet" if net.conv1.kernel_size == (7, 7) else "cifar"]
        net.preprocessing = Preprocessing(mean, std, old.size if old else side, old.resize if old else None)
    return net


def from_state_dict(weights: dict[str, Tensor], arch: str | None, source: str) -> ResNet:
    """The ResNet `arch` with these weights, all of them. Raises UserError where they are another architecture's."""
    if arch is None:
        raise UserError(f'{source} does not say of which network it is: give its arch, as in load(…, "resnet18")')
    first, last = weights.get("conv1.weight"), weights.get("fc.weight")
    if first is None or first.dim() != 4 or last is None or last.dim() != 2 or not last.numel():
        raise UserError(f"{source} has no conv1.weight and fc.weight such as a ResNet has; wanted torchvision's names")
    stem = "imagenet" if first.shape[2] == 7 else "cifar"
    net = resnet(arch, len(last), stem, option="B" if any(".downsample." in name for name in weights) else None)
    transfer.fill(net, weights, source)
    return net.eval().to(memory_format=torch.channels_last)
