"""The layers of a ResNet in the order of use: what each takes, what it makes of images, which pixels it sees."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model import Block, PadShortcut, ResNet

IMAGE = "image"  # the name of what the first layer takes


@dataclass(frozen=True)
class Layer:
    """A module that makes maps, and the names of those it takes: a last ReLU takes the sum (branch, shortcut)."""

    module: nn.Module
    inputs: tuple[str, ...]


def graph(model: ResNet) -> dict[str, Layer]:
    """Every layer up to the last stage by its module's name, each after its inputs.

    Blocks, stages and projections are not in it: their maps are those of the last layer inside them (see `locate`).
    """
    modules = dict(model.named_modules())
    layers: dict[str, Layer] = {}

    def chain(start: str, *names: str) -> str:
        """Add layers one behind the other; the name of the last."""
        for name in names:
            layers[name] = Layer(modules[name], (start,))
            start = name
        return start

    last = chain(IMAGE, "conv1", "bn1", "relu", "maxpool")
    for name, block in modules.items():
        if not isinstance(block, Block):
            continue
        *branch, relu = (f"{name}.{kind}{i + 1}" for i in range(block.depth) for kind in ("conv", "bn", "relu"))
        inputs = [chain(last, *branch)]
        if block.downsample is not None:
            inside = ("",) if isinstance(block.downsample, PadShortcut) else (".0", ".1")
            inputs.append(chain(last, *(f"{name}.downsample{part}" for part in inside)))
        elif not block.plain:
            inputs.append(last)
        layers[relu] = Layer(modules[relu], tuple(inputs))
        last = relu
    return layers


def is_plain(model: ResNet) -> bool:
    """Whether the network has no shortcuts."""
    return all(block.plain for block in model.modules() if isinstance(block, Block))


def find(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`. Raises UserError that suggests the nearest names."""
    known = [known for known, _ in model.named_modules() if known]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f", did you mean {' or '.join(near)}?" if near else ";"
        raise UserError(f"unknown layer {name!r}{hint} --list-layers names all")
    return model.get_submodule(name)


def locate(model: ResNet, name: str) -> str:
    """The layer of `graph` whose maps are those of the module `name`. Raises UserError where there is none."""
    module = find(model, name)
    if found := inside(model, name):
        return found[-1]
    raise UserError(
        f"{name} is a {type(module).__name__} and has no spatial output; the last layer that has one is "
        f"layer{model.stages}"
    )


def inside(model: ResNet, name: str) -> list[str]:
    """The layers of `graph` that the module `name` is or holds."""
    return [layer for layer in graph(model) if layer == name or layer.startswith(f"{name}.")]


def chosen(model: ResNet, names: Sequence[str]) -> dict[str, str]:
    """What to call layers -> their modules: those named, "stem" for what the first stage takes.

    "all" is the early, middle and late ones: the stem and every stage. Raises UserError as `locate` does.
    """
    if list(names) == ["all"]:
        names = ["stem", *(f"layer{stage}" for stage in range(1, model.stages + 1))]
    stem = "maxpool" if isinstance(model.maxpool, nn.MaxPool2d) else "relu"
    found = {name: stem if name == "stem" else name for name in names}
    for module in found.values():
        locate(model, module)
    return found


