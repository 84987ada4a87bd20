"""What a classifier got right, class by class (definitions are scikit-learn's), and the figures a run recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

PER_CLASS = ("recall", "precision", "specificity", "f1")
FIGURES = ("epoch", *(f"{split}_{what}" for split in ("train", "val", "test") for what in ("loss", "accuracy")))


@dataclass(frozen=True)
class Report:
    """Figures of one pass over a split, all shares in percent; NaN where a share is of nothing (undefined).

    confusion    int64 [C, C], images of class `row` that were predicted as class `column`
    recall       float64 [C], TP / (TP + FN): the class's accuracy; undefined for a class without images
    precision    float64 [C], TP / (TP + FP); undefined for a class never predicted
    specificity  float64 [C], TN / (TN + FP); undefined where every image is of the class
    f1           float64 [C], 2 TP / (2 TP + FP + FN); undefined for a class neither there nor predicted
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

    @property
    def images(self) -> np.ndarray:
        """Images of each class, int64 [C]."""
        return self.confusion.sum(axis=1)

    def mean(self, name: str) -> float:
        """The plain ("macro") average of `recall`, `precision`, … over the classes where it is defined."""
        values = getattr(self, name)
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else math.nan


def report(labels: Any, logits: Any, classes: Sequence[str]) -> Report:
    """Measure predictions: labels int [N] in [0, C), logits float [N, C] (arrays or CPU tensors), C class names.

    An image is predicted as its highest logit, the first one of equals. Raises UserError without images or where a
    logit is NaN or infinite, ValueError where shapes or labels do not fit.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

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
    confusion = confusion_matrix(labels, predicted, labels=every)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
    false_positive = confusion.sum(axis=0) - confusion.diagonal()
    negative = len(labels) - confusion.sum(axis=1)
    specificity = np.divide(negative - false_positive, negative, out=np.full(count, np.nan), where=negative > 0)
    return Report(
        classes=tuple(classes),
        confusion=confusion,
        accuracy=100 * float(confusion.trace() / len(labels)),
        top5=100 * float(top_k_accuracy_score(labels, logits, k=5, labels=every)) if count > 5 else None,
        recall=100 * recall,
        precision=100 * precision,
        specificity=100 * specificity,
        f1=100 * f1,
    )


def table(report: Report) -> str:
    """The per-class figures as aligned text, one line a class and one of their averages."""
    rows = [
        (name, int(images), *(getattr(report, key)[index] for key in PER_CLASS))
        for index, (name, images) in enumerate(zip(report.classes, report.images, strict=True))
    ]
    rows.append(("mean of classes", int(report.images.sum()), *(report.mean(key) for key in PER_CLASS)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'class':{width}}  {'images':>7}" + "".join(f"  {key:>11}" for key in PER_CLASS)]
    for name, images, *values in rows:
        cells = ("undefined" if math.isnan(value) else f"{value:.2f}%" for value in values)
        lines.append(f"{name:{width}}  {images:>7,}" + "".join(f"  {cell:>11}" for cell in cells))
    return "\n".join(lines)


def as_dict(report: Report) -> dict[str, Any]:
    """The report as plain values for JSON: shares in percent, None where undefined."""

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    per_class = {
        name: {"images": int(images), **{key: plain(getattr(report, key)[index]) for key in PER_CLASS}}
        for index, (name, images) in enumerate(zip(report.classes, report.images, strict=True))
    }
    return {
        "images": int(report.images.sum()),
        "accuracy": report.accuracy,
        **({} if report.top5 is None else {"top5": report.top5}),
        "mean": {key: plain(report.mean(key)) for key in PER_CLASS},
        "classes": per_class,
        "confusion": report.confusion.tolist(),
    }


def read_rows(run: str | Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`, one an epoch. `run` is the run's folder, or a file in it.

    Raises UserError, naming file and line, where there is none, or it is empty or damaged.
    """
    run = Path(run)
    path = (run if run.is_dir() else run.parent) / "metrics.jsonl"
    if not run.exists():
        raise UserError(f"no run at {run}")
    if not path.is_file():
        raise UserError(f"{path.parent} holds no metrics.jsonl: it is not a run, or its first epoch is not over")
    rows = []
    whole, _, _unfinished = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")  # or cut by a kill
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not (isinstance(row, dict) and "epoch" in row and all(_is_number(row.get(key, 0)) for key in FIGURES)):
            raise UserError(f"{path}, line {number} is damaged: wanted a JSON object with an epoch and its figures")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no epoch: the run's first one is not over")
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
