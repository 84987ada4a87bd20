"""Crowd counting on ShanghaiTech: its readers, batches of crops with their density maps, and how counts are judged.

A part is a folder with `train_data` and `test_data`, each with `images/NAME.jpg` and `ground-truth/GT_NAME.mat` (or
`ground_truth`), as published with Zhang et al., CVPR 2016. Its training labels are used as they are: in Part B, images
108, 202, 217, 296 and 396 are known to have heads missing or marked in the wrong place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import generator
from .data import IMAGE_FILES, cached, list_files, mean_std, pixels, stamp_of, stratified
from .density import draw, head_widths
from .engine import Hardware, Task
from .errors import UserError
from .model import MAP_SCALE
from .ops import crop_flip, make_table

TRUTH = ("ground-truth", "ground_truth")  # what copies call the folder of annotations
SLACK = 1.0  # pixels: MATLAB counts them from 1 at their centres, so a point on the border may lie half of one outside


@dataclass(frozen=True)
class Split:
    """Images of any size with the heads in each, on the CPU; images may be mapped from the cache."""

    images: list[Tensor]  # uint8 [H, W, 3]
    points: list[Tensor]  # float32 [heads, 2]: (x, y) in pixels from the top left corner
    names: list[str]  # file names

    def __len__(self) -> int:
        return len(self.images)

    @property
    def counts(self) -> Tensor:
        """Heads in each image, float64 [N]."""
        return torch.tensor([len(points) for points in self.points], dtype=torch.float64)

    def subset(self, index: Iterable[int]) -> Split:
        """These images alone."""
        index = list(index)
        return Split(*([part[i] for i in index] for part in (self.images, self.points, self.names)))


@dataclass(frozen=True)
class Crowd:
    """What `load` returns: `data.Dataset` for a crowd, which has no classes."""

    name: str  # the folder's own name
    source: str  # its absolute path
    train: Split
    val: Split | None
    test: Split
    mean: tuple[float, float, float]  # of each channel over all pixels of `train`, where white is 1
    std: tuple[float, float, float]
    classes: tuple[str, ...] = ()


def load(
    data: str | os.PathLike,
    *,
    cache_dir: str | os.PathLike | None = None,
    val_size: int = 0,
    seed: int = 0,
    limit: int | None = None,
) -> Crowd:
    """Load the ShanghaiTech part in the folder `data`.

    val_size: training images held out, drawn from `seed`. cache_dir, limit: as for `data.load`.

    Raises UserError for a folder that is no such part, for an image without its annotation and the reverse, for what
    cannot be read, and for points that are not numbers or lie outside their image.
    """
    root = Path(os.path.abspath(os.path.expanduser(data)))
    found = {name: _pairs(root, name) for name in ("train", "test")}
    entries = ((f"{name}/", entry) for name, pairs in found.items() for pair in pairs for entry in pair)
    content = cached(f"{root.name}-native", root, stamp_of(entries), lambda: _decode(root.name, found), cache_dir)

    splits = {name: Split(part["images"], part["labels"], part["names"]) for name, part in content["splits"].items()}
    train, val, sums = splits["train"], None, content["splits"]["train"]["sums"]
    if val_size:
        if not 0 < val_size < len(train):
            raise UserError(f"--val-size must leave some of the {len(train)} training images; got {val_size}")
        kept, held = stratified(np.zeros(len(train), dtype=np.int64), val_size, seed)
        train, val, sums = train.subset(kept), train.subset(held), sums[kept]
    mean, std = mean_std(sums, sum(image.shape[0] * image.shape[1] for image in train.images))
    parts = [train, val, splits["test"]]
    if limit is not None:
        parts = [part and part.subset(np.arange(n := min(limit, len(part))) * len(part) // n) for part in parts]
    return Crowd(root.name, str(root), *parts, mean, std)


def _pairs(root: Path, name: str) -> list[tuple[os.DirEntry, os.DirEntry]]:
    """(image, annotation) of every image of a split, by name."""
    folder = root / f"{name}_data"
    if not folder.is_dir():
        parts = [path.parent.name for path in sorted(root.glob(f"*/{name}_data"))]
        hint = f"; name one part, {' or '.join(parts)}" if parts else "; wanted a ShanghaiTech part"
        raise UserError(f"{root} has no {name}_data/ folder{hint}")
    truth = next((folder / n for n in TRUTH if (folder / n).is_dir()), None)
    if truth is None or not (folder / "images").is_dir():
        raise UserError(f"{folder} needs the folders images/ and ground-truth/ (or ground_truth/)")
    images = {Path(e.name).stem: e for e in list_files(folder / "images") if e.name.lower().endswith(IMAGE_FILES)}
    marks = {Path(e.name).stem.removeprefix("GT_"): e for e in list_files(truth) if e.name.lower().endswith(".mat")}
    if not images:
        raise UserError(f"no images in {folder / 'images'} (looked for {' '.join(IMAGE_FILES)})")
    if bare := [images[stem].name for stem in images if stem not in marks]:
        raise UserError(f"{_some(bare)} in {folder / 'images'} without annotation: wanted GT_NAME.mat in {truth}")
    if stray := [marks[stem].name for stem in marks if stem not in images]:
        raise UserError(f"{_some(stray)} in {truth} without image: wanted it in {folder / 'images'}")
    return [(images[stem], marks[stem]) for stem in images]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _decode(name: str, found: dict[str, list[tuple[os.DirEntry, os.DirEntry]]]) -> dict[str, Any]:
    """All images and points: what the cache holds."""
    from tqdm import tqdm

    def one(pair: tuple[os.DirEntry, os.DirEntry]) -> tuple[Tensor, Tensor, Tensor]:
        image = pixels(pair[0].path, None).copy()
        points = read_points(pair[1].path, image.shape[:2])
        squares = np.einsum("hwc,hwc->c", image, image, dtype=np.int64)  # converts in small pieces
        sums = np.stack([image.sum((0, 1), dtype=np.int64), squares])
        return tuple(map(torch.from_numpy, (image, points, sums)))

    content = {"splits": {}}
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with tqdm(total=sum(map(len, found.values())), desc=f"decoding {name}", disable=None) as bar:
            for split, pairs in found.items():
                parts = []
                for part in pool.map(one, pairs):
                    parts.append(part)
                    bar.update()
                images, points, sums = map(list, zip(*parts, strict=True))
                names = [image.name for image, _ in pairs]
                content["splits"][split] = {
                    "images": images, "labels": points, "sums": torch.stack(sums), "names": names,
                }  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)
    return content


def read_points(file: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """The heads in a ShanghaiTech annotation, float32 [n, 2] as (x, y), of an image of `size` = (height, width).

    Points up to one pixel outside are moved onto the border. Raises UserError, naming the file and the point, for one
    further out or not a number, and for a file that is not such an annotation.
    """
    from scipy.io import loadmat

    try:
        points = loadmat(file)["image_info"][0, 0][0, 0][0]
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)  # MATLAB writes no heads as 0×0
    except Exception as error:  # scipy's reader raises many kinds, and other files have other contents
        raise UserError(f"cannot read the annotation {file}: {type(error).__name__}: {error}") from error
    limits = np.array(size[::-1], dtype=np.float64)
    inside = ((points >= -SLACK) & (points <= limits + SLACK)).all(1)  # NaN is not
    if not inside.all():
        number = int(np.flatnonzero(~inside)[0])
        x, y = points[number]
        raise UserError(
            f"{file}: head {number + 1} of {len(points)} at ({x:g}, {y:g}) is not in the image, "
            f"{size[1]}x{size[0]}: correct or remove it"
        )
    return points.clip(0, limits).astype(np.float32)


def read_image(file: str | os.PathLike) -> tuple[Tensor, Tensor | None]:
    """A picture, uint8 [H, W, 3], and its heads, float32 [n, 2], where it lies in a ShanghaiTech part; else None."""
    file = Path(file)
    image = torch.from_numpy(pixels(str(file), None).copy())
    for folder in TRUTH:
        truth = file.absolute().parent.parent / folder / f"GT_{file.stem}.mat"
        if truth.is_file():
            return image, torch.from_numpy(read_points(truth, tuple(image.shape[:2])))
    return image, None


class Batches:
    """Training batches: (images [B, 3, h, w] channels_last in `dtype`, maps float32 [B, 1, h / stride, w / stride]).

    The split is copied into the memory of `device` at once, so that no step waits for a disk. A map is `MAP_SCALE`
    times the density, in cells of stride × stride pixels, drawn for its crop.

    mean, std: per channel, where white is 1. crop: the side of random square crops, in pixels; None: whole images.
    flip: probability of a mirror image. sigma: width of every head's Gaussian in pixels; None: geometry-adaptive.
    Raises UserError for a crop that is not a multiple of `stride`, or larger than an image.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        crop: int | None = None,
        flip: float = 0.0,
        sigma: float | None = None,
        stride: int = 1,
        seed: int = 0,
    ):
        if crop is not None:
            if crop % stride:
                raise UserError(f"--crop {crop} is not a multiple of {stride}, the stride of the net's maps")
            shorter, name = min((min(i.shape[:2]), name) for i, name in zip(split.images, split.names, strict=True))
            if shorter < crop:
                raise UserError(
                    f"{name} has a side of {shorter} pixels, less than --crop {crop}; "
                    f"--crop {shorter // stride * stride} would fit"
                )
        self.images = [image.to(device, copy=True) for image in split.images]
        self.points = [points.to(device) for points in split.points]
        self.widths = [head_widths(points, sigma).to(device) for points in split.points]
        self.table = make_table(mean, std, dtype).to(device)
        self.names, self.batch_size, self.crop = split.names, batch_size, crop
        self.flip, self.stride, self.seed = flip, stride, seed

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, or a crop of it: order, places and flips are drawn from (seed, epoch) alone.

        Raises UserError where whole images of different sizes meet in a batch.
        """
        rng, n = generator(self.seed, epoch), len(self.images)
        draws = rng.permutation(n), rng.random((n, 2)), rng.random(n) < self.flip
        for start in range(0, n, self.batch_size):
            yield self._batch(*(part[start : start + self.batch_size] for part in draws))

    def _batch(self, index: np.ndarray, places: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        crops, maps = [], []
        for i, place, flipped in zip(index, places, flips, strict=True):
            height, width = size = tuple(self.images[i].shape[:2])
            side = (height, width) if self.crop is None else (self.crop, self.crop)
            top, left = (int(share * (whole - part + 1)) for share, whole, part in zip(place, size, side, strict=True))
            crops.append(self.images[i][top : top + side[0], left : left + side[1]])
            patch = draw(self.points[i], self.widths[i], size, (top, left, *side), self.stride)
            maps.append(patch.flip(1) if flipped else patch)
        if len({crop.shape for crop in crops}) > 1:
            sizes = ", ".join(
                f"{self.names[i]} {crop.shape[1]}x{crop.shape[0]}" for i, crop in zip(index, crops, strict=True)
            )
            raise UserError(f"images of different sizes in a batch ({sizes}): take --crop N, or --batch-size 1")
        images = normalised(torch.stack(crops), self.table, torch.from_numpy(flips))
        return images, MAP_SCALE * torch.stack(maps)[:, None]


class Whole:
    """For evaluation: the images of a split one by one, whole, at their own sizes. mean, std: as for `Batches`."""

    def __init__(
        self,
        split: Split,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.split, self.table = split, make_table(mean, std, dtype).to(device)

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(image [1, 3, H, W] channels_last, its heads, float64 [1] on the CPU) of every image, in order."""
        for image, count in zip(self.split.images, self.split.counts, strict=True):
            yield normalised(image.to(self.table.device)[None], self.table), count[None]


