"""A run loses nothing: to a kill, a signal, a second process, a full disk."""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_same_run, make_part

import train
from resnet_min.errors import Terminated, UserError
from resnet_min.files import write_whole
from resnet_min.runs import pace
from resnet_min.runs.folder import held
from resnet_min.training import checkpoint
from resnet_min.viz import figures

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def flags_of(out, *flags):
    return [*TINY, "--data", "shades", "--image-size", "16", "--epochs", "3", "--out", out, *map(str, flags)]


def run(out, *flags):
    train.main(flags_of(out, *flags))


def command(*arguments, **options):
    options = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, arguments)], **options)


@pytest.fixture
def at_question(monkeypatch):
    """at_question(n, act): the n-th time that a run asks whether to save, `act()` comes first."""
    ask = pace.Pace.ask

    def arrange(number, act):
        asked = []

        def counted(self, *arguments, **options):
            asked.append(1)
            if len(asked) == number:
                act()
            ask(self, *arguments, **options)

        monkeypatch.setattr(pace.Pace, "ask", counted)

    return arrange


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def press_ctrl_c_twice(monkeypatch):
    press_ctrl_c()
    press_ctrl_c()  # at once: that of `timeout`
    monkeypatch.setattr(pace, "monotonic", lambda: time.monotonic() + 1)
    press_ctrl_c()


def interrupt():
    raise KeyboardInterrupt


# An epoch here is 5 steps, with --val-size 4, and then one batch to evaluate.
@pytest.mark.parametrize(
    ("question", "epoch", "taken", "flags"),
    [
        (3, 0, 3, ()),
        (9, 1, 3, ("--amp", "bf16", "--rotation", 20)),
        (10, 1, 4, ("--val-size", 6)),  # in the evaluation after the second epoch
        (7, 1, 1, ("--freeze", "first-last", "--freeze-epochs", 1)),  # in the first step of the second phase
        (9, 1, 3, ("--nesterov", "--schedule", "onecycle")),
    ],
    ids=str,
)
def test_sigterm_saves_between_two_steps(folder, at_question, question, epoch, taken, flags):
    before = signal.getsignal(signal.SIGTERM)
    run("whole", *flags)
    at_question(question, terminate)
    with pytest.raises(Terminated, match="^terminated: python train.py --resume parts goes on$"):
        run("parts", *flags)
    assert signal.getsignal(signal.SIGTERM) is before
    saved = checkpoint.load("parts")
    steps = 4 if "--val-size" in flags else 5
    assert (saved["epoch"], len(saved["progress"]["losses"])) == (epoch, taken)
    assert saved["step"] == steps * epoch + taken
    torch.randn(7)  # whatever the new process has drawn before
    train.main(["--resume", "parts"])
    assert_same_run("whole", "parts")
    assert sorted(os.listdir("parts")) == sorted(os.listdir("whole"))


def test_ctrl_c_saves_too_but_pressed_twice_it_ends_at_once(folder, at_question, monkeypatch):
    run("whole")
    before = signal.getsignal(signal.SIGINT)
    at_question(3, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="^interrupted: python train.py --resume parts goes on$"):
        run("parts")
    assert signal.getsignal(signal.SIGINT) is before
    with monkeypatch.context() as patch:
        at_question(2, lambda: press_ctrl_c_twice(patch))
        with pytest.raises(KeyboardInterrupt, match="^interrupted: python train.py --resume parts goes on$"):
            train.main(["--resume", "parts"])
    assert checkpoint.load("parts")["step"] == 3
    train.main(["--resume", "parts"])
    assert_same_run("whole", "parts")


def test_a_crowds_run_goes_on_within_an_epoch(tmp_path, monkeypatch, at_question):
    monkeypatch.chdir(tmp_path)
    make_part(tmp_path / "part")
    net = "--arch resnet20 --blocks 1 1 1 --widths 4 4 8".split()
    flags = ["--data", "part", *net, *"--crop 32 --batch-size 2 --val-size 0 --epochs 2".split()]
    train.main([*flags, "--out", "whole"])
    at_question(2, terminate)
    with pytest.raises(Terminated):
        train.main([*flags, "--out", "parts"])
    train.main(["--resume", "parts"])
    assert_same_run("whole", "parts")


def test_save_every_keeps_what_a_kill_would_lose(folder, at_question):
    run("whole")
    at_question(9, interrupt)  # after the third step of the second epoch, before it is saved
    with pytest.raises(KeyboardInterrupt, match="^interrupted: python train.py --resume parts goes on$"):
        run("parts", "--save-every", 1e-9)
    assert checkpoint.load("parts")["step"] == 7
    train.main(["--resume", "parts"])
    assert_same_run("whole", "parts")
    with pytest.raises(UserError, match="--save-every must be positive; got 0"):
        run("none", "--save-every", 0)


