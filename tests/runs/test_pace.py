"""When a run is saved within an epoch, by the clock; by signals: test_interrupted.py."""

import signal
import threading

from resnet_min.runs import pace


def test_minutes_are_counted_from_the_last_save(monkeypatch):
    now, saves = [0.0], []
    monkeypatch.setattr(pace, "monotonic", lambda: now[0])
    asked = pace.Pace(2)
    for seconds in (0, 119, 120, 121, 239, 240):
        now[0] = seconds
        asked.ask(lambda: saves.append(now[0]))
    assert saves == [120, 240]


def test_another_thread_leaves_signals_as_they_are():
    before, done = signal.getsignal(signal.SIGTERM), []

    def train():
        with pace.Pace(None) as asked:
            asked.ask(lambda: done.append("saved"))
        done.append("ended")

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done == ["ended"] and signal.getsignal(signal.SIGTERM) is before
