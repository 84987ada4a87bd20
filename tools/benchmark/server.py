"""A net behind HTTP on this machine: requests a second, and how long an answer takes.

For the table, `python -m tools.benchmark server`, each contender is served by a process of its own, and this process
asks, as several clients at once. A request is an image's uint8 pixels [H, W, 3], the answer its probabilities as JSON.

The process that serves is `python -m tools.benchmark.server NAME FOLDER` with a contender and a net's saved forms; with
--once it answers one image and says how much memory it holds. It imports torch only where the contender does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_min.inference import runtimes

if TYPE_CHECKING:
    import torch

    from .serving import Saved
    from .timing import Call, Case, Row

ROOT = Path(__file__).parent.parent.parent
ARCHS = ("resnet20", "resnet18")
CONTENDERS = ("ours", "ONNX Runtime", "OpenVINO")
VERSIONS = ("onnx", "onnxruntime", "openvino")
SLACK = 120  # seconds that a server lives beyond those it is asked in: it ends by itself, whatever becomes of us
PAUSE = 0.3  # seconds between turns, in which the last one's workers stop spinning

# ---- a saved net, loaded ----


def load(
    name: str, folder: Path, threads: int, shape: tuple[int, ...], dtype: str = "float32"
) -> Callable[[np.ndarray], Call]:
    """The contender called `name`, from the forms of a net that `serving.save` put into `folder`.

    shape, dtype   of the images, [B, 3, H, W], and of the arithmetic: "float32" or "bfloat16"
    returns        images, float32 -> the call that gives their logits, an array or a tensor
    """
    if name == "ONNX Runtime":
        run = runtimes.onnx_runtime(folder / "net.onnx", threads)
        return lambda images: partial(run, images)
    if name == "OpenVINO":
        run = runtimes.openvino(folder / "net.xml", threads, shape, {"float32": "f32", "bfloat16": "bf16"}[dtype])
        return lambda images: partial(run, images)

    import torch

    from resnet_min.model import resnet

    torch.set_num_threads(threads)
    with torch.device("meta"):
        net = resnet(**json.loads((folder / "net.json").read_text())["net"])
    net.load_state_dict(torch.load(folder / "net.pt", weights_only=True), assign=True)
    net.eval()
    layout = torch.contiguous_format if name == "eager, NCHW" else torch.channels_last
    if name == "ours":
        from resnet_min import fuse

        net = fuse(net, getattr(torch, dtype))
    else:
        net.to(getattr(torch, dtype), memory_format=layout)
    if (
        name == "compile, freezing"
    ):  # freezing takes the weights for constants: it folds batch norm and lays them out ahead
        torch.compiler.reset()
        net.compile(dynamic=False, options={"freezing": True})
    run = torch.no_grad()(net)

    def bind(images: np.ndarray) -> Call:
        return partial(run, torch.from_numpy(images).to(getattr(torch, dtype)).contiguous(memory_format=layout))

    return bind


def logits_of(bind: Callable[[np.ndarray], Call]) -> Callable[[np.ndarray], np.ndarray]:
    """images -> logits, as float32 arrays both."""

    def infer(images: np.ndarray) -> np.ndarray:
        logits = bind(images)()
        return logits if isinstance(logits, np.ndarray) else logits.float().numpy()

    return infer


def resident() -> float:
    """MiB of memory that this process holds: its resident set, or where the system does not say, the most there was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# ---- the process that serves ----