def outputs(
    model: ResNet, images: Tensor, names: Collection[str], net: nn.Module | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(logits [B, classes], module -> its maps [B, C, h, w]) for images [B, 3, H, W].

    names: modules that have maps. In eval mode they are ordinary ones that write nothing in place, so each is seen as
    it is used. net: the network that holds the ResNet, where it is another; what it puts out takes the logits' place.
    Raises UserError in training mode, where a batch's maps depend on one another.
    """
    if model.training:
        raise UserError("the model is in training mode; call model.eval() first")
    maps: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: maps.update({name: output}))
        for name in names
    ]
    try:
        return (net or model)(images), maps
    finally:
        for hook in hooks:
            hook.remove()


def convolution(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution called `name`. Raises UserError where it is none, naming those inside it."""
    module = find(model, name)
    if isinstance(module, nn.Conv2d):
        return module
    held = sorted(f"{name}.{child}" for child, part in module.named_modules() if isinstance(part, nn.Conv2d))
    hint = f"inside it are {', '.join(held[:4])}" if held else "conv1 is a convolution, which has"
    raise UserError(f"{name} is a {type(module).__name__} and has no filters; {hint}; or take another --what")


def table(model: ResNet, size: tuple[int, int]) -> Iterator[str]:
    """Every layer that makes something, in the order of use: kind, receptive field, output for one image of `size`."""
    rows = []
    hooks = [
        module.register_forward_hook(
            lambda module, _, output, name=name: rows.append((name, type(module).__name__, list(output.shape[1:])))
        )
        for name, module in model.named_modules()
        if name
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 3, *size))
    for hook in hooks:
        hook.remove()
    layers = graph(model)
    wide, kind = (max(len(row[column]) for row in rows) for column in (0, 1))
    yield f"{'layer':{wide}}  {'kind':{kind}}  {'sees':9}  output for one image of {size[0]}x{size[1]}"
    for name, type_name, shape in rows:
        maps = inside(model, name)
        sees = "{0}x{0}".format(field_size(layers, maps[-1])) if maps else "all"
        yield f"{name:{wide}}  {type_name:{kind}}  {sees:9}  {' x '.join(map(str, shape))}"


def geometry(module: nn.Module) -> tuple[int, int, int]:
    """(kernel, stride, padding) of a layer, the same in both directions; (1, 1, 0) where pixels stay apart."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size[0], module.stride[0], module.padding[0]
    if isinstance(module, nn.MaxPool2d):
        return module.kernel_size, module.stride, module.padding
    return 1, module.stride if isinstance(module, PadShortcut) else 1, 0


def receptive_field(
    layers: Mapping[str, Layer], name: str, position: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The pixels (top, left, bottom, right), the last two exclusive, that one value of a layer's maps depends on.

    layers: of `graph`. position: (row, column) in the maps of layer `name`. size: (height, width) of the image.
    Exact, from kernels, strides and paddings: at each layer the part beyond its input is padding, which no pixel
    reaches, and where a shortcut joins, both paths count. (Strides above the kernel leave gaps inside the rectangle.)
    """
    (top, bottom), (left, right) = (_seen(layers, name, *axis) for axis in zip(position, size, strict=True))
    return top, left, bottom + 1, right + 1


def field_size(layers: Mapping[str, Layer], name: str) -> int:
    """Height and width, in pixels, of the receptive field of a value far from any border."""
    far = 10**9
    sizes = _sizes(layers, far)
    low, high = _seen(layers, name, sizes[name] // 2, far)
    return high - low + 1


def _sizes(layers: Mapping[str, Layer], size: int) -> dict[str, int]:
    """Height (or width) of every layer's maps for an image of height (or width) `size`."""
    sizes = {IMAGE: size}
    for name, layer in layers.items():
        kernel, stride, padding = geometry(layer.module)
        sizes[name] = (sizes[layer.inputs[0]] + 2 * padding - kernel) // stride + 1
    return sizes


def _seen(layers: Mapping[str, Layer], name: str, index: int, size: int) -> tuple[int, int]:
    """The first and last row (or column) of an image that row `index` of a layer's maps depends on."""
    sizes = _sizes(layers, size)
    seen = {name: (index, index)}
    for layer in reversed(layers):
        if layer not in seen:
            continue
        low, high = seen.pop(layer)
        kernel, stride, padding = geometry(layers[layer].module)
        for source in layers[layer].inputs:
            first, last = max(0, low * stride - padding), min(sizes[source], high * stride - padding + kernel) - 1
            if source in seen:
                first, last = min(first, seen[source][0]), max(last, seen[source][1])
            seen[source] = first, last
    return seen[IMAGE]
