#!/usr/bin/env python
"""Train a residual network, with or without shortcuts, on small images.

    python train.py                                          CIFAR-10 if available, otherwise the bundled digits
    python train.py --recipe digits                          a minute on two CPU cores
    python train.py --arch resnet18 --plain                  without shortcuts
    python train.py --data FOLDER --arch resnet20 --epochs 6 --schedule onecycle --lr 0.2 --nesterov --wd 5e-4
    python train.py --resume runs/resnet20-digits-1          continue an interrupted run (bit-exact on a CPU)
    torchrun --nproc-per-node 2 train.py --recipe digits     with several processes, see docs/several-machines.md

In Python and notebooks, `train.main(["--recipe", "digits"])` returns the run: its `folder`, and `rows` of metrics.

A run writes a folder: config.json, environment.jsonl (versions and hardware, one line per start), metrics.jsonl (one
per epoch), steps.jsonl (one per step), last.pt, best.pt where there is a validation split, curves.png. The test set
never selects: without a validation split the result is the last epoch's.
"""

from __future__ import annotations

from resnet_min.errors import UserError, leave_on_interrupt, run_script

if __name__ == "__main__":
    leave_on_interrupt()

import argparse
import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min import recipes
from resnet_min.commands import Parser
from resnet_min.config import Config, counted, flag
from resnet_min.tasks import TASKS

if TYPE_CHECKING:
    from resnet_min.runs.folder import Run
    from resnet_min.runs.job import Job
    from resnet_min.runs.pace import Pace
    from resnet_min.training.distributed import World


def get_parser() -> argparse.ArgumentParser:
    """Every option of every task as a flag, and what concerns only this script. A flag not given sets nothing."""
    parser = Parser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--recipe", metavar="NAME", help="recipe that the other flags override")
    parser.add_argument("--list-recipes", action="store_true", help="list the recipes and what was published for each")
    parser.add_argument("--resume", metavar="RUN", help="continue a run, given its folder or checkpoint")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/ARCH[-plain]-DATA-K)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument(
        "--dry-run", action="store_true", help="print model, data, learning rates and how long it would take"
    )
    parser.add_argument("--log", choices=("tensorboard",), help="also write the figures for it, into the run's folder")
    purposes = "; ".join(f"{name}: {config.purpose}" for name, config in TASKS.items())
    parser.add_argument("--task", choices=TASKS, help=f"{purposes} (default: by the recipe or the data)")
    common = {item.name: item for item in dataclasses.fields(Config)}
    add_options(parser, [item for item in common.values() if item.name != "task"])
    for name, config in TASKS.items():
        own = [item for item in dataclasses.fields(config) if item.name not in common]
        add_options(parser.add_argument_group(f"options of --task {name}"), own)
    return parser


def add_options(parser: argparse._ActionsContainer, options: list[dataclasses.Field]) -> None:
    """A flag for each field of a `Config`."""
    for item in options:
        kind, default = item.metadata["type"], item.default
        about = "" if default in (None, ()) else f" (default: {default})"
        how: dict[str, Any] = {"help": item.metadata["help"] + about}
        if kind is bool or isinstance(default, bool):
            how["action"] = argparse.BooleanOptionalAction
        else:
            how |= {"type": kind, "choices": item.metadata["choices"]}
            if "tuple" in str(item.type):
                how["nargs"] = "+"
            if not item.metadata["choices"]:
                how["metavar"] = {int: "N", float: "X", str: item.name.upper()}[kind]
        parser.add_argument(*item.metadata["flags"], flag(item.name), dest=item.name, **how)


def main(argv: list[str] | None = None) -> Run | None:
    """Train as the command line asks; the run, where there is one and this process is the one that wrote it."""
    flags = vars(get_parser().parse_args(argv))
    if flags.pop("list_recipes", False):
        return print(recipes.describe())

    from resnet_min.training import distributed

    with distributed.joined() as world:
        return prepare_and_train(flags, world)


