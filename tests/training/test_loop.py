import math
import platform
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_min.config import Config
from resnet_min.errors import UserError
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import hardware, loop
from resnet_min.training.optimizer import make_optimizer

CPU = hardware.cpu()
cross_entropy = ClassifyConfig().make_task().loss


def make_batches(count=3, size=4):
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 3, 2, 2, generator=draw), torch.randint(0, 5, (size,), generator=draw)) for _ in range(count)
    ]


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_epoch_equals_torch_by_hand(name):
    config = Config(optimizer=name, lr=0.1, wd=0.01, nesterov=name == "sgd")
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    options = dict(momentum=0.9, nesterov=True) if name == "sgd" else {}
    ours, theirs, rates, right = make_net(), make_net(), [0.1, 0.05, 0.2], 0
    optimizer = kind(theirs.parameters(), weight_decay=0.01, **options)
    wanted = []
    for (images, labels), rate in zip(make_batches(), rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        loss = F.cross_entropy(logits := theirs(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wanted.append(loss.item())
        right += (logits.argmax(1) == labels).sum().item()
    smoothed = ClassifyConfig(label_smoothing=0.1).make_task().loss
    losses, accuracy = loop.train_one_epoch(ours, make_batches(), make_optimizer(config, ours), rates, CPU, smoothed)
    assert losses.tolist() == pytest.approx(wanted)
    assert accuracy == pytest.approx(100 * right / 12)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_an_epoch_in_two_parts_is_one():
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    def train(saved=None, **options):
        progress = loop.Progress.at(saved, 3, CPU.device)
        options |= dict(progress=progress)
        return progress, lambda: loop.train_one_epoch(
            net, make_batches(), optimizer, [0.1, 0.05, 0.2], CPU, cross_entropy, **options
        )

    net = make_net()
    optimizer = make_optimizer(Config(), net)
    losses, accuracy = train()[1]()
    whole = net[1].weight.clone()
    net = make_net()
    optimizer = make_optimizer(Config(), net)
    progress, part = train(after_step=stop)
    with pytest.raises(Stop):
        part()
    saved = progress.saved()
    assert len(saved["losses"]) == 1 and saved["seen"] == 4 and saved["seconds"] > 0
    again = train(saved)[1]()
    assert torch.equal(again[0], losses) and again[1] == accuracy and torch.equal(net[1].weight, whole)
    with pytest.raises(UserError, match="took 1 steps of an epoch that has 0 here"):
        loop.Progress.at(saved, 0, CPU.device)


def test_parameters_that_do_not_require_grad_are_left_alone():
    net = make_net()
    net[1].bias.requires_grad_(False)
    before = [p.clone() for p in net.parameters()]
    loop.train_one_epoch(net, make_batches(), make_optimizer(Config(wd=0.1), net), [0.1] * 3, CPU, cross_entropy)
    assert not torch.equal(net[1].weight, before[0]) and torch.equal(net[1].bias, before[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_its_step(value):
    net, batches = make_net(), make_batches()
    batches[1][0][:] = value
    optimizer, weights = make_optimizer(Config(), net), []
    with pytest.raises(loop.Diverged, match=r"step 2 of 3, learning rate 0\.2"):
        loop.train_one_epoch(
            net,
            batches,
            optimizer,
            [0.1, 0.2, 0.3],
            CPU,
            cross_entropy,
            after_step=lambda: weights.append(net[1].weight.clone()),
        )
    assert len(weights) == 1 and torch.equal(weights[0], net[1].weight)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    """Pages are handed out once, not every time; in a process of its own, where nothing else was freed before."""
    code = (
        "import resource, torch\n"
        "from resnet_min.training import hardware\n"
        "for keep in (False, True):\n"
        "    hardware.keep_freed_memory(keep)\n"
        "    for _ in range(9): torch.ones(2**24)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(3): torch.ones(2**24)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    default, kept = map(int, done.stdout.split())
    assert kept < 90 <= default  # of 64 MiB each in pages of 4 KiB, or of as much as 2 MiB


@pytest.mark.parametrize("name, index", [("cuda:1", 1), ("cuda", 0), ("auto", 0)])
def test_a_gpu_becomes_the_current_one(name, index, monkeypatch):
    """Or graphs, streams and events would belong to the first one."""
    chosen = []

    def empty(*_, device):  # as if there were GPUs, of which the first is the current one
        return types.SimpleNamespace(device=torch.device(device if ":" in device else f"{device}:0"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "empty", empty)
    assert hardware.hardware(name, "off").device == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]


def test_hardware():
    assert hardware.hardware("cpu", "bf16").dtype == torch.bfloat16
    assert "float32" in str(CPU) and "thread" in str(CPU)
    for device, said in (
        ("cuda:99", "is not available here"),
        ("gpu", "--device is auto, cpu, cuda or cuda:N; got .gpu"),
    ):
        with pytest.raises(UserError, match=said):
            hardware.hardware(device)
