"""Run the recipes, and put what they give beside what was published.

    python -m tools.reproduce all --smoke --data FOLDER            each recipe alive, in minutes; claims no accuracy
    python -m tools.reproduce nctu-resnet18 nctu-resnet18-plain    these two
    python -m tools.reproduce 'gupta-*' --seeds 3                  by pattern, three seeds each
    timeout -s INT 3600 python -m tools.reproduce all              as many as fit in an hour, the most informative first
    python -m tools.reproduce                                      only the table of what has run

A run that is finished is skipped, one that was interrupted goes on where it was, and one that fails leaves the others
be. A recipe that starts from ImageNet's weights starts from random ones where they cannot be had, and its row says so.

After every run, results/RECIPE[-seedN] keeps what is small of it: config.json, environment.jsonl, metrics.jsonl. Such a
record gives way only to more epochs of the same experiment. RESULTS.md and the pictures of runs over each other are
made from the records; rows and pictures that rested on more than there is now stay as they are. What else is to be
said of a run ("other work beside") a person adds to a line of its record's environment.jsonl, as the field "remark".
"""

from __future__ import annotations

from resnet_min.errors import UserError, leave_on_interrupt, run_script

if __name__ == "__main__":
    leave_on_interrupt()

import argparse
import fnmatch
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import train
from resnet_min import recipes, tasks
from resnet_min.config import flag, shown
from resnet_min.files import write_whole
from resnet_min.runs import tables
from resnet_min.tasks.options import TaskConfig

# The order of `all`: what tells most comes first, and the rest after it.
FIRST = ("digits", "nctu-*", "yuan-v2-sgd", "yuan-resnet18", "li-resnet34-scratch", "qiu-resnet18", "gupta-*", "ours-*")
PART_B = "data/part_B_final"  # the one data set that some recipes want and that cannot be downloaded
# A recipe alive: both phases of training, validation and test, on a few images.
SMOKE = dict(epochs=2, limit=16, batch_size=8)
OVERLAYS = {
    "overlay-nctu.png": ("nctu-resnet18", "nctu-resnet18-plain", "nctu-resnet50", "nctu-resnet50-plain"),
    "overlay-transfer.png": ("gupta-scratch", "gupta-finetune", "gupta-freeze6", "gupta-freeze10"),
    "overlay-dropout.png": ("gupta-tiny-dropout0.1", "gupta-tiny-dropout0.2", "gupta-tiny", "gupta-tiny-dropout0.4"),
    "overlay-depth.png": ("ours-resnet20", "ours-resnet20-plain", "ours-resnet56", "ours-resnet56-plain"),
}
# Options that say where and how a run is made, not what it is: a run made with others is the same experiment.
PLACE = (
    "data", "data_dir", "cache_dir", "mean", "std", "device", "amp", "channels_last", "kernels", "deterministic",
    "cuda_graph", "pretrained", "save_every",
)  # fmt: skip


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.reproduce", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE",
        help="recipes by name or pattern, or all (train.py --list-recipes lists them)",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few images of each split")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run each with seeds 0 to N-1 (default: 1)")
    parser.add_argument("--data", metavar="PATH", help="CIFAR-10 as an image folder, in place of the named data set")
    parser.add_argument(
        "--crowd-data", metavar="PATH", help="ShanghaiTech Part B; without it, all skips the crowd recipes"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--runs", metavar="DIR", help="folder of the runs (default: runs/reproduce, or runs/smoke)")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of RESULTS.md and results/ (default: this; with --smoke, the runs')"
    )
    return parser


def select(patterns: list[str], crowds: bool) -> list[str]:
    """The recipes that names, patterns and `all` stand for, each once. Raises UserError for one that fits nothing."""
    every = [name for name, item in recipes.RECIPES.items() if crowds or item.settings["data"] != PART_B]
    chosen = []
    for pattern in patterns:
        if pattern == "all":
            chosen += [name for first in (*FIRST, "*") for name in fnmatch.filter(every, first)]
        elif any(mark in pattern for mark in "*?["):
            fitting = fnmatch.filter(recipes.RECIPES, pattern)
            if not fitting:
                raise UserError(f"no recipe matches {pattern!r}; train.py --list-recipes lists them")
            chosen += fitting
        else:
            recipes.recipe(pattern)
            chosen.append(pattern)
    return list(dict.fromkeys(chosen))


