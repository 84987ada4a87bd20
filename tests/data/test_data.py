import contextlib
import hashlib
import http.server
import io
import os
import pickle
import resource
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet_min import data
from resnet_min.data import download, sources, splits
from resnet_min.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """No test touches the real user's cache, or goes through a proxy to a server of its own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("no_proxy", "*")
    return home


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_folder(root, counts=None, size=32):
    """An image folder of noise, exact (PNG). counts: split → images of each class. Returns the pixels by path."""
    pixels = {}
    for split, classes in (counts or {"train": {"ant": 3, "bee": 2}, "test": {"ant": 1, "bee": 2}}).items():
        for label, count in classes.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                path = folder / f"{i:03}.png"
                pixels[path] = noise(size, size, 3, seed=len(pixels))
                Image.fromarray(pixels[path]).save(path)
    return pixels


def caches(folder):
    return sorted(p.name for p in folder.rglob("*.pt*"))


@contextlib.contextmanager
def nothing_decoded(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(splits, "decode", lambda *_: pytest.fail("decoded again"))
        yield


def assert_same(a, b):
    assert (a.name, a.source, a.classes, a.mean, a.std) == (b.name, b.source, b.classes, b.mean, b.std)
    for x, y in ((a.train, b.train), (a.val, b.val), (a.test, b.test)):
        assert (x is None) == (y is None)
        assert x is None or (x.images.equal(y.images) and x.labels.equal(y.labels))


# ---- digits ----


def test_digits():
    digits = data.load("digits")
    assert (digits.name, digits.source, digits.classes, digits.val) == ("digits", "digits", tuple("0123456789"), None)
    assert (len(digits.train), len(digits.test)) == (1437, 360) and list(digits.splits) == ["train", "test"]
    for split in (digits.train, digits.test):
        assert split.images.shape == (len(split), 32, 32, 3) and split.images.dtype == torch.uint8
        assert split.labels.shape == (len(split),) and split.labels.dtype == torch.int64
        assert split.images[..., 0].equal(split.images[..., 2])  # grey
        share = split.labels.bincount() / len(split)
        assert share.min() > 0.09 and share.max() < 0.11
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255
    assert_same(digits, data.load("digits", seed=5))
    seen = {image.numpy().tobytes() for image in digits.train.images}
    assert not any(image.numpy().tobytes() in seen for image in digits.test.images)


def test_digits_are_the_right_way_round():
    """Shrunk back by averaging, each is close to scikit-learn's."""
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    images = torch.cat([digits.train.images, digits.test.images])[..., 0].double()
    small = torch.nn.functional.avg_pool2d(images[:, None], 4).flatten(1)
    ours = torch.cat([small, torch.cat([digits.train.labels, digits.test.labels])[:, None] * 1e3], 1)
    pictures, labels = load_digits(return_X_y=True)
    theirs = torch.cat([torch.from_numpy(pictures) * 255 / 16, torch.from_numpy(labels)[:, None] * 1e3], 1)
    nearest = torch.cdist(ours, theirs).min(1)
    assert nearest.indices.unique().numel() > 1780  # some are near twins


# ---- image folders ----


def test_folder(tmp_path, monkeypatch):
    pixels = make_folder(tmp_path / "my set")
    for name in ("train/ant/notes.txt", "train/bee/._000.png", "train/.ipynb_checkpoints/x.png", "train/stray.png"):
        (tmp_path / "my set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "my set" / name).write_text("not an image")
    monkeypatch.chdir(tmp_path)
    got = data.load("my set")
    assert (got.name, got.source, got.classes) == ("my set", str(tmp_path / "my set"), ("ant", "bee"))
    assert got.val is None
    assert got.train.labels.tolist() == [0, 0, 0, 1, 1] and got.test.labels.tolist() == [0, 1, 1]
    expected = np.stack([p for path, p in sorted(pixels.items()) if "train" in path.parts])
    assert np.array_equal(got.train.images, expected)
    flat = expected.reshape(-1, 3).astype(np.float64) / 255
    np.testing.assert_allclose(got.mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.std, flat.std(0), rtol=1e-12)
    assert_same(got, data.load(got.source, cache_dir=tmp_path / "elsewhere"))


def test_files_are_in_order_of_name_and_any_case_of_ending(tmp_path):
    make_folder(tmp_path)
    for i, name in enumerate(("b.PNG", "a.png", "c.Png")):
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / "train" / "bee" / name)
    assert data.load(tmp_path).train.images[5:, 0, 0, 0].tolist() == [1, 0, 2]


