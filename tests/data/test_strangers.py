"""Data that others wrote: what is no regular file, pictures that are not what they say, caches, odd names."""

import importlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_part
from PIL import Image

import train
from resnet_min import data
from resnet_min.data import cache, decode
from resnet_min.errors import UserError, run_script
from resnet_min.tasks.crowd import reader

ROOT = Path(__file__).parents[2]
evaluate, visualize = map(importlib.import_module, ("eval", "visualize"))
COLOURS = {"blue": (60, 60, 200), "red": (200, 60, 60)}
TINY = ["-a", "resnet20", "--blocks", "1", "--widths", "4", "--epochs", "1", "-b", "4", "--schedule", "constant"]


@pytest.fixture(autouse=True)
def limits(tmp_path, monkeypatch):
    """A working directory, a home of its own, and ten minutes: what waits for a pipe fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    signal.alarm(600)
    yield
    signal.alarm(0)


def make_folder(root, classes=("blue", "red")):
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            folder = os.path.join(os.fsencode(root), os.fsencode(split), os.fsencode(name))
            os.makedirs(folder)
            for picture in range(4):
                colour = (50 * number, 40 * picture, 200)
                Image.new("RGB", (8, 8), colour).save(os.path.join(folder, b"%d.png" % picture))
    return Path(root)


def test_what_is_no_regular_file_is_passed_over_and_said(capsys):
    root = make_folder("images")
    wanted = data.load(root, cache_dir="a").train.images
    os.mkfifo(root / "train" / "red" / "x.png")
    os.symlink("/dev/zero", root / "train" / "red" / "y.png")
    os.symlink("nowhere", root / "train" / "red" / "z.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("images/train/red/s.png")
    capsys.readouterr()
    assert torch.equal(data.load(root, cache_dir="a").train.images, wanted)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[-1] for line in lines] == [f"{n}.png is passed over: it is no regular file" for n in "sxyz"]


def test_pipes_among_a_crowds_images(capsys):
    part = make_part(Path("part"), train=3, test=1)
    os.mkfifo("part/train_data/images/IMG_9.jpg")
    os.mkfifo("part/train_data/ground-truth/GT_IMG_9.mat")
    assert len(reader.load(part).train) == 3
    assert capsys.readouterr().err.count("is passed over: it is no regular file") == 2


def bomb(path, side=9000, kind="P"):
    """A picture of few bytes that becomes side² pixels."""
    Image.new(kind, (side, side)).save(path)
    assert os.path.getsize(path) < 2**20
    return path


def test_images_that_are_none_are_named_and_the_others_answered(capsys, recwarn):
    """A pipe, a socket, a device, PostScript, a bomb: each one line; the picture beside them has its answer."""
    make_folder("images")
    train.main(["--data", "images", *TINY, "--out", "run"])
    Path("new").mkdir()
    os.mkfifo("new/a.png")
    os.symlink("/dev/zero", "new/b.png")
    Path("new/c.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n")
    bomb("new/d.png")
    Path("new/e.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    Image.new("RGB", (40, 30), COLOURS["red"]).save("new/f.png")
    capsys.readouterr()
    evaluate.main(["run", "--images", "new"])
    text = capsys.readouterr()
    assert "new/f.png: predicted " in text.out and "1 answered, 5 skipped" in text.out
    said = [line.split("skipped: cannot read the image new/")[1] for line in text.err.splitlines()]
    assert said[0] == "a.png: it is no regular file" and said[1] == "b.png: it is no regular file"
    assert said[2].startswith("c.png: cannot identify image file")  # not what Ghostscript says
    assert said[3] == "d.png: 9000x9000 are more than 67,108,864 pixels"
    assert said[4].startswith("e.png: cannot identify") and len(said) == 5
    with pytest.raises(UserError, match="more than 67,108,864 pixels"):
        visualize.main(["run", "--image", "new/d.png"])
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "ppm", "gif", "tiff", "mpo.jpg"])
def test_formats_that_are_read(ending):
    picture = Image.new("RGB", (9, 7), (200, 60, 60))
    if ending == "mpo.jpg":  # as some telephones write theirs: two pictures in a JPEG file
        picture.save("x.mpo", save_all=True, append_images=[picture])
        os.rename("x.mpo", "x.mpo.jpg")
    else:
        picture.save(f"x.{ending}")
    assert np.abs(decode.pixels(f"x.{ending}", None).astype(int) - (200, 60, 60)).max() < 5


def test_images_larger_than_the_memory(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}[name])
    assert len(data.load(make_folder("images"), image_size=64).train) == 8
    with pytest.raises(UserError, match="8 images at 200x200 take 960,000 bytes; this machine has 409,600"):
        data.load("images", image_size=200)


ODD = ("caf\udce9", "\x1b[31mred", "two\nlines", "$x_1$", "猫")  # the first is Latin-1, as old archives have it


def test_class_names_that_are_no_text(capfd):
    """Training, evaluation with every picture, prediction and pictures, each printing names that no terminal takes."""
    make_folder("images", ODD)
    Image.new("RGB", (9, 9)).save("a.png")
    commands = [
        (train, ["--data", "images", *TINY, "--out", "run", "--dry-run"]),
        (train, ["--data", "images", *TINY, "--out", "run"]),
        (evaluate, ["run", "--confusion", "--roc", "--worst", "9", "--json", "f.json"]),
        (evaluate, ["run", "--images", "a.png"]),
        (visualize, ["run", "--image", "a.png"]),
        (visualize, ["run", "--layer", "layer1", "--what", "gradcam", "--class", ODD[0]]),
    ]
    for script, arguments in commands:
        run_script(lambda script=script, arguments=arguments: script.main(arguments))
    text = capfd.readouterr()
    assert "\x1b" not in text.out + text.err and r"\x1b[31mred" in text.out and r"caf\udce9" in text.out
    with pytest.raises(SystemExit):  # a name that is printed in an error
        run_script(lambda: visualize.main(["run", "--layer", "layer1", "--what", "gradcam", "--class", "\x1b[2J"]))
    error = capfd.readouterr().err
    assert error.startswith(r"error: --class \x1b[2J") and error.count("\n") == 1 and "\x1b" not in error


def test_a_terminal_of_another_encoding():
    make_folder("images", ODD)
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--data", "images", *TINY, "--dry-run"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0 and rb"caf\udce9 4" in done.stdout and done.stderr == b""


def changed(**entries):
    """A change of a cache's training split."""
    return lambda content: content["splits"]["train"].update(
        {k: f(content["splits"]["train"]) for k, f in entries.items()}
    )


