"""Classification as a task."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import data
from ...data import Dataset, Split
from ...data.batches import Batches
from ...data.decode import pixels
from ...data.preprocessing import Preprocessing
from ...data.sources import NEEDED
from ...errors import UserError
from ...model import ResNet, check_finite, count_macs, count_parameters
from ...training.hardware import Hardware
from ..task import Answer, Evaluation, Task, backbone, with_bar
from . import report, shift
from .options import ClassifyConfig

SAID = 3  # classes that an answer names


class Classify(Task):
    """Images to classes: cross-entropy, accuracy in percent."""

    config: ClassifyConfig

    def load(self, needed: Collection[str] = NEEDED) -> Dataset:
        config = self.config
        return data.load(
            config.data, data_dir=config.data_dir, cache_dir=config.cache_dir, image_size=config.image_size,
            val_size=config.val_size, seed=config.split_seed, limit=config.limit, train_share=config.train_share,
            needed=needed, normalised=bool(config.mean and config.std),
        )  # fmt: skip

    def read(self, file: str) -> Split:
        image = torch.tensor(pixels(file, self.config.image_size or 32))
        return Split(image[None], torch.tensor([-1]))

    def build(self, classes: Sequence[str]) -> ResNet:
        """The network, which can `predict` where the options say how images are normalised."""
        config = self.config
        net = backbone(config, len(classes), config.dropout)
        net.classes = tuple(classes)
        if config.mean and config.std:
            net.preprocessing = Preprocessing(config.mean, config.std, config.image_size or 32, config.resize)
        return net

    def batches(self, split: Split, where: Hardware, batch_size: int | None = None) -> Batches:
        config = self.config
        if config.grow and not batch_size and len(split) % config.batch_size == 1:
            raise UserError(
                f"--batch-size {config.batch_size} leaves one image in the last batch, which may be too small for "
                "batch norm while the images --grow: choose another size"
            )
        drawn = {} if batch_size else dict(
            padding=config.padding, flip=config.flip, rotation=config.rotation, grow=config.grow, epochs=config.epochs,
        )  # fmt: skip
        return Batches(
            split, batch_size=batch_size or config.batch_size, mean=config.mean, std=config.std, resize=config.resize,
            device=where.device, dtype=where.dtype, seed=config.seed, part=where.world.part, **drawn,
        )  # fmt: skip

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(cross-entropy, 100 for each image that is right and 0 for the others)"""
        loss = F.cross_entropy(outputs, targets, label_smoothing=self.config.label_smoothing)
        return loss, 100 * (outputs.argmax(1) == targets)

    def judge(self, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> dict[str, float]:
        loss, accuracy, _ = predict(net, batches, where)
        return {"loss": loss, "accuracy": accuracy}

    def evaluate(
        self,
        net: nn.Module,
        dataset: Dataset,
        split: str,
        where: Hardware,
        options: argparse.Namespace,
        picture_of: Callable[[str], Path],
    ) -> Evaluation:
        from . import pictures  # which need matplotlib; a network that serves does not

        images, config = dataset.splits[split], self.config
        shifted = options.corrupt is not None and shift.variants(images, options.corrupt, len(dataset.classes))
        net = FlipAverage(net) if options.tta else net
        batches = self.batches(images, where, options.batch_size)
        macs = count_macs(net, batches.size)  # of both views
        predict(net, islice(batches.ordered(), 1), where)  # what a library sets up for it is not in the images/s
        began = perf_counter()
        loss, _, logits = predict(net, with_bar(batches, where), where)
        speed = len(images) / (perf_counter() - began)

        found = report.report(images.labels, logits, dataset.classes)
        averages = (f"{average}: {what}" for average, what in report.AVERAGES.items())
        print("", report.table(found), *averages, sep="\n")
        right, total = int(found.confusion.trace()), int(found.confusion.sum())
        top5 = "" if found.top5 is None else f", top-5 {found.top5:.2f}%"
        views = ", each and its mirror image" if options.tta else ""
        print(
            f"\n{split} accuracy {found.accuracy:.2f}% ({right:,} of {total:,}{views}){top5}, loss {loss:.4f}, "
            f"expected calibration error {found.calibration.error:.2f}%, {speed:,.0f} images/s"
        )
        if options.tta and config.flip == 0:
            print("note: this network was trained without flips and has never seen mirror images")
        title = f"{config.network} on {dataset.name}: {found.accuracy:.2f}% of {total:,} {split} images right"
        title = options.title or title
        if where.world.first:
            pictures.draw(found, images, logits, picture_of, options, title)
        figures = {"tta": options.tta, "loss": loss, "parameters": count_parameters(net), "macs": macs}
        figures |= {"images_per_second": speed, **report.as_dict(found)}
        tables = {"Figures of each class": report.cells(found)}
        if shifted:
            figures["corruptions"] = rows = self._under_shift(net, shifted, where, options.batch_size)
            tables["Accuracy under shift"] = shown = shift.table(rows, figures)
            print("", *(f"{name:20}" + "".join(f"{cell:>12}" for cell in cells) for name, *cells in shown), sep="\n")
            if where.world.first:
                pictures.corruptions(rows, figures, picture_of("corruptions"), title=title)
                print(f"accuracy under shift: {picture_of('corruptions')}")
        auc = figures["macro"]["auc"]
        columns = {
            "accuracy": f"{found.accuracy:.2f}%",
            "loss": f"{loss:.4f}",
            "calibration error": f"{found.calibration.error:.2f}%",
            "macro AUC": "undefined" if auc is None else f"{auc:.4f}",
        }
        return Evaluation(figures, columns, tables)

    def _under_shift(
        self, net: nn.Module, shifted: Iterable[tuple[str, int, Split]], where: Hardware, batch_size: int
    ) -> list[dict[str, Any]]:
        """Accuracy and calibration error of each corruption and severity."""
        rows = []
        for name, severity, some in shifted:
            batches = self.batches(some, where, batch_size)
            _, accuracy, logits = predict(net, with_bar(batches, where, f"{name} {severity}"), where)
            probabilities = report.softmax(logits)
            right = probabilities.argmax(1) == some.labels.numpy()
            error = report.calibrate(right, probabilities.max(1)).error
            rows.append({"corruption": name, "severity": severity, "accuracy": accuracy, "calibration_error": error})
        return rows

    def answer(
        self,
        net: nn.Module,
        images: Iterable[tuple[str, Split]],
        classes: Sequence[str],
        where: Hardware,
        batch_size: int = 1,
        picture: Path | None = None,
    ) -> Iterator[Answer]:
        if picture is not None:
            from . import pictures
        images = iter(images)
        while some := list(islice(images, batch_size)):
            splits = [split for _, split in some]
            together = Split(torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits]))
            logits, labels = outputs(net, self.batches(together, where, batch_size).ordered(), where)
            check_finite(logits)
            rows = zip(some, labels.tolist(), logits.softmax(1).cpu(), strict=True)
            for (name, split), label, shares in rows:
                best = shares.topk(min(SAID, len(classes))).indices.tolist()
                said = [f"{classes[index]} ({100 * shares[index]:.1f}%)" for index in best]
                true = "" if label < 0 else f" ({classes[label]})"
                caption = f"{name}{true}: predicted {said[0]}"
                if picture is not None:
                    pictures.answer(split.images[0], shares, classes, picture, title=caption)
                probabilities = dict(zip(classes, shares.tolist(), strict=True))
                figures = {"predicted": classes[best[0]], "probabilities": probabilities}
                yield Answer(caption, "".join(f", {words}" for words in said[1:]), figures)


class FlipAverage(nn.Module):
    """A network whose logits are the mean of those for each image and for its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return (self.model(x) + self.model(x.flip(3))) / 2


@torch.inference_mode()
def predict(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> tuple[float, float, Tensor]:
    """One pass over all processes' `batches` (images [B, 3, H, W], labels [B]) in eval mode.

    Returns (mean cross-entropy, accuracy in percent, logits [N, classes] float32 on the CPU).
    """
    logits, labels = outputs(net, batches, where)
    loss = F.cross_entropy(logits, labels).item()
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    return loss, accuracy, logits.cpu()


@torch.inference_mode()
def outputs(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> tuple[Tensor, Tensor]:
    """(logits float32 [N, classes], labels [N]) of all processes' `batches` in eval mode, on their device."""
    net.eval()
    logits, labels = [], []
    for images, target in batches:
        with where.autocast():
            logits.append(net(images).float())
        labels.append(target)
    return torch.cat(where.world.gathered(logits)), torch.cat(where.world.gathered(labels))
