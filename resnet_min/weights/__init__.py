"""Trained weights that come with the package. Imports no torch by itself.

    ARCH-NAME.pt    a checkpoint as training/checkpoint.py has it, without what its optimizer remembered
    ARCH-NAME.json  its card: SHA-256, data, mean, std, command, seed, log, test accuracy, and what measures it again

NAME is the data set's. The network is its arch as it is, so that the two names say all. Both files are made of a run by
tools/package_weights.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from ..model import ResNet

FOLDER = Path(__file__).parent


def find(name: str, arch: str | None = None) -> Path:
    """The checkpoint called `name`, such as "cifar10" or "resnet20-cifar10", of `arch` where that is given.

    Raises UserError where there is none or several, or it is not the file that its card describes.
    """
    known = sorted(card.stem for card in FOLDER.glob("*.json"))
    wanted = [
        stem for stem in known if name in (stem, stem.partition("-")[2]) and arch in (None, stem.partition("-")[0])
    ]
    if len(wanted) != 1:
        some = f"{len(wanted) or 'no'} weights {name!r}{f' of {arch}' if arch else ''}"
        raise UserError(f"{some} come with the package; it has {', '.join(known) or 'none'}")
    path = FOLDER / f"{wanted[0]}.pt"
    if hashlib.sha256(path.read_bytes()).hexdigest() != json.loads(path.with_suffix(".json").read_text())["sha256"]:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one on its card")
    return path


def fill(net: ResNet, name: str, arch: str) -> None:
    """Have `net`, an `arch` as it is, be the trained one, in eval mode. Raises UserError as `find` does.

    Also where it tells another number of classes.
    """
    import torch

    from ..data.preprocessing import Preprocessing

    path = find(name, arch)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if net.fc.out_features != len(saved["classes"]):
        raise UserError(f"weights {name!r} tell {len(saved['classes'])} classes; got num_classes={net.fc.out_features}")
    net.load_state_dict(saved["model"])
    options = saved["config"]
    net.classes = tuple(saved["classes"])
    net.preprocessing = Preprocessing(saved["mean"], saved["std"], options["image_size"] or 32, options["resize"])
    net.eval()
