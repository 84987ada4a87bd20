import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from resnet_min.errors import UserError
from resnet_min.model import count_parameters
from resnet_min.recipes import RECIPES, describe, extent, recipe, scaled
from resnet_min.runs.records import about, recipe_of
from resnet_min.tasks import make_config
from resnet_min.training.optimizer import learning_rate

ROOT = Path(__file__).parent.parent


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


def test_a_recipe_of_under_5_million_parameters_says_so():
    for name, item in RECIPES.items():
        with torch.device("meta"):
            few = count_parameters(make_config(item.settings).make_task().build(range(10))) < 5_000_000
        assert ("under 5M parameters" in item.note) == few, name


def test_what_the_reports_say_and_contradict_is_noted():
    assert recipe("yuan-resnet50").settings == recipe("yuan-resnet101").settings | {"arch": "resnet50"}
    assert "test 69.16 MAE, MSE 103.51, always" in str(recipe("li-crowd").published)
    assert recipe("gupta-tiny").published.seconds == 1431 and recipe("yuan-v2-adam").published.seconds == 900
    for name, says in (
        *((f"yuan-{net}", "randomly rotating") for net in ("resnet18", "v1-sgd", "v1-adam", "v2-sgd", "v2-adam")),
        *((f"yuan-{net}", "batches of 128") for net in ("v1-sgd", "v1-adam", "v2-sgd", "v2-adam")),
        ("yuan-v2-sgd", "weight decay of 5e-4"),
        ("gupta-freeze6", "a new sequential layer"),
        ("qiu-resnet18-no-aug", "its × stands for mixing"),
        ("qiu-resnet18", "a row of Table 2, at step 10,000"),
        ("qiu-resnet18", "on to step 20,000"),
        ("qiu-resnet18-40-epochs", "500 a pass"),
        ("nctu-resnet50", "kaiming_normal"),
    ):
        assert says in recipe(name).note, name


# ---- a schedule shrunk as a whole ----


def rates(settings, steps):
    """The learning rate of every step, with `steps` in an epoch of all training images."""
    config = make_config(settings)
    each = round(steps * config.train_share)
    return [learning_rate(config, step, each) for step in range(config.epochs * each)]


@pytest.mark.parametrize("name", ["nctu-resnet18", "li-resnet34-scratch", "yuan-v1-sgd", "gupta-scratch", "digits"])
@pytest.mark.parametrize("epochs", [8, 1, 0.3])
def test_a_scaled_schedule_is_the_whole_one_at_every_share_of_it(name, epochs):
    settings = {**recipe(name).settings}
    steps, scale = 350, epochs / settings["epochs"]
    whole, small = rates(settings, steps), rates(scaled(settings, scale), steps)
    assert len(small) == epochs * steps
    stretched = [small[int(step * len(small) / len(whole))] for step in range(len(whole))]
    # A step of the small one stands for many, within which the whole one's rate moves on.
    apart = sum(abs(one - other) for one, other in zip(whole, stretched, strict=True))
    assert apart < 0.02 * sum(whole)


def test_what_a_scaled_recipe_sets():
    nctu = scaled(recipe("nctu-resnet18").settings, 0.05)
    assert nctu["epochs"] == 8 and nctu["milestones"] == pytest.approx((81 / 164 * 8, 122 / 164 * 8))
    assert nctu["train_share"] == 1 and nctu["scale"] == 0.05
    li = scaled(recipe("li-resnet34-finetune").settings, 0.1)
    assert (li["epochs"], li["freeze_epochs"]) == (20, 5) and li["milestones"] == pytest.approx((1000, 3500))
    few = scaled(recipe("li-resnet34-finetune").settings, 0.005)  # a quarter of an epoch would be frozen
    assert (few["epochs"], few["freeze_epochs"], few["train_share"]) == (4, 1, 0.25)
    assert few["milestones"] == pytest.approx((50, 175))
    assert scaled(recipe("gupta-scratch").settings, 0.02)["t_max"] == 10
    for item in RECIPES.values():
        assert scaled(item.settings, 1) == item.settings
        for scale in (0.0001, 0.013, 0.3, 0.99):
            assert make_config(scaled(item.settings, scale)).epochs >= 1


