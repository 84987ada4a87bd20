"""Pixels of any size to what a net takes: as the test images are shown to it."""

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from resnet_min import data
from resnet_min.config import Config
from resnet_min.data import decode
from resnet_min.data.batches import Batches
from resnet_min.data.preprocessing import Preprocessing
from resnet_min.errors import UserError

MIDDLE = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ready(images, size=32, batch_size=256, **options):
    return torch.cat(list(Preprocessing(**MIDDLE, size=size, **options).batches(images, batch_size)))


@pytest.mark.parametrize("resize", [None, 40])
def test_images_of_the_native_size_are_what_a_net_is_evaluated_on(resize):
    split = data.load("digits").test.subset(range(20))
    (wanted,) = [x for x, _ in Batches(split, batch_size=20, resize=resize, **MIDDLE).ordered()]
    pictures = [Image.fromarray(image) for image in split.images.numpy()]
    for images in (split.images, split.images.numpy(), list(split.images), pictures):
        got = ready(images, resize=resize, batch_size=7)
        assert torch.equal(got, wanted) and got.is_contiguous(memory_format=torch.channels_last)


def save_turned(picture, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif, quality=95)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("wide.png", lambda path: Image.fromarray(noise(40, 90, 3)).save(path)),
        ("small.jpg", lambda path: Image.fromarray(noise(9, 5, 3)).save(path)),
        ("grey.png", lambda path: Image.fromarray(noise(50, 50)).save(path)),
        ("grey16.png", lambda path: Image.fromarray(noise(33, 40).astype(np.uint16) * 257).save(path)),
        ("alpha.png", lambda path: Image.fromarray(noise(60, 40, 4)).save(path)),
        ("palette.png", lambda path: Image.fromarray(noise(40, 40, 3)).quantize(8).save(path, transparency=2)),
        ("turned.jpg", lambda path: save_turned(Image.fromarray(noise(40, 64, 3)), path)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_images_are_read_and_sized_as_an_image_folder_is(tmp_path, name, save):
    for label in ("ant", "bee"):
        (tmp_path / "test" / label).mkdir(parents=True)
        save(tmp_path / "test" / label / name)
    split = data.load(tmp_path, needed=("test",)).test
    (wanted,) = [x for x, _ in Batches(split, batch_size=2, **MIDDLE).ordered()]
    with Image.open(tmp_path / "test" / "ant" / name) as picture:
        assert torch.equal(ready(picture), wanted[:1])
        assert torch.equal(ready([picture, picture]), wanted)


def test_arrays_and_tensors_of_any_size_are_sized_as_pictures_are():
    pixels = noise(3, 50, 70, 3)
    wanted = ready([Image.fromarray(image) for image in pixels])
    backwards = np.ascontiguousarray(pixels[..., ::-1])[..., ::-1]  # the strides of a picture turned from BGR
    for images in (pixels, torch.from_numpy(pixels), list(pixels), backwards, tuple(torch.from_numpy(pixels))):
        assert torch.equal(ready(images), wanted)
    assert torch.equal(ready(backwards, size=50), ready(pixels, size=50))
    assert torch.equal(ready([pixels[0], noise(32, 32, 3), Image.fromarray(pixels[2])])[[0, 2]], wanted[[0, 2]])
    pixels.flags.writeable = False
    assert torch.equal(ready(pixels[:, :50, :50], size=50), ready(pixels[:, :50, :50].copy(), size=50))


@pytest.mark.parametrize("resize", [None, 40])
def test_no_images(resize):
    side = resize or 32
    for images in ([], (), np.zeros((0, 32, 32, 3), np.uint8), torch.zeros((0, 9, 7, 3), dtype=torch.uint8)):
        assert ready(images, resize=resize).shape == (0, 3, side, side)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(3, 32, 32), r"the image is float32 \[3, 32, 32\]"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"the batch is uint8 \[2, 3, 32, 32\]"),
        (np.zeros((32, 32, 3), np.int64), r"the image is int64"),
        (np.zeros((1, 0, 4, 3), np.uint8), r"the batch is uint8 \[1, 0, 4, 3\]"),
        (np.zeros((32, 32), np.uint8), r"the image is uint8 \[32, 32\]"),
        ([np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 4), np.uint8)], r"image 1 is uint8 \[9, 9, 4\]"),
        ([np.zeros((1, 9, 9, 3), np.uint8)], r"image 0 is uint8 \[1, 9, 9, 3\]"),
        ("cat.jpg", "the image is str"),
        (None, "the image is NoneType"),
        (iter([]), "the image is list_iterator"),
    ],
)
def test_other_input_is_one_clear_error(images, said):
    with pytest.raises(ValueError, match=f"^predict takes uint8 images .*; {said}") as error:
        ready(images)
    assert "\n" not in str(error.value)


