"""Run the recipes, and put what they give beside what was published.

    python -m tools.reproduce all --smoke --data FOLDER            each recipe alive, in minutes; claims no accuracy
    python -m tools.reproduce nctu-resnet18 nctu-resnet18-plain    these two
    python -m tools.reproduce 'gupta-*' --seeds 3                  by pattern, three seeds each
    timeout -s INT 3600 python -m tools.reproduce all              as many as fit in an hour, the most informative first
    python -m tools.reproduce all --budget 10                      ten minutes each: schedules shrunk to what fits
    python -m tools.reproduce digits --scale 0.1                   one shrunk to a tenth
    python -m tools.reproduce                                      only the table of what has run

A run that is finished is skipped, one that was interrupted goes on where it was, and one that fails leaves the others
be. A recipe that starts from ImageNet's weights starts from random ones where they cannot be had, and its row says so.

--scale F shrinks a schedule as a whole, as train.py does; --budget MINUTES finds F for each recipe, by a few steps with
its own network, batch and image size here, so that training and evaluation take about that. The same command goes on
with what it began, at the scale that it began at.

After every run, results/RECIPE[-seedN] keeps what is small of it: config.json, environment.jsonl, metrics.jsonl. Such
a record gives way only to more of the same experiment: more epochs, a larger scale or limit. RESULTS.md and the
pictures of runs over each other are made from the records; rows and pictures that rested on more than there is now
stay as they are. Two things a person writes: what holds of each report, in results/findings.md, which RESULTS.md then
has; and what else is to be said of a run ("other work beside"), in a line of its record's environment.jsonl, as the
field "remark".
"""

from __future__ import annotations

from resnet_min.errors import UserError, leave_on_interrupt, run_script

if __name__ == "__main__":
    leave_on_interrupt()

import argparse
import fnmatch
import functools
import itertools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import train
from resnet_min import recipes, tasks
from resnet_min.commands import Parser
from resnet_min.config import flag
from resnet_min.files import write_whole
from resnet_min.runs import results, tables
from resnet_min.runs.records import differences, record
from resnet_min.tasks.options import TaskConfig

# The order of `all`: what tells most comes first, and the rest after it.
FIRST = ("digits", "nctu-*", "yuan-v2-sgd", "yuan-resnet18", "li-resnet34-scratch", "qiu-resnet18", "gupta-*", "ours-*")
PART_B = "data/part_B_final"  # the one data set that some recipes want and that cannot be downloaded
# A recipe alive: both phases of training, validation and test, on a few images.
SMOKE = dict(epochs=2, limit=16, batch_size=8)
PASSED_ON = ("scale", "epochs", "limit", "val_every")  # to train.py, as they are
FINDINGS = "findings.md"  # in results/, by hand: for each report what holds, what does not, and why
SAVE_EVERY = 5.0  # minutes: an epoch may take hours, and a scaled run may have but one
OVERLAYS = {
    "overlay-nctu.png": ("nctu-resnet18", "nctu-resnet18-plain", "nctu-resnet50", "nctu-resnet50-plain"),
    "overlay-transfer.png": ("gupta-scratch", "gupta-finetune", "gupta-freeze6", "gupta-freeze10"),
    "overlay-dropout.png": ("gupta-tiny-dropout0.1", "gupta-tiny-dropout0.2", "gupta-tiny", "gupta-tiny-dropout0.4"),
    "overlay-depth.png": ("ours-resnet20", "ours-resnet20-plain", "ours-resnet56", "ours-resnet56-plain"),
}
DEPTHS = {  # final errors over depth
    "depth.png": tuple(f"ours-resnet{layers}{kind}" for layers in (20, 32, 44, 56, 110) for kind in ("", "-plain"))
}


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.reproduce", description=__doc__)
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE",
        help="recipes by name or pattern, or all (train.py --list-recipes lists them)",
    )  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--smoke", action="store_true", help="a few steps on a few images of each split")
    length.add_argument(
        "--scale", type=float, metavar="F", help="shrink every schedule as a whole to this share (train.py --scale)"
    )
    length.add_argument(
        "--budget", type=float, metavar="MINUTES",
        help="measure how fast each recipe trains here, and shrink its schedule to what fits into these minutes",
    )  # fmt: skip
    length.add_argument("--epochs", type=int, metavar="N", help="epochs of every run; milestones and T_max stay")
    parser.add_argument("--limit", type=int, metavar="N", help="use this many images of each split")
    parser.add_argument(
        "--val-every", type=int, metavar="N", help="validate after every N-th epoch, and after the last"
    )
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
    """The flags of train.py that make `recipe` this run: the seed, the data's place, and how much of it is run."""
    own = recipes.recipe(recipe).settings
    flags = {"seed": seed, "device": args.device, "save_every": SAVE_EVERY}
    if place := {"cifar10": args.data, PART_B: args.crowd_data}.get(own["data"]):
        flags["data"] = place
    if args.smoke:
        flags |= SMOKE
        if own.get("val_size"):
            flags["val_size"] = SMOKE["limit"]
        if own.get("freeze_epochs"):
            flags["freeze_epochs"] = 1
    flags |= given(args)
    if own.get("pretrained") == "imagenet" and (why := no_weights(own["arch"])):
        print(f"{recipe}: {why}; starting from random weights", file=sys.stderr)
        flags["pretrained"] = "none"
    return flags


