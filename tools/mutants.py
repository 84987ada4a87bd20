"""Mutants: the code broken in one place, drawn from a seed, and whether the tests of its own room notice.

    python -m tools.mutants                         300, as many of each room, by seed 0
    python -m tools.mutants data/cache.py:44        those of this line; of all places whose name has this in it
    python -m tools.mutants checkpoint --list       which there are

A comparison swapped or moved by one, arithmetic turned round, a number off by one, a condition forced, a truth value
turned, a statement removed, None returned, an argument left out. Texts, annotations and docstrings stay as they are.

A mutant is made in a copy of the repository, in a temporary folder, and tested in a process forked from this one, which
has imported torch (libraries for mutants start anew for each), and nothing of ours, since compiled kernels are loaded
once. Tests that take seconds by themselves are left out. What survives is to be killed by a test, or explained: it may
be the same program.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PRELOADED = (
    "torch", "torchvision", "torch._dynamo", "numpy", "scipy.io", "sklearn.datasets", "matplotlib.pyplot", "hypothesis",
    "PIL.Image", "pytest",
)  # fmt: skip
MEMORY = 8 * 2**30  # bytes that the tests of a mutant may take
# room -> file or pattern under resnet_min/ -> its tests under tests/, those that notice most first
ROOMS = {
    "kernels": {
        "kernels/backend.py": "kernels/test_backend.py kernels/test_crop_flip.py",
        "kernels/checks.py": "kernels/test_crop_flip.py kernels/test_conv3x3.py",
        "kernels/bn_add_relu.py": "kernels/test_bn_add_relu.py",
        "kernels/conv3x3.py": "kernels/test_conv3x3.py",
        "kernels/conv_bn_relu.py": "kernels/test_conv_bn_relu.py",
        "kernels/crop_flip.py": "kernels/test_crop_flip.py",
        "kernels/fused_net.py": "kernels/test_fused_net.py",
        "kernels/sync_bn.py": "kernels/test_sync_bn.py",
    },
    "data": {
        "data/batches.py": "data/test_batches.py",
        "data/splits.py": "data/test_data.py data/test_batches.py",
        "data/cache.py": "data/test_data.py data/test_strangers.py",
    },
    "training": {
        "training/checkpoint.py": "training/test_checkpoint.py training/test_validate.py",
        "training/validate.py": "training/test_validate.py",
        "training/loop.py": "training/test_loop.py",
    },
    "runs": {
        "runs/folder.py": "runs/test_folder.py runs/test_tables.py test_train.py runs/test_interrupted.py",
        "runs/pace.py": "runs/test_pace.py runs/test_interrupted.py",
        "runs/job.py": "runs/test_job.py test_train.py runs/test_interrupted.py",
        "runs/watch.py": "runs/test_watch.py",
    },
    "tasks": {
        "tasks/*.py": "tasks/test_loading.py tasks/test_classify.py tasks/test_a_third_task.py test_eval.py",
        "tasks/classify/task.py": "tasks/test_classify.py test_eval.py",
        "tasks/classify/shift.py": "tasks/test_shift.py",
        "tasks/crowd/task.py": "tasks/test_crowd.py",
    },
    "viz": {
        "viz/page.py": "viz/test_page.py tasks/test_report.py",
    },
}
LEFT_OUT = (
    "other_instruction_sets or portable_kernel or every_layer_of_our_nets or every_convolution_of_our_nets or "
    "the_command or any_moment or modules_are_imported or it_learns or after_a_kill or learns_to_count"
)

# What stands for an operator of the key, in turn.
OPERATORS = {
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn],
    ast.NotIn: [ast.In], ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt], ast.And: [ast.Or], ast.Or: [ast.And], ast.Add: [ast.Sub], ast.Sub: [ast.Add],
    ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult], ast.Mod: [ast.Mult], ast.Pow: [ast.Mult],
    ast.BitOr: [ast.BitAnd], ast.BitAnd: [ast.BitOr],
}  # fmt: skip


class Mutant(NamedTuple):
    place: str  # "resnet_min/data/cache.py:44"
    was: str
    now: str
    source: str  # of the whole file

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.was.split())}  ->  {self.now}"


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """All mutants of a file, each with one place changed."""
    text, starts = source.encode(), [0]  # of each line, in bytes, as the positions in a line are
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in _within(ast.parse(source)):
        for place, now in _changes(node):
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            mutated = text[:start] + now.encode() + text[end:]
            yield Mutant(f"{file}:{place.lineno}", text[start:end].decode(), now, mutated.decode())


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those in it, but for annotations, decorators, texts with values in them, what only type checkers see,
    and zip's `strict`, which is a check of our own."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for part in value if isinstance(value, list) else [value]:
            ours = isinstance(part, ast.keyword) and part.arg == "strict"
            typing = isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING"
            if isinstance(part, ast.AST) and not isinstance(part, ast.JoinedStr) and not ours and not typing:
                yield from _within(part)


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What of a node may be something else, and what."""

    def with_(**fields: object) -> str:
        return f"({ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **fields}))})"

    match node:
        case ast.Compare(ops=operators):
            for at, operator in enumerate(operators):
                for other in OPERATORS[type(operator)]:
                    yield node, with_(ops=[*operators[:at], other(), *operators[at + 1 :]])
        case ast.BoolOp(op=operator, values=values):
            yield node, with_(op=OPERATORS[type(operator)][0]())
            for at in range(len(values)):
                rest = values[:at] + values[at + 1 :]
                yield node, with_(values=rest) if len(rest) > 1 else f"({ast.unparse(rest[0])})"
        case ast.BinOp(op=operator, right=right) if type(operator) in OPERATORS and not _is_text(right):
            yield node, with_(op=OPERATORS[type(operator)][0]())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield from ((node, repr(value + 1)), (node, f"({value - 1!r})"))
        case ast.Call(args=args, keywords=keywords):
            for at, keyword in enumerate(keywords):
                if keyword.arg != "strict":
                    yield node, with_(keywords=keywords[:at] + keywords[at + 1 :])
            if len(args) > 1:
                yield node, with_(args=args[:-1])
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(test, ast.Constant):
            yield from ((test, "True"), (test, "False"))
        case ast.comprehension(ifs=conditions):
            yield from ((condition, now) for condition in conditions for now in ("True", "False"))
        case ast.Return(value=ast.AST() as value) if ast.unparse(value) != "None":
            yield value, "None"
        case ast.Expr(value=value) if not isinstance(value, ast.Constant):
            yield node, "pass"
        case ast.Raise() | ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"


