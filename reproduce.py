#!/usr/bin/env python
"""Run the presets, and put what they give beside what was published.

    python reproduce.py all --smoke --data FOLDER            every preset alive, in minutes; no accuracy is claimed
    python reproduce.py nctu-resnet18 nctu-resnet18-plain    these two
    python reproduce.py 'gupta-*' --seeds 3                  by pattern, three seeds each
    timeout -s INT 3600 python reproduce.py all              what an hour gives, the most telling first
    python reproduce.py                                      only the table of what has run

A run that is finished is skipped, one that was interrupted goes on where it was, and one that fails leaves the others
be. After every run RESULTS.md is written anew, and pictures of runs over each other in results/. A preset that starts
from ImageNet's weights starts from random ones where they cannot be had, and its row says so.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import sys
from pathlib import Path

import train
from resnet_min import recipes
from resnet_min.config import Config, flag
from resnet_min.errors import UserError, run_script

# The order of `all`: what tells most comes first, and the rest after it.
FIRST = ("digits", "nctu-*", "yuan-v2-sgd", "yuan-resnet18", "li-resnet34-scratch", "qiu-resnet18", "gupta-*", "ours-*")
# A preset alive: both phases of training, validation and test, on a few images.
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
    "cuda_graph", "pretrained",
)  # fmt: skip


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE",
        help="presets by name or pattern, or all (train.py --list-recipes lists them)",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few images of each split")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run each with seeds 0 to N-1 (default: 1)")
    parser.add_argument("--data", metavar="PATH", help="CIFAR-10 as an image folder, in place of the named data set")
    parser.add_argument("--crowd-data", metavar="PATH", help="ShanghaiTech Part B; without it, all leaves crowds out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--runs", metavar="DIR", help="folder of the runs (default: runs/reproduce, or runs/smoke)")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of RESULTS.md and results/ (default: this; with --smoke, the runs')"
    )
    return parser


def select(patterns: list[str], crowds: bool) -> list[str]:
    """The presets that names, patterns and `all` stand for, each once. Raises UserError for one that fits nothing."""
    every = [name for name, preset in recipes.RECIPES.items() if crowds or preset.settings.get("task") != "crowd"]
    chosen = []
    for pattern in patterns:
        if pattern == "all":
            chosen += [name for first in (*FIRST, "*") for name in fnmatch.filter(every, first)]
        elif any(mark in pattern for mark in "*?["):
            fitting = fnmatch.filter(recipes.RECIPES, pattern)
            if not fitting:
                raise UserError(f"no recipe fits {pattern!r}; train.py --list-recipes lists them")
            chosen += fitting
        else:
            recipes.recipe(pattern)
            chosen.append(pattern)
    return list(dict.fromkeys(chosen))


def settings_of(recipe: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """The flags of train.py that make `recipe` this run: the seed, the data's place, and for --smoke its small size."""
    preset = recipes.recipe(recipe).settings
    flags = {"seed": seed, "device": args.device}
    crowd = preset.get("task") == "crowd"
    if crowd and args.crowd_data:
        flags["data"] = args.crowd_data
    elif preset["data"] == "cifar10" and args.data:
        flags["data"] = args.data
    if args.smoke:
        flags |= SMOKE
        if preset.get("val_size"):
            flags["val_size"] = SMOKE["limit"]
        if preset.get("freeze_epochs"):
            flags["freeze_epochs"] = 1
    if preset.get("pretrained") == "imagenet" and (why := no_weights(preset["arch"])):
        print(f"{recipe}: {why}; starting from random weights", file=sys.stderr)
        flags["pretrained"] = "none"
    return flags


@functools.cache
def no_weights(arch: str) -> str | None:
    """Why torchvision's ImageNet weights for `arch` cannot be had; None where they can."""
    from resnet_min import transfer

    try:
        transfer.imagenet(arch)
    except UserError as error:
        return str(error)
    return None


def run(recipe: str, seed: int, runs: Path, args: argparse.Namespace) -> None:
    """Begin a run, or go on with it, or skip it. Raises UserError where its folder holds another experiment."""
    from resnet_min import checkpoint, results

    folder = results.folder_of(runs, recipe, seed)
    last = folder / "last.pt"
    settings = settings_of(recipe, seed, args)
    if (folder / "config.json").is_file():
        there, wanted = results.read_config(folder), Config(**{**recipes.recipe(recipe).settings, **settings})
        differ = [
            f"{flag(name)} {train.shown(getattr(there, name))}, wanted {train.shown(getattr(wanted, name))}"
            for name in vars(wanted)
            if name not in PLACE and getattr(there, name) != getattr(wanted, name)
        ]
        if differ:
            raise UserError(f"{folder} holds another experiment ({'; '.join(differ)}): name another --runs")
    before = results.read(runs, recipe, seed)
    # The last line of the figures is written just before the last checkpoint; --smoke leaves no checkpoint.
    if before and before.finished and (not last.is_file() or checkpoint.load(last)["epoch"] == before.config.epochs):
        print(f"{folder}: done")
        return
    print(f"\n== {folder}", flush=True)
    if last.is_file():
        train.main(["--resume", str(folder)])
    else:
        flags = [word for name, value in settings.items() for word in (flag(name), str(value))]
        train.main(["--recipe", recipe, *flags, "--out", str(folder), "--overwrite"])
    if args.smoke:  # 38 nets of up to 58 million parameters, and their momentum
        for file in folder.glob("*.pt"):
            file.unlink()


def report(runs: Path, out: Path, smoke: bool, failed: dict[str, str]) -> None:
    """Write RESULTS.md and the pictures, and print the table."""
    from resnet_min import plots, results

    found = results.read_all(runs)
    table = results.table(found, failed) if not smoke else results.smoke_table(found, failed)
    text = [results.heading(found, smoke), table]
    if not smoke:
        text.append(results.FOOTNOTES)
        if missing := [name for name in recipes.RECIPES if name not in found]:
            text.append(f"Without a run: {', '.join(missing)}.")
    for name, group in OVERLAYS.items() if not smoke else ():
        overlaid = {recipe: found[recipe][0].rows for recipe in group if recipe in found}
        if len(overlaid) > 1:
            plots.curves(overlaid, out / "results" / name)
            text.append(f"![{', '.join(overlaid)}](results/{name})")
    out.mkdir(parents=True, exist_ok=True)
    (out / "RESULTS.md").write_text("\n\n".join(filter(None, text)) + "\n", encoding="utf-8")
    print(f"\n{table}\n\nwritten: {out / 'RESULTS.md'}", flush=True)


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds must be at least 1; got {args.seeds}")
    chosen = select(args.recipes, crowds=args.crowd_data is not None)
    runs = Path(args.runs or ("runs/smoke" if args.smoke else "runs/reproduce"))
    out = Path(args.out or (runs if args.smoke else "."))
    failed: dict[str, str] = {}
    if not chosen and not runs.is_dir():
        raise UserError(f"nothing has run in {runs}: name recipes to run, or all")
    if any(recipes.recipe(name).settings["data"] == "cifar10" for name in chosen):
        from resnet_min import data

        data.load(args.data or "cifar10")  # where it cannot be had, one error and not thirty
    try:
        for seed in range(args.seeds):
            for recipe in chosen:
                try:
                    run(recipe, seed, runs, args)
                except UserError as error:
                    failed[recipe] = f"failed: {error}"
                    print(f"{recipe}: {failed[recipe]}", file=sys.stderr)
    finally:  # also after Ctrl-C
        report(runs, out, args.smoke, failed)
    if failed:
        raise UserError(f"{len(failed)} of {len(chosen)} recipes failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
