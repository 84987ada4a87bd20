"""What a run trains with, as flags, recipe and data say it; by the script itself: tests/test_train.py."""

import dataclasses
import os

import pytest
from helpers import make_part

from resnet_min.errors import UserError
from resnet_min.runs import job
from resnet_min.training.hardware import cpu
from resnet_min.training.optimizer import learning_rate


@pytest.fixture
def config(folder):
    return job.configure(
        dict(
            data=folder, arch="resnet20", blocks=(1, 1, 1), widths=(4, 4, 8), image_size=16, batch_size=8, epochs=3,
            cache_dir="cache", freeze="first-last", freeze_epochs=1, schedule="onecycle",
        ),
        None,
    )  # fmt: skip


def test_data_says_its_task_unless_a_recipe_does(tmp_path):
    part = str(make_part(tmp_path / "part", train=1, test=1))
    assert job.configure({"data": part}, None).task == "crowd"
    with pytest.raises(UserError, match="part is data of --task crowd; this is --task classify"):
        job.configure({"data": part}, "digits")


def test_a_recipe_is_described():
    (said,) = job.describe_recipe("digits", {"data": "digits"}, job.configure({"data": "digits"}, "digits"))
    assert said.startswith("recipe: digits, ") and "; published: " in said


def test_milestones_are_of_the_epochs_after_the_frozen_ones(config):
    config = dataclasses.replace(config, schedule="step", milestones=(2,))
    with pytest.raises(UserError, match="--milestones 2 is never reached: the schedule ends after 2 epochs"):
        job.check_milestones(config, steps=5)
    job.check_milestones(dataclasses.replace(config, milestones=(1,)), steps=5)


@pytest.mark.parametrize(("asked", "got"), [(None, True), (True, True), (False, False)])
def test_a_job_is_what_was_asked_for(config, asked, got):
    made = job.prepare(dataclasses.replace(config, sync_bn=asked), cpu())
    assert made.sync_bn is got and made.steps == 5 and made.watched == "test"
    assert made.config.cache_dir == os.path.abspath("cache") and made.config.data == os.path.abspath("shades")


def test_a_plan_says_what_is_frozen_and_the_rates(config):
    made = job.prepare(config, cpu())
    model, *_ = job.announce(made)
    frozen = [name for name, parameter in made.net.named_parameters() if not parameter.requires_grad]
    count = sum(made.net.get_parameter(name).numel() for name in frozen)
    assert frozen and f"parameters ({count:,} frozen)" in model
    lines = list(job.plan(made))
    assert f"frozen (epochs 1 to 1): {', '.join(frozen)}" in lines
    rates = [f"{learning_rate(made.config, step, 5):.6g}" for step in range(15)]
    assert lines[-3:] == [
        f"  from epoch 1: {rates[0]}",
        f"  from epoch 2: {rates[5]} to {rates[9]}",
        f"  from epoch 3: {rates[10]} to {rates[14]}",
    ]
