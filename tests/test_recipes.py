import dataclasses
import json

import pytest

from resnet_min.config import Config
from resnet_min.errors import UserError
from resnet_min.recipes import RECIPES, recipe


def test_every_recipe_is_a_config_with_a_source():
    for name, preset in RECIPES.items():
        Config(**preset.settings)
        assert recipe(name) is preset and preset.source and preset.published


def test_config_survives_json():
    config = Config(blocks=(1, 1), milestones=(3, 5), mean=(0.1, 0.2, 0.3))
    assert Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stem": "round"}, "--stem is one of cifar, imagenet, cifar-pool"),
        ({"flip": 1.5}, "--flip is a share from 0 to 1"),
        ({"padding": -1}, "--padding must not be negative"),
        ({"nesterov": True, "optimizer": "adam"}, "--nesterov needs"),
        ({"milestones": (5, 5)}, "--milestones must be positive and rise"),
        ({"mean": (0.5, 0.5)}, "--mean needs 3 numbers"),
        ({"std": (0.5, 0.5, 0)}, "--std must be positive"),
        ({"image_size": 0}, "--image-size must be at least 1"),
        ({"freeze": "first-last", "freeze_children": 3}, "give one of them"),
        ({"freeze_bn": True}, "--freeze-bn needs --freeze or --freeze-children"),
        ({"freeze": "first-last", "freeze_lr": 0.1}, "--freeze-lr is the learning rate of the first --freeze-epochs"),
        ({"freeze": "first-last", "freeze_epochs": 9, "epochs": 9}, "leaves none of --epochs 9"),
        ({"t_max": 0}, "--t-max must be at least 1"),
    ],
)
def test_slips_are_named_by_their_flag(options, says):
    with pytest.raises(UserError, match=says):
        Config(**options)
