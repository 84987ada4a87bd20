"""What a classifier got right, class by class. Definitions are scikit-learn's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import UserError
from ...files import printable

PER_CLASS = ("recall", "precision", "specificity", "f1", "auc")
AVERAGES = {
    "macro": "plain mean of the classes where the figure is defined",
    "weighted": "the same, each class by its number of images",
    "micro": "all one-vs-rest decisions pooled",
}
BINS = 15  # of confidence, as in Guo et al. 2017


@dataclass(frozen=True)
class Calibration:
    """How often predictions of a confidence are right (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    Bin b holds the images whose highest probability is in (b / BINS, (b + 1) / BINS].
    images      int64 [BINS]
    confidence  float64 [BINS], mean highest probability, 0 to 1; NaN in an empty bin
    accuracy    float64 [BINS], share that is right, 0 to 1; NaN in an empty bin
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in percent: |accuracy - confidence|, averaged over images bin by bin."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return 100 * float((gaps * self.images).sum() / self.images.sum())


@dataclass(frozen=True)
class Report:
    """Figures of one pass over a split, all shares in percent; NaN where a share is of nothing (undefined).

    confusion    int64 [C, C], images of class `row` that were predicted as class `column`
    recall       float64 [C], TP / (TP + FN): the class's accuracy; undefined for a class without images
    precision    float64 [C], TP / (TP + FP); undefined for a class never predicted
    specificity  float64 [C], TN / (TN + FP); undefined where every image is of the class
    f1           float64 [C], 2 TP / (2 TP + FP + FN); undefined for a class neither there nor predicted
    auc          float64 [C], 0 to 1: area under the ROC curve of the class against the rest, by softmax probability;
                 undefined where no image or every image is of the class. auc_micro: of all pairs (image, class) at once
    top5         share of images whose class is among the five highest logits; None with five classes or fewer
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    accuracy: float
    top5: float | None
    recall: np.ndarray
    precision: np.ndarray
    specificity: np.ndarray
    f1: np.ndarray
    auc: np.ndarray
    auc_micro: float
    calibration: Calibration

    @property
    def images(self) -> np.ndarray:
        """Images of each class, int64 [C]."""
        return self.confusion.sum(axis=1)

    def average(self, name: str, kind: str = "macro") -> float:
        """An average of `recall`, `precision`, … over classes, of a kind in AVERAGES; NaN where it is undefined.

        As every image has one class and one prediction, micro recall, precision and F1 are the accuracy.
        """
        values = getattr(self, name)
        if kind == "micro":
            if name == "specificity":  # every mistake is one false positive, in C - 1 true decisions an image
                negatives = (len(self.classes) - 1) * self.images.sum()
                return float(100 - (100 - self.accuracy) * self.images.sum() / negatives) if negatives else math.nan
            return self.auc_micro if name == "auc" else self.accuracy
        weights = ~np.isnan(values) * (self.images if kind == "weighted" else 1)
        return float(np.average(np.nan_to_num(values), weights=weights)) if weights.any() else math.nan


def softmax(logits: Any) -> np.ndarray:
    """Probabilities float64 [N, C] of logits [N, C] (an array or a CPU tensor)."""
    from scipy import special

    return special.softmax(np.asarray(logits, dtype=np.float64), axis=1)


def report(labels: Any, logits: Any, classes: Sequence[str]) -> Report:
    """Measure predictions: labels int [N] in [0, C), logits float [N, C] (arrays or CPU tensors), C class names.

    An image is predicted as its highest logit, the first one of equals. Raises UserError without images or where a
    logit is NaN or infinite, ValueError where shapes or labels do not fit.
    """
    from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score

    labels, logits = np.asarray(labels), np.asarray(logits)
    count = len(classes)
    if logits.shape != (len(labels), count):
        raise ValueError(f"logits must be [{len(labels)}, {count}], images by classes; got {list(logits.shape)}")
    if not len(labels):
        raise UserError("there are no images to evaluate")
    if not 0 <= labels.min() <= labels.max() < count:
        raise ValueError(f"labels must be in [0, {count}); got {labels.min()} to {labels.max()}")
    if not np.isfinite(logits).all():
        raise UserError("the model's outputs are not all finite: the weights are from a run that diverged")
    predicted, every = logits.argmax(axis=1), np.arange(count)
    confusion = np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
    false_positive = confusion.sum(axis=0) - confusion.diagonal()
    negative = len(labels) - confusion.sum(axis=1)
    specificity = np.divide(negative - false_positive, negative, out=np.full(count, np.nan), where=negative > 0)
    probabilities = softmax(logits)
    is_class = labels[:, None] == every
    return Report(
        classes=tuple(classes),
        confusion=confusion,
        accuracy=100 * float(confusion.trace() / len(labels)),
        top5=100 * float(top_k_accuracy_score(labels, logits, k=5, labels=every)) if count > 5 else None,
        recall=100 * recall,
        precision=100 * precision,
        specificity=100 * specificity,
        f1=100 * f1,
        auc=np.array([_auc(*pair) for pair in zip(is_class.T, probabilities.T, strict=True)]),
        auc_micro=_auc(is_class.ravel(), probabilities.ravel()),
        calibration=calibrate(predicted == labels, probabilities.max(axis=1)),
    )


def _auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN where all are positive, or none."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores)) if 0 < positive.sum() < len(positive) else math.nan


def calibrate(right: np.ndarray, confidence: np.ndarray) -> Calibration:
    """Sort predictions into bins: whether each is right, bool [N], and its probability, float [N]."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, values, minlength=BINS) for values in (confidence, right))
    mean = [np.divide(total, images, out=np.full(BINS, np.nan), where=images > 0) for total in sums]
    return Calibration(images, *mean)


def worst(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """The `count` mistakes of the highest probability, int64 [at most count]; equals in order."""
    confidence = np.where(probabilities.argmax(axis=1) == labels, -1, probabilities.max(axis=1))
    order = np.argsort(-confidence, kind="stable")[:count]
    return order[confidence[order] >= 0]


def cells(report: Report) -> list[list[str]]:
    """The per-class figures as text: a head, a row of each class and one of each average."""
    rows = [
        (name, int(images), *(getattr(report, key)[index] for key in PER_CLASS))
        for index, (name, images) in enumerate(zip(report.classes, report.images, strict=True))
    ]
    total = int(report.images.sum())
    rows += [(f"{kind} average", total, *(report.average(key, kind) for key in PER_CLASS)) for kind in AVERAGES]
    made = [["class", "images", *PER_CLASS]]
    for name, images, *values in rows:
        shares = [f"{value:.2f}%" for value in values[:-1]] + [f"{values[-1]:.4f}"]
        made.append([name, f"{images:,}", *("undefined" if "nan" in share else share for share in shares)])
    return made


def table(report: Report) -> str:
    """The same as aligned text."""
    rows = [[printable(name), *others] for name, *others in cells(report)]
    width = max(len(row[0]) for row in rows[1:])
    return "\n".join(
        f"{name:{width}}  {images:>7}" + "".join(f"  {cell:>11}" for cell in others) for name, images, *others in rows
    )


def as_dict(report: Report) -> dict[str, Any]:
    """The report as plain values for JSON: shares in percent, AUC from 0 to 1, None where undefined."""

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    per_class = {
        name: {"images": int(images), **{key: plain(getattr(report, key)[index]) for key in PER_CLASS}}
        for index, (name, images) in enumerate(zip(report.classes, report.images, strict=True))
    }
    bins = report.calibration
    return {
        "images": int(report.images.sum()),
        "accuracy": report.accuracy,
        **({} if report.top5 is None else {"top5": report.top5}),
        "calibration_error": bins.error,
        **{kind: {key: plain(report.average(key, kind)) for key in PER_CLASS} for kind in AVERAGES},
        "classes": per_class,
        "confusion": report.confusion.tolist(),
        "calibration": {
            "images": bins.images.tolist(),
            "confidence": [plain(value) for value in bins.confidence],
            "accuracy": [plain(value) for value in bins.accuracy],
        },
    }
