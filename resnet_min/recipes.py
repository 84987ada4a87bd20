"""The named recipes: what each sets, where it is from, and what was published for it. Imports no torch.

Where a report is silent or contradicts itself, a recipe's note says what was chosen here.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .config import Config, did_you_mean
from .errors import UserError


@dataclass(frozen=True)
class Published:
    """What a report prints of an experiment, by its task's figure; None where it prints nothing."""

    train: float | None = None
    val: float | None = None
    test: float | None = None
    above: bool = False  # the report says that its test accuracy lies above `test`
    unit: str = "%"
    beside: tuple[str, float] | None = None  # title and value of what the report quotes with `test`: ("MSE", 103.51)
    epoch: int | None = None  # in which it converged
    seconds: float | None = None  # that training took
    note: str = ""

    def __str__(self) -> str:
        values = {name: getattr(self, name) for name in ("train", "val", "test")}
        shares = [
            f"{name} {'above ' * (self.above and name == 'test')}{value:g}{self.unit}"
            for name, value in values.items()
            if value is not None
        ]
        if self.beside is not None:
            shares.append("{} {:g}".format(*self.beside))
        if self.epoch is not None:
            shares.append(f"converges at epoch {self.epoch}")
        if self.seconds is not None:
            shares.append(f"{self.seconds:g} s")
        return ", ".join([*shares, self.note] if self.note else shares) or "no figure"


@dataclass(frozen=True)
class Recipe:
    """A named set of `Config` settings: where they come from, what was published for them, and what to know.

    The settings of every recipe name its `epochs`.
    """

    settings: dict[str, Any]
    source: str
    published: Published = Published()
    note: str = ""


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = dict(data="cifar10", padding=4, flip=0.5, batch_size=128)
SGD = dict(optimizer="sgd", momentum=0.9)
ADAM = dict(optimizer="adam", wd=0.0)
UNDER = "under 5M parameters"  # Yuan & Zhang's limit


def _ours() -> dict[str, Recipe]:
    source = "ours"
    digits = dict(
        data="digits", arch="resnet20", epochs=20, batch_size=64, padding=4, flip=0.0,
        optimizer="sgd", lr=0.2, momentum=0.9, nesterov=True, wd=5e-4, schedule="onecycle",
    )  # fmt: skip
    note = f"chosen on a validation split; a mirrored digit is another sign, so no flip; {UNDER}"
    recipes = {"digits": Recipe(digits, source, note=note)}
    argument = "what two CPU cores can show of He et al., section 4.2: deep plain nets have a higher training loss; "
    argument += UNDER
    for arch in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"):
        settings = dict(CIFAR, **SGD, arch=arch, lr=0.1, wd=1e-4, schedule="onecycle", epochs=4)
        recipes[f"ours-{arch}"] = Recipe(settings, source, note=argument)
        recipes[f"ours-{arch}-plain"] = Recipe(dict(settings, plain=True), source, note=argument)
    base = dict(
        CIFAR, **SGD, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), arch="resnet20", lr=0.2,
        nesterov=True, wd=5e-4, schedule="onecycle", epochs=17, val_every=17,
    )  # fmt: skip
    fast = dict(
        base, arch="resnet18", blocks=(1, 1, 1, 1), widths=(32, 64, 128, 256), padding=2, label_smoothing=0.1,
        grow=(20,), epochs=22, val_every=22,
    )  # fmt: skip
    note = "about ten minutes on two cores of a Xeon with AMX; its parts by a validation split, its epochs by the clock"
    recipes["fast-cpu"] = Recipe(fast, source, note=f"{note}; {UNDER}")
    recipes["fast-cpu-base"] = Recipe(base, source, note=f"the same ten minutes, resnet20 without the parts; {UNDER}")
    return recipes


def _li() -> dict[str, Recipe]:
    source = 'Li, "Programming Assignment 1: ResNet"'
    common = dict(
        CIFAR, **SGD, arch="resnet34", stem="cifar-pool", val_size=5_000, wd=1e-4, epochs=200,
        schedule="step", milestone_unit="iterations", gamma=0.1,
    )  # fmt: skip
    finetune = dict(
        common, pretrained="imagenet", freeze="first-last", freeze_epochs=50, freeze_lr=0.01, lr=0.01,
        milestones=(10_000, 35_000),
    )  # fmt: skip
    return {
        "li-resnet34-scratch": Recipe(
            dict(common, lr=0.1, milestones=(32_000, 48_000)), source, Published(test=91.31, epoch=100),
            "352 steps an epoch, so the rate falls in epochs 91 and 137",
        ),
        "li-resnet34-finetune": Recipe(
            finetune, source, Published(test=91.67, epoch=75),
            "the rate of the second phase, and that its milestones count from its start, are our choice",
        ),
    }  # fmt: skip


