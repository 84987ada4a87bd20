"""How much of a recipe fits into a time, of a machine whose speed is known."""

import pytest

from resnet_min.recipes import scaled
from resnet_min.runs import budget
from resnet_min.tasks import make_config
from resnet_min.training.distributed import World
from resnet_min.training.hardware import set_up

SETTINGS = dict(
    data="shades", image_size=16, arch="resnet20", blocks=(1, 1, 1), widths=(4, 4, 8), batch_size=8, epochs=20,
    padding=0, flip=0.0, amp="off", device="cpu", milestones=(10,),
)  # fmt: skip


@pytest.fixture
def speeds(monkeypatch):
    """A machine that trains on 1 image a second and evaluates 2: of 34 images to train on and 12 to test, 40 s."""

    def training_speeds(job):
        assert all(parameter.requires_grad for parameter in job.net.parameters())  # nothing frozen is slower
        return [1.0]

    monkeypatch.setattr(budget, "training_speeds", training_speeds)
    monkeypatch.setattr(budget, "evaluation_speed", lambda job: 2.0)


@pytest.mark.parametrize(
    ("minutes", "flags", "epochs", "images"),
    [
        (1000, {}, 20, 34),
        (20 * 40 / 60, {}, 20, 34),
        (20 * 40 / 60 - 0.1, {}, 19, 34),
        (3.3, {}, 4, 34),
        (30 / 60, {}, 1, 24),  # 6 s of them to test
        (3.3, {"val_every": 3}, 5, 34),  # tested after the third and the fifth, which take 182 s; six take 216 s
        (3.2, {"val_size": 14}, 6, 20),  # 27 s each and a test of 6 s
        (3.3, {"limit": 10}, 13, 10),  # 15 s each
        (2, {"freeze": "first-last", "freeze_epochs": 5}, 4, 24),  # one of the four frozen
    ],
)
def test_a_time_holds_so_many_epochs(folder, speeds, minutes, flags, epochs, images):
    settings = SETTINGS | {name: value for name, value in flags.items() if "freeze" in name}  # a recipe's own
    scale, said = budget.fitting(settings, flags, minutes)
    small = scaled(settings, scale)
    dataset = (
        make_config({**small, **{name: value for name, value in flags.items() if "freeze" not in name}})
        .make_task()
        .load()
    )
    assert small["epochs"] == epochs if scale < 1 else epochs == 20
    assert len(dataset.splits["train"]) == images and said == "1 images/s in training, 2 in evaluation"


def test_a_time_that_holds_no_step_is_refused(folder, speeds):
    with pytest.raises(
        budget.TooShort, match=r"--budget 0.2 is too short: .*evaluation alone takes 0.1 minutes, a batch 8.0 s"
    ):
        budget.fitting(SETTINGS, {}, 0.2)


def test_speeds_are_of_the_job_itself(folder, monkeypatch):
    monkeypatch.setattr(budget, "ENOUGH", 0.01)
    job = budget.prepare(make_config(SETTINGS), set_up(make_config(SETTINGS), World()))
    taken = []
    real, judge = job.task.loss, job.task.judge
    job.task.loss = lambda outputs, targets: (taken.append(len(targets)), real(outputs, targets))[1]
    assert budget.training_speed(job) > 0 and set(taken) <= {8, 2}
    job.task.judge = lambda net, batches, where: judge(net, (taken.append("test"), batches)[1], where)
    assert budget.evaluation_speed(job) > 0 and taken[-1] == "test"


@pytest.mark.parametrize(("minutes", "epochs", "images"), [(9, 20, 34), (2.2, 5, 34), (0.7, 1, 34), (0.6, 1, 30)])
def test_images_that_grow_are_trained_on_faster_at_first(folder, monkeypatch, minutes, epochs, images):
    """Of 34 images a small one takes 0.5 s, a full one 1 s: of 20 epochs half, of 5 three, of one none are small."""
    monkeypatch.setattr(budget, "training_speeds", lambda job: [2.0, 1.0])
    monkeypatch.setattr(budget, "evaluation_speed", lambda job: 2.0)
    settings = SETTINGS | {"grow": (8,), "val_every": 20}
    small = scaled(settings, budget.fitting(settings, {}, minutes)[0])
    assert small["epochs"] == epochs and round(34 * small.get("train_share", 1)) == images


def test_a_speed_is_of_every_size(folder, monkeypatch):
    """Of 3 epochs, 16 images a second in two and 4 in one are 3 / (2 / 16 + 1 / 4) = 8 in all."""
    config = make_config(SETTINGS | {"grow": (8,), "epochs": 3})
    job = budget.prepare(config, set_up(config, World()))
    sizes = []

    def step(model, batches, *others):
        sizes.extend(images.shape[2] for images, _ in batches)

    def speed(take, most):
        take(1)
        return {8: 16.0, 16: 4.0}[sizes[-1]]

    monkeypatch.setattr(budget, "train_one_epoch", step)
    monkeypatch.setattr(budget, "_speed", speed)
    assert budget.training_speed(job) == pytest.approx(8) and sizes == [8, 16]


def test_a_speed_is_of_enough_time_and_not_of_the_first_call(monkeypatch):
    now, calls = [0.0], []

    def take(count, seconds=0.2):
        calls.append(count)
        now[0] += seconds * count + 1.5 * (len(calls) == 1)  # the first sets things up
        return 10 * count

    monkeypatch.setattr(budget, "perf_counter", lambda: now[0])
    assert budget._speed(take, 1000) == pytest.approx(50) and calls == [1, 1, 2, 4, 8, 16]
    calls.clear()
    assert budget._speed(take, 3) == pytest.approx(50) and calls == [1, 1, 2, 3]
    calls.clear()
    assert budget._speed(lambda count: take(count, 4.0), 3) == pytest.approx(10 / 5.5) and calls == [1]
