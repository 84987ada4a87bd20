"""What a row says, that contenders must agree, that a table goes on, that each operator has one."""

import argparse
import json
import sys
import time
import types

import pytest
import torch
from helpers import unpack_runs

from resnet_min import ops
from resnet_min.errors import UserError
from resnet_min.kernels import OPERATORS, backend
from tools.benchmark import TABLES, inference, kernels, roofline, timing
from tools.benchmark import __main__ as benchmark

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """And the kernels back afterwards, which contenders in plain PyTorch switch off."""
    monkeypatch.setattr(timing, "SECONDS", 0.001)
    yield
    ops.set_backend("auto")


@pytest.fixture
def clock(monkeypatch):
    """Time passes only in `sleep`, so that no other work on the machine counts."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def sleeper(seconds, result=1.0):
    def call():
        time.sleep(seconds)
        return result

    return lambda: call


def agree(results):
    assert len(set(results.values())) == 1


def test_a_row(clock):
    case = timing.Case({"batch": 10}, 10, {"ours": sleeper(0.002), "theirs": sleeper(0.01)}, agree)
    ours, theirs = timing.run(case, CPU)
    assert ours["name"] == "ours" and ours["batch"] == 10 and ours["ours_is"] == 1
    assert ours["per_second"] == pytest.approx(5000) and theirs["per_second_min"] == pytest.approx(1000)
    assert theirs["ours_is"] == pytest.approx(5)


def test_contenders_that_disagree_are_not_timed():
    case = timing.Case({}, 1, {"ours": sleeper(0), "theirs": sleeper(0, 2.0)}, agree)
    with pytest.raises(AssertionError):
        next(timing.run(case, CPU))


def test_peak_memory_is_what_is_kept_and_what_a_call_takes():
    def make():
        kept = torch.zeros(2**20)  # 4 MiB
        return lambda: (kept + torch.zeros(2**21).sum()).sum().item()  # 8 MiB, then another 4

    _, first, peak = timing.made(make, CPU)
    assert first == 0 and 12 * 2**20 <= peak < 13 * 2**20


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table of three cases; the names of those that ran."""
    ran = []

    def cases(args):
        for size in (1, 2, 3):
            made = sleeper(0)
            contenders = {"ours": lambda size=size, made=made: ran.append(size) or made(), "theirs": made}
            yield timing.Case({"size": size}, 1, contenders, agree)

    monkeypatch.setitem(sys.modules, "tools.benchmark.augment", types.SimpleNamespace(cases=cases))
    path = tmp_path / "table.json"
    return path, ran, lambda: benchmark.main(["augment", "--device", "cpu", "--json", str(path)])


def test_a_table_goes_on_where_it_stopped(table, monkeypatch, capsys):
    path, ran, main = table
    main()
    whole = json.loads(path.read_text())
    assert ran == [1, 2, 3] and len(whole["rows"]) == 6
    path.write_text(json.dumps({**whole, "rows": whole["rows"][:2]}))
    main()
    assert ran == [1, 2, 3, 2, 3]
    assert [row["size"] for row in json.loads(path.read_text())["rows"]] == [1, 1, 2, 2, 3, 3]

    path.unlink()
    monkeypatch.setattr(benchmark, "MINUTES", 0)
    main()
    assert len(ran) == 5 and "stopped after 0 minutes; run the same command to continue" in capsys.readouterr().out


def test_a_file_of_something_else_is_left_alone(table):
    path, ran, main = table
    main()
    whole = json.loads(path.read_text())
    for text, message in [
        ("no table", "was not written by this command"),
        (json.dumps({**whole, "threads": 99}), "was made with other threads"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            main()
        assert path.read_text() == text
    assert len(ran) == 3


@pytest.mark.parametrize("batch", [1, 16, 20])
def test_logits_are_compared_image_by_image(batch):
    """Of a batch of any size, those that both have."""
    exact = torch.randn(16, 10)
    logits = torch.cat([exact, torch.randn(4, 10)])[:batch]
    inference.check({"ours": logits}, exact)
    with pytest.raises(AssertionError, match="ours computes something else"):
        inference.check({"ours": logits + 1}, exact)


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("serving", "server", "roofline")])
def test_contenders_agree(name, monkeypatch, capsys):
    """The smallest of each table, timed for no time: its check passes. The others: test_serving.py, below."""
    monkeypatch.setattr(timing, "WINDOWS", 1)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)  # slow, and another project's to test
    benchmark.main([name, "--device", "cpu", "--arch", "resnet20", "--batch", "4"])
    assert " ours " in capsys.readouterr().out