def _yuan() -> dict[str, Recipe]:
    source = 'Yuan & Zhang, "Report for Deep Learning Mini-Project"'
    best = "the published accuracies are the highest of all epochs, on the test set"
    turned = '; it writes of "randomly rotating and cropping", its code crops and flips, and so do we'
    silent = "; weight decay, batch size, rates and T_max are those of the code it built on" + turned
    common = dict(
        CIFAR, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), schedule="cosine",
    )  # fmt: skip
    sgd, recipes = dict(common, **SGD, wd=5e-4), {}
    for arch, lr, epochs, train, test in (
        ("resnet18", 0.1, 50, 89.81, 86.14),
        ("resnet34", 0.05, 50, 93.50, 89.83),
        ("resnet50", 0.02, 40, None, None),
        ("resnet101", 0.02, 40, 94.718, 90.66),
        ("resnet152", 0.02, 40, 94.958, 90.85),
    ):
        settings = dict(sgd, arch=arch, lr=lr, epochs=epochs, t_max=200)
        unnamed = "named in the abstract, absent from Table 1: set as yuan-resnet101, which is our choice"
        note = (best if test else unnamed) + silent
        recipes[f"yuan-{arch}"] = Recipe(settings, source, Published(train, test=test), note)
    small = f"; {UNDER}; the published time is about that, on an RTX 8000"
    sgds = "; a weight decay of 5e-4 and batches of 128 are those of the code it built on" + turned
    sgds += "; Table 4 says Adam where it means SGD, Figure 13 a 7x7 stem where the counts fit 3x3 only"
    adam = "; batches of 128 and Adam's rate of .1 are the code's, its weight decay of 0 torch's default" + turned
    v1, v2 = dict(blocks=(1, 1, 1, 1)), dict(widths=(64, 128, 128, 128))
    for name, net, optimizer, train, test, note in (
        ("v1-sgd", v1, sgd, 89.552, 86.45, sgds),
        ("v1-adam", v1, dict(common, **ADAM), 94.818, 88.42, adam),
        ("v2-sgd", v2, sgd, 99.812, 94.21, sgds),
        ("v2-adam", v2, dict(common, **ADAM), 98.132, 90.98, adam),
    ):
        settings = dict(optimizer, **net, arch="resnet18", lr=0.1, epochs=60, t_max=60)
        published = Published(train, test=test, seconds=15 * 60)
        recipes[f"yuan-{name}"] = Recipe(settings, source, published, best + small + note)
    return recipes


def _gupta() -> dict[str, Recipe]:
    source = 'Gupta & Kanchan, "ELL793 Assignment 3"'
    common = dict(
        CIFAR, **ADAM, **IMAGENET, arch="resnet18", stem="imagenet", padding=0, flip=0.0, val_size=10_000,
        schedule="cosine", t_max=200, epochs=20,
    )  # fmt: skip
    finetune = dict(common, lr=0.001, pretrained="imagenet")
    tiny = dict(
        common, lr=0.001, val_size=45_000, resize=224, flip=0.4, rotation=30.0, epochs=50,
    )  # fmt: skip
    barely = "T_max 200 over 20 epochs, so the rate hardly falls"
    moving = "batch norms in frozen layers still move their statistics"
    head = '; the head of its Model B is "a new sequential layer" whose layers are not given: ours is one linear layer'
    note = "the report's validation images are augmented too, ours are not; it names no ImageNet weights here"
    graph = f"{note}; of the dropout rates only a graph was printed, with .3 as the best"
    recipes = {
        "gupta-scratch": Recipe(dict(common, lr=0.01), source, Published(97.8, 73.7, 73.0, seconds=364), barely),
        "gupta-finetune": Recipe(finetune, source, Published(99.2, 80.8, 80.5, seconds=362), barely + head),
        "gupta-freeze6": Recipe(
            dict(finetune, freeze_children=6), source, Published(99.5, 79.3, 79.1, seconds=321), moving + head
        ),
        "gupta-freeze10": Recipe(
            dict(finetune, freeze_children=10), source, Published(61.5, 49.2, 49.1, seconds=225),
            f"{moving}{head}; the report calls it the best, against its own table",
        ),
        "gupta-tiny": Recipe(dict(tiny, dropout=0.3), source, Published(89.6, 72.8, 72.8, seconds=23 * 60 + 51), note),
    }  # fmt: skip
    for dropout in (0.1, 0.2, 0.4):
        recipes[f"gupta-tiny-dropout{dropout}"] = Recipe(dict(tiny, dropout=dropout), source, note=graph)
    return recipes