def _is_text(node: ast.AST) -> bool:  # of a path or a message
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def draw(part: str, count: int, seed: int) -> dict[str, list[tuple[Mutant, str]]]:
    """room -> mutants at places whose name has `part` in it, and their tests: at most `count`, as many of each room."""
    drawn = {}
    for room, files in ROOMS.items():
        found = {}  # a file that two patterns fit has the later one's tests
        for pattern, tests in files.items():
            found |= {path: tests for path in sorted((ROOT / "resnet_min").glob(pattern))}
        all_ = [
            (mutant, tests)
            for path, tests in found.items()
            for mutant in mutants(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
            if part in mutant.place
        ]
        chosen = sorted(random.Random(seed).sample(range(len(all_)), min(count // len(ROOMS), len(all_))))
        drawn[room] = [all_[number] for number in chosen]
    return drawn


def copy_tree(to: Path) -> None:
    """What git knows, changed as it is, and the compiled kernels."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "resnet_min").glob("_[Cb]*.*o*")]
    for name in [*listed.split("\0")[:-1], *built]:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def outcome(root: Path, tests: str, seconds: float) -> str:
    """What becomes of a mutant in the tree `root` by these tests; one that takes longer than `seconds` is killed."""
    process = multiprocessing.get_context("fork").Process(target=_test, args=(root, tests))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and whatever its tests have started
    process.join()
    return "timed out" if late else "killed" if process.exitcode else "SURVIVED"


def _test(root: Path, tests: str) -> None:
    import pytest

    os.setsid()
    os.chdir(root)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with open(root / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.modules.pop("tools", None)  # the tree's own is to be imported
    sys.path[:] = [str(root), *(path for path in sys.path if path not in ("", str(ROOT)))]
    paths = [f"tests/{name}" for name in tests.split()]
    code = pytest.main(["-qx", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})", *paths])
    sys.stdout.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m tools.mutants"
    )
    parser.add_argument("part", nargs="?", default="", help="only places whose name has this in it, as in cache.py:44")
    parser.add_argument("--count", type=int, default=300, help="how many at most, divided among rooms (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--list", action="store_true", help="say which there are, and run none")
    args = parser.parse_args(argv)
    drawn = draw(args.part, args.count, args.seed)
    if args.list:
        print(*(mutant for chosen in drawn.values() for mutant, _ in chosen), sep="\n")
        return
    if not any(drawn.values()):
        parser.error(f"no mutants of {args.part}")
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True  # a mutant's would be taken for another's of the same second and length
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_tree(root)
        limits, counts = {}, {}
        for room, chosen in drawn.items():
            counts[room] = collections.Counter()
            for mutant, tests in chosen:
                if tests not in limits:
                    began = perf_counter()
                    if outcome(root, tests, 600) != "SURVIVED":
                        sys.exit(f"{(root / 'output').read_text()}\nwithout a mutant these tests fail: {tests}")
                    limits[tests] = 10 + 3 * (perf_counter() - began)
                path = root / mutant.place.partition(":")[0]
                whole = path.read_bytes()
                path.write_text(mutant.source, encoding="utf-8")
                began = perf_counter()
                end = outcome(root, tests, limits[tests])
                path.write_bytes(whole)
                counts[room][end] += 1
                print(f"{end:9} {perf_counter() - began:5.1f} s  {mutant}", flush=True)
    for room, count in counts.items():
        if count:
            print(f"{room}: {count.total()} mutants,", ", ".join(f"{n} {end}" for end, n in count.most_common()))


if __name__ == "__main__":
    main()
