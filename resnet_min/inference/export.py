"""A trained net as a file for another program: ONNX, torch.export's .pt2, safetensors.

The graph of an .onnx file and of a plain .pt2 has batch norm folded in and nothing but ordinary operators.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ..errors import UserError
from ..files import write_whole
from ..model import PadShortcut
from . import runtimes

Size = tuple[int, int] | None  # height and width of the images; None for any
SUFFIX = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
ABOUT = "about.json"  # in a .pt2, where what is known of the net stands


class Pad(nn.Module):
    """What `PadShortcut` computes, for runtimes that keep maps as [B, C, H, W]: the same without turning them."""

    def __init__(self, shortcut: PadShortcut) -> None:
        super().__init__()
        self.extra, self.stride = shortcut.extra, shortcut.stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


@torch.no_grad()
def folded(model: nn.Module) -> nn.Module:
    """`model` with each batch norm folded, in float64, into the convolution before it; in ordinary PyTorch layers.

    `model`, which is left as it is, is any module where a convolution and its batch norm stand beside each other, as in
    our ResNets, torchvision's and a task's net. Raises UserError for one in training mode, and for a batch norm that
    follows no convolution, naming it.
    """
    if model.training:
        raise UserError("export: the model is in training mode; wanted eval mode: call model.eval() first")
    model = copy.deepcopy(model).double()
    for module in list(model.modules()):
        for (conv, first), (bn, second) in itertools.pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(first, second))
                setattr(module, bn, nn.Identity())
        if isinstance(getattr(module, "downsample", None), PadShortcut):
            module.downsample = Pad(module.downsample)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"export: {name} follows no convolution that it could be folded into")
    return model.float().requires_grad_(False)


# ---- files ----


def save_onnx(model: nn.Module, file: Path, size: Size, about: dict[str, Any]) -> None:
    """Write `model`, folded, as an .onnx file: "images" [B, 3, H, W] float32 -> "outputs", for any B.

    about: plain values, kept as the file's metadata, each as JSON. Raises UserError where a package is missing, and as
    `folded` does.
    """
    runtimes.expect("an .onnx file", "onnx", "onnxscript")
    images, free = _example(size)
    program = torch.onnx.export(
        folded(model), (images,), dynamo=True, dynamic_shapes=(free,), input_names=["images"], output_names=["outputs"],
        verbose=False,
    )  # fmt: skip
    proto = program.model_proto
    graph = proto.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]  # where in which source file each was made
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    write_whole(file, lambda opened: opened.write(proto.SerializeToString()))


def save_pt2(model: nn.Module, file: Path, size: Size, about: dict[str, Any]) -> None:
    """Write `model` as it is, perhaps `folded` or `fuse`d, for torch.export.load: images [B, 3, H, W], for any B.

    `about`, plain values, is the extra file `ABOUT` in it, as JSON.
    """
    images, free = _example(size)
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which has this machine's paths
    extra = {ABOUT: json.dumps(about)}
    with warnings.catch_warnings():  # weights in channels_last are taken for parts of something
        warnings.filterwarnings("ignore", "No complete tensor found")
        write_whole(file, lambda opened: torch.export.save(program, opened, extra_files=extra))


def save_safetensors(model: nn.Module, file: Path, about: dict[str, Any]) -> None:
    """Write the weights of `model`, under their own names and so with batch norm by itself: a file without a graph.

    about: plain values, kept as the file's metadata, each as JSON. Raises UserError where the package is missing.
    """
    runtimes.expect("a .safetensors file", "safetensors")
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    content = save(weights, {key: json.dumps(value) for key, value in about.items()})
    write_whole(file, lambda opened: opened.write(content))


def _example(size: Size) -> tuple[Tensor, dict[int, Any]]:
    """(images to trace with, what of their shape is free)"""
    dim = torch.export.Dim
    free: dict[int, Any] = {0: dim("batch")}  # of two images: one would be taken for always one
    if size is None:
        free |= {2: dim.DYNAMIC, 3: dim.DYNAMIC}
    return torch.zeros(2, 3, *(size or (96, 128))), free


# ---- files read again ----


class Loaded(nn.Module):
    """A net as a file has it: images [B, 3, H, W] -> outputs.

    runtime   the program that computes them, with its version
    about     what is known of the net
    """

    def __init__(self, run: Callable[[Tensor], Tensor], runtime: str, about: dict[str, Any]) -> None:
        super().__init__()  # `run` is no submodule: torch.export's have no train() and eval()
        self.run, self.runtime, self.about = run, runtime, about

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


def load(file: Path, build: Callable[[dict[str, Any]], nn.Module]) -> Loaded:
    """A saved net in the runtime that its suffix stands for: ONNX Runtime, PyTorch, or for weights alone the net that
    `build` makes of what is known. Raises UserError for another suffix, and where a package is missing.
    """
    if file.suffix == SUFFIX["onnx"]:
        runtimes.expect("an .onnx file", "onnx", "onnxruntime")
        import onnx
        import onnxruntime

        run = runtimes.onnx_runtime(file, torch.get_num_threads())
        about = {item.key: json.loads(item.value) for item in onnx.load(file).metadata_props}
        return Loaded(
            lambda images: torch.from_numpy(run(images.contiguous().numpy())),
            f"ONNX Runtime {onnxruntime.__version__}",
            about,
        )
    if file.suffix == SUFFIX["pt2"]:
        extra = {ABOUT: ""}
        module = torch.export.load(file, extra_files=extra).module()
        return Loaded(module.__call__, f"PyTorch {torch.__version__}", json.loads(extra[ABOUT]))
    if file.suffix == SUFFIX["safetensors"]:
        weights, about = read_safetensors(file)
        net = build(about).eval()
        net.load_state_dict(weights)
        return Loaded(net.__call__, f"PyTorch {torch.__version__}", about)
    raise UserError(f"{file} ends in none of {', '.join(SUFFIX.values())}")


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the weights, what is known of the net) of a .safetensors file. Raises UserError where the package is missing."""
    runtimes.expect("a .safetensors file", "safetensors")
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        about = {key: json.loads(value) for key, value in (opened.metadata() or {}).items()}
        return {name: opened.get_tensor(name) for name in opened.keys()}, about


class Compared(nn.Module):
    """Gives what `net` gives, and keeps how far that was from what `exact` gives.

    difference   the largest |output of net − output of exact| so far; not a number if one was
    largest      the largest |output of exact| so far
    """

    def __init__(self, net: nn.Module, exact: nn.Module) -> None:
        super().__init__()
        self.net, self.exact = net, exact
        self.difference, self.largest = torch.zeros(()), torch.zeros(())

    def forward(self, images: Tensor) -> Tensor:
        outputs, wanted = self.net(images), self.exact(images)
        self.difference = torch.maximum(self.difference, (outputs - wanted).abs().max())
        self.largest = torch.maximum(self.largest, wanted.abs().max())
        return outputs
