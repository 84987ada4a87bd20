"""How much of a recipe fits into a time, by its speed on the hardware at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

from .. import recipes, tasks
from ..data.batches import growth
from ..errors import UserError
from ..training import transfer
from ..training.distributed import World
from ..training.hardware import set_up
from ..training.loop import train_one_epoch
from ..training.optimizer import make_optimizer
from .job import Job, prepare

ENOUGH = 2.0  # seconds, for a speed to be measured in
SMALL = 1e-6  # a learning rate at which nothing diverges


class TooShort(UserError):
    """A budget that holds not even one batch."""


def fitting(settings: Mapping[str, Any], flags: Mapping[str, Any], minutes: float) -> tuple[float, str]:
    """The largest scale of a recipe's `settings`, with `flags` over them, that trains and evaluates within `minutes`.

    Returns it, to four digits, and what was measured, in words. What a run does before its first step is not counted.
    Raises TooShort where not even one batch fits, and UserError where options and data do not.
    """
    config = tasks.make_config({**settings, **flags})
    job = prepare(config, set_up(config, World()))
    transfer.freeze(job.net, config, config.epochs)  # where layers are frozen at first, this phase takes longer
    speeds, evaluating = training_speeds(job), evaluation_speed(job)
    sizes = {name: len(split) for name, split in job.dataset.splits.items()}
    whole, seconds = settings["epochs"], 60 * minutes
    said = f"{whole / of_an_image(speeds, whole):,.0f} images/s in training, {evaluating:,.0f} in evaluation"

    def looking(epochs: int) -> float:
        """Seconds of evaluation in a run of `epochs`."""
        looks = -(-epochs // config.val_every)
        return (looks * sizes[job.watched] + (sizes["test"] if job.watched != "test" else 0)) / evaluating

    for epochs in range(whole, 0, -1):
        scale = epochs / whole
        small = recipes.scaled(settings, scale)
        training = sizes["train"] * of_an_image(speeds, epochs)
        if small["epochs"] == epochs and training + looking(epochs) <= seconds:
            return float(f"{scale:.4g}"), said
    least = recipes.scaled(settings, 1e-9)["epochs"]
    each = of_an_image(speeds, least)
    images = (seconds - looking(least)) / each  # in an epoch
    if images < config.batch_size:
        raise TooShort(
            f"--budget {minutes:g} is too short: {said}; evaluation alone takes {looking(least) / 60:.1f} minutes, "
            f"a batch {config.batch_size * each / least:.1f} s; a larger --val-every or a --limit makes it less"
        )
    return float(f"{images / sizes['train'] * least / whole:.4g}"), said


def training_speed(job: Job) -> float:
    """Images a second that the job trains on, over all its epochs, by a few steps that leave its network spoilt."""
    return job.config.epochs / of_an_image(training_speeds(job), job.config.epochs)


def of_an_image(speeds: Sequence[float], epochs: int) -> float:
    """Seconds that an image of the training split takes in all of `epochs`, through which it grows."""
    return sum(1 / speeds[growth(epoch, epochs, len(speeds))] for epoch in range(1, epochs + 1))


def training_speeds(job: Job) -> list[float]:
    """Images a second at each size that the job's images have, by a few steps that leave its network spoilt."""
    epochs, sizes = job.config.epochs, 1 + len(getattr(job.config, "grow", ()))  # which not every task has
    epoch_of = {growth(epoch, epochs, sizes): epoch for epoch in range(1, epochs + 1)}
    optimizer, model = make_optimizer(job.config, job.net), job.where.world.parallel(job.net, job.sync_bn)

    def take(epoch: int, steps: int) -> int:
        batches, rates = islice(job.batches.epoch(epoch), steps), [SMALL] * steps
        train_one_epoch(model, batches, optimizer, rates, job.where, job.task.loss)
        return min(steps * job.config.batch_size, len(job.dataset.splits["train"]))

    measured = {size: _speed(partial(take, epoch), job.steps) for size, epoch in epoch_of.items()}
    return [measured.get(size, measured[sizes - 1]) for size in range(sizes)]  # as the last where no epoch has it


def evaluation_speed(job: Job) -> float:
    """Images a second that the job judges, by a few batches of the split looked at after every epoch."""
    held_out = job.held_out[job.watched]

    def take(batches: int) -> int:
        seen = 0

        def counted():
            nonlocal seen
            for images, targets in islice(held_out.ordered(), batches):
                seen += len(images)
                yield images, targets

        job.task.judge(job.net, counted(), job.where)
        return seen

    return _speed(take, len(held_out))


def _speed(take: Callable[[int], int], most: int) -> float:
    """Images a second: `take(n)` takes n batches of at most `most`, ever more, and says of how many images they are.

    The first call, which sets things up, counts only where it takes long enough by itself.
    """
    count, first = 1, True
    while True:
        began = perf_counter()
        images = take(count)
        seconds = perf_counter() - began
        if seconds >= ENOUGH or (count == most and not first):
            return images / seconds
        count, first = (1 if first else min(2 * count, most)), False
