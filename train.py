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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min import recipes
from resnet_min.config import Config, flag
from resnet_min.errors import UserError, run_script

if TYPE_CHECKING:  # torch is imported where it is used, so that --help is quick
    from resnet_min import crowd
    from resnet_min.augment import Batches
    from resnet_min.data import Split
    from resnet_min.engine import Hardware, Task
    from resnet_min.model import CrowdNet, ResNet
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
        preset = Config(**settings)
        about = recipes.recipe(recipe_name)
        print(
            f"recipe: {recipe_name}, {about.source}; published: {about.published}"
            + (f"; {about.note}" if about.note else "")
        )
        changed = [
            f"{flag(name)} {shown(value)} (the recipe's: {shown(getattr(preset, name))})"
            for name, value in flags.items()
            if value != getattr(preset, name)
        ]
        if changed:
            print(f"flags win over the recipe: {', '.join(changed)}")
    return config


def shown(value: Any) -> str:
    """An option's value as one would write it on the command line."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@dataclass
class Job:
    """All that a run trains with: what `prepare` makes of the options."""

    config: Config  # with the data's place, mean and std filled in
    name: str  # of the data
    classes: tuple[str, ...]
    splits: dict[str, Split | crowd.Split]  # train, test, and val where there is one
    where: Hardware
    net: ResNet | CrowdNet  # on its device
    batches: Batches | crowd.Batches  # to train on
    held_out: dict[str, Batches | crowd.Whole]  # val and test
    task: Task

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.batches)


def prepare(config: Config) -> Job:
    """Load the data, draw the model, and say what is about to be trained, on what, with what."""
    import torch

    from resnet_min import crowd, data, engine, model, ops, transfer
    from resnet_min.augment import Batches

    ops.set_backend(config.kernels)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    where = engine.hardware(config.device, config.amp)
    engine.choose_algorithms(config.deterministic)
    if where.device.type == "cpu":
        engine.keep_freed_memory()
    counts = config.task == "crowd"
    subset = dict(
        cache_dir=config.cache_dir, val_size=config.val_size, seed=config.split_seed, limit=config.limit
    )  # fmt: skip
    if counts:
        dataset = crowd.load(config.data, **subset)
    else:
        dataset = data.load(config.data, data_dir=config.data_dir, image_size=config.image_size, **subset)
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    splits = {name: split for name, split in splits.items() if split is not None}
    images = len(splits["train"])
    if config.batch_size > images:
        raise UserError(f"--batch-size {config.batch_size} is larger than the data, {images} images")
    config = dataclasses.replace(
        config,
        data=dataset.source,
        data_dir=str(Path(config.data_dir).resolve()),  # so that --resume works from any folder
        cache_dir=config.cache_dir and str(Path(config.cache_dir).resolve()),
        mean=config.mean or dataset.mean,
        std=config.std or dataset.std,
    )
    torch.manual_seed(config.seed)
    net = model.from_config(config, len(dataset.classes))
    transfer.freeze(net, config, epoch=1)
    side = config.crop if counts else config.input_size
    size = (side, side) if side else tuple(dataset.train.images[0].shape[:2])
    maps = net.eval().features(torch.zeros(1, 3, *size))
    if images % config.batch_size == 1 and maps[0, 0].numel() == 1:
        raise UserError(
            f"--batch-size {config.batch_size} leaves a last batch of one image, and its 1x1 maps no batch statistics; "
            "choose another size"
        )

    total, trained = model.count_parameters(net), model.count_parameters(net, trained_only=True)
    kind = f"{config.arch}{', plain' if config.plain else ''}, {config.stem} stem"
    macs = model.count_macs(net, size) / 1e6
    print(f"model: {kind}: {total:,} parameters ({total - trained:,} frozen), {macs:,.1f}M MACs an image")
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (config.mean, config.std))
    shape = "x".join(map(str, dataset.train.images[0].shape[:2]))
    resized = f", resized to {config.resize}x{config.resize}" if config.resize else ""
    if counts:
        resized = f", crops of {side}x{side}" if side else ""
    what = f"{int(dataset.train.counts.sum()):,} heads to learn from" if counts else f"{len(dataset.classes)} classes"
    print(f"data: {config.data}: {sizes}; {shape}{resized}; {what}")
    print(f"normalised by: mean {mean}, std {std}")
    print(f"device: {where}{', channels_last' if config.channels_last else ''}")
    print(ops.backend_line(where.device))

    net.to(where.device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    common = dict(mean=config.mean, std=config.std, device=where.device, dtype=where.dtype)
    drawn = dict(batch_size=config.batch_size, flip=config.flip, seed=config.seed, **common)
    rest = {name: split for name, split in splits.items() if name != "train"}
    if counts:
        print(f"to beat on the test images:\n{crowd.say_constants(dataset, dataset.test)}")
        batches = crowd.Batches(dataset.train, crop=config.crop, sigma=config.sigma, stride=net.stride, **drawn)
        held_out = {name: crowd.Whole(split, **common) for name, split in rest.items()}
        task = crowd.counting(config.count_weight)
    else:
        batches = Batches(
            dataset.train, padding=config.padding, rotation=config.rotation, resize=config.resize, **drawn
        )  # fmt: skip
        held_out = {
            name: Batches(split, batch_size=min(256, len(split)), resize=config.resize, **common)
            for name, split in rest.items()
        }
        task = engine.classification(config.label_smoothing)
    return Job(config, dataset.name, dataset.classes, splits, where, net, batches, held_out, task)


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
    from resnet_min.environment import environment
    from resnet_min.graph import Recorder
    from resnet_min.run import Run
    from resnet_min.schedule import learning_rate

    config, net, steps, task = job.config, job.net, job.steps, job.task
    done = 0
    if resume is None:
        if config.pretrained != "none":
            skipped = transfer.load_pretrained(net, config.pretrained, config.arch)
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
    print(
        f"summary: {folder.name}: test {task.title} {on_test}, {count_parameters(job.net):,} parameters, "
        f"{len(rows)} epochs in {sum(row['seconds'] for row in rows):,.0f} s of training on {job.where}, "
        f"training loss converged at epoch {epoch_to_converge(rows)}"
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
