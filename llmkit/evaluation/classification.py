"""Classification metrics with confidence intervals, from the confusion matrix alone.

Shape: K classes. A confusion matrix has a row per true class and a column per predicted class.

Every interval is computed in closed form. A bootstrap draws only what the test set holds: of a classifier without a mistake
it says [1, 1], and it knows nothing of a class with one example.

- Accuracy, and precision and recall of a class, are shares and have Wilson's score interval (Wilson 1927).
- F1 of a class is 2J / (1 + J) with the share J = TP / (TP + FP + FN), so it has Wilson's interval of J, transformed.
- An average over classes has the classes' distances from value to limit, combined as standard errors are (MOVER: Zou and
  Donner 2008, Statistics in Medicine 27). Recalls of different classes are uncorrelated, and so are precisions; the
  correlation of F1 is that of the delta method (as Takahashi et al. 2022, Applied Intelligence 52). A weighted average
  varies also with how many examples each class happens to have.
- Matthews' correlation (MCC; of K classes Gorodkin 2004) has the interval of its Fisher transform, by the delta method (for
  two classes Itaya et al. 2025, Statistics in Medicine 44).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llmkit.evaluation.intervals import LEVEL, Method, Metric, quantile, wilson


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of shape [K, K], from class numbers of shape [n]."""
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


@dataclass
class PerClass:
    """A metric of every class with its limits; all of shape [K]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    """What the share is counted among."""


def shares_of(hits: np.ndarray, among: np.ndarray) -> PerClass:
    """A share that is 0 where nothing is counted, as scikit-learn's `zero_division=0`, though it could be anything."""
    value = np.divide(hits, among, out=np.zeros(len(hits)), where=among > 0)
    limits = np.array([wilson(int(hit), int(n)) for hit, n in zip(hits, among, strict=True)])
    return PerClass(value, limits[:, 0], limits[:, 1], among)


def f1_of(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> PerClass:
    """F1 from the counts of each class: hits, examples, predictions."""
    found = shares_of(hits, support + predicted - hits)
    value, low, high = (2 * share / (1 + share) for share in (found.value, found.low, found.high))
    return PerClass(value, low, high, support)


def _f1_correlation(confusion: np.ndarray) -> np.ndarray:
    """Correlation of the classes' F1, shape [K, K], by the delta method.

    F1 of class i is 2 p_ii / d_i, with d_i the sum of row and column i: it grows by (2 - 2 F1_i) / d_i with p_ii, and falls
    by F1_i / d_i with every other cell of the row and the column. Two classes share two cells: p_ij and p_ji. Half an
    example more for each class's hits, and half for its misses, stand for what the test set happens not to hold.
    """
    classes = len(confusion)
    cells = confusion + np.where(np.eye(classes, dtype=bool), 0.5, 0.5 / max(1, classes - 1))
    extent = cells.sum(axis=0) + cells.sum(axis=1)
    hits = np.diagonal(cells)
    f1 = 2 * hits / extent
    shared = cells + cells.T
    np.fill_diagonal(shared, 0)
    covariance = shared * np.outer(f1 / extent, f1 / extent)
    variance = hits * ((2 - 2 * f1) / extent) ** 2 + shared.sum(axis=1) * (f1 / extent) ** 2
    np.fill_diagonal(covariance, variance)
    deviation = np.sqrt(variance)
    return covariance / np.outer(deviation, deviation)


def mover(found: PerClass, weights: np.ndarray, correlation: np.ndarray, spread: float) -> tuple[float, float, float]:
    """A weighted mean over classes and its limits.

    Args:
        correlation: of the classes' values, shape [K, K].
        spread: variance of the mean that comes from the weights.
    """
    mean = float(weights @ found.value)
    extra = quantile(LEVEL) ** 2 * spread
    down, up = weights * (found.value - found.low), weights * (found.high - found.value)
    low = mean - math.sqrt(down @ correlation @ down + extra)
    return mean, max(0.0, low), min(1.0, mean + math.sqrt(up @ correlation @ up + extra))


def matthews(confusion: np.ndarray) -> Metric:
    """Matthews' correlation of true and predicted classes, from -1 to 1.

    It is 0 where all predictions are one class, as in scikit-learn, and undefined where all examples are. For the interval
    alone, half an example more for the hits and half for the misses stand for what the test set happens not to hold.
    """
    n, classes = int(confusion.sum()), len(confusion)
    if confusion.sum(axis=1).max() == n:
        return Metric("mcc", None, None, None, n, "none")
    value, _ = _correlation_of(confusion / n)
    cells = confusion + np.where(np.eye(classes, dtype=bool), 0.5 / classes, 0.5 / (classes * (classes - 1)))
    centre, variance = _correlation_of(cells / cells.sum())
    half = quantile(LEVEL) * math.sqrt(variance / cells.sum()) / (1 - centre**2)
    low, high = math.tanh(math.atanh(centre) - half), math.tanh(math.atanh(centre) + half)
    return Metric("mcc", value, min(low, value), max(high, value), n, "fisher")


def _correlation_of(shares: np.ndarray) -> tuple[float, float]:
    """Matthews' correlation of cells that sum to 1, and the variance that one example gives it."""
    true, said = shares.sum(axis=1), shares.sum(axis=0)
    true_spread, said_spread = 1 - true @ true, 1 - said @ said
    if said_spread <= 1e-15:
        return 0.0, 0.0
    scale = math.sqrt(true_spread * said_spread)
    value = min(1.0, max(-1.0, float(np.trace(shares) - true @ said) / scale))
    slopes = (np.eye(len(shares)) - said[:, None] - true) / scale + value * (true[:, None] / true_spread + said / said_spread)
    return value, float((shares * slopes**2).sum() - (shares * slopes).sum() ** 2)


def measure(confusion: np.ndarray, labels: list[str]) -> list[Metric]:
    """Accuracy, precision, recall and F1 (macro, micro, weighted and per class) and MCC, each with its 95% interval.

    Macro averages are over the classes that have examples.
    """
    n = int(confusion.sum())
    hits, support, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    right = int(hits.sum())
    accuracy: tuple[float, float, float, int, Method] = (right / n, *wilson(right, n), n, "wilson")
    found = [Metric("accuracy", *accuracy)]
    uncorrelated = np.eye(len(labels))
    per_class = {
        "precision": (shares_of(hits, predicted), uncorrelated),
        "recall": (shares_of(hits, support), uncorrelated),
        "f1": (f1_of(hits, support, predicted), _f1_correlation(confusion)),
    }
    present = support > 0
    for name, (values, correlation) in per_class.items():
        macro = mover(values, present / present.sum(), correlation, 0.0)
        shares = support / n
        spread = float(shares @ (values.value - shares @ values.value) ** 2) / n
        weighted = mover(values, shares, correlation, spread)
        found.append(Metric(name, *macro, n, "mover", average="macro"))
        found.append(Metric(name, *weighted, n, "mover", average="weighted"))
        found.append(Metric(name, *accuracy, average="micro"))  # one label an example: all of them are the accuracy
        for index, label in enumerate(labels):
            is_defined = present[index] or (name == "precision" and predicted[index])
            value, low, high = (float(x[index]) if is_defined else None for x in (values.value, values.low, values.high))
            found.append(Metric(name, value, low, high, int(values.n[index]), "wilson", label=label))
    return [*found, matthews(confusion)]
