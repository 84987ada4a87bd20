"""The named presets: what each sets, where it is from, and what was published for it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import did_you_mean
from .errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A named set of `Config` settings: where they come from, and what was published for them."""

    settings: dict[str, Any]
    source: str
    published: str = "nothing published"


# SGD and the step schedule that `Config` defaults to, with the statistics the NCTU report normalises by.
_NCTU = dict(
    data="cifar10", mean=(0.4914, 0.4824, 0.4467), std=(0.2471, 0.2435, 0.2616), epochs=164, batch_size=128,
    optimizer="sgd", lr=0.1, momentum=0.9, wd=1e-4, schedule="step", milestones=(81, 122), gamma=0.1,
)  # fmt: skip
_NCTU_SOURCE = 'NCTU, "Lab 2: Deep Residual Learning"'
_NCTU_PLAIN = "test accuracy below its residual twin's, and more so at 50 layers than at 18"

_CROWD = dict(
    task="crowd", data="data/part_B_final", arch="resnet18", stem="imagenet", crop=256, flip=0.5, val_size=40,
    epochs=200, batch_size=8, optimizer="adamw", lr=1e-3, wd=1e-4, schedule="onecycle", warmup=0.1,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        dict(
            data="digits", arch="resnet20", epochs=20, batch_size=64, padding=4, flip=0.0,
            optimizer="sgd", lr=0.2, momentum=0.9, nesterov=True, wd=5e-4, schedule="onecycle",
        ),
        "ours: scikit-learn's digits, chosen on a validation split; a mirrored digit is another sign, so no flip",
    ),
    "nctu-resnet18": Recipe(dict(_NCTU, arch="resnet18"), _NCTU_SOURCE, "test accuracy above 91%"),
    "nctu-resnet50": Recipe(dict(_NCTU, arch="resnet50"), _NCTU_SOURCE, "test accuracy above 91%"),
    "nctu-resnet18-plain": Recipe(dict(_NCTU, arch="resnet18", plain=True), _NCTU_SOURCE, _NCTU_PLAIN),
    "nctu-resnet50-plain": Recipe(dict(_NCTU, arch="resnet50", plain=True), _NCTU_SOURCE, _NCTU_PLAIN),
    "li-crowd": Recipe(
        dict(_CROWD, head="linear"),
        'Li, "Programming Assignment 1: ResNet", which gives encoder, head and loss; the rest is our choice',
        "test MAE 69.16, MSE 103.51; always the train median: 68.29, 98.31",
    ),
    "crowd-best": Recipe(
        dict(_CROWD, blocks=(2, 2, 2), widths=(16, 32, 64), strides=(1, 2, 1), head="dilated", sigma=8.0),
        "ours: maps at stride 8, dilated head, Gaussians of one width; chosen on a validation split",
        "MCNN, without ImageNet weights: test MAE 26.4, MSE 41.3",
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """A preset by name. Raises UserError that suggests the nearest."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def default_settings(data: str) -> dict[str, Any]:
    """What holds without a recipe: crowd-best's settings on a crowd, digits' on digits, elsewhere the NCTU settings."""
    if Path(data, "train_data").is_dir():
        return {**RECIPES["crowd-best"].settings, "data": data}
    settings = dict(RECIPES["digits" if data == "digits" else "nctu-resnet18"].settings)
    if data not in ("digits", "cifar10"):
        del settings["mean"], settings["std"]
    return {**settings, "data": data, "arch": "resnet18"}