def settings_of(recipe: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """The flags of train.py that make `recipe` this run: the seed, the data's place, and for --smoke its small size."""
    own = recipes.recipe(recipe).settings
    flags = {"seed": seed, "device": args.device}
    if place := {"cifar10": args.data, PART_B: args.crowd_data}.get(own["data"]):
        flags["data"] = place
    if args.smoke:
        flags |= SMOKE
        if own.get("val_size"):
            flags["val_size"] = SMOKE["limit"]
        if own.get("freeze_epochs"):
            flags["freeze_epochs"] = 1
    if own.get("pretrained") == "imagenet" and (why := no_weights(own["arch"])):
        print(f"{recipe}: {why}; starting from random weights", file=sys.stderr)
        flags["pretrained"] = "none"
    return flags


@functools.cache
def no_weights(arch: str) -> str | None:
    """Why torchvision's ImageNet weights for `arch` cannot be had; None where they can."""
    from resnet_min.training import transfer

    try:
        transfer.imagenet(arch)
    except UserError as error:
        return str(error)
    return None


def run(recipe: str, seed: int, runs: Path, args: argparse.Namespace) -> bool:
    """Begin a run, or go on with it, or skip one that is finished; whether it trained.

    Raises UserError where it fails, or its folder is damaged or holds another experiment.
    """
    from resnet_min.runs.folder import is_complete
    from resnet_min.training import checkpoint

    folder = tables.folder_of(runs, recipe, seed)
    last = folder / "last.pt"
    settings = settings_of(recipe, seed, args)
    before = tables.read(runs, recipe, seed)
    if before or last.is_file():  # otherwise there is nothing to lose
        wanted = tasks.make_config({**recipes.recipe(recipe).settings, **settings})
        if differ := differences(tables.read_config(folder), wanted):
            raise UserError(f"{folder} holds another experiment ({differ}): name another --runs")
    # The last line of the figures is written just before the last checkpoint; --smoke leaves no checkpoint.
    epochs = before.config.epochs if before and before.finished else 0
    if epochs and (not last.is_file() or checkpoint.load(last)["epoch"] == epochs and is_complete(folder, epochs)):
        print(f"{folder}: done")
        return False
    print(f"\n== {folder}", flush=True)
    if last.is_file():
        train.main(["--resume", str(folder)])
    else:
        flags = [word for name, value in settings.items() for word in (flag(name), str(value))]
        train.main(["--recipe", recipe, *flags, "--out", str(folder), "--overwrite"])
    if args.smoke:  # 38 nets of up to 58 million parameters, and their momentum
        for file in folder.glob("*.pt"):
            file.unlink()
    return True


def differences(there: TaskConfig, wanted: TaskConfig, besides: Sequence[str] = ()) -> str:
    """What makes `there` another experiment than `wanted`, as one would write it; nothing where they are the same."""
    return "; ".join(
        f"{flag(name)} {shown(getattr(there, name))}, wanted {shown(getattr(wanted, name))}"
        for name in vars(wanted)
        if name not in (*PLACE, *besides) and getattr(there, name) != getattr(wanted, name)
    )


def record(result: tables.Result, runs: Path, records: Path) -> None:
    """Copy what is small of a run under `runs` to `records`, unless that holds as much of it, remarks and all.

    Raises UserError where the record is of another experiment, or of another run with as many epochs, and where the
    run is not what its folder's name says, but for its epochs.
    """
    folder, to = (tables.folder_of(place, result.recipe, result.seed) for place in (runs, records))
    wanted = tasks.make_config({**recipes.recipe(result.recipe).settings, "seed": result.seed})
    if differ := differences(result.config, wanted, besides=("epochs",)):
        raise UserError(f"{folder} is another experiment than its name says ({differ})")
    there = tables.read(records, result.recipe, result.seed)
    starts = result.starts
    if there:
        if differ := differences(there.config, result.config):
            raise UserError(f"{to} holds another experiment ({differ}); move it away to record {folder}")
        same = all(old == new for old, new in zip(there.rows, result.rows, strict=False))
        if len(there.rows) >= len(result.rows):
            if not same:
                raise UserError(f"{to} holds another run of as many epochs; move it away to record {folder}")
            return
        remarked = [start for start in there.starts if "remark" in start]
        starts = [next((old for old in remarked if old.items() >= new.items()), new) for new in starts]
    write_whole(to / "config.json", (folder / "config.json").read_text())
    write_whole(to / "environment.jsonl", "".join(json.dumps(start) + "\n" for start in starts))
    write_whole(to / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in result.rows))


