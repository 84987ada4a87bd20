"""The tables of serving: what their rows say, with and without the packages of the extra; a server's answers."""

import contextlib
import json
import threading
import time
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer

import numpy as np
import pytest
import torch

from resnet_min.errors import UserError
from resnet_min.inference import runtimes
from tools.benchmark import __main__ as benchmark
from tools.benchmark import server, serving, timing


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.001)
    monkeypatch.setattr(timing, "WINDOWS", 2)
    monkeypatch.setattr(serving, "LATENCIES", (3, 4))
    monkeypatch.setattr(serving, "NETS", {("resnet20", "cifar", 16): (1, 2)})


@pytest.fixture
def bare(monkeypatch):
    """As where no package of the extra is installed."""
    monkeypatch.setattr(runtimes, "missing", lambda *packages: list(packages))


def in_float32(rows):
    """Where the processor has instructions for bfloat16, there are as many rows of that."""
    return [row for row in rows if row["dtype"] == "float32"]


def test_a_table_without_the_packages(bare, tmp_path, capsys):
    benchmark.main(["serving", "--device", "cpu", "--quick", "--json", str(tmp_path / "t.json")])
    said = capsys.readouterr().out
    assert (
        "left out: ONNX Runtime, OpenVINO; not installed: onnx, onnxruntime, onnxscript, openvino (pip install" in said
    )
    rows = in_float32(json.loads((tmp_path / "t.json").read_text())["rows"])
    assert [(row["batch"], row["name"]) for row in rows] == [(1, "ours"), (1, "eager"), (2, "ours"), (2, "eager")]
    for row in rows:
        assert row["error"] < 1e-5 and row["best_is"] is row["start_s"] is None
        assert (row["p99_ms"] or 0) >= (row["p50_ms"] or 0)
    assert [row["timed"] for row in rows] == [4, 4, None, None]


@pytest.mark.skipif(bool(runtimes.missing("onnx", "onnxscript", "onnxruntime", "openvino")), reason="needs the extra")
def test_a_table_with_the_packages(tmp_path):
    benchmark.main(["serving", "--device", "cpu", "--quick", "--batch", "1", "--json", str(tmp_path / "t.json")])
    table = json.loads((tmp_path / "t.json").read_text())
    ours, *others = in_float32(table["rows"])
    assert [row["name"] for row in others] == ["eager", "ONNX Runtime", "OpenVINO"]
    assert ours["best_is"] == min(row["ours_is"] for row in others[1:])
    assert all(row["error"] < 1e-5 for row in (ours, *others))
    assert {"onnxruntime", "openvino"} < table["versions"].keys()


def test_contenders_that_compute_something_else_are_not_timed():
    net = serving.Saved("resnet20", "cifar", 16)
    serving.check(net, "float32", {"ours": net.exact[:1], "eager": net.exact.numpy()})
    with pytest.raises(AssertionError, match="ours computes something else: it is off by 0.1"):
        serving.check(net, "float32", {"eager": net.exact, "ours": 1.1 * net.exact[:1]})


def test_a_fresh_process_says_what_it_took(monkeypatch, bare):
    monkeypatch.setattr(serving, "STARTS", 1)
    case = serving.ServingCase(
        {"dtype": "float32"}, 1, {"ours": None}, None, serving.Saved("resnet20", "cifar", 16), True
    )
    began = time.perf_counter()
    (took,) = serving.starts(case).values()
    assert 0.1 < took["start_s"] < time.perf_counter() - began and 50 < took["resident_mib"] < 5000


def test_no_table_of_a_gpu():
    args = benchmark.get_args(["serving"])
    args.device = torch.device("meta")
    with pytest.raises(UserError, match="serving is a table of the CPU; got --device meta"):
        next(serving.cases(args))


def test_a_window_begins_when_other_threads_have_stopped():
    end = time.perf_counter() + 0.1

    def spin():
        while time.perf_counter() < end:
            pass

    threading.Thread(target=spin).start()
    timing.wait_until_idle()
    assert time.perf_counter() >= end


def test_percentiles():
    found = timing.percentiles([i / 1000 for i in range(101)])
    assert found == pytest.approx({"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "timed": 101})
    assert set(timing.percentiles([]).values()) == {None}


# ---- the server ----


@pytest.fixture
def served():
    """A connection to a server, in this process, whose logits are the image's channel means."""
    known = {"pixels": 4, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5]}
    handler = server.handler(lambda images: images.mean((2, 3)), known)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever).start()
        with contextlib.closing(HTTPConnection("127.0.0.1", running.server_port, timeout=10)) as connection:
            yield connection
        running.shutdown()


def test_an_answer_is_the_probabilities(served):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 1] = 255
    for _ in range(2):  # on one connection
        served.request("POST", "/", pixels.tobytes())
        answer = json.loads(served.getresponse().read())
        logits = torch.tensor([-2.0, 1.0, -1.0])
        assert answer["probabilities"] == pytest.approx(logits.softmax(0).tolist())


@pytest.mark.parametrize("size", [0, 47, 49])
def test_another_size_is_refused(served, size):
    served.request("POST", "/", bytes(size))
    answer = served.getresponse()
    assert answer.status == 400 and "wanted the 48 bytes of an image [4, 4, 3]" in answer.reason
    answer.read()
    served.request("POST", "/", bytes(48))  # on a new connection
    assert served.getresponse().status == 200


def test_a_server_ends_by_itself(bare):
    net = serving.Saved("resnet20", "cifar", 16)
    process = server.process("ours", net.folder, 1, "float32", "--seconds", "0.1")
    assert int(server.first_line(process)) > 0
    assert process.wait(30) == 0
    process.stdout.close()


def test_a_table_of_servers(tmp_path, bare):
    """Ours alone: the packages that serve the others are not needed."""
    flags = ["--arch", "resnet20", "--seconds", "0.2", "--clients", "2", "--json", str(tmp_path / "t.json")]
    benchmark.main(["server", "--device", "cpu", *flags])
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert row["name"] == "ours" and row["clients"] == 2 and row["per_second"] > 0 and row["timed"] > 1
    assert row["p99_ms"] >= row["p50_ms"] > 0


def test_probabilities_are_compared():
    server.check({"ours": [0.5, 0.5], "OpenVINO": [0.5001, 0.4999]})
    with pytest.raises(AssertionError, match="OpenVINO gives other probabilities"):
        server.check({"ours": [0.5, 0.5], "OpenVINO": [0.6, 0.4]})


@pytest.mark.parametrize(
    "flags, message",
    [(["--seconds", "0"], "--seconds must be above 0"), (["--clients", "0"], "--clients must be 1 to 64; got 0")],
)
def test_a_load_without_bounds_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        benchmark.get_args(["server", *flags])