@pytest.mark.parametrize("size", [(96, 32), (192, 64), (48, 16), (300, 100)])
@pytest.mark.parametrize("upright", [False, True])
def test_other_shapes_keep_the_middle(tmp_path, size, upright):
    """Three bands, red, green and blue: the middle one is kept."""
    make_folder(tmp_path)
    bands = Image.fromarray(np.diag([255] * 3).astype(np.uint8)[None]).resize(size, Image.Resampling.NEAREST)
    (bands.transpose(Image.Transpose.ROTATE_90) if upright else bands).save(tmp_path / "train/ant/000.png")
    image = data.load(tmp_path).train.images[0, 4:-4, 4:-4].float()
    assert image.mean((0, 1)).tolist() == pytest.approx([0, 255, 0], abs=2)


def test_image_size(tmp_path):
    """As torchvision's Resize and CenterCrop, but for rounding."""
    from torchvision.transforms import v2

    make_folder(tmp_path)
    picture = Image.fromarray(noise(6, 9, 3)).resize((90, 60), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "train/ant/000.png")
    got = data.load(tmp_path, image_size=20)
    assert got.train.images.shape == (5, 20, 20, 3) and got.test.images.shape == (3, 20, 20, 3)
    expected = np.asarray(v2.CenterCrop(20)(v2.Resize(20)(picture)))
    assert np.abs(got.train.images[0].numpy().astype(int) - expected).max() <= 1
    with pytest.raises(UserError, match="--image-size must be at least 1; got 0"):
        data.load(tmp_path, image_size=0)


GREY16 = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("grey.png", Image.new("L", (32, 32), 77), (77, 77, 77)),
        ("grey.jpg", Image.new("L", (32, 32), 77), (77, 77, 77)),
        ("bits.png", Image.new("1", (32, 32), 1), (255, 255, 255)),
        ("palette.png", Image.new("RGB", (32, 32), (10, 20, 30)).quantize(4), (10, 20, 30)),
        ("alpha.png", Image.new("RGBA", (32, 32), (10, 20, 30, 0)), (10, 20, 30)),
        ("grey alpha.png", Image.new("LA", (32, 32), (50, 9)), (50, 50, 50)),
        ("colour.JPEG", Image.new("RGB", (32, 32), (200, 100, 50)), (200, 100, 50)),
        ("cmyk.jpg", Image.new("CMYK", (32, 32), (255, 0, 0, 0)), (0, 255, 255)),
        ("a.bmp", Image.new("RGB", (32, 32), (10, 20, 30)), (10, 20, 30)),
        ("a.webp", Image.new("RGB", (32, 32), (128, 128, 128)), (128, 128, 128)),
        ("a.ppm", Image.new("RGB", (32, 32), (10, 20, 30)), (10, 20, 30)),
        ("grey16.png", Image.fromarray(GREY16), np.repeat((GREY16 / 257).round()[..., None], 3, 2)),
        ("grey16.ppm", Image.fromarray(GREY16.astype(np.int32)), np.repeat((GREY16 / 257).round()[..., None], 3, 2)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_kinds_of_images(tmp_path, name, picture, expected, recwarn):
    make_folder(tmp_path)
    picture.save(tmp_path / "train" / "ant" / f"zz{name}")
    got = data.load(tmp_path).train.images[3].numpy().astype(float)
    assert np.abs(got - expected).max() <= (3 if name.lower().endswith(("jpg", "jpeg", "webp")) else 0)
    assert not recwarn.list


def test_transparent_palette(tmp_path, recwarn):
    make_folder(tmp_path)
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "train/ant/zz.png", transparency=b"\xff\x80")
    assert data.load(tmp_path).train.images[3].unique(dim=0).unique(dim=1).tolist() == [[[10, 20, 30]]]
    assert not recwarn.list


def test_cameras_orientation_is_followed(tmp_path):
    make_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16] = 255  # the left half, which comes to the top
    Image.fromarray(picture).save(tmp_path / "train/ant/000.png", exif=exif)
    image = data.load(tmp_path).train.images[0]
    assert image[:16].min() == 255 and image[16:].max() == 0


def spoil(edit):
    """A bad input: makes a good folder, then `edit`s it."""

    def make(root):
        make_folder(root)
        edit(root)
        return root

    return make


