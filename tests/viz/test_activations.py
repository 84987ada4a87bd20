import torch

from resnet_min import model as models
from resnet_min.viz.activations import gradcam, peaks
from resnet_min.viz.layers import outputs


def network(**options):
    return models.resnet("resnet20", 3, blocks=(1, 1), widths=(4, 8), **options).eval()


def test_peaks_are_the_maxima_of_each_image():
    net, images = network(), torch.randn(7, 3, 12, 10)
    values, places = peaks(net, [(part, None) for part in images.split(3)], "layer2.0.bn1")
    with torch.no_grad():
        maps = outputs(net, images, ["layer2.0.bn1"])[1]["layer2.0.bn1"]
    assert values.shape == (7, 8) and places.shape == (7, 8, 2)
    torch.testing.assert_close(values, maps.amax((2, 3)))
    for image in range(7):
        for channel in range(8):
            row, column = places[image, channel]
            torch.testing.assert_close(maps[image, channel, row, column], values[image, channel])


def test_gradcam_of_the_last_stage_is_the_class_activation_map():
    """There, before mean pooling and one linear layer, Grad-CAM is CAM (Selvaraju et al., 2017) over h w."""
    net, images = network(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        maps = net.features(images)
    for target in range(3):
        expected = torch.einsum("c, bchw -> bhw", net.fc.weight[target], maps).clamp(min=0) / maps[0, 0].numel()
        torch.testing.assert_close(gradcam(net, images, "layer2", target), expected)


def test_gradcam_at_an_early_layer_and_without_grad():
    net, images = network(stem="imagenet").requires_grad_(False), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        heat = gradcam(net, images, "conv1", 1)
    assert heat.shape == (1, 16, 16) and heat.min() >= 0 and not heat.requires_grad
