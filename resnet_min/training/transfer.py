"""Transfer learning: which weights a run starts from, and what is frozen when."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..data.download import downloading, unreachable
from ..errors import UserError
from ..model import ResNet, backbone_of
from . import checkpoint, foreign, validate

KEYS = 5  # of a file without weights, that an error names
MAY_DIFFER = ("conv1.weight", "fc.weight", "fc.bias")  # another stem, another number of classes


def load_pretrained(net: nn.Module, source: str, arch: str) -> list[str]:
    """Fill the ResNet that `net` is or holds with the weights of `source`; the names of those it has in another shape.

    source: "imagenet", torchvision's for `arch`; or a checkpoint or run of ours, or a file such as foreign.py lists.
    Only the first convolution and fc may be of another shape, and stay as they were drawn. A ResNet without an fc, as
    an encoder is, may also have fewer stages.
    Raises UserError where the weights cannot be had, or are another architecture's.
    """
    weights = imagenet(arch) if source == "imagenet" else weights_in(checkpoint.read(checkpoint.find(source)), source)
    model = backbone_of(net)
    if not list(model.fc.parameters()):
        kept = {name for name, _ in model.named_children()} - {"fc"}
        weights = {name: value for name, value in weights.items() if name.partition(".")[0] in kept}
    return fill(model, weights, f"--pretrained {source}", MAY_DIFFER)


def fill(model: ResNet, weights: dict[str, Tensor], source: str, may_differ: Collection[str] = ()) -> list[str]:
    """Fill `model` with `weights`; the names of those they have in another shape, which only `may_differ` may be.

    Raises UserError, which says of `source` what differs.
    """
    own = model.state_dict()
    wrong = own.keys() ^ weights.keys()
    # Batches seen so far: files from before torch 0.4.1 lack the count, and nothing depends on it.
    wrong -= {name for name in own.keys() - weights.keys() if name.endswith("num_batches_tracked")}
    other = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    wrong |= set(other).difference(may_differ)
    if wrong:
        example = min(wrong)
        shapes = [list(s[example].shape) if example in s else "not there" for s in (weights, own)]
        raise UserError(
            f"{source} holds another architecture: {len(wrong)} tensors differ, such as "
            f"{example}: {shapes[0]}, wanted {shapes[1]}"
        )
    model.load_state_dict({name: weights[name] for name in own if name in weights and name not in other}, strict=False)
    return other


def imagenet(arch: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights for `arch`, the first version: those of the reports' `pretrained=True`.

    Raises UserError where there are none, or they are neither in torch's cache nor can be downloaded.
    """
    from torchvision.models import get_model_weights, list_models

    if arch not in list_models():
        raise UserError(f"--pretrained imagenet: torchvision has no weights for {arch}; give a file, or none")
    weights = get_model_weights(arch).IMAGENET1K_V1
    name = weights.url.rpartition("/")[2]
    try:
        if not Path(torch.hub.get_dir(), "checkpoints", name).exists() and (why := unreachable(weights.url)):
            raise OSError(why)
        with downloading():
            return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: not the file that it should be
        raise UserError(
            f"--pretrained imagenet: cannot download torchvision's weights ({error}); give {name} as a file, "
            "or --pretrained none to start from random ones"
        ) from None


def weights_in(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The weights in what `path` held, ours or another's (see foreign.py), by torchvision's names.

    Raises UserError where there are none, or they are of a network that begins otherwise.
    """
    weights = foreign.unwrapped(content)
    if not weights or not validate.is_by_name(weights, lambda value: isinstance(value, Tensor)):
        keys = [f"{key!a:.40}" for key in content] if isinstance(content, dict) else [f"a {type(content).__name__}"]
        raise UserError(
            f"{path} holds no weights, but {', '.join(keys[:KEYS]) or 'nothing'}{', …' * (len(keys) > KEYS)}; "
            "wanted a resnet_min checkpoint, or a state_dict of tensors by name"
        )
    return foreign.as_ours(weights, path)


def freeze(net: nn.Module, config: Config, epoch: int) -> None:
    """Freeze what `config` freezes in `epoch` (counted from 1), and nothing else, by `requires_grad`.

    It concerns the ResNet that `net` is or holds. `freeze="first-last"` leaves the first convolution and what comes
    after the last stage. `freeze_children=N` freezes the children that come before the N-th, in torchvision's order
    and counted from 1, as `if count < N` in a loop over `model.children()` does. A frozen batch norm still normalises
    by its batch and moves its running statistics, unless `freeze_bn`.

    Raises UserError where nothing is left to train.
    """
    model = backbone_of(net)
    frozen = config.freeze_epochs is None or epoch <= config.freeze_epochs
    children = [child for name, child in model.named_children() if name != "dropout"]  # torchvision has none
    net.requires_grad_(True)
    if frozen and config.freeze == "first-last":
        model.requires_grad_(False)
        model.conv1.requires_grad_(True)
        model.fc.requires_grad_(True)
    elif frozen and config.freeze_children:
        for child in children[: config.freeze_children - 1]:
            child.requires_grad_(False)
        if not any(p.requires_grad for p in net.parameters()):
            raise UserError(
                f"--freeze-children {config.freeze_children} leaves nothing to train; {len(children)} leaves fc alone"
            )
    model.freeze_bn = config.freeze_bn
