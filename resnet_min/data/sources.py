"""Where images come from: named data sets, in the package or downloaded, and folders."""

from __future__ import annotations

import csv
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import did_you_mean
from ..errors import UserError
from ..files import printable
from .download import downloading, unreachable

CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # the folder torchvision unpacks each into
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
NEEDED = ("train", "test")  # splits that a data set has to have: to train with


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: enough to find its cache, and how to read it where there is none."""

    name: str
    source: str
    folder: Path | None  # the cache belongs beside it; None: too quick to be worth one
    stamp: str  # changes whenever a file does
    read: Callable[[], tuple[tuple[str, ...], dict[str, tuple[Any, Any]]]]  # classes; split → pictures, labels


def find(data: str, data_dir: Path, needed: Collection[str] = NEEDED) -> Source:
    """The source that `--data` names; CIFAR is downloaded into `data_dir` where it is not there.

    needed: the splits that an image folder must have. Raises UserError for data that is missing or inconsistent.
    """
    if data == "digits":
        return Source("digits", "digits", None, "", _read_digits)
    if data in CIFAR:
        return _cifar(data, data_dir, needed)
    if data == "svhn":
        return _svhn(data_dir)
    by_ending = {".npy": _array, ".csv": _table}
    return by_ending.get(Path(data).suffix.lower(), _image_folder)(data, needed)


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
    print(f"CIFAR-10 NOT FOUND, USING THE BUNDLED DIGITS: {_absent('cifar10', data_dir, why)}", file=sys.stderr)
    return "digits"


def _read_digits():
    """scikit-learn's digits: 8x8, grey levels 0 to 16. Always the same 1437 and 360 images, whatever the seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    train, test = map(np.sort, train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0))
    return tuple("0123456789"), {"train": (pictures[train], labels[train]), "test": (pictures[test], labels[test])}


def _cifar(name: str, data_dir: Path, needed: Collection[str]) -> Source:
    folder = data_dir / CIFAR[name]
    if not folder.is_dir() and (why := _download(name, data_dir, folder)):
        instead = "use --data digits, which needs no download" if "train" in needed else "take a picture of your own"
        raise UserError(f"{_absent(name, data_dir, why)}; or {instead}")

    def read():
        from torchvision import datasets

        kind = getattr(datasets, name.upper())
        try:  # torchvision verifies checksums
            parts = {split: kind(data_dir, train=split == "train") for split in ("train", "test")}
        except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(f"{folder} is incomplete or damaged: remove it, and it is downloaded again") from error
        return tuple(parts["train"].classes), {split: (part.data, part.targets) for split, part in parts.items()}

    return Source(name, name, folder, stamp_of(("", entry) for entry in list_files(folder)), read)


def _download(name: str, data_dir: Path, folder: Path) -> str | None:
    """Download into a temporary folder, and move it into place once torchvision has verified it; or say why not."""
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
        except Exception as error:  # urllib, tarfile and torchvision each have their own
            why = str(error)
    return why


def _absent(name: str, data_dir: str | os.PathLike, why: str) -> str:
    return (
        f"{name} is not in {data_dir} and cannot be downloaded ({why}); "
        f"for it, put {CIFAR[name]} into --data-dir, or give a folder of images with --data PATH"
    )


def _svhn(data_dir: Path) -> Source:
    """SVHN's cropped digits as published: X uint8 [32, 32, 3, N], y [N, 1] in which 10 is the digit 0."""
    files = {split: data_dir / f"{split}_32x32.mat" for split in ("train", "test")}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise UserError(f"svhn is not in {data_dir}: put {' and '.join(missing)} there (--data-dir for another place)")

    def read():
        from scipy.io import loadmat

        splits = {}
        for split, file in files.items():
            try:
                found = loadmat(file, variable_names=["X", "y"])
                splits[split] = found["X"].transpose(3, 0, 1, 2), found["y"].ravel().astype(np.int64) % 10
            except Exception as error:  # SciPy's reader raises many kinds
                raise UserError(f"cannot read {file}: {error}") from None
        return tuple("0123456789"), splits

    entries = [entry for entry in os.scandir(data_dir) if entry.name in {file.name for file in files.values()}]
    return Source("svhn", "svhn", data_dir, stamp_of(("", e) for e in sorted(entries, key=lambda e: e.name)), read)


