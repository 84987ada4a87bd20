"""`resnet_min.load`: from a run, a checkpoint or a state_dict to a net that predicts from pixels."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import make_part
from PIL import Image, ImageOps

import resnet_min
import train
from resnet_min import data
from resnet_min.errors import UserError
from resnet_min.inference.export import save_safetensors
from resnet_min.tasks import trained
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.tasks.classify.task import predict
from resnet_min.training import checkpoint
from resnet_min.training.hardware import cpu
from tools.export import about

TINY = dict(arch="resnet20", blocks=(1, 1), widths=(8, 16), strides=(1, 2), mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def save(folder, classes=tuple("0123456789"), **options):
    """A run's folder of an untrained net, whose batch norms have seen something."""
    config = ClassifyConfig(**{**TINY, "data": "digits", **options})
    net = config.make_task().build(classes)
    net.to(memory_format=torch.channels_last)(torch.randn(64, 16, 16, 3).permute(0, 3, 1, 2))
    folder.mkdir(parents=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    checkpoint.save(folder / "last.pt", checkpoint.snapshot(net, optimizer, config, classes, 1, 1))
    return folder


@pytest.mark.parametrize("options", [{}, {"resize": 40}, {"image_size": 24}, {"channels_last": False}], ids=str)
def test_a_run_predicts_as_eval_judges_it(tmp_path, options):
    run = save(tmp_path / "run", **options)
    net = resnet_min.load(run)
    assert isinstance(net, resnet_min.model.ResNet) and not net.training and net.classes == tuple("0123456789")
    subject = trained.load(run)
    layout = torch.channels_last if subject.task.config.channels_last else torch.contiguous_format
    test = trained.load_data(subject).test
    batches = subject.task.batches(test, cpu(), 256).ordered()
    _, accuracy, logits = predict(subject.net.to(memory_format=layout), batches, cpu())
    assert net.layer1[0].conv1.weight.is_contiguous(memory_format=layout)
    got = net.predict(test.images)
    assert torch.equal(got, logits.softmax(1))
    assert 100 * (got.argmax(1) == test.labels).double().mean() == pytest.approx(accuracy)
    assert not got.requires_grad and not got.is_inference()
    assert torch.equal(resnet_min.load(run / "last.pt").predict(test.images), got)


def test_one_image_or_several_of_any_size(tmp_path):
    net = resnet_min.load(save(tmp_path / "run"))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((8, 8), (32, 32), (90, 40))]
    several = net.predict(images)
    assert several.shape == (3, 10) and torch.allclose(several.sum(1), torch.ones(3))
    for image, wanted in zip(images, several, strict=True):
        for one in (image, torch.from_numpy(image), Image.fromarray(image), image[None]):
            torch.testing.assert_close(net.predict(one), wanted[None])
    torch.testing.assert_close(net.predict(images, batch_size=2), several)
    assert net.predict([]).shape == net.predict(torch.zeros(0, 5, 5, 3, dtype=torch.uint8)).shape == (0, 10)
    assert torch.equal(net.predict(images, np.int64(256)), several)
    for size in (0, "8", 2.5, None, True):
        with pytest.raises(ValueError, match=f"^predict: batch_size is a whole number of at least 1; got {size!r}$"):
            net.predict(images, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_form_predicts_the_same(tmp_path, dtype):
    net = resnet_min.load(save(tmp_path / "run"))
    fast, test = resnet_min.fuse(net, dtype), data.load("digits").test.images[:50]
    assert fast.classes == net.classes
    got = fast.predict(test)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), net.predict(test), rtol=1e-4, atol=1e-5)
    assert fast.predict([]).shape == (0, 10)


def test_a_net_that_predicts_is_copied_and_saved_as_any_other(tmp_path):
    net = resnet_min.load(save(tmp_path / "run"))
    image = Image.effect_noise((40, 40), 90)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.predict(image), net.predict(image)) and other.classes == net.classes
    assert net.state_dict().keys() == resnet_min.resnet("resnet20", blocks=(1, 1), widths=(8, 16)).state_dict().keys()


