"""A run's folder: config.json, environment.jsonl (a line a start), metrics.jsonl (a line an epoch), steps.jsonl (a line
a step), checkpoints, pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import Terminated, UserError
from ..files import named, sweep, write_whole

LOGS = {"metrics.jsonl": "epoch", "steps.jsonl": "step"}  # what a line is of
FILES = ("config.json", "environment.jsonl", "metrics.jsonl", "steps.jsonl", "last.pt", "best.pt", "curves.png")


def new_folder(out: str | None, config: Config, data_name: str) -> Path:
    """The folder of a new run: `out`, or the next free runs/ARCH[-plain]-DATA-K. Raises UserError for a file."""
    if out is None:
        return _next_free(f"{config.arch}{'-plain' if config.plain else ''}-{data_name}")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def of_launch(launch: str, out: str | None) -> Path | None:
    """The folder, `out` or one under runs/, of the run that a start of torchrun began; None where it had not yet."""
    folders = [Path(out)] if out else Path("runs").glob("*")
    mine = [folder for folder in folders if launch in {row.get("launch") for row in starts(folder)}]
    return max(mine, key=lambda folder: (folder / "environment.jsonl").stat().st_mtime, default=None)


def starts(folder: Path) -> list[dict[str, Any]]:
    """What `environment` said at each start of a run, the last one last."""
    return _lines(folder / "environment.jsonl")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run's folder; one that dies lets go. What killed ones left is removed.

    A signal's exception (see errors.py) gets a message that says how to go on. Raises UserError where another process
    trains there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is training in {folder}: wait for its end, or name another folder") from None
    try:
        sweep(folder)
        yield
    except KeyboardInterrupt as error:
        said = "terminated" if isinstance(error, Terminated) else "interrupted"
        kept = f"python train.py --resume {folder} goes on" if (folder / "last.pt").is_file() else "nothing was saved"
        raise type(error)(f"{said}: {kept}") from None
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # before it is let go: then it may be another's
        lock.release()


class Run:
    """Appends to a run's logs, each line when it is known. `rows` holds the lines of metrics.jsonl."""

    def __init__(self, folder: Path, config: Config, environment: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.folder, self.rows = folder, rows
        write_whole(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")
        write_whole(folder / "environment.jsonl", _jsonl([*starts(folder), environment]))

    @classmethod
    def create(cls, folder: Path, overwrite: bool, config: Config, environment: dict[str, Any]) -> Run:
        """A new run in `folder`. Raises UserError where that holds one that may not be overwritten."""
        if any((folder / name).exists() for name in FILES):
            if not overwrite:
                goes_on = f"--resume {folder} goes on, " if (folder / "last.pt").is_file() else ""
                raise UserError(f"{folder} already holds a run: {goes_on}--overwrite replaces it")
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # which would show both runs as one
        return cls(folder, config, environment, [])

    @classmethod
    def reopen(cls, folder: Path, config: Config, environment: dict[str, Any], epoch: int, step: int) -> Run:
        """Go on in `folder` after `epoch`, which ended with `step`. Later lines go: they are written again."""
        rows = []
        for name, last in (("steps.jsonl", step), ("metrics.jsonl", epoch)):
            unit = LOGS[name]
            rows = [row for row in _lines(folder / name) if _is_number(row.get(unit)) and row[unit] <= last]
            write_whole(folder / name, _jsonl(rows))
        return cls(folder, config, environment, rows)

    def log(self, row: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        """Append an epoch's line and its steps', on disk before a checkpoint says that they are there."""
        self.rows.append(row)
        for name, rows in (("metrics.jsonl", [row]), ("steps.jsonl", steps)):
            with named(self.folder / name), open(self.folder / name, "a") as file:
                file.write(_jsonl(rows))
                file.flush()
                os.fsync(file.fileno())


def is_complete(folder: Path, epoch: int) -> bool:
    """Whether a run that has saved its last epoch, `epoch`, also ended in order: with curves, and without its lock."""
    last, curves = folder / "last.pt", folder / "curves.png"
    if not last.is_file() or [row.get("epoch") for row in _lines(folder / "metrics.jsonl")[-1:]] != [epoch]:
        return True  # another kind of folder, such as of a checkpoint alone: nothing could be drawn
    drawn = curves.is_file() and curves.stat().st_mtime >= last.stat().st_mtime
    return drawn and not (folder / ".lock").exists()


def names(runs: Sequence[Path]) -> list[str]:
    """What to call runs, or checkpoints that are not a run's `last.pt`, in tables and legends, each otherwise."""
    places = [Path(os.path.abspath(run)) for run in runs]
    short = [place.name if place.suffix != ".pt" else f"{place.parent.name}/{place.stem}" for place in places]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def from_start(run: str | Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's rows for curves, before them epoch 0: the loss of the first step, which nothing had been learnt for.

    Without it, where the run has no log of its steps.
    """
    run = Path(run)
    steps = _lines((run if run.is_dir() else run.parent) / "steps.jsonl")[:1]
    return [{"epoch": 0, "train_loss": step["loss"]} for step in steps if _is_number(step.get("loss"))] + rows


def named_by(labels: Sequence[str] | None, names: Sequence[str]) -> Sequence[str]:
    """What --label calls runs, or else `names`. Raises UserError where they are not as many, or two are alike."""
    if labels is None:
        return names
    if len(labels) != len(names) or len(set(labels)) < len(labels):
        raise UserError(f"--label wants {len(names)} different names, one for each; got {len(labels)}")
    return labels


def option_of(folder: Path, name: str) -> float:
    """The number that an option has in a run. Raises UserError where it is none, or the run does not say."""
    try:
        value = json.loads((folder / "config.json").read_text()).get(name.replace("-", "_"))
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{folder} holds no readable config.json that says its options") from None
    if not _is_number(value):
        raise UserError(f"--over {name}: {folder} has no number for it; options are named as train.py's flags")
    return value


def _next_free(stem: str) -> Path:
    number = 1
    while True:
        folder = Path("runs", f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)  # fails where another run was quicker
            return folder
        except FileExistsError:
            number += 1


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, but for lines that a kill cut short; none where it is not there."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


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
