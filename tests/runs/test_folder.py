"""What a run's folder is called, and what its logs say."""

import json
import os
from pathlib import Path

import pytest

from resnet_min import tasks
from resnet_min.errors import UserError
from resnet_min.runs import folder


def test_names_tell_runs_apart():
    runs = [Path("x/a"), Path("x/b"), Path("x/b/best.pt")]
    assert folder.names(runs) == ["a", "b", "b/best"]
    assert folder.names([Path("x/a"), Path("y/a")]) == ["x/a", "y/a"]


def test_the_folder_of_a_launch_is_the_last_that_it_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for time, (name, launch) in enumerate({"b": "1", "a": "1", "c": "2"}.items()):
        path = Path("runs", name, "environment.jsonl")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"launch": launch}) + "\n")
        os.utime(path, (time, time))
    assert folder.of_launch("1", None) == Path("runs/a") and folder.of_launch("3", None) is None
    assert folder.of_launch("1", "runs/b") == Path("runs/b") and folder.of_launch("1", "runs/c") is None


@pytest.mark.parametrize("line", ['{"epoch": "1"}', '{"epoch": true}', '{"step": 1}', "[1]", "{"])
def test_a_damaged_log_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "train_loss": 0.5}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2 is damaged: wanted a JSON object of numbers with epoch"):
        folder.read_rows(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [([], "nothing that is known"), ([{"train_accuracy": 1}, {"train_mae": 1}], "MAE and accuracy")],
)
def test_runs_judged_by_different_figures_are_not_drawn_together(rows, said):
    with pytest.raises(UserError, match=f"these were judged by {said}"):
        tasks.figure_of(rows)
