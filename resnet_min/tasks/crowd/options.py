"""The options of crowd counting. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...config import Figure, option
from ...errors import UserError
from ...recipes import RECIPES
from ..options import TaskConfig


@dataclass(frozen=True)
class CrowdConfig(TaskConfig):
    """Options of a run that counts heads."""

    figure: ClassVar[Figure] = Figure(
        "mae", "MAE", "", min, axis="MAE of counts (training: of crops)", log=True, beside=("mse", "MSE")
    )
    purpose: ClassVar[str] = "count people with a density map"
    reported: ClassVar[int] = 4

    task: str = option("crowd", "what to train for")
    data: str = option("data/part_B_final", "a part of ShanghaiTech")
    head: str = option(
        "dilated", "dilated: 3x3 convolutions, maps at the encoder's stride; linear: a 1x1 convolution, maps "
        "upsampled to the image's size", choices=("dilated", "linear"),
    )  # fmt: skip
    crop: int | None = option(None, "side of random square crops, in pixels (default: whole images)", type=int)
    zoom: float = option(1.0, "random crops are of CROP / ZOOM to CROP x ZOOM pixels, resized to CROP", type=float)
    sigma: float | None = option(
        None, "width of a head's Gaussian, in pixels (default: by the distance to its nearest heads)", type=float
    )
    loss: str = option(
        "mse", "of the density maps: mse, the mean squared error of maps times 100; zhang, half their squared "
        "distance, summed over the pixels (Zhang et al., 2016)", choices=("mse", "zhang"),
    )  # fmt: skip
    count_weight: float = option(0.0, "weight of the absolute count error in the loss", type=float)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "crop")
        self.check_at_least(0, "count_weight")
        if not 1 <= self.zoom <= 4:
            raise UserError(f"--zoom is from 1, none, to 4; got {self.zoom}")
        if self.zoom > 1 and self.crop is None:
            raise UserError(f"--zoom {self.zoom} is of random crops: give --crop too")
        if self.sigma is not None and not 1 <= self.sigma < math.inf:
            raise UserError(f"--sigma must be at least 1 pixel; got {self.sigma}")

    def make_task(self) -> Any:
        from .task import Crowds

        return Crowds(self)

    @property
    def input_size(self) -> tuple[int, int]:
        return self.crop or 256, self.crop or 256

    @classmethod
    def recognises(cls, data: str) -> bool:
        """Whether `data` is a folder laid out as a part of ShanghaiTech."""
        return any(Path(data).expanduser().joinpath(f"{split}_data").is_dir() for split in ("train", "test"))

    @classmethod
    def default_settings(cls, data: str) -> dict[str, Any]:
        """crowd-best's settings."""
        return {**RECIPES["crowd-best"].settings, "data": data}
