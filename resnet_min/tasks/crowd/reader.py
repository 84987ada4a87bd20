"""Reads ShanghaiTech: images and the heads in them.

A part is a folder with `train_data` and `test_data`, each with `images/NAME.jpg` and `ground-truth/GT_NAME.mat` (or
`ground_truth`), as published with Zhang et al., CVPR 2016. Its training labels are used as they are: in Part B, images
108, 202, 217, 296 and 396 are known to have heads missing or marked in the wrong place.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.cache import cached
from ...data.decode import pixels
from ...data.sources import IMAGE_FILES, NEEDED, list_files, stamp_of
from ...data.splits import Dataset, lessened, mean_std, stratified
from ...errors import UserError

TRUTH = ("ground-truth", "ground_truth")  # what copies call the folder of annotations
SLACK = 1.0  # pixels: MATLAB counts them from 1 at their centres, so a point on the border may lie half of one outside


@dataclass(frozen=True)
class Split:
    """Images of any size with the heads in each, on the CPU; images may be mapped from the cache."""

    images: list[Tensor]  # uint8 [H, W, 3]
    points: list[Tensor | None]  # float32 [heads, 2]: (x, y) in pixels from the top left corner; None: not known
    names: list[str]  # file names

    def __len__(self) -> int:
        return len(self.images)

    @property
    def counts(self) -> Tensor:
        """Heads in each image, float64 [N]; NaN where they are not known."""
        heads = [float("nan") if points is None else len(points) for points in self.points]
        return torch.tensor(heads, dtype=torch.float64)

    def subset(self, index: Iterable[int]) -> Split:
        """These images alone."""
        index = list(index)
        return Split(*([part[i] for i in index] for part in (self.images, self.points, self.names)))


class Crowd(Dataset):
    """What `load` returns: a `Dataset` of crowds, without classes."""

    def summary(self) -> str:
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in self.splits.items())
        shape = "x".join(map(str, self.train.images[0].shape[:2]))
        first = f"{sizes}; {shape}; {int(self.train.counts.sum()):,} heads to learn from"
        return "\n".join([first, "to beat on the test images:", *say_constants(self, self.test)])

    def contents(self) -> dict[str, str]:
        counts = {name: part.counts for name, part in self.splits.items()}
        return {
            name: f"{heads.min():.0f} to {heads.max():.0f} heads an image, {heads.mean():.1f} on average"
            for name, heads in counts.items()
        }


def errors(predicted: Tensor, true: Tensor) -> tuple[float, float]:
    """(MAE, MSE) of counts [N] as the field has them: mean absolute error, and the *root* of the mean squared error."""
    difference = (predicted - true).double()
    return difference.abs().mean().item(), difference.square().mean().sqrt().item()


def constants(dataset: Crowd, split: Split) -> dict[str, tuple[float, float, float]]:
    """What predictors that never look score on `split`: name -> (count, MAE, MSE).

    They say the mean and the median count of all training images, those held out for validation too; without any, none.
    """
    if dataset.train is None:
        return {}
    counts = torch.cat([part.counts for part in (dataset.train, dataset.val) if part is not None])
    said = {"train mean": counts.mean().item(), "train median": counts.quantile(0.5).item()}
    return {name: (count, *errors(torch.tensor(count), split.counts)) for name, count in said.items()}


def say_constants(dataset: Crowd, split: Split) -> list[str]:
    """`constants`, a line each."""
    return [
        f"always the {name}, {count:g} heads: MAE {mae:.2f}, MSE {mse:.2f}"
        for name, (count, mae, mse) in constants(dataset, split).items()
    ]


def load(
    data: str | os.PathLike,
    *,
    cache_dir: str | os.PathLike | None = None,
    val_size: int = 0,
    seed: int = 0,
    limit: int | None = None,
    train_share: float = 1.0,
    needed: Collection[str] = NEEDED,
) -> Crowd:
    """Load the ShanghaiTech part in the folder `data`.

    val_size: training images held out, drawn from `seed`. cache_dir, limit, train_share and needed: as for
    `data.load`.

    Raises UserError for a folder that is no such part, for an image without its annotation and the reverse, for what
    cannot be read, and for points that are not numbers or lie outside their image.
    """
    root = Path(os.path.abspath(os.path.expanduser(data)))
    there = [name for name in NEEDED if name in needed or (root / f"{name}_data").is_dir()]
    found = {name: _pairs(root, name) for name in there}
    entries = ((f"{name}/", entry) for name, pairs in found.items() for pair in pairs for entry in pair)
    name, stamp = f"{root.name}-native", stamp_of(entries)
    content = cached(name, root, stamp, lambda: _decode(root.name, found), is_sound, cache_dir)

    splits = {name: Split(part["images"], part["labels"], part["names"]) for name, part in content["splits"].items()}
    train, mean, std = splits.get("train"), None, None
    if train is not None:
        sums = content["splits"]["train"]["sums"]
        if val_size:
            if not 0 < val_size < len(train):
                raise UserError(f"--val-size must leave some of the {len(train)} training images; got {val_size}")
            kept, held = stratified(np.zeros(len(train), dtype=np.int64), val_size, seed)
            train, splits["val"], sums = train.subset(kept), train.subset(held), sums[kept]
            splits["train"] = train
        mean, std = mean_std(sums, sum(image.shape[0] * image.shape[1] for image in train.images))
    less = lessened(splits, limit, train_share)
    return Crowd(root.name, str(root), (), less.get("train"), less.get("val"), less["test"], mean, std)


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
    from tqdm.auto import tqdm

    def one(pair: tuple[os.DirEntry, os.DirEntry], points: np.ndarray | str) -> tuple[Tensor, Tensor, Tensor]:
        image = pixels(pair[0].path, None).copy()
        points = _within(points, pair[1].path, image.shape[:2])
        squares = np.einsum("hwc,hwc->c", image, image, dtype=np.int64)  # converts in small pieces
        sums = np.stack([image.sum((0, 1), dtype=np.int64), squares])
        return tuple(map(torch.from_numpy, (image, points, sums)))

    content = {"splits": {}}
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with tqdm(total=sum(map(len, found.values())), desc=f"decoding {name}", disable=None) as bar:
            for split, pairs in found.items():
                parts = []
                for part in pool.map(one, pairs, read_annotations([mark.path for _, mark in pairs])):
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


def is_sound(content: dict[str, Any]) -> bool:
    """Whether a cache's content is what `_decode` makes: dtypes, shapes and ranges."""
    for part in content["splits"].values():
        images, points, sums, names = part["images"], part["labels"], part["sums"], part["names"]
        if not 0 < len(images) == len(points) == len(names) == len(sums) or sums.shape[1:] != (2, 3):
            return False
        if sums.dtype != torch.int64 or sums.min() < 0 or not all(isinstance(name, str) for name in names):
            return False
        for image, heads, (total, squares) in zip(images, points, sums, strict=True):
            if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3 or not image.numel():
                return False
            if heads.dtype != torch.float32 or heads.dim() != 2 or heads.shape[1] != 2:
                return False
            pixels, limits = image.shape[0] * image.shape[1], torch.tensor(image.shape[1::-1])
            if total.max() > 255 * pixels or squares.max() > 255**2 * pixels:
                return False
            if not ((heads >= 0) & (heads <= limits)).all():  # NaN is not
                return False
    return "test" in content["splits"]


