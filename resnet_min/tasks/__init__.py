"""What a network is trained for: one room a task. Scripts, training, plots and tables never ask which task it is.

A task is a `TaskConfig` (options and what can be said without torch) and the `Task` that it makes (task.py has the
protocol). A further task is a room of its own and a line in `TASKS`. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ..config import Figure, did_you_mean, flag
from ..errors import UserError
from .classify.options import ClassifyConfig
from .crowd.options import CrowdConfig
from .options import TaskConfig

TASKS: dict[str, type[TaskConfig]] = {"classify": ClassifyConfig, "crowd": CrowdConfig}
DEFAULT = "classify"  # where neither flags nor a recipe nor the data say


def kind(name: str) -> type[TaskConfig]:
    """A task's options by its name. Raises UserError for an unknown one."""
    if name not in list(TASKS):  # whatever it may be
        raise UserError(f"unknown task {name!r:.80}{did_you_mean(str(name), TASKS)}; known: {', '.join(TASKS)}")
    return TASKS[name]


def make_config(values: Mapping[str, Any]) -> TaskConfig:
    """The options of a new run. Raises UserError for values that do not fit, and for another task's options."""
    wanted = kind(values.get("task", DEFAULT))
    known = {item.name for item in dataclasses.fields(wanted)}
    for name in values.keys() - known:
        owners = [task for task, other in TASKS.items() if name in {item.name for item in dataclasses.fields(other)}]
        raise UserError(f"{flag(name)} is an option of --task {' or '.join(owners)}; this is --task {wanted.task}")
    return wanted(**values)


def read_config(saved: Mapping[str, Any]) -> TaskConfig:
    """The options of a saved run; those added since get their defaults, those since dropped are left out."""
    wanted = kind(saved.get("task", DEFAULT))
    known = {item.name for item in dataclasses.fields(wanted)}
    return wanted(**{key: value for key, value in saved.items() if key in known})


def recognised(data: str) -> str | None:
    """The task whose own format of data the folder `data` has; None where it is of none, or could be of several."""
    return next((name for name, config in TASKS.items() if config.recognises(data)), None)


def figure_of(rows: Iterable[Mapping[str, Any]]) -> Figure:
    """The figure that rows of metrics.jsonl were judged by. Raises UserError where they were of several, or none."""
    keys = {key for row in rows for key in row}
    found = {config.figure for config in TASKS.values() if f"train_{config.figure.key}" in keys}
    if len(found) != 1:
        what = " and ".join(sorted(figure.title for figure in found)) or "nothing that is known"
        raise UserError(f"runs are drawn over each other by one figure; these were judged by {what}")
    return found.pop()
