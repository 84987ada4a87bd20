"""Runs of recipes beside what was published for them: what a folder of runs holds, and the tables of RESULTS.md."""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tasks
from ..errors import UserError
from ..files import printable
from ..recipes import RECIPES
from ..tasks.options import TaskConfig
from .folder import read_rows

SIGNIFICANT = 0.02  # of the whole fall of the training loss
Table = dict[str, dict[str, str]]  # recipe -> title of a column -> cell
COLUMNS = (
    "recipe", "parameters", "started from", "test, last epoch", "best epoch on test¹", "published test", "gap",
    "converged at² (published)", "training time (published)", "device", "remark",
)  # fmt: skip
SMOKE_COLUMNS = ("recipe", "parameters", "started from", "steps", "training time", "device")


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
    def environment(self) -> dict[str, Any]:
        """Of the last start; empty where the run has none."""
        return self.starts[-1] if self.starts else {}


# ---- runs ----


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

    It is the first epoch whose training loss is within 2% of the loss's whole fall, from the first epoch's to the
    lowest, above that lowest; the first where the loss never falls. None where that is the last epoch there is: then
    the loss may well fall on.
    """
    losses = [row["train_loss"] for row in rows]
    near = min(losses) + SIGNIFICANT * (losses[0] - min(losses))
    first = next(number for number, loss in enumerate(losses) if loss <= near)
    return rows[first]["epoch"] if first < len(rows) - 1 else None


# ---- tables ----


def table(found: Mapping[str, Sequence[Result]], failed: Mapping[str, str]) -> Table:
    """Ours beside the published: a row for each recipe of `found`, and of `failed` (recipe -> why)."""
    rows = {}
    for recipe in RECIPES:
        if recipe in found:
            rows[recipe] = _row(recipe, found[recipe], failed.get(recipe))
        elif recipe in failed:
            rows[recipe] = dict.fromkeys(COLUMNS, "") | {"recipe": recipe, "test, last epoch": failed[recipe]}
    return rows


def _row(recipe: str, results: Sequence[Result], failed: str | None) -> dict[str, str]:
    config, published = results[0].config, RECIPES[recipe].published
    key, unit, best_of = config.figure.key, config.figure.unit, config.figure.best
    wanted = published.test
    done = [result for result in results if result.finished]
    gap, best = "", "not looked at"
    if done:
        last = mean_and_deviation([result.rows[-1][f"test_{key}"] for result in done], unit)
        if wanted is not None:
            gap = f"{statistics.mean(r.rows[-1][f'test_{key}'] for r in done) - wanted:+.2f}"
        if all(f"test_{key}" in row for result in done for row in result.rows):  # no validation split
            best = mean_and_deviation([best_of(row[f"test_{key}"] for row in result.rows) for result in done], unit)
    else:
        last = f"in epoch {results[0].rows[-1]['epoch'] + 1} of {config.epochs}"
    epochs = RECIPES[recipe].settings.get("epochs", config.epochs)
    if config.epochs != epochs:
        last += f", {config.epochs} epochs for the recipe's {epochs}"
    if failed:
        last = f"{last}; {failed}"
    shown = done or results
    converged = [epoch for result in shown if (epoch := epoch_to_converge(result.rows)) is not None]
    seconds = statistics.mean(sum(row["seconds"] for row in result.rows) for result in shown)
    cells = (
        recipe,
        f"{parameters(config):,}",
        _several(started_from(recipe, result.config) for result in results),
        last,
        best,
        published.note if wanted is None else f"{'> ' * published.above}{wanted:g}{unit}",
        gap,
        ", ".join(map(str, converged)) + ("" if published.epoch is None else f" ({published.epoch})"),
        f"{seconds:,.0f} s" + ("" if published.seconds is None else f" ({published.seconds:g} s)"),
        _several(result.environment.get("device") for result in shown),
        _several(start.get("remark") for result in shown for start in result.starts),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _several(values: Iterable[object]) -> str:
    """The different ones of some values, without what is empty."""
    return ", ".join(sorted({str(value) for value in values if value}))


@functools.cache
def parameters(config: TaskConfig) -> int:
    """Parameters of the net that `config` describes, for ten classes. Draws no weights."""
    import torch

    from ..model import count_parameters

    with torch.device("meta"):
        return count_parameters(config.make_task().build(range(10)))


def started_from(recipe: str, config: TaskConfig) -> str:
    """The weights that a run began with, and whether they are not those that its recipe wants."""
    if config.pretrained != "none":
        return "ImageNet" if config.pretrained == "imagenet" else config.pretrained
    wanted = RECIPES[recipe].settings.get("pretrained", "none")
    return "random" if wanted == "none" else "**random**, ImageNet weights unavailable"


def mean_and_deviation(values: Sequence[float], unit: str) -> str:
    """ "93.10% ± 0.12 (n = 3)": mean and standard deviation of a sample; of a single value, the value."""
    mean = f"{statistics.mean(values):.2f}{unit}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f} (n = {len(values)})"


def smoke_table(found: Mapping[str, Sequence[Result]], failed: Mapping[str, str]) -> Table:
    """That every recipe ran: a row each, with no accuracy."""
    rows = {}
    for recipe in RECIPES:
        if recipe in failed:
            rows[recipe] = dict.fromkeys(SMOKE_COLUMNS, "") | {"recipe": recipe, "steps": failed[recipe]}
        elif recipe in found:
            result = found[recipe][0]
            cells = (
                recipe,
                f"{parameters(result.config):,}",
                started_from(recipe, result.config),
                str(result.rows[-1]["step"]),
                f"{sum(row['seconds'] for row in result.rows):.1f} s",
                str(result.environment.get("device", "")),
            )
            rows[recipe] = dict(zip(SMOKE_COLUMNS, cells, strict=True))
    return rows


def keep(rows: Table, old: Table) -> tuple[Table, list[str]]:
    """`rows`, but as they stand in an older table those that rest on less than there; and which these are."""
    kept = [recipe for recipe in old if recipe not in rows or _worth(rows[recipe]) < _worth(old[recipe])]
    merged = rows | {recipe: old[recipe] for recipe in kept}
    order = dict.fromkeys([*RECIPES, *merged])  # by report; last those that are recipes no more
    return {recipe: merged[recipe] for recipe in order if recipe in merged}, kept


def _worth(row: Mapping[str, str]) -> tuple[int, int]:
    """What a row rests on: its finished runs, and the epoch of one that is not finished."""
    said = row.get("test, last epoch", "")
    if found := re.match(r"in epoch (\d+)", said):
        return 0, int(found[1])
    number = re.search(r"\(n = (\d+)\)", said)
    return (int(number[1]) if number else int(said[:1].isdigit())), 0


def markdown(rows: Table) -> str:
    """A Markdown table with even columns, as many as the rows have together."""
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    lines = [titles, *([_escaped(row.get(title, "")) for title in titles] for row in rows.values())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def read_markdown(text: str) -> Table:
    """The rows of the first table in `text`, as `markdown` writes it; none where there is none."""
    found = re.search(r"(^\| .*\n)+", text, re.MULTILINE)
    lines = [
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (found[0].splitlines() if found else [])
    ]
    return {line[0]: dict(zip(lines[0], line, strict=False)) for line in lines[2:]}


def _escaped(cell: str) -> str:
    return printable(" ".join(cell.split())).replace("|", r"\|")


FOOTNOTES = (
    "¹ chosen by looking at the test set: only to compare with reports that quote it. "
    "² the first epoch whose training loss is within 2% of its whole fall above its lowest; none while it falls. "
    "The test accuracy of the last epoch is ours, and the gap is from it. Times are of the training passes alone."
)
TITLES = {False: "# Results", True: "# Every recipe alive"}  # with --smoke or without
FACTS = ("data", "processor", "torch", "kernels", "git_revision")


def heading(found: Mapping[str, Sequence[Result]], smoke: bool, old: str = "") -> str:
    """What the table is of: the data, the versions, the revision, from the runs themselves, and from an older text."""
    starts = [result.environment for results in found.values() for result in results]
    lines = []
    for fact in FACTS:
        name = fact.replace("_", " ")
        values = {printable(str(start[fact])) for start in starts if start.get(fact)}
        for line in re.findall(f"^- {name}: (.+)$", old, re.MULTILINE):
            values |= set(line.split("; "))
        if values:
            lines.append(f"- {name}: {'; '.join(sorted(values))}")
    what = (
        "A few steps on a few images: these figures say that each recipe runs, and nothing of how well it learns."
        if smoke
        else "Written by `python -m tools.reproduce` from `results/`: "
        "each recipe's own run beside what its report published."
    )
    return "\n\n".join([TITLES[smoke], what, "\n".join(lines)])
