"""The options of classification. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...config import Figure, option, shown
from ...errors import UserError
from ...recipes import RECIPES
from ..options import TaskConfig

MOST_PIXELS = 4096  # of an image's side


@dataclass(frozen=True)
class ClassifyConfig(TaskConfig):
    """Options of a run that learns classes."""

    figure: ClassVar[Figure] = Figure("accuracy", "accuracy", "%", max, axis="accuracy (%)")
    purpose: ClassVar[str] = "classify images"
    evaluation: ClassVar[dict[str, dict[str, Any]]] = {
        "confusion": dict(action="store_true", help="draw the confusion matrix"),
        "roc": dict(action="store_true", help="draw the ROC curve of each class against the rest"),
        "reliability": dict(action="store_true", help="draw the reliability diagram (accuracy against confidence)"),
        "corrupt": dict(
            nargs="?",
            const="all",
            metavar="WHAT",
            help="also accuracy under shift: on these images with all or some "
            "of noise,blur,jpeg,brightness,contrast,pixelate at five severities, or on a folder as CIFAR-10-C is",
        ),
        "tta": dict(choices=("flip",), help="average the logits of each image and its mirror image"),
    }

    task: str = option("classify", "what to train for")
    dropout: float = option(0.0, "dropout probability before the last layer", type=float)
    image_size: int | None = option(None, "resize and centre-crop an image folder to this size (default 32)", type=int)
    padding: int = option(4, "zero-pad by this many pixels, then crop at random; 0 for no crop", type=int)
    resize: int | None = option(None, "then resize each batch to this height and width, on the device", type=int)
    grow: tuple[int, ...] = option(
        (), "train on smaller images first: on each of these heights and widths, and then on their own, for an equal "
        "part of the epochs", type=int,
    )  # fmt: skip
    rotation: float = option(0.0, "then rotate each image by a random angle of up to this many degrees", type=float)
    label_smoothing: float = option(0.0, "label smoothing, 0 to 1", type=float)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "image_size", "resize")
        self.check_at_least(0, "padding")
        self.check_at_most(MOST_PIXELS, "image_size", "resize", "padding")
        self.check_shares("dropout", "label_smoothing")
        if self.grow and not (1 <= min(self.grow) and max(self.grow) <= MOST_PIXELS):
            raise UserError(f"--grow must be from 1 to {MOST_PIXELS:,} pixels; got {shown(self.grow)}")
        if self.grow and self.cuda_graph:
            raise UserError("--cuda-graph records steps of one size of images: leave out --grow")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"--rotation must be between 0 and 180 degrees; got {self.rotation:g}")

    def make_task(self) -> Any:
        from .task import Classify

        return Classify(self)

    @property
    def input_size(self) -> tuple[int, int]:
        side = self.resize or self.image_size or 32
        return side, side

    @classmethod
    def default_settings(cls, data: str) -> dict[str, Any]:
        """digits' recipe on digits, elsewhere the NCTU settings."""
        settings = dict(RECIPES["digits" if data == "digits" else "nctu-resnet18"].settings)
        if data not in ("digits", "cifar10"):
            del settings["mean"], settings["std"]
        return {**settings, "data": data, "arch": "resnet18"}