def _nctu() -> dict[str, Recipe]:
    source = 'NCTU, "Lab 2: Deep Residual Learning"'
    common = dict(
        CIFAR, **SGD, mean=(0.4914, 0.4824, 0.4467), std=(0.2471, 0.2435, 0.2616), epochs=164, lr=0.1, wd=1e-4,
        schedule="step", milestones=(81, 122), gamma=0.1,
    )  # fmt: skip
    note = "the report asks for kaiming_normal: convolutions have it, by fan out as torchvision's; fc keeps torch's own"
    recipes = {}
    for arch in ("resnet18", "resnet50"):
        recipes[f"nctu-{arch}"] = Recipe(dict(common, arch=arch), source, Published(test=91, above=True), note)
        recipes[f"nctu-{arch}-plain"] = Recipe(
            dict(common, arch=arch, plain=True),
            source,
            Published(note="below the network with shortcuts, and more so at 50 than at 18"),
            note,
        )
    return recipes


def _qiu() -> dict[str, Recipe]:
    source = 'Qiu, "Assignment 1 CNN for image recognition"'
    base = dict(
        CIFAR, **ADAM, arch="resnet18", stem="imagenet", strides=(1, 1, 2, 2), batch_size=100, lr=0.001, epochs=20,
        schedule="step", milestones=(10, 15, 18), gamma=0.4,
    )  # fmt: skip
    table = "a row of Table 2"
    recipes = {
        "qiu-resnet18": Recipe(
            base,
            source,
            Published(88.33, test=84.82),
            f"{table}, at step 10,000: 20 epochs of 500; the figures go on to step 20,000, as qiu-resnet18-40-epochs; "
            "its maps end at 2x2, not 1x1, and its filters are 7x7x3, not 16x16x3, as the report has it",
        )
    }
    cross = "; its × stands for mixing, cropping, flipping, normalising and resizing: ours leaves out the crop and flip"
    for name, changed, train, test in (
        ("m10-15-g0.122", dict(milestones=(10, 15), gamma=0.122), 87.43, 83.98),
        ("g0.5", dict(gamma=0.5), 88.39, 84.18),
        ("no-aug", dict(padding=0, flip=0.0), 99.45, 82.30),
        ("g0.3", dict(gamma=0.3), 88.20, 84.35),
        ("m8-10-15", dict(milestones=(8, 10, 15)), 85.64, 81.62),
        ("m8-10-15-18-g0.5", dict(milestones=(8, 10, 15, 18), gamma=0.5), 87.24, 83.92),
        ("m8-10-15-18", dict(milestones=(8, 10, 15, 18)), 87.29, 83.67),
        ("b200", dict(batch_size=200), 88.15, 83.58),
    ):
        recipes[f"qiu-resnet18-{name}"] = Recipe(dict(base, **changed), source, Published(train, test=test), table)
    no_aug = recipes["qiu-resnet18-no-aug"]
    recipes["qiu-resnet18-no-aug"] = replace(no_aug, note=table + cross)
    recipes["qiu-resnet18-40-epochs"] = Recipe(
        dict(base, epochs=40), source, Published(90.76, test=85.1),
        'the report says "epoch = 20; step = 1000" and draws 20,000 steps: of 500 a pass, they are 40 epochs',
    )  # fmt: skip
    recipes["qiu-resnet18-224"] = Recipe(
        dict(base, resize=224), source, Published(test=90, above=True), "cropped at 32 pixels, then resized: our choice"
    )
    return recipes


