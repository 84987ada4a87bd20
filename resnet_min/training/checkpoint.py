"""Checkpoints: atomic save, safe load.

A checkpoint is a dict of tensors and plain values, loadable with `torch.load(…, weights_only=True)`:

    model      state_dict, torchvision's parameter names     optimizer  state_dict
    schedule   {"lr": of the last step}                      epoch, step  completed so far
    rng        torch's generator states by device            config     every option (recipes.Config)
    classes    class names                                   mean, std  of the normalisation, units of 1
    versions   python, torch, numpy and ours

One that was saved within an epoch also has what its steps gave so far (`loop.Progress`), and `step` counts these:

    progress   losses [steps taken], figures: their sum over the images seen, seen, seconds
"""

from __future__ import annotations

import dataclasses
import pickle
import platform
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..config import Config
from ..errors import UserError
from ..files import write_whole

KEYS = ("model", "optimizer", "schedule", "epoch", "step", "rng", "config", "classes", "mean", "std", "versions")


def snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    classes: tuple[str, ...],
    epoch: int,
    step: int,
    progress: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The checkpoint of a run that has completed `epoch` epochs and `step` steps. `config` carries mean and std.

    progress: where it is within an epoch, what that has given so far (`loop.Progress.saved`).
    """
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])  # under a CUDA graph it is a tensor
    return {
        "model": model.state_dict(),
        "optimizer": state,
        "schedule": {"lr": state["param_groups"][0]["lr"]},
        "epoch": epoch,
        "step": step,
        "rng": rng,
        "config": dataclasses.asdict(config),
        "classes": list(classes),
        "mean": list(config.mean),
        "std": list(config.std),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "resnet_min": __version__,
        },
        **({} if progress is None else {"progress": progress}),
    }


def restore(checkpoint: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, path: str | Path) -> None:
    """Put weights, optimizer and random generators back to where a checkpoint was written."""
    load_weights(model, checkpoint, path)
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if "cuda" in checkpoint["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint["rng"]["cuda"])


def save(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` always holds a whole one: temporary name, flush to disk, rename.

    Raises OSError (a full disk, a read-only folder); what `path` held before is then untouched.
    """
    try:
        write_whole(path, partial(torch.save, checkpoint))
    except RuntimeError as error:  # torch's zip writer hides the operating system's error
        raise OSError(f"cannot write {path} (is the disk full?): {error}") from error


def find(path: str | Path | None = None) -> Path:
    """A checkpoint's file: `path`, the `last.pt` of a run folder, or by default the one written last under runs/.

    Raises UserError where there is none.
    """
    if path is None:
        found = sorted(Path("runs").glob("**/last.pt"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise UserError("no checkpoint under runs/: train a network first (python train.py), or name a file")
        return found[-1]
    file = Path(path) / "last.pt" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"no checkpoint at {file}")
    return file


def read(path: Path) -> Any:
    """What torch.save wrote, on the CPU; no code in the file is run. Raises UserError where it cannot be read."""
    try:
        with warnings.catch_warnings():  # on what kind of pickle it is: said below where it matters
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is refused: it is not a plain checkpoint (it holds code or foreign objects, or is damaged); "
            "only tensors and plain values are loaded"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        why = (str(error).splitlines() or ["it ends too early"])[0]
        raise UserError(f"{path} is not a readable checkpoint, perhaps truncated: {why}") from None


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; no code in the file is run. Raises UserError where it is not a whole one."""
    path = find(path)
    checkpoint = read(path)
    if not is_ours(checkpoint):
        missing = [key for key in KEYS if key not in checkpoint] if isinstance(checkpoint, dict) else KEYS
        raise UserError(f"{path} is not a checkpoint of this project: it has no {', '.join(missing)}")
    return checkpoint


def is_ours(content: Any) -> bool:
    """Whether what a file held is a whole checkpoint."""
    return isinstance(content, dict) and content.keys() >= set(KEYS)


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path = "the checkpoint") -> None:
    """Fill `model` with a checkpoint's weights, all of them. Raises UserError naming what differs."""
    own, other = model.state_dict(), checkpoint["model"]
    wrong = [name for name in own.keys() | other.keys() if name not in own or name not in other]
    wrong += [name for name in own.keys() & other.keys() if own[name].shape != other[name].shape]
    if wrong:
        raise UserError(
            f"{path} was trained as another architecture: {len(wrong)} tensors differ, {sorted(wrong)[0]} among them"
        )
    model.load_state_dict(other)
