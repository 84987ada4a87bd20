"""Images to logits."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from resnet_min import fuse
from resnet_min.errors import UserError
from resnet_min.model import resnet
from resnet_min.tasks import trained
from resnet_min.training import hardware

from .timing import Call, Case, Row, check_close, dtypes, name_of


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """`fuse(model)` against the model itself, in each memory format and compiled with its weights frozen.

    With `--run`, a trained network and its test images, in float32 on a CPU, and how exact each form is.
    """
    if args.run is not None:
        yield from cases_of_run(args)
        return
    torch.manual_seed(0)
    batches = args.batch or ([256] if args.device.type == "cpu" else [128, 512, 1024])
    images = torch.randn(max(batches), 3, 32, 32, device=args.device)
    net = settled(resnet(args.arch).to(args.device), images[:64])
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(images[:16].double())
    for batch in batches:
        for dtype in dtypes(args.device):
            about = {"arch": args.arch, "batch": batch, "dtype": name_of(dtype)}
            contenders = contenders_of(net, images[:batch].to(dtype))
            yield Case(about, batch, contenders, partial(check, exact=exact))


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """`net` in eval mode with these images' statistics: with a new net's there is nothing to fold, and maps explode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    channels_last = torch.channels_last  # as the kernels want it
    with torch.no_grad():
        net.to(memory_format=channels_last).train()(images.contiguous(memory_format=channels_last))
    return net.eval()


def contenders_of(net: nn.Module, images: Tensor) -> dict[str, Callable[[], Call]]:
    """Each returns the images' logits."""
    moved = images.contiguous(memory_format=torch.channels_last)

    def plain(inputs: Tensor, memory_format: torch.memory_format, **options: object) -> Call:
        module = copy.deepcopy(net).to(images.dtype).to(memory_format=memory_format)
        if options:
            module.compile(options=options)
        return partial(torch.no_grad()(module), inputs)

    # Freezing takes the weights for constants: it folds batch norm and lays them out ahead, as `fuse` does.
    options = {"freezing": True} | ({"max_autotune": True} if images.is_cuda else {})
    named = {}
    if not images.is_cuda and images.dtype == torch.float32:  # where there is a choice
        named["ours, F(4×4, 3×3)"] = lambda: partial(torch.no_grad()(fuse(net, winograd="4x4")), moved)
    return {
        "ours": lambda: partial(torch.no_grad()(fuse(net, images.dtype)), moved),
        **named,
        "eager, NCHW": partial(plain, images, torch.contiguous_format),
        "eager, channels_last": partial(plain, moved, torch.channels_last),
        "compile, freezing": partial(plain, moved, torch.channels_last, **options),
    }


def cases_of_run(args: argparse.Namespace) -> Iterator[Case]:
    """`fuse(model)` with either of Winograd's forms and the model itself, on batches of the first test images."""
    subject = trained.load(args.run)
    if not subject.classes:
        raise UserError(f"--run {args.run} has no classes: the table compares predictions")
    images = trained.load_data(subject, data=args.data).splits["test"]
    batches = subject.task.batches(images, hardware.cpu(), batch_size=250)
    images = torch.cat([inputs for inputs, _ in batches.ordered()])
    net = subject.net.to(memory_format=torch.channels_last)
    forms = {"ours": fuse(net), "ours, F(4×4, 3×3)": fuse(net, winograd="4x4"), "eager, channels_last": net}
    exact = logits(net, images)
    exactness = {name: compared(logits(form, images), exact) for name, form in forms.items()}
    for batch in args.batch or (256,):
        about = {"arch": subject.task.config.arch, "batch": batch}
        contenders = {
            name: partial(partial, torch.inference_mode()(form), images[:batch]) for name, form in forms.items()
        }
        yield Case(about, min(batch, len(images)), contenders, partial(check, exact=exact), further=exactness)


def logits(form: nn.Module, images: Tensor) -> Tensor:
    """Those of all images, in batches."""
    with torch.inference_mode():
        return torch.cat([form(part) for part in images.split(250)])


def compared(got: Tensor, wanted: Tensor) -> Row:
    """How far all images' logits are from the model's.

    logits_off   the largest difference; `largest_logit` is the largest of the model's
    changed      how many predictions differ from the model's, of `predictions`
    """
    return {
        "logits_off": (got - wanted).abs().max().item(),
        "largest_logit": wanted.abs().max().item(),
        "changed": (got.argmax(1) != wanted.argmax(1)).sum().item(),
        "predictions": len(got),
    }


def check(results: dict[str, Tensor], exact: Tensor) -> None:
    """All must give the logits that the net gives by itself, in float64 where it was drawn, as well as dtypes let."""
    for name, logits in results.items():
        count = min(len(logits), len(exact))
        check_close(name, logits[:count], exact[:count])
