#!/usr/bin/env python
"""Pictures of a trained network and of how it was trained.

    python visualize.py --layer conv1                           the filters of the newest run's first convolution
    python visualize.py model.pt --layer all --image cat.jpg    what its stages make of a picture, early to late
    python visualize.py --layer layer2 --what features --image 7            the maps of test image 7 (or of a file)
    python visualize.py --layer layer2 --what top --channel 5               the test images that excite channel 5 most
    python visualize.py --layer all --what reconstruct --image 7            the reverse ResNet, from every depth
    python visualize.py --layer conv1 --what reconstruct --channel all      every channel alone, the strongest circled
    python visualize.py --layer layer3 --what gradcam --image 7 --class cat
    python visualize.py --augment --image 7                     an image as training draws it
    python visualize.py --image cat.jpg                         what it predicts: classes, or a crowd's density
    python visualize.py --weights cifar10 --image cat.jpg       of trained weights that come with the package
    python visualize.py --list-layers           the names that --layer takes, output shapes, receptive fields
    python visualize.py --curves runs/resnet18-digits-1 runs/resnet18-plain-digits-1
    python visualize.py --curves runs/tiny-* --over dropout     the last figures over an option of the runs

Filters are drawn per input channel, in colours symmetric about zero, and fused as RGB where the input is RGB. The
reverse ResNet is after Zeiler and Fergus; resnet_min/viz/deconvnet.py says how, and what --shortcut means.
"""

from __future__ import annotations

from resnet_min.errors import UserError, leave_on_interrupt, run_script

if __name__ == "__main__":
    leave_on_interrupt()

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_min.commands import Parser, ending_in
from resnet_min.config import flag
from resnet_min.files import printable

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_min.tasks.task import Split, Task

AUGMENTED = range(2, 7)  # epochs whose draws --augment shows, beside the first's

OF_IMAGES = ("image", "data", "data_dir", "cache_dir")  # which --augment and a prediction take, too
# What each option goes with; one that would change nothing is an error.
GOES_WITH = {
    **dict.fromkeys(OF_IMAGES[1:], ("features", "top", "reconstruct", "gradcam")),
    "image": ("features", "reconstruct", "gradcam"),
    "channel": ("features", "top", "reconstruct"),
    "class": ("gradcam",),
    "shortcut": ("reconstruct",),
    "rectify": ("reconstruct",),
    "scale": ("features",),
    "grey": ("features",),
}


