import pytest
import torch
from processes import in_world

from resnet_min.config import Config
from resnet_min.data.batches import share
from resnet_min.model import resnet
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import loop
from resnet_min.training.distributed import World
from resnet_min.training.hardware import Hardware
from resnet_min.training.optimizer import make_optimizer

NETS = {
    "small": dict(arch="resnet20", blocks=(1,), widths=(4,)),
    "pad": dict(arch="resnet20", blocks=(1, 1), widths=(4, 8)),
    "projection": dict(arch="resnet18", blocks=(1, 1), widths=(8, 16)),
}
RAGGED = [8, 8, 7, 8, 1, 8, 2]  # images of a batch: they do not divide, or are fewer than the processes


def trained(world, sizes, dtype=torch.float32, lr=0.05, net="pad", sync_bn=True, kernels="auto"):
    """(losses, figure, weights and statistics) after a step on a batch of each of `sizes`."""
    from resnet_min import ops

    ops.set_backend(kernels)
    torch.manual_seed(0)
    net = resnet(num_classes=5, dropout=0.3, **NETS[net]).to(dtype, memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(0)
    batches = []
    for size in sizes:
        images, labels = torch.randn(size, 3, 8, 8, generator=draw), torch.randint(0, 5, (size,), generator=draw)
        mine = share(size, world.part)
        batches.append((images[mine].to(dtype, memory_format=torch.channels_last), labels[mine]))
    model, optimizer = world.parallel(net, sync_bn), make_optimizer(Config(wd=1e-3), net)
    where, task = Hardware(torch.device("cpu"), dtype, world), ClassifyConfig(label_smoothing=0.1).make_task()
    losses, figure = loop.train_one_epoch(model, batches, optimizer, [lr] * len(sizes), where, task.loss)
    world.settle(net)
    return losses, figure, net.state_dict()


def assert_like_one(several, one, tolerance):
    """Every process ends with the same bits, and near what one by itself does."""
    for losses, figure, state in several:
        torch.testing.assert_close(losses, one[0], rtol=0, atol=tolerance)
        assert figure == pytest.approx(one[1])
        assert state.keys() == one[2].keys()
        for name, value in state.items():
            assert torch.equal(value, several[0][2][name]), name
            torch.testing.assert_close(value, one[2][name], rtol=0, atol=100 * tolerance, msg=name)


@pytest.mark.parametrize(
    ("size", "net", "kernels"), [(2, "pad", "auto"), (3, "projection", "auto"), (3, "pad", "reference")]
)
def test_several_processes_train_as_one_does(size, net, kernels):
    sizes = (RAGGED * 3)[:20]
    one = trained(World(), sizes, net=net, kernels=kernels)
    assert_like_one(in_world(size, trained, sizes, torch.float32, 0.05, net, True, kernels), one, 1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_two_hundred_steps_in_float64(size):
    sizes = (RAGGED * 29)[:200]
    one = trained(World(), sizes, torch.float64, 0.02, "small")
    assert_like_one(in_world(size, trained, sizes, torch.float64, 0.02, "small"), one, 1e-8)