def test_a_scaled_run_says_what_share_it_is():
    config = make_config(scaled(recipe("nctu-resnet18").settings, 0.05))
    assert extent(config, 164) == "8 of 164 epochs, schedule scaled by 0.05"
    config = make_config({**scaled(recipe("nctu-resnet18").settings, 0.002), "limit": 90})
    assert extent(config, 164) == (
        "1 of 164 epochs, 32.8% of the training images, schedule scaled by 0.002, 90 images of each split"
    )


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("li-crowd", {"epochs": 14}, "14 of 200 epochs, schedule scaled by 0.07"),
        ("li-crowd", {"epochs": 300}, "300 of 200 epochs"),
        ("nctu-resnet18", {"epochs": 8}, "8 of 164 epochs"),  # its milestones stay
        ("yuan-v1-sgd", {"epochs": 6}, "6 of 60 epochs"),  # and so does a T_max
        ("yuan-v1-sgd", {"epochs": 6, "t_max": None}, "6 of 60 epochs, schedule scaled by 0.1"),
        ("digits", {"epochs": 8, "freeze": "first-last", "freeze_epochs": 4}, "8 of 20 epochs"),
    ],
)
def test_fewer_epochs_shrink_a_schedule_that_has_no_milestones(name, changed, said):
    settings = {**recipe(name).settings, **changed}
    assert extent(make_config(settings), recipe(name).settings["epochs"]) == said


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
        ({"scale": 0.0}, "--scale must be positive"),
        ({"scale": 2.0}, "--scale must be between 0 and 1; got 2"),
        ({"train_share": 0}, "--train-share must be positive"),
        ({"val_every": 0}, "--val-every must be at least 1"),
        ({"milestones": (5, 5)}, "--milestones must be positive and increasing"),
        ({"mean": (0.5, 0.5)}, "--mean needs 3 numbers"),
        ({"std": (0.5, 0.5, 0)}, "--std must be positive"),
        ({"mean": (123.7, 116.3, 103.5)}, "--mean is from 0 to 1, where white is 1; divide by 255"),
        ({"std": (0.5, 0.5, 57)}, "--std is from 0 to 1, where white is 1"),
        ({"image_size": 0}, "--image-size must be at least 1"),
        ({"freeze": "first-last", "freeze_children": 3}, "give one of them"),
        ({"freeze_bn": True}, "--freeze-bn needs --freeze or --freeze-children"),
        ({"freeze": "first-last", "freeze_lr": 0.1}, "--freeze-lr is the learning rate of the first --freeze-epochs"),
        ({"freeze": "first-last", "freeze_epochs": 9, "epochs": 9}, "leaves none of --epochs 9"),
        ({"t_max": 0}, "--t-max must be positive"),
        ({"gamma": -3}, "--gamma must be positive"),
        ({"momentum": 1.5}, "--momentum must be between 0 and 1"),
        ({"momentum": -0.1}, "--momentum must be between 0 and 1"),
        ({"crop": 64}, "--crop is an option of --task crowd; this is --task classify"),
        ({"task": "crowd", "padding": 4}, "--padding is an option of --task classify; this is --task crowd"),
        ({"task": "crowds"}, "unknown task 'crowds', did you mean crowd"),
    ],
)
def test_slips_are_named_by_their_flag(options, says):
    with pytest.raises(UserError, match=says):
        make_config(options)


def test_a_run_is_known_as_its_recipe():
    settings = recipe("nctu-resnet18").settings
    assert recipe_of(make_config({**settings, "seed": 3, "epochs": 2, "data": "elsewhere"})) == "nctu-resnet18"
    shrunk = scaled(settings, 0.05)
    assert recipe_of(make_config(shrunk)) == "nctu-resnet18"
    assert recipe_of(make_config({**settings, "lr": 0.123})) is None
    config = make_config({**shrunk, "limit": 50})
    facts = about(Path("nowhere"), config, 3, "test accuracy 91.00%")
    assert facts["recipe"] == "nctu-resnet18" and facts["epochs"] == "3 of 8" and facts["here"].endswith("91.00%")
    assert facts["source"] == recipe("nctu-resnet18").source and "91" in facts["published"]
    assert facts["training images"] == "at most 50"


def test_the_gains_that_chose_the_parts_of_fast_cpu_are_those_of_their_runs():
    """In BENCHMARKS.md: the mean of the six runs that have a part, less that of the six without."""
    runs = json.loads(Path(ROOT, "results/fast-cpu-parts.json").read_text())["runs"]
    section = Path(ROOT, "BENCHMARKS.md").read_text(encoding="utf-8").partition("## Ten minutes of training")[2]
    rows = re.findall(r"^\| (.+) \| ([+−]\d\.\d\d) \|$", section.partition("\n## ")[0], re.M)
    assert len(rows) == 11
    for part, gain in rows:
        words = re.match(r"`([^`]+)`", part)

        def has(run, part=part, words=words):
            if words:
                return f"{words[1]} " in run["flags"] + " "
            if part.startswith("a rate of 0.4"):  # of a batch of 128
                rate, batch = (float(re.search(rf"{flag} (\S+)", run["flags"])[1]) for flag in ("--lr", "--batch-size"))
                return rate * 128 / batch > 0.3
            return bool(run["cutout" if part.startswith("cutout") else "nothing"])

        with_it = [run["val_accuracy"] for run in runs if has(run)]
        without = [run["val_accuracy"] for run in runs if not has(run)]
        assert len(with_it) == len(without) == 6, part
        assert sum(with_it) / 6 - sum(without) / 6 == pytest.approx(float(gain.replace("−", "-")), abs=0.0051), part
