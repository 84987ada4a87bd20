import json
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from resnet_min import metrics
from resnet_min.errors import UserError


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def one_hot(predicted, classes):
    return np.eye(classes, dtype=np.float32)[predicted]


@pytest.mark.parametrize("classes", [2, 3, 10, 30])
def test_equals_scikit_learn_where_every_class_is_there(classes):
    rng = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 500)])
    logits = rng.normal(size=(len(labels), classes)).astype(np.float32).round(1)  # rounded: ties
    logits[np.arange(classes), labels[:classes]] = 9  # each class is predicted at least once
    predicted = logits.argmax(1)
    report = metrics.report(torch.from_numpy(labels), torch.from_numpy(logits), [str(c) for c in range(classes)])
    assert report.accuracy == pytest.approx(100 * sk.accuracy_score(labels, predicted))
    assert (report.confusion == sk.confusion_matrix(labels, predicted)).all()
    for name, score in (("recall", sk.recall_score), ("precision", sk.precision_score), ("f1", sk.f1_score)):
        np.testing.assert_allclose(getattr(report, name), 100 * score(labels, predicted, average=None))
        assert report.mean(name) == pytest.approx(100 * score(labels, predicted, average="macro"))
    for c in range(classes):
        np.testing.assert_allclose(report.specificity[c], 100 * sk.recall_score(labels != c, predicted != c))
    if classes > 5:
        five = [label in row.argsort(kind="stable")[-5:] for label, row in zip(labels, logits, strict=True)]
        assert report.top5 == pytest.approx(100 * np.mean(five))
    else:
        assert report.top5 is None


def test_a_class_absent_or_never_predicted_is_undefined():
    # "never" is never predicted, "absent" has no image but is predicted, "neither" is neither.
    labels = [0, 0, 1, 0]
    report = metrics.report(np.array(labels), one_hot([0, 2, 0, 0], 4), ["a", "never", "absent", "neither"])
    np.testing.assert_allclose(report.recall, [200 / 3, 0, np.nan, np.nan])
    np.testing.assert_allclose(report.precision, [200 / 3, np.nan, 0, np.nan])
    np.testing.assert_allclose(report.f1, [200 / 3, 0, 0, np.nan])
    np.testing.assert_allclose(report.specificity, [0, 100, 75, 100])
    assert report.mean("recall") == pytest.approx(100 / 3)  # of the two classes that have images
    lines = metrics.table(report).splitlines()
    assert [line.count("undefined") for line in lines] == [0, 0, 1, 1, 3, 0]
    figures = json.loads(json.dumps(metrics.as_dict(report), allow_nan=False))
    assert figures["classes"]["never"]["precision"] is None and figures["classes"]["never"]["recall"] == 0


def test_images_of_one_class_only():
    report = metrics.report(np.zeros(3, int), one_hot([0, 0, 0], 2), ["a", "b"])
    assert report.accuracy == 100 and math.isnan(report.specificity[0]) and report.specificity[1] == 100
    assert math.isnan(report.precision[1])


def test_table_is_aligned():
    report = metrics.report(np.arange(1500) % 2, one_hot(np.arange(1500) % 2, 2), ["a", "a class with a long name"])
    lines = metrics.table(report).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["class", "images", "recall", "precision", "specificity", "f1"]
    assert lines[-1].split()[:4] == ["mean", "of", "classes", "1,500"]


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="no images"):
        metrics.report(np.zeros(0, int), np.zeros((0, 2)), ["a", "b"])
    with pytest.raises(UserError, match="not all finite"):
        metrics.report(np.zeros(1, int), np.array([[np.nan, 0]]), ["a", "b"])
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        metrics.report(np.zeros(1, int), np.zeros((1, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="labels"):
        metrics.report(np.array([2]), np.zeros((1, 2)), ["a", "b"])


ROW = '{"epoch": 1, "train_loss": 2.0, "train_accuracy": 20.0}\n'


def test_read_rows_of_a_folder_or_a_file_in_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(ROW + ROW.replace("1,", "2,"))
    (tmp_path / "last.pt").touch()
    for run in (tmp_path, tmp_path / "metrics.jsonl", str(tmp_path / "last.pt")):
        assert [row["epoch"] for row in metrics.read_rows(run)] == [1, 2]


def test_read_rows_leaves_out_a_last_line_cut_by_a_kill(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(ROW + '{"epoch": 2, "train_lo')
    assert len(metrics.read_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "holds no metrics.jsonl"),
        ("", "holds no epoch"),
        (ROW + "{not json\n" + ROW, "line 2 is damaged"),
        (ROW + "\n" + ROW, "line 2 is damaged"),
        ("[1, 2]\n", "line 1 is damaged"),
        ('{"train_loss": 1.0}\n', "line 1 is damaged"),
        ('{"epoch": 1, "train_loss": "low"}\n', "line 1 is damaged"),
        ('{"epoch": null}\n', "line 1 is damaged"),
        ("\0\x07\n", "line 1 is damaged"),
    ],
)
def test_read_rows_names_file_and_line_of_what_is_wrong(tmp_path, text, said):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        metrics.read_rows(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_read_rows_without_a_run(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        metrics.read_rows(tmp_path / "none")