def test_by_default_an_epoch_is_saved_at_its_end(folder, at_question):
    at_question(9, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    saved = checkpoint.load("parts")
    assert saved["step"] == 5 and "progress" not in saved


def test_before_the_first_checkpoint_there_is_nothing_to_resume(folder, at_question):
    at_question(3, interrupt)
    with pytest.raises(KeyboardInterrupt, match="^interrupted: nothing was saved$"):
        run("parts")


def test_a_checkpoint_within_an_epoch_is_of_its_data(folder, at_question):
    at_question(5, terminate)
    with pytest.raises(Terminated):
        run("parts")
    for path in list(Path("shades", "train").rglob("1*.png")):  # leaves three steps an epoch
        path.unlink()
    with pytest.raises(UserError, match="took 5 steps of an epoch that has 3 here"):
        train.main(["--resume", "parts"])


def test_one_process_at_a_time(folder, at_question):
    at_question(9, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("r")
    before = {path: path.read_bytes() for path in Path("r").iterdir()}
    with held(Path("r")):
        for arguments in (["--resume", "r"], flags_of("r", "--overwrite")):
            with pytest.raises(UserError, match="^another process is training in r: wait for its end, or name another"):
                train.main(arguments)
        assert before == {path: path.read_bytes() for path in before}
    Path("r", ".lock").touch()  # a dead owner's
    train.main(["--resume", "r"])
    assert not Path("r", ".lock").exists()
    run("r", "--overwrite")
    assert not Path("r", ".lock").exists()


def test_a_run_killed_before_its_curves_gets_them(folder, monkeypatch, capsys):
    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(figures, "curves", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            run("r")
    out = capsys.readouterr().out
    assert "epoch 3/3" in out and out.count("result: ") == 1
    train.main(["--resume", "r"])
    assert "result: test accuracy" in capsys.readouterr().out and Path("r", "curves.png").is_file()
    assert_same_run("whole", "r")
    with pytest.raises(UserError, match="has already finished its 3 epochs"):
        train.main(["--resume", "r"])
    os.utime("r/curves.png", (0, 0))  # of fewer epochs, before the run went on
    train.main(["--resume", "r"])
    assert Path("r", "curves.png").stat().st_mtime > 0


def test_a_kill_between_last_and_best(folder, monkeypatch):
    """Of the only epoch, so that no later one writes it."""
    flags = ("--val-size", 6, "--epochs", 1)
    run("whole", *flags)
    save = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda path, saved: interrupt() if path.stem == "best" else save(path, saved))
        with pytest.raises(KeyboardInterrupt):
            run("r", *flags)
    train.main(["--resume", "r"])
    assert_same_run("whole", "r", "best.pt")


def test_what_a_kill_left_is_swept(folder, monkeypatch):
    run("r", "--schedule", "constant")
    cache = Path("shades", ".resnet_min_cache")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: os._exit(9))  # in the middle of write_whole
        for path in ("r/last.pt", cache / "x.pt"):
            if (child := os.fork()) == 0:
                write_whole(path, "cut short")
            os.waitpid(child, 0)
    assert len(list(Path().rglob("*.tmp"))) == 2
    train.main(["--resume", "r", "--epochs", "4"])
    assert not list(Path().rglob("*.tmp"))


def test_lines_that_were_cut_short_do_not_stay(folder):
    run("r", "--schedule", "constant")
    for name in ("environment.jsonl", "metrics.jsonl", "steps.jsonl"):
        with open(f"r/{name}", "a") as file:
            file.write('{"cut": 1, "sho')
    train.main(["--resume", "r", "--epochs", "4"])
    for name, count in (("environment.jsonl", 2), ("metrics.jsonl", 4), ("steps.jsonl", 20)):
        assert len([json.loads(line) for line in Path("r", name).read_text().splitlines()]) == count


@pytest.mark.parametrize(
    ("most", "name"), [(300, "config.json"), (1_500, "steps.jsonl"), (20_000, "last.pt"), (45_000, "curves.png")]
)
def test_a_full_disk_names_the_file_and_leaves_it_whole(folder, monkeypatch, most, name):
    """By a limit on the size of files, which fails as a full disk does."""
    run("whole", "--epochs", 8)  # and the cache is there
    with monkeypatch.context() as patch:
        if name == "steps.jsonl":
            patch.setattr(checkpoint, "save", lambda *_: None)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            with pytest.raises(OSError, match=name), contextlib.redirect_stdout(io.StringIO()):  # pytest's is a file
                run("r", "--epochs", 8)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(Path("r").glob(".*")) and (name == "steps.jsonl") == Path("r", name).exists()
    if name == "curves.png":
        train.main(["--resume", "r"])
    else:
        run("r", "--epochs", 8, "--overwrite")
    assert_same_run("whole", "r")


def test_sigterm_ends_the_command(folder):
    process = command(*flags_of("parts", "--epochs", 20))
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (143, "terminated: python train.py --resume parts goes on\n")
    assert checkpoint.load("parts")["epoch"] < 20 and not Path("parts", ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--amp", "bf16", "--rotation", 20), ("--optimizer", "adam")], ids=str)
def test_a_new_process_gives_the_same_bits(folder, flags):
    for process in [command(*flags_of(name, *flags)) for name in ("one", "two")]:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert_same_run("one", "two")


AT_AN_IMPORT = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, *where):
        if name == wanted:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

wanted, *sys.argv = sys.argv[1:]
sys.meta_path.insert(0, Finder())
runpy.run_path(sys.argv[0], run_name="__main__")
raise SystemExit(f"{wanted} was not imported")
"""


def test_ctrl_c_while_modules_are_imported_shows_no_traceback(folder):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AT_AN_IMPORT, name, str(ROOT / script), *arguments],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for name, script, arguments in (
            ("argparse", "train.py", []), ("argparse", "eval.py", []), ("argparse", "visualize.py", []),
            ("torch", "train.py", flags_of("r")), ("torch._jit_internal", "train.py", flags_of("r")),
        )
    ]  # fmt: skip
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130 and err in ("", "interrupted\n")


SLOW_TO_LEAVE = """
import sys, time
from resnet_min.errors import run_script

def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("leaving", flush=True)
        time.sleep(float(sys.argv[1]))
        print("left", flush=True)

run_script(main)
"""


def slow_to_leave(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_LEAVE, seconds],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_ctrl_c_ends_at_once():
    process = slow_to_leave("60")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "leaving\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_that_comes_twice_leaves_in_order(number, code, said):
    """As `timeout` sends it."""
    process = slow_to_leave("0.1")
    process.send_signal(number)
    assert process.stdout.readline() == "leaving\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "left\n", f"{said}\n")
