"""What visualize.py draws of a trained network: maps, what excites them, the way back to the pixels, Grad-CAM.

Each function takes a layer, any module with maps, or "all" for the stem and every stage, and writes one picture.
`check` tells before the work begins whether the network has that layer and channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..model import ResNet
from . import activations, deconvnet, layers, pictures
from .pictures import BLANK, Panel

MOST_MAPS = 64  # of one picture
FEW = 8  # panels in a row
ROWS = 6  # of channels


class View(NamedTuple):
    """What is looked at: a network's ResNet, how its images are normalised, the names of its classes."""

    model: ResNet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def picture(self, x: Tensor) -> np.ndarray:
        """An image as the network takes it, [3, H, W], as RGB from 0 to 1, [H, W, 3]."""
        return (x.numpy().transpose(1, 2, 0) * self.std + self.mean).clip(0, 1)


class Subject(NamedTuple):
    """The image that is looked at."""

    x: Tensor  # float [1, 3, H, W], as the network takes it
    picture: np.ndarray  # the same as RGB from 0 to 1, [H, W, 3]
    caption: str  # its name, and what the network says of it


@torch.no_grad()
def check(view: View, layer: str, channel: int | None, size: tuple[int, int]) -> None:
    """Raise UserError where there is no such layer with maps, no such channel in it, or nothing finite to see."""
    names = layers.chosen(view.model, layer)
    outputs, maps = layers.outputs(view.model, torch.zeros(1, 3, *size), names)
    if not outputs.isfinite().all():
        raise UserError("the model's outputs are not all finite: the weights are from a run that diverged")
    if channel is not None and not 0 <= channel < maps[layer].shape[1]:
        raise UserError(f"--channel {channel}: {layer} has the channels 0 to {maps[layer].shape[1] - 1}")


def strongest(maps: Tensor, most: int) -> list[int]:
    """The channels of maps [C, h, w] that reach highest, the highest first."""
    return maps.amax((1, 2)).topk(min(most, len(maps))).indices.tolist()


def maps_of(view: View, subject: Subject, layer: str) -> dict[str, Tensor]:
    """Layer -> its maps for the subject, float [C, h, w]."""
    with torch.no_grad():
        _, maps = layers.outputs(view.model, subject.x, layers.chosen(view.model, layer))
    return {name: made[0] for name, made in maps.items()}


def coloured(maps: Tensor, channels: list[int]) -> list[np.ndarray]:
    """Some channels of maps [C, h, w] as RGB, in the scale of all."""
    limit, signed = float(maps.abs().max()), bool(maps.min() < 0)
    return [pictures.coloured(maps[channel], limit, signed) for channel in channels]


def features(view: View, subject: Subject, layer: str, channel: int | None, path: Path) -> None:
    """The maps of a layer, or one of them; of all layers, the strongest few of each."""
    made = maps_of(view, subject, layer)
    if layer == "all":
        rows, labels = [[Panel(subject.picture)]], ["image"]
        for name, maps in made.items():
            channels = strongest(maps, FEW)
            rows.append([Panel(*both) for both in zip(coloured(maps, channels), map(str, channels), strict=True)])
            labels.append(f"{name}\n{' × '.join(map(str, maps.shape))}")
        note = (
            "The most strongly activated channels, each under its number. Dark is zero; each layer has its own scale."
        )
        return pictures.panels(rows, path, title=subject.caption, labels=labels, note=note)
    maps = made[layer]
    count, height, width = maps.shape
    title, channels = f"{layer}: {count} maps of {height}×{width}", list(range(count))
    if channel is not None:
        title, channels = f"{layer}: channel {channel} of {count}, {height}×{width}", [channel]
    elif count > MOST_MAPS:
        title += f" (shown: the {MOST_MAPS} most strongly activated)"
        channels = sorted(strongest(maps, MOST_MAPS))
    pictures.features(subject.picture, maps[channels], path, title=f"{subject.caption}\n{title}", numbers=channels)


