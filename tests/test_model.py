import pytest
import torch
import torchvision
from torch import nn

import resnet_min
from resnet_min.errors import UserError
from resnet_min.model import ARCH, Block, Projection, count_macs, count_parameters, resnet

# 10 classes: (CIFAR stem, ImageNet stem, plain with the CIFAR stem).
PARAMETERS = {
    "resnet18": (11_173_962, 11_181_642, 11_000_138),
    "resnet34": (21_282_122, 21_289_802, 21_108_298),
    "resnet50": (23_520_842, 23_528_522, 20_744_266),
    "resnet101": (42_512_970, 42_520_650, None),
    "resnet152": (58_156_618, 58_164_298, None),
    "resnet20": (269_722, None, 269_722),  # option A has no parameters: the plain twin has as many
    "resnet32": (464_154, None, 464_154),
    "resnet44": (658_586, None, 658_586),
    "resnet56": (853_018, None, 853_018),
    "resnet110": (1_727_962, None, 1_727_962),
}


@pytest.mark.parametrize("arch", ARCH)
def test_parameter_counts(arch):
    with torch.device("meta"):
        counts = (resnet(arch), resnet(arch, stem="imagenet"), resnet(arch, plain=True))
    for model, wanted in zip(counts, PARAMETERS[arch], strict=True):
        assert wanted is None or count_parameters(model) == wanted


@pytest.mark.parametrize(
    ("options", "cifar", "imagenet"),
    [({"blocks": (1, 1, 1, 1)}, 4_903_242, 4_910_922), ({"widths": (64, 128, 128, 128)}, 1_891_658, 1_899_338)],
    ids=["V1", "V2"],
)
def test_parameter_counts_of_the_small_variants(options, cifar, imagenet):
    assert count_parameters(resnet("resnet18", **options)) == cifar
    assert count_parameters(resnet("resnet18", stem="imagenet", **options)) == imagenet


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvision_weights_load_and_give_its_logits(arch):
    theirs = getattr(torchvision.models, arch)().eval()
    # Freshly drawn deep nets in eval mode explode; statistics of a batch make them as tame as trained ones.
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        theirs.train()(images)
        theirs.eval()
        ours = resnet(arch, num_classes=1000, stem="imagenet").eval()
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_the_block_is_equation_two_of_the_paper():
    """y = relu(F(x) + W_s x); the plain twin is relu(F(x))."""
    for plain in (False, True):
        block = resnet("resnet18", plain=plain).layer2[0].eval()
        x = torch.randn(2, 64, 8, 8)
        out = block.bn2(block.conv2(block.bn1(block.conv1(x)).clamp(min=0)))
        wanted = (out if plain else out + block.downsample(x)).clamp(min=0)
        torch.testing.assert_close(block(x), wanted)


def test_option_a_shortcut_is_strided_identity_and_zeros():
    shortcut = resnet("resnet20").layer2[0].downsample
    x = torch.randn(2, 16, 8, 8)
    out = shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2]) and not out[:, 16:].any()


def test_option_b_shortcut_is_a_projection():
    net = resnet_min.resnet20(option="B")
    assert count_parameters(net) == 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert isinstance(net.layer3[0].downsample, Projection) and net.layer3[1].downsample is None
    own = {arch: resnet(arch, option=option) for arch, option in (("resnet20", "A"), ("resnet18", "B"))}
    assert all(own[arch].state_dict().keys() == resnet(arch).state_dict().keys() for arch in own)
    assert count_parameters(resnet("resnet20", option="B", widths=(32, 16, 8))) > 0  # a projection may drop channels


@pytest.mark.parametrize(("stem", "side"), [("cifar", 4), ("imagenet", 1), ("cifar-pool", 2)])
def test_stems_and_strides(stem, side):
    assert resnet("resnet18", stem=stem).eval().features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, side, side)
    qiu = resnet("resnet18", stem="imagenet", strides=(1, 1, 2, 2))
    assert qiu.features(torch.zeros(1, 3, 32, 32)).shape[2:] == (2, 2)


def test_plain_has_no_shortcut_modules():
    blocks = [m for m in resnet("resnet50", plain=True).modules() if isinstance(m, Block)]
    assert len(blocks) == 16 and all(block.downsample is None for block in blocks)


def test_convolutions_are_drawn_by_kaiming_normal():
    weight = resnet("resnet18").layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_one_function_a_depth():
    assert count_parameters(resnet_min.resnet18(plain=True)) == 11_000_138
    assert resnet_min.resnet20(num_classes=7).fc.out_features == 7


def test_dropout_acts_in_training_only():
    model = resnet("resnet20", dropout=0.5)
    x = torch.randn(8, 3, 32, 32)
    model.eval()
    assert torch.equal(model(x), model(x))
    assert model.state_dict().keys() == resnet("resnet20").state_dict().keys()


def test_macs_of_resnet18():
    assert count_macs(resnet("resnet18"), (32, 32)) == 555_422_720  # 1.11 GFLOP


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"arch": "resnet19"}, "did you mean resnet"),
        ({"arch": 18}, "unknown arch 18; known: resnet18"),
        ({"arch": "resnet20", "num_classes": 0}, "num_classes is a whole number of at least 1; got 0"),
        ({"arch": "resnet20", "num_classes": -1}, "num_classes is a whole number of at least 1; got -1"),
        ({"arch": "resnet20", "num_classes": 2.5}, "num_classes is a whole number of at least 1; got 2.5"),
        ({"arch": "resnet18", "stem": "round"}, "cifar-pool"),
        ({"arch": "resnet18", "blocks": (2, 2)}, "one number a stage"),
        ({"arch": "resnet18", "strides": (1, 0, 2, 2)}, "are from 1 to"),
        ({"arch": "resnet20", "blocks": 3}, "blocks are a tuple, one number a stage; got 3"),
        ({"arch": "resnet20", "dropout": 2}, "dropout must be between 0 and 1; got 2"),
        ({"arch": "resnet20", "widths": (32, 16, 8)}, "cannot drop channels"),
        ({"arch": "resnet20", "option": "C"}, "unknown option 'C'; known: A"),
        ({"arch": "resnet20", "option": "B", "plain": True}, "a plain network has none"),
        ({"arch": "resnet18", "option": "A"}, "the shortcuts of resnet18 are option B"),
    ],
)
def test_what_does_not_fit_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        resnet(**options)
