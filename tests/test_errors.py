"""What a script says of an error, and what it exits with."""

import io
import signal
import sys

import pytest

from resnet_min.errors import leave_on_interrupt, run_script


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (MemoryError("3 GB"), "error: not enough memory: 3 GB\n", 2),
        (MemoryError(), "error: not enough memory: see the sizes that were asked for\n", 2),
        (OSError(28, "No space left on device", "x.pt"), "error: No space left on device: x.pt\n", 2),
        (OSError("cannot write x.pt"), "error: cannot write x.pt\n", 2),
        (KeyboardInterrupt(), "interrupted\n", 130),
    ],
    ids=repr,
)
def test_an_error_is_one_line(error, said, code, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert (stop.value.code, capsys.readouterr().err) == (code, said)


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


def test_a_reader_that_left_is_no_error(monkeypatch):
    def main():
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", io.StringIO())  # which is closed
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 141


def test_signals_that_are_ignored_stay_so():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        leave_on_interrupt()
        run_script(lambda: None)
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
