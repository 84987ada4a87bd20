import numpy as np
import pytest
import torch

from resnet_min import data
from resnet_min.data.batches import Batches, draw, rotate, share
from resnet_min.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def split(n=23, size=8):
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return data.Split(torch.from_numpy(images), torch.arange(n))  # an image's label is its number


def fields(draws):
    return draws.index, draws.offset, draws.flip


def same(a, b):
    return [x.equal(y) for x, y in zip(fields(a), fields(b), strict=True)]


# ---- draws ----


def test_draws_have_their_shapes():
    index, offset, flip = fields(draw(7, epoch=0, seed=0, padding=4, flip=0.5))
    assert (index.dtype, offset.dtype, flip.dtype) == (torch.int64, torch.int64, torch.bool)
    assert (index.shape, offset.shape, flip.shape) == ((7,), (7, 2), (7,))


def test_draws_come_from_seed_and_epoch_alone():
    def make(seed, epoch):
        return draw(1000, epoch=epoch, seed=seed, padding=4, flip=0.5)

    first = make(3, 5)
    torch.manual_seed(1), np.random.seed(1)
    assert all(same(first, make(3, 5)))
    for seed, epoch in ((3, 6), (3, 4), (4, 5), (2, 5), (5, 3), (4, 4), (-3, 5), (3 + 2**32, 5)):
        other = make(seed, epoch)
        assert not any(same(first, other))
        assert (first.index == other.index).sum() < 10
        assert 400 < (first.flip == other.flip).sum() < 600


def test_order_does_not_depend_on_the_augmentation():
    plain, augmented = (draw(100, epoch=1, seed=0, padding=p, flip=f) for p, f in ((0, 0.0), (4, 0.5)))
    assert plain.index.equal(augmented.index)
    assert not plain.offset.any() and not plain.flip.any()


@pytest.mark.parametrize("padding", [1, 4])
@pytest.mark.parametrize("flip", [0.0, 0.4, 0.5, 1.0])
def test_draws_are_uniform_and_independent(padding, flip):
    n, k = 50_000, 2 * padding + 1
    epochs = [draw(n, epoch=e, seed=1, padding=padding, flip=flip) for e in range(2)]
    for e in epochs:
        assert e.index.sort().values.equal(torch.arange(n))
    index, offset, flips = (torch.cat(x) for x in zip(*map(fields, epochs), strict=True))
    counts = (offset[:, 0] * k + offset[:, 1]).bincount(minlength=k * k).double()  # tops and lefts together
    assert len(counts) == k * k
    expected = 2 * n / k**2
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - (k * k - 1)) < 4 * (2 * (k * k - 1)) ** 0.5
    assert flips.double().mean() == pytest.approx(flip, abs=4 * (flip * (1 - flip) / (2 * n)) ** 0.5)
    columns = [index[:n], index[n:], *offset.reshape(2, n, 2).permute(0, 2, 1).flatten(0, 1)]
    columns += [flips[:n], flips[n:]] if 0 < flip < 1 else []
    correlation = torch.corrcoef(torch.stack([c.double() for c in columns])) - torch.eye(len(columns))
    assert correlation.abs().max() < 5 / n**0.5
    steps = index[:n].diff().abs().double().mean() / n  # of a permutation, a third
    assert steps == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(("n", "parts"), [(0, 3), (1, 2), (5, 2), (7, 3), (9, 3)])
def test_shares_are_of_about_equal_size_and_together_all(n, parts):
    shares = [list(range(n))[share(n, (number, parts))] for number in range(parts)]
    assert sum(shares, []) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ---- batches ----


def batches(n=23, batch_size=5, **options):
    return Batches(split(n), batch_size=batch_size, mean=MEAN, std=STD, **options)


