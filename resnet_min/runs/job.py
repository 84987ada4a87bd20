"""What a run trains with: its options, from flags, recipe and data; and the data, network and batches made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import ops, recipes, tasks
from ..config import Config, counted, flag, shown
from ..data.batches import share
from ..data.sources import resolve_auto
from ..errors import UserError
from ..model import backbone_of, count_macs, count_parameters
from ..tasks import trained
from ..tasks.options import TaskConfig
from ..tasks.task import Batches, Dataset, Task
from ..training import checkpoint, transfer
from ..training.hardware import Hardware
from ..training.optimizer import learning_rate
from .folder import is_complete

# What an option goes with; one that was typed and would change nothing is an error. A recipe's own may lie idle.
GOES_WITH = {
    "milestones": ("schedule", "step"),
    "milestone_unit": ("schedule", "step"),
    "gamma": ("schedule", "step"),
    "t_max": ("schedule", "cosine"),
    "warmup": ("schedule", "onecycle"),
    "momentum": ("optimizer", "sgd"),
}


def configure(flags: Mapping[str, Any], recipe_name: str | None) -> TaskConfig:
    """The options of a new run: the recipe's, or those that suit the data, and the flags over them.

    Raises UserError for options that do not fit one another, the task or the data.
    """
    settings = recipes.recipe(recipe_name).settings if recipe_name is not None else {}
    if "scale" in flags:
        if not settings:
            raise UserError("--scale shrinks the schedule of a recipe: name it with --recipe")
        if "epochs" in flags:
            raise UserError("--scale and --epochs both say how long the schedule is: give one of them")
        if 0 < flags["scale"] < 1:  # make_config refuses others
            settings = recipes.scaled(settings, flags["scale"])
    task = flags.get("task") or settings.get("task")
    if task is None:
        task = tasks.DEFAULT if settings else tasks.recognised(flags.get("data", "")) or tasks.DEFAULT
    try:  # a slip shows before anything slow begins
        tasks.make_config({**settings, **flags, "task": task})
    except UserError as error:
        raise UserError(f"{error} (with the settings of --recipe {recipe_name})" if settings else str(error)) from None
    kind = tasks.kind(task)
    data = resolve_auto({"data": kind.data, **settings, **flags}["data"], flags.get("data_dir", Config.data_dir))
    if (other := tasks.recognised(data)) and other != task:
        raise UserError(f"{data} is data of --task {other}; this is --task {task}")
    config = tasks.make_config({**(settings or kind.default_settings(data)), **flags, "task": task, "data": data})
    for name, (other, wanted) in GOES_WITH.items():
        if name in flags and (got := getattr(config, other)) != wanted:
            raise UserError(f"{flag(name)} goes with {flag(other)} {wanted}; this is {got}")
    return config


def describe_recipe(name: str, flags: Mapping[str, Any], config: TaskConfig) -> Iterator[str]:
    """Where a recipe is from, what was published for it, and which flags changed it, line by line."""
    about = recipes.recipe(name)
    unchanged = tasks.make_config(about.settings)
    yield f"recipe: {name}, {about.source}; published: {about.published}" + (f"; {about.note}" if about.note else "")
    if config.scale < 1:
        yield f"the recipe's schedule, shrunk: {recipes.extent(config, unchanged.epochs)}"
    changed = [
        f"{flag(option)} {shown(getattr(config, option))} (the recipe's: {shown(getattr(unchanged, option))})"
        for option in flags
        if option != "scale" and getattr(config, option) != getattr(unchanged, option)
    ]
    if changed:
        yield f"flags override the recipe: {', '.join(changed)}"


def reopen(resume: str, flags: Mapping[str, Any]) -> tuple[TaskConfig, Path]:
    """The options and the checkpoint of the run to go on with; `flags` may say only for how many epochs.

    Raises UserError for another flag, a checkpoint that cannot be read or that the run has gone beyond, and a run that
    is finished, curves and all.
    """
    if wrong := [flag(name) for name in flags if name != "epochs"]:
        raise UserError(f"--resume takes every option but --epochs from the run; remove {', '.join(wrong)}")
    path = checkpoint.find(resume)
    saved = checkpoint.load(path)
    last = path.parent / "last.pt"
    if path.name != last.name and last.is_file() and (reached := _epoch_of(last)) > saved["epoch"]:
        raise UserError(
            f"{path} is of epoch {saved['epoch']} and would replace {last}, of epoch {reached}: --resume {path.parent} "
            f"goes on; to go on from {path.name}, copy it into a folder of its own"
        )
    config = dataclasses.replace(trained.options_of(saved, path), **flags)
    if saved["epoch"] >= config.epochs and is_complete(path.parent, saved["epoch"]):
        raise UserError(
            f"{path} has already finished its {counted(saved['epoch'], 'epoch')}; pass a larger --epochs to continue"
        )
    return config, path


def _epoch_of(path: Path) -> int:
    """The epoch that a checkpoint was saved in; -1 where it cannot be read."""
    try:
        return checkpoint.load(path)["epoch"]
    except UserError:
        return -1


def check_milestones(config: TaskConfig, steps: int) -> None:
    """Raise UserError where a milestone would never come, with `steps` an epoch: asked for by flag, that is a slip."""
    end = config.epochs - (config.freeze_epochs or 0)
    if config.milestone_unit == "iterations":
        end *= steps
    if config.milestones[-1] >= end:
        raise UserError(
            f"--milestones {shown(config.milestones[-1])} is never reached: "
            f"the schedule ends after {end} {config.milestone_unit}"
        )


@dataclass
class Job:
    """All that a run trains with: what `prepare` makes of the options."""

    config: TaskConfig  # with the data's place, mean and std filled in
    task: Task
    dataset: Dataset
    where: Hardware
    net: nn.Module  # on its device
    batches: Batches  # to train on
    held_out: dict[str, Batches]  # val, where there is one, and test
    sync_bn: bool  # whether processes normalise by the whole batch

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.batches)

    @property
    def watched(self) -> str:
        """The split looked at after every epoch: with a validation split, the test set is kept for the end."""
        return "val" if "val" in self.held_out else "test"


def prepare(config: TaskConfig, where: Hardware) -> Job:
    """Load the data and draw the network, from `config.seed`. Raises UserError where options and data do not fit."""
    dataset = where.world.in_turn(config.make_task().load)
    images = len(dataset.splits["train"])
    if config.batch_size > images:
        raise UserError(f"--batch-size {config.batch_size} is larger than the data, {counted(images, 'image')}")
    config = dataclasses.replace(
        config,
        data=dataset.source,
        data_dir=str(Path(config.data_dir).resolve()),  # so that --resume works from any folder
        cache_dir=config.cache_dir and str(Path(config.cache_dir).resolve()),
        mean=config.mean or dataset.mean,
        std=config.std or dataset.std,
    )
    task = config.make_task()
    torch.manual_seed(config.seed)
    net = task.build(dataset.classes)
    transfer.freeze(net, config, epoch=1)
    batches = task.batches(dataset.splits["train"], where)
    maps = backbone_of(net.eval()).features(torch.zeros(1, 3, *batches.size))
    if config.cuda_graph and where.world.size > 1:
        raise UserError("--cuda-graph records the step of one process: leave it out under torchrun")
    processes, last = where.world.size, images % config.batch_size or config.batch_size
    sync_bn = config.sync_bn
    if sync_bn is None:
        sync_bn = where.device.type == "cpu" or config.batch_size < 32 * processes
    if last == 1 and maps[0, 0].numel() == 1:
        raise UserError(
            f"--batch-size {config.batch_size} leaves one image in the last batch; batch norm cannot "
            "normalise its 1x1 maps, so choose another size"
        )
    smallest = min(len(range(last)[share(last, (rank, processes))]) for rank in range(processes))
    if not sync_bn and smallest * maps[0, 0].numel() < 2:
        raise UserError(
            f"--batch-size {config.batch_size} leaves {last} images in the last batch for {processes} processes, too "
            "few for each to normalise by its own; choose another size, or --sync-bn"
        )
    net.to(where.device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    held_out = {
        name: task.batches(split, where, batch_size=min(256, len(split)))
        for name, split in dataset.splits.items()
        if name != "train"
    }
    return Job(config, task, dataset, where, net, batches, held_out, sync_bn)


def announce(job: Job) -> Iterator[str]:
    """What is about to be trained, on what, with what, line by line."""
    config, net = job.config, job.net
    total, trained = count_parameters(net), count_parameters(net, trained_only=True)
    height, width = job.batches.size
    macs = count_macs(net, job.batches.size) / 1e6
    yield (
        f"model: {config.network}, {config.stem} stem: {total:,} parameters "
        f"({total - trained:,} frozen), {macs:,.1f}M MACs for an image of {height}x{width}"
    )
    yield f"data: {config.data}: {job.dataset.summary()}"
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (config.mean, config.std))
    yield f"normalised by: mean {mean}, std {std}"
    yield f"device: {job.where}{', channels_last' if config.channels_last else ''}"
    yield ops.backend_line(job.where.device)


def plan(job: Job) -> Iterator[str]:
    """What --dry-run adds, line by line: the splits' targets, frozen tensors, the learning rate of each epoch."""
    config, steps = job.config, job.steps
    for name, content in job.dataset.contents().items():
        yield f"{name}: {content}"
    frozen = ", ".join(n for n, p in job.net.named_parameters() if not p.requires_grad)
    until = f" (epochs 1 to {config.freeze_epochs})" if config.freeze_epochs is not None else ""
    yield f"frozen{until}: {frozen or 'nothing'}"
    each = f"{counted(steps, 'step')} of {counted(config.batch_size, 'image')}"
    yield f"{counted(config.epochs, 'epoch')} of {each}; learning rates:"
    above = None
    for epoch in range(config.epochs):
        first, last = (learning_rate(config, epoch * steps + step, steps) for step in (0, steps - 1))
        line = f"{first:.6g}" if first == last else f"{first:.6g} to {last:.6g}"
        if line != above:  # epochs of the same rates share a line
            yield f"  from epoch {epoch + 1}: {line}"
        above = line