def read_points(file: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """The heads in a ShanghaiTech annotation, float32 [n, 2] as (x, y), of an image of `size` = (height, width).

    Points up to one pixel outside are moved onto the border. Raises UserError, naming the file and the point, for one
    further out or not a number, and for a file that is not such an annotation.
    """
    return _within(*read_annotations([file]), file, size)


def read_annotations(files: Sequence[str | os.PathLike]) -> Iterator[np.ndarray | str]:
    """The points of each annotation as they are in it, float64 [n, 2], or why it cannot be read.

    By `annotations.py`, of which one process reads as many files as it survives.
    """
    left = [os.fspath(file) for file in files]
    while left:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("annotations.py")],
            input=json.dumps(left), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode > 0:
            raise UserError(f"cannot read annotations: {''.join(done.stderr.splitlines()[-1:])}")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode < 0:
            answers.append(f"SciPy's reader came to its end: {signal.strsignal(-done.returncode)}")
        for answer in answers:
            yield answer if isinstance(answer, str) else np.array(answer, dtype=np.float64).reshape(-1, 2)
        del left[: len(answers)]


def _within(points: np.ndarray | str, file: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    if isinstance(points, str):
        raise UserError(f"cannot read the annotation {file}: {points}")
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


def read_image(file: str | os.PathLike) -> Split:
    """A picture as a split of one; its heads, where it lies in a ShanghaiTech part and has an annotation, else none."""
    file = Path(file)
    image = torch.from_numpy(pixels(str(file), None).copy())
    for folder in TRUTH:
        truth = file.absolute().parent.parent / folder / f"GT_{file.stem}.mat"
        if truth.is_file():
            return Split([image], [torch.from_numpy(read_points(truth, tuple(image.shape[:2])))], [file.name])
    return Split([image], [None], [file.name])
