"""All that a run trains with: data, network, batches and task, made of its options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from . import crowd, data, engine, model, ops, transfer
from .augment import Batches
from .config import Config
from .data import Split
from .engine import Hardware, Task
from .errors import UserError
from .model import CrowdNet, ResNet


@dataclass
class Job:
    """All that a run trains with: what `prepare` makes of the options."""

    config: Config  # with the data's place, mean and std filled in
    name: str  # of the data
    classes: tuple[str, ...]
    splits: dict[str, Split | crowd.Split]  # train, test, and val where there is one
    where: Hardware
    net: ResNet | CrowdNet  # on its device
    batches: Batches | crowd.Batches  # to train on
    held_out: dict[str, Batches | crowd.Whole]  # val and test
    task: Task

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.batches)


def prepare(config: Config) -> Job:
    """Load the data, draw the model, and say what is about to be trained, on what, with what."""
    ops.set_backend(config.kernels)
    where = engine.hardware(config.device, config.amp)
    engine.choose_algorithms(config.deterministic)
    if where.device.type == "cpu":
        engine.keep_freed_memory()
    counts = config.task == "crowd"
    subset = dict(
        cache_dir=config.cache_dir, val_size=config.val_size, seed=config.split_seed, limit=config.limit
    )  # fmt: skip
    if counts:
        dataset = crowd.load(config.data, **subset)
    else:
        dataset = data.load(config.data, data_dir=config.data_dir, image_size=config.image_size, **subset)
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    splits = {name: split for name, split in splits.items() if split is not None}
    images = len(splits["train"])
    if config.batch_size > images:
        raise UserError(f"--batch-size {config.batch_size} is larger than the data, {images} images")
    config = dataclasses.replace(
        config,
        data=dataset.source,
        data_dir=str(Path(config.data_dir).resolve()),  # so that --resume works from any folder
        cache_dir=config.cache_dir and str(Path(config.cache_dir).resolve()),
        mean=config.mean or dataset.mean,
        std=config.std or dataset.std,
    )
    torch.manual_seed(config.seed)
    net = model.from_config(config, len(dataset.classes))
    transfer.freeze(net, config, epoch=1)
    side = config.crop if counts else config.input_size
    size = (side, side) if side else tuple(dataset.train.images[0].shape[:2])
    maps = net.eval().features(torch.zeros(1, 3, *size))
    if images % config.batch_size == 1 and maps[0, 0].numel() == 1:
        raise UserError(
            f"--batch-size {config.batch_size} leaves a last batch of one image, and its 1x1 maps no batch statistics; "
            "choose another size"
        )

    total, trained = model.count_parameters(net), model.count_parameters(net, trained_only=True)
    kind = f"{config.arch}{', plain' if config.plain else ''}, {config.stem} stem"
    macs = model.count_macs(net, size) / 1e6
    print(f"model: {kind}: {total:,} parameters ({total - trained:,} frozen), {macs:,.1f}M MACs an image")
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (config.mean, config.std))
    shape = "x".join(map(str, dataset.train.images[0].shape[:2]))
    resized = f", resized to {config.resize}x{config.resize}" if config.resize else ""
    if counts:
        resized = f", crops of {side}x{side}" if side else ""
    what = f"{int(dataset.train.counts.sum()):,} heads to learn from" if counts else f"{len(dataset.classes)} classes"
    print(f"data: {config.data}: {sizes}; {shape}{resized}; {what}")
    print(f"normalised by: mean {mean}, std {std}")
    print(f"device: {where}{', channels_last' if config.channels_last else ''}")
    print(ops.backend_line(where.device))

    net.to(where.device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    common = dict(mean=config.mean, std=config.std, device=where.device, dtype=where.dtype)
    drawn = dict(batch_size=config.batch_size, flip=config.flip, seed=config.seed, **common)
    rest = {name: split for name, split in splits.items() if name != "train"}
    if counts:
        print(f"to beat on the test images:\n{crowd.say_constants(dataset, dataset.test)}")
        batches = crowd.Batches(dataset.train, crop=config.crop, sigma=config.sigma, stride=net.stride, **drawn)
        held_out = {name: crowd.Whole(split, **common) for name, split in rest.items()}
        task = crowd.counting(config.count_weight)
    else:
        batches = Batches(
            dataset.train, padding=config.padding, rotation=config.rotation, resize=config.resize, **drawn
        )  # fmt: skip
        held_out = {
            name: Batches(split, batch_size=min(256, len(split)), resize=config.resize, **common)
            for name, split in rest.items()
        }
        task = engine.classification(config.label_smoothing)
    return Job(config, dataset.name, dataset.classes, splits, where, net, batches, held_out, task)
