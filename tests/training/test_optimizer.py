import pytest
import torch

from resnet_min.config import Config
from resnet_min.model import resnet20
from resnet_min.training import transfer
from resnet_min.training.optimizer import learning_rate, make_optimizer, set_rate

STEPS, EPOCHS = 7, 12  # steps an epoch, epochs


def trace(make, unit):
    """The learning rates that one of torch's schedulers gives, stepped once an epoch or once an iteration."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler = make(optimizer)
    rates = []
    for step in range(STEPS * EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if unit == "iterations" or step % STEPS == STEPS - 1:
            scheduler.step()
    return rates


MULTI = torch.optim.lr_scheduler.MultiStepLR
COSINE = torch.optim.lr_scheduler.CosineAnnealingLR
ONE = torch.optim.lr_scheduler.OneCycleLR


@pytest.mark.parametrize(
    ("options", "theirs", "unit"),
    [
        ({"schedule": "step", "milestones": (4, 9), "gamma": 0.3}, lambda o: MULTI(o, [4, 9], 0.3), "epochs"),
        (
            {"schedule": "step", "milestones": (10, 30), "milestone_unit": "iterations"},
            lambda o: MULTI(o, [10, 30], 0.1),
            "iterations",
        ),
        ({"schedule": "cosine"}, lambda o: COSINE(o, EPOCHS), "epochs"),
        ({"schedule": "cosine", "t_max": 200}, lambda o: COSINE(o, 200), "epochs"),
        (
            {"schedule": "onecycle", "warmup": 0.25},
            lambda o: ONE(o, 0.1, STEPS * EPOCHS, pct_start=0.25, anneal_strategy="linear", cycle_momentum=False),
            "iterations",
        ),
        ({"schedule": "constant"}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0), "epochs"),
    ],
)
def test_equals_torch(options, theirs, unit):
    config = Config(epochs=EPOCHS, lr=0.1, **options)
    ours = [learning_rate(config, step, STEPS) for step in range(STEPS * EPOCHS)]
    assert ours == pytest.approx(trace(theirs, unit), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_onecycle_of_a_few_steps_is_finite(warmup, total):
    config = Config(epochs=total, schedule="onecycle", warmup=warmup)
    assert all(0 <= learning_rate(config, step, 1) <= config.lr for step in range(total))


@pytest.mark.parametrize("options", [{"schedule": "cosine"}, {"schedule": "onecycle"}, {"milestones": (2, 3)}], ids=str)
def test_the_schedule_counts_from_the_second_phase(options):
    whole = Config(epochs=9, freeze="first-last", freeze_epochs=4, freeze_lr=0.3, **options)
    second = Config(epochs=5, **options)
    rates = [learning_rate(whole, step, STEPS) for step in range(9 * STEPS)]
    assert rates == [0.3] * 4 * STEPS + [learning_rate(second, step, STEPS) for step in range(5 * STEPS)]


def test_frozen_parameters_are_not_in_it():
    net, config = resnet20(), Config(arch="resnet20", freeze="first-last")
    transfer.freeze(net, config, epoch=1)
    optimizer, names = make_optimizer(config, net), {p: name for name, p in net.named_parameters()}
    set_rate(optimizer, 2.0)
    (group,) = optimizer.param_groups
    assert [names[p] for p in group["params"]] == ["conv1.weight", "fc.weight", "fc.bias"] and group["lr"] == 2.0
