"""Times contenders that do the same work: in one process, window by window in turn, each checked before it is timed."""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from resnet_min import ops
from resnet_min.inference import runtimes
from resnet_min.runs.environment import processor
from resnet_min.training import hardware

WINDOWS = 7  # timed windows of each contender; figures are medians over them
SECONDS = 0.2  # at least, each window

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's training images
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.1, torch.float16: 0.01}  # a GPU's float32 convolutions are TF32

Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """Contenders that do the same work. "ours" is one of them.

    about        what tells the case from the table's others
    units        what a call works through, such as images
    contenders   name -> what makes the call to time
    check        takes what each one's first call returned; raises AssertionError unless they agree
    further      name -> what else its row says
    """

    about: Row
    units: int
    contenders: dict[str, Callable[[], Call]]
    check: Callable[[dict[str, Any]], None]
    further: dict[str, Row] = field(default_factory=dict, kw_only=True)


def about(device: torch.device, packages: Iterable[str] = ()) -> dict[str, Any]:
    """What a figure needs beside it to mean something; with the versions of further `packages`, those installed."""
    built = ops.build_info()
    return {
        "hardware": processor(device),
        "threads": torch.get_num_threads(),
        "windows": WINDOWS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            **{key: value for key, value in built.items() if key in ("compiler", "cuda_version", "archs")},
            **{name: metadata.version(name) for name in packages if not runtimes.missing(name)},
        },
        "kernels": ops.backend_line(device),
    }


def run(case: Case, device: torch.device) -> Iterator[Row]:
    """A row for each contender: what `rows` says, and

    peak_mib     the most memory that it held during a call, with all that it needs for it but not the case's data
    """
    calls, first, peaks = {}, {}, {}
    for name, make in case.contenders.items():
        calls[name], first[name], peaks[name] = made(make, device)
    case.check(first)
    del first
    for row in rows(case, side_by_side(calls, device)):
        yield row | {"peak_mib": peaks[row["name"]] / 2**20}


def rows(case: Case, rates: dict[str, list[float]]) -> Iterator[Row]:
    """A row for each contender, from its calls a second in each window: medians, each with its least and most.

    per_second   units a second
    ours_is      how many times that ours is, window against window
    """
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(rates["ours"], values, strict=True)]
        row = {**case.about, "name": name}
        for key, numbers in (("per_second", [v * case.units for v in values]), ("ours_is", ratios)):
            row |= {key: statistics.median(numbers), f"{key}_min": min(numbers), f"{key}_max": max(numbers)}
        yield row | case.further.get(name, {})


def percentiles(seconds: list[float]) -> Row:
    """p50_ms, p90_ms and p99_ms of calls that took so long, and how many calls; None where there were none."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else []
    return {f"p{p}_ms": 1000 * cuts[p - 1] if cuts else None for p in (50, 90, 99)} | {"timed": len(seconds) or None}


def side_by_side(calls: dict[str, Call], device: torch.device) -> dict[str, list[float]]:
    """Calls a second of each contender, in turn, so that a disturbance meets all alike.

    A first call, which finds the caches that another contender left, is not timed, unless a call by itself is as long
    as a window. No window begins while another's threads wait for work in a loop, as those of OpenMP and ONNX Runtime
    do for a while.
    """

    def window(call: Call, count: int, warm: bool = True) -> float:
        if device.type == "cpu":
            wait_until_idle()
        if warm:
            call()
        synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / count

    counts = {name: max(1, round(SECONDS / window(call, 1))) for name, call in calls.items()}
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WINDOWS):
        for name, call in calls.items():
            rates[name].append(1 / window(call, counts[name], warm=counts[name] > 1))
    return rates


def wait_until_idle() -> None:
    """Wait, for a second at most, until no thread of this process computes."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            break


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- memory ----


def made(make: Callable[[], Call], device: torch.device) -> tuple[Call, Any, int]:
    """(the call, what its first call returned, the bytes that it held at most during its third).

    Bytes that torch's allocator gave out since before `make`: on CUDA with what it keeps in reserve, for that is where
    a CUDA graph's memory is. What oneDNN and cuDNN ask the system for does not show.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(device)
        call = make()
        first = call()
        call()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return call, first, torch.cuda.max_memory_reserved(device) - before

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call = make()
        first = call()
        call()
        with torch.profiler.record_function("the third call"):
            call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = sorted(json.loads(trace.read_text())["traceEvents"], key=lambda event: event.get("ts", 0))
    start = next(event["ts"] for event in events if event.get("name") == "the third call")
    steps = [(event["ts"], event["args"]) for event in events if event.get("name") == "[memory]"]
    if not steps:
        return call, first, 0
    before = steps[0][1]["Total Allocated"] - steps[0][1]["Bytes"]
    held = [step["Total Allocated"] for ts, step in steps if ts < start][-1:]
    return call, first, max(held + [step["Total Allocated"] for ts, step in steps if ts >= start]) - before


# ---- what several tables share ----


def dtypes(device: torch.device) -> list[torch.dtype]:
    """float32, and what the device has arithmetic for."""
    if device.type == "cuda":
        return [torch.float32, torch.bfloat16, torch.float16]
    return [torch.float32] + [torch.bfloat16] * (hardware.hardware("cpu").dtype == torch.bfloat16)


def name_of(dtype: torch.dtype) -> str:
    """Such as "float32"."""
    return str(dtype).removeprefix("torch.")


def check_close(name: str, got: Tensor, wanted: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise AssertionError unless `got` is `wanted`, as well as `dtype`, by default its own, lets it."""
    error = ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()
    if not error < TOLERANCE[dtype or got.dtype]:
        raise AssertionError(f"{name} computes something else: it is off by {error:.2g}")
