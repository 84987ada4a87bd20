"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import Config

AVERAGED = 5  # every how many steps the average of the weights takes in the present ones


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD (Nesterov's or not), Adam or AdamW over the parameters that train.

    They are in one group, or where options treat some otherwise in one for each treatment; `times` of a group is the
    multiple of the learning rate that it takes.
    """
    parameters = _groups(config, model)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.wd, nesterov=config.nesterov, fused=True
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, config.lr, weight_decay=config.wd, fused=True, capturable=config.cuda_graph)


def _groups(config: Config, model: nn.Module) -> list[dict[str, Any]]:
    """The parameters that train, with their weight decay and multiple of the learning rate; in the order of `model`."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            bn_bias = name == "bias" and not isinstance(module, (nn.Conv2d, nn.Linear))
            wd = config.wd if config.wd_norms or parameter.dim() > 1 else 0.0
            times = config.bn_bias_lr if bn_bias else 1.0
            if parameter.requires_grad:
                group = groups.setdefault((wd, times), {"params": [], "weight_decay": wd, "times": times})
                group["params"].append(parameter)
    return list(groups.values())


def make_average(config: Config, model: nn.Module) -> AveragedModel | None:
    """The average that `average` asks for, of weights and batch norm statistics alike, begun with those of `model`.

    An exponential one, as torch.optim.swa_utils has it: `average.module` is the network. None where it is 0.
    """
    if not config.average:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average), use_buffers=True)
    average.update_parameters(model)  # which copies, the first time
    return average


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; where it is a tensor, in place."""
    for group in optimizer.param_groups:
        of_group = rate * group.get("times", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(of_group)
        else:
            group["lr"] = of_group


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
