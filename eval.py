#!/usr/bin/env python
"""Evaluate trained networks: figures and plots.

    python eval.py                                    the newest run's last checkpoint, on its own test images
    python eval.py runs/resnet20-digits-1 --confusion --roc --reliability --worst 20
    python eval.py runs/resnet18-1 runs/resnet18-plain-1         one table and one figure that compare them
    python eval.py runs/A runs/B --report page.html   everything about them in one file, side by side
    python eval.py model.pt --data FOLDER --tta flip --json figures.json
    python eval.py runs/resnet18-part_B_final-1 --worst 4        crowd counting: MAE, MSE and density maps
    python eval.py runs/resnet20-digits-1 --images a.jpg FOLDER  what it says of your own images, of any size
    python eval.py --weights cifar10 --data FOLDER               trained weights that come with the package
    torchrun --nproc-per-node 2 eval.py runs/resnet18-1          several processes share the images

A checkpoint contains everything needed: options, classes, normalisation and weights. Recall, precision,
specificity, F1 and AUC are of each class against all others, and scikit-learn's; a class that is absent or never
predicted has "undefined" ones. The expected calibration error is over 15 bins of confidence.

With --images, what cannot be read is named and passed over; the exit code is 2 where nothing could be read.
"""

from __future__ import annotations

from resnet_min.errors import UserError, leave_on_interrupt, run_script

if __name__ == "__main__":
    leave_on_interrupt()

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min.commands import Parser, check_place, ending_in
from resnet_min.config import counted, flag
from resnet_min.files import printable, write_whole
from resnet_min.tasks import TASKS

if TYPE_CHECKING:
    from resnet_min.config import Figure
    from resnet_min.tasks.options import TaskConfig
    from resnet_min.tasks.task import Evaluation, Split
    from resnet_min.tasks.trained import Trained
    from resnet_min.training.distributed import World
    from resnet_min.training.hardware import Hardware

