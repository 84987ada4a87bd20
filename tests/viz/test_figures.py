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
    assert [(text.get_text(), to_hex(text.get_color()).upper()) for text in accuracy.texts] == [
        ("resnet18-plain\ntrain 83.5%, test 78.5%", second), ("resnet18\ntrain 88.0%, test 83.0%", first),
    ]  # fmt: skip
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "test"]
    assert drawn[0].get_suptitle() == "2 runs: loss and accuracy after each epoch"
    check_legible(drawn[0], tmp_path / "curves.png")


def test_early_outliers_are_marked_and_do_not_press_what_matters_to_the_floor(tmp_path, drawn):
    outlying, ending = rows(12), rows(12)
    outlying[1]["test_loss"] = 40.0
    ending[-1]["test_loss"] = 40.0  # late, it is what the run came to
    figures.curves({"outlying": outlying}, tmp_path / "a.png", ACCURACY, title="mine")
    figures.curves({"ending": ending}, tmp_path / "b.png", ACCURACY)
    loss = drawn[0].axes[0]
    assert loss.get_yscale() == "linear" and loss.get_ylim() == pytest.approx((0, 1.05 * 2))
    marks = [line.get_xdata()[0] for line in loss.lines if line.get_marker() == "^"]
    assert marks == [1, 2] and loss.get_title("left") == "loss (▲: above, up to 40)"  # 2.2 is above, too
    assert drawn[0].get_suptitle() == "mine"
    assert drawn[1].axes[0].get_yscale() == "log" and len(drawn[1].axes[0].lines) == 2


def test_figures_over_an_option(tmp_path, drawn):
    last = [(0.1, 70.0), (0.3, 74.0), (0.3, 76.0)]
    runs = [(rate, {"epoch": 9, "train_accuracy": 90.0, "test_accuracy": value}) for rate, value in last]
    figures.sweep(runs, tmp_path / "s.png", ACCURACY, "dropout", "")
    axes = drawn[0].axes[0]
    test = next(line for line in axes.lines if line.get_label() == "test")
    assert test.get_xydata().tolist() == [[0.1, 70], [0.3, 75]] and axes.get_xlabel() == "dropout"
    check_legible(drawn[0], tmp_path / "s.png")


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
    assert len(drawn[0].axes[1].texts) == len(runs)


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
    assert said[-2].endswith("  micro average")
    if classes > 10:
        assert len(said) == 5 + 3 and said[-3] == "the other classes"
    else:
        assert len(said) == classes + 2 and "undefined  class 1" in said
    drawable = 0 if classes == 2 else classes - 1  # of two classes, one is absent and the other everything
    assert len(drawn[0].axes[0].lines) == drawable + 2  # micro, chance
    areas = [float(text.split()[0]) for text in said[: min(classes, 5)] if not text.startswith("undefined")]
    assert areas == sorted(areas, reverse=True)
    styles = [(to_hex(handle.get_color()), handle.get_linestyle()) for handle in drawn[0].legends[0].get_lines()]
    assert len(set(styles)) == len(styles)  # which tell the classes apart
    assert "one class against the rest" in drawn[0].get_suptitle()
    check_legible(drawn[0], tmp_path / "roc.png")


def test_roc_shows_where_the_curves_are(tmp_path, drawn):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    logits = rng.normal(size=(2000, 4))
    for skill, limits in ((8, (0.02, 0.85)), (0, (0.9, 0.01))):
        logits[np.arange(2000), labels] += skill
        report = metrics.report(labels, logits, "abcd")
        pictures.roc(report, labels, metrics.softmax(logits), tmp_path / "roc.png", title="")
        logits[np.arange(2000), labels] -= skill
        right, low = drawn[-1].axes[0].get_xlim()[1], drawn[-1].axes[0].get_ylim()[0]
        assert (right <= limits[0] and low >= limits[1]) if skill else (right >= limits[0] and low <= limits[1])


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
    assert [panel[0] for panel in numbers] == ["100.00%", "0.27 M", "40.8 M"]
    assert [panel[-1] for panel in numbers] == ["0.00%", "58.00 M", "40,000.0 M"]
    check_legible(drawn[0], tmp_path / "c.png")


def test_a_comparison_draws_nothing_that_is_the_same_of_all(tmp_path, drawn):
    rows = {
        name: {"accuracy": value, "parameters": 269_722, "macs": 40_813_184} for name, value in (("a", 9), ("b", 9))
    }
    figures.comparison(rows, tmp_path / "c.png", ACCURACY, title="two")
    assert [axes.get_title("left") for axes in drawn[0].axes] == ["accuracy"]
    said = " ".join(drawn[0].get_suptitle().split())
    assert said == "two each has 0.27 M parameters and 40.8 M multiply-accumulates an image"


@pytest.mark.parametrize("classes", [2, 10, 25, 100])
def test_confusion(tmp_path, drawn, classes):
    matrix = np.random.default_rng(0).integers(0, 30, (classes, classes)) + 900 * np.eye(classes, dtype=int)
    matrix[1] = 0  # absent
    names = [f"class {c}{' of a very long name' * (c == 0)}" for c in range(classes)]
    pictures.confusion(matrix, names, tmp_path / "c.png", title="resnet20 on $5 bills")
    axes = drawn[0].axes[0]
    shares = axes.images[0].get_array()
    assert shares.mask[1].all() and not shares.mask[0].any()
    np.testing.assert_allclose(shares[0].sum(), 100)
    numbers = [text.get_text() for text in axes.texts]
    if classes <= 25:
        assert numbers[0] == f"{100 * matrix[0, 0] / matrix[0].sum():.1f}" and numbers.count("–") == classes
        assert (numbers[1] == f"{matrix[0, 0]:,}") == (classes <= 12)
    else:
        assert not numbers
    check_legible(drawn[0], tmp_path / "c.png", most_bytes=600_000)


def test_pictures_are_written_by_their_suffix(tmp_path):
    pictures.confusion([[1, 0], [0, 1]], "ab", tmp_path / "new" / "c.svg", title="")
    assert ">predicted class</text>" in (tmp_path / "new" / "c.svg").read_text()  # a text, not its outlines
    pictures.confusion([[1, 0], [0, 1]], "ab", tmp_path / "c.pdf", title="")
    assert b"/Type3" not in (tmp_path / "c.pdf").read_bytes()
    for name in ("LICENSE", "c.eps", "c.raw", "c.doc"):
        with pytest.raises(UserError, match=f"cannot draw .*{name}: pictures are .png, .pdf or .svg"):
            pictures.confusion([[1, 0], [0, 1]], "ab", tmp_path / name, title="")
        assert not (tmp_path / name).exists()


def test_names_that_the_font_has_not_are_drawn_without_a_warning(tmp_path):
    pictures.confusion([[1, 0], [0, 1]], ["übung 漢字", "b"], tmp_path / "c.png", title="漢字")


def test_errors_over_depth(tmp_path):
    """Means of several runs; a run of either kind ends at its own depth."""
    row = {"train_accuracy": 60.0, "test_accuracy": 55.0}
    better = {"train_accuracy": 80.0, "test_accuracy": 75.0}
    drawn = []
    original = figures.save
    try:
        figures.save = lambda figure, path: drawn.append(figure) or original(figure, path)
        figures.depths({"plain": [(20, row), (20, better), (56, row)]}, tmp_path / "depth.png", title="errors")
    finally:
        figures.save = original
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in drawn[0].axes[0].lines}
    assert lines[20, 56] == (35.0, 45.0)  # the test errors, drawn last
    assert lines[20, 20] == (45.0, 25.0) and (tmp_path / "depth.png").stat().st_size > 5_000
