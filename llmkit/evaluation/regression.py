"""Metrics of models that give a text a number, with bootstrap intervals."""

from __future__ import annotations

import numpy as np

from llmkit.evaluation.intervals import Metric, mean_metric, resampled


def measure(true: np.ndarray, predicted: np.ndarray, seed: int) -> list[Metric]:
    """Pearson's and Spearman's correlation, the mean squared and the mean absolute error.

    Args:
        true, predicted: float64 of shape [n].
    """
    from scipy.stats import rankdata

    return [
        _correlation("pearson", true, predicted, seed),
        # The ranks are those of all examples: in a resample they are not given anew.
        _correlation("spearman", rankdata(true), rankdata(predicted), seed),
        mean_metric("mse", (true - predicted) ** 2, seed, perfect=None),
        mean_metric("mae", np.abs(true - predicted), seed, perfect=None),
    ]


def _correlation(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Metric:
    """Undefined where one side does not vary, as with a baseline that always says the mean."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Metric(name, None, None, None, len(x), "none")
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    sums = np.stack([x, y, x * x, y * y, x * y, np.ones(len(x))], axis=1)
    return resampled(name, float(_pearson(sums.sum(axis=0, keepdims=True))[0]), sums, _pearson, seed)


def _pearson(totals: np.ndarray) -> np.ndarray:
    """From sums of x, y, x², y², xy and 1, of shape [resamples, 6]; 0 where a resample does not vary."""
    x, y, xx, yy, xy, n = totals.T
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return np.clip(np.divide(n * xy - x * y, spread, out=np.zeros(len(totals)), where=spread > 1e-9 * n * n), -1, 1)
