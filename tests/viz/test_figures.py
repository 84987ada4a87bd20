import warnings

import numpy as np
import pytest
from helpers import check_legible
from matplotlib.colors import to_hex

from resnet_min.errors import UserError
from resnet_min.tasks.classify import pictures
from resnet_min.tasks.classify import report as metrics
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.viz import figures

ACCURACY = ClassifyConfig.figure


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rows(epochs, val=False, level=0.0):
    made = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train_loss": 2 / epoch + level, "train_accuracy": 90 - 60 / epoch - 9 * level}
        for split in ["val"] * val + ["test"] * (not val or epoch == epochs):
            row |= {f"{split}_loss": 2.2 / epoch + level, f"{split}_accuracy": 85 - 60 / epoch - 9 * level}
        made.append(row)
    return made


def test_curves_of_two_runs_share_a_colour_within_a_run(tmp_path, drawn):
    figures.curves({"resnet18": rows(30), "resnet18-plain": rows(30, level=0.5)}, tmp_path / "curves.png", ACCURACY)
    loss, accuracy = drawn[0].axes
    for axes in (loss, accuracy):
        lines = [(to_hex(line.get_color()).upper(), line.get_linestyle()) for line in axes.lines]
        first, second = figures.COLOURS[:2]
        assert lines == [(first, "--"), (first, "-"), (second, "--"), (second, "-")]
    assert accuracy.lines[1].get_ydata()[-1] == pytest.approx(83)
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["resnet18: train 88.0%, test 83.0%", "resnet18-plain: train 83.5%, test 78.5%"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "test"]
    check_legible(drawn[0], tmp_path / "curves.png")


@pytest.mark.parametrize(
    "runs",
    [
        {"validated": rows(12, val=True)},
        {"one-epoch": rows(1)},
        {f"run-{i}": rows(40, level=i / 10) for i in range(9)},
        {"a-run-with-a-very-long-name-because-every-option-is-in-it-" + str(i): rows(3) for i in range(3)},
        {"high-loss": [{**row, "train_loss": 900 * row["train_loss"]} for row in rows(5)]},
        {"training only": [{"epoch": 1, "train_loss": 1.0, "train_accuracy": 50.0}], "_$odd$name$": rows(4)},
    ],
    ids=lambda runs: next(iter(runs)).strip("_$"),
)
def test_curves_are_legible(tmp_path, drawn, runs):
    figures.curves(runs, tmp_path / "curves.png", ACCURACY)
    check_legible(drawn[0], tmp_path / "curves.png")
    assert len(drawn[0].legends[0].get_texts()) == len(runs)


def test_a_test_set_looked_at_once_is_a_star(tmp_path, drawn):
    figures.curves({"run": rows(12, val=True)}, tmp_path / "curves.png", ACCURACY)
    star = drawn[0].axes[1].lines[2]
    assert (star.get_marker(), list(star.get_xdata())) == ("*", [12])


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_roc(tmp_path, drawn, classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 400)
    labels[labels == 1] = 0  # absent
    logits = rng.normal(size=(400, classes))
    logits[np.arange(400), labels] += 2
    names = [f"class {c}" + " of a long name" * (c == 0) for c in range(classes)]
    report = metrics.report(labels, logits, names)
    pictures.roc(report, labels, metrics.softmax(logits), tmp_path / "roc.png", title="resnet20 on _$5_ bills")
    said = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert said[-2].startswith("micro average: 0.")
    if classes > 10:
        assert len(said) == 5 + 3 and said[-3] == "the other classes"
    else:
        assert len(said) == classes + 2 and said[1] == "class 1: undefined"
    drawable = 0 if classes == 2 else classes - 1  # of two classes, one is absent and the other everything
    assert len(drawn[0].axes[0].lines) == drawable + 2  # micro, chance
    check_legible(drawn[0], tmp_path / "roc.png")


def test_reliability(tmp_path, drawn):
    bins = metrics.calibrate(np.array([True, False, True, True]), np.array([0.3, 0.5, 1.0, 0.95]))
    pictures.reliability(bins, tmp_path / "r.png", title="resnet20 on digits: 75.00% of 4 test images right")
    above, below = drawn[0].axes
    heights = [bar.get_height() for bar in above.patches]
    np.testing.assert_allclose(heights, [1, 0, 1, -0.7, 0.5, -0.025], atol=1e-12)
    assert [bar.get_height() for bar in below.patches][-1] == 50
    assert drawn[0].get_suptitle().endswith(f"expected calibration error {bins.error:.2f}%")
    check_legible(drawn[0], tmp_path / "r.png")


@pytest.mark.parametrize("count", [2, 12])
def test_comparison(tmp_path, drawn, count):
    row = {"accuracy": 90.0, "parameters": 269_722, "macs": 40_813_184, "images_per_second": 0.4}
    rows = {f"runs/resnet20-cifar10-{i}": {**row, "accuracy": 100 - 9 * i} for i in range(count)}
    rows["a-run-of-a-long-name-in-a-long-folder/best"] = {**row, "accuracy": 0.0, "macs": 4e10, "parameters": 58e6}
    figures.comparison(rows, tmp_path / "c.png", ACCURACY, title="networks")
    numbers = [[text.get_text().strip() for text in axes.texts] for axes in drawn[0].axes]
    assert [panel[0] for panel in numbers] == ["100.00", "0.27", "40.8", "0"]
    assert [panel[-1] for panel in numbers] == ["0.00", "58.00", "40,000.0", "0"]
    check_legible(drawn[0], tmp_path / "c.png")


@pytest.mark.parametrize("classes", [2, 10, 25, 100])
def test_confusion(tmp_path, drawn, classes):
    matrix = np.random.default_rng(0).integers(0, 30, (classes, classes)) + 900 * np.eye(classes, dtype=int)
    matrix[1] = 0  # absent
    names = [f"class {c}{' of a very long name' * (c == 0)}" for c in range(classes)]
    pictures.confusion(matrix, names, tmp_path / "c.png", title="resnet20 on $5 bills")
    left, right = drawn[0].axes[:2]
    assert (left.images[0].get_array() == matrix).all()
    shares = right.images[0].get_array()
    assert shares.mask[1].all() and not shares.mask[0].any()
    np.testing.assert_allclose(shares[0].sum(), 100)
    numbers = [[text.get_text() for text in axes.texts] for axes in (left, right)]
    if classes <= 25:
        assert numbers[0][:2] == [f"{matrix[0, 0]:,}", f"{matrix[0, 1]}"]
        assert numbers[1][classes : 2 * classes] == ["–"] * classes
    else:
        assert numbers == [[], []]
    check_legible(drawn[0], tmp_path / "c.png", most_bytes=600_000)


def test_pictures_are_written_by_their_suffix(tmp_path):
    pictures.confusion([[1, 0], [0, 1]], "ab", tmp_path / "new" / "c.svg", title="")
    assert "<svg" in (tmp_path / "new" / "c.svg").read_text()
    pictures.confusion([[1, 0], [0, 1]], "ab", tmp_path / "plain", title="")
    assert (tmp_path / "plain").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"\.png, \.pdf or \.svg"):
        pictures.confusion([[1, 0], [0, 1]], "ab", tmp_path / "c.doc", title="")
    assert not (tmp_path / "c.doc").exists()