def _table(data: str, needed: Collection[str]) -> Source:
    """A CSV with the columns path, label and, if there is one, split: train, val or test.

    Paths are from the table's folder. Without a split, a fifth of each class is to test on, always the same images.
    """
    file = Path(os.path.abspath(os.path.expanduser(data)))
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened, strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"cannot read the table --data {data}: {getattr(error, 'strerror', None) or error}") from None
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise UserError(f"{file} needs a first line with path,label or path,label,split, and images below it")
    for line, row in enumerate(rows, start=2):
        if None in row:  # where DictReader puts what is beyond the columns
            raise UserError(f"{file}, line {line}: more fields than columns; a name with a comma in it needs quotes")
        if not row["path"] or not row["label"] or row.get("split", "train") not in ("train", "val", "test"):
            raise UserError(f"{file}, line {line}: wanted a path, a label, and as split train, val or test; got {row}")
        if not (file.parent / row["path"]).is_file():
            raise UserError(f"{file}, line {line}: there is no file {file.parent / row['path']}")
    classes = tuple(sorted({row["label"] for row in rows}))
    labels = np.array([classes.index(row["label"]) for row in rows])
    which = np.array([row.get("split", "train") for row in rows])
    if "split" not in rows[0]:
        if np.bincount(labels).min() < 2 or len(rows) < 5 * len(classes):
            raise UserError(f"{file} has no column split, and too few images to test on a fifth of each class")
        from sklearn.model_selection import train_test_split

        which[train_test_split(np.arange(len(rows)), test_size=0.2, stratify=labels, random_state=0)[1]] = "test"
    for name in needed:
        if name not in which:
            raise UserError(f"{file} has no image whose split is {name}")
    if len(classes) < 2:
        raise UserError(f"{file} needs two or more labels; got {list(classes)}")

    def read():
        paths = [str(file.parent / row["path"]) for row in rows]
        places = {name: np.flatnonzero(which == name) for name in ("train", "val", "test") if name in which}
        return classes, {name: ([paths[i] for i in place], labels[place]) for name, place in places.items()}

    digest = hashlib.sha256(repr([sorted(row.items()) for row in rows]).encode("utf-8", "surrogatepass"))
    for row in rows:
        status = os.stat(file.parent / row["path"])
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return Source(file.stem, str(file), file.parent, digest.hexdigest(), read)


def _array(data: str, needed: Collection[str]) -> Source:
    """CIFAR-10.1, or a corruption of CIFAR-10-C, as published: test images, of CIFAR-10's classes."""
    file = Path(os.path.abspath(os.path.expanduser(data)))
    beside = file.name.replace("_data.npy", "_labels.npy") if file.name.endswith("_data.npy") else "labels.npy"
    labels = file.with_name(beside)
    if "train" in needed:
        raise UserError(f"--data {data} has test images only: evaluate on it, and train on another")
    for wanted in (file, labels):
        if not wanted.is_file():
            raise UserError(f"--data {data} needs the files {file.name} and {beside}; there is no {wanted}")
    return Source(file.stem, str(file), None, "", lambda: (CIFAR10_CLASSES, {"test": read_array(file, labels)}))


