import pytest
import torch

from resnet_min import model
from resnet_min.config import Config
from resnet_min.errors import UserError
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.tasks.crowd.net import CrowdNet
from resnet_min.training import hardware, loop, transfer
from resnet_min.training.optimizer import make_optimizer

loss_of = ClassifyConfig().make_task().loss


def trained(config, net):
    """`net` after two steps with weight decay and momentum, and its state from before."""
    transfer.freeze(net, config, epoch=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = [(torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last), torch.arange(4)) for _ in range(2)]
    loop.train_one_epoch(net.to(memory_format=torch.channels_last), batches, make_optimizer(config, net),
                           [0.1, 0.1], hardware.cpu(), loss_of)  # fmt: skip
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


@pytest.fixture
def weights(tmp_path):
    """A file as torchvision writes it: resnet18's state_dict, with random weights for 1000 classes."""
    import torchvision

    path = tmp_path / "resnet18-12345678.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def test_torchvisions_weights_but_for_what_has_another_shape(weights):
    theirs = torch.load(weights)
    for stem, differ in (("imagenet", []), ("cifar", ["conv1.weight"])):
        net = model.resnet18(stem=stem)
        drawn = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        skipped = transfer.load_pretrained(net, str(weights), "resnet18")
        assert skipped == [*differ, "fc.weight", "fc.bias"]
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, drawn[name] if name in skipped else theirs[name]), name
    crowd = CrowdNet(model.resnet18(stem="imagenet"), "linear")
    assert transfer.load_pretrained(crowd, str(weights), "resnet18") == []
    assert torch.equal(crowd.encoder.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"])
    whole = model.resnet18(stem="imagenet", num_classes=1000)
    assert transfer.load_pretrained(whole, str(weights), "resnet18") == []


def test_weights_without_counts_of_batches_load(weights):
    torch.save({k: v for k, v in torch.load(weights).items() if "num_batches" not in k}, weights)
    assert transfer.load_pretrained(model.resnet18(stem="imagenet"), str(weights), "resnet18")


def test_weights_of_another_architecture_are_refused(weights, tmp_path):
    for net, says in (
        (model.resnet34(), r"tensors differ, such as layer1.2.bn1.bias: not there, wanted \[64\]"),
        (model.resnet18(plain=True), "such as layer2.0.downsample.0.weight: .*, wanted not there"),
        (model.resnet18(widths=(64, 64, 64, 64)), r"such as layer2.0.bn1.bias: \[128\], wanted \[64\]"),
    ):
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with pytest.raises(UserError, match=says):
            transfer.load_pretrained(net, str(weights), "resnet18")
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    for content in ({}, {"a": 1}, [torch.zeros(1)]):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match="odd.pth holds no weights"):
            transfer.load_pretrained(model.resnet18(), str(tmp_path / "odd.pth"), "resnet18")


def test_imagenet_weights_from_torchs_cache_or_one_clear_line(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(transfer, "unreachable", lambda url: f"no answer from {url}")
    with pytest.raises(UserError, match="cannot download .*no answer from .*resnet18-f37072fd.pth.*--pretrained none"):
        transfer.load_pretrained(model.resnet18(), "imagenet", "resnet18")
    (tmp_path / "checkpoints").mkdir()
    weights.rename(tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert transfer.load_pretrained(model.resnet18(stem="imagenet"), "imagenet", "resnet18") == ["fc.weight", "fc.bias"]


def test_of_a_net_that_holds_a_resnet_the_resnet_freezes():
    net = CrowdNet(small(), "dilated")
    transfer.freeze(net, Config(freeze="first-last"), epoch=1)
    trained = {name.partition(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"encoder", "head"}
    assert [name for name, p in net.encoder.named_parameters() if p.requires_grad] == ["conv1.weight"]
    transfer.freeze(net, Config(freeze_children=10), epoch=1)
    assert {name.partition(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"head"}
