"""Images to a normalised, randomly cropped and flipped batch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from resnet_min import ops, reference

from .timing import MEAN, STD, Call, Case, name_of


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """`ops.crop_flip` against torchvision image by image, a batched gather, its reference, and a plain copy.

    Every call takes other images of 50,000 random ones (what they show does not matter to a gather) and drops its
    output. The copy reads and writes an output's worth of memory: what no operator with a fresh output can beat.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8, generator=generator).to(args.device)
    planar = images.permute(0, 3, 1, 2).contiguous()  # torchvision's layout
    for batch in args.batch or (128, 512):
        index = torch.randperm(len(images), generator=generator)[: 50_000 // batch * batch].view(-1, batch)
        offset = torch.randint(0, 9, (*index.shape, 2), generator=generator)
        flip = torch.rand(index.shape, generator=generator) < 0.5
        draws = list(zip(*(t.to(args.device) for t in (index, offset, flip)), strict=True))
        for dtype in (torch.float32, torch.bfloat16):
            table = ops.make_table(MEAN, STD, dtype).to(args.device)
            contenders = contenders_of(images, planar, draws, table)
            same = partial(check, planar=planar, draw=draws[0])
            yield Case({"dtype": name_of(dtype), "batch": batch}, batch, contenders, same)


def contenders_of(
    images: Tensor, planar: Tensor, draws: list[tuple[Tensor, Tensor, Tensor]], table: Tensor
) -> dict[str, Callable[[], Call]]:
    """Each makes one batch a call. torchvision draws its own crops, as it does in use."""
    crop_and_flip = [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip()]
    first = v1.Compose([*crop_and_flip, v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)])
    crop_and_flip = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    second = v2.Compose([*crop_and_flip, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    made = ops.crop_flip(images, *draws[0], table, 4)

    def one_by_one(transform: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        return torch.stack([transform(planar[i]) for i in index.tolist()]).to(table.dtype)

    calls: dict[str, Callable[..., Tensor]] = {
        "ours": lambda *draw: ops.crop_flip(images, *draw, table, 4),
        "torchvision v1, image by image": lambda index, *_: one_by_one(first, index),
        "torchvision v2, image by image": lambda index, *_: one_by_one(second, index),
        "batched gather in torch": lambda *draw: batched_gather(images, *draw, table.dtype),
        "batched gather, flat index": lambda *draw: flat_gather(images, *draw, table.dtype),
        "reference": lambda *draw: reference.crop_flip(images, *draw, table, 4),
        "copy of a batch": lambda *_: made.clone(),
    }

    def over_all_draws(call: Callable[..., Tensor]) -> Call:
        draw = cycle(draws)
        return lambda: call(*next(draw))

    return {name: partial(over_all_draws, call) for name, call in calls.items()}


def batched_gather(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, dtype: torch.dtype) -> Tensor:
    """What one writes by hand: pad the batch, crop and flip it in one indexing, normalise."""
    padded, rows, columns = padded_batch(images, index, offset, flip)
    batch = torch.arange(len(index), device=images.device)[:, None, None]
    return normalised(padded[batch, rows[:, :, None], columns[:, None, :]], dtype)


def flat_gather(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, dtype: torch.dtype) -> Tensor:
    """The same for someone who has measured: torch's index_select of whole pixels is its fastest gather on a CPU."""
    padded, rows, columns = padded_batch(images, index, offset, flip)
    batch = torch.arange(len(index), device=images.device)[:, None, None]
    pixels = ((batch * 40 + rows[:, :, None]) * 40 + columns[:, None, :]).view(-1)
    return normalised(padded.view(-1, 3).index_select(0, pixels).view(-1, 32, 32, 3), dtype)


def padded_batch(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's images with their borders, and the rows [B, 32] and columns [B, 32] of each that are wanted."""
    step = torch.arange(32, device=images.device)
    columns = offset[:, 1:] + torch.where(flip[:, None], 31 - step, step)
    return torch.nn.functional.pad(images[index], (0, 0, 4, 4, 4, 4)), offset[:, :1] + step, columns


def normalised(cropped: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 32, 32, 3] to [B, 3, 32, 32] with the data set's mean and deviation taken out."""
    mean, std = (torch.tensor(values, device=cropped.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return cropped.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std).to(dtype)


def check(batches: dict[str, Tensor], planar: Tensor, draw: tuple[Tensor, Tensor, Tensor]) -> None:
    """All that take draws must make the same batch of the first, ours and the reference bit for bit; so torchvision."""
    ours = batches["ours"]
    for name in ("reference", "copy of a batch"):
        torch.testing.assert_close(batches[name], ours, rtol=0, atol=0)
    for name in ("batched gather in torch", "batched gather, flat index"):
        torch.testing.assert_close(batches[name], ours)
    for functional in (v1.functional, v2.functional):
        for out, i, (top, left), flip in zip(ours, *(t.tolist() for t in draw), strict=True):
            image = functional.crop(functional.pad(planar[i], [4]), top, left, 32, 32)
            image = (functional.hflip(image) if flip else image).float() / 255
            torch.testing.assert_close(out, functional.normalize(image, MEAN, STD).to(out.dtype))
