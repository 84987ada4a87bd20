"""fuse: the same logits from every net, in every form it is used in; and what it refuses."""

import copy
import io
import pickle
import re
import warnings

import pytest
import torch
import torchvision
from torch import nn

import resnet_min
from resnet_min import ops, reference
from resnet_min.errors import UserError
from resnet_min.inference import cudnn
from resnet_min.inference import fused as fusing
from resnet_min.inference.fuse import fuse
from resnet_min.inference.fused import FusedConv
from resnet_min.kernels import backend as kernels
from resnet_min.model import ARCH, resnet

NARROW = {4: (8, 16, 24, 40), 3: (8, 16, 24)}  # widths for as many stages: all layers of a deep net, in little time


def settled(net, size=32):
    """`net` in eval mode, with statistics and an affine part as after training: there is something to fold."""
    g = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=g) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=g) / 4)
    with torch.no_grad():
        net.train()(torch.randn(8, 3, size, size, generator=g) * 2 + 1)
    return net.eval()


def narrow(arch="resnet20", size=32, **options):
    return settled(resnet(arch, widths=NARROW[len(ARCH[arch][1])], **options), size)


def images(batch=2, size=32, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net():
    """A small net with every kind of shortcut but padding: none is changed by what a test does with its fused form."""
    return settled(resnet("resnet18", widths=(8, 16, 24, 40), blocks=(2, 1, 1, 1)))


def assert_same_logits(fused, net, x):
    """Off from float64 at most thrice as much as the net itself, in the fused form's dtype, or by a little rounding."""
    dtype = fused.conv1.weight.dtype
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
        eager = copy.deepcopy(net).to(dtype)(x.to(dtype))
        got = fused(x.to(dtype))

    def error(out):
        return ((out.double() - exact).norm() / exact.norm()).item()

    assert got.dtype == dtype and got.shape == exact.shape
    assert error(got) <= max(3 * error(eager), {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 0))


# ---- the same logits ----


# Not the deepest plain nets: newly drawn, they make a rounding as large as the logits.
@pytest.mark.parametrize("stem", ["cifar", "imagenet", "cifar-pool"])
@pytest.mark.parametrize(
    "arch, options",
    [
        *((arch, {}) for arch in ARCH),
        *((arch, {"plain": True}) for arch in ("resnet18", "resnet50", "resnet20")),
        ("resnet20", {"option": "B"}),
    ],
    ids=str,
)
def test_every_net_of_ours(arch, stem, options):
    size = 32 if stem == "cifar" else 64  # maps of one pixel have no statistics to speak of
    net, x = narrow(arch, size, stem=stem, dropout=0.5, **options).double(), images(size=size).double()
    with torch.no_grad():
        torch.testing.assert_close(fuse(net)(x), net(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "arch, dtype",
    [
        *((arch, dtype) for arch in ("resnet18", "resnet50") for dtype in (torch.float32, torch.bfloat16)),
        *(("resnet20", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)),
    ],
)
def test_full_width(arch, dtype):
    net = settled(resnet(arch))
    fused = fuse(net, dtype)
    assert fused(images().to(dtype)).dtype == dtype
    assert_same_logits(fused, net, images())
    assert_same_logits(fuse(net.to(dtype)), net, images())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvision(arch):
    net = settled(getattr(torchvision.models, arch)(num_classes=10), 64)
    assert_same_logits(fuse(net), net, images(size=64))


def test_torchvision_as_people_change_it():
    """Another stem, no max-pool, another head; a convolution with a bias."""
    net = torchvision.models.resnet18()
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
    net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 7))
    settled(net)
    assert_same_logits(fuse(net), net, images())


def test_batch_norm_without_affine_part():
    net = narrow()
    net.layer1[0].bn1 = nn.BatchNorm2d(8, affine=False).eval()
    assert_same_logits(fuse(net), net, images())


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_both_backends(net, backend):
    ops.set_backend(backend)
    assert_same_logits(fuse(net), net, images())
    ops.set_backend("auto")


def test_backends_may_change_between_calls(net):
    fused = fuse(net)
    expected = [fused(images()), fused(images())]
    ops.set_backend("reference")
    expected.append(fused(images()))
    ops.set_backend("auto")
    for logits in expected:
        torch.testing.assert_close(logits, expected[0])