def remove(root, *names):
    for name in names:
        for path in sorted((root / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (root / name).rmdir()


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nowhere", "neither a folder nor one of auto, cifar10, cifar100, digits"),
        (lambda root: "cifar", "did you mean cifar10"),
        (lambda root: __file__, "is a file; wanted a folder"),
        (spoil(lambda root: remove(root, "train")), "has no train/"),
        (spoil(lambda root: remove(root, "test")), "has no test/"),
        (spoil(lambda root: remove(root, "train/ant", "test/ant")), r"two or more classes; got \['bee'\]"),
        (spoil(lambda root: remove(root, "train/ant", "train/bee", "test/ant", "test/bee")), r"two or more.* got \[\]"),
        (spoil(lambda root: remove(root, "test/ant")), "train/ and test/ .*differ: ant only in train/$"),
        (spoil(lambda root: (root / "test/ant").rename(root / "test/cat")), "ant only in train/, cat only in test/"),
        (spoil(lambda root: make_folder(root, {"val": {"ant": 1, "dog": 1}})), "train/ and val/ .*dog only in val/"),
        (spoil(lambda root: (root / "test/ant/000.png").unlink()), r"no images in .*test/ant .*\.webp"),
        (spoil(lambda root: (root / "train/bee/000.png").rename(root / "train/bee/0.pdf")), None),
        (spoil(lambda root: (root / "train/bee/001.png").write_text("hello")), "cannot read the image .*bee/001.png"),
        (spoil(lambda root: (root / "train/bee/001.png").write_bytes(b"")), "cannot read the image .*bee/001.png"),
        (spoil(lambda root: cut(root / "test/bee/001.png", 900)), "cannot read the image .*test/bee/001.png"),
    ],
)
def test_bad_folders(tmp_path, make, message):
    where = make(tmp_path / "images")
    if message is None:
        assert len(data.load(where).train) == 4
        return
    with pytest.raises(UserError, match=message) as error:
        data.load(where)
    assert "\n" not in str(error.value)
    assert not caches(tmp_path)


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "ppm"])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_truncated_images(tmp_path, ending, share):
    make_folder(tmp_path)
    path = tmp_path / "train" / "bee" / f"007.{ending}"
    Image.fromarray(noise(32, 32, 3)).save(path)
    cut(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match=f"cannot read the image .*bee/007.{ending}"):
        data.load(tmp_path)


# ---- validation ----


def test_validation_split_is_stratified_and_seeded(tmp_path):
    make_folder(tmp_path, {"train": {"a": 40, "b": 20, "c": 7}, "test": {"a": 1, "b": 1, "c": 1}}, size=8)
    whole, got, again = (data.load(tmp_path, image_size=8, val_size=n, seed=3) for n in (0, 20, 20))
    assert_same(got, again)
    assert got.val.labels.bincount().tolist() == [12, 6, 2]  # of 11.94, 5.97 and 2.09
    assert got.test.images.equal(whole.test.images)
    both = {image.numpy().tobytes() for split in (got.train, got.val) for image in split.images}
    assert both == {image.numpy().tobytes() for image in whole.train.images}
    assert len(got.train) + len(got.val) == len(whole.train) == 67
    flat = got.train.images.numpy().reshape(-1, 3) / 255.0
    np.testing.assert_allclose([got.mean, got.std], [flat.mean(0), flat.std(0)], rtol=1e-12)
    other = data.load(tmp_path, image_size=8, val_size=20, seed=4)
    assert not other.val.images.equal(got.val.images)
    data.load(tmp_path, image_size=8, val_size=20, seed=-1)


def test_a_limit_takes_images_from_all_over_a_split(tmp_path):
    make_folder(tmp_path, {"train": {"a": 30, "b": 10}, "test": {"a": 3, "b": 1}}, size=8)
    whole, few = (data.load(tmp_path, image_size=8, val_size=20, limit=n) for n in (None, 5))
    assert [len(few.train), len(few.val), len(few.test)] == [5, 5, 4]
    assert few.train.labels.tolist() == [0, 0, 0, 0, 1] and few.train.images[1].equal(whole.train.images[4])
    assert few.mean == whole.mean and few.std == whole.std


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.data())
def test_stratified_sizes(counts, draw):
    n = sum(counts)
    if n < 2:
        return
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    held = draw.draw(st.integers(1, n - 1))
    kept, out = splits.stratified(labels, held, seed=1)
    assert sorted([*kept, *out]) == list(range(n)) and len(out) == held
    assert (np.diff(kept) > 0).all() and (np.diff(out) > 0).all()
    sizes = np.bincount(labels[out], minlength=len(counts))
    assert (np.abs(sizes - np.array(counts) * held / n) < 1).all()


