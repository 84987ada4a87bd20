#!/usr/bin/env python
"""Train a residual network, or its plain twin, on small images.

    python train.py                                          CIFAR-10 if it can be had, otherwise the embedded digits
    python train.py --recipe digits                          a minute on two CPU cores
    python train.py --arch resnet18 --plain                  without shortcuts
    python train.py --data FOLDER --arch resnet20 --epochs 6 --schedule onecycle --lr 0.2 --nesterov --wd 5e-4
    python train.py --resume runs/resnet20-digits-1          go on where it stopped, to the bit on a CPU

A run writes a folder: config.json, environment.jsonl (versions and hardware, a line a start), metrics.jsonl (a line an
epoch), steps.jsonl (a line a step), last.pt, best.pt where there is a validation split, curves.png. The test set never
selects: without a validation split the last epoch counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min import recipes
from resnet_min.config import Config, flag
from resnet_min.errors import UserError, run_script

if TYPE_CHECKING:  # torch is imported where it is used, so that --help is quick
    from resnet_min.job import Job
    from resnet_min.run import Run


def get_parser() -> argparse.ArgumentParser:
    """Every field of `Config` as a flag, and what concerns only this script. A flag that is not given sets nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument("--recipe", metavar="NAME", help="preset that the other flags override")
    parser.add_argument("--list-recipes", action="store_true", help="list the presets and what was published for each")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run: its folder or checkpoint")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/ARCH[-plain]-DATA-K)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    parser.add_argument("--dry-run", action="store_true", help="print model, data and learning rates, and leave")
    for item in dataclasses.fields(Config):
        kind, default = item.metadata["type"], item.default
        shown = "" if default in (None, ()) else f" (default: {default})"
        options: dict[str, Any] = {"help": item.metadata["help"] + shown}
        if isinstance(default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": kind, "choices": item.metadata["choices"]}
            if "tuple" in str(item.type):
                options["nargs"] = "+"
            if not item.metadata["choices"]:
                options["metavar"] = {int: "N", float: "X", str: item.name.upper()}[kind]
        parser.add_argument(*item.metadata["flags"], flag(item.name), dest=item.name, **options)
    return parser


def configure(flags: dict[str, Any], recipe_name: str | None) -> Config:
    """The options of a new run: the recipe's, or those that suit the data, and the flags over them."""
    settings = recipes.recipe(recipe_name).settings if recipe_name is not None else {}
    try:
        Config(**{**settings, **flags})  # a slip shows before anything slow begins
    except UserError as error:
        raise UserError(f"{error} (with the settings of --recipe {recipe_name})" if settings else str(error)) from None
    from resnet_min.data import resolve_auto

    if flags.get("task") == "crowd" and not settings:
        settings = recipes.recipe("crowd-best").settings
    data = resolve_auto({**settings, **flags}.get("data", "auto"), flags.get("data_dir", Config.data_dir))
    config = Config(**{**(settings or recipes.default_settings(data)), **flags, "data": data})
    if recipe_name is not None:
        preset, about = Config(**settings), recipes.recipe(recipe_name)
        print(
            f"recipe: {recipe_name}, {about.source}; published: {about.published}"
            + (f"; {about.note}" if about.note else "")
        )
        changed = [
            f"{flag(name)} {shown(getattr(config, name))} (the recipe's: {shown(getattr(preset, name))})"
            for name in flags
            if getattr(config, name) != getattr(preset, name)
        ]
        if changed:
            print(f"flags win over the recipe: {', '.join(changed)}")
    return config


def shown(value: Any) -> str:
    """An option's value as one would write it on the command line."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def dry_run(job: Job) -> None:
    """The rest of --dry-run: class counts, frozen tensors, the learning rate at the start of each epoch."""
    from resnet_min.schedule import learning_rate

    config, steps = job.config, job.steps
    for name, split in job.splits.items():
        if config.task == "crowd":
            fewest, most, mean = split.counts.min(), split.counts.max(), split.counts.mean()
            print(f"{name}: {fewest:.0f} to {most:.0f} heads an image, {mean:.1f} on average")
            continue
        counts = split.labels.bincount(minlength=len(job.classes)).tolist()
        print(f"{name}: " + ", ".join(f"{c} {n}" for c, n in zip(job.classes, counts, strict=True)))
    frozen = ", ".join(n for n, p in job.net.named_parameters() if not p.requires_grad)
    until = f" (epochs 1 to {config.freeze_epochs})" if config.freeze_epochs is not None else ""
    print(f"frozen{until}: {frozen or 'nothing'}")
    print(f"{config.epochs} epochs of {steps} steps of {config.batch_size} images; learning rates:")
    above = None
    for epoch in range(config.epochs):
        first, last = (learning_rate(config, epoch * steps + step, steps) for step in (0, steps - 1))
        line = f"{first:.6g}" if first == last else f"{first:.6g} to {last:.6g}"
        if line != above:  # epochs of the same rates share a line
            print(f"  from epoch {epoch + 1}: {line}")
        above = line


def fit(job: Job, out: str | None, overwrite: bool, resume: Path | None) -> Run:
    """Train to the last epoch, in a new run folder or in that of the checkpoint `resume`."""
    from tqdm import tqdm

    from resnet_min import checkpoint, engine, transfer
    from resnet_min.cuda_graph import Recorder
    from resnet_min.environment import environment
    from resnet_min.run import Run
    from resnet_min.schedule import learning_rate

    config, net, steps, task = job.config, job.net, job.steps, job.task
    done = 0
    if resume is None:
        if config.pretrained != "none":
            skipped = transfer.load_pretrained(getattr(net, "encoder", net), config.pretrained, config.arch)
            print(f"weights: {config.pretrained}, but for {', '.join(skipped) or 'nothing'}")
        optimizer = engine.make_optimizer(config, net)
        run = Run.create(out, overwrite, config, environment(job.where, config.data), job.name)
    else:
        saved = checkpoint.load(resume)
        if tuple(saved["classes"]) != job.classes or saved["step"] != saved["epoch"] * steps:
            raise UserError(f"{config.data} is not the data that {resume} was trained on: other classes or sizes")
        done = saved["epoch"]
        transfer.freeze(net, config, done)
        optimizer = engine.make_optimizer(config, net)
        checkpoint.restore(saved, net, optimizer, resume)
        run = Run.reopen(resume.parent, config, environment(job.where, config.data), done, saved["step"])
    print(f"run: {run.folder}")

    # Looked at after every epoch. With a validation split, the test set is kept for the end.
    watched = "val" if "val" in job.held_out else "test"
    recorder = Recorder() if config.cuda_graph and job.where.device.type == "cuda" else None
    for epoch in range(done + 1, config.epochs + 1):
        if epoch - 1 == config.freeze_epochs:  # the second phase, with an optimizer that remembers nothing of the first
            transfer.freeze(net, config, epoch)
            optimizer = engine.make_optimizer(config, net)
        first = (epoch - 1) * steps
        rates = [learning_rate(config, first + step, steps) for step in range(steps)]
        bar = tqdm(total=steps, desc=f"epoch {epoch}", leave=False, disable=not sys.stderr.isatty())
        began = time.perf_counter()
        try:
            losses, figure = engine.train_one_epoch(
                net, job.batches.epoch(epoch), optimizer, rates, job.where, task.objective,
                after_step=bar.update, recorder=recorder,
            )  # fmt: skip
        except engine.Diverged as error:
            kept = (
                f"{run.folder / 'last.pt'} holds epoch {epoch - 1}" if epoch > 1 else "no epoch was finished before it"
            )
            raise UserError(f"epoch {epoch}: {error}; {kept}; try a lower --lr") from None
        finally:
            bar.close()
        seconds = time.perf_counter() - began
        row = {"epoch": epoch, "step": first + steps, "lr": rates[-1]}
        row |= {"train_loss": losses.double().mean().item(), f"train_{task.figure}": figure}
        for name, split in job.held_out.items():
            if name == watched or epoch == config.epochs:
                figures = task.judge(net, split.ordered(), job.where)
                row |= {f"{name}_{key}": value for key, value in figures.items()}
        row |= {"seconds": seconds, "images_per_second": len(job.splits["train"]) / seconds}

        trace = zip(range(first + 1, first + steps + 1), rates, losses.tolist(), strict=True)
        run.log(row, [{"step": step, "lr": rate, "loss": loss} for step, rate, loss in trace])
        snapshot = checkpoint.snapshot(net, optimizer, config, job.classes, epoch, first + steps)
        checkpoint.save(run.folder / "last.pt", snapshot)
        if watched == "val" and task.best(run.rows, key=lambda row: row[f"val_{task.figure}"]) is row:
            checkpoint.save(run.folder / "best.pt", snapshot)
        known = (name for name in ("train", "val", "test") if f"{name}_{task.figure}" in row)
        shown = ", ".join(f"{name} {row[f'{name}_{task.figure}']:.2f}{task.unit}" for name in known)
        print(
            f"epoch {epoch}/{config.epochs}  lr {rates[-1]:.5f}  loss {row['train_loss']:.4f}  {task.title}: {shown}"
            f"  {seconds:.1f} s  {row['images_per_second']:,.0f} images/s",
            flush=True,
        )
    return run


def finish(job: Job, run: Run) -> None:
    """Draw the curves and say the result."""
    from resnet_min import plots
    from resnet_min.model import count_parameters
    from resnet_min.results import epoch_to_converge

    task, folder, rows = job.task, run.folder, run.rows
    plots.curves({folder.name: rows}, folder / "curves.png")
    mse = f", MSE {rows[-1]['test_mse']:.2f}" if "test_mse" in rows[-1] else ""
    on_test = f"{rows[-1][f'test_{task.figure}']:.2f}{task.unit}{mse}"
    print(f"result: test {task.title} {on_test} (epoch {rows[-1]['epoch']}, the last)")
    watched = f"{'val' if f'val_{task.figure}' in rows[-1] else 'test'}_{task.figure}"
    best = task.best(rows, key=lambda row: row[watched])
    value = f"{best[watched]:.2f}{task.unit}"
    if watched.startswith("val"):
        print(f"best.pt: epoch {best['epoch']}, chosen by its validation {task.title} of {value}")
    else:
        print(
            f"best on test: {value} (epoch {best['epoch']}), chosen by looking at the test set: "
            "only to compare with reports that quote it"
        )
    print(f"saved: {folder / 'last.pt'}, {folder / 'curves.png'}")
    converged = epoch_to_converge(rows)
    print(
        f"summary: {folder.name}: test {task.title} {on_test}, {count_parameters(job.net):,} parameters, "
        f"{len(rows)} epochs in {sum(row['seconds'] for row in rows):,.0f} s of training on {job.where}"
        + ("" if converged is None else f", training loss converged at epoch {converged}")
    )


def check_milestones(job: Job) -> None:
    """Raise UserError where a milestone would never come: asked for by flag, that is a slip."""
    config = job.config
    end = config.epochs - (config.freeze_epochs or 0)
    if config.schedule != "step":
        raise UserError(f"--milestones are for --schedule step; this is {config.schedule}")
    if config.milestone_unit == "iterations":
        end *= job.steps
    if config.milestones[-1] >= end:
        raise UserError(f"--milestones {config.milestones[-1]} lies past the end, {end} {config.milestone_unit}")


def main(argv: list[str] | None = None) -> None:
    flags = vars(get_parser().parse_args(argv))
    name, out, resume = (flags.pop(key, None) for key in ("recipe", "out", "resume"))
    overwrite, only_show, list_recipes = (flags.pop(key, False) for key in ("overwrite", "dry_run", "list_recipes"))
    if list_recipes:
        return print(recipes.describe())
    if resume is None:
        config, path = configure(flags, name), None
    else:
        config, path = reopen(resume, flags, {"recipe": name, "out": out, "overwrite": overwrite})
    if config.deterministic:  # read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from resnet_min.job import prepare

    job = prepare(config)
    if "milestones" in flags:
        check_milestones(job)
    if only_show:
        return dry_run(job)
    finish(job, fit(job, out, overwrite, path))


def reopen(resume: str, flags: dict[str, Any], beside: dict[str, Any]) -> tuple[Config, Path]:
    """The options and the checkpoint of the run to go on with."""
    from resnet_min import checkpoint

    given = {**flags, **beside}
    if wrong := [flag(key) for key, value in given.items() if key != "epochs" and value not in (None, False)]:
        raise UserError(
            f"--resume takes everything from the run itself, but for --epochs; leave out {', '.join(wrong)}"
        )
    path = checkpoint.find(resume)
    saved = checkpoint.load(path)
    config = dataclasses.replace(checkpoint.config_of(saved), **flags)
    if saved["epoch"] >= config.epochs:
        raise UserError(f"{path} has finished its {saved['epoch']} epochs; a larger --epochs goes on")
    return config, path


if __name__ == "__main__":
    run_script(main)