def test_a_trained_network(tmp_path, monkeypatch, capsys):
    """With its own test images; of a row, how exact its contender is, from all of them."""
    monkeypatch.setattr(timing, "WINDOWS", 1)
    run = unpack_runs(tmp_path) / "classes-finished"
    benchmark.main(["inference", "--run", str(run), "--batch", "4", "--json", str(tmp_path / "table.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert list(rows) == ["ours", "ours, F(4×4, 3×3)", "eager, channels_last"]
    for name, row in rows.items():
        assert row["changed"] == 0 and row["predictions"] > 4
        assert (row["logits_off"] == 0) == (name == "eager, channels_last") and row["logits_off"] < 1e-3
    with pytest.raises(UserError, match="has no classes"):
        benchmark.main(["inference", "--run", str(tmp_path / "crowd-finished")])


def test_what_is_said_of_other_logits():
    wanted = torch.tensor([[1.0, -2.0], [0.5, 0.25], [0.0, 1.0]])
    got = torch.tensor([[1.0, -2.0], [0.25, 0.5], [0.0, 1.0]])
    said = {"logits_off": 0.25, "largest_logit": 2.0, "changed": 1, "predictions": 3}
    assert inference.compared(got, wanted) == said


def test_convolutions_as_a_part_of_what_the_processor_does(clock, monkeypatch):
    monkeypatch.setattr(kernels, "registers", sleeper(0.001, 10**6)())  # 1,000 million a second
    about = {"batch": 10}
    case = kernels.Convolutions(about, 10, {"ours": sleeper(0.002), "theirs": sleeper(0.01)}, agree, 50_000)
    ours, theirs = kernels.run(case, CPU)
    assert ours["of_fma"] == pytest.approx(0.25) and theirs["of_fma"] == pytest.approx(0.05)
    assert ours["per_second"] == pytest.approx(5000) and theirs["ours_is"] == pytest.approx(5)


def test_other_operators_are_no_part_of_it(clock):
    case = timing.Case({}, 1, {"ours": sleeper(0.002)}, agree)
    assert next(kernels.run(case, CPU))["of_fma"] is None
    assert "of_fma" not in next(kernels.run(case, torch.device("meta")))  # as on a GPU


@pytest.mark.skipif("cpu" not in backend._kernel_devices, reason="no compiled kernels")
def test_convolutions_have_the_multiply_adds_of_their_definition():
    cases = {case.about["layer"]: case for case in kernels.fused_net(kernels.layers("resnet20"), 2)}
    assert len(cases) == len(kernels.layers("resnet20"))
    strided = cases["16-32 3x3/2 on 32x32 +relu"]
    assert strided.multiply_adds == 16 * 16 * 16 * 32 * 9 and strided.units == 2 * kernels.CHAIN
    assert "ours, direct" not in strided.contenders
    assert "ours, direct" in cases["16-16 3x3/1 on 32x32 +add+relu"].contenders


@pytest.mark.skipif("cpu" not in backend._kernel_devices, reason="no compiled kernels")
def test_multiply_adds_in_registers_are_done():
    """On every thread; and no faster than three vectors of 16 in each cycle at 6 GHz."""
    threads, multiply_adds = torch.get_num_threads(), torch.ops.resnet_min._multiply_adds
    try:
        torch.set_num_threads(2)
        both = multiply_adds(10**7)
        torch.set_num_threads(1)
        start = time.perf_counter()
        one = multiply_adds(10**7)
        assert one / (time.perf_counter() - start) < 3 * 16 * 6e9
        assert both == 2 * one and one % 10**7 == 0
    finally:
        torch.set_num_threads(threads)


def test_what_is_timed_are_operators():
    assert {"crop_flip", "fused_net", *kernels.OPERATORS} <= {operator.name for operator in OPERATORS}


# ---- what memory and arithmetic allow ----


def of_network(arch, batch):
    args = argparse.Namespace(arch=arch, batch=[batch], device=CPU)
    return list(roofline.cases(args))


def test_roofline_of_resnet18(capsys):
    """By hand: the figures of the design, and the last block's batch norm."""
    rows = [row for case in of_network("resnet18", 128) for row in roofline.run(case, CPU)]
    by = {(row["kernel"], row["layer"]): row for row in rows}
    step, inference = by["training step", "resnet18"], by["inference", "resnet18"]
    assert inference["gflop"] / 128 == pytest.approx(1.11, rel=0.01) and step["gflop"] == pytest.approx(
        3 * inference["gflop"]
    )
    assert inference["H100_ms"] == inference["H200_ms"] == pytest.approx(inference["gflop"] / 790)  # arithmetic's limit
    assert step["H200_ms"] == pytest.approx(step["mib"] * 2**20 / 4.3e9)  # memory's
    last = 512 * 4 * 4 * 2 * 128 / 2**20  # a map in bfloat16
    name = "512-512 3x3/1 on 4x4 +add+relu"
    assert by["bn forward", name]["mib"] == 4 * last  # x twice, the residual, the output
    assert by["bn backward", name]["mib"] == 7 * last  # gradient, x, output, masked; that, x, and x's gradient
    assert by["bn backward", "64-128 1x1/2 on 32x32"]["mib"] == 5 * 128 * 16 * 16 * 2 * 128 / 2**20
    for number, row in enumerate(rows):
        roofline.print_row(row, first=number == 0)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(rows) + 1 and "of H200" in out[0] and out[1].endswith("-")


def test_roofline_times_what_it_says():
    for case in of_network("resnet20", 2):
        case.contenders["ours"]()()
