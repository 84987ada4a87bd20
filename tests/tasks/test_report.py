import json
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from resnet_min.errors import UserError
from resnet_min.runs.folder import read_rows
from resnet_min.tasks.classify import report as metrics


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def one_hot(predicted, classes):
    return np.eye(classes, dtype=np.float32)[predicted]


def sample(classes, kind):
    """Labels [N] and logits [N, classes]; the kinds are what makes figures undefined or equal."""
    rng = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 500)])
    logits = rng.normal(size=(len(labels), classes)).astype(np.float32) + 2 * one_hot(labels, classes)
    logits[np.arange(classes), labels[:classes]] = 9  # each class is predicted at least once
    if kind == "ties":
        logits = logits.round(0)
    if kind == "never predicted":
        logits[:, 0] = -9
    if kind == "empty rows":  # of the confusion matrix
        labels[labels >= (classes + 1) // 2] = 0
    if kind == "one class":
        labels[:] = 1
    if kind == "one image":
        labels, logits = labels[:1], logits[:1]
    return labels, logits


KINDS = ("all there", "ties", "never predicted", "empty rows", "one class", "one image")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3, 10, 30])
def test_equals_scikit_learn(classes, kind):
    labels, logits = sample(classes, kind)
    predicted, every = logits.argmax(1), range(classes)
    report = metrics.report(torch.from_numpy(labels), torch.from_numpy(logits), [str(c) for c in every])
    assert report.accuracy == pytest.approx(100 * sk.accuracy_score(labels, predicted))
    assert (report.confusion == sk.confusion_matrix(labels, predicted, labels=every)).all()
    for name, score in (("recall", sk.recall_score), ("precision", sk.precision_score), ("f1", sk.f1_score)):
        options = {"labels": every, "zero_division": np.nan}
        np.testing.assert_allclose(getattr(report, name), 100 * score(labels, predicted, average=None, **options))
        for average in metrics.AVERAGES:
            expected = 100 * score(labels, predicted, average=average, **options)
            np.testing.assert_allclose(report.average(name, average), expected)
    one_hots, decisions = (one_hot(which, classes) for which in (labels, predicted))
    for c in every:
        expected = 100 * sk.recall_score(labels != c, predicted != c, zero_division=np.nan)
        np.testing.assert_allclose(report.specificity[c], expected)
    expected = 100 * sk.recall_score(1 - one_hots.ravel(), 1 - decisions.ravel())
    assert report.average("specificity", "micro") == pytest.approx(expected)
    if classes > 5:
        five = [label in row.argsort(kind="stable")[-5:] for label, row in zip(labels, logits, strict=True)]
        assert report.top5 == pytest.approx(100 * np.mean(five))
    else:
        assert report.top5 is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_areas_and_calibration_equal_scikit_learn(classes, kind):
    labels, logits = sample(classes, kind)
    report = metrics.report(labels, logits, [str(c) for c in range(classes)])
    scores, one_hots = metrics.softmax(logits), one_hot(labels, classes)
    np.testing.assert_allclose(scores, torch.from_numpy(logits).double().softmax(1))
    images = one_hots.sum(0)
    for c in range(classes):
        if 0 < images[c] < len(labels):
            assert report.auc[c] == pytest.approx(sk.roc_auc_score(labels == c, scores[:, c]))
        else:
            assert math.isnan(report.auc[c])
    there = (0 < images) & (images < len(labels))
    for average in metrics.AVERAGES:
        if average == "micro":
            expected = sk.roc_auc_score(one_hots, scores, average="micro")
        elif there.any():
            expected = sk.roc_auc_score(one_hots[:, there], scores[:, there], average=average)
        else:
            expected = np.nan
        np.testing.assert_allclose(report.average("auc", average), expected)

    right, confidence = logits.argmax(1) == labels, scores.max(1)
    assert report.calibration.images.sum() == len(labels)
    full = report.calibration.images > 0
    accuracy, mean = calibration_curve(right, confidence, n_bins=metrics.BINS)
    np.testing.assert_allclose(report.calibration.accuracy[full], accuracy)
    np.testing.assert_allclose(report.calibration.confidence[full], mean)
    expected = 100 * np.average(np.abs(accuracy - mean), weights=report.calibration.images[full])
    assert report.calibration.error == pytest.approx(expected)


def test_bins_of_confidence_hold_their_upper_end():
    bins = metrics.calibrate(np.array([True, False, True, True]), np.array([0.0, 1 / 15, 1.0, 0.95]))
    assert bins.images.tolist() == [2, *[0] * 13, 2]
    assert bins.accuracy[0] == 0.5 and bins.accuracy[-1] == 1 and math.isnan(bins.accuracy[1])
    assert bins.error == pytest.approx(100 * (2 * (0.5 - 1 / 30) + 2 * (1 - 0.975)) / 4)


def test_the_worst_mistakes_come_by_confidence():
    scores = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.8, 0.2], [0.6, 0.4]])
    assert metrics.worst(np.array([1, 0, 0, 0, 1]), scores, 3).tolist() == [0, 2, 1]
    assert metrics.worst(np.array([1, 0, 1, 0, 0]), scores, 9).tolist() == [0, 1]
    assert metrics.worst(np.array([0, 1, 1, 0, 0]), scores, 9).tolist() == []


def test_a_single_class():
    report = metrics.report(np.zeros(3, int), np.ones((3, 1)), ["all"])
    assert report.accuracy == 100 and report.recall == [100] and report.calibration.error == 0
    for name in ("specificity", "auc"):
        assert all(math.isnan(report.average(name, kind)) for kind in metrics.AVERAGES)
    assert metrics.table(report).splitlines()[1].split() == [
        "all",
        "3",
        *["100.00%"] * 2,
        "undefined",
        "100.00%",
        "undefined",
    ]


def test_a_class_absent_or_never_predicted_is_undefined():
    # "never" is never predicted, "absent" has no image but is predicted, "neither" is neither.
    labels = [0, 0, 1, 0]
    report = metrics.report(np.array(labels), one_hot([0, 2, 0, 0], 4), ["a", "never", "absent", "neither"])
    np.testing.assert_allclose(report.recall, [200 / 3, 0, np.nan, np.nan])
    np.testing.assert_allclose(report.precision, [200 / 3, np.nan, 0, np.nan])
    np.testing.assert_allclose(report.f1, [200 / 3, 0, 0, np.nan])
    np.testing.assert_allclose(report.specificity, [0, 100, 75, 100])
    assert report.average("recall") == pytest.approx(100 / 3)  # of the two classes that have images
    lines = metrics.table(report).splitlines()
    assert [line.count("undefined") for line in lines] == [0, 0, 1, 2, 4, 0, 0, 0]
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
    assert lines[0].split() == ["class", "images", "recall", "precision", "specificity", "f1", "auc"]
    assert lines[-1].split()[:3] == ["micro", "average", "1,500"]


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
        assert [row["epoch"] for row in read_rows(run)] == [1, 2]


def test_read_rows_leaves_out_a_last_line_cut_by_a_kill(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(ROW + '{"epoch": 2, "train_lo')
    assert len(read_rows(tmp_path)) == 1


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
        read_rows(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_read_rows_without_a_run(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        read_rows(tmp_path / "none")
