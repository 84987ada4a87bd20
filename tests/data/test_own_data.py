"""Data of one's own: tables, SVHN's files, and a limit that spares the rest."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import train
from resnet_min import data
from resnet_min.data import decode, sources
from resnet_min.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def table(text, count=20):
    """A CSV beside images/0.png, …: grey of that value."""
    Path("own/images").mkdir(parents=True, exist_ok=True)
    for value in range(count):
        Image.new("RGB", (32, 32), (value,) * 3).save(f"own/images/{value}.png")
    Path("own/table.csv").write_text(text, encoding="utf-8-sig")
    return "own/table.csv"


def test_a_table_with_splits():
    rows = ["images/3.png,bee,train", "images/1.png,ant,train", "images/2.png,ant,test", 'images/4.png,"bee",val']
    found = data.load(table("path,label,split\n" + "\n".join(rows)))
    assert (
        found.classes == ("ant", "bee")
        and found.name == "table"
        and found.source == str(Path("own/table.csv").resolve())
    )
    shown = {name: (part.images[:, 0, 0, 0].tolist(), part.labels.tolist()) for name, part in found.splits.items()}
    assert shown == {"train": ([3, 1], [1, 0]), "val": ([4], [1]), "test": ([2], [0])}
    before = sources.find("own/table.csv", Path("data")).stamp
    os.utime("own/images/1.png", (1, 1))
    assert sources.find("own/table.csv", Path("data")).stamp != before  # so that its cache is an old one
    Image.new("RGB", (32, 32), (6,) * 3).save("own/images/3.png")
    assert data.load("own/table.csv").train.images[:, 0, 0, 0].tolist() == [6, 1]


def test_a_table_without_splits_holds_a_fifth_of_each_class_out():
    rows = [f"images/{number}.png,{'ab'[number % 2]}" for number in range(20)]
    first, again = (data.load(table("path,label\n" + "\n".join(rows))) for _ in range(2))
    assert np.bincount(first.test.labels).tolist() == [2, 2] and len(first.train) == 16
    assert (first.test.images == again.test.images).all()
    seen = [*first.train.images[:, 0, 0, 0].tolist(), *first.test.images[:, 0, 0, 0].tolist()]
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs a first line with path,label"),
        ("file,label\na,b\n", "needs a first line with path,label"),
        ("path,label,split\nimages/1.png,a,train\nimages/99.png,b,test\n", "line 3: there is no file"),
        ("path,label,split\nimages/1.png,a,training\n", "line 2: wanted a path, a label, and as split"),
        ("path,label,split\nimages/1.png,,train\n", "line 2: wanted a path"),
        ("path,label\nimages/1.png,a\nimages/2.png,b,c\n", "line 3: more fields than columns; a name with a comma"),
        ("path,label,split\nimages/1.png,a,train\nimages/2.png,b,train\n", "no image whose split is test"),
        ("path,label,split\nimages/1.png,a,train\nimages/2.png,a,test\n", "two or more labels"),
        ("path,label\nimages/1.png,a\nimages/2.png,b\n", "no column split, and too few images"),
        ('path,label\n"images/1.png,a', "cannot read the table"),
    ],
)
def test_a_bad_table(text, said):
    with pytest.raises(UserError, match=said):
        data.load(table(text))


def test_gif_and_tiff_are_among_a_folders_images():
    frames = [Image.new("L", (32, 32), value) for value in (10, 200)]
    for folder in (Path("own", split, name) for split in ("train", "test") for name in "ab"):
        folder.mkdir(parents=True)
        frames[0].save(folder / "1.gif", save_all=True, append_images=frames[1:])  # the first frame counts
        frames[0].save(folder / "2.tif"), frames[0].save(folder / "3.TIFF")
    assert data.load("own").train.images[:, 0, 0, 0].tolist() == [10] * 6


def test_svhn():
    with pytest.raises(UserError, match="svhn is not in data: put train_32x32.mat and test_32x32.mat there"):
        data.load("svhn")
    Path("data").mkdir()
    for name, labels in (("train", [10, 1, 2]), ("test", [9, 10])):
        pixels = np.arange(len(labels), dtype=np.uint8) + np.zeros((32, 32, 3, 1), np.uint8)
        savemat(f"data/{name}_32x32.mat", {"X": pixels, "y": np.array(labels, np.uint8)[:, None]})
    found = data.load("svhn")
    assert found.train.labels.tolist() == [0, 1, 2] and found.test.labels.tolist() == [9, 0]
    assert found.train.images[:, 5, 7, 1].tolist() == [0, 1, 2] and found.source == "svhn"
    Path("data/train_32x32.mat").write_bytes(b"none")
    with pytest.raises(UserError, match="cannot read data/train_32x32.mat"):
        data.load("svhn")


def test_a_limit_decodes_no_more_than_it_uses(folder, monkeypatch, capsys):
    seen, pixels = [], decode.pixels
    monkeypatch.setattr(decode, "pixels", lambda item, size: seen.append(item) or pixels(item, size))
    flags = ["--data", folder, "-a", "resnet20", "-b", "2", "--limit", "4", "--dry-run"]
    flags += ["--mean", *["0.5"] * 3, "--std", *["0.2"] * 3]
    train.main(flags)
    assert len(seen) == 4 + min(4, len(list(Path(folder, "test").glob("*/*")))) and not list(Path(folder).glob(".r*"))
    few = data.load(folder, limit=4, normalised=True)
    whole = data.load(folder, limit=4)  # for its mean and std it takes all, and keeps them
    assert (few.train.images == whole.train.images).all() and (few.train.labels == whole.train.labels).all()
    seen.clear()
    assert (data.load(folder, limit=4, normalised=True).test.images == whole.test.images).all() and not seen
