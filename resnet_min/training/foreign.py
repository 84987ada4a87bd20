"""Weights that others saved, made into ours: torchvision's names, and shortcuts padded at the end.

    torchvision, timm               our names; of timm's, not those with a stem of several convolutions
    chenyaofo/pytorch-cifar-models  our names; its shortcuts are option B
    kuangliu/pytorch-cifar          `linear` is our fc, `shortcut` our downsample
    akamaster/pytorch_resnet_cifar10    likewise; its option A pads on both sides
    weiaicunzai/pytorch-cifar100    `conv2_x.0.residual_function.3.weight` is our `layer1.0.conv2.weight`

A file is one that torch.save wrote, or a .safetensors file: anybody's, or one of ours by tools/export.py, which says of
which network it is.

Names and shapes are all that a file has to say of a network. Two that agree in these and compute something else (with
strides elsewhere, with blurred pooling) cannot be told apart.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

HOLDERS = ("net", "state_dict", "model", "model_state_dict", "state_dict_ema")  # what others call weights; first wins
OPENED_BY = {".pt2": "torch.export.load", ".onnx": "ONNX Runtime"}  # graphs, of which no network of ours is made
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel, of torch.compile
RENAMED = ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample."))
WEIAICUNZAI = (
    (r"^conv1\.0\.", "conv1."),
    (r"^conv1\.1\.", "bn1."),
    (r"^conv([2-5])_x\.", lambda found: f"layer{int(found[1]) - 1}."),
    (
        r"\.residual_function\.(\d)\.",
        lambda found: f".{('conv', 'bn', 'relu')[int(found[1]) % 3]}{int(found[1]) // 3 + 1}.",
    ),
)


def read_safetensors(path: str | Path) -> dict[str, Any]:
    """The weights in a .safetensors file; in one that tools/export.py wrote, a checkpoint that has trained no step.

    Raises UserError where it is damaged, or the package safetensors is missing.
    """
    try:
        from safetensors import safe_open
    except ImportError:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors") from None
    try:
        with safe_open(path, "pt") as opened:
            weights, said = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
        if not said.keys() >= {"config", "classes", "mean", "std"}:
            return weights
        known = {name: json.loads(said[name]) for name in ("config", "classes", "mean", "std")}
    except Exception as error:  # anything may be in a damaged file
        raise UserError(f"{path} is not a readable .safetensors file: {error}") from None
    steps = {"optimizer": {"state": {}, "param_groups": []}, "schedule": {}, "epoch": 0, "step": 0}
    return {"model": weights, **known, **steps, "rng": {"cpu": torch.empty(0, dtype=torch.uint8)}, "versions": {}}


def unwrapped(content: Any) -> Any:
    """The state_dict in what a file held, without what wrappers put before its names; other things as they are."""
    if not isinstance(content, dict):
        return content
    content = next((content[name] for name in HOLDERS if isinstance(content.get(name), dict)), content)
    names = list(content)
    if not all(isinstance(name, str) for name in names):
        return content
    while wrapper := next((w for w in WRAPPERS if names and all(name.startswith(w) for name in names)), None):
        names = [name.removeprefix(wrapper) for name in names]
    return dict(zip(names, content.values(), strict=True))


def as_ours(weights: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Weights by our names, and in our order of channels; names that nobody listed above has stay as they are.

    Where the last layer is `linear` and no shortcut has weights, they are akamaster's, padded on both sides. Where it
    is `fc`, they are taken for padded at the end, as ours are: nothing else in them tells.

    Raises UserError for a stem of several convolutions.
    """
    rules = (*WEIAICUNZAI, *RENAMED) if any(name.startswith("conv2_x.") for name in weights) else RENAMED
    renamed = {}
    for name, value in weights.items():
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        renamed[name] = value
    if len(renamed) < len(weights):  # two became one: they are nobody's of these
        return weights
    if stem := [name for name in renamed if re.fullmatch(r"conv1\.\d+\.weight", name) and renamed[name].dim() == 4]:
        raise UserError(f"{path} begins with a deep stem ({', '.join(stem)}); wanted one convolution, conv1.weight")
    if "linear.weight" in weights and not any(re.search(r"\.(downsample|conv3)\.", name) for name in renamed):
        return padded_at_the_end(renamed)
    return renamed


def padded_at_the_end(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the same network with its channels in another order: new ones not on both sides, but at the end.

    Of shapes that fit no such network, some stay as they are.
    """
    moved = dict(weights)

    def reorder(name: str, dim: int, order: Tensor) -> None:
        value = moved.get(name)
        if value is not None and value.dim() > dim and value.shape[dim] == len(order):
            moved[name] = value.index_select(dim, order)

    order = torch.arange(0)  # between two blocks: which of their channels is at each place of ours
    lasts = [name for name in weights if re.fullmatch(r"layer\d{1,4}\.\d{1,4}\.conv2\.weight", name)]
    for last in sorted(lasts, key=lambda name: [int(number) for number in re.findall(r"\d+", name)]):
        block = last.removesuffix("conv2.weight")
        reorder(f"{block}conv1.weight", 1, order)
        channels, old = weights[last], len(order)
        width = len(channels) if channels.shape[2:] == (3, 3) and channels.numel() else 0
        if width > old:
            before = (width - old) // 2 if old else 0
            order = torch.cat([order + before, torch.arange(before), torch.arange(before + old, width)])
        for name in ("conv2.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"):
            reorder(f"{block}{name}", 0, order)
    reorder("fc.weight", 1, order)
    return moved