def channel(text: str) -> int | str:
    return text if text == "all" else int(text)


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", metavar="CKPT", help="checkpoint or run folder (default: newest run)")
    parser.add_argument(
        "--weights", metavar="NAME", help="trained weights that come with the package instead: cifar10, …"
    )
    main = parser.add_mutually_exclusive_group()
    main.add_argument(
        "--layer", nargs="+", metavar="NAME",
        help="the layer to look at, or several; stem: what the first stage takes; all: the stem and every stage",
    )  # fmt: skip
    main.add_argument("--list-layers", action="store_true", help="print the layers' names and output shapes")
    main.add_argument("--curves", nargs="+", metavar="RUN", help="draw the loss and accuracy of runs over each other")
    main.add_argument("--augment", action="store_true", help="draw --image as training does: translated, flipped, …")
    parser.add_argument("--over", metavar="OPTION", help="with --curves: the last figures of the runs over this option")
    parser.add_argument(
        "--label", nargs="+", metavar="NAME", help="with --curves: what to call the runs, in their order"
    )
    parser.add_argument("--steps", action="store_true", help="with --curves: plot the training loss of every step")
    parser.add_argument(
        "--what", choices=("filters", "features", "top", "reconstruct", "gradcam"),
        help="filters; features: the layer's maps; top: the images that excite a channel most, each with the receptive "
        "field of its peak; reconstruct: the maps projected back to the pixels; gradcam: evidence for a class "
        "(default: filters; features with --layer all)",
    )  # fmt: skip
    parser.add_argument("--image", metavar="FILE|INDEX", help="a picture, or a test image's number (default: 0)")
    parser.add_argument(
        "--channel", type=channel, nargs="+", metavar="K",
        help="only these channels, such as the same for two networks; all: every one (default: the most strongly "
        "activated)",
    )  # fmt: skip
    parser.add_argument(
        "--scale",
        choices=("layer", "map"),
        help="features in one scale a layer, or each map in its own (default: layer)",
    )
    parser.add_argument("--grey", action="store_true", default=None, help="features in grey")
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
    parser.add_argument("--title", default="", help="the picture's title (default: what is drawn)")
    parser.add_argument("--format", choices=("png", "svg", "pdf"), help="kind of picture without --out (default: png)")
    parser.add_argument(
        "--out", type=ending_in(".png", ".pdf", ".svg"), metavar="FILE", help="picture to write: .png, .pdf or .svg "
        "(default: WHAT-LAYER beside the checkpoint, of --weights here; curves or steps here)",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    several = args.layer is not None and (len(args.layer) > 1 or args.layer == ["all"])
    what = args.what or ("features" if several else "filters")
    answer = not (args.layer or args.list_layers or args.curves or args.augment)
    for option, kinds in GOES_WITH.items():
        if option in OF_IMAGES and (answer or args.augment):
            continue
        if getattr(args, option) is not None and (args.layer is None or what not in kinds):
            parser.error(f"{flag(option)} goes with --layer and --what {' or '.join(kinds)}")
    if args.list_layers and (args.title or args.out or args.format):
        parser.error("--title, --out and --format are for pictures; --list-layers draws none")
    if args.what and args.layer is None:
        parser.error("--what goes with --layer")
    if several and (what in ("filters", "top") or (args.channel and (what != "features" or "all" in args.channel))):
        parser.error("several layers go with --what features, reconstruct or gradcam; with --channel K only features")
    if args.layer and "all" in args.layer[1:] + args.layer[:-1]:
        parser.error("--layer all is all of them: name no other")
    if args.channel and "all" in args.channel and (len(args.channel) > 1 or what == "top"):
        parser.error("--channel all is every one, for --what features and reconstruct: name no other")
    if answer and args.image is None:
        parser.error("one of --layer, --list-layers, --curves, --augment and --image is needed")
    if args.curves and args.checkpoint is not None:
        parser.error("name runs after --curves, not before it")
    if args.weights is not None and (args.curves or args.checkpoint is not None):
        parser.error("--weights takes the place of CKPT, and --curves needs neither")
    if (args.steps or args.over or args.label) and not args.curves:
        parser.error("--steps, --over and --label go with --curves")
    if args.steps and args.over:
        parser.error("--steps and --over are two pictures: draw one of them")
    if args.out and args.format:
        parser.error("--out says the format by its ending: leave --format out")
    kind = args.format or "png"

    from resnet_min import tasks, weights
    from resnet_min.data.decode import conversion
    from resnet_min.model import backbone_of
    from resnet_min.runs import folder as run
    from resnet_min.tasks import trained
    from resnet_min.training import checkpoint
    from resnet_min.training.hardware import cpu
    from resnet_min.viz import figures, layers, looking, pictures

    if args.curves:
        which = "over" if args.over else "steps" if args.steps else "curves"
        picture = Path(args.out or f"{args.over if args.over else which}.{kind}")
        log = "steps.jsonl" if args.steps else "metrics.jsonl"
        named = [(Path(name) if Path(name).is_dir() else Path(name).parent, name) for name in args.curves]
        logs = {folder: run.read_rows(name, log) for folder, name in named}  # a run that is named twice is drawn once
        runs = dict(zip(run.named_by(args.label, run.names(list(logs))), logs.values(), strict=True))
        if args.steps:
            figures.steps(runs, picture, title=args.title)
        elif args.over:
            points = [(run.option_of(folder, args.over), rows[-1]) for folder, rows in logs.items()]
            judged_by = tasks.figure_of(row for rows in logs.values() for row in rows)
            figures.sweep(points, picture, judged_by, args.over, args.title)
        else:
            judged_by = tasks.figure_of(row for rows in logs.values() for row in rows)
            whole = zip(runs.items(), logs, strict=True)
            runs = {label: run.from_start(folder, rows) for (label, rows), folder in whole}
            figures.curves(runs, picture, judged_by, title=args.title)
        return print(f"curves: {picture}")

    path = checkpoint.find(args.checkpoint) if args.weights is None else weights.find(args.weights)
    print(f"checkpoint: {path}{' (the newest run)' if args.weights is args.checkpoint is None else ''}")
    subject = trained.load(path)
    task, net, model = subject.task, subject.net, backbone_of(subject.net)
    if args.list_layers:
        return print(*layers.table(model, task.config.input_size), sep="\n")
    named = "-".join([*(args.layer or ()), *map(str, args.channel or ())])
    stem = f"prediction-{Path(args.image).stem}" if answer else f"{what}-{named}"
    if args.augment:
        stem = f"augment-{Path(args.image or '0').stem}"
    beside = Path() if path.parent == weights.FOLDER else path.parent
    picture = Path(args.out) if args.out else beside / f"{stem}.{kind}"
    channels = "all" if args.channel == ["all"] else args.channel
    name = f"{task.config.network} ({path.stem if path.parent == weights.FOLDER else run.names([path.parent])[0]})"
    if args.layer and what == "filters":
        (layer,) = args.layer
        weight = layers.convolution(model, layer).weight.detach().float()
        cut = pictures.filters(weight, picture, layer=f"{name}: {layer}", title=args.title)
        return print(*[f"shown: {cut}"] * bool(cut), f"filters: {picture}", sep="\n")

    config = task.config
    view = looking.View(net, model, name, subject.classes, config.mean, config.std, args.title)
    if args.layer:
        looking.check(view, args.layer, channels, config.input_size)  # before any image is read
    wanted = getattr(args, "class")
    if wanted is not None and wanted not in subject.classes:
        known = f"the classes are {', '.join(subject.classes)}" if subject.classes else "this network tells no classes"
        raise UserError(f"--class {wanted}: {known}")
    if layers.is_plain(model) and args.shortcut is not None:
        raise UserError("--shortcut: this is a plain network, which has no shortcuts")

    places = {"data": args.data, "data_dir": args.data_dir, "cache_dir": args.cache_dir}
    if args.layer and what == "top":
        split = trained.load_data(subject, **places).splits["test"]

        def batches_of(numbers: Sequence[int]) -> Iterator:
            some = split if len(numbers) == len(split) else split.subset(numbers)
            return task.batches(some, cpu(), batch_size=256).ordered()

        looking.top(view, batches_of, len(split), *args.layer, channels, picture)
        return print(f"top: {picture}")

    text = args.image or "0"
    if Path(text).is_file():
        if unread := [name for name, place in places.items() if place is not None]:
            raise UserError(f"{flag(unread[0])} says where a test image is from; --image {text} is a file")
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
    if args.augment:
        looking.augmented(view, draws_of(task, image), name, picture)
        return print(f"augmented: {picture}")
    (said,) = task.answer(net, [(name, image)], subject.classes, cpu(), picture=picture if answer else None)
    print(printable(said.caption))
    if answer:
        return print(f"prediction: {picture}")
    ((x, _),) = task.batches(image, cpu(), batch_size=1).ordered()
    seen = looking.Subject(x, view.picture(x[0]), said.caption)
    if what == "features":
        each = args.scale == "map"
        looking.features(view, seen, args.layer, channels, picture, each=each, grey=bool(args.grey))
    elif what == "reconstruct":
        looking.reconstruct(view, seen, args.layer, channels, args.shortcut, args.rectify is not False, picture)
    else:
        target = subject.classes.index(wanted) if wanted else model(x).argmax().item() if subject.classes else None
        looking.gradcam(view, seen, args.layer, target, picture)
    print(f"{what}: {picture}")


def draws_of(task: Task, image: Split) -> Iterator[tuple[Tensor, str]]:
    """An image alone as the network takes it, translated, the same flipped, and as the first epochs draw it."""
    from resnet_min.training.hardware import cpu

    config = dataclasses.replace(task.config, batch_size=1)

    def drawn(flip: float, epoch: int) -> Tensor:
        ((x, _),) = type(task)(dataclasses.replace(config, flip=flip)).batches(image, cpu()).epoch(epoch)
        return x[0]

    ((x, _),) = task.batches(image, cpu(), batch_size=1).ordered()
    yield x[0], "original"
    yield drawn(0.0, 1), "translated"
    yield drawn(1.0, 1), "and flipped"
    for epoch in AUGMENTED:
        yield drawn(config.flip, epoch), f"epoch {epoch}"


if __name__ == "__main__":
    run_script(main)
