"""The protocol of a task: the eight methods by which scripts, training and tables know it."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..data.sources import NEEDED
from ..model import ResNet, resnet
from ..training.hardware import Hardware
from .options import TaskConfig


class Split(Protocol):
    """Images and their targets, on the CPU."""

    images: Sequence[Tensor]  # uint8 [H, W, 3] each

    def __len__(self) -> int: ...

    def subset(self, index: Sequence[int]) -> Split:
        """These images alone."""


class Dataset(Protocol):
    """What a task loads."""

    name: str  # a named set's, or the folder's
    source: str  # the `--data` that loads it again from any working directory
    classes: tuple[str, ...]  # empty where the task has none
    splits: dict[str, Split]  # those needed, and val where there is one
    mean: tuple[float, float, float] | None  # of each channel over all pixels of `train`, where white is 1
    std: tuple[float, float, float] | None

    def summary(self) -> str:
        """What is in it, in a few words and, if need be, further lines."""

    def contents(self) -> dict[str, str]:
        """Split -> what its targets are."""


class Batches(Protocol):
    """A split as the network takes it: (images [B, 3, H, W] channels_last, targets), on a device."""

    size: tuple[int, int]  # height and width of the (first) images

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """To train on: every image once; order and augmentation are drawn from (seed, epoch) alone."""

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """To evaluate on: every image once, in order and as it is."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gave."""

    figures: dict[str, Any]  # plain values, for --json; among them the task's figure and images_per_second
    columns: dict[str, str]  # of the table that compares networks: head -> cell
    tables: dict[str, list[list[str]]] = field(
        default_factory=dict
    )  # of a report page: caption -> rows, first the head


@dataclass(frozen=True)
class Answer:
    """What a network says of one image."""

    caption: str  # in a few words, the image's name first
    more: str  # what else there is to say, to be printed behind; may be empty
    figures: dict[str, Any]  # plain values, for --json


class Task(ABC):
    """What a network is trained for. Subclasses keep what they need in `config`, and hold nothing else."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @abstractmethod
    def load(self, needed: Collection[str] = NEEDED) -> Dataset:
        """The data that the options name. Raises UserError where it is damaged, or a split in `needed` is missing."""

    @abstractmethod
    def read(self, file: str) -> Split:
        """A picture, with its target where known, as a split of one. Raises UserError where it cannot be read."""

    @abstractmethod
    def build(self, classes: Sequence[str]) -> nn.Module:
        """The network, newly drawn: a ResNet, or a module that holds one."""

    @abstractmethod
    def batches(self, split: Split, where: Hardware, batch_size: int | None = None) -> Batches:
        """To train on, or with `batch_size` to evaluate on. Raises UserError where options and images do not fit."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of a training step, outputs in float32 [B, …]: (the loss, the task's figure of each image [B])."""

    @abstractmethod
    def judge(self, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> dict[str, float]:
        """The figures of metrics.jsonl, of a pass in eval mode; the task's own among them."""

    @abstractmethod
    def evaluate(
        self,
        net: nn.Module,
        dataset: Dataset,
        split: str,
        where: Hardware,
        options: argparse.Namespace,
        picture_of: Callable[[str], Path],
    ) -> Evaluation:
        """What eval.py prints of a split, and draws as `options` ask; picture_of: what is drawn -> its file."""

    @abstractmethod
    def answer(
        self,
        net: nn.Module,
        images: Iterable[tuple[str, Split]],
        classes: Sequence[str],
        where: Hardware,
        batch_size: int = 1,
        picture: Path | None = None,
    ) -> Iterator[Answer]:
        """What the network says of each image, given as its name and a split of one, in order.

        At most `batch_size` images are read ahead. picture: where the answer for a single image is drawn.
        """


class Weightless(TorchFunctionMode):
    """Within it networks are built on the device "meta": names and shapes without memory, whatever their size."""

    def __enter__(self) -> Weightless:
        self.device = torch.device("meta")
        self.device.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.device.__exit__(*raised)

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call is Tensor.normal_:  # there is nothing to draw, and on "meta" it imports 900 modules first
            return args[0]
        return call(*args, **(kwargs or {}))


def backbone(config: TaskConfig, num_classes: int, dropout: float = 0.0) -> ResNet:
    """The ResNet that the options describe, newly drawn."""
    return resnet(
        config.arch, num_classes, config.stem, config.plain,
        blocks=config.blocks, widths=config.widths, strides=config.strides, option=config.option,
        dropout=dropout,
    )  # fmt: skip


def with_bar(batches: Batches, where: Hardware, what: str = "evaluating") -> Iterator[tuple[Tensor, Tensor]]:
    """All batches in order, with a bar on a terminal or in a notebook."""
    from tqdm.auto import tqdm

    return iter(tqdm(batches.ordered(), what, len(batches), leave=False, disable=None if where.world.first else True))
