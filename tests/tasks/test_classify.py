"""The task of classes: how a pass is judged, and what it says of a picture."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from resnet_min.data import Split
from resnet_min.errors import UserError
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.tasks.classify.task import predict
from resnet_min.training.hardware import cpu


def test_a_pass_weighs_images_alike_and_restores_nothing():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    batches = [(torch.randn(size, 3, 2, 2), torch.randint(0, 5, (size,))) for size in (4, 4, 1)]
    loss, accuracy, logits = predict(net, batches, cpu())
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    torch.testing.assert_close(logits, net(images))
    assert loss == pytest.approx(F.cross_entropy(net(images), labels).item())
    assert accuracy == pytest.approx(100 * (net(images).argmax(1) == labels).double().mean().item())
    assert not net.training and logits.dtype == torch.float32 and not logits.requires_grad


def test_a_picture_is_answered_in_words_and_drawn(tmp_path):
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "red.png")
    config = ClassifyConfig(arch="resnet20", blocks=(1,), widths=(4,), strides=(1,), mean=(0.5,) * 3, std=(0.2,) * 3)
    task = config.make_task()
    net = task.build(("hot", "cold")).eval()
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.tensor([0.0, 3.0]))
    image = task.read(tmp_path / "red.png")
    (said,) = task.answer(net, [("red.png", image)], ("hot", "cold"), cpu(), picture=tmp_path / "answer.png")
    assert (said.caption, said.more) == ("red.png: predicted cold (95.3%)", ", hot (4.7%)")
    assert said.figures["predicted"] == "cold" and sum(said.figures["probabilities"].values()) == pytest.approx(1)
    assert Image.open(tmp_path / "answer.png").size[0] > 500


def test_an_answer_names_the_three_likeliest_classes():
    config = ClassifyConfig(arch="resnet20", blocks=(1,), widths=(4,), strides=(1,), mean=(0.5,) * 3, std=(0.2,) * 3)
    task = config.make_task()
    net = task.build("abcd").eval()
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.tensor([1.0, 0.0, 3.0, 2.0]))
    image = Split(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.tensor([-1]))
    (said,) = task.answer(net, [("x", image)], "abcd", cpu())
    assert (said.caption, said.more) == ("x: predicted c (64.4%)", ", d (23.7%), a (8.7%)")
    net.fc.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="the model's outputs are not all finite"):
        list(task.answer(net, [("x", image)], "abcd", cpu()))


def test_options_of_images_reach_the_data_and_the_net():
    config = ClassifyConfig(data="digits", image_size=16, limit=20, mean=(0.5,) * 3, std=(0.2,) * 3)
    dataset = config.make_task().load()
    assert dataset.train.images.shape == (20, 16, 16, 3)
    assert config.make_task().build("ab").preprocessing.size == 16
    for unknown in ({"mean": None}, {"std": None}):  # how they are normalised
        assert dataclasses.replace(config, **unknown).make_task().build("ab").preprocessing is None


def test_batches_are_augmented_to_train_on_and_as_they_are_to_evaluate():
    config = ClassifyConfig(
        padding=2, rotation=30.0, resize=24, grow=(16,), epochs=6, batch_size=5, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    split = Split(torch.zeros(9, 16, 16, 3, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))
    drawn = {"seed": 0, "padding": 2, "flip": 0.5, "rotation": 30}
    undrawn = {"seed": 0, "padding": 0, "flip": 0, "rotation": 0}
    for batch_size, wanted in ((None, (5, drawn, (16, 24), 6)), (6, (6, undrawn, (24,), 1))):
        made = config.make_task().batches(split, cpu(), batch_size)
        assert (made.batch_size, made.drawn, made.resizes, made.epochs) == wanted and made.size == (24, 24)
    with pytest.raises(UserError, match="--batch-size 8 leaves one image"):
        dataclasses.replace(config, batch_size=8).make_task().batches(split, cpu())


def test_a_step_is_judged_by_what_is_right():
    loss, right = ClassifyConfig().make_task().loss(torch.tensor([[2.0, 0, 0], [0, 1, 0]]), torch.tensor([0, 2]))
    assert right.tolist() == [100, 0] and loss > 0
