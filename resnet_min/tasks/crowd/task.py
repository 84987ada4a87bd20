"""Crowd counting as a task."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.sources import NEEDED
from ...model import check_finite, count_macs, count_parameters
from ...training.hardware import Hardware
from ..task import Answer, Evaluation, Task, Weightless, backbone, with_bar
from . import pictures, reader
from .batches import Batches, Whole
from .net import MAP_SCALE, CrowdNet
from .options import CrowdConfig
from .reader import Crowd, Split


class Crowds(Task):
    """Images to density maps: mean squared error of the maps, errors of the counts."""

    config: CrowdConfig

    def load(self, needed: Collection[str] = NEEDED) -> Crowd:
        config = self.config
        return reader.load(
            config.data,
            cache_dir=config.cache_dir,
            val_size=config.val_size,
            seed=config.split_seed,
            limit=config.limit,
            train_share=config.train_share,
            needed=needed,
        )

    def read(self, file: str) -> Split:
        return reader.read_image(file)

    def build(self, classes: Sequence[str]) -> CrowdNet:
        return CrowdNet(backbone(self.config, num_classes=1), self.config.head)

    def batches(self, split: Split, where: Hardware, batch_size: int | None = None) -> Batches | Whole:
        """To evaluate on, whole images one by one: they have sizes of their own."""
        config = self.config
        common = dict(mean=config.mean, std=config.std, device=where.device, dtype=where.dtype, part=where.world.part)
        if batch_size:
            return Whole(split, **common)
        return Batches(
            split, batch_size=config.batch_size, crop=config.crop, zoom=config.zoom, flip=config.flip,
            sigma=config.sigma, stride=self.stride, seed=config.seed, **common,
        )  # fmt: skip

    @property
    def stride(self) -> int:
        """Pixels of a cell of the network's maps, in both directions."""
        with Weightless():
            return self.build(()).stride

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss of the maps + count_weight × mean absolute error of the counts, each of the latter)

        Of the maps it is the mean squared error, at `MAP_SCALE`; or as Zhang et al. have it, half the squared distance
        of the densities themselves, summed over pixels, mean over images.
        """
        off = ((outputs - targets).sum((1, 2, 3)) / MAP_SCALE).abs()
        if self.config.loss == "zhang":
            loss = ((outputs - targets) / MAP_SCALE).square().sum((1, 2, 3)).mean() / 2
        else:
            loss = F.mse_loss(outputs, targets)
        return loss + self.config.count_weight * off.mean(), off.detach()

    def judge(self, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> dict[str, float]:
        mae, mse, _ = count(net, batches, where)
        return {"mae": mae, "mse": mse}

    def evaluate(
        self,
        net: nn.Module,
        dataset: Crowd,
        split: str,
        where: Hardware,
        options: argparse.Namespace,
        picture_of: Callable[[str], Path],
    ) -> Evaluation:
        images, config = dataset.splits[split], self.config
        batches = self.batches(images, where, options.batch_size)
        began = perf_counter()
        mae, mse, predicted = count(net, with_bar(batches, where), where)
        speed = len(images) / (perf_counter() - began)
        print(f"heads: {int(images.counts.sum()):,} in these images")
        print(f"\n{split} MAE {mae:.2f}, MSE {mse:.2f} (root of the mean squared count error), {speed:,.1f} images/s")
        for line in reader.say_constants(dataset, images):
            print(line)
        if options.worst and where.world.first:
            worst = images.subset((predicted - images.counts).abs().argsort(descending=True)[: options.worst].tolist())
            with torch.inference_mode():
                shown = self.batches(worst, where.alone(), 1).ordered()
                maps = [density(net, image, where)[0].cpu() for image, _ in shown]
            title = (
                f"{config.arch} on {dataset.name}: the worst of {len(images)} {split} images; MAE {mae:.2f} over all"
            )
            picture = picture_of("worst")
            pictures.maps(worst, maps, net.stride, config.sigma, picture, title=options.title or title)
            print(f"worst images: {picture}")
        constants = reader.constants(dataset, images).items()
        per_image = zip(images.names, images.counts.tolist(), predicted.tolist(), strict=True)
        figures = {
            "mae": mae, "mse": mse, "parameters": count_parameters(net), "macs": count_macs(net, batches.size),
            "images_per_second": speed,
            "constants": {said: {"count": heads, "mae": mae, "mse": mse} for said, (heads, mae, mse) in constants},
            "images": [{"image": name, "heads": int(true), "predicted": heads} for name, true, heads in per_image],
        }  # fmt: skip
        said = [
            (f"always the {what}, {value['count']:.1f} heads", value) for what, value in figures["constants"].items()
        ]
        rows = [
            [what, f"{value['mae']:.2f}", f"{value['mse']:.2f}"] for what, value in (("this network", figures), *said)
        ]
        tables = {"Errors of the count, beside those who never look": [["predictor", "MAE", "MSE"], *rows]}
        return Evaluation(figures, {"MAE": f"{mae:.2f}", "MSE": f"{mse:.2f}"}, tables)

    @torch.inference_mode()
    def answer(
        self,
        net: nn.Module,
        images: Iterable[tuple[str, Split]],
        classes: Sequence[str],
        where: Hardware,
        batch_size: int = 1,
        picture: Path | None = None,
    ) -> Iterator[Answer]:
        """One by one: they have sizes of their own."""
        for name, split in images:
            ((x, _),) = self.batches(split, where, batch_size=1).ordered()
            predicted = density(net, x, where)[0].cpu()
            check_finite(predicted)
            heads = predicted.sum(dtype=torch.float64).item()
            (points,) = split.points
            caption, figures = f"{name}: {heads:.1f} heads predicted", {"predicted": heads}
            if points is not None:
                caption += f", {len(points)} marked in its annotation"
                figures["heads"] = len(points)
            if picture is not None:
                pictures.overlay(split.images[0], predicted, net.stride, points, picture, title=caption)
            yield Answer(caption, "", figures)


@torch.inference_mode()
def count(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> tuple[float, float, Tensor]:
    """One pass over all processes' `batches` (images [B, 3, H, W], counts [B]) in eval mode.

    Returns (MAE, MSE, predicted counts, float64 [N] on the CPU); see `reader.errors`.
    """
    net.eval()
    predicted, true = [], []
    for images, counts in batches:
        predicted.append(density(net, images, where).sum((1, 2), dtype=torch.float64).cpu())
        true.append(counts)
    predicted, true = (torch.cat(where.world.gathered(part)) for part in (predicted, true))
    return *reader.errors(predicted, true), predicted


def density(net: nn.Module, images: Tensor, where: Hardware) -> Tensor:
    """The predicted density maps of `images` [B, 3, H, W], which sum to their counts: float32 [B, h, w]."""
    with where.autocast():
        return net(images)[:, 0].float() / MAP_SCALE
