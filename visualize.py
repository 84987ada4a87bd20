#!/usr/bin/env python
"""Pictures of a trained network and of how it was trained.

    python visualize.py --layer conv1                           the filters of the newest run's first convolution
    python visualize.py model.pt --layer all --image cat.jpg    what its stages make of a picture, early to late
    python visualize.py --layer layer2 --what features --image 7            the maps of test image 7 (or of a file)
    python visualize.py --layer layer2 --what top --channel 5               the test images that excite channel 5 most
    python visualize.py --layer all --what reconstruct --image 7            the reverse ResNet, from every depth
    python visualize.py --layer layer3 --what gradcam --image 7 --class cat
    python visualize.py --image cat.jpg                         what it predicts: classes, or a crowd's density
    python visualize.py --weights cifar10 --image cat.jpg       of trained weights that come with the package, if any do
    python visualize.py --list-layers           the names that --layer takes, output shapes, receptive fields
    python visualize.py --curves runs/resnet18-digits-1 runs/resnet18-plain-digits-1

Filters are drawn per input channel, in colours symmetric about zero, and fused as RGB where the input is RGB. The
reverse ResNet is after Zeiler and Fergus; resnet_min/viz/deconvnet.py says how, and what --shortcut means.
"""

from __future__ import annotations

from resnet_min.errors import UserError, leave_on_interrupt, run_script

