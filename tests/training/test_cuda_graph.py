"""Steps by a recording: the same as one operation after the other, whatever a GPU makes of it."""

import warnings

import pytest
import torch
from torch import nn

from resnet_min.config import Config
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import cuda_graph, hardware, loop
from resnet_min.training.cuda_graph import Recorder
from resnet_min.training.optimizer import make_optimizer

loss_of = ClassifyConfig().make_task().loss
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def on_cpu(monkeypatch):
    """As on a GPU, but a recording is the step itself: it finds its arguments where they were. How many there were."""
    recordings = []

    def record(step, arguments):
        recordings.append(arguments)
        return lambda: step(*arguments)

    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(cuda_graph, "on_a_side_stream", lambda step, *arguments: step(*arguments))
    return recordings


def train(device, optimizer, recorder, new_optimizer_at=None):
    """Losses of two epochs of 6 batches, the last one smaller, at rates that change; and the weights."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    net.to(device)
    images, targets = torch.randn(44, 3, 8, 8, device=device), torch.arange(44, device=device) % 4
    config = Config(optimizer=optimizer, lr=0.01, cuda_graph=recorder is not None and device == "cuda")
    steps = make_optimizer(config, net)
    losses = []
    for epoch in range(2):
        if epoch == new_optimizer_at:
            steps = make_optimizer(config, net)
        rates = [0.01 / (epoch + step + 1) for step in range(6)]
        batches = zip(images.split(8), targets.split(8), strict=True)
        where = hardware.Hardware(torch.device(device), torch.float32)
        losses.append(loop.train_one_epoch(net, batches, steps, rates, where, loss_of, recorder=recorder)[0])
    return torch.cat(losses), net.state_dict()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("new_optimizer_at", [None, 1])
def test_the_steps_are_the_same(optimizer, new_optimizer_at, on_cpu):
    recorder = Recorder()
    torch.testing.assert_close(
        train("cpu", optimizer, recorder, new_optimizer_at), train("cpu", optimizer, None, new_optimizer_at)
    )
    assert len(on_cpu) == (1 if new_optimizer_at is None else 2)


def test_warm_up_warns_of_no_capture(on_cpu):
    """What torch's optimizers say of a step outside of a graph, once, is not for the user."""

    def step(images, targets):
        warnings.warn(
            "This instance was constructed with capturable=True or some of all the param_groups came with "
            "capturable=True, but step() is running without CUDA graph capture.",
            stacklevel=2,
        )
        return (images.sum(),)

    images = torch.ones(2, 3, 4, 4)
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recorder().take(step, images, images, optimizer)


@GPU
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("new_optimizer_at", [None, 1])
def test_on_a_gpu(optimizer, new_optimizer_at):
    got = train("cuda", optimizer, Recorder(), new_optimizer_at)
    torch.testing.assert_close(got, train("cuda", optimizer, None, new_optimizer_at), rtol=1e-3, atol=1e-4)