def _crowd() -> dict[str, Recipe]:
    common = dict(
        task="crowd", data="data/part_B_final", arch="resnet18", stem="imagenet", crop=256, flip=0.5, val_size=40,
        epochs=200, batch_size=8, optimizer="adamw", lr=1e-3, wd=1e-4, schedule="onecycle", warmup=0.1,
    )  # fmt: skip
    best = dict(
        common, blocks=(2, 2, 2), widths=(32, 64, 128), strides=(1, 2, 1), head="dilated", sigma=8.0, count_weight=0.1,
        zoom=1.4, frozen_stats=0.2,
    )  # fmt: skip
    li, source = dict(common, head="linear"), "Li, crowd counting"
    ours = "the report gives encoder, head and loss; the rest is our choice"
    return {
        "li-crowd": Recipe(
            li, source,
            Published(
                test=69.16, unit=" MAE", beside=("MSE", 103.51), note="always the train median: 68.29, 98.31"
            ),
            ours,
        ),
        "li-crowd-zhang": Recipe(
            dict(li, loss="zhang"), source, Published(unit=" MAE"),
            'the loss of Zhang et al., which Li found "extremely large at the beginning"; of 256x256 crops it is by '
            "definition 3.3 times li-crowd's",
        ),
        "crowd-best": Recipe(
            best, "ours, crowd counting",
            Published(test=26.4, unit=" MAE", beside=("MSE", 41.3), note="which is MCNN, without ImageNet weights"),
            "narrow, maps at stride 8, dilated head, Gaussians of one width, a count term, crops of many sizes, batch "
            "norms as in evaluation in the last fifth; by a validation split; "
            + UNDER,
        ),
    }  # fmt: skip


RECIPES: dict[str, Recipe] = {**_ours(), **_li(), **_yuan(), **_gupta(), **_nctu(), **_qiu(), **_crowd()}


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises UserError that suggests the nearest."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; train.py --list-recipes lists them")
    return RECIPES[name]


def scaled(settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A recipe's settings with its whole schedule shrunk to the share `scale`, in (0, 1], of its length.

    Epochs, milestones, T_max and frozen epochs shrink in proportion (a warm-up is a share by itself). There are at
    least as many epochs as frozen ones come out whole in, one where nothing is frozen; where `scale` is less, the
    training images shrink instead.
    """
    if scale == 1:
        return dict(settings)
    whole, frozen = settings["epochs"], settings.get("freeze_epochs") or 0
    least = whole // math.gcd(whole, frozen)
    epochs, share = max(least, round(whole * scale)), min(1.0, whole * scale / least)
    changed: dict[str, Any] = {"scale": scale, "epochs": epochs, "train_share": share}
    if "milestones" in settings:
        by_steps = settings.get("milestone_unit") == "iterations"
        ratio = epochs / whole * (share if by_steps else 1)
        changed["milestones"] = tuple(milestone * ratio for milestone in settings["milestones"])
    if "t_max" in settings:
        changed["t_max"] = settings["t_max"] * epochs / whole
    if frozen:
        changed["freeze_epochs"] = round(frozen * epochs / whole)
    return {**settings, **changed}


def extent(config: Config, whole: int) -> str:
    """How much of a recipe of `whole` epochs a run is: "8 of 164 epochs, schedule scaled by 0.05".

    A schedule that ends with the epochs, whatever their number, shrinks by `epochs` alone.
    """
    ends_with_them = config.schedule == "onecycle" or (config.schedule == "cosine" and config.t_max is None)
    scale = config.scale
    if scale == 1 and ends_with_them and config.freeze_epochs is None:
        scale = min(1.0, config.epochs / whole)
    said = [f"{config.epochs} of {whole} epochs"]
    if config.train_share < 1:
        said.append(f"{100 * config.train_share:.3g}% of the training images")
    if scale < 1:
        said.append(f"schedule scaled by {scale:.2g}")
    if config.limit is not None:
        said.append(f"{config.limit} images of each split")
    return ", ".join(said)


def describe() -> str:
    """Every recipe with what was published for it, report by report; a note stands below the first that it is about."""
    wide = max(map(len, RECIPES))
    lines, source, note = [], None, None
    for name, item in RECIPES.items():
        if item.source != source:
            lines += ["", f"{item.source}:"]
        lines.append(f"  {name:{wide}}  {item.published}")
        if item.note and item.note != note:
            lines += textwrap.wrap(item.note, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
        source, note = item.source, item.note
    return "\n".join(lines[1:])
