"""What a folder of recipes' runs holds."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tasks
from ..errors import UserError
from ..recipes import RECIPES
from ..tasks.options import TaskConfig
from .folder import read_rows

SIGNIFICANT = 0.02  # of the whole fall of the training loss
SETTLED = 0.25  # of the epochs, in which it fell no further


@dataclass(frozen=True)
class Result:
    """One run of a recipe, finished or not."""

    recipe: str
    seed: int
    config: TaskConfig
    rows: list[dict[str, Any]]  # of metrics.jsonl, at least one
    starts: list[dict[str, Any]]  # of environment.jsonl; empty where the run has none

    @property
    def finished(self) -> bool:
        return self.rows[-1]["epoch"] >= self.config.epochs

    @property
    def reach(self) -> tuple[float, float]:
        """How much of its recipe a run is, once finished: images of a split, passes over the training images."""
        passes = min(self.config.epochs, self.whole) * self.config.train_share
        return self.config.limit or math.inf, passes

    @property
    def whole(self) -> int:
        """The recipe's epochs."""
        return RECIPES[self.recipe].settings["epochs"]

    @property
    def environment(self) -> dict[str, Any]:
        """Of the last start; empty where the run has none."""
        return self.starts[-1] if self.starts else {}


def folder_of(runs: Path, recipe: str, seed: int) -> Path:
    """Where the run of a recipe and seed belongs under `runs`."""
    return runs / (recipe if seed == 0 else f"{recipe}-seed{seed}")


def read_config(folder: Path) -> TaskConfig:
    """The options of a run's config.json; those that later versions added get their defaults.

    Raises UserError where it cannot be read.
    """
    path = folder / "config.json"
    try:
        return tasks.read_config(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no run's options: {error}") from None


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's environment.jsonl. Raises UserError for one that is no JSON object."""
    path = folder / "environment.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    starts = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            start = json.loads(line)
        except ValueError:
            start = None
        if not isinstance(start, dict):
            raise UserError(f"{path}, line {number} is damaged: wanted a JSON object")
        starts.append(start)
    return starts


def read(runs: Path, recipe: str, seed: int) -> Result | None:
    """The run of a recipe and seed under `runs`; None before its first epoch is over. Raises UserError if damaged."""
    folder = folder_of(runs, recipe, seed)
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file() or b"\n" not in metrics.read_bytes():
        return None
    result = Result(recipe, seed, read_config(folder), read_rows(folder), read_starts(folder))
    for row in result.rows:
        for key in ("epoch", "step", "train_loss", "seconds"):
            if not isinstance(row.get(key), (int, float)):
                raise UserError(f"{metrics} has a line without the number {key}")
    figure = f"test_{result.config.figure.key}"
    if result.finished and figure not in result.rows[-1]:
        raise UserError(f"{metrics} has no {figure} in its last line")
    return result


def read_all(runs: Path) -> tuple[dict[str, list[Result]], list[str]]:
    """recipe -> its runs under `runs`, by seed, for every recipe that has one; and what to say of those damaged."""
    found, damaged = {}, []
    for recipe in RECIPES:
        results, seeds = [], [0]
        for folder in sorted(runs.glob(f"{recipe}-seed*/")):
            seed = folder.name.removeprefix(f"{recipe}-seed")
            if re.fullmatch("[1-9][0-9]*", seed):
                seeds.append(int(seed))
            else:
                damaged.append(f"skipped: {folder}: {seed!r} is no seed")
        for seed in sorted(seeds):
            try:
                results.append(read(runs, recipe, seed))
            except (UserError, OSError) as error:
                damaged.append(f"skipped: {error}")
        if results := [result for result in results if result is not None]:
            found[recipe] = results
    return found, damaged


def epoch_to_converge(rows: Sequence[Mapping[str, float]]) -> int | None:
    """The epoch after which the training loss no longer falls significantly (Li's measure; the rule is ours).

    An epoch's loss is the median of its own and its two neighbours', so that a single lucky one counts for nothing; the
    first epoch's is its own, and the last has none. It is the first epoch whose loss is within 2% of the whole fall,
    from the first epoch's to the lowest, above that lowest; the first where the loss never falls. None where less than
    a quarter of the epochs come after it, or less than two: until then the loss was falling, and may well fall on.
    """
    each = [row["train_loss"] for row in rows]
    losses = [each[0], *map(statistics.median, zip(each, each[1:], each[2:], strict=False))]
    near = min(losses) + SIGNIFICANT * (losses[0] - min(losses))
    first = next(number for number, loss in enumerate(losses, start=1) if loss <= near)
    return rows[first - 1]["epoch"] if len(rows) - first >= max(2, SETTLED * len(rows)) else None
