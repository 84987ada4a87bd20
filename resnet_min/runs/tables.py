"""The tables of RESULTS.md: runs of recipes beside what was published for them."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..config import Figure
from ..files import printable
from ..recipes import RECIPES, extent
from ..tasks.options import TaskConfig
from .results import Result, epoch_to_converge

Table = dict[str, dict[str, str]]  # recipe -> title of a column -> cell
TEST = "test, last epoch"
COLUMNS = (
    "recipe", TEST, "published", "gap", "seeds", "epochs", "training: last, best (published)",
    "validation (published)", "hardware",
)  # fmt: skip
FURTHER = (  # of a second table of the same recipes
    "recipe", "parameters", "started from", "best epoch on test¹", "converged at² (published)",
    "training time (published)", "remark",
)  # fmt: skip
SMOKE_COLUMNS = ("recipe", "parameters", "started from", "steps", "training time", "device")
FEW = 5_000_000  # parameters: Yuan & Zhang's limit


def table(found: Mapping[str, Sequence[Result]], failed: Mapping[str, str]) -> Table:
    """Ours beside the published: a row for each recipe of `found`, and of `failed` (recipe -> why)."""
    rows = {}
    for recipe in RECIPES:
        if recipe in found:
            rows[recipe] = _row(recipe, found[recipe], failed.get(recipe))
        elif recipe in failed:
            rows[recipe] = dict.fromkeys((*COLUMNS, *FURTHER), "") | {"recipe": recipe, TEST: failed[recipe]}
    return rows


def _row(recipe: str, results: Sequence[Result], failed: str | None) -> dict[str, str]:
    """A recipe's row: of its finished runs, and where some are more of the recipe than others, of those alone."""
    most = max((result.reach for result in results if result.finished), default=None)
    done = [result for result in results if result.finished and result.reach == most]
    shown = done or [max(results, key=lambda result: (result.reach, len(result.rows)))]
    config, published, rows = shown[0].config, RECIPES[recipe].published, [result.rows for result in done]
    figure, last = config.figure, [every[-1] for every in rows]
    test = f"in epoch {shown[0].rows[-1]['epoch'] + 1} of {config.epochs}"
    gap = training = validation = best = ""
    if done:
        test = _figures(figure, last, "test")
        if published.test is not None:
            gap = f"{statistics.mean(figure.of(row, 'test') for row in last) - published.test:+.2f}"
        highest = [figure.best_row(every, "train") for every in rows]
        training = f"{_figures(figure, last, 'train')}, {_figures(figure, highest, 'train')}"
        validation = _figures(figure, last, "val")
        if validation:
            best = "not looked at"
        else:
            best = _figures(figure, [figure.best_row(every, "test") for every in rows], "test")
    converged = [epoch for every in rows if (epoch := epoch_to_converge(every)) is not None]
    seconds = statistics.mean(sum(row["seconds"] for row in result.rows) for result in shown)
    count = parameters(config)
    cells = (
        recipe,
        f"{test}; {failed}" if failed else test,
        _published(figure, published.test, published.above, published.beside) or published.note,
        gap,
        str(len(done) or ""),
        extent(config, shown[0].whole),
        _beside(training, _published(figure, published.train)),
        _beside(validation, _published(figure, published.val)),
        _several(hardware(result.environment) for result in shown),
        recipe,
        f"{count:,}" + ", under 5M" * (count < FEW),
        _several(started_from(recipe, result.config) for result in shown),
        best,
        _beside(", ".join(map(str, converged)), str(published.epoch or "")),
        _beside(f"{seconds:,.0f} s", "" if published.seconds is None else f"{published.seconds:,g} s"),
        _several(start.get("remark") for result in shown for start in result.starts),
    )
    return dict(zip((*COLUMNS, *FURTHER), cells, strict=True))


def _figures(figure: Figure, rows: Sequence[Mapping[str, Any]], split: str) -> str:
    """ "93.10% ± 0.12", "MAE 24.29, MSE 37.29": of several runs' rows, mean and deviation; "" where not measured."""
    said = []
    for key, title in ((figure.key, "" if figure.unit else figure.title), *([figure.beside] if figure.beside else [])):
        values = [row[f"{split}_{key}"] for row in rows if f"{split}_{key}" in row]
        if values:
            unit = figure.unit if key == figure.key else ""
            said.append(f"{title} {mean_and_deviation(values, unit)}".strip())
    return ", ".join(said)


