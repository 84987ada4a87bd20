"""Named data sets and image folders: decoded once into a cache, then uint8 tensors mapped from it.

Every picture becomes RGB; where it is not `image_size` square, its shorter side is resized to that (bilinear,
antialiased) and its middle kept. The order of a split is fixed: classes by name, files by name within a class; a named
data set keeps its own order.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import sys
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import did_you_mean
from .errors import UserError

CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # the folder torchvision unpacks each into
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
FORMAT = 1  # of the cache: raise it when what is decoded changes, and old caches are rebuilt
CHUNK = 64  # images that a thread decodes at a time


@dataclass(frozen=True)
class Split:
    """Images and their classes, on the CPU; mapped from the cache copy-on-write, so writing to them changes no file."""

    images: Tensor  # uint8 [N,H,W,3]
    labels: Tensor  # int64 [N], indices into Dataset.classes

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Sequence[int] | np.ndarray) -> Split:
        """A copy of these images in memory, by NumPy, which gathers whole images several times as fast as torch."""
        return Split(torch.from_numpy(self.images.numpy().take(index, 0)), self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """What `load` returns."""

    name: str  # cifar10, cifar100, digits, or the folder's own name
    source: str  # the `data` that loads it again from any working directory: the set's name or an absolute path
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    mean: tuple[float, float, float]  # of each channel over all pixels of `train`, where white is 1
    std: tuple[float, float, float]  # likewise: the deviation of all pixels, not the mean of the images' own deviations

    @property
    def splits(self) -> dict[str, Split]:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def summary(self) -> str:
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in self.splits.items())
        return f"{sizes}; {'x'.join(map(str, self.train.images.shape[1:3]))}; {len(self.classes)} classes"

    def contents(self) -> dict[str, str]:
        counts = {name: part.labels.bincount(minlength=len(self.classes)) for name, part in self.splits.items()}
        return {
            name: ", ".join(f"{c} {n}" for c, n in zip(self.classes, labels.tolist(), strict=True))
            for name, labels in counts.items()
        }


@dataclass(frozen=True)
class _Source:
    """Where a data set comes from: enough to find its cache, and how to read it where there is none."""

    name: str
    source: str
    folder: Path | None  # the cache belongs beside it; None: too quick to be worth one
    stamp: str  # changes whenever a file does
    read: Callable[[], tuple[tuple[str, ...], dict[str, tuple[Any, Any]]]]  # classes; split → pictures, labels


def load(
    data: str | os.PathLike,
    *,
    data_dir: str | os.PathLike = "data",
    cache_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    val_size: int = 0,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Load `cifar10`, `cifar100`, `digits`, or the image folder at the path `data`.

    data_dir: where cifar-10-batches-py or cifar-100-python is, or is downloaded to.
    cache_dir: where decoded images are kept. By default beside the data, or else in the user's cache folder.
    image_size: height and width of every image, in pixels (default 32).
    val_size: images held out of the training split, from each class in proportion, drawn from `seed`.
    limit: at most this many images of each split, evenly spread over it; mean and std stay those of all.

    Raises UserError for data that is missing, damaged, unreadable or inconsistent, and for a cache_dir that cannot be
    written. Without a writable default cache it warns and goes on.
    """
    data, size = os.fspath(data), 32 if image_size is None else image_size
    if size < 1:
        raise UserError(f"--image-size must be at least 1; got {size}")
    if data == "digits":
        source = _Source("digits", "digits", None, "", _read_digits)
    else:
        source = _cifar(data, Path(data_dir)) if data in CIFAR else _image_folder(data)
    content = _content(source, size, cache_dir)

    parts = content["splits"]
    splits = {name: Split(part["images"], part["labels"]) for name, part in parts.items()}
    sums = parts["train"]["sums"]
    if val_size:
        whole = splits["train"]
        if "val" in splits:
            raise UserError(f"{source.source} has a val/ of its own: drop --val-size, or move that folder away")
        if not 0 < val_size < len(whole):
            raise UserError(f"--val-size must leave some of the {len(whole)} training images; got {val_size}")
        kept, held = stratified(whole.labels.numpy(), val_size, seed)
        splits["train"], splits["val"] = whole.subset(kept), whole.subset(held)
        sums = sums[kept]
    mean, std = mean_std(sums, pixels=len(sums) * size * size)
    if limit is not None:
        splits = {
            name: part.subset(np.arange(limit) * len(part) // limit) if limit < len(part) else part
            for name, part in splits.items()
        }
    classes = tuple(content["classes"])
    return Dataset(source.name, source.source, classes, splits["train"], splits.get("val"), splits["test"], mean, std)


def resolve_auto(data: str, data_dir: str | os.PathLike) -> str:
    """`auto` becomes `cifar10` where it is in `data_dir` or can be downloaded, otherwise `digits`, said on stderr."""
    if data != "auto":
        return data
    if (Path(data_dir) / CIFAR["cifar10"]).is_dir():
        return "cifar10"
    from torchvision.datasets import CIFAR10

    why = unreachable(CIFAR10.url)
    if why is None:
        return "cifar10"
    print(f"NO CIFAR-10, USING THE SMALL DIGITS INSTEAD: {_absent('cifar10', data_dir, why)}", file=sys.stderr)
    return "digits"


# ---- where images come from ----


def _read_digits():
    """scikit-learn's digits: 8x8, grey levels 0 to 16. Always the same 1437 and 360 images, whatever the seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    train, test = map(np.sort, train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0))
    return tuple("0123456789"), {"train": (pictures[train], labels[train]), "test": (pictures[test], labels[test])}


def _cifar(name: str, data_dir: Path) -> _Source:
    folder = data_dir / CIFAR[name]
    if not folder.is_dir():
        _download(name, data_dir, folder)

    def read():
        from torchvision import datasets

        kind = getattr(datasets, name.upper())
        try:  # torchvision verifies checksums
            parts = {split: kind(data_dir, train=split == "train") for split in ("train", "test")}
        except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(f"{folder} is incomplete or damaged: remove it, and it is downloaded again") from error
        return tuple(parts["train"].classes), {split: (part.data, part.targets) for split, part in parts.items()}

    return _Source(name, name, folder, stamp_of(("", entry) for entry in list_files(folder)), read)


def _download(name: str, data_dir: Path, folder: Path) -> None:
    """Download into a temporary folder, and move it into place once torchvision has verified it."""
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    why = unreachable(kind.url)
    if why is None:
        print(f"downloading {name} into {folder}", file=sys.stderr)
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir) as temporary:
                with downloading():
                    kind(temporary, download=True)
                os.replace(Path(temporary) / CIFAR[name], folder)
            return
        except Exception as error:  # urllib, tarfile and torchvision each have their own
            why = str(error)
    raise UserError(f"{_absent(name, data_dir, why)}; or take --data digits, which needs no download")


def _absent(name: str, data_dir: str | os.PathLike, why: str) -> str:
    return (
        f"{name} is not in {data_dir} and cannot be downloaded ({why}); "
        f"for it, put {CIFAR[name]} into --data-dir, or give a folder of images with --data PATH"
    )


@contextmanager
def downloading(stalled: float = 60):
    """Gives torchvision's download a time limit for a silent connection, and a progress bar on terminals only."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(stalled)
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def unreachable(url: str, seconds: float = 10) -> str | None:
    """Why `url` cannot be had, found out within `seconds`; None where it can."""
    why: list[str | None] = [f"no answer in {seconds:g} s"]

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            why[0] = None
        except Exception as error:
            why[0] = str(error)

    thread = threading.Thread(target=ask, daemon=True)  # a thread, because looking up a name has no time limit
    thread.start()
    thread.join(seconds)
    return why[0]


def _image_folder(data: str) -> _Source:
    root = Path(os.path.abspath(os.path.expanduser(data)))
    if not root.exists():
        known = ("auto", *CIFAR, "digits")
        raise UserError(f"--data {data} is neither a folder nor one of {', '.join(known)}{did_you_mean(data, known)}")
    if not root.is_dir():
        raise UserError(f"--data {data} is a file; wanted a folder with train/CLASS/* and test/CLASS/*")
    for name in ("train", "test"):
        if not (root / name).is_dir():
            raise UserError(f"{root} has no {name}/ folder; wanted train/CLASS/* and test/CLASS/*")
    found = {name: _class_files(root / name) for name in ("train", "val", "test") if (root / name).is_dir()}
    classes = tuple(found["train"])
    for name, part in found.items():
        odd = [f"{c} only in {'train' if c in classes else name}/" for c in sorted(set(part) ^ set(classes))]
        if odd:
            raise UserError(f"the classes of train/ and {name}/ in {root} differ: {', '.join(odd)}")
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} needs a folder for each of two or more classes; got {list(classes)}")

    def read():
        splits = {}
        for name, part in found.items():
            labels = np.repeat(np.arange(len(part)), [len(files) for files in part.values()])
            splits[name] = [file.path for files in part.values() for file in files], labels
        return classes, splits

    entries = ((f"{name}/{label}/", e) for name, part in found.items() for label, files in part.items() for e in files)
    return _Source(root.name or "images", str(root), root, stamp_of(entries), read)


