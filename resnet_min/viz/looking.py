"""What visualize.py draws of a trained network: maps, what excites them, the way back to the pixels, Grad-CAM.

Each function takes layers, any modules with maps, or "all" for the stem and every stage, and writes one picture.
`check` tells before the work begins whether the network has those layers and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model import ResNet
from . import activations, deconvnet, layers, pictures
from .pictures import BLANK, Panel

MOST_MAPS = 64  # of one picture
FEW = 8  # panels in a row
ROWS = 6  # of channels


Channels = Sequence[int] | Literal["all"] | None  # None: the most strongly activated


class View(NamedTuple):
    """What is looked at: a network and its ResNet, what it is called, how its images are normalised, its classes."""

    net: nn.Module
    model: ResNet
    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    title: str = ""  # instead of those that say what is drawn

    def picture(self, x: Tensor) -> np.ndarray:
        """An image as the network takes it, [3, H, W], as RGB from 0 to 1, [H, W, 3]."""
        return (x.numpy().transpose(1, 2, 0) * self.std + self.mean).clip(0, 1)

    def titled(self, *lines: str) -> str:
        return self.title or "\n".join([f"{self.name}: {lines[0]}", *lines[1:]])


class Subject(NamedTuple):
    """The image that is looked at."""

    x: Tensor  # float [1, 3, H, W], as the network takes it
    picture: np.ndarray  # the same as RGB from 0 to 1, [H, W, 3]
    caption: str  # its name, and what the network says of it


@torch.no_grad()
def check(view: View, names: Sequence[str], channels: Channels, size: tuple[int, int]) -> None:
    """Raise UserError where there is no such layer with maps, no such channel in it, or nothing finite to see."""
    found = layers.chosen(view.model, names)
    outputs, maps = layers.outputs(view.model, torch.zeros(1, 3, *size), found.values(), view.net)
    if not outputs.isfinite().all():
        raise UserError("the model's outputs are not all finite: the weights are from a run that diverged")
    for channel in channels if isinstance(channels, list) else ():
        for name, module in found.items():
            if not 0 <= channel < maps[module].shape[1]:
                raise UserError(f"--channel {channel}: {name} has the channels 0 to {maps[module].shape[1] - 1}")


def pick(maps: Tensor, wanted: Channels, most: int) -> list[int]:
    """The channels of maps [C, h, w] that are wanted; without a wish those that reach highest, the highest first."""
    if wanted == "all":
        return list(range(len(maps)))
    return list(wanted) if wanted else maps.amax((1, 2)).topk(min(most, len(maps))).indices.tolist()


def maps_of(view: View, subject: Subject, names: Sequence[str]) -> dict[str, Tensor]:
    """Layer -> its maps for the subject, float [C, h, w]."""
    found = layers.chosen(view.model, names)
    with torch.no_grad():
        _, maps = layers.outputs(view.model, subject.x, found.values(), view.net)
    return {name: maps[module][0] for name, module in found.items()}


def features(
    view: View, subject: Subject, names: Sequence[str], wanted: Channels, path: Path, *, each: bool, grey: bool
) -> None:
    """The maps of a layer, or some of them; of several layers, a row of the strongest few, or of those wanted, of each.

    each: every map has a scale of its own, from its lowest value to its highest, and none is drawn.
    """
    made = maps_of(view, subject, names)

    def tiles(maps: Tensor, channels: list[int]) -> np.ndarray:
        if not each:
            return pictures.coloured(maps[channels], pictures.scale_of(maps, grey))
        return np.stack([pictures.coloured(maps[c], pictures.scale_of(maps[c], grey)) for c in channels])

    if len(made) > 1:
        rows, labels = [[Panel(subject.picture)]], ["image"]
        for name, maps in made.items():
            channels = pick(maps, wanted, FEW)
            rows.append([Panel(*both) for both in zip(tiles(maps, channels), map(str, channels), strict=True)])
            limits = "" if each else f"\n{min(0, float(maps.min())):.2g} to {float(maps.max()):.2g}"
            labels.append(f"{name}\n{' × '.join(map(str, maps.shape))}{limits}")
        which = (
            "The channels of the numbers above"
            if wanted
            else "The most strongly activated channels, with their numbers"
        )
        of = "map has its own scale" if each else "layer has its own scale, whose ends are at its left"
        return pictures.panels(
            rows, path, title=view.titled(subject.caption), labels=labels, note=f"{which}. Each {of}."
        )
    ((name, maps),) = made.items()
    channels = pick(maps, wanted, len(maps) if len(maps) <= MOST_MAPS else MOST_MAPS)
    if wanted is None:
        channels.sort()
    count, height, width = maps.shape
    title = f"{name}: {count} maps of {height}×{width}"
    if len(channels) == 1:
        title = f"{name}: channel {channels[0]} of {count}, {height}×{width}"
    elif len(channels) < count:
        title += f" (shown: {'those asked for' if wanted else f'the {MOST_MAPS} most strongly activated'})"
    bar = {} if each else {"scale": pictures.scale_of(maps, grey), "label": "activation"}
    pictures.mosaic(
        subject.picture, tiles(maps, channels), path, title=view.titled(subject.caption, title), numbers=channels,
        note="Each map has its own scale." if each else "", **bar,
    )  # fmt: skip


def top(
    view: View,
    batches_of: Callable[[Sequence[int]], Iterable[tuple[Tensor, Tensor]]],
    count: int,
    name: str,
    wanted: Channels,
    path: Path,
) -> None:
    """The images that excite a layer's channels most, or those of the most strongly activated channels.

    batches_of: numbers of images, from 0 to `count` - 1 -> (images as the network takes them, targets) of these.
    """
    (module,) = layers.chosen(view.model, [name]).values()
    graph, place = layers.graph(view.model), layers.locate(view.model, module)
    peaks, places = activations.peaks(view.model, batches_of(range(count)), module)
    channels = pick(peaks.T[:, :, None], wanted, ROWS)
    alone = len(channels) == 1
    rows = []
    for number in channels:
        best = peaks[:, number].topk(min(2 * FEW if alone else FEW, len(peaks))).indices
        shown = [pair for xs, targets in batches_of(best.tolist()) for pair in zip(xs, targets.tolist(), strict=True)]
        row = []
        for (x, target), image in zip(shown, best.tolist(), strict=True):
            box = layers.receptive_field(graph, place, tuple(places[image, number].tolist()), tuple(x.shape[1:]))
            what = view.classes[target][:12] if view.classes else f"{target:g}"
            row.append(Panel(view.picture(x), f"{image}: {what}\n{peaks[image, number]:.2f}", box))
        rows += [row[start : start + FEW] for start in range(0, len(row), FEW)]
    which = "the most strongly activated channels"
    if wanted is not None:
        which = f"channel{'s' * (not alone)} {', '.join(map(str, channels))}"
    pictures.panels(
        rows, path, labels=[] if alone else [str(number) for number in channels],
        title=view.titled(f"{name}, {which}: the images that excite {'it' if alone else 'each'} most"),
        note="Above each image: its number, its target and its peak. The frame is the peak's receptive field.",
    )  # fmt: skip


def reconstruct(
    view: View,
    subject: Subject,
    names: Sequence[str],
    wanted: Channels,
    shortcut: str | None,
    rectify: bool,
    path: Path,
) -> None:
    """The reverse ResNet (see deconvnet.py): from a layer's whole map and its strongest channels, or from one channel.

    From several layers, the whole map of each; with all channels wanted, each by itself in one grid.
    shortcut: None for "add", from several layers for a row of each.
    """
    made, model, image = maps_of(view, subject, names), view.model, Panel(subject.picture, "image")
    modules, plain = layers.chosen(model, names), layers.is_plain(model)
    shown = "rectified" if rectify else "not rectified"
    note = "Grey is zero; each projection has its own scale."

    def back(name: str, signals: Tensor, way: str) -> list[np.ndarray]:
        parts = (
            deconvnet.reconstruct(model, subject.x, modules[name], some, rectify=rectify, shortcut=way)
            for some in signals.split(64)
        )
        return [pictures.centred(one) for part in parts for one in part]

    def project(name: str, signals: Tensor, captions: list[str], way: str) -> list[Panel]:
        return [Panel(*both) for both in zip(back(name, signals, way), captions, strict=True)]

    if len(made) > 1:
        ways = [shortcut or "add"] if shortcut or plain else list(deconvnet.SHORTCUTS)
        rows = [[image]] + [[BLANK] for _ in ways[1:]]
        for number, (row, way) in enumerate(zip(rows, ways, strict=True)):
            for name, maps in made.items():  # before the first block no way differs from another
                row += [BLANK] if number and name == "stem" else project(name, maps[None], [name], way)
        title = f"the whole map of each depth, projected back to the pixels ({shown})"
        labels = [] if plain else [f"shortcuts: {way}" for way in ways]
        return pictures.panels(rows, path, title=view.titled(subject.caption, title), labels=labels, note=note)

    ((name, maps),) = made.items()
    way = shortcut or "add"
    channels = pick(maps, wanted, FEW - 2)
    alone = torch.zeros(len(channels), *maps.shape)
    for signal, number in zip(alone, channels, strict=True):
        signal[number] = maps[number]
    how = f" ({shown}" + ("" if plain else f", shortcuts: {way}") + ")"
    if wanted == "all":
        strongest = maps.amax((1, 2)).argmax().item()
        return pictures.mosaic(
            subject.picture, np.stack(back(name, alone, way)), path, numbers=channels, circled=strongest,
            title=view.titled(subject.caption, f"{name}: each of its {len(maps)} channels alone, projected back{how}"),
            note=f"{note} Red: channel {strongest}, the most strongly activated.",
        )  # fmt: skip
    own = [Panel(tile, "its map") for tile in pictures.coloured(maps[channels], pictures.scale_of(maps))]
    if len(channels) > 1:
        captions = ["whole map", *(f"channel {number}" for number in channels)]
        rows = [[image, *project(name, torch.cat([maps[None], alone]), captions, way)], [BLANK, BLANK, *own]]
        which = "its strongest channels" if wanted is None else "channels"
        title = f"{name}: its whole map, and {which} each alone, projected back"
    else:
        (channel,) = channels
        row, column = divmod(int(maps[channel].argmax()), maps.shape[2])
        peak = torch.zeros_like(alone)
        peak[0, channel, row, column] = maps[channel, row, column]
        whole, point = project(name, torch.cat([alone, peak]), [f"channel {channel}", "its peak alone"], way)
        place = layers.locate(model, modules[name])
        box = layers.receptive_field(layers.graph(model), place, (row, column), tuple(subject.x.shape[2:]))
        rows = [[image, *own, whole, point._replace(box=box)]]
        title = f"{name}, channel {channel}, projected back"
        note += " The frame is the peak's receptive field."
    pictures.panels(rows, path, title=view.titled(subject.caption, title + how), note=note)


def gradcam(view: View, subject: Subject, names: Sequence[str], target: int | None, path: Path) -> None:
    """Grad-CAM of class `target`, over the image; None: of all that the network puts out."""
    row = [Panel(subject.picture, "image")]
    for name, module in layers.chosen(view.model, names).items():
        heat = activations.gradcam(view.model, subject.x, module, target, view.net)[0].numpy()
        row.append(
            Panel(subject.picture, f"{name}: peak {heat.max():.2g}" if heat.any() else f"{name}: nothing", heat=heat)
        )
    of = "what raises the prediction" if target is None else f"evidence for {view.classes[target]}"
    pictures.panels([row], path, title=view.titled(subject.caption, f"Grad-CAM: {of}"))


def augmented(view: View, draws: Sequence[tuple[Tensor, str]], caption: str, path: Path) -> None:
    """An image as it is and as training draws it: (image [3, H, W] as the network takes it, what it is) each."""
    row = [Panel(view.picture(x), said) for x, said in draws]
    rows = [row[start : start + FEW] for start in range(0, len(row), FEW)]
    pictures.panels(rows, path, title=view.titled(f"{caption}, as training draws it"))
