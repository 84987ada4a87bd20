"""Make the weights of a finished run part of the package, with their card.

    python -m tools.package_weights runs/resnet20-cifar10-1                   resnet_min/weights/resnet20-cifar10.*
    python -m tools.package_weights runs/resnet20-cifar10-1 --data FOLDER     measured on other images

The file is the run's checkpoint without what its optimizer remembered and without the places of this machine. It is
read again, and its test accuracy measured in float32 on the CPU. resnet_min/weights says what is on the card.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min import weights
from resnet_min.config import flag, shown
from resnet_min.errors import UserError, run_script
from resnet_min.files import write_whole

if TYPE_CHECKING:
    from resnet_min.tasks.options import TaskConfig

LARGEST = 1_200_000  # bytes of a file that every user of the package downloads
AS_IT_IS = dict(stem="cifar", plain=False, blocks=None, widths=None, strides=None, option=None)


def get_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.package_weights", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, or a checkpoint in it")
    parser.add_argument("--name", help="what to call them, behind the arch (default: the data set)")
    parser.add_argument("--note", default="", metavar="TEXT", help="what else there is to know, for the card")
    parser.add_argument("--data", help="measure on this data set, of the same classes (default: the run's own)")
    parser.add_argument("--data-dir", help="where named data sets are (default: the run's own)")
    parser.add_argument("--cache-dir", help="cache for decoded images (default: the run's own)")
    parser.add_argument("--out", type=Path, default=weights.FOLDER, metavar="DIR", help="(default: the package's)")
    parser.add_argument("--force", action="store_true", help="write over weights of that name")
    return parser.parse_args(argv)


def command_of(config: TaskConfig, data: str) -> str:
    """The flags of train.py that give these options on the data set `data`, those that are its defaults left out."""
    kind = type(config)
    default = dataclasses.asdict(kind()) | kind.default_settings(data)
    flags = ["python", "train.py", "--data", data]
    for name, value in dataclasses.asdict(config).items():
        if name in ("task", "data", "data_dir", "cache_dir") or value in (None, default[name]):
            continue
        if isinstance(value, bool):
            flags.append(flag(name) if value else f"--no-{name.replace('_', '-')}")
        else:
            flags += [flag(name), *shown(value).split()]
    return shlex.join(flags)


def card_text(card: Mapping[str, Any]) -> str:
    """JSON of one entry a line, of the log one epoch a line."""
    log = ",\n".join(f"  {json.dumps(row)}" for row in card["log"])
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in card.items() if key != "log"]
    return "{\n" + ",\n".join([*lines, f' "log": [\n{log}\n ]']) + "\n}\n"


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)

    import torch

    from resnet_min.model import count_parameters
    from resnet_min.runs import folder as runs
    from resnet_min.runs.environment import describe_data
    from resnet_min.tasks import trained
    from resnet_min.training import checkpoint, hardware

    path = checkpoint.find(args.run)
    saved = checkpoint.load(path)
    subject = trained.revive(saved, path)
    config = subject.task.config
    if not subject.classes:
        raise UserError(f"{path} is of --task {config.task}; only networks of classes come with the package")
    if changed := [flag(name) for name, value in AS_IT_IS.items() if getattr(config, name) != value]:
        raise UserError(f"{path} is no {config.arch} as it is: it was trained with {', '.join(changed)}")
    if saved["epoch"] < config.epochs:
        raise UserError(f"{path} is of epoch {saved['epoch']} of {config.epochs}: finish the run first")
    if (size := sum(tensor.nbytes for tensor in saved["model"].values())) > LARGEST:
        raise UserError(f"{path} has {size:,} bytes of weights; what comes with the package has at most {LARGEST:,}")
    log, starts = runs.read_rows(path), runs.starts(path.parent)

    places = {"data": args.data, "data_dir": args.data_dir, "cache_dir": args.cache_dir}
    dataset = trained.load_data(subject, **places)
    data = Path(config.data).name
    stem = f"{config.arch}-{args.name or data}"
    if not re.fullmatch(r"[\w.-]+", stem):
        raise UserError(f"--name: {stem} is to be letters, digits, and . _ -")
    file, card_file = args.out / f"{stem}.pt", args.out / f"{stem}.json"
    if not args.force and (there := [one for one in (file, card_file) if one.exists()]):
        raise UserError(f"{there[0]} is there already: --force writes over it, --name gives another name")

    started_from = config.pretrained if config.pretrained == "imagenet" else Path(config.pretrained).name
    options = dataclasses.replace(config, data=data, data_dir="data", cache_dir=None, pretrained=started_from)
    kept = {key: saved[key] for key in checkpoint.KEYS} | {"config": dataclasses.asdict(options)}
    kept["model"] = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in saved["model"].items()
    }
    kept["optimizer"] = {"state": {}, "param_groups": []}
    checkpoint.save(file, kept)

    again = trained.load(file)
    batches = again.task.batches(dataset.splits["test"], hardware.cpu(), 256)
    accuracy = again.task.judge(again.net, batches.ordered(), hardware.cpu())["accuracy"]
    trained_on = data if config.data == data else "FOLDER"  # a place of this machine
    where = "" if dataset.source == data else " --data FOLDER"
    card = {
        "name": stem,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
        "parameters": count_parameters(again.net),
        "data": starts[-1]["data"] if starts else describe_data(config.data),
        "mean": list(saved["mean"]),
        "std": list(saved["std"]),
        "trained_by": command_of(options, trained_on),
        "seed": config.seed,
        "test_accuracy": accuracy,
        "test_images": len(dataset.splits["test"]),
        "measured_on": describe_data(dataset.source),
        "measured_by": f"python eval.py --weights {stem} --amp off{where}",
        "torch": str(torch.__version__),
        "note": args.note,
        "environment": starts,
        "log": log,
    }
    write_whole(card_file, card_text(card))
    print(f"wrote: {file} ({card['bytes']:,} bytes)\ncard: {card_file}")
    print(f"read again: test accuracy {accuracy:.2f}% of {card['test_images']:,} images; SHA-256 {card['sha256']}")


if __name__ == "__main__":
    run_script(main)
