"""Checkpoints: atomic save, safe load.

A checkpoint is a dict of tensors and plain values, loadable with `torch.load(…, weights_only=True)`:

    model      state_dict, torchvision's parameter names     optimizer  state_dict
    schedule   {"lr": of the last step}                      epoch, step  completed so far
    rng        torch's generator states by device            config     every option (recipes.Config)
    classes    class names                                   mean, std  of the normalisation, units of 1
    versions   python, torch, numpy and ours                 digest   of all this, by `save`

One that was saved within an epoch also has what its steps gave so far (`loop.Progress`), and `step` counts these:

    progress   losses [steps taken], figures: their sum over the images seen, seen, seconds

What is read may be damaged, or a stranger's: validate.py says what is refused, and how large anything may be.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from . import foreign, validate

KEYS = tuple(validate.FORM)


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


def restore(
    checkpoint: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: str | Path,
) -> None:
    """Put weights, optimizer and random generators back to where a checkpoint was written.

    Of the optimizer it is the state alone, since its options are the config's. Raises UserError for what does not fit.
    """
    load_weights(model, checkpoint, path)
    state = checkpoint["optimizer"]["state"]
    if not is_state_of(optimizer, state):
        raise UserError(f"{path} holds the state of another optimizer than its options describe")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    try:
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        if "cuda" in checkpoint["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint["rng"]["cuda"])
    except RuntimeError as error:
        raise UserError(f"{path} holds no state of torch's generators: {error}") from None


def is_state_of(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> bool:
    """Whether `state` has for each parameter, or for none, the entries and shapes that `optimizer` keeps for it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = ("momentum_buffer",) if isinstance(optimizer, torch.optim.SGD) else ("step", "exp_avg", "exp_avg_sq")
    wanted = {
        number: {name: () if name == "step" else parameter.shape for name in names}
        for number, parameter in enumerate(parameters)
    }
    shapes = {
        number: {name: getattr(value, "shape", None) for name, value in slot.items()}
        for number, slot in state.items()
        if slot
    }
    return not shapes or shapes == wanted


def save(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` always holds a whole one: temporary name, flush to disk, rename.

    Raises OSError (a full disk, a read-only folder); what `path` held before is then untouched.
    """
    try:
        write_whole(path, partial(torch.save, {**checkpoint, "digest": validate.digest(checkpoint)}))
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
    """What torch.save or safetensors wrote, on the CPU; no code in the file is run. Raises UserError for all else."""
    if path.suffix in foreign.OPENED_BY:
        raise UserError(
            f"{path} is an exported graph, which {foreign.OPENED_BY[path.suffix]} opens; "
            "wanted the checkpoint that it was made of, or its weights"
        )
    content = foreign.read_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    validate.check_content(content, path)
    if is_ours(content):
        validate.check_form(content, path)
        content.pop("digest", None)
    return content


def _unpickled(path: Path) -> Any:
    validate.check_file(path)
    try:
        # torchvision's and timm's training scripts save their options, an object without code, beside the weights.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # on what kind of pickle it is
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # anything may be in a damaged file, and torch's reader has no kind of its own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable checkpoint: {why}") from None


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; no code in the file is run. Raises UserError where it is not a sound one."""
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
    check_weights(model, checkpoint, path)
    model.load_state_dict(checkpoint["model"])


def check_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path = "the checkpoint") -> None:
    """Raise UserError, naming what differs, where a checkpoint's weights are not those of `model`, on whatever device.

    Names, shapes and dtypes are compared.
    """
    own, other = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for tensors in (model.state_dict(), checkpoint["model"])
    )
    if wrong := [name for name in own.keys() | other.keys() if own.get(name) != other.get(name)]:
        raise UserError(
            f"{path} was trained as another architecture: {len(wrong)} tensors differ, {sorted(wrong)[0]} among them"
        )
