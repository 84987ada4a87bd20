#!/usr/bin/env python
"""Pictures of a trained network and of how it was trained.

    python visualize.py --layer conv1                 the filters of the newest run's first convolution
    python visualize.py model.pt --layer layer1.0.conv2 --out filters.png
    python visualize.py --list-layers                 the names that --layer takes, with output shapes
    python visualize.py --curves runs/resnet18-digits-1 runs/resnet18-plain-digits-1

Filters are drawn per input channel, in colours symmetric about zero, and fused as RGB where the input is RGB.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_min.errors import UserError, run_script

if TYPE_CHECKING:  # torch and matplotlib are imported where they are used, so that --help is quick
    from torch import nn


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", nargs="?", metavar="CKPT", help="checkpoint or run folder (default: newest run)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--layer", metavar="NAME", help="draw the filters of this convolution")
    what.add_argument("--list-layers", action="store_true", help="print the layers' names and output shapes")
    what.add_argument("--curves", nargs="+", metavar="RUN", help="draw the loss and accuracy of runs over each other")
    parser.add_argument(
        "--out", metavar="FILE", help="picture to write: .png, .pdf or .svg "
        "(default: filters-NAME.png beside the checkpoint; curves.png here)",
    )  # fmt: skip
    return parser


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`. Raises UserError that suggests the nearest names."""
    known = [known for known, _ in model.named_modules() if known]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f", did you mean {' or '.join(near)}?" if near else ";"
        raise UserError(f"unknown layer {name!r}{hint} --list-layers names all")
    return model.get_submodule(name)


def list_layers(model: nn.Module, size: int) -> None:
    """Print every layer that makes something, in the order of use: name, kind, output shape for one image."""
    import torch

    rows = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, _, output, name=name: rows.append((name, type(module).__name__, list(output.shape[1:])))
        )
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    rows = [row for row in rows if row[0]]
    wide, kind = (max(len(row[column]) for row in rows) for column in (0, 1))
    print(f"{'layer':{wide}}  {'kind':{kind}}  output for one image of {size}x{size}")
    for name, type_name, shape in rows:
        print(f"{name:{wide}}  {type_name:{kind}}  {' x '.join(map(str, shape))}")


def draw_filters(model: nn.Module, name: str, path: Path) -> None:
    """Draw the filters of the convolution called `name`."""
    from torch import nn

    from resnet_min import pictures

    module = find_layer(model, name)
    if not isinstance(module, nn.Conv2d):
        inside = sorted(f"{name}.{child}" for child, part in module.named_modules() if isinstance(part, nn.Conv2d))
        hint = f"inside it are {', '.join(inside[:4])}" if inside else "--layer takes a convolution, such as conv1"
        raise UserError(f"{name} is a {type(module).__name__} and has no filters; {hint}")
    cut = pictures.filters(module.weight.detach().float(), path, layer=name)
    print(f"filters: {path}" + (f" (shown: {cut})" if cut else ""))


def draw_curves(names: list[str], path: Path) -> None:
    """Draw the curves of runs over each other: folders, or files in them."""
    from resnet_min import metrics, plots, run

    folders = [Path(name) if Path(name).is_dir() else Path(name).parent for name in names]
    rows = [metrics.read_rows(name) for name in names]
    plots.curves(dict(zip(run.names(folders), rows, strict=True)), path)
    print(f"curves: {path}")


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.curves:
        if args.checkpoint is not None:
            parser.error("name runs after --curves, not before it")
        return draw_curves(args.curves, Path(args.out or "curves.png"))

    from resnet_min import checkpoint

    path = checkpoint.find(args.checkpoint)
    print(f"checkpoint: {path}{' (the newest run)' if args.checkpoint is None else ''}")
    model, saved = checkpoint.load_model(path)
    if args.list_layers:
        return list_layers(model, checkpoint.config_of(saved).input_size)
    draw_filters(model, args.layer, Path(args.out) if args.out else path.parent / f"filters-{args.layer}.png")


if __name__ == "__main__":
    run_script(main)