def given(args: argparse.Namespace) -> dict[str, object]:
    """Those of `PASSED_ON` that the command line says."""
    return {name: value for name in PASSED_ON if (value := getattr(args, name)) is not None}


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

    folder = results.folder_of(runs, recipe, seed)
    last = folder / "last.pt"
    own, settings = recipes.recipe(recipe).settings, settings_of(recipe, seed, args)
    before, begun = results.read(runs, recipe, seed), begun_as(runs, recipe, seed)
    if args.budget is not None:
        if alike := begun or begun_as(runs, recipe, 0):  # all seeds at one scale
            settings["scale"] = alike.scale
            print(f"{recipe}: --scale {alike.scale:g}, as it began", flush=True)
        else:
            from resnet_min.runs.budget import fitting

            settings["scale"], speed = fitting(own, settings, args.budget)
            print(f"{recipe}: {speed}; {args.budget:g} minutes: --scale {settings['scale']}", flush=True)
    if begun:
        wanted = tasks.make_config({**recipes.scaled(own, settings.get("scale", 1)), **settings})
        if differ := differences(begun, wanted):
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


def begun_as(runs: Path, recipe: str, seed: int) -> TaskConfig | None:
    """The options of a run that there is something of to lose."""
    folder = results.folder_of(runs, recipe, seed)
    there = (folder / "last.pt").is_file() or results.read(runs, recipe, seed)
    return results.read_config(folder) if there else None


def update(runs: Path, out: Path, smoke: bool, failed: Mapping[str, str]) -> tuple[str, list[str]]:
    """Record the runs, write RESULTS.md and the pictures from the records; the table, and what else there is to say.

    Nothing is written where nothing is known. With `smoke` the table is of the runs themselves.
    """
    found, notes = results.read_all(runs)
    if not smoke:
        records = out / "results"
        for result in itertools.chain.from_iterable(found.values()):
            try:
                record(result, runs, records)
            except (UserError, OSError) as error:
                notes.append(f"not recorded: {error}")
        found, damaged = results.read_all(records)
        notes += damaged
    path = out / "RESULTS.md"
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows, kept = tables.keep(
        tables.smoke_table(found, failed) if smoke else tables.table(found, failed), tables.read_markdown(old)
    )
    if not rows:
        return "", notes
    table = tables.markdown(rows, smoke)
    text = [tables.heading(found, smoke, old if kept else ""), table]
    if not smoke:
        text.append(tables.FOOTNOTES)
    if kept:
        text.append(f"As in an earlier table, for want of the runs that they rest on: {', '.join(kept)}.")
    if not smoke:
        if (findings := out / "results" / FINDINGS).is_file():
            text.append(findings.read_text(encoding="utf-8").strip())
        if missing := [name for name in recipes.RECIPES if name not in found and name not in kept]:
            text.append(f"Without a run: {', '.join(missing)}." + wanting(missing))
        text += draw({name: every for name, every in found.items() if name not in kept}, records, old)
    write_whole(path, "\n\n".join(filter(None, text)) + "\n")
    return f"{table}\n\nwritten: {path}", notes


