"""Times ours beside what a user would pick instead: same data, one process, in turn, each checked before it is timed.

    python -m tools.benchmark augment [--device cpu] [--json augment.json]
    python -m tools.benchmark roofline --arch resnet18
    python -m tools.benchmark kernels --arch resnet18
    python -m tools.benchmark training --arch resnet20
    python -m tools.benchmark scaling --arch resnet20
    python -m tools.benchmark inference --arch resnet18 --batch 256
    python -m tools.benchmark inference --run runs/NAME
    python -m tools.benchmark serving --json serving.json
    python -m tools.benchmark serving --quick --arch resnet20 --batch 1
    python -m tools.benchmark server --seconds 60 --clients 4

Rows are printed as they come, and the JSON file, written whole after each case, also holds the command, hardware,
versions and threads. A table begins no case after eight minutes: the same command with the same --json then goes on
with the cases that are left.
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

from resnet_min.commands import Parser
from resnet_min.config import ARCHS
from resnet_min.errors import UserError, run_script
from resnet_min.files import write_whole

from . import TABLES

if TYPE_CHECKING:  # torch is imported where it is used, so that --help is quick
    from .timing import Row

MINUTES = 8  # no case is begun after so many
MOST_SECONDS, MOST_CLIENTS = 150, 64  # of server


# What follows the ratio in a line, where the table has it: key of the row -> (head, how it is written).
FURTHER = {
    "best_is": ("ours/best", ".2f"),
    "peak_mib": ("peak MiB", ",.1f"),
    "of_fma": ("of FMA", ".0%"),
    "error": ("error", ".0e"),
    "logits_off": ("off by", ".0e"),
    "largest_logit": ("largest", ",.1f"),
    "changed": ("changed", ",d"),
    "predictions": ("of", ",d"),
    "p50_ms": ("p50 ms", ",.2f"),
    "p90_ms": ("p90 ms", ",.2f"),
    "p99_ms": ("p99 ms", ",.2f"),
    "timed": ("of", ",d"),
    "start_s": ("start s", ",.2f"),
    "resident_mib": ("MiB held", ",.0f"),
}


def print_row(row: Row, first: bool) -> None:
    """The columns a table adds itself, then the name, images a second, the ratio, each with its spread, and others."""
    measured = ("name", "per_second", "ours_is", *FURTHER)
    own = {key: value for key, value in row.items() if not key.startswith(measured)}
    further = {key: how for key, how in FURTHER.items() if key in row}
    wide = {key: {"layer": 36, "kernel": 14}.get(key, 10) for key in own}
    if first:
        head = "".join(f"{key:<{wide[key]}}" for key in own)
        rest = "".join(f"{title:>10}" for title, _ in further.values())
        print(f"{head}{'':36}{'images/s':>12}  {'(min-max)':<23}{'ours is':>9}  {'(min-max)':<14}{rest}")
    rate = f"{row['per_second']:12,.0f}  {'({per_second_min:,.0f}-{per_second_max:,.0f})'.format(**row):<23}"
    ratio = f"{row['ours_is']:8.2f}x  {'({ours_is_min:.2f}-{ours_is_max:.2f})'.format(**row):<14}"
    rest = "".join(f"{'-' if row[key] is None else format(row[key], how):>10}" for key, (_, how) in further.items())
    about = "".join(f"{value!s:<{wide[key]}}" for key, value in own.items())
    print(f"{about}{row['name']:<36}{rate}{ratio}{rest}", flush=True)


def get_args(argv: list[str]) -> argparse.Namespace:
    """The flags, checked."""
    parser = Parser(prog="python -m tools.benchmark", description=__doc__)
    parser.add_argument("table", choices=TABLES, help="what to time")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument(
        "--arch",
        choices=ARCHS,
        help="network (not of augment; default: resnet18, of serving and server each of theirs)",
    )
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="batch sizes (default: the table's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here, or go on with it")
    parser.add_argument("--run", help="of inference: a trained network, its folder or checkpoint")
    parser.add_argument("--data", help="of inference --run: its data, where they are elsewhere now")
    parser.add_argument("--quick", action="store_true", help="of serving: leave out torch.compile and fresh processes")
    parser.add_argument("--seconds", type=float, default=60, help="of server: load on each contender (default: 60)")
    parser.add_argument("--clients", type=int, default=4, metavar="N", help="of server: asking at once (default: 4)")
    args = parser.parse_args(argv)
    if args.arch is None and args.table not in ("serving", "server"):
        args.arch = "resnet18"
    if args.batch and min(args.batch) < 1:
        raise UserError(f"--batch must be at least 1; got {min(args.batch)}")
    if not 0 < args.seconds <= MOST_SECONDS:
        raise UserError(f"--seconds must be above 0 and at most {MOST_SECONDS}; got {args.seconds:g}")
    if not 1 <= args.clients <= MOST_CLIENTS:
        raise UserError(f"--clients must be 1 to {MOST_CLIENTS}; got {args.clients}")
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
    from resnet_min.training import hardware

    from . import timing

    args.device = hardware.find_device(args.device or "auto")
    command = shlex.join(["python", "-m", "tools.benchmark", *argv])
    table = importlib.import_module(f".{args.table}", __package__)
    about = timing.about(args.device, getattr(table, "VERSIONS", ()))
    facts = {"table": args.table, "command": command, **about}
    rows = begun(args.json, facts)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler, which measures memory, talks
    print(
        "{hardware}; {threads} thread{s}; torch {versions[torch]}; {kernels}".format(
            s="s" * (facts["threads"] != 1), **facts
        )
    )
    show = getattr(table, "print_row", print_row)
    for number, row in enumerate(rows):
        show(row, first=number == 0)
    run = getattr(table, "run", timing.run)
    for case in table.cases(args):
        if any(case.about.items() <= row.items() for row in rows):
            continue
        if time.monotonic() - started > 60 * MINUTES:
            more = "" if args.json else " with --json"
            print(f"stopped after {MINUTES} minutes; run the same command{more} to continue")
            break
        for row in run(case, args.device):
            show(row, first=not rows)
            rows.append(row)
        if args.json:
            write_whole(args.json, json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
