"""Pictures and annotations damaged in bytes: pixels and points, or one line; never a traceback, and little memory.

The same draws in every run: 150 pictures and 100 annotations here, ten times as many with `-m slow`.
"""

import io
import json
import os
import resource
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import mark
from PIL import Image

from resnet_min.data import decode
from resnet_min.errors import UserError
from resnet_min.tasks.crowd import annotations, reader

MEGABYTES = 250  # that all of them together may add to this process: a picture may say that it is 67 million pixels
KINDS = [
    ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "I;16", {}), ("PNG", "1", {}),
    ("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {}), ("BMP", "RGB", {}),
    ("GIF", "P", {}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "RGB", {"compression": "jpeg"}), ("PPM", "RGB", {}),
]  # fmt: skip


def damaged(content, rng):
    bits = np.frombuffer(content, np.uint8).copy()
    kind, at = rng.integers(5), int(rng.integers(len(bits)))
    if kind < 2:  # most of what a picture says of itself is at its beginning
        places = rng.integers(0, len(bits) if kind else min(80, len(bits)), 1 + int(rng.exponential(2)))
        bits[places] ^= 1 << rng.integers(8, size=len(places), dtype=np.uint8)
    elif kind == 2:
        bits = bits[:at]
    elif kind == 3:
        bits[at : at + 16] = rng.choice([0, 255])
    else:
        bits = np.delete(bits, slice(at, at + int(rng.integers(1, 64))))
    return bits.tobytes()


def pictures(rng):
    noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    for kind, mode, options in KINDS:
        buffer = io.BytesIO()
        picture = noise.convert("L").convert("I").convert("I;16") if mode == "I;16" else noise.convert(mode)
        picture.save(buffer, kind, **options)
        yield buffer.getvalue()


def line_of(error, path):
    message = " ".join(str(error).split())
    assert str(path) in message and len(message) < 2000


@pytest.mark.parametrize("count", [150, pytest.param(1500, marks=pytest.mark.slow)])
def test_damaged_pictures(tmp_path, count):
    rng, path = np.random.default_rng(count), tmp_path / "x.png"
    images = list(pictures(rng))
    before, read, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0
    for number in range(count):
        signal.alarm(600)
        path.write_bytes(damaged(images[rng.integers(len(images))], rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of metadata
            try:
                pixels = decode.pixels(str(path), [None, 16][number % 2])
                assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
                read += 1
            except UserError as error:
                line_of(error, path)
                refused += 1
    signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"{count} pictures: {refused} refused, {read} read; {grown} MB more")
    assert min(read, refused) > count // 10 and grown < MEGABYTES


def annotation(path, heads=2):
    mark(path, np.ones((heads, 2)))
    return path.read_bytes()


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_annotations(tmp_path, count):
    """They are read a hundred at a time, as those of a part are: one that crashes the reader does not stop the rest."""
    rng = np.random.default_rng(count)
    whole = [annotation(tmp_path / "x.mat", heads) for heads in (0, 1, 40)]
    files = [tmp_path / f"{number}.mat" for number in range(count)]
    for file in files:
        file.write_bytes(damaged(whole[rng.integers(len(whole))], rng))
    signal.alarm(1200)
    answers = [answer for at in range(0, count, 100) for answer in reader.read_annotations(files[at : at + 100])]
    signal.alarm(0)
    assert len(answers) == count
    refused = [answer for answer in answers if isinstance(answer, str)]
    for points in (answer for answer in answers if not isinstance(answer, str)):
        assert points.dtype == np.float64 and points.ndim == 2 and points.shape[1] == 2
    crashes = sum("came to its end" in answer for answer in refused)
    print(f"{count} annotations: {len(refused)} refused, {crashes} of them by a crash")
    assert count // 10 < len(refused) < count * 9 // 10


# Bytes of an annotation of two heads, and what is said where one is changed.
HOSTILE = {
    "points of no known type, which crash SciPy 1.17": ({328: 8}, "."),
    "two thousand million structures": ({227: 0x40}, "MemoryError"),
    "as many cells": ({163: 0x40}, "MemoryError"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_annotations(tmp_path, kind):
    changes, said = HOSTILE[kind]
    content = bytearray(annotation(tmp_path / "x.mat"))
    for at, byte in changes.items():
        content[at] = byte
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read the annotation .*x.mat: .*{said}"):
        reader.read_points(tmp_path / "x.mat", (24, 32))


def test_annotations_around_a_hostile_one(tmp_path):
    files = [tmp_path / f"{number}.mat" for number in range(5)]
    for file, heads in zip(files, (1, 0, 2, 3, 2), strict=True):
        annotation(file, heads)
    for file in files[2], files[4]:
        file.write_bytes(bytes(8 if at == 328 else byte for at, byte in enumerate(file.read_bytes())))
    answers = list(reader.read_annotations(files))
    assert [isinstance(answer, str) or len(answer) for answer in answers] == [1, 0, True, 3, True]


def test_an_annotation_that_takes_too_long(tmp_path, monkeypatch):
    """In the reader's process: what waits for another to write."""
    source = Path(reader.__file__).with_name("annotations.py").read_text()
    (tmp_path / "annotations.py").write_text(source.replace("MOST_SECONDS = 20", "MOST_SECONDS = 1"))
    monkeypatch.setattr(reader, "__file__", str(tmp_path / "reader.py"))
    os.mkfifo(tmp_path / "x.mat")
    with pytest.raises(UserError, match="x.mat: SciPy's reader came to its end: Alarm clock"):
        reader.read_points(tmp_path / "x.mat", (24, 32))


def test_too_many_heads(tmp_path):
    annotation(tmp_path / "x.mat", 100_001)
    with pytest.raises(UserError, match="x.mat: ValueError: it has 100,001 heads, more than 100,000"):
        reader.read_points(tmp_path / "x.mat", (24, 32))


def test_a_line_of_json_for_each_annotation(tmp_path, monkeypatch, capsys):
    """What the process answers, asked in this one, which keeps its own limits."""
    mark(tmp_path / "a.mat", [[1, 2], [3, 4]])
    mark(tmp_path / "b.mat", [[1, 2]] * 3)
    files = [str(tmp_path / name) for name in ("a.mat", "none.mat", "b.mat")]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(files)))
    monkeypatch.setattr(annotations, "MOST_HEADS", 2)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(signal, "alarm", lambda seconds: None)
    annotations.main()
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == [[1, 2], [3, 4]]
    assert second.startswith("FileNotFoundError") and third == "ValueError: it has 3 heads, more than 2"