def normalised(images):
    return ((images / 255.0 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(23, 5, [5, 5, 5, 5, 3]), (20, 5, [5] * 4), (4, 4, [4])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches(n, batch_size, sizes, dtype):
    made = batches(n, batch_size, dtype=dtype, padding=2, flip=0.5)
    for run in (made.epoch(0), made.ordered()):
        run = list(run)
        assert [len(images) for images, _ in run] == [len(labels) for _, labels in run] == sizes
        assert len(made) == len(sizes) and made.size == (8, 8)
        for images, labels in run:
            assert images.shape[1:] == (3, 8, 8) and images.dtype == dtype and labels.dtype == torch.int64
            assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.cat([labels for _, labels in run]).sort().values.equal(torch.arange(n))


def test_ordered_is_the_split_itself():
    made = batches(padding=2, flip=0.5)
    for _ in range(2):
        images, labels = map(torch.cat, zip(*made.ordered(), strict=True))
        assert labels.equal(torch.arange(23))
        torch.testing.assert_close(images, normalised(split().images))


def test_ordered_takes_any_batch_size():
    assert [len(labels) for _, labels in batches(n=3, batch_size=100).ordered()] == [3]


def test_epoch_without_augmentation_is_a_permutation():
    images, labels = map(torch.cat, zip(*batches(seed=4).epoch(0), strict=True))
    assert not labels.equal(torch.arange(23))
    torch.testing.assert_close(images, normalised(split().images[labels]))


def test_epochs_agree_with_torchvision():
    """RandomCrop, flip, ToTensor and Normalize, image by image, at the same draws."""
    from torchvision.transforms.v2 import functional as F

    made = batches(padding=3, flip=0.5, seed=9)
    for epoch in (0, 7):
        draws = draw(23, epoch=epoch, seed=9, padding=3, flip=0.5)
        expected = []
        for index, (top, left), flip in zip(*(x.tolist() for x in fields(draws)), strict=True):
            image = F.crop(F.pad(split().images[index].permute(2, 0, 1), [3]), top, left, 8, 8)
            image = F.to_dtype(F.horizontal_flip(image) if flip else image, torch.float32, scale=True)
            expected.append(F.normalize(image, MEAN, STD))
        images, labels = map(torch.cat, zip(*made.epoch(epoch), strict=True))
        torch.testing.assert_close(images, torch.stack(expected))
        assert labels.equal(draws.index)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (9, 14)])
def test_rotate_is_torchvisions_to_the_bit(height, width):
    from torchvision.transforms.v2 import functional as F

    images = torch.rand(40, 3, height, width).contiguous(memory_format=torch.channels_last)
    angles = torch.cat((torch.tensor([0.0, 90, -90, 180, 30, 45]), 360 * torch.rand(34) - 180)).double()
    fill = torch.tensor([-1.0, -2.0, -3.0])
    turned = rotate(images, angles, fill)
    for image, angle, ours in zip(images, angles.tolist(), turned, strict=True):
        assert F.rotate(image, angle, fill=fill.tolist()).equal(ours)
    assert turned.is_contiguous(memory_format=torch.channels_last)


def test_resized_and_turned_as_torchvision_does():
    """Flip, then Resize of a float tensor, then a rotation that is each image's own."""
    from torchvision.transforms.v2 import functional as F

    made = batches(flip=0.5, resize=20, rotation=30)
    draws, expected = draw(23, epoch=2, seed=0, padding=0, flip=0.5, rotation=30), []
    assert draws.angle.abs().max() <= 30 and draws.angle.unique().numel() == 23
    for index, flip, angle in zip(*(x.tolist() for x in (draws.index, draws.flip, draws.angle)), strict=True):
        image = F.to_dtype(split().images[index].permute(2, 0, 1), torch.float32, scale=True)
        image = F.resize(F.horizontal_flip(image) if flip else image, [20, 20])
        expected.append(F.normalize(F.rotate(image, angle), MEAN, STD))
    images, _ = map(torch.cat, zip(*made.epoch(2), strict=True))
    torch.testing.assert_close(images, torch.stack(expected))
    for images, _ in made.ordered():
        assert images.shape[2:] == (20, 20)
    upright = F.normalize(F.resize(split().images[22].permute(2, 0, 1) / 255.0, [20, 20]), MEAN, STD)
    torch.testing.assert_close(images[-1], upright)
    half = next(batches(flip=0.5, resize=20, rotation=30, dtype=torch.bfloat16).epoch(2))[0]
    assert half.equal(next(made.epoch(2))[0].bfloat16())