def wanting(missing: Sequence[str]) -> str:
    """Of recipes without a run, those that are nothing without ImageNet's weights."""
    names = [name for name in missing if recipes.recipe(name).settings.get("pretrained") == "imagenet"]
    if not names:
        return ""
    return f" Of these start from ImageNet's weights, and say nothing without them: {', '.join(names)}."


def draw(found: Mapping[str, Sequence[results.Result]], folder: Path, old: str) -> list[str]:
    """Draw runs over each other and their errors over depth, and return the pictures' lines.

    A picture is drawn anew only of all the runs that it shows, which its line in the `old` table names.
    """
    lines = []
    for name, group in (OVERLAYS | DEPTHS).items():
        path = folder / name
        line = re.search(rf"!\[(.*)\]\(results/{re.escape(name)}\)", old)
        shown = (line[1].split(", ") if line else group) if path.is_file() else ()
        there = {recipe: found[recipe] for recipe in group if recipe in found}
        if not there.keys() >= set(shown):
            lines += [line[0]] if line else []
        elif len(there) > 1 and (draw_depths if name in DEPTHS else draw_overlay)(there, path):
            lines.append(f"![{', '.join(there)}](results/{name})")
    return lines


def draw_overlay(found: Mapping[str, Sequence[results.Result]], path: Path) -> bool:
    """The curves of each recipe's first run; True."""
    from resnet_min.viz import figures

    rows = {recipe: every[0].rows for recipe, every in found.items()}
    figures.curves(rows, path, tasks.figure_of(itertools.chain.from_iterable(rows.values())))
    return True


def draw_depths(found: Mapping[str, Sequence[results.Result]], path: Path) -> bool:
    """The last errors of every finished run over its layers; whether there were two depths or more."""
    from resnet_min.viz import figures

    kinds: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    for result in itertools.chain.from_iterable(found.values()):
        if result.finished:
            label = "plain" if result.config.plain else "with shortcuts"
            kinds.setdefault(label, []).append((int(result.config.arch.removeprefix("resnet")), result.rows[-1]))
    if len({layers for runs in kinds.values() for layers, _ in runs}) < 2:
        return False
    epochs = {result.config.epochs for every in found.values() for result in every}
    figures.depths(kinds, path, title=f"CIFAR-10's networks after {' or '.join(map(str, sorted(epochs)))} epochs")
    return True


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds must be at least 1; got {args.seeds}")
    if args.budget is not None and not 0 < args.budget < math.inf:
        raise UserError(f"--budget must be positive; got {args.budget}")
    tasks.make_config(given(args))  # a slip is one error and not thirty
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
    from resnet_min.runs.budget import TooShort

    failed: dict[str, str] = {}
    short: list[str] = []
    table, notes = "", []
    try:
        for seed in range(args.seeds):
            for recipe in chosen:
                try:
                    if run(recipe, seed, runs, args) and not args.smoke:
                        update(runs, out, args.smoke, failed)
                except TooShort as error:  # no row: it says nothing of the recipe
                    short.append(recipe)
                    print(f"{recipe}: not run: {error}", file=sys.stderr)
                except (UserError, OSError) as error:
                    failed[recipe] = f"failed: {error}"
                    print(f"{recipe}: {failed[recipe]}", file=sys.stderr)
    finally:  # also after Ctrl-C
        table, notes = update(runs, out, args.smoke, failed)
        print("", *notes, table, sep="\n", flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(chosen)} recipes failed: {', '.join(failed)}")
    if short := dict.fromkeys(short):
        raise UserError(
            f"{len(short)} of {len(chosen)} recipes do not fit into --budget {args.budget:g}: {', '.join(short)}"
        )
    if not table:
        raise UserError(f"no runs in {runs}: name recipes to run, or all")


if __name__ == "__main__":
    run_script(main)
