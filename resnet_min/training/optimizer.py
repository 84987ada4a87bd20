"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import Config


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD (Nesterov's or not), Adam or AdamW over the parameters that train."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.wd, nesterov=config.nesterov, fused=True
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, config.lr, weight_decay=config.wd, fused=True, capturable=config.cuda_graph)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; where it is a tensor, in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` (counted from 0): of the step alone, so nothing jumps on resume.

    Equivalent to torch's MultiStepLR and CosineAnnealingLR stepped once an epoch (MultiStepLR once an iteration where
    `milestone_unit` says so, and within an epoch where a milestone lies there), and to
    OneCycleLR(anneal_strategy="linear") with its default factors, stepped once an iteration: lr / 25 up to lr over the
    share `warmup` of the run, then down to lr / 250,000.

    With `freeze_epochs`, these are at `freeze_lr` throughout, and the schedule is that of the epochs after them,
    counted from where they begin. Where `scale` is below 1, cosine moves with every step.
    """
    epochs = config.epochs
    if config.freeze_epochs is not None:
        first = config.freeze_epochs * steps_per_epoch
        if step < first:
            return config.lr if config.freeze_lr is None else config.freeze_lr
        step, epochs = step - first, epochs - config.freeze_epochs
    # Of a scaled schedule an epoch may stand for many, within which the rate changes.
    epoch = step // steps_per_epoch if config.scale == 1 else step / steps_per_epoch
    if config.schedule == "step":
        now = step / steps_per_epoch if config.milestone_unit == "epochs" else step
        return config.lr * config.gamma ** sum(now >= milestone for milestone in config.milestones)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * epoch / (config.t_max or epochs))) / 2
    if config.schedule == "onecycle":
        last = epochs * steps_per_epoch - 1
        peak = config.warmup * (last + 1) - 1
        if 0 < peak >= step:
            return config.lr * (1 / 25 + (1 - 1 / 25) * step / peak)
        return config.lr * (1 + (1 / 250_000 - 1) * (step - peak) / (last - peak or 1))
    return config.lr
