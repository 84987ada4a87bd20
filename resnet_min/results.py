"""Runs of presets beside what was published for them: what a folder of runs holds, and the tables of RESULTS.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import tasks
from .recipes import RECIPES
from .run import read_rows
from .tasks.options import TaskConfig

SIGNIFICANT = 0.02  # of the whole fall of the training loss


@dataclass(frozen=True)
class Result:
    """One run of a preset, finished or not."""

    recipe: str
    seed: int
    config: TaskConfig
    rows: list[dict[str, Any]]  # of metrics.jsonl
    environment: dict[str, Any]  # of the last start; empty where the run has none

    @property
    def finished(self) -> bool:
        return self.rows[-1]["epoch"] >= self.config.epochs


def folder_of(runs: Path, recipe: str, seed: int) -> Path:
    """Where the run of a preset and seed belongs under `runs`."""
    return runs / (recipe if seed == 0 else f"{recipe}-seed{seed}")


def read_config(folder: Path) -> TaskConfig:
    """The options of a run's config.json; those that later versions added get their defaults."""
    return tasks.read_config(json.loads((folder / "config.json").read_text()))


def read(runs: Path, recipe: str, seed: int) -> Result | None:
    """The run of a preset and seed under `runs`; None before its first epoch is over."""
    folder = folder_of(runs, recipe, seed)
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file() or "\n" not in metrics.read_text():
        return None
    starts = folder / "environment.jsonl"
    environment = json.loads(starts.read_text().splitlines()[-1]) if starts.is_file() else {}
    return Result(recipe, seed, read_config(folder), read_rows(folder), environment)


def read_all(runs: Path) -> dict[str, list[Result]]:
    """recipe -> its runs under `runs`, by seed, for every preset that has one."""
    found = {}
    for recipe in RECIPES:
        seeds = [0, *sorted(int(s) for f in runs.glob(f"{recipe}-seed*") if (s := f.name[len(recipe) + 5 :]).isdigit())]
        results = [result for seed in seeds if (result := read(runs, recipe, seed)) is not None]
        if results:
            found[recipe] = results
    return found


def epoch_to_converge(rows: Sequence[Mapping[str, float]]) -> int:
    """The epoch after which the training loss no longer falls significantly (Li's measure; the rule is ours).

    It is the first epoch whose training loss is within 2% of the loss's whole fall, from the first epoch's to the
    lowest, above that lowest. With a single epoch, or a loss that never falls, it is the first.
    """
    losses = [row["train_loss"] for row in rows]
    lowest = min(losses)
    return next(
        row["epoch"]
        for row, loss in zip(rows, losses, strict=True)
        if loss - lowest <= SIGNIFICANT * (losses[0] - lowest)
    )


def table(found: Mapping[str, Sequence[Result]], failed: Mapping[str, str]) -> str:
    """Ours beside the published, as a Markdown table: a line a preset of `found`, and of `failed` (recipe -> why)."""
    lines = [
        ("recipe", "parameters", "started from", "test, last epoch", "best epoch on test¹", "published test", "gap",
         "converged at² (published)", "training time (published)", "device"),
    ]  # fmt: skip
    for recipe in RECIPES:
        if recipe in found:
            lines.append(_line(recipe, found[recipe], failed.get(recipe)))
        elif recipe in failed:
            lines.append((recipe, *[""] * 2, failed[recipe], *[""] * 6))
    return markdown(lines)


def _line(recipe: str, results: Sequence[Result], failed: str | None) -> tuple[str, ...]:
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
        last += f", {config.epochs} epochs for the preset's {epochs}"
    if failed:
        last = f"{last}; {failed}"
    shown = done or results
    converged = ", ".join(str(epoch_to_converge(result.rows)) for result in shown)
    seconds = statistics.mean(sum(row["seconds"] for row in result.rows) for result in shown)
    return (
        recipe,
        f"{parameters(config):,}",
        ", ".join(sorted({started_from(recipe, result.config) for result in results})),
        last,
        best,
        published.note if wanted is None else f"{'> ' * published.above}{wanted:g}{unit}",
        gap,
        converged + ("" if published.epoch is None else f" ({published.epoch})"),
        f"{seconds:,.0f} s" + ("" if published.seconds is None else f" ({published.seconds:g} s)"),
        ", ".join(sorted({result.environment.get("device", "") for result in shown})),
    )


def parameters(config: TaskConfig) -> int:
    """Parameters of the net that `config` describes, for ten classes. Draws no weights."""
    import torch

    from .model import count_parameters

    with torch.device("meta"):
        return count_parameters(config.make_task().build(range(10)))


def started_from(recipe: str, config: TaskConfig) -> str:
    """The weights that a run began with, and whether they are not those that its preset wants."""
    if config.pretrained != "none":
        return "ImageNet" if config.pretrained == "imagenet" else config.pretrained
    wanted = RECIPES[recipe].settings.get("pretrained", "none")
    return "random" if wanted == "none" else "**random**, ImageNet's not to be had"


def mean_and_deviation(values: Sequence[float], unit: str) -> str:
    """ "93.10% ± 0.12 (n = 3)": mean and standard deviation of a sample; of a single value, the value."""
    mean = f"{statistics.mean(values):.2f}{unit}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f} (n = {len(values)})"


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table with even columns; the first line is the head."""
    lines = [list(line) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


FOOTNOTES = (
    "¹ chosen by looking at the test set: only to compare with reports that quote it. "
    "² the first epoch whose training loss is within 2% of its whole fall above its lowest. "
    "The test accuracy of the last epoch is ours, and the gap is from it. Times are of the training passes alone."
)


def heading(found: Mapping[str, Sequence[Result]], smoke: bool) -> str:
    """What the table is of: the data, the versions, the revision, from the runs themselves."""
    every = [result for results in found.values() for result in results]
    said = {
        key: sorted({str(result.environment[key]) for result in every if result.environment.get(key)})
        for key in ("data", "processor", "torch", "kernels", "git_revision")
    }
    about = "\n".join(f"- {key.replace('_', ' ')}: {'; '.join(values)}" for key, values in said.items() if values)
    title = "# Every preset alive" if smoke else "# Results"
    what = (
        "A few steps on a few images: these figures say that each preset runs, and nothing of how well it learns."
        if smoke
        else "Written by `reproduce.py`: each preset's own run beside what its report published."
    )
    return f"{title}\n\n{what}\n\n{about}"


def smoke_table(found: Mapping[str, Sequence[Result]], failed: Mapping[str, str]) -> str:
    """That every preset ran: a line each, with no accuracy."""
    lines = [("recipe", "parameters", "started from", "steps", "training time", "device")]
    for recipe in RECIPES:
        if recipe in failed:
            lines.append((recipe, "", "", failed[recipe], "", ""))
        elif recipe in found:
            result = found[recipe][0]
            lines.append(
                (
                    recipe,
                    f"{parameters(result.config):,}",
                    started_from(recipe, result.config),
                    str(result.rows[-1]["step"]),
                    f"{sum(row['seconds'] for row in result.rows):.1f} s",
                    result.environment.get("device", ""),
                )
            )
    return markdown(lines)