@pytest.mark.parametrize("val_size", [5, 6, -1])
def test_validation_that_leaves_nothing(tmp_path, val_size):
    make_folder(tmp_path)
    with pytest.raises(UserError, match="--val-size must leave some of the 5"):
        data.load(tmp_path, val_size=val_size)


def test_validation_of_one_image_or_all_but_one(tmp_path):
    make_folder(tmp_path)
    for val_size in (1, 4):
        got = data.load(tmp_path, val_size=val_size)
        assert (len(got.train), len(got.val)) == (5 - val_size, val_size)


def test_test_images_alone(tmp_path):
    make_folder(tmp_path, {"test": {"ant": 1, "bee": 2}})
    got = data.load(tmp_path, needed=("test",))
    assert got.train is got.val is got.mean is got.std is None and len(got.test) == 3
    with pytest.raises(UserError, match="has no train/ to hold 1 validation images out of"):
        data.load(tmp_path, val_size=1, needed=("test",))


def test_folder_with_validation(tmp_path):
    pixels = make_folder(tmp_path, {name: {"ant": 2, "bee": 1} for name in ("train", "val", "test")})
    got = data.load(tmp_path)
    assert np.array_equal(got.val.images[2], pixels[tmp_path / "val/bee/000.png"])
    assert got.val.labels.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="val/ of its own: drop --val-size"):
        data.load(tmp_path, val_size=1)


def test_constant_images_have_a_usable_deviation(tmp_path):
    for path in make_folder(tmp_path):
        Image.new("RGB", (32, 32), (0, 255, 7)).save(path)
    got = data.load(tmp_path)
    assert got.mean == (0, 1, 7 / 255) and got.std == (1, 1, 1)


# ---- the cache ----


def test_cache_is_used(tmp_path, monkeypatch, home):
    make_folder(tmp_path)
    first = data.load(tmp_path)
    assert len(caches(tmp_path / ".resnet_min_cache")) == 1 and not caches(home)
    with nothing_decoded(monkeypatch):
        assert_same(first, data.load(tmp_path))
        again = data.load(tmp_path)
    again.train.images.zero_()  # a private copy of the pages: not a crash, and not in the file
    assert_same(first, data.load(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cache_is_mapped(tmp_path):
    make_folder(tmp_path)
    data.load(tmp_path)
    kept = data.load(tmp_path)
    assert any(line.rstrip().endswith(caches(tmp_path)[0]) for line in open("/proc/self/maps")), kept


def change_times(root):
    path = root / "train/ant/000.png"
    content = path.read_bytes()
    time.sleep(0.02)
    path.write_bytes(content)


def change_size_only(root):
    path = root / "train/ant/000.png"
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        change_times,
        change_size_only,
        lambda root: Image.new("RGB", (32, 32)).save(root / "test/bee/001.png"),
        lambda root: Image.new("RGB", (32, 32)).save(root / "train/ant/zzz.png"),
        lambda root: (root / "train/ant/000.png").unlink(),
        lambda root: (root / "train/ant/000.png").rename(root / "train/ant/zzz.png"),
        lambda root: (root / "train/ant/000.png").rename(root / "train/bee/zzz.png"),
        lambda root: [(root / split / "ant").rename(root / split / "cow") for split in ("train", "test")],
    ],
)
def test_a_change_renews_the_cache(tmp_path, change, monkeypatch):
    make_folder(tmp_path)
    data.load(tmp_path)
    change(tmp_path)
    decoded = []
    real = splits.decode
    monkeypatch.setattr(splits, "decode", lambda *a: decoded.append(1) or real(*a))
    got = data.load(tmp_path)
    assert decoded
    assert_same(got, data.load(tmp_path, cache_dir=tmp_path / "elsewhere"))
    assert len(caches(tmp_path / ".resnet_min_cache")) == 1  # the old one is replaced


def test_each_size_has_its_cache(tmp_path, monkeypatch):
    make_folder(tmp_path)
    data.load(tmp_path), data.load(tmp_path, image_size=16)
    with nothing_decoded(monkeypatch):
        assert data.load(tmp_path).train.images.shape[1] == 32
        assert data.load(tmp_path, image_size=16).train.images.shape[1] == 16


