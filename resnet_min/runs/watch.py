"""What is seen of a run while it trains: a bar, how long it will take, and TensorBoard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import shown
from ..errors import UserError
from ..training.loop import Progress
from . import budget
from .job import Job

TELLING = 10.0  # seconds of training that say how long all of it will take
LOGS = ("tensorboard",)


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 hours", "2.1 days"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            value = seconds / size
            return f"{value:.0f} {unit}" if unit == "min" or value >= 10 else f"{value:.1f} {unit}"
    return f"{max(0, seconds):.0f} s"


def forecast(job: Job, taken: int = 0) -> Iterator[str]:
    """How long a run will take after `taken` steps, by a few steps and batches that spoil the network, as one line.

    Nothing for several processes, which would have to take the same steps.
    """
    if job.where.world.size > 1:
        return
    training, evaluating = budget.training_speed(job), budget.evaluation_speed(job)
    config, sizes = job.config, {name: len(split) for name, split in job.dataset.splits.items()}
    looks = -(-config.epochs // config.val_every) - taken // job.steps // config.val_every
    looked_at = looks * sizes[job.watched] + (sizes["test"] if job.watched != "test" else 0)
    seconds = (config.epochs - taken / job.steps) * sizes["train"] / training + looked_at / evaluating
    yield (
        f"it would take about {duration(seconds)} here: {training:,.0f} images/s in training, "
        f"{evaluating:,.0f} in evaluation"
    )


class Watch:
    """Tells how a run goes on: beside a bar after every step, and in words.

    job, done: what is trained, and the epochs that were finished before.
    """

    def __init__(self, job: Job, done: int) -> None:
        self.job, self.epoch, self.said = job, done, False
        self.of_step = self.of_look = 0.0  # seconds, as far as they are known

    def after_step(self, bar: Any, progress: Progress) -> None:
        """To be called after a step of the epoch that `bar` counts. On a GPU, values are asked for now and then."""
        self.of_step = progress.seconds / progress.taken
        if self.job.where.device.type == "cpu" or progress.taken % 50 == 0:
            figure, seen, losses = self.job.config.figure, int(progress.seen), progress.losses[: progress.taken]
            bar.set_postfix_str(
                f"run ends in {duration(self.left(progress.taken))}, loss {losses.mean():.4f}, "
                f"{figure.title} {figure.shown(progress.figures.item() / max(1, seen))}, "
                f"{seen / progress.seconds:,.0f} images/s",
                refresh=False,
            )
        if not self.said and progress.seconds > TELLING:
            self.said = True
            bar.write(f"about {duration(self.left(progress.taken))} to go, by the first steps")

    def left(self, taken: int = 0) -> float:
        """Seconds that the run still takes after `taken` steps of the epoch that follows `epoch`."""
        config, epochs = self.job.config, self.job.config.epochs - self.epoch
        looks = config.epochs // config.val_every - self.epoch // config.val_every
        return (epochs * self.job.steps - taken) * self.of_step + looks * self.of_look

    def finished(self, epoch: int, training: float, looking: float | None) -> str:
        """What the line of a finished epoch says of those to come.

        training: seconds of its steps; looking: of its evaluation, where there was one.
        """
        self.epoch, self.said, self.of_step = epoch, True, training / self.job.steps
        self.of_look = self.of_look if looking is None else looking
        return f"  {duration(self.left())} left" if epoch < self.job.config.epochs else ""


def summary_writer() -> type:
    """TensorBoard's writer. Raises UserError where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--log tensorboard needs an extra: pip install -e '.[tensorboard]'") from None
    return SummaryWriter


class TensorBoard:
    """A run's figures for TensorBoard, in the folder `tensorboard` of its own."""

    def __init__(self, folder: Path, step: int) -> None:
        """step: the last one that a run to go on with had taken; what was written of later ones is hidden."""
        self.writer = summary_writer()(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, row: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> None:
        """An epoch's line of metrics.jsonl, and its steps'."""
        for step in steps:
            for name in ("loss", "lr"):
                self.writer.add_scalar(f"step/{name}", step[name], step["step"])
        for name, value in row.items():
            if name not in ("epoch", "step", "lr"):
                split, _, figure = name.partition("_")
                tag = f"{figure}/{split}" if split in ("train", "val", "test") else name
                self.writer.add_scalar(tag, value, row["step"])
        self.writer.flush()

    def end(self, config: Any, row: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """The run's options with its last figures, and its pictures."""
        import numpy as np
        from PIL import Image

        for picture in pictures:
            with Image.open(picture) as image:
                self.writer.add_image(picture.stem, np.asarray(image.convert("RGB")), row["step"], dataformats="HWC")
        options = {
            name: value if isinstance(value, (bool, int, float, str)) else shown(value)
            for name, value in dataclasses.asdict(config).items()
        }
        figures = {f"last/{name}": value for name, value in row.items() if name.startswith(("train_", "val_", "test_"))}
        self.writer.add_hparams(options, figures, run_name=".", global_step=row["step"])
        self.writer.close()
