"""The images that a checkpoint is evaluated on, and what its network makes of them."""

from __future__ import annotations

from itertools import islice
from time import perf_counter

from torch import Tensor, nn

from . import data, engine
from .augment import Batches
from .config import Config
from .data import Split
from .errors import UserError


def load_split(
    config: Config,
    classes: list[str],
    *,
    source: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    split: str = "test",
) -> tuple[str, Split]:
    """(source, images and labels) of a data set's test or val split; what is None is as in training.

    Raises UserError where the classes are not those trained on, or there are no validation images.
    """
    dataset = data.load(
        source or config.data,
        data_dir=data_dir or config.data_dir,
        cache_dir=cache_dir or config.cache_dir,
        image_size=config.image_size,
        val_size=config.val_size if split == "val" else 0,  # the test images are the same either way
        seed=config.split_seed,
    )
    if list(dataset.classes) != list(classes):
        raise UserError(
            f"the classes of {dataset.source} are not those trained on: it has {_some(dataset.classes)}; "
            f"the checkpoint has {_some(classes)}"
        )
    images = getattr(dataset, split)
    if images is None:
        raise UserError(f"{dataset.source} has no validation images: the run held none out, and there is no val/")
    return dataset.source, images


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:12])}{', …' if len(names) > 12 else ''})"


class FlipAverage(nn.Module):
    """A network whose logits are the mean of those for each image and for its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return (self.model(x) + self.model(x.flip(3))) / 2


def predict(model: nn.Module, batches: Batches, where: engine.Hardware) -> tuple[float, Tensor, float]:
    """(mean cross-entropy, logits [N, classes] float32 on the CPU, images/s) of one pass over all images.

    The first batch is seen once before, so that what a library sets up for it is not in the images/s.
    """
    engine.evaluate(model, islice(batches.ordered(), 1), where)
    began = perf_counter()
    loss, _, logits = engine.evaluate(model, batches.ordered(), where)
    return loss, logits, len(logits) / (perf_counter() - began)
