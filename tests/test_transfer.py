import pytest
import torch

from resnet_min import engine, model, transfer
from resnet_min.config import Config

CPU = engine.hardware("cpu", "off")


def trained(config, net):
    """`net` after two steps with weight decay and momentum, and its state from before."""
    transfer.freeze(net, config, epoch=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = [(torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last), torch.arange(4)) for _ in range(2)]
    engine.train_one_epoch(net.to(memory_format=torch.channels_last), batches, engine.make_optimizer(config, net),
                           [0.1, 0.1], CPU)  # fmt: skip
    return before, net.state_dict()


def small(**options):
    return model.resnet("resnet18", widths=(4, 4, 8, 8), stem="imagenet", **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("freeze_bn", [False, True])
@pytest.mark.parametrize(
    "settings", [{"freeze": "first-last"}, {"freeze_children": 6}, {"freeze_children": 10}], ids=str
)
def test_frozen_parameters_do_not_change_by_a_bit(settings, freeze_bn, optimizer):
    net = small()
    config = Config(**settings, freeze_bn=freeze_bn, optimizer=optimizer, wd=0.1)
    before, after = trained(config, net)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    for name, tensor in after.items():
        moved = not torch.equal(tensor, before[name])
        if "running" in name or "tracked" in name:  # a batch norm's statistics; it is frozen when its weight is
            assert moved == (not freeze_bn or name.rpartition(".")[0] + ".weight" not in frozen), name
        else:
            assert moved == (name not in frozen), name


@pytest.mark.parametrize(("count", "frozen"), [(0, 0), (6, 157_504), (10, 11_176_512)])
def test_children_are_counted_as_torchvision_has_them(count, frozen):
    net = model.resnet("resnet18", stem="imagenet", dropout=0.3)
    transfer.freeze(net, Config(freeze_children=count), epoch=1)
    total = model.count_parameters(net)
    assert total - model.count_parameters(net, trained_only=True) == frozen
    assert total - frozen == 5_130 or count < 10


def test_a_frozen_batch_norm_normalises_by_its_running_statistics():
    net = small()
    config = Config(freeze_children=10, freeze_bn=True)
    transfer.freeze(net, config, epoch=1)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(net.train().features(x), net.eval().features(x))
    transfer.freeze(net, Config(), epoch=1)  # and thaws
    assert not torch.equal(net.train().features(x), net.eval().features(x))
