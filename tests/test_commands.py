"""Command lines drawn with hypothesis, over all scripts: exit code 0, or 2 and what is wrong; never a traceback.

More than half are made to fit and have to run; the others have a flag or value that was drawn at random. In this
process, 60 here and 2,000 with `-m slow`; 100 as commands of their own with `-m slow`.
"""

import collections
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import make_part
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import train
from resnet_min.config import ARCHS
from resnet_min.errors import run_script

ROOT = Path(__file__).parent.parent
NUMBERS = ["-1", "0", "1", "2", "3", "0.5", "1e400", "nan", "inf", "-inf", "99999999999999999999", "1_0", "x", ""]
TEXTS = ["", "x", "none", "auto", "é", "\udcff", "a/b", "..", "/dev/null", "folder", "part", "runs/a", "-", "a" * 300]
# What would take long, or ask the network, however it was drawn.
SLOW = ("--epochs", "--data-dir", "--seconds", "--save-every", "--data", "--pretrained", "--recipe", "--help")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images, a part of a crowd, a run of each, and pictures."""
    root = tmp_path_factory.mktemp("place")
    for split, count in (("train", 6), ("test", 3)):
        for name, colour in (("ant", 60), ("bee", 200)):
            folder = root / "folder" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), (colour, 40 * number, 90)).save(folder / f"{number}.png")
    make_part(root / "part", train=5, test=2, size=(64, 64))
    Image.new("RGB", (20, 30), (200, 0, 0)).save(root / "a.png")
    (root / "b.png").write_text("no picture")
    before = os.getcwd()
    os.chdir(root)
    try:
        small = ["--epochs", "2", "--blocks", "1", "1", "--strides", "1", "2", "-b", "4", "--schedule", "constant"]
        for name, more in (("a", []), ("b", ["--plain"])):
            train.main(
                ["--data", "folder", "-a", "resnet20", "--widths", "8", "8", "--out", f"runs/{name}", *small, *more]
            )
        train.main(
            ["--data", "part", "-a", "resnet18", "--widths", "8", "16", "--out", "runs/c", "--crop", "32",
             "--val-size", "1", *small]
        )  # fmt: skip
        yield root
    finally:
        os.chdir(before)


def some(draw, *options):
    """A few of `options`, each a list of flags and strategies for their values."""
    flags = []
    for option in options:
        if draw(st.integers(0, 3)) == 0:
            flags += [str(draw(part)) if isinstance(part, st.SearchStrategy) else part for part in option]
    return flags


def ints(low, high):
    return st.integers(low, high)


def one(*values):
    return st.sampled_from(values)


SHARES = one("0", "0.1", "0.5", "1")


@st.composite
def training(draw):
    """Flags of train.py that fit: at most 12 steps."""
    crowd = draw(st.integers(0, 4)) == 0
    stages = draw(ints(1, 2))
    # Not 4: torch 2.14.1 frees memory twice in the gradient of a strided 1×1 convolution of 4 channels, channels_last.
    widths = sorted(draw(st.lists(one(8, 16), min_size=stages, max_size=stages)))
    flags = ["--data", "part" if crowd else "folder", "-a", draw(one(*ARCHS)), "-b", str(draw(ints(2, 4)))]
    flags += ["--blocks", *["1"] * stages, "--widths", *map(str, widths)]
    flags += ["--strides", "1", *["2"] * (stages - 1)] if crowd or draw(st.booleans()) else []
    flags += ["--epochs", str(draw(ints(1, 2))), "--out", "out", "--overwrite"]
    flags += {
        0: ["--schedule", "constant"],
        1: ["--schedule", "cosine"],
        2: ["--schedule", "onecycle", "--warmup", "0.3"],
        3: ["--schedule", "step", "--milestone-unit", "iterations", "--milestones", "1"],
    }[draw(ints(0, 3))]
    flags += draw(one(["--optimizer", "adam"], ["--optimizer", "adamw"], ["--optimizer", "sgd", "--nesterov"]))
    if crowd:
        flags += ["--crop", "32", "--val-size", str(draw(ints(0, 1)))]
        flags += some(
            draw,
            ["--head", one("dilated", "linear")],
            ["--sigma", one("1", "4.5")],
            ["--count-weight", SHARES],
            ["--zoom", one("1", "1.5")],
        )
    else:
        flags += some(
            draw, ["--dropout", one("0", "0.5")], ["--image-size", ints(8, 24)], ["--padding", ints(0, 4)],
            ["--resize", ints(8, 24)], ["--rotation", one("0", "15", "180")], ["--label-smoothing", SHARES],
            ["--limit", ints(5, 12)], ["--val-size", ints(1, 3)], ["--mean", "0.5", "0.4", "0.3"],
        )  # fmt: skip
        flags += draw(one([], [], ["--freeze", "first-last", "--freeze-bn"], ["--freeze-children", "3"]))
    flags += some(
        draw, draw(one(["--plain"], ["--option", "B"])), ["--stem", one("cifar", "imagenet", "cifar-pool")],
        ["--flip", SHARES], ["--seed", ints(-5, 5)],
        ["--lr", one("0.1", "1e-3")], ["--wd", one("0", "1e-2")], ["--amp", one("auto", "off")], ["--no-channels-last"],
        ["--kernels", one("auto", "reference")], ["--deterministic"], ["--device", "cpu"], ["--std", "1", "1", "0.5"],
        ["--cache-dir", "cache"], ["--split-seed", ints(-3, 3)],
    )  # fmt: skip
    return "train", flags + draw(one([], ["--dry-run"]))


@st.composite
def evaluation(draw):
    """Flags of eval.py that fit."""
    run = draw(one("runs/a", "runs/b", "runs/c", "runs/a/last.pt"))
    flags = [run, *some(draw, ["-b", ints(1, 9)], ["--amp", one("auto", "off")], ["--json", "figures.json"])]
    flags += some(draw, ["--device", one("auto", "cpu")], ["--kernels", one("auto", "extension", "reference")])
    if draw(st.booleans()):
        return "eval", [*flags, "--images", *draw(st.lists(one("a.png", "folder/test", "b.png"), max_size=2)), "a.png"]
    flags += some(draw, ["--format", one("png", "svg", "pdf")], ["--title", "a $title"])
    flags += some(draw, ["--out", "pictures"], ["--cache-dir", "cache"], ["--split", "test"])
    if run == "runs/c":
        return "eval", flags + some(draw, ["--worst", ints(1, 2)])
    flags = some(draw, ["runs/b"]) + flags + some(draw, ["--tta", "flip"], ["--data", "folder"])
    return "eval", flags + draw(one([], [], [], ["--confusion"], ["--roc"], ["--reliability"], ["--worst", "3"]))


@st.composite
def looking(draw):
    """Flags of visualize.py that fit."""
    run = draw(one("runs/a", "runs/b", "runs/c", "runs/a/last.pt"))
    layer = ["--layer", draw(one("conv1", "layer1", "layer2", "stem"))]
    image = draw(one([], ["--image", "a.png"], ["--image", "1"]))
    kinds = [
        [run, "--list-layers"],
        ["--curves", *draw(one(["runs/a"], ["runs/a", "runs/b"], ["runs/c"])), "--out", draw(one("c.png", "c.svg"))],
        ["--curves", "runs/a", "--steps"],
        [run, "--layer", "conv1"],
        [
            run,
            *layer,
            "--what",
            "features",
            *image,
            *some(draw, ["--channel", ints(0, 3), ints(0, 3)], ["--grey"], ["--scale", one("layer", "map")]),
        ],
        [draw(one("runs/a", "runs/b")), "--augment", "--image", draw(one("a.png", "1")), "--title", "a $title"],
        [run, *layer, "--what", "reconstruct", *image, *some(draw, ["--channel", ints(0, 3)], ["--no-rectify"])],
        [run, *layer, "--what", "top", "--channel", "1"],
        [
            draw(one("runs/a", "runs/b")),
            *layer,
            "--what",
            "gradcam",
            *image,
            *some(draw, ["--class", one("ant", "bee")]),
        ],
        ["runs/c", *layer, "--what", "gradcam", *image],
        ["--curves", "runs/a", "runs/b", "--over", "lr", "--label", "x", "y", "--format", draw(one("svg", "pdf"))],
        [run, "--image", "a.png", "--out", "x.png"],
    ]
    return "visualize", draw(one(*kinds))


@st.composite
def exporting(draw):
    """Flags of tools.export that fit: the weights alone, since compilers take long."""
    run = draw(one("runs/a", "runs/b", "runs/c"))
    return "tools.export", [
        run,
        "--to",
        "safetensors",
        "--force",
        *some(draw, ["-b", ints(1, 9)], ["--out", "w.safetensors"]),
    ]


@st.composite
def telling(draw):
    """Command lines that fit and only say something."""
    return draw(
        one(
            ("train", ["--list-recipes"]), ("train", ["--help"]), ("eval", ["--help"]), ("visualize", ["--help"]),
            ("tools.export", ["--help"]), ("tools.reproduce", ["--help"]), ("tools.benchmark", ["--help"]),
        )
    )  # fmt: skip


def flags_of(script):
    """The flags that a script has."""
    module = importlib.import_module(f"{script}.__main__" if script == "tools.benchmark" else script)
    if hasattr(module, "get_parser"):
        return [flag for action in module.get_parser()._actions for flag in action.option_strings]
    return (
        ["--to", "--fused", "--out", "--force", "--data", "-b"] if script == "tools.export" else ["--arch", "--batch"]
    )


# Exporting fits where the package that it takes is installed: not every test environment has the extra `serving`.
SOME_EXPORTING = [exporting()] if importlib.util.find_spec("safetensors") else []
FITTING = st.one_of(
    training(), training(), evaluation(), evaluation(), looking(), looking(), *SOME_EXPORTING, telling()
)


@st.composite
def spoilt(draw):
    """A command line with a flag and a value drawn at random; or one of those that have to be refused."""
    if draw(st.integers(0, 9)) == 0:
        wrong = [
            ("tools.reproduce", ["nothing*"]), ("tools.reproduce", ["digits", "--seeds", "0"]),
            ("tools.benchmark", []), ("tools.benchmark", ["kernels", "--batch", "0"]), ("tools.benchmark", ["x"]),
            ("tools.benchmark", ["server", "--seconds", "nan"]), ("tools.benchmark", ["inference", "--device", "x"]),
            ("tools.export", ["runs/a"]), ("tools.export", ["runs/a", "--to", "onnx", "--fused"]),
            ("train", ["--resume", "runs/a"]), ("train", ["--resume", "runs/a", "--lr", "1"]),
            ("train", ["--recipe", "x"]), ("eval", ["folder"]), ("eval", ["a.png"]), ("visualize", []),
        ]  # fmt: skip
        return draw(one(*wrong))
    script, flags = draw(st.one_of(training(), training(), evaluation(), looking(), exporting()))
    known = [flag for flag in flags_of(script) if flag not in SLOW and not flag.startswith("-h")]
    flags = list(flags)
    for _ in range(draw(ints(1, 2))):
        kind = draw(ints(0, 3))
        at = draw(ints(0, len(flags)))
        if kind == 0:  # after the others, of which it replaces one
            flags += [draw(one(*known)), draw(one(*NUMBERS, *TEXTS))]
        elif kind == 1:
            flags += [draw(one(*known)), *draw(st.lists(one(*NUMBERS), max_size=3))]
        elif kind == 2 and at < len(flags) and flags[at] not in SLOW and flags[at - 1] not in SLOW:
            flags[at] = draw(one(*NUMBERS, *TEXTS))
        elif at < len(flags) and flags[at - 1] not in SLOW:
            del flags[at]
    return script, flags


COMMANDS = st.integers(0, 9).flatmap(lambda n: st.tuples(st.just(n < 6), FITTING if n < 6 else spoilt()))


def call(script, flags):
    """The exit code of a script in this process."""
    module = importlib.import_module(f"{script}.__main__" if script == "tools.benchmark" else script)
    try:
        run_script(lambda: module.main(list(flags)))
    except SystemExit as stop:
        return stop.code or 0
    return 0


def check(fits, script, flags, code, err):
    """A command line that fits runs; another may be refused, in one line."""
    said = [line for line in err.splitlines() if not line.startswith(("skipped: ", "warning: "))]
    assert "Traceback" not in err, (script, flags, err)
    assert code == 0 or (code == 2 and not fits), (script, flags, err)
    if code == 2:
        assert said and said[-1].startswith("error: ") and sum(map(str.__len__, said)) < 6000, (script, flags, err)


def run_all(count, place, run_one):
    """Draw `count` command lines and run each; how many there were of each script, and how many ended well."""
    seen, well = collections.Counter(), collections.Counter()

    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(COMMANDS)
    def draw(command):
        fits, (script, flags) = command
        signal.alarm(600)
        code, err = run_one(script, flags)
        signal.alarm(0)
        check(fits, script, flags, code, err)
        seen[script] += 1
        well[script] += code == 0
        for left in ("out", "pictures"):
            shutil.rmtree(place / left, ignore_errors=True)

    draw()
    print(f"{seen.total()} command lines, {well.total()} of them ran: {dict(seen)}")
    assert seen.total() >= count and well.total() >= count / 2


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_command_lines_in_one_process(place, count, capfd):
    threads = torch.get_num_threads()

    def run_one(script, flags):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = call(script, flags)
        return code, capfd.readouterr().err

    run_all(count, place, run_one)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_command_lines_as_commands(place):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run_one(script, flags):
        start = ["-m", script] if script.startswith("tools.") else [str(ROOT / f"{script}.py")]
        done = subprocess.run(
            [sys.executable, *start, *flags], capture_output=True, env=environment, timeout=110, errors="replace"
        )
        return done.returncode, done.stderr

    run_all(100, place, run_one)