@pytest.mark.parametrize("resize", [None, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_grow(resize, dtype):
    """Of 7 epochs, parts of 3, 2 and 2; the last as without `grow`."""
    options = {"padding": 2, "flip": 0.5, "rotation": 20 if resize else 0, "dtype": dtype}
    made = batches(resize=resize, grow=(4, 6), epochs=7, **options)
    assert made.size == (resize or 8,) * 2
    for epoch, wanted in enumerate((4, 4, 4, 6, 6, resize, resize), start=1):
        for (images, labels), (like, same_labels) in zip(
            made.epoch(epoch), batches(resize=wanted, **options).epoch(epoch), strict=True
        ):
            assert images.equal(like) and labels.equal(same_labels)
            assert images.is_contiguous(memory_format=torch.channels_last)
    for (images, _), (like, _) in zip(made.ordered(), batches(resize=resize, dtype=dtype).ordered(), strict=True):
        assert images.equal(like)


def test_the_last_epoch_has_images_of_full_size_however_few_there_are():
    """They are tested at that size, and a schedule may shrink to one epoch."""
    for epochs, sizes in ((1, [8]), (2, [4, 8]), (3, [4, 6, 8]), (4, [4, 4, 6, 8])):
        made = batches(grow=(4, 6), epochs=epochs)
        assert [next(made.epoch(epoch))[0].shape[2] for epoch in range(1, epochs + 1)] == sizes


def test_a_step_can_be_drawn_again_by_itself():
    options = {"padding": 2, "flip": 0.5, "seed": 1}
    made = batches(**options)
    earlier = [batch for epoch in range(3) for batch in made.epoch(epoch)]
    again = list(batches(**options).epoch(2))[1]
    assert all(x.equal(y) for x, y in zip(again, earlier[2 * len(made) + 1], strict=True))


def test_batches_are_fresh():
    made = batches()
    first = [(images.clone(), images) for images, _ in made.ordered()]
    list(made.ordered())
    assert all(a.equal(b) for a, b in first)
    for _, images in first:
        images.zero_()
    torch.testing.assert_close(next(made.ordered())[0], normalised(split().images[:5]))


def test_images_on_the_cpu_are_not_copied():
    source = split()
    made = Batches(source, batch_size=5, mean=MEAN, std=STD)
    assert made.images.data_ptr() == source.images.data_ptr()


def test_batches_from_the_cache_leave_it_alone(tmp_path):
    from PIL import Image

    for i, name in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(split(1, 32).images[0].numpy() // (i + 1)).save(tmp_path / name / "0.png")
    data.load(tmp_path)
    mapped = data.load(tmp_path)
    before = mapped.train.images.clone()
    made = Batches(mapped.train, batch_size=2, mean=mapped.mean, std=mapped.std)
    images = torch.cat([images for images, _ in made.ordered()]).double()
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(images.var((0, 2, 3), correction=0), torch.ones(3).double())
    assert mapped.train.images.equal(before)


def test_a_batch_larger_than_the_data():
    with pytest.raises(UserError, match="--batch-size 24 is larger than the data: 23 training images"):
        batches(batch_size=24).epoch(0)  # before the first batch is asked for
    assert len(list(batches(batch_size=23).epoch(0))) == 1


def test_on_each_device():
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    runs = [list(batches(padding=2, flip=0.5, device=device).epoch(3)) for device in devices]
    for run, device in zip(runs, devices, strict=True):
        for (images, labels), (cpu_images, cpu_labels) in zip(run, runs[0], strict=True):
            assert images.device.type == labels.device.type == device
            assert images.cpu().equal(cpu_images) and labels.cpu().equal(cpu_labels)
