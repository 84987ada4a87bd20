"""`Config`: the one list of options, with their defaults and help lines. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
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
    """Every option of a training run. A run's `config.json` is this, with the data's place, mean and std filled in."""

    # model
    arch: str = option("resnet18", "network: " + ", ".join(ARCHS), "-a")
    plain: bool = option(False, "the same convolutions without any shortcut")
    stem: str = option(
        "cifar",
        "first layers: cifar 3x3 stride 1; imagenet 7x7 stride 2 and max-pool; cifar-pool 3x3 stride 1 and max-pool",
        choices=("cifar", "imagenet", "cifar-pool"),
    )
    blocks: tuple[int, ...] | None = option(None, "residual blocks in each stage, instead of the arch's own", type=int)
    widths: tuple[int, ...] | None = option(None, "channels of each stage, instead of the arch's own", type=int)
    strides: tuple[int, ...] | None = option(None, "stride of each stage, instead of 1 2 2 2", type=int)
    dropout: float = option(0.0, "dropout probability before the last layer", type=float)
    # crowds
    task: str = option("classify", "classify; crowd: count heads by a density map", choices=("classify", "crowd"))
    head: str = option(
        "dilated", "crowd: dilated 3x3 convolutions, maps at the encoder's stride; linear: a 1x1 convolution, maps "
        "upsampled to the image's size", choices=("dilated", "linear"),
    )  # fmt: skip
    crop: int | None = option(None, "crowd: side of random square crops, in pixels (default: whole images)", type=int)
    sigma: float | None = option(
        None, "crowd: width of a head's Gaussian, in pixels (default: by the distance to its nearest heads)", type=float
    )
    count_weight: float = option(0.0, "crowd: weight in the loss of the count's absolute error", type=float)
    # transfer
    pretrained: str = option("none", "start from weights: imagenet (torchvision's), or a file or run; none for random")
    freeze: str = option(
        "none", "first-last: freeze all but the first convolution and fc", choices=("none", "first-last")
    )
    freeze_children: int = option(0, "freeze children 1 to N-1 of conv1 bn1 relu maxpool layer1 …", type=int)
    freeze_bn: bool = option(False, "batch norms that are frozen keep their running statistics, and normalise by them")
    freeze_epochs: int | None = option(None, "epochs before everything trains (default: never)", type=int)
    freeze_lr: float | None = option(None, "learning rate of these epochs (default: --lr)", type=float)
    # data
    data: str = option(
        "auto", "auto, cifar10, cifar100, digits, an image folder with train/CLASS/* and test/CLASS/*, or a part of "
        "ShanghaiTech; auto is cifar10 where it is or can be downloaded, otherwise digits",
    )  # fmt: skip
    data_dir: str = option("data", "where named data sets are, or are downloaded to")
    cache_dir: str | None = option(None, "where decoded images are kept (default: beside the data)")
    image_size: int | None = option(None, "resize and centre-crop an image folder to this size (default 32)", type=int)
    limit: int | None = option(None, "use this many images of each split, for a quick try (default: all)", type=int)
    val_size: int = option(0, "images held out of the training split for validation, stratified", type=int)
    split_seed: int = option(0, "seed of --val-size: the same images are held out whatever --seed is", type=int)
    mean: tuple[float, ...] | None = option(None, "channel means, of 1 (default: the training split's)", type=float)
    std: tuple[float, ...] | None = option(None, "channel deviations, of 1 (default: the training split's)", type=float)
    padding: int = option(4, "zero-pad by this many pixels, then crop at random; 0 for no crop", type=int)
    flip: float = option(0.5, "probability of a horizontal flip", type=float)
    resize: int | None = option(None, "then resize each batch to this height and width, on the device", type=int)
    rotation: float = option(0.0, "then turn each image by up to this many degrees, either way", type=float)
    # optimisation
    epochs: int = option(164, "passes over the training images", type=int)
    batch_size: int = option(128, "images a step", "-b", type=int)
    optimizer: str = option("sgd", "sgd, adam or adamw", choices=("sgd", "adam", "adamw"))
    lr: float = option(0.1, "learning rate; the peak of onecycle", type=float)
    momentum: float = option(0.9, "momentum of sgd", type=float)
    nesterov: bool = option(False, "Nesterov's momentum, for sgd")
    wd: float = option(1e-4, "weight decay", "--weight-decay", type=float)
    label_smoothing: float = option(0.0, "label smoothing, 0 to 1", type=float)
    schedule: str = option(
        "step", "constant; step: times --gamma at --milestones; cosine; onecycle: linear warm-up, then cosine to 0",
        choices=("constant", "step", "cosine", "onecycle"),
    )  # fmt: skip
    milestones: tuple[int, ...] = option((), "when step multiplies the learning rate by --gamma", type=int)
    milestone_unit: str = option("epochs", "what --milestones count", choices=("epochs", "iterations"))
    gamma: float = option(0.1, "factor of step", type=float)
    t_max: int | None = option(None, "epochs in which cosine falls to 0 (default: --epochs)", type=int)
    warmup: float = option(0.25, "share of the run in which onecycle rises", type=float)
    # how it runs
    seed: int = option(0, "seed of everything that is drawn", type=int)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    amp: str = option("auto", "bf16 autocast: auto is bf16 where the hardware has it", choices=("auto", "bf16", "off"))
    channels_last: bool = option(True, "NHWC memory format")
    kernels: str = option(
        "auto", "auto; extension: an error where it is not built; reference: plain PyTorch",
        choices=("auto", "extension", "reference"),
    )  # fmt: skip
    deterministic: bool = option(False, "on a GPU, only algorithms that give the same bits in every run")
    cuda_graph: bool = option(False, "on a GPU, take a whole training step as one CUDA graph")

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # JSON has lists; a Config has tuples
            value = getattr(self, item.name)
            if isinstance(value, list):
                object.__setattr__(self, item.name, tuple(value))
            choices = item.metadata["choices"]
            if choices and value not in choices:
                raise UserError(f"{flag(item.name)} is one of {', '.join(choices)}; got {value!r}")
        if self.arch not in ARCHS:
            raise UserError(f"unknown arch {self.arch!r}{did_you_mean(self.arch, ARCHS)}; known: {', '.join(ARCHS)}")
        for name in ("epochs", "batch_size", "image_size", "limit", "resize", "t_max", "freeze_epochs", "crop"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{flag(name)} must be at least 1; got {getattr(self, name)}")
        for name in ("val_size", "padding", "momentum", "wd", "freeze_children", "count_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{flag(name)} must not be negative; got {getattr(self, name)}")
        for name in ("flip", "dropout", "label_smoothing", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{flag(name)} is a share from 0 to 1; got {getattr(self, name)}")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"--rotation is from 0 to 180 degrees; got {self.rotation:g}")
        for name in ("mean", "std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise UserError(f"{flag(name)} needs 3 numbers, red, green and blue; got {len(getattr(self, name))}")
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"--std must be positive; got {' '.join(map(str, self.std))}")
        for name in ("lr", "freeze_lr"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{flag(name)} must be positive; got {getattr(self, name)}")
        if self.sigma is not None and not 1 <= self.sigma < math.inf:
            raise UserError(f"--sigma must be at least 1 pixel; got {self.sigma}")
        if self.task == "crowd" and (self.freeze != "none" or self.freeze_children):
            raise UserError("--freeze and --freeze-children are for --task classify")
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
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise UserError(f"--milestones must be positive and rise; got {' '.join(map(str, self.milestones))}")

    @property
    def input_size(self) -> int:
        """Height and width of the images that the network sees."""
        return self.resize or self.image_size or 32


def flag(name: str) -> str:
    """The command-line flag of a `Config` field."""
    return "--" + name.replace("_", "-")


def did_you_mean(name: str, known: Any) -> str:
    """', did you mean X?' where something known is close to `name`, otherwise nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""