MOST_WORST = 100  # images that one picture shows legibly


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "checkpoints", nargs="*", metavar="CKPT", help="checkpoints or run folders (default: newest run)"
    )
    parser.add_argument("--weights", metavar="NAME", help="also trained weights that come with the package: cifar10, …")
    parser.add_argument("--worst", type=int, metavar="N", help="draw the N worst mistakes")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="answer for these images instead: files, or folders with all below"
    )
    parser.add_argument("--data", help="evaluate on this data set, of the same classes (default: the run's own)")
    parser.add_argument("--data-dir", help="where named data sets are (default: the run's own)")
    parser.add_argument("--cache-dir", help="cache for decoded images (default: the run's own)")
    parser.add_argument("--split", choices=("test", "val"), help="images to use (default: test)")
    parser.add_argument("-b", "--batch-size", type=int, default=256, metavar="N", help="batch size (default: 256)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), help="bf16 autocast (default: as in training)")
    parser.add_argument("--kernels", choices=("auto", "extension", "reference"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--json", type=ending_in(".json"), metavar="FILE", help="write every figure, or every answer, to this .json"
    )
    parser.add_argument(
        "--report", type=ending_in(".html"), metavar="FILE", help="draw everything, and put it into this one .html"
    )
    parser.add_argument("--title", help="the pictures' title (default: what they show)")
    parser.add_argument("--label", nargs="+", metavar="NAME", help="what to call the networks, in their order")
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png", help="of the pictures (default: png)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the pictures (default: beside each checkpoint; of --weights, and comparisons, here)",
    )
    for name, config in TASKS.items():
        group = parser.add_argument_group(f"options of --task {name}") if config.evaluation else parser
        for option, how in config.evaluation.items():
            group.add_argument(f"--{option}", **how)
    return parser


def refuse_foreign(args: argparse.Namespace, task: str, path: Path) -> None:
    """Raise UserError where a flag was given that belongs to another task than the checkpoint's."""
    for name, config in TASKS.items():
        for option in config.evaluation.keys() - TASKS[task].evaluation.keys():
            if getattr(args, option) not in (None, False):
                raise UserError(f"--{option} is for --task {name}; {path} is of --task {task}")


def refuse_beside_images(args: argparse.Namespace) -> None:
    """Raise UserError where a flag was given that would change nothing beside --images."""
    others = ["data", "data_dir", "cache_dir", "split", "worst", "out", "title", "label", "report"]
    others += [option for config in TASKS.values() for option in config.evaluation]
    if given := [flag(option) for option in others if getattr(args, option) not in (None, False)]:
        raise UserError(f"{', '.join(given)} would change nothing: --images only says what the network answers")
    if (count := len(args.checkpoints) + (args.weights is not None)) > 1:
        raise UserError(f"--images asks one network; got {count} checkpoints")


def answer(args: argparse.Namespace, subject: Trained, where: Hardware) -> None:
    """What the network says of --images: printed, and written to --json."""
    from resnet_min.data.sources import image_files

    rows: list[dict[str, Any]] = []  # of every image in order, with its answer or why there is none
    waiting: deque[dict[str, Any]] = deque()  # those that are read and not yet answered

    def readable() -> Iterator[tuple[str, Split]]:
        for path in args.images:
            try:
                files = image_files(path) if Path(path).is_dir() else [path]
            except UserError as error:
                rows.append({"image": path, "error": str(error)})
                continue
            for file in files:
                rows.append({"image": file})
                try:
                    image = subject.task.read(file)
                except UserError as error:
                    rows[-1]["error"] = str(error)
                else:
                    waiting.append(rows[-1])
                    yield file, image

    print()
    for said in subject.task.answer(subject.net, readable(), subject.classes, where, args.batch_size):
        print(printable(said.caption + said.more))
        waiting.popleft().update(said.figures)
    failed = [row["error"] for row in rows if "error" in row]
    if args.json:
        content = {"checkpoint": str(subject.path), "classes": list(subject.classes), "images": rows}
        write_whole(args.json, json.dumps(content, indent=1) + "\n")
        print(f"answers: {args.json}")
    if len(rows) == len(failed) == 1:
        raise UserError(failed[0])
    for error in failed:
        print(f"skipped: {printable(error)}", file=sys.stderr)
    if len(rows) == len(failed):
        raise UserError(f"none of the {len(rows)} images could be read")
    print(f"{len(rows) - len(failed):,} answered, {len(failed):,} skipped")


def table_of(results: dict[str, Evaluation]) -> list[list[str]]:
    """A head, and a row for each network, by its name."""
    rows = {
        name: {
            **result.columns,
            "parameters": f"{result.figures['parameters']:,}",
            "MACs": f"{result.figures['macs'] / 1e6:,.1f}M",
            "images/s": f"{result.figures['images_per_second']:,.0f}",
        }
        for name, result in results.items()
    }
    return [["network", *next(iter(rows.values()))], *([name, *row.values()] for name, row in rows.items())]


def print_table(rows: list[list[str]]) -> None:
    """Rows of cells, aligned."""
    wide, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    for name, *cells in rows:
        print(
            f"{name:{wide}}" + "".join(f"  {cell:>{max(9, width)}}" for cell, width in zip(cells, widths, strict=True))
        )


class Pictures:
    """Where pictures go: beside another checkpoint than a run's last, under that one's name. `drawn` has them all."""

    def __init__(self, folder: Path, prefix: str, kind: str) -> None:
        self.folder, self.prefix, self.kind = folder, prefix, kind
        self.drawn: dict[str, Path] = {}

    def __call__(self, what: str) -> Path:
        return self.drawn.setdefault(what, self.folder / f"{self.prefix}{what}.{self.kind}")


def names_of(names: Sequence[str], sources: Sequence[str]) -> list[str]:
    """What to call networks in the table: with their data, where that differs."""
    if len(set(sources)) == 1:
        return list(names)
    return [f"{name} on {Path(source).name}" for name, source in zip(names, sources, strict=True)]


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1; got {args.batch_size}")
    if args.images:
        refuse_beside_images(args)
    if args.worst is not None and not 1 <= args.worst <= MOST_WORST:
        raise UserError(f"--worst draws 1 to {MOST_WORST} images; got {args.worst}")

    from resnet_min.runs.folder import FILES
    from resnet_min.training import distributed

    if args.report and args.format == "pdf":
        raise UserError("--report puts pictures into a page: --format png or svg")
    for file in filter(None, (args.json, args.report)):
        if Path(file).name in FILES:
            raise UserError(f"{file}: a run keeps a file of its own by that name; choose another")
        check_place(file)
    with distributed.joined() as world:
        evaluate(args, world)


def everything(args: argparse.Namespace, config: TaskConfig) -> argparse.Namespace:
    """The options with every picture of the task asked for."""
    flags = {name: True for name, how in config.evaluation.items() if how.get("action") == "store_true"}
    return argparse.Namespace(**{**vars(args), **flags, "worst": args.worst or config.reported})


def draw_logs(paths: dict[str, Path], folder: Path, kind: str, judged_by: Figure) -> dict[str, Path]:
    """Draw the curves of runs over each other: what is drawn -> its file. Nothing where one has no log."""
    from resnet_min.runs.folder import from_start, read_rows
    from resnet_min.viz import figures

    drawn = {}
    curves = partial(figures.curves, judged_by=judged_by)
    draws = {"curves": ("metrics.jsonl", curves), "steps": ("steps.jsonl", figures.steps)}
    for what, (log, draw) in draws.items():
        if all((path.parent / log).is_file() for path in paths.values()):
            drawn[what] = folder / f"{what}.{kind}"
            logs = {name: read_rows(path, log) for name, path in paths.items()}
            if what == "curves":
                logs = {
                    name: from_start(path, rows)
                    for (name, rows), path in zip(logs.items(), paths.values(), strict=True)
                }
            draw(logs, drawn[what])
    return drawn


def evaluate(args: argparse.Namespace, world: World) -> None:
    """What the command line asks for, as one of the processes of `world`: the first alone writes, draws and prints."""
    import torch

    from resnet_min import ops, weights
    from resnet_min.model import count_parameters
    from resnet_min.runs import folder as runs
    from resnet_min.runs.records import about
    from resnet_min.tasks import inside, trained
    from resnet_min.training import checkpoint, hardware
    from resnet_min.viz import figures as drawing
    from resnet_min.viz import page

    ops.set_backend(args.kernels)
    split = args.split or "test"
    if args.images and world.size > 1:
        raise UserError("--images is answered by one process: leave torchrun out")
    newest = not args.checkpoints and args.weights is None
    find = [partial(checkpoint.find, name) for name in args.checkpoints or [None] * newest]
    find += [] if args.weights is None else [partial(weights.find, args.weights)]
    paths = world.shared(lambda: list(dict.fromkeys(one() for one in find)))
    names = runs.names([path.parent if path.name == "last.pt" else path for path in paths])
    names = list(runs.named_by(args.label, names))
    results: list[Evaluation] = []
    all_figures: list[dict[str, Any]] = []
    networks: list[page.Network] = []
    first = None
    for path, name in zip(paths, names, strict=True):
        print(("\n" if results else "") + f"checkpoint: {path}{' (the newest run)' if newest else ''}")
        subject = world.shared(partial(trained.load, path))
        config, net = subject.task.config, subject.net
        first = first or subject
        if type(config) is not type(first.task.config):
            raise UserError(
                f"{first.path} is of --task {first.task.config.task}, {path} of --task {config.task}: "
                "their figures are not comparable"
            )
        refuse_foreign(args, config.task, path)
        print(
            f"model: {config.network}, {config.stem} stem: {count_parameters(net):,} parameters, epoch {subject.epoch}"
        )
        places = {"data": args.data, "data_dir": args.data_dir, "cache_dir": args.cache_dir}
        dataset = None if args.images else world.in_turn(partial(trained.load_data, subject, split, **places))
        where = hardware.hardware(args.device, args.amp or config.amp, world)
        if where.device.type == "cpu":
            hardware.keep_freed_memory()
        if dataset is not None:
            classes = f"; {len(dataset.classes)} classes" if dataset.classes else ""
            print(f"data: {dataset.source}: {counted(len(dataset.splits[split]), f'{split} image')}{classes}")
        print(f"device: {where}{', channels_last' if config.channels_last else ''}")
        print(ops.backend_line(where.device), flush=True)

        net.to(where.device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
        if dataset is None:
            return answer(args, subject, where)
        folder = Path(args.out or ("" if path.parent == weights.FOLDER else path.parent))
        if args.out and len(paths) > 1:  # a folder each
            folder /= name.strip("/").replace("/", "-")
        picture_of = Pictures(folder, "" if path.stem == "last" else f"{path.stem}-", args.format)
        options = everything(args, config) if args.report else args
        result = subject.task.evaluate(net, dataset, split, where, options, picture_of)
        results.append(result)
        facts = {"checkpoint": str(path), "name": name, "data": dataset.source, "split": split}
        all_figures.append({**facts, **result.figures})
        if args.report and world.first:
            inside.draw(subject, dataset.splits[split], f"{config.network} ({name})", picture_of)
            ours = ", ".join(f"{head} {cell}" for head, cell in result.columns.items())
            about_it = about(path.parent, config, subject.epoch, f"{split}: {ours}")
            networks.append(page.Network(name, about_it, picture_of.drawn, result.tables))

    if not world.first:
        return
    if len(results) > 1:
        sources = [figures["data"] for figures in all_figures]
        labels = names_of(names, sources)
        print()
        print_table(table_of(dict(zip(labels, results, strict=True))))
        if len(set(sources)) > 1:
            print("their images differ, so their figures are not comparable")
        where = Path(sources[0]).name if len(set(sources)) == 1 else "its own data"
        picture = Path(args.out or "", f"comparison.{args.format}")
        title = args.title or f"{len(results)} networks, each on the {split} images of {where}"
        rows = {label: result.figures for label, result in zip(labels, results, strict=True)}
        drawing.comparison(rows, picture, first.task.config.figure, title=title)
        print(f"comparison: {picture}")
    if args.report:
        runs_of = dict(zip(names, paths, strict=True))
        shared = draw_logs(runs_of, Path(args.out or ("" if len(paths) > 1 else folder)), args.format, config.figure)
        shared |= {"comparison": picture} if len(results) > 1 else {}
        title = args.title or f"{' and '.join(names)}: {config.purpose}"
        page.write(args.report, title, networks, shared, table_of(dict(zip(names, results, strict=True))))
        print(f"report: {args.report}")
    if args.json:
        figures = all_figures if len(all_figures) > 1 else all_figures[0]
        write_whole(args.json, json.dumps(figures, indent=1) + "\n")
        print(f"figures: {args.json}")


if __name__ == "__main__":
    run_script(main)