def update(runs: Path, out: Path, smoke: bool, failed: Mapping[str, str]) -> tuple[str, list[str]]:
    """Record the runs, write RESULTS.md and the pictures from the records; the table, and what else there is to say.

    Nothing is written where nothing is known. With `smoke` the table is of the runs themselves.
    """
    found, notes = tables.read_all(runs)
    if not smoke:
        records = out / "results"
        for result in (result for every in found.values() for result in every):
            try:
                record(result, runs, records)
            except (UserError, OSError) as error:
                notes.append(f"not recorded: {error}")
        found, damaged = tables.read_all(records)
        notes += damaged
    path = out / "RESULTS.md"
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows, kept = tables.keep(
        tables.smoke_table(found, failed) if smoke else tables.table(found, failed), tables.read_markdown(old)
    )
    if not rows:
        return "", notes
    table = tables.markdown(rows)
    text = [tables.heading(found, smoke, old if kept else ""), table]
    if not smoke:
        text.append(tables.FOOTNOTES)
    if kept:
        text.append(f"As in an earlier table, for want of the runs that they rest on: {', '.join(kept)}.")
    if not smoke:
        if missing := [name for name in recipes.RECIPES if name not in found and name not in kept]:
            text.append(f"Without a run: {', '.join(missing)}.")
        text += draw({name: every[0] for name, every in found.items() if name not in kept}, records, old)
    write_whole(path, "\n\n".join(filter(None, text)) + "\n")
    return f"{table}\n\nwritten: {path}", notes


def draw(found: Mapping[str, tables.Result], folder: Path, old: str) -> list[str]:
    """Draw runs over each other, and return the pictures' lines.

    A picture is drawn anew only of all the runs that it shows, which its line in the `old` table names.
    """
    from resnet_min.viz import figures

    lines = []
    for name, group in OVERLAYS.items():
        path = folder / name
        line = re.search(rf"!\[(.*)\]\(results/{re.escape(name)}\)", old)
        shown = (line[1].split(", ") if line else group) if path.is_file() else ()
        overlaid = {recipe: found[recipe].rows for recipe in group if recipe in found}
        if not overlaid.keys() >= set(shown):
            lines += [line[0]] if line else []
        elif len(overlaid) > 1:
            figures.curves(overlaid, path, tasks.figure_of(row for rows in overlaid.values() for row in rows))
            lines.append(f"![{', '.join(overlaid)}](results/{name})")
    return lines


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds must be at least 1; got {args.seeds}")
    chosen = select(args.recipes, crowds=args.crowd_data is not None)
    runs = Path(args.runs or ("runs/smoke" if args.smoke else "runs/reproduce"))
    out = Path(args.out or (runs if args.smoke else "."))
    path = out / "RESULTS.md"
    if path.is_file() and not path.read_text(encoding="utf-8", errors="replace").startswith(
        tables.TITLES[args.smoke] + "\n"
    ):
        raise UserError(f"{path} was not written by this command: name another --out")
    if any(recipes.recipe(name).settings["data"] == "cifar10" for name in chosen):
        from resnet_min import data

        data.load(args.data or "cifar10")  # where it cannot be had, one error and not thirty
    failed: dict[str, str] = {}
    table, notes = "", []
    try:
        for seed in range(args.seeds):
            for recipe in chosen:
                try:
                    if run(recipe, seed, runs, args) and not args.smoke:
                        update(runs, out, args.smoke, failed)
                except (UserError, OSError) as error:
                    failed[recipe] = f"failed: {error}"
                    print(f"{recipe}: {failed[recipe]}", file=sys.stderr)
    finally:  # also after Ctrl-C
        table, notes = update(runs, out, args.smoke, failed)
        print("", *notes, table, sep="\n", flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(chosen)} recipes failed: {', '.join(failed)}")
    if not table:
        raise UserError(f"no runs in {runs}: name recipes to run, or all")


if __name__ == "__main__":
    run_script(main)
