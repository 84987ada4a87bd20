"""`Config`: the options of a training run, with their defaults and help lines. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from .errors import UserError

ARCHS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",  # He et al. 2016, table 1
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",  # He et al. 2016, section 4.2
)  # fmt: skip


def option(default: Any, help: str, *flags: str, choices: tuple[str, ...] | None = None, type: type = str) -> Any:
    """A `Config` field with its help line; `flags` are short or further names, `type` is a tuple's element type."""
    return field(default=default, metadata={"help": help, "flags": flags, "choices": choices, "type": type})


@dataclass(frozen=True)
class Config:
    """The options that every task has. A run's `config.json` is one, with the data's place, mean and std filled in.

    A task adds its own by a subclass (see tasks/). Raises UserError for values that do not fit.
    """

    task: str = option("", "what to train for")
    # model
    arch: str = option("resnet18", "network: " + ", ".join(ARCHS), "-a")
    plain: bool = option(False, "remove all shortcuts")
    stem: str = option(
        "cifar",
        "first layers: cifar 3x3 stride 1; imagenet 7x7 stride 2 and max-pool; cifar-pool 3x3 stride 1 and max-pool",
        choices=("cifar", "imagenet", "cifar-pool"),
    )
    blocks: tuple[int, ...] | None = option(None, "residual blocks in each stage, instead of the arch's own", type=int)
    widths: tuple[int, ...] | None = option(None, "channels of each stage, instead of the arch's own", type=int)
    strides: tuple[int, ...] | None = option(None, "stride of each stage, instead of 1 2 2 2", type=int)
    # transfer
    pretrained: str = option("none", "start from weights: imagenet (torchvision's), or a file or run; none for random")
    freeze: str = option(
        "none", "first-last: freeze all but the first convolution and fc", choices=("none", "first-last")
    )
    freeze_children: int = option(0, "freeze children 1 to N-1 of conv1 bn1 relu maxpool layer1 …", type=int)
    freeze_bn: bool = option(False, "frozen batch norms use their running statistics and do not update them")
    frozen_stats: float = option(
        0.0, "in this share of the epochs, the last ones, batch norms use their running statistics, as in evaluation, "
        "and do not update them", type=float,
    )  # fmt: skip
    freeze_epochs: int | None = option(None, "unfreeze after this many epochs (default: never)", type=int)
    freeze_lr: float | None = option(None, "learning rate while layers are frozen (default: --lr)", type=float)
    # data
    data: str = option(
        "auto", "auto, cifar10, cifar100, digits, svhn, an image folder with train/CLASS/* and test/CLASS/*, a CSV of "
        "path,label[,split], or a part of ShanghaiTech; auto is cifar10 where it is or can be downloaded, otherwise "
        "digits",
    )  # fmt: skip
    data_dir: str = option("data", "where named data sets are, or are downloaded to")
    cache_dir: str | None = option(None, "cache for decoded images (default: beside the data)")
    limit: int | None = option(None, "use this many images of each split, for a quick try (default: all)", type=int)
    train_share: float = option(1.0, "train on this share of the training images", type=float)
    val_size: int = option(0, "images held out of the training split for validation, stratified", type=int)
    split_seed: int = option(0, "seed of --val-size: the same images are held out whatever --seed is", type=int)
    mean: tuple[float, ...] | None = option(
        None, "channel means, pixel values scaled to 0-1 (default: the training split's)", type=float
    )
    std: tuple[float, ...] | None = option(
        None, "channel standard deviations, likewise (default: the training split's)", type=float
    )
    flip: float = option(0.5, "probability of a horizontal flip", type=float)
    # optimisation
    scale: float = option(
        1.0, "shrink a recipe's whole schedule to this share: epochs, milestones, --t-max, --freeze-epochs and, where "
        "not even one epoch is left, the training images", type=float,
    )  # fmt: skip
    epochs: int = option(164, "passes over the training images", type=int)
    batch_size: int = option(128, "images per step", "-b", type=int)
    optimizer: str = option("sgd", "sgd, adam or adamw", choices=("sgd", "adam", "adamw"))
    lr: float = option(0.1, "learning rate; the peak of onecycle", type=float)
    momentum: float = option(0.9, "momentum of sgd", type=float)
    nesterov: bool = option(False, "Nesterov momentum (sgd only)")
    wd: float = option(1e-4, "weight decay", "--weight-decay", type=float)
    schedule: str = option(
        "step", "constant; step: times --gamma at --milestones; cosine; onecycle: linear warm-up, then linear decay",
        choices=("constant", "step", "cosine", "onecycle"),
    )  # fmt: skip
    milestones: tuple[float, ...] = option((), "when step multiplies the learning rate by --gamma", type=float)
    milestone_unit: str = option("epochs", "what --milestones count", choices=("epochs", "iterations"))
    gamma: float = option(0.1, "factor of the step schedule", type=float)
    t_max: float | None = option(None, "epochs in which cosine falls to 0 (default: --epochs)", type=float)
    warmup: float = option(0.25, "fraction of the run over which onecycle warms up", type=float)
    # how it runs
    seed: int = option(0, "random seed", type=int)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    amp: str = option("auto", "bf16 autocast: auto is bf16 where the hardware has it", choices=("auto", "bf16", "off"))
    channels_last: bool = option(True, "NHWC memory format")
    kernels: str = option(
        "auto", "auto; extension: fail if not built; reference: plain PyTorch",
        choices=("auto", "extension", "reference"),
    )  # fmt: skip
    winograd: str | None = option(
        None, "4x4: on a CPU in float32, 3x3 convolutions of larger tiles, which are faster and less exact",
        choices=("4x4",),
    )  # fmt: skip
    sync_bn: bool | None = option(
        None, "of several processes: normalise by the whole batch, not by each one's shard (default: yes on CPUs, and "
        "where a shard is less than 32 images)", type=bool,
    )  # fmt: skip
    deterministic: bool = option(False, "on a GPU, use only bit-reproducible algorithms")
    val_every: int = option(1, "validate after every N-th epoch, and after the last", type=int)
    save_every: float | None = option(
        None, "minutes between checkpoints within an epoch (default: only after each epoch)", type=float
    )
    cuda_graph: bool = option(False, "on a GPU, record the training step as one CUDA graph")
    # The last field, since its name hides the function that makes them.
    option: str | None = option(
        None, "shortcuts of resnet20 to resnet110 where sizes differ: A pads with zeros, B projects (default: A)",
        choices=("A", "B"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # JSON has lists; a Config has tuples
            value = getattr(self, item.name)
            if isinstance(value, list):
                object.__setattr__(self, item.name, value := tuple(value))
            if not _fits(value, item):
                raise UserError(f"{flag(item.name)} is {KINDS[_kind(item)]}; got {ascii(value):.80}")
            choices = item.metadata["choices"]
            if choices and value not in (item.default, *choices):
                raise UserError(f"{flag(item.name)} is one of {', '.join(choices)}; got {value!r:.80}")
        if self.arch not in ARCHS:
            raise UserError(
                f"unknown arch {self.arch!r:.80}{did_you_mean(self.arch, ARCHS)}; known: {', '.join(ARCHS)}"
            )
        self.check_at_most(1_000_000, "epochs")
        self.check_at_least(1, "epochs", "batch_size", "limit", "freeze_epochs", "val_every")
        self.check_at_least(0, "val_size", "wd", "freeze_children")
        self.check_shares("flip", "frozen_stats", "momentum", "warmup", "scale", "train_share")
        for name in ("mean", "std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise UserError(f"{flag(name)} needs 3 numbers, red, green and blue; got {len(getattr(self, name))}")
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"--std must be positive; got {' '.join(map(str, self.std))}")
        for name in ("mean", "std"):
            if not all(0 <= value <= 1 for value in getattr(self, name) or ()):
                given = shown(getattr(self, name))
                raise UserError(
                    f"{flag(name)} is from 0 to 1, where white is 1; divide by 255 where it is 255: got {given}"
                )
        for name in ("lr", "gamma", "freeze_lr", "save_every", "t_max", "scale", "train_share"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{flag(name)} must be positive; got {getattr(self, name)}")
        if self.freeze != "none" and self.freeze_children:
            raise UserError("--freeze and --freeze-children both say what is frozen: give one of them")
        if self.freeze == "none" and not self.freeze_children:
            for name in ("freeze_bn", "freeze_epochs", "freeze_lr"):
                if getattr(self, name) not in (None, False):
                    raise UserError(f"{flag(name)} needs --freeze or --freeze-children to say what is frozen")
        if self.freeze_lr is not None and self.freeze_epochs is None:
            raise UserError("--freeze-lr is the learning rate of the first --freeze-epochs epochs: give these too")
        if self.freeze_epochs is not None and self.freeze_epochs >= self.epochs:
            raise UserError(
                f"--freeze-epochs {self.freeze_epochs} leaves none of --epochs {self.epochs} in which everything trains"
            )
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise UserError("--nesterov needs --optimizer sgd and a --momentum above 0; --no-nesterov drops it")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m <= 0 for m in self.milestones):
            raise UserError(f"--milestones must be positive and increasing; got {shown(self.milestones)}")

    @property
    def network(self) -> str:
        """The network's name, with what was changed about its shortcuts: "resnet20", "resnet20, option B"."""
        return f"{self.arch}{', plain' * self.plain}{f', option {self.option}' if self.option else ''}"

    def check_at_least(self, least: int, *names: str) -> None:
        """Raise UserError where one of these options is given and below `least`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= least:
                wanted = "must not be negative" if least == 0 else f"must be at least {least}"
                raise UserError(f"{flag(name)} {wanted}; got {value}")

    def check_at_most(self, most: int, *names: str) -> None:
        """Raise UserError where one of these options is given and above `most`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value > most:
                raise UserError(f"{flag(name)} must be at most {most:,}; got {value:,}")

    def check_shares(self, *names: str) -> None:
        """Raise UserError where one of these options is not from 0 to 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{flag(name)} must be between 0 and 1; got {getattr(self, name)}")


KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def _kind(item: dataclasses.Field) -> type:
    """The type of an option's value; where there are several, of each."""
    return bool if isinstance(item.default, bool) else item.metadata["type"]


def _fits(value: Any, item: dataclasses.Field) -> bool:
    """Whether an option's value is of its field's type. Numbers are finite, and below 2**63."""
    if value is None:
        return item.default is None
    if "tuple" in str(item.type):
        return isinstance(value, tuple) and all(_is_a(part, _kind(item)) for part in value)
    return _is_a(value, _kind(item))


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, int if kind is int else (int, float)) and -(2**63) <= value < 2**63


@dataclass(frozen=True)
class Figure:
    """What a task is judged by: the mean figure of an image."""

    key: str  # in metrics.jsonl, after the split's name: "accuracy", as in "val_accuracy"
    title: str  # its name, for people
    unit: str  # what stands right behind a value: "%"
    best: Callable[..., Any]  # of several values: max or min
    axis: str  # a plot's label
    log: bool = False  # whether a plot's axis is logarithmic
    beside: tuple[str, str] | None = None  # key and title of another figure that the field quotes with it

    def of(self, row: Mapping[str, Any], split: str) -> float | None:
        """The split's value in a row of metrics.jsonl; None where it was not measured."""
        return row.get(f"{split}_{self.key}")

    def best_row(self, rows: Sequence[Mapping[str, Any]], split: str) -> Mapping[str, Any] | None:
        """The first of the best rows of metrics.jsonl by the split's value; None where it was never measured."""
        measured = [row for row in rows if self.of(row, split) is not None]
        return self.best(measured, key=lambda row: self.of(row, split)) if measured else None

    def words(self, row: Mapping[str, Any], split: str) -> str:
        """ "accuracy 91.25%" or "MAE 24.29, MSE 37.29": the split's figures in a row of metrics.jsonl."""
        key, title = self.beside or ("", "")
        other = f", {title} {row[f'{split}_{key}']:.2f}" if key else ""
        return f"{self.title} {self.shown(row[f'{split}_{self.key}'])}{other}"

    def shown(self, value: float) -> str:
        """ "91.25%": a value with its unit."""
        return f"{value:.2f}{self.unit}"


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def flag(name: str) -> str:
    """The command-line flag of a `Config` field."""
    return "--" + name.replace("_", "-")


def did_you_mean(name: str, known: Any) -> str:
    """', did you mean X?' where something known is close to `name`, otherwise nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def counted(number: int, noun: str) -> str:
    """ "1 epoch", "1,437 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shown(value: Any) -> str:
    """An option's value as one would write it on the command line."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value))
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