def _class_files(folder: Path) -> dict[str, list[os.DirEntry]]:
    """The image files of each class folder, both sorted by name. Hidden and other files are passed over."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    classes = {name: [e for e in list_files(folder / name) if e.name.lower().endswith(IMAGE_FILES)] for name in names}
    for name, files in classes.items():
        if not files:
            raise UserError(f"no images in {folder / name} (looked for {' '.join(IMAGE_FILES)})")
    return classes


def list_files(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".") and not e.is_dir()), key=lambda e: e.name)


def stamp_of(entries: Iterable[tuple[str, os.DirEntry]]) -> str:
    """A digest of names, sizes and times of change."""
    digest = hashlib.sha256()
    for prefix, entry in entries:
        status = entry.stat()
        digest.update(os.fsencode(f"{prefix}{entry.name} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()


# ---- decoding ----


def _decode(source: _Source, size: int) -> dict[str, Any]:
    """The whole data set at `size`: what the cache holds."""
    from tqdm import tqdm

    classes, splits = source.read()
    content = {"classes": list(classes), "splits": {}}
    total = sum(len(items) for items, _ in splits.values())
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without Python's lock
    try:
        with tqdm(total=total, desc=f"decoding {source.name}", disable=None) as bar:  # None: on terminals only
            for name, (items, labels) in splits.items():
                images, sums = _decode_split(items, size, pool, bar)
                labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))
                content["splits"][name] = {"images": images, "labels": labels, "sums": sums}
    finally:  # after an error or Ctrl-C, without what is still waiting
        pool.shutdown(cancel_futures=True)
    return content


def _decode_split(items: Any, size: int, pool: ThreadPoolExecutor, bar: Any) -> tuple[Tensor, Tensor]:
    """Files or arrays → uint8 [N,size,size,3], and each image's sum and sum of squares by channel, int64 [N,2,3]."""
    images, sums = np.empty((len(items), size, size, 3), np.uint8), np.empty((len(items), 2, 3), np.int64)

    def decode(start: int) -> int:
        chunk = slice(start, start + CHUNK)
        for i, item in enumerate(items[chunk], start):
            images[i] = pixels(item, size)
        values = images[chunk].astype(np.uint32)
        sums[chunk, 0] = values.sum((1, 2), dtype=np.int64)
        sums[chunk, 1] = (values * values).sum((1, 2), dtype=np.int64)
        return len(values)

    for done in pool.map(decode, range(0, len(items), CHUNK)):
        bar.update(done)
    return torch.from_numpy(images), torch.from_numpy(sums)


