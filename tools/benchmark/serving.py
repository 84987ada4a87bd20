"""Images to logits on a CPU, beside what an engineer would serve a network with instead.

Each contender starts from its own saved form of the same network: an .onnx file for ONNX Runtime, OpenVINO's IR for
OpenVINO (performance hint LATENCY), a checkpoint for `fuse`, for eager PyTorch (in the faster memory format) and for
`torch.compile` with freezing. All have torch's number of threads. For one image a call, a row also has latencies, and
what a fresh process takes: the seconds from its start, imports included, to its first logits, and the memory that it
then holds. `torch.compile` finds its kernels compiled there.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import tempfile
import time
import timeit
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnet_min.errors import UserError
from resnet_min.inference import export, runtimes
from resnet_min.model import ResNet, resnet

from . import server, timing
from .inference import settled
from .timing import MEAN, STD, TOLERANCE, Call, Case, Row, dtypes, name_of

PACKAGES = {"ONNX Runtime": ("onnx", "onnxscript", "onnxruntime"), "OpenVINO": ("onnx", "onnxscript", "openvino")}
VERSIONS = ("onnx", "onnxruntime", "openvino")
CONTENDERS = ("ours", "eager", "compile, freezing", "ONNX Runtime", "OpenVINO")
OPPONENTS = CONTENDERS[2:]  # of which "ours/best" takes the best: they all prepare a net for inference
NETS = {  # (arch, stem, pixels) -> batch sizes; 256 images of resnet50 take a slow contender 8 s a call
    ("resnet20", "cifar", 32): (1, 16, 256),
    ("resnet56", "cifar", 32): (1, 16, 256),
    ("resnet110", "cifar", 32): (1, 16, 256),
    ("resnet18", "cifar", 32): (1, 16, 256),
    ("resnet50", "cifar", 32): (1, 16, 64),
    ("resnet18", "imagenet", 224): (1, 8),
    ("resnet50", "imagenet", 224): (1, 8),
}
CHECKED = 16  # images of a batch that are compared
LATENCIES = (100, 1000)  # calls timed one by one, at least and at most
STARTS = 3  # fresh processes of each contender


class Saved:
    """A network with statistics, and in a folder its saved forms, those that can be made here; both once they are asked
    for.
    """

    def __init__(self, arch: str, stem: str, pixels: int) -> None:
        self.how = {"arch": arch, "stem": stem, "num_classes": 10 if stem == "cifar" else 1000}
        self.pixels = pixels

    def images(self, batch: int) -> np.ndarray:
        """[batch, 3, pixels, pixels] float32, the first ones the same for every `batch`."""
        return np.random.default_rng(0).standard_normal((batch, 3, self.pixels, self.pixels), np.float32)

    @functools.cached_property
    def net(self) -> ResNet:
        torch.manual_seed(0)
        return settled(resnet(**self.how), torch.randn(2048 // self.pixels, 3, self.pixels, self.pixels))

    @functools.cached_property
    def exact(self) -> Tensor:
        """The first `CHECKED` images' logits, by float64."""
        with torch.no_grad():
            return copy.deepcopy(self.net).double()(torch.from_numpy(self.images(CHECKED)).double())

    @functools.cached_property
    def folder(self) -> Path:
        self.kept = tempfile.TemporaryDirectory()  # for as long as this object is
        folder = Path(self.kept.name)
        known = {"net": self.how, "pixels": self.pixels, "mean": MEAN, "std": STD}
        (folder / "net.json").write_text(json.dumps(known))
        torch.save(self.net.state_dict(), folder / "net.pt")
        if not runtimes.missing("onnx", "onnxscript"):
            export.save_onnx(self.net, folder / "net.onnx", (self.pixels, self.pixels), {})
            if not runtimes.missing("openvino"):
                import openvino

                openvino.save_model(openvino.convert_model(folder / "net.onnx"), folder / "net.xml", False)
        return folder


def present(names: Iterable[str]) -> list[str]:
    """Those of the contenders whose packages are installed; a line says which others there would be."""
    lacking = {name: runtimes.missing(*PACKAGES.get(name, ())) for name in names}
    if absent := [name for name, packages in lacking.items() if packages]:
        packages = sorted({package for packages in lacking.values() for package in packages})
        print(f"left out: {', '.join(absent)}; not installed: {', '.join(packages)} ({runtimes.EXTRA})")
    return [name for name, packages in lacking.items() if not packages]


@dataclass(frozen=True)
class ServingCase(Case):
    """With the network; `fresh` is whether processes of their own are to load its saved forms."""

    net: Saved
    fresh: bool


