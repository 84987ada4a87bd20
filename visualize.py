#!/usr/bin/env python
"""Pictures of a trained network and of how it was trained.

    python visualize.py --layer conv1                           the filters of the newest run's first convolution
    python visualize.py model.pt --layer all --image cat.jpg    what its stages make of a picture, early to late
    python visualize.py --layer layer2 --what features --image 7            the maps of test image 7 (or of a file)
    python visualize.py --layer layer2 --what top --channel 5               the test images that excite channel 5 most
    python visualize.py --layer all --what reconstruct --image 7            the reverse ResNet, from every depth
    python visualize.py --layer layer3 --what gradcam --image 7 --class cat
    python visualize.py runs/resnet18-part_B_final-1 --image square.jpg     of a crowd: its density, heads and count
    python visualize.py --list-layers           the names that --layer takes, output shapes, receptive fields
    python visualize.py --curves runs/resnet18-digits-1 runs/resnet18-plain-digits-1

Filters are drawn per input channel, in colours symmetric about zero, and fused as RGB where the input is RGB. The
reverse ResNet is after Zeiler and Fergus; resnet_min/deconvnet.py says how, and what --shortcut means.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_min.errors import UserError, run_script

if TYPE_CHECKING:  # torch and matplotlib are imported where they are used, so that --help is quick
    from resnet_min.data import Split
    from resnet_min.looking import Subject, Trained
    from resnet_min.model import ResNet

# What each option goes with; one that would change nothing is an error.
GOES_WITH = {
    "image": ("features", "reconstruct", "gradcam"),
    "channel": ("features", "top", "reconstruct"),
    "class": ("gradcam",),
    "shortcut": ("reconstruct",),
    "rectify": ("reconstruct",),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", nargs="?", metavar="CKPT", help="checkpoint or run folder (default: newest run)")
    main = parser.add_mutually_exclusive_group()
    main.add_argument("--layer", metavar="NAME", help="the layer to look at; all: the stem and every stage")
    main.add_argument("--list-layers", action="store_true", help="print the layers' names and output shapes")
    main.add_argument("--curves", nargs="+", metavar="RUN", help="draw the loss and accuracy of runs over each other")
    parser.add_argument("--steps", action="store_true", help="of --curves: the training loss of every step instead")
    parser.add_argument(
        "--what", choices=("filters", "features", "top", "reconstruct", "gradcam"),
        help="filters; features: the layer's maps; top: the images that excite a channel most, each with the receptive "
        "field of its peak; reconstruct: the maps projected back to the pixels; gradcam: what speaks for a class "
        "(default: filters, of all layers features)",
    )  # fmt: skip
    parser.add_argument("--image", metavar="FILE|INDEX", help="a picture, or a test image's number (default: 0)")
    parser.add_argument(
        "--channel", type=int, metavar="K", help="this channel alone (default: those that reach highest)"
    )
    parser.add_argument("--class", metavar="NAME", help="of gradcam (default: the predicted class)")
    parser.add_argument(
        "--shortcut", choices=("add", "subtract", "main"),
        help="how reconstruct goes through shortcuts (default: add; with --layer all a row of each)",
    )  # fmt: skip
    parser.add_argument(
        "--rectify", action=argparse.BooleanOptionalAction, help="ReLUs in reconstruct, by the signal (default: on)"
    )
    parser.add_argument("--data", help="where test images are from (default: the run's own data)")
    parser.add_argument("--data-dir", help="where named data sets are (default: the run's own)")
    parser.add_argument("--cache-dir", help="where decoded images are kept (default: the run's own)")
    parser.add_argument(
        "--out", metavar="FILE", help="picture to write: .png, .pdf or .svg "
        "(default: WHAT-LAYER.png beside the checkpoint; curves.png or steps.png here)",
    )  # fmt: skip
    return parser


def list_layers(model: ResNet, size: int) -> None:
    """Print every layer that makes something, in the order of use: kind, receptive field, output for one image."""
    import torch

    from resnet_min import layers

    rows = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, _, output, name=name: rows.append((name, type(module).__name__, list(output.shape[1:])))
        )
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    rows = [row for row in rows if row[0]]
    graph = layers.graph(model)
    wide, kind = (max(len(row[column]) for row in rows) for column in (0, 1))
    print(f"{'layer':{wide}}  {'kind':{kind}}  {'sees':9}  output for one image of {size}x{size}")
    for name, type_name, shape in rows:
        maps = layers.inside(model, name)
        sees = "{0}x{0}".format(layers.field_size(graph, maps[-1])) if maps else "all"
        print(f"{name:{wide}}  {type_name:{kind}}  {sees:9}  {' x '.join(map(str, shape))}")


def test_images(trained: Trained, args: argparse.Namespace) -> tuple[str, Split]:
    from resnet_min.evaluation import load_split

    return load_split(
        trained.config, trained.classes, source=args.data, data_dir=args.data_dir, cache_dir=args.cache_dir
    )


def look_at(text: str, trained: Trained, args: argparse.Namespace) -> Subject:
    """The image that `--image` names. Raises UserError where it is neither a picture nor a test image's number."""
    import torch
    from PIL import Image

    from resnet_min import data, looking

    size = trained.config.image_size or 32
    if Path(text).is_file():
        pixels, name = torch.tensor(data.pixels(text, size)), Path(text).name
        with Image.open(text) as image:
            was, kind = f"{image.width}x{image.height} {image.mode}", image.format
        if was != f"{size}x{size} RGB":
            print(f"converted: {was} {kind} to {size}x{size} RGB (its shorter side resized, its middle kept)")
    elif text.isdecimal():
        source, split = test_images(trained, args)
        if int(text) >= len(split):
            raise UserError(f"--image {text}: {source} has the test images 0 to {len(split) - 1}")
        pixels, name = split.images[int(text)], f"test image {text} ({trained.classes[split.labels[int(text)]]})"
    else:
        raise UserError(f"--image {text}: no such file; wanted a picture, or the number of a test image")
    subject = looking.subject(trained, pixels, name)
    print(f"image: {subject.caption}")
    return subject


