#!/usr/bin/env python
"""Evaluate trained networks: accuracy, loss and calibration, figures per class, and pictures of them.

    python eval.py                                    the newest run's last checkpoint, on its own test images
    python eval.py runs/resnet20-digits-1 --confusion --roc --reliability --worst 20
    python eval.py runs/resnet18-1 runs/resnet18-plain-1         one table and one figure that compare them
    python eval.py model.pt --data FOLDER --tta flip --json figures.json
    python eval.py runs/resnet18-part_B_final-1 --worst 4        a crowd's: MAE and MSE of the counts, and their maps

A checkpoint is all that is needed: it carries its options, classes, normalisation and weights. Recall, precision,
specificity, F1 and AUC (by softmax probability) are one class against all others, and scikit-learn's; a class that is
absent or never predicted has "undefined" ones. The expected calibration error is over 15 bins of confidence.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min.errors import UserError, run_script
from resnet_min.recipes import is_crowd

if TYPE_CHECKING:  # torch is imported where it is used, so that --help is quick
    from resnet_min.data import Split
    from resnet_min.metrics import Report

MOST_WORST = 100  # mistakes that one picture shows legibly


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "checkpoints", nargs="*", metavar="CKPT", help="checkpoints or run folders (default: newest run)"
    )
    parser.add_argument("--confusion", action="store_true", help="draw the confusion matrix")
    parser.add_argument("--roc", action="store_true", help="draw the ROC curve of each class against the rest")
    parser.add_argument(
        "--reliability", action="store_true", help="draw how often predictions of a confidence are right"
    )
    parser.add_argument(
        "--worst", type=int, metavar="N", help="draw the N mistakes it was most confident of, or the N worst counts"
    )
    parser.add_argument("--tta", choices=("flip",), help="mean logits of each image and its mirror image")
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
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the pictures (default: beside each checkpoint, and a comparison here)"
    )
    return parser


def evaluate(path: Path, name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate one checkpoint as `args` say: print and return its figures, draw what is asked into `folder`."""
    import torch

    from resnet_min import checkpoint, engine, metrics, ops
    from resnet_min.augment import Batches
    from resnet_min.evaluation import FlipAverage, load_split, predict
    from resnet_min.model import count_macs, count_parameters

    model, saved = checkpoint.load_model(path)
    config, classes = checkpoint.config_of(saved), saved["classes"]
    where = engine.hardware(args.device, args.amp or config.amp)
    if where.device.type == "cpu":
        engine.keep_freed_memory()
    net = f"{config.arch}{', plain' if config.plain else ''}"
    parameters = count_parameters(model)
    print(f"model: {net}, {config.stem} stem: {parameters:,} parameters, epoch {saved['epoch']}")
    source, split = load_split(
        config, classes, source=args.data, data_dir=args.data_dir, cache_dir=args.cache_dir, split=args.split
    )
    print(f"data: {source}: {len(split):,} {args.split} images; {len(classes)} classes")
    print(f"device: {where}{', channels_last' if config.channels_last else ''}")
    print(ops.backend_line(where.device), flush=True)

    model.to(where.device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    macs = count_macs(model, (config.input_size, config.input_size)) * (2 if args.tta else 1)  # of both views
    batches = Batches(
        split, batch_size=args.batch_size, mean=saved["mean"], std=saved["std"], resize=config.resize,
        device=where.device, dtype=where.dtype,
    )  # fmt: skip
    loss, logits, speed = predict(FlipAverage(model) if args.tta else model, batches, where)
    report = metrics.report(split.labels, logits, classes)
    print("", metrics.table(report), *(f"{kind}: {what}" for kind, what in metrics.AVERAGES.items()), sep="\n")
    right, total = int(report.confusion.trace()), int(report.confusion.sum())
    top5 = "" if report.top5 is None else f", top-5 {report.top5:.2f}%"
    views = ", each and its mirror image" if args.tta else ""
    print(
        f"\n{args.split} accuracy {report.accuracy:.2f}% ({right:,} of {total:,}{views}){top5}, loss {loss:.4f}, "
        f"expected calibration error {report.calibration.error:.2f}%, {speed:,.0f} images/s"
    )
    if args.tta and config.flip == 0:
        print("note: this network was trained without flips, so mirror images are strange to it")
    title = f"{net} on {Path(source).name}: {report.accuracy:.2f}% of {total:,} {args.split} images right"
    draw(report, split, logits, folder, "" if path.stem == "last" else f"{path.stem}-", title, args)
    return {
        "checkpoint": str(path), "name": name, "data": source, "split": args.split, "tta": args.tta, "loss": loss,
        "parameters": parameters, "macs": macs, "images_per_second": speed, **metrics.as_dict(report),
    }  # fmt: skip


def draw(
    report: Report, split: Split, logits: Any, folder: Path, prefix: str, title: str, args: argparse.Namespace
) -> None:
    """Draw what `args` ask for. `prefix` begins the files' names."""
    if not (args.confusion or args.roc or args.reliability or args.worst):
        return
    from resnet_min import metrics, pictures, plots

    probabilities, labels = metrics.softmax(logits), split.labels.numpy()
    if args.confusion:
        picture = folder / f"{prefix}confusion.png"
        plots.confusion(report.confusion, report.classes, picture, title=title)
        print(f"confusion matrix: {picture}")
    if args.roc:
        picture = folder / f"{prefix}roc.png"
        plots.roc(report, labels, probabilities, picture, title=title)
        print(f"ROC curves: {picture}")
    if args.reliability:
        picture = folder / f"{prefix}reliability.png"
        plots.reliability(report.calibration, picture, title=title)
        print(f"reliability diagram: {picture}")
    if args.worst:
        picture = folder / f"{prefix}worst.png"
        predicted = probabilities.argmax(axis=1)
        worst = metrics.worst(labels, probabilities, args.worst)
        if not len(worst):
            print("no mistakes, so no picture of them")
            return
        shown = [
            pictures.Panel(
                split.images[i].numpy(),
                f"{plots.shorten(report.classes[labels[i]])} →\n"
                f"{plots.shorten(report.classes[predicted[i]], 14)} {100 * probabilities[i, predicted[i]]:.1f}%",
            )
            for i in worst.tolist()
        ]
        columns = max(4, math.ceil(math.sqrt(1.5 * len(shown))))
        rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
        title += "\nthe mistakes it was most confident of: true class → predicted class, its probability"
        pictures.panels(rows, picture, title=title)
        fewer = f" (all {len(worst)} there are)" if len(worst) < args.worst else ""
        print(f"most confident mistakes: {picture}{fewer}")


def evaluate_crowd(path: Path, name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`evaluate` for a checkpoint that counts crowds."""
    from time import perf_counter

    import torch

    from resnet_min import checkpoint, crowd, engine, ops
    from resnet_min.model import count_macs, count_parameters

    for option in ("confusion", "roc", "reliability", "tta"):
        if getattr(args, option):
            raise UserError(f"--{option} is for classifiers; {path} counts crowds")
    model, saved = checkpoint.load_model(path, "crowd")
    config, parameters = checkpoint.config_of(saved), count_parameters(model)
    where = engine.hardware(args.device, args.amp or config.amp)
    print(f"model: {config.arch}, {config.head} head: {parameters:,} parameters, epoch {saved['epoch']}")
    dataset = crowd.load(
        args.data or config.data,
        cache_dir=args.cache_dir or config.cache_dir,
        val_size=config.val_size if args.split == "val" else 0,
        seed=config.split_seed,
    )
    split = getattr(dataset, args.split)
    if split is None:
        raise UserError(f"{dataset.source} has no validation images: the run held none out")
    print(f"data: {dataset.source}: {len(split):,} {args.split} images; {int(split.counts.sum()):,} heads")
    print(f"device: {where}{', channels_last' if config.channels_last else ''}")
    print(ops.backend_line(where.device), flush=True)

    model.to(where.device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    images = dict(mean=saved["mean"], std=saved["std"], device=where.device, dtype=where.dtype)
    began = perf_counter()
    mae, mse, predicted = crowd.evaluate(model, crowd.Whole(split, **images).ordered(), where)
    speed = len(split) / (perf_counter() - began)
    print(f"\n{args.split} MAE {mae:.2f}, MSE {mse:.2f} (root of the mean squared count error), {speed:,.1f} images/s")
    print(crowd.say_constants(dataset, split))
    if args.worst:
        from resnet_min import crowd_pictures

        worst = (predicted - split.counts).abs().argsort(descending=True)[: args.worst].tolist()
        part = split.subset(worst)
        with torch.inference_mode():
            maps = [crowd.density(model, image, where)[0].cpu() for image, _ in crowd.Whole(part, **images).ordered()]
        picture = folder / f"{'' if path.stem == 'last' else f'{path.stem}-'}worst.png"
        title = (
            f"{config.arch} on {dataset.name}: the worst of {len(split)} {args.split} images; MAE {mae:.2f} over all"
        )
        crowd_pictures.maps(part, maps, model.stride, config.sigma, picture, title=title)
        print(f"worst images: {picture}")
    return {
        "checkpoint": str(path), "name": name, "data": dataset.source, "split": args.split, "mae": mae, "mse": mse,
        "parameters": parameters, "macs": count_macs(model, tuple(split.images[0].shape[:2])),
        "images_per_second": speed,
        "constants": {
            said: {"count": count, "mae": mae, "mse": mse}
            for said, (count, mae, mse) in crowd.constants(dataset, split).items()
        },
        "images": [
            {"image": image, "heads": int(true), "predicted": count}
            for image, true, count in zip(split.names, split.counts.tolist(), predicted.tolist(), strict=True)
        ],
    }  # fmt: skip


def compare(results: list[dict[str, Any]], picture: Path) -> None:
    """One table and one figure of several checkpoints' figures."""
    from resnet_min import plots

    sources = {figures["data"] for figures in results}
    rows = {
        figures["name"] + (f" on {Path(figures['data']).name}" if len(sources) > 1 else ""): figures
        for figures in results
    }
    columns = ("accuracy", "loss", "calibration error", "macro AUC", "parameters", "MACs", "images/s")
    width = max(map(len, rows))
    print(f"\n{'network':{width}}" + "".join(f"  {column:>{max(9, len(column))}}" for column in columns))
    for label, row in rows.items():
        auc = row["macro"]["auc"]
        cells = (
            f"{row['accuracy']:.2f}%", f"{row['loss']:.4f}", f"{row['calibration_error']:.2f}%",
            "undefined" if auc is None else f"{auc:.4f}", f"{row['parameters']:,}", f"{row['macs'] / 1e6:,.1f}M",
            f"{row['images_per_second']:,.0f}",
        )  # fmt: skip
        shown = (f"  {cell:>{max(9, len(column))}}" for cell, column in zip(cells, columns, strict=True))
        print(f"{label:{width}}" + "".join(shown))
    if len(sources) > 1:
        print("their images differ, so their accuracies do not compare")
    split, where = results[0]["split"], Path(results[0]["data"]).name if len(sources) == 1 else "its own data"
    title = f"{len(results)} networks, each on the {split} images of {where}"
    plots.comparison(rows, picture, title=title)
    print(f"comparison: {picture}")


def compare_crowds(results: list[dict[str, Any]]) -> None:
    """One table of several checkpoints' figures."""
    width = max(len(row["name"]) for row in results)
    print(f"\n{'network':{width}}  {'MAE':>7}  {'MSE':>7}  {'parameters':>11}  {'MACs':>10}  {'images/s':>8}")
    for row in results:
        print(
            f"{row['name']:{width}}  {row['mae']:>7.2f}  {row['mse']:>7.2f}  {row['parameters']:>11,}  "
            f"{row['macs'] / 1e6:>9,.0f}M  {row['images_per_second']:>8.1f}"
        )


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1; got {args.batch_size}")
    if args.worst is not None and not 1 <= args.worst <= MOST_WORST:
        raise UserError(f"--worst draws 1 to {MOST_WORST} images; got {args.worst}")

    from resnet_min import checkpoint, ops, run

    ops.set_backend(args.kernels)
    paths = list(dict.fromkeys(checkpoint.find(name) for name in args.checkpoints or [None]))
    names = run.names([path.parent if path.name == "last.pt" else path for path in paths])
    # The data decides where it is named: a checkpoint that is not for it is then refused.
    counts = is_crowd(args.data) if args.data else checkpoint.config_of(checkpoint.load(paths[0])).task == "crowd"
    judge = evaluate_crowd if counts else evaluate
    results = []
    for path, name in zip(paths, names, strict=True):
        print(("\n" if results else "") + f"checkpoint: {path}{'' if args.checkpoints else ' (the newest run)'}")
        folder = Path(args.out) if args.out else path.parent
        if args.out and len(paths) > 1:  # a folder each
            folder /= name.strip("/").replace("/", "-")
        results.append(judge(path, name, folder, args))
    if len(results) > 1 and counts:
        compare_crowds(results)
    elif len(results) > 1:
        compare(results, Path(args.out or "", "comparison.png"))
    if args.json:
        figures = results if len(results) > 1 else results[0]
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"figures: {args.json}")


if __name__ == "__main__":
    run_script(main)