def test_a_damaged_picture_is_named(tmp_path):
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as picture, pytest.raises(UserError, match="^image 1 cannot be read: "):
        ready([Image.new("L", (4, 4)), picture])


def test_pictures_of_32_bits_are_not_black(tmp_path):
    grey = np.linspace(0, 255, 32 * 32, dtype=np.float32).reshape(32, 32)
    for number, values in enumerate((grey, grey / 255, grey.astype(np.int32), 257 * grey.astype(np.int32))):
        said = f"holds {values.dtype} values; save it with 8 or 16 bits"
        picture = Image.fromarray(values)
        picture.save(tmp_path / f"{number}.tiff")
        with pytest.raises(UserError, match=f"^image 0 cannot be read: it {said}$"):
            ready([picture])
        with pytest.raises(UserError, match=f"{number}.tiff: it {said}$"):
            decode.pixels(str(tmp_path / f"{number}.tiff"), 32)


def test_pictures_of_16_bits_are_read_in_every_mode(tmp_path):
    values = noise(32, 32).astype(np.int32) * 257
    Image.fromarray(values).save(tmp_path / "x.ppm")
    for kind in ("png", "tiff"):
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"x.{kind}")
    signed = TiffImagePlugin.ImageFileDirectory_v2()
    signed[339] = 2  # SampleFormat: signed, which Pillow opens with 32 bits
    Image.fromarray((values // 2).astype(np.uint16)).save(tmp_path / "signed.tiff", tiffinfo=signed)
    seen = {}
    for name, white in (("x.ppm", 257), ("x.png", 257), ("x.tiff", 257), ("signed.tiff", 514)):
        with Image.open(tmp_path / name) as picture:
            seen[name] = picture.mode
            got = decode.rgb(picture, 32)[..., 0]
        assert np.abs(got - values / white).max() < 0.6, name
    assert seen["x.ppm"] == seen["signed.tiff"] == "I"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(mean=(0.5, 0.5)), "mean is 3 numbers, of red, green and blue; got"),
        (dict(mean=0.5), "mean is 3 numbers"),
        (dict(mean="abc"), "mean is 3 numbers"),
        (dict(std=(1, 0, 1)), "std is 3 numbers, of red, green and blue, above 0"),
        (dict(std=(1, float("nan"), 1)), "std is 3 numbers"),
        (dict(size=0), "at least 1 pixel"),
        (
            dict(mean=(123.7, 116.3, 103.5)),
            "^mean is from 0 to 1, where white is 1; divide by 255 where it is 255: got",
        ),
        (dict(mean=(0.5, 0.5, -0.1)), "mean is from 0 to 1"),
        (dict(std=(58.4, 57.1, 57.4)), "std is from 0 to 1, where white is 1"),
    ],
)
def test_normalisations_that_are_none(values, said):
    with pytest.raises(UserError, match=said):
        Preprocessing(**{**MIDDLE, "size": 32, **values})


@pytest.mark.parametrize("mean, std", [(0, 1), (0.5, 0.5), (1, 1), (0, 1 / 255), (0.485, 0.229)])
def test_normalisations_that_others_use(mean, std):
    assert Preprocessing((mean,) * 3, (std,) * 3, 32).mean == (mean,) * 3
    assert Config(mean=(mean,) * 3, std=(std,) * 3).std == (std,) * 3
