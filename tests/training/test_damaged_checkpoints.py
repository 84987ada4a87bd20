"""Checkpoints damaged in bytes and in content: one line, or a sound network; never a traceback, and little memory.

The same draws in every run: 200 here, 5,000 with `-m slow`.
"""

import resource
import signal

import numpy as np
import pytest
import torch

import resnet_min
from resnet_min.errors import UserError
from resnet_min.model import ResNet
from resnet_min.tasks import trained
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.tasks.crowd.options import CrowdConfig
from resnet_min.training import checkpoint, validate
from resnet_min.training.optimizer import make_optimizer

MEGABYTES = 150  # that all of them together may add to this process
SIZES = dict(arch="resnet20", blocks=(1, 1), widths=(4, 8), strides=(1, 2), mean=(0.5,) * 3, std=(0.2,) * 3)


def snapshots():
    """Small checkpoints of every kind there is."""
    kinds = [
        (ClassifyConfig(**SIZES, data="digits"), ("a", "b", "c")),
        (ClassifyConfig(**SIZES, data="digits", optimizer="adamw", channels_last=False, plain=True), ("a", "é", "c")),
        (CrowdConfig(**SIZES, optimizer="adam", crop=32), ()),
    ]
    for config, classes in kinds:
        net = config.make_task().build(classes)
        steps = make_optimizer(config, net)
        net(torch.randn(2, 3, 16, 16)).sum().backward()
        steps.step()
        progress = {"losses": torch.ones(3, dtype=torch.float64), "figures": 3.0, "seen": 24, "seconds": 1.5}
        yield checkpoint.snapshot(net, steps, config, classes, epoch=2, step=20, progress=progress)


def damaged(content, other, rng):
    """The bytes of a file, damaged in one of many ways; `other` is another file's."""
    bits = np.frombuffer(content, np.uint8).copy()
    at, size = int(rng.integers(len(bits))), int(2 ** rng.uniform(0, 12))
    kind = rng.integers(8)
    if kind < 3:  # near the end are the archive's directory, near the start its pickle
        places = rng.integers(0, len(bits), 1 + int(rng.exponential(2))) if kind else at % 3000 + np.zeros(1, int)
        bits[places] ^= 1 << rng.integers(8, size=len(places), dtype=np.uint8)
    elif kind == 3:
        bits[at : at + size] = rng.integers(0, 256, len(bits[at : at + size]))
    elif kind == 4:
        bits[at : at + size] = rng.choice([0, 255])
    elif kind == 5:
        bits = np.delete(bits, slice(at, at + size))
    elif kind == 6:
        bits = bits[:at]
    else:
        bits = np.concatenate([bits[:at], np.frombuffer(other, np.uint8)[at:]])
    return bits.tobytes()


def others(rng):
    """Values that may stand where another belongs."""
    plain = [
        None,
        True,
        -1,
        0,
        1,
        3,
        2**40,
        2**100,
        0.5,
        -0.0,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "a",
        "\udcff" * 3,
    ]
    several = [[], {}, (), [1, 2, 3], ["a", "b", "c"], {"a": 1}, {1: {}}, [[["x"]]], "a" * 5000, "\x1b[2J", ["a", "a"]]
    tensors = [
        torch.zeros(()), torch.zeros(3), torch.zeros(0), torch.zeros(4, 3, 3, 3), torch.zeros(3, dtype=torch.uint8),
        torch.full((5056,), 7, dtype=torch.uint8), torch.zeros(1).expand(10**9), torch.zeros(2, 2).to_sparse(),
        torch.zeros(3, device="meta"), torch.zeros(3, dtype=torch.complex64), torch.zeros(9)[::2],
        torch.nn.Parameter(torch.zeros(3)), torch.full((3,), float("nan")), torch.zeros(3, dtype=torch.bool),
    ]  # fmt: skip
    pool = [plain, several, tensors][rng.integers(3)]
    return pool[rng.integers(len(pool))]


def places(value, path=()):
    """The containers in a value, each with a key of what it holds."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key], (*path, key))


def copied(value):
    """A copy of a checkpoint's containers."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


def changed(saved, rng):
    """A checkpoint with one to three of its values replaced, removed, renamed or put elsewhere."""
    saved = copied(saved)
    for _ in range(rng.integers(1, 4)):
        found = list(places(saved))
        outer = [place for place in found if any(place[0] is part for part in (saved, saved.get("config")))]
        deep = outer if rng.random() < 0.5 else found
        holder, key = (deep or found)[rng.integers(len(deep or found))]
        kind = rng.integers(6)
        if kind == 5:  # a value that fits
            value = holder[key]
            if isinstance(value, torch.Tensor) and validate.is_dense(value):  # not 10**9 values that are one
                holder[key] = value.flip(0) if value.dim() else value + 1
            elif type(value) in (int, float):
                holder[key] = value + 1
        elif kind < 3:
            holder[key] = others(rng)
        elif kind == 3:
            elsewhere, other = found[rng.integers(len(found))]
            holder[key] = copied(elsewhere[other])
        elif isinstance(holder, dict):
            value = holder.pop(key)
            if rng.random() < 0.5:
                holder[[3, "x", None, (1, 2)][rng.integers(4)]] = value
        else:
            holder.append(others(rng))
    return saved


def use(path, predict):
    """Load a checkpoint, go on with its training, and perhaps predict. Whether nothing was refused."""
    sound = True
    try:
        saved = checkpoint.load(path)
        subject = trained.revive(saved, path)
        image = torch.zeros(1, 3, 16, 16)
        with torch.no_grad():
            assert subject.net(image).shape[0] == 1
        net = subject.task.build(subject.classes)
        steps = make_optimizer(subject.task.config, net)
        checkpoint.restore(saved, net, steps, path)
        net.train()(torch.randn(2, 3, 16, 16)).sum().backward()
        steps.step()
    except UserError as error:
        check_line(error)
        sound = False
    if not predict:
        return sound
    try:
        net = resnet_min.load(path)
        assert isinstance(net, ResNet) and net.predict(np.zeros((8, 8, 3), np.uint8)).shape == (1, len(net.classes))
    except UserError as error:
        check_line(error)
    return sound


def check_line(error):
    message = " ".join(str(error).split())  # as scripts print it
    assert message and len(message) < 5000


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_checkpoints(tmp_path, count):
    torch.manual_seed(0)
    rng, path = np.random.default_rng(count), tmp_path / "x.pt"
    kinds, files = list(snapshots()), []
    for saved in kinds:
        checkpoint.save(path, saved)
        assert use(path, True)
        files.append(path.read_bytes())
    wanted = [validate.digest(saved) for saved in kinds]
    before, sound, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0
    for number in range(count):
        which = int(rng.integers(len(kinds)))
        signal.alarm(600)
        if number % 2:
            path.write_bytes(damaged(files[which], files[which - 1], rng))
        else:
            saved = changed(kinds[which], rng)
            try:  # with the digest of what it is now, where its tensors have bytes
                validate.check_content(saved, path)
                checkpoint.save(path, saved)
            except UserError:
                torch.save(saved, path)
        if use(path, number % 8 < 2):
            sound += 1
            if number % 2:  # what is loaded from damaged bytes is what was saved
                assert validate.digest(checkpoint.load(path)) in wanted
        else:
            refused += 1
    signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"{count} checkpoints: {refused} refused, {sound} sound; {grown} MB more")
    assert sound > 0.03 * count and refused > 0.5 * count and grown < MEGABYTES