def test_without_a_normalisation_there_is_no_prediction(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    net = resnet_min.resnet20().eval()
    for blind in (net, resnet_min.fuse(net), resnet_min.load(net.state_dict(), "resnet20")):
        with pytest.raises(ValueError, match="normalised is not known; load it with its mean and std"):
            blind.predict(image)
    net = resnet_min.load(save(tmp_path / "run")).train()
    with pytest.raises(ValueError, match="in training mode"):
        net.predict(image)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_diverged_is_said_to_have(bad, tmp_path):
    net = resnet_min.load(save(tmp_path / "run"))
    with torch.no_grad():
        net.fc.bias[3] = bad
    for one in (net, resnet_min.fuse(net)):
        with pytest.raises(UserError, match="^the model's outputs are not all finite: the weights are from a run that"):
            one.predict(np.zeros((2, 32, 32, 3), np.uint8))


def test_weights_of_another_library(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    old = {name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}  # before 0.4.1
    torch.save(old, tmp_path / "theirs.pth")
    x, names = torch.randn(2, 3, 64, 64), [f"class {n}" for n in range(7)]
    for source in (tmp_path / "theirs.pth", str(tmp_path / "theirs.pth"), theirs.state_dict()):
        net = resnet_min.load(source, "resnet18", classes=names, **IMAGENET)
        torch.testing.assert_close(net(x), theirs(x))
    assert net.classes == tuple(names) and net.preprocessing.size == 224
    picture = Image.effect_noise((300, 260), 80)
    normalise = torchvision.transforms.Normalize(**IMAGENET)
    seen = ImageOps.fit(picture.convert("RGB"), (224, 224), Image.Resampling.BILINEAR)
    wanted = theirs(normalise(torchvision.transforms.ToTensor()(seen))[None]).softmax(1)
    torch.testing.assert_close(net.predict(picture), wanted)


def test_a_state_dict_of_ours_is_of_small_images():
    net = resnet_min.resnet20(num_classes=4).eval()
    loaded = resnet_min.load(net.state_dict(), "resnet20", **IMAGENET)
    assert loaded.preprocessing.size == 32 and loaded.classes == ()
    assert loaded.predict(np.zeros((2, 40, 40, 3), np.uint8)).shape == (2, 4)


def test_what_is_given_replaces_the_checkpoints(tmp_path):
    run = save(tmp_path / "run", image_size=24, resize=28)
    net = resnet_min.load(run, "resnet20", classes=list("abcdefghij"), mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert net.classes == tuple("abcdefghij") and net.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (net.preprocessing.size, net.preprocessing.resize) == (24, 28)


@pytest.mark.parametrize("spoilt", [{}, {"classes": ["a"]}, {"config": 5}, {"mean": "x"}], ids=str)
def test_weights_that_were_exported_say_which_network_they_are_of(spoilt, tmp_path):
    pytest.importorskip("safetensors")
    run, file = save(tmp_path / "run", image_size=24, resize=28, option="B"), tmp_path / "net.safetensors"
    subject = trained.load(run)
    save_safetensors(subject.net, file, about(subject, (24, 24)) | spoilt)
    if spoilt:
        with pytest.raises(UserError, match="net.safetensors (is not a sound checkpoint|was trained as)") as error:
            resnet_min.load(file)
        assert "\n" not in str(error.value)
        return
    net, wanted, image = resnet_min.load(file), resnet_min.load(run), np.zeros((40, 40, 3), np.uint8)
    assert torch.equal(net.predict(image), wanted.predict(image))
    assert net.classes == wanted.classes and net.preprocessing == wanted.preprocessing
    assert trained.load(file).task.config.option == "B"


def test_odd_names_of_classes_are_kept(tmp_path):
    odd = ("a b", "$x_1$", "naïve\n", "\udcff", "", "猫", "1e3", "None", "a/b", "x" * 300)
    assert resnet_min.load(save(tmp_path / "run", classes=odd)).classes == odd


def test_refusals(tmp_path):
    run = save(tmp_path / "run")
    weights = resnet_min.resnet20().state_dict()
    (tmp_path / "words.pth").write_text("no weights")
    cases = [
        ((tmp_path / "none",), {}, "no checkpoint at .*none"),
        ((tmp_path / "words.pth", "resnet20"), {}, "words.pth is"),
        ((run, "resnet18"), {}, "is a resnet20; an arch"),
        ((run,), dict(classes=["a", "b"]), r"tells 10 classes; got the names \['a', 'b'\]"),
        ((run,), dict(classes="0123456789"), "tells 10 classes; got the names '0123456789'"),
        ((run,), dict(classes=10), "tells 10 classes; got the names 10"),
        ((run,), dict(classes=list("abcdefghha")), "^classes: each one has a name of its own; got 'a' 2 times$"),
        ((weights, 20), {}, "unknown arch 20; known: resnet18"),
        ((weights, ["resnet20"]), {}, r"unknown arch \['resnet20'\], did you mean resnet20\?; known: "),
        ((run,), dict(mean=(0, 0, 0)), "mean and std go together"),
        ((run,), dict(mean=(0, 0, 0), std=(1, 1)), "std is 3 numbers"),
        ((weights,), {}, "does not say of which network it is: give its arch"),
        ((weights, "resnet32"), {}, "the state_dict holds another architecture: 60 tensors differ"),
        ((weights, "resnet21"), {}, "unknown arch 'resnet21', did you mean"),
        (({}, "resnet20"), {}, "the state_dict holds no weights"),
        (({"a": 1}, "resnet20"), {}, "the state_dict holds no weights"),
        (({"a": torch.zeros(1)}, "resnet20"), {}, "no conv1.weight and fc.weight"),
    ]
    for args, named, said in cases:
        with pytest.raises(UserError, match=said) as error:
            resnet_min.load(*args, **named)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("source, got", [(None, "None"), (5, "int"), (resnet_min.resnet20, "function")])
def test_what_is_no_source_is_refused(source, got, tmp_path, monkeypatch):
    """The newest run, which None means to the scripts, is nothing that a program asks for."""
    save(tmp_path / "runs" / "newest")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^load takes a run's folder, a file, or a state_dict .*; got {got}$"):
        resnet_min.load(source, "resnet20")


def test_options_that_do_not_fit_the_weights_or_the_data(tmp_path):
    run = save(tmp_path / "run")
    with pytest.raises(UserError, match="part is data of --task crowd; .*last.pt is of --task classify"):
        trained.load_data(trained.load(run), data=str(make_part(tmp_path / "part", train=1, test=1)))
    saved = checkpoint.load(run)
    saved["config"]["blocks"] = (10**7, 10**7)
    checkpoint.save(run / "last.pt", saved)
    with pytest.raises(UserError, match="--blocks 10000000 10000000 are more than the"):
        trained.load(run)


def test_a_net_without_classes_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_part(tmp_path / "part")
    train.main([
        "--task", "crowd", "--arch", "resnet20", "--blocks", "1", "--widths", "4", "--strides", "2", "--crop", "32",
        "-b", "2", "--val-size", "0", "--schedule", "constant", "--data", "part", "--epochs", "1", "--out", "run",
    ])  # fmt: skip
    with pytest.raises(UserError, match="run/last.pt is of --task crowd: it has no classes to predict"):
        resnet_min.load("run")


def test_loading_and_predicting_need_the_cards_packages_only(tmp_path):
    code = (
        "import sys, numpy, resnet_min; net = resnet_min.load(sys.argv[1]); "
        "net.predict(numpy.zeros((1, 32, 32, 3), numpy.uint8)); "
        "print([m for m in ('matplotlib', 'sklearn', 'scipy', 'torchvision') if m in sys.modules])"
    )
    run, root = save(tmp_path / "run"), Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, run], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