def draw_filters(model: ResNet, name: str, path: Path) -> None:
    """Draw the filters of the convolution called `name`."""
    from torch import nn

    from resnet_min import layers, pictures

    module = layers.find(model, name)
    if not isinstance(module, nn.Conv2d):
        inside = sorted(f"{name}.{child}" for child, part in module.named_modules() if isinstance(part, nn.Conv2d))
        hint = f"inside it are {', '.join(inside[:4])}" if inside else "conv1 is a convolution, which has"
        raise UserError(f"{name} is a {type(module).__name__} and has no filters; {hint}; or take another --what")
    cut = pictures.filters(module.weight.detach().float(), path, layer=name)
    if cut:
        print(f"shown: {cut}")


def draw_crowd(path: Path, file: str, picture: Path | None) -> None:
    """Draw what a checkpoint that counts crowds makes of a picture, by default as density-NAME.png beside it."""
    import torch

    from resnet_min import checkpoint, crowd, crowd_pictures, engine

    model, saved = checkpoint.load_model(path, "crowd")
    if not Path(file).is_file():
        raise UserError(f"--image {file}: no such file; wanted a picture of a crowd")
    image, points = crowd.read_image(file)
    split = crowd.Split([image], [torch.zeros(0, 2) if points is None else points], [Path(file).name])
    ((x, _),) = crowd.Whole(split, mean=saved["mean"], std=saved["std"]).ordered()
    with torch.inference_mode():
        density = crowd.density(model, x, engine.hardware("cpu", "off"))[0]
    title = f"{Path(file).name}: {density.sum():.1f} heads predicted"
    title += "" if points is None else f", {len(points)} marked in its annotation"
    picture = picture or path.parent / f"density-{Path(file).stem}.png"
    crowd_pictures.overlay(image, density, model.stride, points, picture, title=title)
    print(f"{title}\ndensity: {picture}")


def draw_curves(names: list[str], steps: bool, path: Path) -> None:
    """Draw the curves of runs over each other: folders, or files in them."""
    from resnet_min import metrics, plots, run

    folders = [Path(name) if Path(name).is_dir() else Path(name).parent for name in names]
    rows = [metrics.read_rows(name, "steps.jsonl" if steps else "metrics.jsonl") for name in names]
    (plots.steps if steps else plots.curves)(dict(zip(run.names(folders), rows, strict=True)), path)
    print(f"curves: {path}")


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    what = args.what or ("features" if args.layer == "all" else "filters")
    crowd = args.layer is None and not args.list_layers and not args.curves
    for option, kinds in GOES_WITH.items():
        if option == "image" and crowd:
            continue
        if getattr(args, option) is not None and (args.layer is None or what not in kinds):
            parser.error(f"--{option} goes with --layer and --what {' or '.join(kinds)}")
    if args.what and args.layer is None:
        parser.error("--what goes with --layer")
    if args.layer == "all" and (args.channel is not None or what in ("filters", "top")):
        parser.error("--layer all goes with --what features, reconstruct or gradcam, and without --channel")
    if crowd and args.image is None:
        parser.error("one of --layer, --list-layers and --curves is needed, or of a crowd --image")
    if args.curves:
        if args.checkpoint is not None:
            parser.error("name runs after --curves, not before it")
        return draw_curves(args.curves, args.steps, Path(args.out or ("steps.png" if args.steps else "curves.png")))
    if args.steps:
        parser.error("--steps goes with --curves")

    from resnet_min import checkpoint

    path = checkpoint.find(args.checkpoint)
    print(f"checkpoint: {path}{' (the newest run)' if args.checkpoint is None else ''}")
    if crowd:
        return draw_crowd(path, args.image, Path(args.out) if args.out else None)
    model, saved = checkpoint.load_model(path)
    config, classes = checkpoint.config_of(saved), saved["classes"]
    if args.list_layers:
        return list_layers(model, config.input_size)
    channel = "" if args.channel is None else f"-{args.channel}"
    picture = Path(args.out) if args.out else path.parent / f"{what}-{args.layer}{channel}.png"
    if what == "filters":
        draw_filters(model, args.layer, picture)
    else:
        from resnet_min import looking

        trained = looking.Trained(model, config, classes, saved["mean"], saved["std"])
        looking.check(trained, args.layer, args.channel)  # before any image is read
        wanted = getattr(args, "class")
        if wanted is not None and wanted not in classes:
            raise UserError(f"--class {wanted}: the classes are {', '.join(classes)}")
        if config.plain and args.shortcut is not None:
            raise UserError("--shortcut: this is a plain network, which has no shortcuts")
        if what == "top":
            looking.top(trained, test_images(trained, args)[1], args.layer, args.channel, picture)
        else:
            subject = look_at(args.image or "0", trained, args)
            if what == "features":
                looking.features(trained, subject, args.layer, args.channel, picture)
            elif what == "reconstruct":
                rectify = args.rectify is not False
                looking.reconstruct(trained, subject, args.layer, args.channel, args.shortcut, rectify, picture)
            else:
                target = subject.predicted if wanted is None else classes.index(wanted)
                looking.gradcam(trained, subject, args.layer, target, picture)
    print(f"{what}: {picture}")


if __name__ == "__main__":
    run_script(main)
