"""Times ours beside what a user would pick instead: same data, one process, in turn, each checked before it is timed.

    python -m tools.benchmark augment [--device cpu] [--json augment.json]
    python -m tools.benchmark kernels --arch resnet18
    python -m tools.benchmark training --arch resnet20
    python -m tools.benchmark inference --arch resnet18 --batch 256

Rows are printed as they come, and the JSON file, written whole after each case, also holds the command, hardware,
versions and threads. A table ends after nine minutes at most: the same command with the same --json then goes on with
the cases that are left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min.config import ARCHS
from resnet_min.errors import UserError, run_script
from resnet_min.files import write_whole

from . import TABLES

if TYPE_CHECKING:  # torch is imported where it is used, so that --help is quick
    from .timing import Row

MINUTES = 8  # no case is begun after so many


def print_row(row: Row, first: bool) -> None:
    """The columns a table adds itself, then the name, images a second, the ratio, each with its spread, and memory."""
    measured = ("name", "per_second", "ours_is", "peak_mib")
    own = {key: value for key, value in row.items() if not key.startswith(measured)}
    wide = {key: {"layer": 36, "kernel": 14}.get(key, 10) for key in own}
    if first:
        head = "".join(f"{key:<{wide[key]}}" for key in own)
        print(f"{head}{'':36}{'images/s':>12}  {'(min-max)':<23}{'ours is':>9}  {'(min-max)':<14}{'peak MiB':>9}")
    rate = f"{row['per_second']:12,.0f}  {'({per_second_min:,.0f}-{per_second_max:,.0f})'.format(**row):<23}"
    ratio = f"{row['ours_is']:8.2f}x  {'({ours_is_min:.2f}-{ours_is_max:.2f})'.format(**row):<14}"
    about = "".join(f"{value!s:<{wide[key]}}" for key, value in own.items())
    print(f"{about}{row['name']:<36}{rate}{ratio}{row['peak_mib']:9,.1f}", flush=True)


def get_args(argv: list[str]) -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("table", choices=TABLES, help="what to time")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--arch", choices=ARCHS, default="resnet18", help="network (not of augment)")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="batch sizes (default: the table's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here, or go on with it")
    args = parser.parse_args(argv)
    if args.batch and min(args.batch) < 1:
        raise UserError(f"--batch must be at least 1; got {min(args.batch)}")
    return args


def begun(path: Path | None, facts: dict[str, Any]) -> list[Row]:
    """The rows that an earlier run of the same command left in `path`. Raises UserError where they are of another."""
    if path is None or not path.exists():
        return []
    try:
        table = json.loads(path.read_text())
        rows, theirs = table["rows"], {key: table[key] for key in facts}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--json {path} was not written by this command; name another file") from None
    if other := [key for key in facts if theirs[key] != facts[key]]:
        raise UserError(f"--json {path} was made with other {other[0]}; name another file, or remove it")
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print the table asked for, and write it where asked."""
    started = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    args = get_args(argv)
    from . import timing

    args.device = timing.device_of(args.device)
    command = shlex.join(["python", "-m", "tools.benchmark", *argv])
    facts = {"table": args.table, "command": command, **timing.about(args.device)}
    rows = begun(args.json, facts)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler, which measures memory, talks
    print(
        "{hardware}; {threads} thread{s}; torch {versions[torch]}; {kernels}".format(
            s="s" * (facts["threads"] != 1), **facts
        )
    )
    for number, row in enumerate(rows):
        print_row(row, first=number == 0)
    for case in importlib.import_module(f".{args.table}", __package__).cases(args):
        if any(case.about.items() <= row.items() for row in rows):
            continue
        if time.monotonic() - started > 60 * MINUTES:
            more = "" if args.json else " with --json"
            print(f"stopped after {MINUTES} minutes; run the same command{more} to continue")
            break
        for row in timing.run(case, args.device):
            print_row(row, first=not rows)
            rows.append(row)
        if args.json:
            write_whole(args.json, json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