def prepare_and_train(flags: dict[str, Any], world: World) -> Run | None:
    """What the command line asks for, as one of the processes of `world`: the first alone writes and prints."""
    recipe, out, resume, log = (flags.pop(name, None) for name in ("recipe", "out", "resume", "log"))
    overwrite, dry_run = (flags.pop(name, False) for name in ("overwrite", "dry_run"))

    from resnet_min.runs.folder import held, new_folder, of_launch
    from resnet_min.runs.job import announce, check_milestones, configure, describe_recipe, plan, prepare, reopen
    from resnet_min.runs.pace import Pace
    from resnet_min.runs.watch import forecast, summary_writer
    from resnet_min.training import checkpoint, distributed, hardware, transfer

    if log is not None:
        summary_writer()  # where it is not installed, nothing is touched

    # What to train
    if resume is None and distributed.restarts():  # torchrun's command says how the run began: it goes on, if it can
        begun = world.shared(lambda: of_launch(distributed.launch(), out))
        if begun is not None and world.shared((begun / "last.pt").is_file):
            resume, flags, recipe, out, overwrite = str(begun), {}, None, None, False
        elif begun is not None:
            out, overwrite = str(begun), True
    if resume is None:
        if overwrite and out is None:
            raise UserError("--overwrite replaces the run in --out: name it")
        config, saved_at = world.in_turn(lambda: configure(flags, recipe)), None
        if recipe is not None:
            print(*describe_recipe(recipe, flags, config), sep="\n")
    else:
        beside = {"recipe": recipe, "out": out, "overwrite": overwrite}
        flags |= {name: value for name, value in beside.items() if value}
        config, saved_at = world.shared(lambda: reopen(resume, flags))
    where = hardware.set_up(config, world)
    job = prepare(config, where)
    print(*announce(job), sep="\n")
    if "milestones" in flags:
        check_milestones(job.config, job.steps)
    if saved_at is None and config.pretrained != "none":
        skipped = transfer.load_pretrained(job.net, config.pretrained, config.arch)
        print(f"weights: {config.pretrained}" + (f", except {', '.join(skipped)}" if skipped else ""))
    if dry_run:
        taken = 0 if saved_at is None else checkpoint.load(saved_at)["step"]
        return print(*plan(job), *forecast(job, taken), sep="\n")
    folder = world.shared(lambda: new_folder(out, config, job.dataset.name) if saved_at is None else saved_at.parent)
    with held(folder) if world.first else contextlib.nullcontext(), Pace(config.save_every, world.any) as pace:
        return train(job, folder, overwrite, saved_at, pace, log)


