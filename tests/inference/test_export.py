"""What is saved is what was trained, for a batch of any size; a fused graph loads where torch alone could not."""

import os
import subprocess
import sys

import pytest
import torch
import torchvision
from test_fuse import narrow, settled
from torch import nn

from resnet_min import fuse
from resnet_min.errors import UserError
from resnet_min.inference import export, runtimes
from resnet_min.model import ARCH
from resnet_min.tasks.crowd.net import CrowdNet

ABOUT = {"classes": ["blue", "grün"], "mean": [0.5, 0.25, 0.125]}
FORMATS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(runtimes.missing(*packages)), reason=f"needs {packages}"))
    for name, packages in export.PACKAGES.items()
]
needs_onnx = pytest.mark.skipif(bool(runtimes.missing(*export.PACKAGES["onnx"])), reason="needs onnx and its runtime")


def small(arch="resnet20", size=32, **options):
    """A block a stage, so that tracing it takes no time to speak of."""
    return narrow(arch, size, blocks=(1,) * len(ARCH[arch][1]), **options)


def saved(name, net, folder, size=(32, 32)):
    """`net` in a file, read again."""
    file = folder / f"net.{name}"
    if name == "safetensors":
        export.save_safetensors(net, file, ABOUT)
    elif name == "onnx":
        export.save_onnx(net, file, size, ABOUT)
    else:
        export.save_pt2(export.folded(net), file, size, ABOUT)
    return export.load(file, lambda about: small().train())


def assert_same(loaded, net, *shapes):
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_computes_what_the_net_does(name, tmp_path):
    """For every size of batch; and it keeps what is known of the net."""
    net = small()
    torch.manual_seed(1)  # the net that weights are loaded into is another
    loaded = saved(name, net, tmp_path)
    assert loaded.about == ABOUT
    assert_same(loaded, net, (1, 3, 32, 32), (2, 3, 32, 32), (5, 3, 32, 32))
    assert [path.name for path in tmp_path.iterdir()] == [f"net.{name}"]


@needs_onnx
def test_onnx_of_bottlenecks(tmp_path):
    net = small("resnet50", 64, stem="imagenet")
    assert_same(saved("onnx", net, tmp_path, (64, 64)), net, (3, 3, 64, 64))


@needs_onnx
@pytest.mark.parametrize("head", ["dilated", "linear"])
def test_onnx_of_a_crowds_net_takes_pictures_of_any_size(head, tmp_path):
    net = settled(CrowdNet(small(), head), 64)
    assert_same(saved("onnx", net, tmp_path, None), net, (1, 3, 64, 96), (2, 3, 75, 50))


@needs_onnx
def test_an_onnx_file_has_ordinary_operators_and_no_path(tmp_path):
    """No batch norm either; not where in which source file a node was made."""
    import onnx

    saved("onnx", small(), tmp_path)
    content = (tmp_path / "net.onnx").read_bytes()
    nodes = onnx.load_from_string(content).graph.node
    assert {node.domain for node in nodes} == {""} and not {"BatchNormalization"} & {node.op_type for node in nodes}
    assert b".py" not in content


def test_a_fused_graph_loads_in_fresh_processes(tmp_path):
    """With us imported before torch or after it."""
    net = small()
    file, x = tmp_path / "net.pt2", torch.randn(3, 3, 32, 32)
    export.save_pt2(fuse(net), file, (32, 32), ABOUT)
    assert b".py" not in file.read_bytes()
    torch.save(x, tmp_path / "x.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for first in ("import resnet_min, torch", "import torch, resnet_min"):
        code = f"{first}; net = torch.export.load('net.pt2').module(); torch.save(net(torch.load('x.pt')), 'out.pt')"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
        with torch.no_grad():
            torch.testing.assert_close(torch.load(tmp_path / "out.pt"), net(x), rtol=1e-4, atol=1e-5)
        (tmp_path / "out.pt").unlink()


def test_importing_us_imports_no_torch():
    """And whoever looks for torch without importing it does not keep the operators from being registered."""
    code = (
        "import sys, importlib.util, resnet_min; importlib.util.find_spec('torch'); assert 'torch' not in sys.modules; "
        "import torch; torch.ops.resnet_min.conv_bn_relu"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- folding ----


def test_folded_nets_have_no_batch_norm_and_are_new():
    for net in (small("resnet50", 64), settled(torchvision.models.resnet18(num_classes=10), 64)):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        folded = export.folded(net)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert_same(folded, net, (2, 3, 64, 64))
        torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_what_cannot_be_folded_is_named():
    with pytest.raises(UserError, match="training mode; wanted eval mode"):
        export.folded(small().train())
    net = small()
    net.layer1[0].relu1 = nn.BatchNorm2d(8).eval()
    with pytest.raises(UserError, match=r"export: layer1\.0\.relu1 follows no convolution"):
        export.folded(net)


def test_a_folder_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert runtimes.missing("torch", "only_a_folder", "not_there") == ["only_a_folder", "not_there"]


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "missing", lambda *packages: list(packages))
    for save in (export.save_onnx, lambda net, file, size, about: export.save_safetensors(net, file, about)):
        with pytest.raises(UserError, match=r'not installed here: pip install "resnet-min\[serving\]"'):
            save(small(), tmp_path / "net", (32, 32), {})
    assert not list(tmp_path.iterdir())


def test_the_largest_difference_is_over_all_batches():
    both = export.Compared(lambda x: x + (x > 2) / 4, lambda x: x)
    for x in (torch.ones(2, 3), torch.full((2, 3), 4.0), torch.zeros(2, 3)):
        both(x)
    assert both.difference == 0.25 and both.largest == 4
    both(torch.full((1, 3), torch.nan))
    assert both.difference.isnan()