def _published(figure: Figure, value: float | None, above: bool = False, beside: tuple | None = None) -> str:
    """A published figure as ours is written; "" where there is none."""
    if value is None:
        return ""
    said = f"{'' if figure.unit else figure.title} {'> ' * above}{value:g}{figure.unit}".strip()
    return said + ("" if beside is None else ", {} {:g}".format(*beside))


def _beside(ours: str, published: str) -> str:
    return f"{ours} ({published})".strip() if published else ours


def _several(values: Iterable[object]) -> str:
    """The different ones of some values, without what is empty."""
    return ", ".join(sorted({str(value) for value in values if value}))


def hardware(start: Mapping[str, Any]) -> str:
    """ "Xeon 6/207 AVX512 bf16 (1 thread), float32": the device of a start, a CPU by what its record says of it."""
    device, processor = str(start.get("device") or ""), str(start.get("processor") or "")
    short = re.sub(r"\((R|TM)\)|\b(Intel|AMD|Processor|CPU)\b|\b\d+ cores\b|,", "", processor)
    short = " ".join(re.sub(r"\(family (\d+) model (\d+)\)", r"\1/\2", short).split())
    return device.replace("cpu", short or "cpu without a name", 1) if device.startswith("cpu") else device


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
    """ "93.10% ± 0.12": mean and standard deviation of a sample; of a single value, the value."""
    mean = f"{statistics.mean(values):.2f}{unit}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


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


def _worth(row: Mapping[str, str]) -> tuple[float, ...]:
    """What a row rests on: as `Result.reach` has it, and how many finished runs; or the epoch of one that is not."""
    seeds, said = row.get("seeds", ""), row.get("epochs", "")
    if not seeds.isdigit():
        begun = re.match(r"in epoch (\d+)", row.get(TEST, ""))
        return 0, 0, 0, int(begun[1]) if begun else 0
    epochs, whole = map(int, re.match(r"(\d+) of (\d+) epochs|", said).groups("0"))
    share, limit = re.search(r"([\d.]+)% of the training", said), re.search(r"(\d+) images of each", said)
    passes = min(epochs, whole) * (float(share[1]) / 100 if share else 1)
    return int(limit[1]) if limit else math.inf, passes, int(seeds), 0


def markdown(rows: Table, smoke: bool = False) -> str:
    """A Markdown table with even columns, as many as the rows have together; or two, of COLUMNS and of the others."""
    titles = dict.fromkeys(title for row in rows.values() for title in row)
    groups = [list(titles)]
    if not smoke:
        groups = [
            [title for title in titles if title in COLUMNS],
            ["recipe", *(title for title in titles if title not in COLUMNS)],
        ]
    return "\n\n".join(_markdown(rows, group) for group in groups if len(group) > 1)


def _markdown(rows: Table, titles: Sequence[str]) -> str:
    lines = [titles, *([_escaped(row.get(title, "")) for title in titles] for row in rows.values())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def read_markdown(text: str) -> Table:
    """The rows of the tables of recipes in `text`, as `markdown` writes them; none where there are none."""
    rows: Table = {}
    for found in re.finditer(r"(?:^\| .*\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in found[0].splitlines()
        ]
        if lines[0][0] == "recipe":
            for line in lines[2:]:
                rows.setdefault(line[0], {}).update(zip(lines[0], line, strict=False))
    return rows


def _escaped(cell: str) -> str:
    return printable(" ".join(cell.split())).replace("|", r"\|")


FOOTNOTES = (
    "¹ chosen by looking at the test set: only to compare with reports that quote it. "
    "² the first epoch whose training loss, the median of its own and its two neighbours', is within 2% of its whole "
    "fall above its lowest; none where that is in the last quarter of the epochs, or the last two: it may fall on. "
    "The test figure of the last epoch is ours, and the gap is from it; ± is the standard deviation over seeds. "
    "Training figures are of images as they were trained on, by a network that was changing. "
    "Times are of the training passes alone. "
    "A processor stands by its name, family/model, and what torch vectorises for, as far as the record has them."
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