def test_two_folders_of_one_name_share_a_cache_dir(tmp_path, monkeypatch):
    make_folder(tmp_path / "a" / "images")
    make_folder(tmp_path / "b" / "images", {"train": {"x": 1, "y": 2}, "test": {"x": 1, "y": 1}})
    for folder in "ab":
        data.load(tmp_path / folder / "images", cache_dir=tmp_path / "cache" / "deeper")
    assert not caches(tmp_path / "a")
    with nothing_decoded(monkeypatch):
        assert data.load(tmp_path / "a" / "images", cache_dir=tmp_path / "cache/deeper").classes == ("ant", "bee")
        assert data.load(tmp_path / "b" / "images", cache_dir=tmp_path / "cache/deeper").classes == ("x", "y")


def half(path):
    cut(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        half,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("hello"),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: torch.save({"stamp": "x"}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: path.write_bytes(pickle.dumps(print)),
        lambda path: [path.unlink(), path.mkdir()],
    ],
)
def test_a_damaged_cache_is_rebuilt(tmp_path, damage, home):
    make_folder(tmp_path)
    first = data.load(tmp_path)
    (file,) = (tmp_path / ".resnet_min_cache").iterdir()
    damage(file)
    assert_same(first, data.load(tmp_path))
    assert caches(tmp_path) == [file.name] and (file.is_file() or len(caches(home)) == 1)


def test_a_folder_that_cannot_be_written_uses_the_home_cache(tmp_path, home, monkeypatch, capsys):
    make_folder(tmp_path)
    (tmp_path / ".resnet_min_cache").write_text("a file where the folder would be: fails for root as well")
    first = data.load(tmp_path)
    assert len(caches(home / ".cache" / "resnet_min")) == 1
    with nothing_decoded(monkeypatch):
        assert_same(first, data.load(tmp_path))
    assert capsys.readouterr().err == ""


def test_without_any_cache_it_warns_and_works(tmp_path, home, capsys):
    make_folder(tmp_path)
    for blocked in (tmp_path / ".resnet_min_cache", home / ".cache"):
        blocked.write_text("")
    got = data.load(tmp_path)
    assert len(got.train) == 5
    err = capsys.readouterr().err
    assert err.startswith("warning: no writable cache for") and err.endswith(": Not a directory)\n")
    assert err.count("\n") == 1


def test_a_cache_dir_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    make_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with nothing_decoded(monkeypatch), pytest.raises(UserError, match="cannot write to --cache-dir .*file/cache"):
        data.load(tmp_path, cache_dir=tmp_path / "file" / "cache")