def pixels(item: str | np.ndarray, size: int | None) -> np.ndarray:
    """A file's path, or pixels [h,w] or [h,w,3] → uint8 [size,size,3]; [h,w,3] where `size` is None."""
    from PIL import Image, ImageOps

    try:
        with Image.fromarray(item) if isinstance(item, np.ndarray) else Image.open(item) as image:
            image.load()
            if "exif" in image.info:  # a camera's note of how it was held
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            if image.has_transparency_data:  # dropped; by way of RGBA, where every palette's colours are kept
                image = image.convert("RGBA")
            image = image.convert("RGB")
            if size is not None and image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # Pillow's readers raise many kinds
        raise UserError(f"cannot read the image {item}: {error}") from error


def read_image(file: str, size: int) -> tuple[Tensor, str]:
    """A picture as uint8 [size, size, 3], and what was done to it, if anything. Raises UserError as `pixels` does."""
    from PIL import Image

    image = torch.tensor(pixels(file, size))
    with Image.open(file) as original:
        was, kind = f"{original.width}x{original.height} {original.mode}", original.format
    if was == f"{size}x{size} RGB":
        return image, ""
    return image, f"{was} {kind} to {size}x{size} RGB (its shorter side resized, its middle kept)"


# ---- the cache: one file for a data set and an image size, replaced whole ----