def handler(infer: Callable[[np.ndarray], np.ndarray], known: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    """Answers POST with the image's probabilities. One request at a time has the net, and all its threads."""
    side, turn = known["pixels"], threading.Lock()
    mean, std = (np.float32(known[key])[:, None, None] for key in ("mean", "std"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version, timeout = "HTTP/1.1", 30
        disable_nagle_algorithm, wbufsize = True, -1  # an answer is one packet, at once

        def do_POST(self) -> None:
            if self.headers.get("Content-Length") != str(3 * side**2):
                self.close_connection = True
                return self.send_error(400, f"wanted the {3 * side**2} bytes of an image [{side}, {side}, 3]")
            pixels = np.frombuffer(self.rfile.read(3 * side**2), np.uint8).reshape(side, side, 3)
            image = np.ascontiguousarray((pixels.transpose(2, 0, 1) / np.float32(255) - mean) / std)
            with turn:
                logits = np.array(infer(image[None])[0], np.float64)
            shares = np.exp(logits - logits.max())
            content = json.dumps({"probabilities": (shares / shares.sum()).tolist()}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Not a line for each request."""

    return Handler


def main(argv: list[str] | None = None) -> None:
    """Serve a net on a free port of 127.0.0.1 for so many seconds; prints the port."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.server", allow_abbrev=False)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=SLACK)
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args(argv)
    known = json.loads((args.folder / "net.json").read_text())
    shape = (1, 3, known["pixels"], known["pixels"])
    bind = load(args.name, args.folder, args.threads, shape, args.dtype)
    infer = logits_of(bind)
    infer(np.zeros(shape, np.float32))
    if args.once:
        print(resident(), flush=True)
        os._exit(0)  # what a runtime does on its way out is not in the time
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(infer, known)) as server:
        server.daemon_threads = True
        threading.Timer(args.seconds, server.shutdown).start()
        print(server.server_port, flush=True)
        server.serve_forever()


# ---- the table ----


class Served:
    """A contender in a process of its own."""

    def __init__(self, name: str, folder: Path, threads: int, seconds: float) -> None:
        known = json.loads((folder / "net.json").read_text())
        self.image = np.random.default_rng(0).integers(0, 256, 3 * known["pixels"] ** 2, np.uint8).tobytes()
        self.process = process(name, folder, threads, "float32", "--seconds", str(seconds))
        self.port = int(first_line(self.process))

    def ask(self, connection: HTTPConnection) -> list[float]:
        """The image's probabilities."""
        connection.request("POST", "/", self.image)
        return json.loads(connection.getresponse().read())["probabilities"]

    def __call__(self) -> list[float]:
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            return self.ask(connection)

    def under_load(self, seconds: float, clients: int) -> tuple[float, list[float]]:
        """(requests a second, the seconds that each took) with so many clients, each asking without a pause."""
        taken: list[float] = []

        def client() -> None:
            with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
                self.ask(connection)  # connects
                ready.wait()
                while (start := time.perf_counter()) < end[0]:
                    self.ask(connection)
                    taken.append(time.perf_counter() - start)

        end = [0.0]
        ready = threading.Barrier(clients, lambda: end.__setitem__(0, time.perf_counter() + seconds))
        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(taken) / (time.perf_counter() - end[0] + seconds), taken


def process(name: str, folder: Path, threads: int, dtype: str, *flags: str) -> subprocess.Popen[str]:
    """This file's program, started."""
    command = [sys.executable, "-m", f"{__package__}.server", name, str(folder), str(threads), dtype, *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    """The first line that a process prints. Raises RuntimeError where it ended without."""
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(process.args)} ended without an answer")
    return line


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Ours, ONNX Runtime and OpenVINO behind the same server, with the same threads."""
    from . import serving
    from .timing import Case

    names = serving.present(CONTENDERS)
    for arch in [args.arch] if args.arch else ARCHS:
        net = serving.Saved(arch, "cifar", 32)
        contenders = {name: partial(serve, net, name, args.seconds * len(names) + SLACK) for name in names}
        about = {"arch": arch, "clients": args.clients, "seconds": args.seconds}
        yield Case(about, 1, contenders, check)


def serve(net: Saved, name: str, seconds: float) -> Served:
    """A contender, asked for at most so many seconds."""
    import torch

    return Served(name, net.folder, torch.get_num_threads(), seconds)


def check(results: dict[str, list[float]]) -> None:
    """All must give the same probabilities."""
    for name, shares in results.items():
        if not np.allclose(shares, results["ours"], atol=1e-3):
            raise AssertionError(f"{name} gives other probabilities than ours")


def run(case: Case, device: torch.device) -> Iterator[Row]:
    """A row for each contender, as `timing.run` has them, with the percentiles of all requests' times."""
    from . import timing

    served: dict[str, Served] = {}
    try:
        for name, make in case.contenders.items():
            served[name] = make()
        case.check({name: server() for name, server in served.items()})
        rates: dict[str, list[float]] = {name: [] for name in served}
        taken: dict[str, list[float]] = {name: [] for name in served}
        for _ in range(timing.WINDOWS):
            for name, server in served.items():
                time.sleep(PAUSE)
                rate, seconds = server.under_load(case.about["seconds"] / timing.WINDOWS, case.about["clients"])
                rates[name].append(rate)
                taken[name] += seconds
    finally:
        for server in served.values():
            server.process.kill()
            server.process.wait()
    for row in timing.rows(case, rates):
        yield row | timing.percentiles(taken[row["name"]])


if __name__ == "__main__":
    main()