def top(
    view: View,
    batches_of: Callable[[Sequence[int]], Iterable[tuple[Tensor, Tensor]]],
    count: int,
    layer: str,
    channel: int | None,
    path: Path,
) -> None:
    """The images that excite a channel most, or those of the most strongly activated channels.

    batches_of: numbers of images, from 0 to `count` - 1 -> (images as the network takes them, targets) of these.
    """
    graph, place = layers.graph(view.model), layers.locate(view.model, layer)
    peaks, places = activations.peaks(view.model, batches_of(range(count)), layer)
    channels = strongest(peaks.T[:, :, None], ROWS) if channel is None else [channel]
    rows = []
    for number in channels:
        best = peaks[:, number].topk(min(FEW if channel is None else 2 * FEW, len(peaks))).indices
        shown = [pair for xs, targets in batches_of(best.tolist()) for pair in zip(xs, targets.tolist(), strict=True)]
        row = []
        for (x, target), image in zip(shown, best.tolist(), strict=True):
            box = layers.receptive_field(graph, place, tuple(places[image, number].tolist()), tuple(x.shape[1:]))
            what = view.classes[target][:12] if view.classes else f"{target:g}"
            row.append(Panel(view.picture(x), f"{image}: {what}\n{peaks[image, number]:.2f}", box))
        rows += [row[start : start + FEW] for start in range(0, len(row), FEW)]
    which = "the most strongly activated channels" if channel is None else f"channel {channel}"
    pictures.panels(
        rows, path, labels=[str(number) for number in channels] if channel is None else (),
        title=f"{layer}, {which}: the images that excite {'each' if channel is None else 'it'} most",
        note="Above each image: its number, its target and its peak. The frame is the peak's receptive field.",
    )  # fmt: skip


def reconstruct(
    view: View, subject: Subject, layer: str, channel: int | None, shortcut: str | None, rectify: bool, path: Path
) -> None:
    """The reverse ResNet (see deconvnet.py): from a layer's whole map and its strongest channels, or from one channel.

    From all layers, the whole map of each. shortcut: None for "add", from all layers for a row of each.
    """
    made, model, image = maps_of(view, subject, layer), view.model, Panel(subject.picture, "image")
    plain = layers.is_plain(model)
    shown = "rectified" if rectify else "not rectified"
    note = "Grey is zero; each projection has its own scale."

    def project(name: str, signals: Tensor, captions: list[str], way: str) -> list[Panel]:
        back = deconvnet.reconstruct(model, subject.x, name, signals, rectify=rectify, shortcut=way)
        return [Panel(pictures.centred(one), caption) for one, caption in zip(back, captions, strict=True)]

    if layer == "all":
        ways = [shortcut or "add"] if shortcut or plain else list(deconvnet.SHORTCUTS)
        rows = [[image]] + [[BLANK] for _ in ways[1:]]
        for row, way in zip(rows, ways, strict=True):
            row += [panel for name, maps in made.items() for panel in project(name, maps[None], [name], way)]
        title = f"the whole map of each depth, projected back to the pixels ({shown})"
        labels = [] if plain else [f"shortcuts: {way}" for way in ways]
        return pictures.panels(rows, path, title=f"{subject.caption}\n{title}", labels=labels, note=note)

    maps, way = made[layer], shortcut or "add"
    channels = strongest(maps, FEW - 2) if channel is None else [channel]
    alone = torch.zeros(len(channels), *maps.shape)
    for signal, number in zip(alone, channels, strict=True):
        signal[number] = maps[number]
    own = [Panel(picture, "its map") for picture in coloured(maps, channels)]
    if channel is None:
        captions = ["whole map", *(f"channel {number}" for number in channels)]
        rows = [[image, *project(layer, torch.cat([maps[None], alone]), captions, way)], [BLANK, BLANK, *own]]
        title = f"{layer}: its whole map, and its strongest channels each alone, projected back"
    else:
        row, column = divmod(int(maps[channel].argmax()), maps.shape[2])
        peak = torch.zeros_like(alone)
        peak[0, channel, row, column] = maps[channel, row, column]
        whole, point = project(layer, torch.cat([alone, peak]), [f"channel {channel}", "its peak alone"], way)
        place = layers.locate(model, layer)
        box = layers.receptive_field(layers.graph(model), place, (row, column), tuple(subject.x.shape[2:]))
        rows = [[image, *own, whole, point._replace(box=box)]]
        title = f"{layer}, channel {channel}, projected back"
        note += " The frame is the peak's receptive field."
    title += f" ({shown}" + ("" if plain else f", shortcuts: {way}") + ")"
    pictures.panels(rows, path, title=f"{subject.caption}\n{title}", note=note)


def gradcam(view: View, subject: Subject, layer: str, target: int, path: Path) -> None:
    """Grad-CAM of class `target`, over the image."""
    row = [Panel(subject.picture, "image")]
    for name in layers.chosen(view.model, layer):
        heat = activations.gradcam(view.model, subject.x, name, target)[0].numpy()
        row.append(Panel(subject.picture, name if heat.any() else f"{name}: nothing", heat=heat))
    title = f"{subject.caption}\nGrad-CAM: evidence for {view.classes[target]}"
    pictures.panels([row], path, title=title, note="Bright: evidence for the class; each map has its own scale.")