def _content(source: _Source, size: int, cache_dir: str | os.PathLike | None) -> dict[str, Any]:
    """The decoded data set, from the cache where it is, or decoded and put there."""
    if source.folder is None:
        return _decode(source, size)
    return cached(f"{source.name}-{size}", source.folder, source.stamp, lambda: _decode(source, size), cache_dir)


def cached(
    name: str, folder: Path, stamp: str, decode: Callable[[], dict[str, Any]], cache_dir: str | os.PathLike | None
) -> dict[str, Any]:
    """What `decode` makes of the files in `folder`, from the cache where it is and `stamp` has not changed.

    decode returns a dict of tensors and plain values, whose "splits" hold "images", "labels" and "sums" of one length.
    Raises UserError for a `cache_dir` that cannot be written; without one it warns and goes on.
    """
    where = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()
    file = f"{name}-{where[:12]}.pt"
    stamp = f"{FORMAT} {stamp}"
    home = os.path.expanduser("~")  # unchanged where there is no home
    if cache_dir is not None:
        places = [Path(cache_dir)]
    else:
        places = [folder / ".resnet_min_cache"] + [Path(home, ".cache", "resnet_min")] * (home != "~")
    for place in places:
        content = _read_cache(place / file, stamp)
        if content is not None:
            return content
    if cache_dir is not None:  # before the work of decoding
        _make_writable(places[0])
    content = {**decode(), "stamp": stamp}
    for place in places:
        try:
            _write_cache(place / file, content)
            return content
        except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a disk that fills up
            why = getattr(error, "strerror", None) or "no space left?"
    if cache_dir is not None:
        raise UserError(f"cannot write to --cache-dir {cache_dir}: {why}")
    print(f"warning: nowhere to keep {name} decoded, so every run decodes it ({places[-1]}: {why})", file=sys.stderr)
    return content


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to --cache-dir {folder}: {error.strerror}") from error


def _read_cache(file: Path, stamp: str) -> dict[str, Any] | None:
    """What `_write_cache` wrote, mapped; None where it is missing, damaged or of other files."""
    try:
        content = torch.load(file, mmap=True, weights_only=True)
        sound = all(len(p["images"]) == len(p["labels"]) == len(p["sums"]) for p in content["splits"].values())
        return content if sound and content["stamp"] == stamp else None
    except Exception:  # anything may be in a damaged file
        return None


def _write_cache(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")  # of its own, so that two processes do not meet
    try:
        with open(temporary, "xb") as out:
            torch.save(content, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


# ---- numbers ----


def stratified(labels: np.ndarray, held: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices kept and held out, each rising; class sizes in proportion, by largest remainder."""
    sizes, remainder = np.divmod(np.bincount(labels) * held, len(labels))
    sizes[np.argsort(-remainder, kind="stable")[: held - sizes.sum()]] += 1
    rng = np.random.default_rng(seed % 2**64)  # it takes no negative seed
    out = np.zeros(len(labels), dtype=bool)
    for label, size in enumerate(sizes):
        out[rng.permutation(np.flatnonzero(labels == label))[:size]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def mean_std(sums: Tensor, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """From each image's sum and sum of squares, int64 [N,2,3]. Whole numbers until the last step."""
    totals, squares = sums.sum(0).tolist()
    variances = [(pixels * b - a * a) / (255 * pixels) ** 2 for a, b in zip(totals, squares, strict=True)]
    # A channel that never varies is left undivided.
    return tuple(total / (255 * pixels) for total in totals), tuple(v**0.5 or 1.0 for v in variances)