def train(job: Job, folder: Path, overwrite: bool, saved_at: Path | None, pace: Pace, log: str | None) -> Run | None:
    """Train in a run's folder: a new run, or the one that the checkpoint `saved_at` goes on with."""
    from time import perf_counter

    from tqdm.auto import tqdm

    from resnet_min.model import count_parameters
    from resnet_min.runs.environment import environment, say_processes
    from resnet_min.runs.folder import Run, from_start, starts
    from resnet_min.runs.results import epoch_to_converge
    from resnet_min.runs.watch import TensorBoard, Watch
    from resnet_min.tasks.task import with_bar
    from resnet_min.training import checkpoint, transfer
    from resnet_min.training.cuda_graph import Recorder
    from resnet_min.training.loop import Diverged, Progress, train_one_epoch
    from resnet_min.training.optimizer import learning_rate, make_optimizer
    from resnet_min.viz import figures

    # A new run, or the one that goes on
    config, task, net, steps, where = job.config, job.task, job.net, job.steps, job.where
    figure, world = config.figure, where.world
    last, curves = folder / "last.pt", folder / "curves.png"
    started = environment(where, config.data)
    if saved_at is None:
        optimizer, done, progress = make_optimizer(config, net), 0, Progress.at(None, steps, where.device)
        run = Run.create(folder, overwrite, config, started) if world.first else None
    else:
        saved = world.shared(lambda: checkpoint.load(saved_at))
        done, progress = saved["epoch"], Progress.at(saved.get("progress"), steps, where.device)
        if tuple(saved["classes"]) != job.dataset.classes or saved["step"] != done * steps + progress.taken:
            raise UserError(
                f"{config.data} is not the data that {saved_at} was trained on: its classes or sizes differ"
            )
        transfer.freeze(net, config, done + (progress.taken > 0))
        optimizer = make_optimizer(config, net)
        checkpoint.restore(saved, net, optimizer, saved_at)
        print(*say_processes(starts(folder), world.size), sep="\n", end="")
        run = Run.reopen(folder, config, started, done, done * steps) if world.first else None
    print(f"run: {folder}")

    def keep_best(saved: dict[str, Any]) -> None:
        """Where the last epoch is the best by validation of those that were validated."""
        rows = run.rows if world.first and job.watched == "val" else []
        if rows and figure.best_row(rows, "val") is rows[-1]:
            checkpoint.save(folder / "best.pt", saved)

    def content(*at: Any) -> dict[str, Any]:
        return checkpoint.snapshot(net, optimizer, config, job.dataset.classes, *at)

    def keep_within_epoch() -> None:
        at = (epoch - 1, first + progress.taken, progress.saved())
        if world.first:
            checkpoint.save(last, content(*at))

    def between_steps(bar: Any) -> None:
        watch.after_step(bar, progress)
        pace.ask(keep_within_epoch)

    if world.first and saved_at is not None and not progress.taken:  # it may have been killed just before
        keep_best(saved)

    # Train
    watch = Watch(job, done)
    board = TensorBoard(folder, done * steps) if log and world.first else None
    model = world.parallel(net, job.sync_bn)
    recorder = Recorder() if config.cuda_graph and where.device.type == "cuda" else None
    frozen_stats = False
    for epoch in range(done + 1, config.epochs + 1):
        if epoch > done + 1:
            progress = Progress.at(None, steps, where.device)
        # the second phase, with an optimizer that remembers nothing of the first
        if epoch - 1 == config.freeze_epochs and not progress.taken:
            transfer.freeze(net, config, epoch)
            optimizer, model = make_optimizer(config, net), world.parallel(net, job.sync_bn)
        by_batch, frozen_stats = not frozen_stats, epoch > round((1 - config.frozen_stats) * config.epochs)
        if recorder is not None and by_batch and frozen_stats:
            recorder = Recorder()  # what it has is a graph of batch norms by their batches
        first = (epoch - 1) * steps
        rates = [learning_rate(config, first + step, steps) for step in range(steps)]
        hidden = None if world.first else True  # None: on terminals and in notebooks only
        shape = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}"
        bar = partial(tqdm, total=steps, leave=False, disable=hidden, bar_format=shape)
        try:
            with bar(job.batches.epoch(epoch), f"epoch {epoch}/{config.epochs}") as batches:
                losses, trained = train_one_epoch(
                    model, batches, optimizer, rates, where, task.loss,
                    after_step=partial(between_steps, batches), recorder=recorder, progress=progress,
                    frozen_stats=frozen_stats,
                )  # fmt: skip
        except Diverged as error:
            kept = "no epoch was finished"
            if last.is_file():
                kept = "{} holds epoch {epoch}, step {step}".format(last, **checkpoint.load(last))
            raise UserError(f"epoch {epoch}: {error}; {kept}; try a lower --lr") from None

        world.settle(net)
        seconds = progress.seconds
        row = {"epoch": epoch, "step": first + steps, "lr": rates[-1]}
        row |= {"train_loss": losses.double().mean().item(), f"train_{figure.key}": trained}
        began, looking = perf_counter(), None
        for name, batches in job.held_out.items():
            if epoch == config.epochs or (name == job.watched and epoch % config.val_every == 0):
                images = pace.asked(with_bar(batches, where), keep_within_epoch)
                row |= {f"{name}_{key}": value for key, value in task.judge(net, images, where).items()}
                looking = perf_counter() - began
        if not world.first:
            continue
        row |= {"seconds": seconds, "images_per_second": len(job.dataset.splits["train"]) / seconds}
        trace = zip(range(first + 1, first + steps + 1), rates, losses.tolist(), strict=True)
        trace = [{"step": step, "lr": rate, "loss": loss} for step, rate, loss in trace]
        run.log(row, trace)
        if board:
            board.log(row, trace)

        finished = content(epoch, first + steps)
        checkpoint.save(last, finished)
        keep_best(finished)
        pace.saved()
        values = {name: value for name in ("train", "val", "test") if (value := figure.of(row, name)) is not None}
        print(
            f"epoch {epoch}/{config.epochs}  lr {rates[-1]:.5f}  loss {row['train_loss']:.4f}  {figure.title}: "
            + ", ".join(f"{name} {figure.shown(value)}" for name, value in values.items())
            + f"  {seconds:.1f} s  {row['images_per_second']:,.0f} images/s"
            + watch.finished(epoch, seconds, looking),
            flush=True,
        )

    # The result
    if not world.first:
        return None
    rows = run.rows
    figures.curves({folder.name: from_start(folder, rows)}, curves, figure)
    if board:
        board.end(config, rows[-1], [curves])
    print(f"result: test {figure.words(rows[-1], 'test')} (epoch {rows[-1]['epoch']}, the last)")
    best = figure.best_row(rows, job.watched)
    value = figure.shown(figure.of(best, job.watched))
    if job.watched == "val":
        print(f"best.pt: epoch {best['epoch']}, chosen by its validation {figure.title} of {value}")
    else:
        print(
            f"best on test: {value} (epoch {best['epoch']}), chosen by looking at the test set: "
            "only to compare with reports that quote it"
        )
    print(f"saved: {last}, {curves}")
    converged = epoch_to_converge(rows)
    print(
        f"summary: {folder.name}: test {figure.words(rows[-1], 'test')}, {count_parameters(net):,} parameters, "
        f"{counted(len(rows), 'epoch')} in {sum(row['seconds'] for row in rows):,.0f} s of training on {where}"
        + (f", training loss converged at epoch {converged}" if converged is not None else "")
    )
    return run


if __name__ == "__main__":
    run_script(main)
