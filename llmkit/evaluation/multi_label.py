"""Metrics of classifiers that give a text any number of labels, with their intervals.

Shape: n examples, K classes.

A class by itself is a share among examples, and has the closed intervals of `classification`. Labels of one text depend on
each other, so what is counted over all labels or averaged over classes is drawn again by whole examples (bootstrap).
"""

from __future__ import annotations

import numpy as np

from llmkit.evaluation.classification import f1_of, shares_of
from llmkit.evaluation.intervals import Metric, mean_metric, resampled, wilson


def measure(true: np.ndarray, given: np.ndarray, labels: list[str], seed: int) -> list[Metric]:
    """Exact match, the mean F1 of the examples, and precision, recall and F1: micro, macro and per class.

    Macro averages are over the classes that have examples. Of an example without labels, to which none was given, F1 is 1.

    Args:
        true, given: which labels examples have and got, bool of shape [n, K].
    """
    n = len(true)
    hits, support, predicted = true & given, true, given
    counts = [part.sum(axis=0) for part in (hits, support, predicted)]
    exact = int((true == given).all(axis=1).sum())
    found = [
        Metric("exact_match", exact / n, *wilson(exact, n), n, "wilson"),
        mean_metric("f1", example_f1(true, given), seed),
    ]
    found[1].average = "samples"
    sums = np.concatenate([hits, support, predicted], axis=1).astype(np.float64)
    present = counts[1] > 0
    per_class = {
        "precision": shares_of(counts[0], counts[2]),
        "recall": shares_of(counts[0], counts[1]),
        "f1": f1_of(*counts),
    }
    for name, values in per_class.items():
        for average in ("micro", "macro"):

            def statistic(totals: np.ndarray, name: str = name, average: str = average) -> np.ndarray:
                return _average(totals, present, name, average)

            value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
            found.append(resampled(name, value, sums, statistic, seed, perfect=1.0, average=average))
        for index, label in enumerate(labels):
            is_defined = present[index] or (name == "precision" and counts[2][index])
            metric = Metric(name, None, None, None, int(values.n[index]), "wilson", label=label)
            if is_defined:
                metric.value, metric.low, metric.high = (float(x[index]) for x in (values.value, values.low, values.high))
            found.append(metric)
    return found


def _average(totals: np.ndarray, present: np.ndarray, name: str, average: str) -> np.ndarray:
    """From counts of shape [resamples, 3 K] (hits, examples, predictions of each class) to shape [resamples]."""
    hits, support, predicted = np.split(totals, 3, axis=1)
    above = {"f1": 2 * hits}.get(name, hits)
    below = {"f1": support + predicted, "recall": support}.get(name, predicted)
    if average == "micro":
        above, below = above.sum(axis=1, keepdims=True), below.sum(axis=1, keepdims=True)
    else:
        above, below = above[:, present], below[:, present]
    if not above.shape[1]:
        return np.zeros(len(totals))
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0).mean(axis=1)


def example_f1(true: np.ndarray, given: np.ndarray) -> np.ndarray:
    """F1 of the set of labels of each example, float64 of shape [n]; two empty sets are equal."""
    both, either = (true & given).sum(axis=1), true.sum(axis=1) + given.sum(axis=1)
    return np.divide(2.0 * both, either, out=np.ones(len(true)), where=either > 0)
