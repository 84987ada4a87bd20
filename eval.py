#!/usr/bin/env python
"""Evaluate a trained network: accuracy and loss, figures per class, the confusion matrix as a picture.

    python eval.py                                    the newest run's last checkpoint, on its own test images
    python eval.py runs/resnet20-digits-1 --confusion
    python eval.py model.pt --data FOLDER --json figures.json

A checkpoint is all that is needed: it carries its options, classes, normalisation and weights. Recall, precision,
specificity and F1 are one class against all others; a class that is absent or never predicted has "undefined" ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min.errors import UserError, run_script

if TYPE_CHECKING:  # torch is imported where it is used, so that --help is quick
    from resnet_min.config import Config
    from resnet_min.data import Split


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", nargs="?", metavar="CKPT", help="checkpoint or run folder (default: newest run)")
    parser.add_argument("--confusion", action="store_true", help="draw the confusion matrix")
    parser.add_argument("--data", help="evaluate on this data set, of the same classes (default: the run's own)")
    parser.add_argument("--data-dir", help="where named data sets are (default: the run's own)")
    parser.add_argument("--cache-dir", help="where decoded images are kept (default: the run's own)")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="images to use (default: test)")
    parser.add_argument(
        "-b", "--batch-size", type=int, default=256, metavar="N", help="images at a time (default: 256)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), help="bf16 autocast (default: as in training)")
    parser.add_argument("--kernels", choices=("auto", "extension", "reference"), default="auto", help="(default: auto)")
    parser.add_argument("--json", metavar="FILE", help="write every figure to this file")
    parser.add_argument("--out", metavar="DIR", help="folder of the pictures (default: beside the checkpoint)")
    return parser


def load_split(config: Config, classes: list[str], args: argparse.Namespace) -> tuple[str, Split]:
    """(source, images and labels) to evaluate on. Raises UserError where the classes are not those trained on."""
    from resnet_min import data

    dataset = data.load(
        args.data or config.data,
        data_dir=args.data_dir or config.data_dir,
        cache_dir=args.cache_dir or config.cache_dir,
        image_size=config.image_size,
        val_size=config.val_size if args.split == "val" else 0,  # the test images are the same either way
        seed=config.seed,
    )
    if list(dataset.classes) != list(classes):
        raise UserError(
            f"the classes of {dataset.source} are not those trained on: it has {_some(dataset.classes)}; "
            f"the checkpoint has {_some(classes)}"
        )
    split = getattr(dataset, args.split)
    if split is None:
        raise UserError(f"{dataset.source} has no validation images: the run held none out, and there is no val/")
    return dataset.source, split


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:12])}{', …' if len(names) > 12 else ''})"


def evaluate(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate one checkpoint as `args` say, print its figures, draw what is asked, and return the figures."""
    import torch

    from resnet_min import checkpoint, engine, metrics, ops
    from resnet_min.augment import Batches
    from resnet_min.model import count_parameters

    model, saved = checkpoint.load_model(path)
    config, classes = checkpoint.config_of(saved), saved["classes"]
    where = engine.hardware(args.device, args.amp or config.amp)
    name = f"{config.arch}{', plain' if config.plain else ''}"
    print(f"model: {name}, {config.stem} stem: {count_parameters(model):,} parameters, epoch {saved['epoch']}")
    source, split = load_split(config, classes, args)
    print(f"data: {source}: {len(split):,} {args.split} images; {len(classes)} classes")
    print(f"device: {where}{', channels_last' if config.channels_last else ''}")
    print(ops.backend_line(where.device), flush=True)

    model.to(where.device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    batches = Batches(
        split, batch_size=args.batch_size, mean=saved["mean"], std=saved["std"], device=where.device, dtype=where.dtype
    )
    loss, _, logits = engine.evaluate(model, batches.ordered(), where)
    report = metrics.report(split.labels, logits, classes)
    print(f"\n{metrics.table(report)}\n")
    right, total = int(report.confusion.trace()), int(report.confusion.sum())
    top5 = "" if report.top5 is None else f", top-5 {report.top5:.2f}%"
    print(f"{args.split} accuracy {report.accuracy:.2f}% ({right:,} of {total:,}){top5}, loss {loss:.4f}")
    if args.confusion:
        from resnet_min import plots

        picture = (Path(args.out) if args.out else path.parent) / "confusion.png"
        title = f"{name} on {Path(source).name}: {report.accuracy:.2f}% of {total:,} {args.split} images right"
        plots.confusion(report.confusion, classes, picture, title=title)
        print(f"confusion matrix: {picture}")
    return {"checkpoint": str(path), "data": source, "split": args.split, "loss": loss, **metrics.as_dict(report)}


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1; got {args.batch_size}")

    from resnet_min import checkpoint, ops

    ops.set_backend(args.kernels)
    path = checkpoint.find(args.checkpoint)
    print(f"checkpoint: {path}{' (the newest run)' if args.checkpoint is None else ''}")
    figures = evaluate(path, args)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"figures: {args.json}")


if __name__ == "__main__":
    run_script(main)