def read_array(file: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, H, W, 3], mapped, and labels int64 [N], from two .npy files of as many.

    Raises UserError where they are none such.
    """
    try:
        pixels, classes = np.load(file, mmap_mode="r", allow_pickle=False), np.load(labels, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the arrays {file} and {labels}: {error}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
        raise UserError(f"{file} is {pixels.dtype} {list(pixels.shape)}; wanted uint8 [N, H, W, 3]")
    if classes.dtype.kind not in "iu" or classes.shape != (len(pixels),) or classes.min() < 0:
        raise UserError(f"{labels} is {classes.dtype} {list(classes.shape)}; wanted {len(pixels)} classes from 0")
    return pixels, classes.astype(np.int64)


def _image_folder(data: str, needed: Collection[str]) -> Source:
    root = Path(os.path.abspath(os.path.expanduser(data)))
    layout = " and ".join(f"{name}/CLASS/*" for name in needed)
    if not root.exists():
        known = ("auto", *CIFAR, "digits", "svhn")
        raise UserError(f"--data {data} is neither a folder nor one of {', '.join(known)}{did_you_mean(data, known)}")
    if not root.is_dir():
        raise UserError(f"--data {data} is a file; wanted a folder with {layout}")
    if (root / "labels.npy").is_file():
        raise UserError(f"{root} holds arrays, as CIFAR-10-C does: eval.py --corrupt {root} takes all, --data one file")
    for name in needed:
        if not (root / name).is_dir():
            raise UserError(f"{root} has no {name}/ folder; wanted {layout}")
    found = {name: _class_files(root / name) for name in ("train", "val", "test") if (root / name).is_dir()}
    first = next(iter(found))
    classes = tuple(found[first])
    for name, part in found.items():
        odd = [f"{c} only in {first if c in classes else name}/" for c in sorted(set(part) ^ set(classes))]
        if odd:
            raise UserError(f"the classes of {first}/ and {name}/ in {root} differ: {', '.join(odd)}")
    if len(classes) < 2:
        raise UserError(f"{root / first} needs a folder for each of two or more classes; got {list(classes)}")

    def read():
        splits = {}
        for name, part in found.items():
            labels = np.repeat(np.arange(len(part)), [len(files) for files in part.values()])
            splits[name] = [file.path for files in part.values() for file in files], labels
        return classes, splits

    entries = ((f"{name}/{label}/", e) for name, part in found.items() for label, files in part.items() for e in files)
    return Source(root.name or "images", str(root), root, stamp_of(entries), read)


def _class_files(folder: Path) -> dict[str, list[os.DirEntry]]:
    """The image files of each class folder, both sorted by name. Hidden and other files are passed over."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    classes = {name: [e for e in list_files(folder / name) if e.name.lower().endswith(IMAGE_FILES)] for name in names}
    for name, files in classes.items():
        if not files:
            raise UserError(f"no images in {folder / name} (looked for {' '.join(IMAGE_FILES)})")
    return classes


def image_files(folder: str | Path) -> list[str]:
    """The image files in a folder and those below it, folder by folder, by name. What is hidden is passed over.

    Raises UserError where there are none.
    """
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in names if name.lower().endswith(IMAGE_FILES) and not name.startswith("."))
        found += [os.path.join(where, name) for name in names]
    if not found:
        raise UserError(f"no images in {folder} (looked for {' '.join(IMAGE_FILES)})")
    return found


def list_files(folder: Path) -> list[os.DirEntry]:
    """The regular files in a folder, by name. What is hidden is passed over; so are pipes and such, which is said."""
    with os.scandir(folder) as entries:
        seen = sorted((e for e in entries if not e.name.startswith(".") and not e.is_dir()), key=lambda e: e.name)
    files = [entry for entry in seen if entry.is_file()]
    for entry in seen:
        if entry not in files:
            print(f"warning: {printable(entry.path)} is passed over: it is no regular file", file=sys.stderr)
    return files


def stamp_of(entries: Iterable[tuple[str, os.DirEntry]]) -> str:
    """A digest of names, sizes and times of change."""
    digest = hashlib.sha256()
    for prefix, entry in entries:
        status = entry.stat()
        digest.update(os.fsencode(f"{prefix}{entry.name} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()