if __name__ == "__main__":
    leave_on_interrupt()

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from resnet_min.files import printable

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
    parser.add_argument(
        "--weights", metavar="NAME", help="trained weights that come with the package instead: cifar10, …"
    )
    main = parser.add_mutually_exclusive_group()
    main.add_argument("--layer", metavar="NAME", help="the layer to look at; all: the stem and every stage")
    main.add_argument("--list-layers", action="store_true", help="print the layers' names and output shapes")
    main.add_argument("--curves", nargs="+", metavar="RUN", help="draw the loss and accuracy of runs over each other")
    parser.add_argument("--steps", action="store_true", help="with --curves: plot the training loss of every step")
    parser.add_argument(
        "--what", choices=("filters", "features", "top", "reconstruct", "gradcam"),
        help="filters; features: the layer's maps; top: the images that excite a channel most, each with the receptive "
        "field of its peak; reconstruct: the maps projected back to the pixels; gradcam: evidence for a class "
        "(default: filters; features with --layer all)",
    )  # fmt: skip
    parser.add_argument("--image", metavar="FILE|INDEX", help="a picture, or a test image's number (default: 0)")
    parser.add_argument(
        "--channel", type=int, metavar="K", help="only this channel (default: the most strongly activated)"
    )
    parser.add_argument("--class", metavar="NAME", help="class for gradcam (default: the predicted one)")
    parser.add_argument(
        "--shortcut", choices=("add", "subtract", "main"),
        help="how reconstruct goes through shortcuts (default: add; with --layer all a row of each)",
    )  # fmt: skip
    parser.add_argument(
        "--rectify", action=argparse.BooleanOptionalAction, help="apply ReLU to the reconstructed signal (default: on)"
    )
    parser.add_argument("--data", help="where test images are from (default: the run's own data)")
    parser.add_argument("--data-dir", help="where named data sets are (default: the run's own)")
    parser.add_argument("--cache-dir", help="cache for decoded images (default: the run's own)")
    parser.add_argument(
        "--out", metavar="FILE", help="picture to write: .png, .pdf or .svg "
        "(default: WHAT-LAYER.png beside the checkpoint, of --weights here; curves.png or steps.png here)",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    what = args.what or ("features" if args.layer == "all" else "filters")
    answer = args.layer is None and not args.list_layers and not args.curves
    for option, kinds in GOES_WITH.items():
        if option == "image" and answer:
            continue
        if getattr(args, option) is not None and (args.layer is None or what not in kinds):
            parser.error(f"--{option} goes with --layer and --what {' or '.join(kinds)}")
    if args.what and args.layer is None:
        parser.error("--what goes with --layer")
    if args.layer == "all" and (args.channel is not None or what in ("filters", "top")):
        parser.error("--layer all goes with --what features, reconstruct or gradcam, and without --channel")
    if answer and args.image is None:
        parser.error("one of --layer, --list-layers, --curves and --image is needed")
    if args.curves and args.checkpoint is not None:
        parser.error("name runs after --curves, not before it")
    if args.weights is not None and (args.curves or args.checkpoint is not None):
        parser.error("--weights takes the place of CKPT, and --curves needs neither")
    if args.steps and not args.curves:
        parser.error("--steps goes with --curves")

    from resnet_min import tasks, weights
    from resnet_min.data.decode import conversion
    from resnet_min.model import backbone_of
    from resnet_min.runs import folder as run
    from resnet_min.tasks import trained
    from resnet_min.training import checkpoint
    from resnet_min.training.hardware import cpu
    from resnet_min.viz import figures, layers, looking, pictures

    if args.curves:
        picture = Path(args.out or ("steps.png" if args.steps else "curves.png"))
        folders = [Path(name) if Path(name).is_dir() else Path(name).parent for name in args.curves]
        logs = [run.read_rows(name, "steps.jsonl" if args.steps else "metrics.jsonl") for name in args.curves]
        runs = dict(zip(run.names(folders), logs, strict=True))
        if args.steps:
            figures.steps(runs, picture)
        else:
            figures.curves(runs, picture, tasks.figure_of(row for rows in logs for row in rows))
        return print(f"curves: {picture}")

    path = checkpoint.find(args.checkpoint) if args.weights is None else weights.find(args.weights)
    print(f"checkpoint: {path}{' (the newest run)' if args.weights is args.checkpoint is None else ''}")
    subject = trained.load(path)
    task, net, model = subject.task, subject.net, backbone_of(subject.net)
    if args.list_layers:
        return print(*layers.table(model, task.config.input_size), sep="\n")
    channel = "" if args.channel is None else f"-{args.channel}"
    stem = f"prediction-{Path(args.image).stem}" if answer else f"{what}-{args.layer}{channel}"
    beside = Path() if path.parent == weights.FOLDER else path.parent
    picture = Path(args.out) if args.out else beside / f"{stem}.png"
    if args.layer and what == "filters":
        cut = pictures.filters(layers.convolution(model, args.layer).weight.detach().float(), picture, layer=args.layer)
        return print(*[f"shown: {cut}"] * bool(cut), f"filters: {picture}", sep="\n")

    view = looking.View(model, subject.classes, task.config.mean, task.config.std)
    if args.layer:
        looking.check(view, args.layer, args.channel, task.config.input_size)  # before any image is read
    wanted = getattr(args, "class")
    if what == "gradcam" and not subject.classes:
        raise UserError(f"--what gradcam needs a classifier; {path} is not one")
    if wanted is not None and wanted not in subject.classes:
        raise UserError(f"--class {wanted}: the classes are {', '.join(subject.classes)}")
    if layers.is_plain(model) and args.shortcut is not None:
        raise UserError("--shortcut: this is a plain network, which has no shortcuts")

    places = {"data": args.data, "data_dir": args.data_dir, "cache_dir": args.cache_dir}
    if args.layer and what == "top":
        split = trained.load_data(subject, **places).splits["test"]

        def batches_of(numbers: Sequence[int]) -> Iterator:
            some = split if len(numbers) == len(split) else split.subset(numbers)
            return task.batches(some, cpu(), batch_size=256).ordered()

        looking.top(view, batches_of, len(split), args.layer, args.channel, picture)
        return print(f"top: {picture}")

    text = args.image or "0"
    if Path(text).is_file():
        image, name = task.read(text), Path(text).name
        if was := conversion(text, tuple(image.images[0].shape[:2])):
            print(f"converted: {was}")
    elif text.isdecimal():
        dataset = trained.load_data(subject, **places)
        test = dataset.splits["test"]
        if int(text) >= len(test):
            raise UserError(f"--image {text}: {dataset.source} has the test images 0 to {len(test) - 1}")
        image, name = test.subset([int(text)]), f"test image {text}"
    else:
        raise UserError(f"--image {text}: no such file; wanted a picture, or the number of a test image")
    (said,) = task.answer(net, [(name, image)], subject.classes, cpu(), picture=picture if answer else None)
    print(printable(said.caption))
    if answer:
        return print(f"prediction: {picture}")
    ((x, _),) = task.batches(image, cpu(), batch_size=1).ordered()
    seen = looking.Subject(x, view.picture(x[0]), said.caption)
    if what == "features":
        looking.features(view, seen, args.layer, args.channel, picture)
    elif what == "reconstruct":
        looking.reconstruct(view, seen, args.layer, args.channel, args.shortcut, args.rectify is not False, picture)
    else:
        target = model(x).argmax().item() if wanted is None else subject.classes.index(wanted)
        looking.gradcam(view, seen, args.layer, target, picture)
    print(f"{what}: {picture}")


if __name__ == "__main__":
    run_script(main)
