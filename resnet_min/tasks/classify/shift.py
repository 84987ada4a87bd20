"""Images as they were not trained on: corrupted here, or as CIFAR-10-C publishes them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import Split
from ...data.sources import read_array
from ...errors import UserError

SEVERITIES = 5
CHUNK = 500  # images that are corrupted at a time


def _noise(images: Tensor, level: float) -> Tensor:
    """Gaussian, of this deviation where white is 1; the same for the same images."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * level * noise).round().clamp(0, 255).to(torch.uint8)


def _blur(images: Tensor, level: float) -> Tensor:
    """Gaussian, of this deviation in pixels of an image of 32."""
    from torchvision.transforms.v2 import functional

    sigma = level * images.shape[-1] / 32
    return functional.gaussian_blur(images, 2 * int(3 * sigma) + 1, sigma)


def _jpeg(images: Tensor, level: float) -> Tensor:
    """By Pillow, as torchvision's codecs are deprecated."""
    from PIL import Image

    made = []
    for image in images.permute(0, 2, 3, 1).numpy():
        Image.fromarray(image).save(file := io.BytesIO(), "JPEG", quality=int(level))
        made.append(np.array(Image.open(file)))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def _brightness(images: Tensor, level: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.adjust_brightness(images, level)


def _contrast(images: Tensor, level: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.adjust_contrast(images, level)


def _pixelate(images: Tensor, level: float) -> Tensor:
    """Sampled down to this share of the side, and back without smoothing."""
    side = [max(1, round(level * size)) for size in images.shape[2:]]
    small = F.interpolate(images.float(), side, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[2:], mode="nearest").round().clamp(0, 255).to(torch.uint8)


# uint8 [N, 3, H, W] -> the same, with the level of each severity. The levels are ours, not those of CIFAR-10-C.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "noise": (_noise, (0.04, 0.08, 0.12, 0.16, 0.20)),
    "blur": (_blur, (0.5, 0.75, 1.0, 1.5, 2.0)),
    "jpeg": (_jpeg, (60, 40, 25, 15, 8)),
    "brightness": (_brightness, (1.25, 1.5, 1.75, 2.0, 2.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.35, 0.2, 0.1)),
    "pixelate": (_pixelate, (0.85, 0.7, 0.55, 0.45, 0.35)),
}


def variants(images: Split, wanted: str, classes: int) -> Iterator[tuple[str, int, Split]]:
    """(corruption, severity from 1 to 5, images) of each.

    wanted: "all", the names of some with commas between, or a folder as CIFAR-10-C is published: labels.npy and, for
    each corruption, an array of five times as many images, or as labels, uint8 [5 N, H, W, 3], by severity.
    Raises UserError for another name or folder, at once and not with the first images.
    """
    if wanted and Path(wanted).is_dir():
        return _published(Path(wanted), classes)
    names = list(CORRUPTIONS) if wanted == "all" else wanted.split(",")
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise UserError(f"--corrupt {unknown[0]}: neither a folder nor one of all, {', '.join(CORRUPTIONS)}")
    return _corrupted(images, names)


def _corrupted(images: Split, names: Sequence[str]) -> Iterator[tuple[str, int, Split]]:
    for name in names:
        corrupt, levels = CORRUPTIONS[name]
        for severity, level in enumerate(levels, start=1):
            made = [corrupt(some.permute(0, 3, 1, 2), level) for some in images.images.split(CHUNK)]
            yield name, severity, Split(torch.cat(made).permute(0, 2, 3, 1).contiguous(), images.labels)


def _published(folder: Path, classes: int) -> Iterator[tuple[str, int, Split]]:
    files = sorted(file for file in folder.glob("*.npy") if file.name != "labels.npy")
    if not files or not (folder / "labels.npy").is_file():
        raise UserError(f"--corrupt {folder} has no labels.npy and NAME.npy, as CIFAR-10-C has")
    arrays = {file: read_array(file, folder / "labels.npy") for file in files}
    for file, (pixels, labels) in arrays.items():
        if labels.max() >= classes:
            raise UserError(f"{folder / 'labels.npy'} has the class {labels.max()}; the network tells {classes}")
        if len(pixels) % SEVERITIES:
            raise UserError(f"{file} has {len(pixels)} images, which are not five severities")
    return (
        (file.stem, severity, Split(*(torch.tensor(np.split(array, SEVERITIES)[severity - 1]) for array in pair)))
        for file, pair in arrays.items()
        for severity in range(1, SEVERITIES + 1)
    )


def table(rows: Sequence[Mapping[str, Any]], clean: Mapping[str, float]) -> list[list[str]]:
    """Accuracy and calibration error by corruption: a head, the images as they are, and a row of each corruption."""
    head = ["corruption", *(f"severity {severity}" for severity in range(1, SEVERITIES + 1)), "mean", "mean ECE"]
    made = [head, ["none", *[""] * SEVERITIES, f"{clean['accuracy']:.2f}%", f"{clean['calibration_error']:.2f}%"]]
    for name in dict.fromkeys(row["corruption"] for row in rows):
        mine = [row for row in rows if row["corruption"] == name]
        means = [float(np.mean([row[key] for row in mine])) for key in ("accuracy", "calibration_error")]
        made.append([name, *(f"{row['accuracy']:.2f}%" for row in mine), *(f"{mean:.2f}%" for mean in means)])
    return made
