"""A trained network, as its checkpoint describes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..config import shown
from ..data.sources import NEEDED
from ..errors import UserError
from ..files import printable
from ..training import checkpoint
from . import read_config, recognised
from .options import TaskConfig
from .task import Dataset, Task, Weightless


class Trained(NamedTuple):
    """What a checkpoint holds, ready to use."""

    path: Path
    task: Task  # with the checkpoint's options, mean and std
    net: nn.Module  # in eval mode, on the CPU
    classes: tuple[str, ...]  # empty where the task has none
    epoch: int


def load(source: str | Path | None = None) -> Trained:
    """The network of a checkpoint file, a run's folder (its `last.pt`), or of the newest run.

    Raises UserError as `checkpoint.load` does, and for weights that are not of the network the options describe.
    """
    path = checkpoint.find(source)
    return revive(checkpoint.load(path), path)


def revive(saved: dict[str, Any], path: Path) -> Trained:
    """The network of a checkpoint's content. Raises UserError as `load` does."""
    config = options_of(saved, path)
    task, classes = config.make_task(), tuple(saved["classes"])
    net = task.build(classes)
    checkpoint.load_weights(net, saved, path)
    return Trained(path, task, net.eval(), classes, saved["epoch"])


def options_of(saved: dict[str, Any], path: Path) -> TaskConfig:
    """The options in a checkpoint's content, with its mean and std, once it holds the weights of what they describe.

    The network is built without memory to compare it, and a block at most for each tensor there is: what options
    describe may be of any size. Raises UserError where they do not fit one another, or the weights.
    """
    try:
        config = read_config({**saved["config"], "mean": saved["mean"], "std": saved["std"]})
        if sum(config.blocks or ()) > len(saved["model"]):
            raise UserError(f"--blocks {shown(config.blocks)} are more than the {len(saved['model'])} tensors it holds")
        with Weightless():
            net = config.make_task().build(tuple(saved["classes"]))
    except UserError as error:
        raise UserError(f"{path} is not a sound checkpoint: {error}") from None
    checkpoint.check_weights(net, saved, path)
    return config


def load_data(trained: Trained, split: str = "test", **places: Any) -> Dataset:
    """The data to look at a network with: the run's own, whole, but for the `places` (data, data_dir, cache_dir) given.

    A folder needs its test images only, or what validation images are held out of.
    Raises UserError where it is another task's, of other classes than those trained on, or has no such split.
    """
    config = trained.task.config
    given = {name: place for name, place in places.items() if place is not None}
    held_out = config.val_size if split == "val" else 0  # the test images are the same either way
    config = dataclasses.replace(config, limit=None, train_share=1.0, val_size=held_out, **given)
    if (other := recognised(config.data)) and other != config.task:
        raise UserError(f"{config.data} is data of --task {other}; {trained.path} is of --task {config.task}")
    dataset = type(trained.task)(config).load(needed=NEEDED if held_out else ("test",))
    if tuple(dataset.classes) != trained.classes:
        raise UserError(
            f"the classes of {dataset.source} are not those trained on: it has {_some(dataset.classes)}; "
            f"the checkpoint has {_some(trained.classes)}"
        )
    if split not in dataset.splits:
        raise UserError(f"{dataset.source} has no validation images: the run held none out, and there is no val/")
    return dataset


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(map(printable, names[:12]))}{', …' if len(names) > 12 else ''})"
