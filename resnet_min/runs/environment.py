"""What a run ran on, for its `environment.jsonl`: versions, hardware, and the revision of the code."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__, ops
from ..training.distributed import launch
from ..training.hardware import Hardware


def environment(where: Hardware, data: str) -> dict[str, Any]:
    """Plain values: when it started, on what data, device, processor, kernels, versions, and `revision`.

    `processes` says how many train it, and `launch` by which start of torchrun, if any (`distributed.launch`).
    """
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "data": describe_data(data),
        "device": str(where),
        "processes": where.world.size,
        "launch": launch(),
        "processor": processor(),
        "kernels": ops.backend_line(where.device).removeprefix("kernels: "),
        "platform": platform.platform(),
        "git_revision": revision(),
        "python": platform.python_version(),
        "resnet_min": __version__,
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        **{name: metadata.version(name) for name in ("torchvision", "numpy")},
    }


def say_processes(starts: Sequence[Mapping[str, Any]], processes: int) -> Iterator[str]:
    """What may differ where a run that was started so goes on with another number of processes, as one line."""
    before = starts[-1].get("processes", 1) if starts else processes
    if before != processes:
        yield (
            f"processes: {processes}, before {before}: the same batches, but their sums are added up in another order, "
            "so the last bits of the losses may differ; without --sync-bn each normalises by another shard\n"
        )


def describe_data(data: str) -> str:
    """A data set by name; a folder with the kind of its files, since what was stored as JPEG is not the original."""
    folder = Path(data)
    if not folder.is_dir():
        return folder.name
    kind = next((file.suffix.lower() for file in folder.glob("train/*/*")), "")
    jpeg = ": not the original pixels, accuracies lie below those on the original" if kind in (".jpg", ".jpeg") else ""
    return f"{folder.name}, a folder of {kind} files{jpeg}" if kind else folder.name


def revision() -> str | None:
    """The commit that this code is, with "+" where files differ from it; None where it is not a repository's own."""
    root = Path(__file__).resolve().parents[2]

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:  # installed somewhere inside another repository
            return None
        return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None


def processor(device: torch.device | str = "cpu") -> str:
    """A GPU's name; a CPU's, with its cores and what torch vectorises for."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:  # a virtual machine's processor often has no name of its own
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    bf16 = ", bf16" if {"avx512_bf16", "amx_bf16"} & set(facts.get("flags", "").split()) else ""
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}{bf16}"
