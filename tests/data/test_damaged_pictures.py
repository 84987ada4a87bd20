"""Pictures and annotations damaged in bytes: pixels and points, or one line; never a traceback, and little memory.

The same draws in every run: 200 here, 2,000 with `-m slow`.
"""

import io
import resource
import signal
import warnings

import numpy as np
import pytest
from helpers import mark
from PIL import Image

from resnet_min.data import decode
from resnet_min.errors import UserError
from resnet_min.tasks.crowd import reader

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


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_pictures_and_annotations(tmp_path, count):
    rng = np.random.default_rng(count)
    for heads in (0, 1, 40):
        mark(tmp_path / f"{heads}.mat", rng.uniform(0, 24, (heads, 2)))
    marks = [(tmp_path / f"{heads}.mat").read_bytes() for heads in (0, 1, 40)]
    images = list(pictures(rng))
    before, read, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0
    for number in range(count):
        signal.alarm(600)
        annotation = number % 4 == 0
        path = tmp_path / ("x.mat" if annotation else "x.png")
        source = marks if annotation else images
        path.write_bytes(damaged(source[rng.integers(len(source))], rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's and scipy's, of metadata
            try:
                if annotation:
                    points = reader.read_points(path, (24, 32))
                    assert points.dtype == np.float32 and points.shape[1:] == (2,) and np.isfinite(points).all()
                else:
                    pixels = decode.pixels(str(path), [None, 16][number % 2])
                    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
                read += 1
            except UserError as error:
                line_of(error, path)
                refused += 1
    signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"{count} pictures and annotations: {refused} refused, {read} read; {grown} MB more")
    assert min(read, refused) > count // 10 and grown < MEGABYTES
