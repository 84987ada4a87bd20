import dataclasses
import json

import pytest
import torch

from resnet_min.errors import UserError
from resnet_min.model import count_parameters
from resnet_min.recipes import RECIPES, describe, recipe
from resnet_min.tasks import make_config


def test_every_recipe_is_a_config_with_a_source():
    for name, item in RECIPES.items():
        make_config(item.settings)
        assert recipe(name) is item and item.source and str(item.published)
        wanted = "imagenet" in str(item.settings.get("pretrained"))
        assert wanted == (name in ("li-resnet34-finetune", "gupta-finetune", "gupta-freeze6", "gupta-freeze10"))


def test_the_list_names_every_recipe_and_what_was_published():
    text = describe()
    for name, item in RECIPES.items():
        assert f"  {name} " in text and str(item.published) in text and f"{item.source}:\n" in text
    assert "li-resnet34-scratch            test 91.31%, converges at epoch 100\n" in text
    assert "gupta-scratch                  train 97.8%, val 73.7%, test 73%, 364 s\n" in text


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("yuan-v1-sgd", 4_903_242),
        ("yuan-v2-adam", 1_891_658),
        ("yuan-resnet152", 58_156_618),
        ("gupta-scratch", 11_181_642),
        ("li-resnet34-scratch", 21_282_122),
        ("nctu-resnet50-plain", 20_744_266),
        ("qiu-resnet18", 11_181_642),
    ],
)
def test_a_recipes_net_has_the_published_parameters(name, parameters):
    with torch.device("meta"):
        net = make_config(recipe(name).settings).make_task().build(range(10))
    assert count_parameters(net) == parameters


def test_config_survives_json():
    config = make_config(dict(blocks=(1, 1), milestones=(3, 5), mean=(0.1, 0.2, 0.3)))
    assert make_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stem": "round"}, "--stem is one of cifar, imagenet, cifar-pool"),
        ({"flip": 1.5}, "--flip must be between 0 and 1"),
        ({"padding": -1}, "--padding must not be negative"),
        ({"nesterov": True, "optimizer": "adam"}, "--nesterov needs"),
        ({"milestones": (5, 5)}, "--milestones must be positive and increasing"),
        ({"mean": (0.5, 0.5)}, "--mean needs 3 numbers"),
        ({"std": (0.5, 0.5, 0)}, "--std must be positive"),
        ({"image_size": 0}, "--image-size must be at least 1"),
        ({"freeze": "first-last", "freeze_children": 3}, "give one of them"),
        ({"freeze_bn": True}, "--freeze-bn needs --freeze or --freeze-children"),
        ({"freeze": "first-last", "freeze_lr": 0.1}, "--freeze-lr is the learning rate of the first --freeze-epochs"),
        ({"freeze": "first-last", "freeze_epochs": 9, "epochs": 9}, "leaves none of --epochs 9"),
        ({"t_max": 0}, "--t-max must be at least 1"),
        ({"crop": 64}, "--crop is an option of --task crowd; this is --task classify"),
        ({"task": "crowd", "padding": 4}, "--padding is an option of --task classify; this is --task crowd"),
        ({"task": "crowds"}, "unknown task 'crowds', did you mean crowd"),
    ],
)
def test_slips_are_named_by_their_flag(options, says):
    with pytest.raises(UserError, match=says):
        make_config(options)