@pytest.mark.parametrize("batch", [0, 1, 15, 17, 40])
def test_batch_sizes(net, batch, monkeypatch):
    """In slices or whole, the logits are the same."""
    fused, x = fuse(net), images(batch)
    logits = fused(x)
    assert logits.shape == (batch, 10)
    for size in (1, 10**9):
        monkeypatch.setattr(fusing, "SLICE_BYTES", size)
        torch.testing.assert_close(logits, fused(x))
    if batch:
        assert_same_logits(fused, net, x)


@pytest.mark.parametrize("dtype, slices", [(torch.float64, 8), (torch.bfloat16, 2)])
def test_a_large_batch_runs_in_slices(net, dtype, slices, monkeypatch):
    """Where a layer is a call. What layer1 writes, 8 channels of 32 by 32, is cut evenly to what the threads' caches
    hold: here 13 images of float32."""
    monkeypatch.setattr(fusing, "SLICE_BYTES", 13 * 8 * 32 * 32 * 4 // torch.get_num_threads())
    fused, seen = fuse(net, dtype), []
    fused.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    fused(images(48).to(dtype))
    assert seen == [48 // slices] * slices
    seen.clear()
    fused(images(6).to(dtype))
    assert seen == [6]


def test_sizes_may_change(net):
    fused = fuse(net)
    for size in (32, 24, 17, 40):
        assert_same_logits(fused, net, images(size=size))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_cuda(net, dtype):
    fused, x = fuse(net, dtype), images(40).to(dtype)
    torch.testing.assert_close(fused.cuda()(x.cuda()).cpu(), fused.cpu()(x), rtol=0.05, atol=0.05)


# ---- the module ----


def test_the_model_is_left_alone(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fused = fuse(net, torch.bfloat16)
    for tensor in (*fused.parameters(), *fused.buffers()):
        tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_nothing_in_it_trains(net):
    fused = fuse(net)
    assert not fused.training and not any(p.requires_grad for p in fused.parameters())
    assert not fused(images()).requires_grad
    with pytest.raises(RuntimeError, match="it is for inference, inputs must not require grad"):
        fused(images().requires_grad_())


def test_copy_save_and_load(net):
    """Also of one that has run, and so holds weights in an order of oneDNN's."""
    fused, x = fuse(net), images()
    expected = fused(x)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(twin(x), expected)
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    other = fuse(settled(copy.deepcopy(net), size=48))
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(file, weights_only=True))  # into one that has run
    assert torch.equal(other(x), expected)


def test_names_are_the_models(net):
    names = set(fuse(net).state_dict())
    assert {"conv1.weight", "layer2.0.conv2.bias", "layer2.0.downsample.weight", "fc.weight"} <= names
    assert not [name for name in names if "bn" in name or "prepacked" in name]


def test_moved_and_written_to_after_a_call(net):
    fused, x = fuse(net), images()
    expected = fused(x)
    torch.testing.assert_close(fused.double()(x.double()).float(), expected)
    fused.float()
    for write in (lambda conv: conv.weight.mul_(2), lambda conv: setattr(conv, "weight", conv.weight * 2)):
        write(fused.conv1)
        expected = fused(x)
        assert torch.equal(copy.deepcopy(fused)(x), expected)


def test_layers_changed_after_a_call(net):
    """At any depth: what ran before is forgotten."""
    fused, x = fuse(net), images()

    def replace():
        conv = copy.deepcopy(fused.layer1[0].conv1)
        conv.weight.mul_(3)
        fused.layer1[0].conv1 = conv

    def set_to(module, name, value):
        return lambda: setattr(module, name, value)

    for change in (
        replace,
        lambda: fused.layer1.append(copy.deepcopy(fused.layer1[0])),
        lambda: fused.layer1.__delitem__(1),
        set_to(fused.layer3[0].conv1, "relu", False),
        set_to(fused.layer1[0], "downsample", None),
        lambda: nn.utils.parametrizations.weight_norm(fused.fc),
        set_to(fused, "fc", nn.Linear(fused.fc.in_features, 7).requires_grad_(False)),
        set_to(fused.avgpool, "output_size", (1, 1)),
    ):
        fused(x)
        change()
        assert torch.equal(fused(x), copy.deepcopy(fused)(x))


def test_made_in_inference_mode(net):
    """Its weights are written to as any other's."""
    other = settled(copy.deepcopy(net), size=48)
    with torch.inference_mode():
        fused = fuse(net)
        fused(images())
        fused.load_state_dict(fuse(other).state_dict())
        assert torch.equal(fused(images()), fuse(other)(images()))


def test_of_a_compiled_model(net):
    fused = fuse(torch.compile(net, backend="eager"))
    assert type(fused) is fusing.FusedResNet
    assert_same_logits(fused, net, images())


BAD_IMAGES = [
    (lambda x: x.double(), "got float64 [2, 3, 32, 32] on cpu: images.to(torch.float32)"),
    (lambda x: x.permute(0, 2, 3, 1), "got float32 [2, 32, 32, 3] on cpu: images.permute(0, 3, 1, 2)"),
    (lambda x: x[0], "got float32 [3, 32, 32] on cpu: images[None]"),
    (lambda x: x.byte(), "got uint8 [2, 3, 32, 32] on cpu: `predict` takes uint8"),
    (lambda x: x.repeat(1, 2, 1, 1), "got float32 [2, 6, 32, 32] on cpu"),
]


@pytest.mark.parametrize("bad, said", BAD_IMAGES)
def test_images_that_it_does_not_take(net, bad, said):
    for call in (fuse(net), fuse(net).features):
        with pytest.raises(ValueError, match=re.escape(f"images must be float32 [B, 3, H, W] on cpu; {said}") + "$"):
            call(bad(images()))
        with pytest.raises(TypeError, match="images must be a tensor; got ndarray"):
            call(images().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traced_by_jit(net, dtype):
    fused, x = fuse(net, dtype), images().to(dtype)
    with pytest.warns((FutureWarning, DeprecationWarning, torch.jit.TracerWarning)):
        traced = torch.jit.trace(fused, x)
    torch.testing.assert_close(traced(x), fused(x), rtol=0.05, atol=0.05)


@pytest.mark.skipif("cpu" not in kernels._kernel_devices, reason="no compiled kernels")
def test_weights_are_prepacked_once(net):
    """A write that gives a weight no new version goes unnoticed; any other does not."""
    fused, x = fuse(net), images()
    expected = fused(x)
    fused.conv1.weight.data.mul_(2)
    assert torch.equal(fused(x), expected)
    fused.conv1.weight.mul_(0.5)
    assert torch.equal(fused(x), expected)
    fused.conv1.weight.mul_(2)
    assert not torch.equal(fused(x), expected)


def test_a_layer_may_be_replaced(net):
    fused, x = fuse(net), images()
    fused(x)
    fused.fc = nn.Linear(40, 3).requires_grad_(False)
    assert fused(x).shape == (2, 3)
    fused.fc = nn.Sequential(nn.Linear(40, 7), nn.Softmax(1)).requires_grad_(False)
    torch.testing.assert_close(fused(x).sum(1), torch.ones(2))
    fused.maxpool = nn.AvgPool2d(2)  # which the operator has not
    assert fused(x).shape == (2, 7)


def test_hooks_of_the_fused_form_are_called(net):
    fused, x, seen = fuse(net), images(), []
    expected = fused(x)
    handle = fused.layer2[0].conv1.register_forward_hook(lambda _, inputs, out: seen.append(out.shape))
    torch.testing.assert_close(fused(x), expected)
    assert len(seen) == 1
    handle.remove()
    assert torch.equal(fused(x), expected) and len(seen) == 1


@pytest.mark.parametrize("plain", [False, True])
def test_the_last_maps(plain):
    net = settled(resnet("resnet20", widths=(8, 16, 24), plain=plain))
    with torch.no_grad():
        torch.testing.assert_close(fuse(net).features(images()), net.features(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("cpu" not in kernels._kernel_devices, reason="no compiled kernels")
def test_winograd_by_name():
    """F(4×4, 3×3) computes the same, less exactly; other names are refused."""
    net, x = settled(resnet("resnet18", blocks=(1, 1, 1, 1))), images()
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
    usual, named = fuse(net)(x), fuse(net, winograd="4x4")(x)
    assert not torch.equal(usual, named)
    assert ((named - exact).norm() / exact.norm()).item() < 1e-4
    with pytest.raises(UserError, match='fuse: winograd must be "4x4" or None; got 4'):
        fuse(net, winograd=4)


@pytest.fixture
def trials(monkeypatch):
    """As on a GPU: cuDNN's part is the reference's, and what each takes is made up. The trials that there were."""
    tried = []

    def milliseconds(call, args):
        tried.append((call, tuple(args[0].shape)))
        theirs_wins = len(args[0]) > 2
        return 1 if (call is cudnn.conv_bn_relu) == theirs_wins else 2

    def theirs(*args):
        return reference.conv_bn_relu(*args)

    monkeypatch.setattr(fusing.FusedResNet, "_in_one_call", lambda *_: False)
    monkeypatch.setattr(cudnn, "fuses", lambda x, relu: relu)
    monkeypatch.setattr(cudnn, "conv_bn_relu", theirs)
    monkeypatch.setattr(cudnn, "milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return tried


def with_trials(fused):
    """Its convolutions but for the first, which also tells how large a CPU's slices are to be."""
    return [conv for name, conv in fused.named_modules() if isinstance(conv, FusedConv) and name != "conv1"]


def test_a_trial_for_each_shape(net, trials):
    fused = fuse(net)
    for batch in (2, 3, 2, 3):
        assert_same_logits(fused, net, images(batch))
    relus = [conv for conv in with_trials(fused) if conv.relu]
    assert len(trials) == len(relus) * 2 * 2 + 2 * 3  # of conv1 with a batch of 1, too
    for conv in relus:
        chosen = {shape[0]: call for (shape, _, _), call in conv._choices.items()}
        assert chosen == {2: ops.conv_bn_relu, 3: cudnn.conv_bn_relu}
    assert not any(conv._choices for conv in with_trials(copy.deepcopy(fused)))


def test_a_trial_without_an_engine_of_cudnn(net, trials, monkeypatch):
    def milliseconds(call, args):
        if call is cudnn.conv_bn_relu:
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        return 1e9

    monkeypatch.setattr(cudnn, "milliseconds", milliseconds)
    fused = fuse(net)
    assert_same_logits(fused, net, images(3))
    assert all(set(conv._choices.values()) == {ops.conv_bn_relu} for conv in with_trials(fused) if conv.relu)


def test_no_trial_while_a_graph_is_captured(net, trials, monkeypatch):
    fused = fuse(net)
    fused(images(3))
    done = len(trials)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    fused(images(3))  # what was found before is used
    fused(images(4))
    assert len(trials) == done and all(len(conv._choices) < 2 for conv in with_trials(fused))


@pytest.mark.parametrize("how", ["cudnn", "torch"])
def test_no_trial_where_results_must_repeat(net, trials, how, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", how == "cudnn")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: how == "torch")
    fuse(net)(images(3))
    assert not trials


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_made_and_run_without_grad(net, mode):
    with mode():
        fused = fuse(net)
        logits = [fused(images()), fused(images())]
    logits.append(fused(images()))
    for again in logits:
        torch.testing.assert_close(again, logits[0])


def test_under_autocast(net):
    """The fused form has its dtype already; what is kept of the model may follow autocast."""
    fused, x = fuse(net), images()
    with torch.autocast("cpu", torch.bfloat16):
        for backend in ("auto", "reference"):
            ops.set_backend(backend)
            torch.testing.assert_close(fused(x).float(), fused.float()(x).float(), rtol=0.05, atol=0.05)
    ops.set_backend("auto")


# ---- graphs ----


@pytest.mark.parametrize("arch, backend", [("resnet18", "auto"), ("resnet20", "auto"), ("resnet20", "reference")])
def test_compiles_without_a_graph_break(arch, backend):
    ops.set_backend(backend)
    fused = fuse(narrow(arch, blocks=(1,) * len(ARCH[arch][1])))
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (4, 40):
            torch.testing.assert_close(compiled(images(batch)), fused(images(batch)))
    ops.set_backend("auto")


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # of torch.export.save, on channels_last weights
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("run_before", [False, True])
def test_exports_with_a_dynamic_batch(run_before, strict, backend, tmp_path):
    ops.set_backend(backend)
    fused = fuse(narrow(blocks=(1, 1, 1)))
    if run_before:
        fused(images())
    batch = torch.export.Dim("batch")
    exported = torch.export.export(fused, (images(4),), dynamic_shapes=({0: batch},), strict=strict)
    torch.export.save(exported, tmp_path / "fused.pt2")
    loaded = torch.export.load(tmp_path / "fused.pt2").module()
    for batch in (1, 4, 40):
        torch.testing.assert_close(loaded(images(batch)), fused(images(batch)))
    if backend == "auto" and "cpu" in kernels._kernel_devices:
        assert sum("fused_net" in str(node.target) for node in exported.graph.nodes) == 1
    ops.set_backend("auto")


# ---- what it refuses ----


def spoiled(path, module):
    """A net whose layer at `path` is another module."""
    net = resnet("resnet18", widths=(8, 16, 24, 40)).eval()
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module.eval())
    return net


class Mine(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def conv(**options):
    return nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, "bias": False, **options})


@pytest.mark.parametrize(
    "path, module, message",
    [
        ("layer1.0.relu1", nn.GELU(), "layer1.0.relu1 is GELU; wanted torch's ReLU"),
        ("relu", nn.Identity(), "relu is Identity; wanted torch's ReLU"),
        ("layer1.1.bn2", nn.GroupNorm(2, 8), "layer1.1.bn2 is GroupNorm; wanted torch's BatchNorm2d or torch's SyncBa"),
        ("bn1", nn.BatchNorm2d(8, track_running_stats=False), "bn1 has no running statistics"),
        ("layer2.0", nn.Identity(), "layer2.0 is Identity; wanted resnet_min's BasicBlock or"),
        ("layer3", nn.Identity(), "layer3 is Identity; wanted torch's Sequential"),
        (
            "layer2.0.downsample",
            nn.AvgPool2d(2),
            "layer2.0.downsample is AvgPool2d; wanted resnet_min's Projection or",
        ),
        ("layer1.0.conv1", Mine(8, 8, 3, padding=1), "layer1.0.conv1 is Mine; wanted torch's Conv2d"),
        ("layer1.0.conv1", conv(groups=2), "layer1.0.conv1 has groups=2; wanted 1"),
        ("layer1.0.conv1", conv(dilation=2, padding=2), "layer1.0.conv1 has dilation=(2, 2); wanted (1, 1)"),
        ("layer1.0.conv1", conv(padding_mode="reflect"), "layer1.0.conv1 has padding_mode='reflect'; wanted 'zeros'"),
        ("layer1.0.conv1", conv(padding="same"), "layer1.0.conv1 has padding='same'; wanted one number for both"),
        ("layer1.0.conv1", conv(stride=(1, 2)), "layer1.0.conv1 has stride=(1, 2); wanted one number for both"),
    ],
)
def test_a_layer_it_does_not_understand_is_named(path, module, message):
    with pytest.raises(UserError) as error:
        fuse(spoiled(path, module))
    assert str(error.value).startswith(f"fuse: {message}")


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Linear(1, 1), "the model is Linear; wanted resnet_min's ResNet or torchvision's ResNet"),
        (nn.Sequential(nn.Flatten()), "the model is Sequential"),
        (nn.Sequential(resnet("resnet20"), resnet("resnet20")), "the model holds several ResNets, 0, 1; wanted one"),
        (nn.ModuleDict(dict.fromkeys("ab", resnet("resnet20"))), "the model holds several ResNets, a, b; wanted one"),
        ("resnet18", "the model is str; wanted a module"),
        ({"model": {}}, "the model is dict; wanted a module"),
    ],
)
def test_another_model(model, message):
    with pytest.raises(UserError, match=f"fuse: {message}"):
        fuse(model)


def test_grouped_convolutions():
    with torch.device("meta"):
        net = torchvision.models.resnext50_32x4d().eval()
    with pytest.raises(UserError, match="fuse: layer1.0.conv2 has groups=32; wanted 1"):
        fuse(net)


def test_training_mode():
    net = narrow(blocks=(1, 1, 1))
    with pytest.raises(UserError, match=r"fuse: the model is in training mode; wanted eval mode: call model.eval\(\)"):
        fuse(net.train())
    net.eval().layer1.train()
    with pytest.raises(UserError, match="fuse: layer1 is in training mode"):
        fuse(net)


def test_hooks():
    net = narrow(blocks=(1, 1, 1))
    net.layer2.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="fuse: layer2 has hooks, which the fused form would not call"):
        fuse(net)


def test_dtypes(net):
    with pytest.raises(UserError, match="fuse: dtype must be one of torch.float32, .*; got torch.int8"):
        fuse(net, torch.int8)
    with pytest.raises(ValueError, match="images must be bfloat16 .*; got float32 .*: images.to"):
        fuse(net, torch.bfloat16)(images())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_emulated_dtype_is_warned_of_once(net, dtype, monkeypatch):
    """On a processor without bfloat16 instructions, and at the first call: the net may be for another device."""
    fusing.warn_where_emulated.cache_clear()
    monkeypatch.setattr(kernels, "has_bf16", lambda device: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse(net)(images())
        fused = fuse(net, dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=f"this processor emulates {name}: .* several times slower"):
        fused(images().to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(images().to(dtype))
        fusing.warn_where_emulated.cache_clear()
        monkeypatch.setattr(kernels, "has_bf16", lambda device: True)
        fuse(net, dtype)(images().to(dtype))


def test_it_is_public():
    assert resnet_min.fuse is fuse