CHANGES = {
    "dtype": changed(images=lambda part: part["images"].float()),
    "size": changed(images=lambda part: part["images"][:, :4]),
    "fewer": changed(images=lambda part: part["images"][:3]),
    "none": lambda content: content["splits"].update(train={k: v[:0] for k, v in content["splits"]["train"].items()}),
    "label": changed(labels=lambda part: part["labels"] + 1),
    "negative label": changed(labels=lambda part: part["labels"] - 1),
    "labels' dtype": changed(labels=lambda part: part["labels"].double()),
    "sums": changed(sums=lambda part: part["sums"] + 2**40),
    "negative sums": changed(sums=lambda part: -1 - part["sums"]),
    "sums' shape": changed(sums=lambda part: part["sums"][:, :, :2]),
    "classes": lambda content: content.update(classes=[1, 2]),
    "no classes": lambda content: content.update(classes="ab"),
    "no test": lambda content: content["splits"].pop("test"),
    "a list": changed(images=lambda part: list(part["images"])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_of_other_content_is_made_anew(change):
    root = make_folder("images")
    wanted = data.load(root)
    (file,) = (root / ".resnet_min_cache").iterdir()
    before = file.read_bytes()
    content = torch.load(file)
    CHANGES[change](content)
    torch.save(content, file)
    got = data.load(root)
    assert torch.equal(got.train.images, wanted.train.images) and got.train.labels.equal(wanted.train.labels)
    assert got.mean == wanted.mean and got.classes == wanted.classes and file.read_bytes() == before


POINTS = {
    "outside": lambda part: part["labels"][0].add_(1000),
    "negative": lambda part: part["labels"][0].sub_(1000),
    "not numbers": lambda part: part["labels"][0].fill_(float("nan")),
    "points' dtype": lambda part: part["labels"].__setitem__(0, part["labels"][0].double()),
    "points' shape": lambda part: part["labels"].__setitem__(0, torch.zeros(2, 3)),
    "grey": lambda part: part["images"].__setitem__(0, part["images"][0][..., :1]),
    "float": lambda part: part["images"].__setitem__(0, part["images"][0].float()),
    "fewer": lambda part: part["images"].pop(),
    "sums": lambda part: part["sums"].mul_(1000),
    "names": lambda part: part["names"].__setitem__(0, 3),
}


@pytest.mark.parametrize("change", POINTS)
def test_a_crowds_cache_of_other_content_is_made_anew(change):
    part = make_part(Path("part"), train=3, test=1, kind="png")
    wanted = reader.load(part)
    (file,) = (part / ".resnet_min_cache").iterdir()
    content = torch.load(file)
    POINTS[change](content["splits"]["train"])
    torch.save(content, file)
    got = reader.load(part)
    assert all(torch.equal(a, b) for a, b in zip(got.train.images, wanted.train.images, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(got.train.points, wanted.train.points, strict=True))
    assert got.mean == wanted.mean and got.train.names == wanted.train.names


@pytest.mark.parametrize("mode", [0o777, 0o775])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_cache_that_others_may_write_is_not_used(what, mode, capsys, monkeypatch):
    root = make_folder("images")
    data.load(root, cache_dir="cache")
    (file,) = Path("cache").iterdir()
    shared = Path("cache") if what == "folder" else file
    os.chmod(shared, mode)
    before = file.stat().st_mtime_ns, file.stat().st_ino
    calls = []
    monkeypatch.setattr(cache, "_read_cache", lambda *given: calls.append(given))
    assert len(data.load(root, cache_dir="cache").train) == 8
    said = f"warning: the cache {shared} is not used, because others may write to it\n"
    assert capsys.readouterr().err == said and not calls
    if what == "folder":
        assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    else:  # replaced by one of ours
        assert file.stat().st_mode & 0o022 == 0


def test_a_default_cache_that_others_may_write_gives_way_to_the_users(capsys):
    root = make_folder("images")
    (root / ".resnet_min_cache").mkdir()
    os.chmod(root / ".resnet_min_cache", 0o777)
    data.load(root)
    assert len(list(Path("home/.cache/resnet_min").iterdir())) == 1 and not list((root / ".resnet_min_cache").iterdir())
    assert Path("home/.cache/resnet_min").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("owner", "shared"), [(0, False), (12345, False), (1, True)])
def test_a_cache_belongs_to_its_user_or_to_root(owner, shared, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(Path, "stat", lambda path: SimpleNamespace(st_uid=owner, st_mode=0o100644))
    assert cache._is_shared(Path("x")) == shared


def test_a_new_cache_is_its_users_alone():
    data.load(make_folder("images"), cache_dir="new/cache")
    assert Path("new/cache").stat().st_mode & 0o777 == 0o700


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_no_code_in_a_cache_is_run():
    root = make_folder("images")
    data.load(root)
    (file,) = (root / ".resnet_min_cache").iterdir()
    torch.save({**torch.load(file), "more": Trap()}, file)
    assert len(data.load(root).train) == 8 and not Path("touched").exists()


@pytest.fixture
def gigabyte():
    """An annotation that inflates to a gigabyte: x.mat."""
    matrix = struct.pack("<8I", 14, 2**30 + 64, 6, 8, 6, 0, 5, 8) + struct.pack("<2I", 2**26, 2)
    matrix += struct.pack("<2I16s", 1, 10, b"image_info") + struct.pack("<2I", 9, 2**30)
    squeeze = zlib.compressobj(9)
    inner, zeros = (squeeze.compress(part) + squeeze.flush(zlib.Z_FULL_FLUSH) for part in (matrix, bytes(2**20)))
    inner += zeros * 1024
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"
    Path("x.mat").write_bytes(header + struct.pack("<2I", 15, len(inner)) + inner)
    assert os.path.getsize("x.mat") < 1_200_000


def test_an_annotation_that_inflates_to_a_gigabyte(gigabyte):
    with pytest.raises(UserError, match="cannot read the annotation x.mat: MemoryError"):
        reader.read_points("x.mat", (10, 10))


def test_it_is_refused_where_a_process_may_have_more(gigabyte):
    limit = (2**33, 2**33)
    command = [sys.executable, "-c", "from resnet_min.tasks.crowd import annotations; annotations.main()"]
    done = subprocess.run(
        command, input='["x.mat"]', capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
    )  # fmt: skip
    assert done.stdout.startswith('"MemoryError')