def normalised(images: Tensor, table: Tensor, flips: Tensor | None = None) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] channels_last, by the table of `ops.make_table`; flipped where told."""
    n, device = len(images), images.device
    flips = torch.zeros(n, dtype=torch.bool) if flips is None else flips
    offset = torch.zeros(n, 2, dtype=torch.int64, device=device)
    return crop_flip(images, torch.arange(n, device=device), offset, flips.to(device), table, 0)


def counting(count_weight: float = 0.0) -> Task:
    """Crowds: trained on density maps, judged by the error of the count.

    The loss is the mean squared error of the maps + count_weight × the mean absolute error of the counts.
    """

    def objective(maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        off = ((maps - target).sum((1, 2, 3)) / MAP_SCALE).abs()
        return F.mse_loss(maps, target) + count_weight * off.mean(), off.detach()

    def judge(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware) -> dict[str, float]:
        mae, mse, _ = evaluate(model, batches, where)
        return {"mae": mae, "mse": mse}

    return Task("mae", "MAE", "", min, objective, judge)


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Hardware
) -> tuple[float, float, Tensor]:
    """One pass over `batches` (images [B, 3, H, W], counts [B]) in eval mode.

    Returns (MAE, MSE, predicted counts, float64 [N] on the CPU); see `errors`.
    """
    model.eval()
    predicted, true = [], []
    for images, counts in batches:
        predicted.append(density(model, images, where).sum((1, 2), dtype=torch.float64).cpu())
        true.append(counts)
    predicted = torch.cat(predicted)
    return *errors(predicted, torch.cat(true)), predicted


def density(model: nn.Module, images: Tensor, where: Hardware) -> Tensor:
    """The predicted density maps of `images` [B, 3, H, W], which sum to their counts: float32 [B, h, w]."""
    with where.autocast():
        return model(images)[:, 0].float() / MAP_SCALE


def errors(predicted: Tensor, true: Tensor) -> tuple[float, float]:
    """(MAE, MSE) of counts [N] as the field has them: mean absolute error, and the *root* of the mean squared error."""
    difference = (predicted - true).double()
    return difference.abs().mean().item(), difference.square().mean().sqrt().item()


def constants(dataset: Crowd, split: Split) -> dict[str, tuple[float, float, float]]:
    """What predictors that never look score on `split`: name -> (count, MAE, MSE).

    They say the mean and the median count of all training images, those held out for validation too.
    """
    counts = torch.cat([part.counts for part in (dataset.train, dataset.val) if part is not None])
    said = {"train mean": counts.mean().item(), "train median": counts.quantile(0.5).item()}
    return {name: (count, *errors(torch.tensor(count), split.counts)) for name, count in said.items()}


def say_constants(dataset: Crowd, split: Split) -> str:
    """`constants`, a line each."""
    return "\n".join(
        f"always the {name}, {count:g} heads: MAE {mae:.2f}, MSE {mse:.2f}"
        for name, (count, mae, mse) in constants(dataset, split).items()
    )