@contextlib.contextmanager
def disk_full_after(size):
    """Writing a file beyond `size` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk(tmp_path, home, size, monkeypatch):
    make_folder(tmp_path)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # which pytest keeps in a file
    with disk_full_after(size):
        got = data.load(tmp_path)
        with pytest.raises(UserError, match="cannot write to --cache-dir"):
            data.load(tmp_path, cache_dir=tmp_path / "chosen")
    assert sys.stderr.getvalue().startswith("warning: no writable cache for")
    assert len(got.train) == 5
    assert not caches(tmp_path) and not caches(home)


def test_two_at_once(tmp_path, monkeypatch):
    make_folder(tmp_path)
    both, real, got = threading.Barrier(2), splits.decode, []
    monkeypatch.setattr(splits, "decode", lambda *a: both.wait(10) and None or real(*a))
    threads = [threading.Thread(target=lambda: got.append(data.load(tmp_path))) for _ in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert_same(*got)
    with nothing_decoded(monkeypatch):
        assert_same(got[0], data.load(tmp_path))
    assert len(caches(tmp_path)) == 1


# ---- CIFAR, in torchvision's layout ----


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    """A small CIFAR, in place under tmp_path/data, whose checksums torchvision accepts. Returns its name."""
    import torchvision

    kind = getattr(torchvision.datasets, request.param.upper())
    folder = tmp_path / "data" / kind.base_folder
    folder.mkdir(parents=True)
    key, names = ("labels", "label_names") if request.param == "cifar10" else ("fine_labels", "fine_label_names")
    for i, (name, _) in enumerate(kind.train_list + kind.test_list):
        content = {"data": noise(4, 3 * 32 * 32, seed=i), key: [i % 3, 1, 0, 2]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({names: ["ant", "bee", "cow"]}))
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(kind, field, [[name, md5(folder / name)] for name, _ in getattr(kind, field)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(folder / kind.meta["filename"])})
    return request.param


def test_cifar(cifar, tmp_path, monkeypatch):
    got = data.load(cifar, data_dir=tmp_path / "data")
    train = {"cifar10": 20, "cifar100": 4}[cifar]
    assert (got.name, got.source, got.classes) == (cifar, cifar, ("ant", "bee", "cow"))
    assert (len(got.train), len(got.test)) == (train, 4)
    expected = noise(4, 3 * 32 * 32, seed=0).reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(got.train.images[:4], expected)
    assert got.train.labels[:4].tolist() == [0, 1, 0, 2]
    with nothing_decoded(monkeypatch):
        assert_same(got, data.load(cifar, data_dir=tmp_path / "data"))
    assert data.load(cifar, data_dir=tmp_path / "data", image_size=48).test.images.shape == (4, 48, 48, 3)


def test_damaged_cifar(cifar, tmp_path):
    half(next(path for path in (tmp_path / "data").rglob("*") if path.name in ("test_batch", "test")))
    with pytest.raises(UserError, match="incomplete or damaged: remove it"):
        data.load(cifar, data_dir=tmp_path / "data")
    assert not caches(tmp_path)


@pytest.fixture
def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def offline(monkeypatch, closed_port):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{closed_port}/cifar.tar.gz")


def test_no_data_and_no_network(offline, tmp_path, capsys):
    with pytest.raises(UserError) as error:
        data.load("cifar10", data_dir=tmp_path / "data")
    for way in ("cifar-10-batches-py into --data-dir", "--data PATH", "--data digits", "refused"):
        assert way in str(error.value)
    assert not (tmp_path / "data").exists()
    assert sources.resolve_auto("auto", tmp_path / "data") == "digits"
    err = capsys.readouterr().err
    assert err.startswith("CIFAR-10 NOT FOUND, USING THE BUNDLED DIGITS") and err.count("\n") == 1
    assert "cifar-10-batches-py" in err and "--data PATH" in err


def test_auto(tmp_path, offline, capsys):
    assert sources.resolve_auto("some/folder", tmp_path) == "some/folder"
    assert sources.resolve_auto("cifar100", tmp_path) == "cifar100"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert sources.resolve_auto("auto", tmp_path) == "cifar10"
    assert capsys.readouterr().err == ""


def test_a_silent_server_is_given_up():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        start = time.perf_counter()
        why = download.unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/x", seconds=0.3)
        assert 0.2 < time.perf_counter() - start < 30
        assert why


def test_a_silent_name_server_is_given_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))  # in a daemon thread
    start = time.perf_counter()
    assert download.unreachable("http://nowhere.invalid/x", seconds=0.2) == "no answer in 0.2 s"
    assert time.perf_counter() - start < 30


@pytest.fixture
def server(cifar, tmp_path, monkeypatch):
    """Moves the small CIFAR to a server. Returns a function that sets what the server sends of the archive."""
    import torchvision

    kind = getattr(torchvision.datasets, cifar.upper())
    archive = tmp_path / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "data" / kind.base_folder, kind.base_folder)
    remove(tmp_path, "data")
    body = [archive.read_bytes()]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self, send=True):
            self.send_response(200)
            self.send_header("Content-Length", str(archive.stat().st_size))
            self.end_headers()
            if send:
                self.wfile.write(body[0])

        def do_HEAD(self):
            self.do_GET(send=False)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{serving.server_port}/{kind.filename}")
        monkeypatch.setattr(kind, "tgz_md5", md5(archive))
        yield lambda change: body.insert(0, change(body[0]))
        serving.shutdown()


def test_download(server, cifar, tmp_path, capsys):
    folder = sources.CIFAR[cifar]
    if cifar == "cifar10":
        assert sources.resolve_auto("auto", tmp_path / "data") == "cifar10"
    got = data.load(cifar, data_dir=tmp_path / "data")
    assert len(got.test) == 4
    assert [path.name for path in (tmp_path / "data").iterdir()] == [folder]  # no archive, no temporary folder
    assert capsys.readouterr().err == f"downloading {cifar} into {tmp_path / 'data' / folder}\n"  # no progress bar
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("change", [lambda b: b[: len(b) // 2], lambda b: b[:-9] + b"corrupted", lambda b: b""])
def test_broken_download(server, cifar, tmp_path, change):
    server(change)
    with pytest.raises(UserError, match="cannot be downloaded .*--data PATH"):
        data.load(cifar, data_dir=tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_download_to_nowhere(server, cifar, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match="cannot be downloaded .*data"):
        data.load(cifar, data_dir=tmp_path / "data")


def test_imports_are_deferred():
    code = "import sys, resnet_min.data; print(*{'torchvision', 'sklearn', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == ""
