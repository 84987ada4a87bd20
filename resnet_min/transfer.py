"""Transfer learning: what is frozen, and when."""

from __future__ import annotations

from .config import Config
from .errors import UserError
from .model import ResNet


def freeze(model: ResNet, config: Config, epoch: int) -> None:
    """Freeze what `config` freezes in `epoch` (counted from 1), and nothing else, by `requires_grad`.

    `freeze="first-last"` leaves the first convolution and fc. `freeze_children=N` freezes the children that come before
    the N-th, in torchvision's order and counted from 1, as `if count < N` in a loop over `model.children()` does. A
    frozen batch norm still normalises by its batch and moves its running statistics, unless `freeze_bn`.

    Raises UserError where nothing is left to train.
    """
    frozen = config.freeze_epochs is None or epoch <= config.freeze_epochs
    children = [child for name, child in model.named_children() if name != "dropout"]  # torchvision has none
    model.requires_grad_(True)
    if frozen and config.freeze == "first-last":
        model.requires_grad_(False)
        model.conv1.requires_grad_(True)
        model.fc.requires_grad_(True)
    elif frozen and config.freeze_children:
        for child in children[: config.freeze_children - 1]:
            child.requires_grad_(False)
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(
                f"--freeze-children {config.freeze_children} leaves nothing to train; {len(children)} leaves fc alone"
            )
    model.freeze_bn = config.freeze_bn
