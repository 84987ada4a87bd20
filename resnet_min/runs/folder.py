"""A run's folder: config.json, environment.jsonl (a line a start), metrics.jsonl (a line an epoch), steps.jsonl (a line
a step), checkpoints, pictures."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import UserError
from ..files import write_whole

LOGS = {"metrics.jsonl": "epoch", "steps.jsonl": "step"}  # what a line is of
FILES = ("config.json", "environment.jsonl", "metrics.jsonl", "steps.jsonl", "last.pt", "best.pt", "curves.png")


class Run:
    """Appends to a run's logs, each line when it is known. `rows` holds the lines of metrics.jsonl."""

    def __init__(self, folder: Path, config: Config, environment: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.folder, self.rows = folder, rows
        write_whole(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")
        self._append("environment.jsonl", [environment])

    @classmethod
    def create(
        cls, out: str | None, overwrite: bool, config: Config, environment: dict[str, Any], data_name: str
    ) -> Run:
        """A new run in folder `out`, or in the next free runs/ARCH[-plain]-DATA-K.

        Raises UserError where `out` holds a run that may not be overwritten, or is a file.
        """
        if out is None:
            folder = _next_free(f"{config.arch}{'-plain' if config.plain else ''}-{data_name}")
            return cls(folder, config, environment, [])
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder} is a file; name a folder")
        if any((folder / name).exists() for name in FILES):
            if not overwrite:
                raise UserError(f"{folder} already holds a run: --resume {folder} goes on, --overwrite replaces it")
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, config, environment, [])

    @classmethod
    def reopen(cls, folder: Path, config: Config, environment: dict[str, Any], epoch: int, step: int) -> Run:
        """Go on in `folder` after `epoch` and `step`. Later lines go: their checkpoint was never written."""
        _truncate(folder / "steps.jsonl", "step", step)
        return cls(folder, config, environment, _truncate(folder / "metrics.jsonl", "epoch", epoch))

    def log(self, row: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        """Append an epoch's line and its steps'."""
        self.rows.append(row)
        self._append("metrics.jsonl", [row])
        self._append("steps.jsonl", steps)

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        with open(self.folder / name, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def names(runs: Sequence[Path]) -> list[str]:
    """What to call runs, or checkpoints that are not a run's `last.pt`, in tables and legends, each otherwise."""
    places = [Path(os.path.abspath(run)) for run in runs]
    short = [place.name if place.suffix != ".pt" else f"{place.parent.name}/{place.stem}" for place in places]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _next_free(stem: str) -> Path:
    number = 1
    while True:
        folder = Path("runs", f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)  # fails where another run was quicker
            return folder
        except FileExistsError:
            number += 1


def _truncate(path: Path, key: str, last: int) -> list[dict[str, Any]]:
    """Keep the lines of a .jsonl file whose `key` is at most `last`, and return them."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # a line that a kill cut short: nothing after it counts
            break
        if row[key] <= last:
            kept.append(row)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


def read_rows(run: str | Path, log: str = "metrics.jsonl") -> list[dict[str, float]]:
    """The rows of a run's log, in order. `run` is the run's folder, or a file in it; `log` one of LOGS.

    Raises UserError, naming file and line, where there is none, or it is empty or damaged.
    """
    run, unit = Path(run), LOGS[log]
    path = (run if run.is_dir() else run.parent) / log
    if not run.exists():
        raise UserError(f"no run at {run}")
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {log}: it is not a run, or its first epoch is not over")
    rows = []
    whole, _, _unfinished = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")  # or cut by a kill
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not (isinstance(row, dict) and unit in row and all(map(_is_number, row.values()))):
            raise UserError(f"{path}, line {number} is damaged: wanted a JSON object of numbers with {unit}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no {unit}: the run's first epoch is not over")
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
