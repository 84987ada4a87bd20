"""Export a trained net for another program, and say what was read back from the file.

    python -m tools.export runs/resnet20-digits-1 --to onnx           for ONNX Runtime, OpenVINO and their like
    python -m tools.export runs/resnet20-digits-1 --to pt2            for torch.export.load, in ordinary operators
    python -m tools.export runs/resnet20-digits-1 --to pt2 --fused    in ours: load it after `import resnet_min`
    python -m tools.export runs/resnet20-digits-1 --to safetensors    the weights alone
    python -m tools.export --weights cifar10 --to onnx                trained weights that come with the package

The file takes a batch of any size. Before it gets its name it is read again in the runtime that it is for and gives its
outputs for the test images (of --weights without --data: for random ones), and the receipt says how far they are from
eager PyTorch's. It also has the classes, the normalisation and the options of the run. docs/serving.md says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_min.commands import Parser
from resnet_min.errors import UserError, run_script
from resnet_min.files import write_whole

if TYPE_CHECKING:
    from torch import nn

    from resnet_min.data import Split
    from resnet_min.model import ResNet
    from resnet_min.tasks.trained import Trained

FORMATS = ("onnx", "pt2", "safetensors")
PLACES = ("data", "data_dir", "cache_dir", "pretrained")  # options that say where things are on this machine
CLOSE = 1e-4  # of the largest output: more is no rounding
RANDOM = 256  # images, where there are no others
SECONDS = 0.5  # at least, that each net is timed


def get_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = Parser(prog="python -m tools.export", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", metavar="RUN", help="checkpoint or run folder (default: newest run)")
    parser.add_argument("--weights", metavar="NAME", help="trained weights that come with the package: cifar10, …")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format of the file")
    parser.add_argument("--fused", action="store_true", help="the form that fuse() makes, in our operators (pt2 only)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: beside the checkpoint, or here; under its name)"
    )
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.add_argument("--data", help="compare on this data set, of the same classes (default: the run's own)")
    parser.add_argument("--data-dir", help="where named data sets are (default: the run's own)")
    parser.add_argument("--cache-dir", help="cache for decoded images (default: the run's own)")
    parser.add_argument("-b", "--batch-size", type=int, default=256, metavar="N", help="batch size (default: 256)")
    args = parser.parse_args(argv)
    if args.checkpoint and args.weights is not None:
        raise UserError(f"{args.checkpoint} and --weights {args.weights} both say what to export: give one of them")
    if args.fused and args.to != "pt2":
        raise UserError(f"--fused is for --to pt2: other formats hold none of our operators; got --to {args.to}")
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1; got {args.batch_size}")
    if args.out and args.out.suffix != f".{args.to}":
        raise UserError(f"--out {args.out} must end in .{args.to}, by which others know what it is")
    return args


def about(subject: Trained, size: tuple[int, int] | None) -> dict[str, Any]:
    """What a reader of the file needs to know: plain values. No path of this machine is among them."""
    config = subject.task.config
    height, width = size or ("H", "W")
    return {
        "task": config.task,
        "arch": config.arch,
        "classes": list(subject.classes),
        "mean": list(config.mean),
        "std": list(config.std),
        "images": f"float32 [B, 3, {height}, {width}], RGB: (pixel / 255 - mean) / std",
        "config": {key: value for key, value in dataclasses.asdict(config).items() if key not in PLACES},
    }


def milliseconds(*calls: Callable[[], object]) -> list[float]:
    """The median time of each call, in turn."""
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS * len(calls) or len(times[0]) < 3:
        for call, kept in zip(calls, times, strict=True):
            call()  # finds the caches that the other left
            start = time.perf_counter()
            call()
            kept.append(1000 * (time.perf_counter() - start))
    return [statistics.median(kept) for kept in times]


def rebuilt(known: dict[str, Any]) -> nn.Module:
    """The network that a file's metadata describes, newly drawn."""
    from resnet_min.tasks import read_config

    return read_config(known["config"]).make_task().build(known["classes"])


def random_images(net: ResNet) -> Split:
    """Images of the size that the network takes, the same every time, whose labels mean nothing."""
    import torch

    from resnet_min.data import Split

    side, draw = net.preprocessing.size, torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (RANDOM, side, side, 3), dtype=torch.uint8, generator=draw)
    return Split(pixels, torch.zeros(RANDOM, dtype=torch.int64))


def main(argv: list[str] | None = None) -> None:
    """Export, read back, compare; only then does the file get its name."""
    args = get_args(argv)

    import torch

    from resnet_min import fuse, weights
    from resnet_min.inference import export, runtimes
    from resnet_min.model import check_finite
    from resnet_min.tasks import trained
    from resnet_min.training import checkpoint, hardware

    path = checkpoint.find(args.checkpoint) if args.weights is None else weights.find(args.weights)
    folder = path.parent if args.weights is None else Path()
    file = args.out or folder / f"{path.stem}{'-fused' * args.fused}.{args.to}"
    if file.exists() and not args.force:
        raise UserError(f"{file} is there already: --force writes over it, --out FILE writes another")
    runtimes.expect(f"--to {args.to}", *export.PACKAGES[args.to])
    newest = not args.checkpoint and args.weights is None
    print(f"checkpoint: {path}{' (the newest run)' if newest else ''}")
    subject = trained.load(path)
    task, net = subject.task, subject.net
    places = {"data": args.data, "data_dir": args.data_dir, "cache_dir": args.cache_dir}
    blind = args.weights is not None and not any(places.values())
    images = random_images(net) if blind else trained.load_data(subject, **places).splits["test"]
    batches = task.batches(images, hardware.cpu(), args.batch_size)

    one = torch.zeros(1, 3, *batches.size)
    with torch.no_grad():
        outputs = net(one)
    check_finite(outputs)
    size = None if outputs.dim() == 4 else batches.size  # a net that gives maps takes images of any size
    known = about(subject, size)
    with tempfile.TemporaryDirectory() as temporary:
        new = Path(temporary, file.name)
        if args.to == "onnx":
            export.save_onnx(net, new, size, known)
        elif args.to == "pt2":
            export.save_pt2(fuse(net) if args.fused else export.folded(net), new, size, known)
        else:
            export.save_safetensors(net, new, known)
        loaded, content = export.load(new, rebuilt), new.read_bytes()

    both = export.Compared(loaded, net).eval()
    with torch.inference_mode():
        figure = task.config.figure
        value = task.judge(both, batches.ordered(), hardware.cpu())[figure.key]
        here, eager = milliseconds(lambda: loaded(one), lambda: net(one))
    check_finite(both.largest)
    difference, largest, threads = both.difference.item(), both.largest.item(), torch.get_num_threads()
    seen = "random images" if blind else f"test images, {figure.title} {value:.2f}{figure.unit}"
    print(f"read back in {loaded.runtime}: {len(images):,} {seen}")
    print(f"largest difference from eager PyTorch: {difference:.2g}, where the largest output is {largest:.3g}")
    print(
        f"one image, {one.shape[2]}×{one.shape[3]}: {here:.2f} ms, eager PyTorch {eager:.2f} ms "
        f"(medians, {threads} thread{'s' * (threads > 1)})"
    )
    if not difference <= CLOSE * largest:
        raise UserError(f"what was exported does not compute what the network does: {file} was not written")
    write_whole(file, lambda opened: opened.write(content))
    print(f"wrote: {file} ({len(content) / 2**20:,.1f} MiB)")


if __name__ == "__main__":
    run_script(main)
