"""The records of recipes' runs: what is small of each, kept in results/ to make RESULTS.md of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .. import recipes, tasks
from ..config import flag, shown
from ..errors import UserError
from ..files import write_whole
from ..tasks.options import TaskConfig
from . import results
from .folder import starts
from .results import Result

# Options that say where and how a run is made, not what it is: a run made with others is the same experiment.
PLACE = (
    "data", "data_dir", "cache_dir", "mean", "std", "device", "amp", "channels_last", "kernels", "winograd",
    "deterministic", "cuda_graph", "pretrained", "save_every", "val_every",
)  # fmt: skip


def differences(there: TaskConfig, wanted: TaskConfig, besides: Sequence[str] = ()) -> str:
    """What makes `there` another experiment than `wanted`, as one would write it; nothing where they are the same."""
    return "; ".join(
        f"{flag(name)} {shown(getattr(there, name))}, wanted {shown(getattr(wanted, name))}"
        for name in vars(wanted)
        if name not in (*PLACE, *besides) and getattr(there, name) != getattr(wanted, name)
    )


def record(result: Result, runs: Path, records: Path) -> None:
    """Copy what is small of a run under `runs` to `records`, unless that holds as much of it, remarks and all.

    A record gives way to more epochs of the same run, and to a run that is more of the recipe (`Result.reach`), once
    this is finished, or while neither is; it never gives way to less.
    Raises UserError where the record is of another experiment, or of another run that is as much of it, and where the
    run is not what its folder's name says, but for its scale, limit and epochs.
    """
    folder, to = (results.folder_of(place, result.recipe, result.seed) for place in (runs, records))
    if differ := differences(result.config, _wanted(result), besides=("epochs",)):
        raise UserError(f"{folder} is another experiment than its name says ({differ})")
    there = results.read(records, result.recipe, result.seed)
    starts = result.starts
    if there and there.reach != result.reach:
        if differ := differences(there.config, _wanted(there), besides=("epochs",)):
            raise UserError(f"{to} holds another experiment ({differ}); move it away to record {folder}")
        if result.reach < there.reach or (there.finished and not result.finished):
            return
    elif there:
        if differ := differences(there.config, result.config):
            raise UserError(f"{to} holds another experiment ({differ}); move it away to record {folder}")
        same = all(old == new for old, new in zip(there.rows, result.rows, strict=False))
        if len(there.rows) >= len(result.rows):
            if not same:
                raise UserError(f"{to} holds another run of as many epochs; move it away to record {folder}")
            return
        remarked = [start for start in there.starts if "remark" in start]
        starts = [next((old for old in remarked if old.items() >= new.items()), new) for new in starts]
    options = json.loads((folder / "config.json").read_text())
    options |= {"data": Path(options["data"]).name, "data_dir": "data", "cache_dir": None}  # no places of one machine
    write_whole(to / "config.json", json.dumps(options, indent=1) + "\n")
    write_whole(to / "environment.jsonl", "".join(json.dumps(start) + "\n" for start in starts))
    write_whole(to / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in result.rows))


def _wanted(result: Result) -> TaskConfig:
    """The options that a recipe's run of this seed, scale and limit has."""
    settings = recipes.scaled(recipes.recipe(result.recipe).settings, result.config.scale)
    return tasks.make_config({**settings, "seed": result.seed, "limit": result.config.limit})


def recipe_of(config: TaskConfig) -> str | None:
    """The name of the recipe that these options are, whatever the seed and for however many epochs; None for none."""
    for name, about in recipes.RECIPES.items():
        settings = recipes.scaled(about.settings, config.scale) if config.scale < 1 else about.settings
        wanted = tasks.make_config(settings)
        if type(wanted) is type(config) and not differences(config, wanted, ("seed", "epochs", "limit", "split_seed")):
            return name
    return None


def about(folder: Path, config: TaskConfig, epoch: int, ours: str) -> dict[str, str]:
    """What was trained and on what, for people: the recipe with its source and published number, and ours."""
    name = recipe_of(config)
    facts = {"recipe": name or "none: options of its own"}
    if name:
        recipe = recipes.recipe(name)
        facts |= {"source": recipe.source, "published": str(recipe.published)}
    facts |= {"here": ours, "network": f"{config.network}, {config.stem} stem", "epochs": f"{epoch} of {config.epochs}"}
    if config.limit or config.train_share < 1:
        facts["training images"] = f"at most {config.limit}" if config.limit else f"a share of {config.train_share:g}"
    facts["optimiser"] = (
        f"{config.optimizer}, learning rate {config.lr:g}, {config.schedule}, batch {config.batch_size}"
    )
    for start in starts(folder)[-1:]:
        facts |= {
            key: str(start[key]) for key in ("data", "device", "processor", "torch", "git_revision") if start.get(key)
        }
    return {key.replace("_", " "): value for key, value in facts.items()}
