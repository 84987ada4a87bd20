import pickle
from pathlib import Path

import pytest
import torch

from resnet_min.errors import UserError
from resnet_min.tasks import read_config, trained
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import checkpoint
from resnet_min.training.optimizer import make_optimizer


@pytest.fixture
def saved():
    config = ClassifyConfig(arch="resnet20", blocks=(1, 1, 1), widths=(4, 4, 4), mean=(0.5,) * 3, std=(0.2,) * 3)
    model = config.make_task().build("abc")
    return checkpoint.snapshot(model, make_optimizer(config, model), config, ("a", "b", "c"), epoch=2, step=20)


def test_round_trip(saved, tmp_path):
    checkpoint.save(tmp_path / "last.pt", saved)
    loaded, found = checkpoint.load(tmp_path), trained.load(tmp_path)  # the folder stands for its last.pt
    assert not found.net.training and found.classes == ("a", "b", "c") and found.epoch == 2
    assert tuple(loaded) == checkpoint.KEYS
    assert read_config(loaded["config"]) == read_config(saved["config"]) == found.task.config
    for name, tensor in found.net.state_dict().items():
        assert torch.equal(tensor, saved["model"][name])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_failed_save_leaves_the_old_checkpoint(saved, tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.pt", saved)
    before = (tmp_path / "last.pt").read_bytes()

    def full_disk(*_):
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "last.pt", saved)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


def test_unreadable_checkpoints_are_refused_in_one_line(saved, tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.load(path)
    checkpoint.save(path, saved)
    whole = path.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match="x.pt"):
            checkpoint.load(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="refused"):
        checkpoint.load(path)
    torch.save({"model": Trap()}, path)
    with pytest.raises(UserError, match="refused"):
        checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of this project: it has no model, optimizer, schedule"):
        checkpoint.load(path)


def test_another_architecture_is_named(saved, tmp_path):
    other = ClassifyConfig(arch="resnet20", blocks=(1, 1, 1), widths=(8, 8, 8)).make_task().build("abc")
    with pytest.raises(UserError, match=r"the checkpoint was trained as another architecture.*bn1"):
        checkpoint.load_weights(other, saved)
    saved["config"]["widths"] = [8, 8, 8]
    checkpoint.save(tmp_path / "last.pt", saved)
    with pytest.raises(UserError, match=r"another architecture.*bn1"):
        trained.load(tmp_path)


def test_the_newest_run_is_found(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="train a network first"):
        checkpoint.find()
    for name in ("b", "a"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        checkpoint.save(tmp_path / "runs" / name / "last.pt", saved)
    assert checkpoint.find() == Path("runs/a/last.pt")