def cases(args: argparse.Namespace) -> Iterator[ServingCase]:
    """Each network at each batch size, in float32 and in bfloat16 where the processor has instructions for it."""
    if args.device.type != "cpu":
        raise UserError(f"serving is a table of the CPU; got --device {args.device}")
    names = present(name for name in CONTENDERS if not (args.quick and name == "compile, freezing"))
    for (arch, stem, pixels), batches in NETS.items():
        if args.arch not in (None, arch):
            continue
        net = Saved(arch, stem, pixels)
        for batch in args.batch or batches:
            for dtype in map(name_of, dtypes(args.device)):
                about = {"arch": arch, "pixels": pixels, "batch": batch, "dtype": dtype}
                contenders = {
                    name: partial(make, net, name, batch, dtype)
                    for name in names
                    if (name, dtype) != ("ONNX Runtime", "bfloat16")  # its CPU kernels have no bfloat16
                }
                yield ServingCase(about, batch, contenders, partial(check, net, dtype), net, not args.quick)


def make(net: Saved, name: str, batch: int, dtype: str) -> Call:
    """A contender's call, loaded in this process; eager PyTorch's in the faster memory format."""
    images = net.images(batch)

    def loaded(form: str) -> Call:
        return server.load(form, net.folder, torch.get_num_threads(), images.shape, dtype)(images)

    if name != "eager":
        return loaded(name)
    return min(map(loaded, ("eager", "eager, NCHW")), key=lambda call: min(timeit.repeat(call, number=1, repeat=3)))


def check(net: Saved, dtype: str, results: dict[str, Any]) -> None:
    """All must give the logits that the net gives in float64, as well as the dtype lets them."""
    for name, logits in results.items():
        if not error(logits, net.exact) < TOLERANCE[getattr(torch, dtype)]:
            raise AssertionError(f"{name} computes something else: it is off by {error(logits, net.exact):.2g}")


def error(logits: Any, exact: Tensor) -> float:
    """How far the first logits are from `exact`: the norm of the difference over that of `exact`."""
    got = torch.as_tensor(logits).double()
    count = min(len(got), len(exact))
    return ((got[:count] - exact[:count]).norm() / exact[:count].norm()).item()


def run(case: ServingCase, device: torch.device) -> Iterator[Row]:
    """A row for each contender, as `timing.run` has them but for the peak of memory, and

    best_is       in ours, how many times as fast it is as the best of `OPPONENTS`
    error         of the logits, against float64
    p50_ms, …     of one image a call: the percentiles of its time
    start_s       likewise: from the start of a process to its first logits, the median of `STARTS`
    resident_mib  likewise: what that process then holds
    """
    calls = {name: make() for name, make in case.contenders.items()}
    first = {name: call() for name, call in calls.items()}
    case.check(first)
    errors = {name: error(logits, case.net.exact) for name, logits in first.items()}
    rates = timing.side_by_side(calls, device)
    rows = list(timing.rows(case, rates))
    best = min((row["ours_is"] for row in rows if row["name"] in OPPONENTS), default=None)
    alone = case.units == 1
    taken = latencies(calls, rates) if alone else {}
    fresh = starts(case) if alone and case.fresh else {}
    for row in rows:
        name = row["name"]
        row |= {"best_is": best if name == "ours" else None, "error": errors[name]}
        row |= timing.percentiles(taken.get(name, []))
        yield row | fresh.get(name, {"start_s": None, "resident_mib": None})


def latencies(calls: dict[str, Call], rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """The seconds of many calls of each contender, one by one, in turn in `timing.WINDOWS` parts."""
    least, most = LATENCIES
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(timing.WINDOWS):
        for name, call in calls.items():
            count = min(most, max(least, 15 * timing.SECONDS * statistics.median(rates[name])))
            timing.wait_until_idle()
            call()
            for _ in range(-(-int(count) // timing.WINDOWS)):
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
    return taken


def starts(case: ServingCase) -> dict[str, Row]:
    """What fresh processes take that load a saved form and answer one image, by contender."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in case.contenders}
    for _ in range(STARTS):
        for name, found in measured.items():
            began = time.perf_counter()
            process = server.process(name, case.net.folder, torch.get_num_threads(), case.about["dtype"], "--once")
            resident = float(server.first_line(process))
            found.append((time.perf_counter() - began, resident))
            process.communicate()
    medians = {name: list(map(statistics.median, zip(*found, strict=True))) for name, found in measured.items()}
    return {name: {"start_s": seconds, "resident_mib": mib} for name, (seconds, mib) in medians.items()}
