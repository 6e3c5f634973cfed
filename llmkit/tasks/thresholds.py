"""From which probability on a label is given, decided on validation examples.

For several labels a text each class has a threshold of its own that maximises its F1 (SCut of Yang 2001, SIGIR). That of a
class with few positives would fit their noise; such classes share one that maximises the micro F1 of all. Where even that
has too little to go by it is 0.5, which is what a model is trained for.
"""

from __future__ import annotations

import numpy as np

FEWEST = 5
"""Positives that a class needs for a threshold of its own."""


def per_class(probabilities: np.ndarray, true: np.ndarray) -> np.ndarray:
    """A threshold for each class, float64 of shape [classes].

    Args:
        probabilities: float64 of shape [examples, classes].
        true: whether an example has a class, bool of the same shape.
    """
    common = best_f1(probabilities.reshape(-1), true.reshape(-1)) if true.sum() >= FEWEST else 0.5
    return np.array(
        [
            best_f1(probabilities[:, index], true[:, index]) if true[:, index].sum() >= FEWEST else common
            for index in range(true.shape[1])
        ]
    )


def best_f1(probabilities: np.ndarray, true: np.ndarray) -> float:
    """The threshold with the highest F1.

    Args:
        probabilities: float64 of shape [n].
        true: bool of shape [n].
    """
    thresholds, hits, given = _candidates(probabilities, true)
    return _nearest(thresholds, 2 * hits / np.maximum(given + true.sum(), 1))


def best_macro_f1(probabilities: np.ndarray, true: np.ndarray) -> float:
    """The threshold with the highest mean F1 of presence and absence, or of the two classes of a binary classifier."""
    thresholds, hits, given = _candidates(probabilities, true)
    n, positives = len(true), int(true.sum())
    present = 2 * hits / np.maximum(given + positives, 1)
    rejected = (n - given) - (positives - hits)
    absent = 2 * rejected / np.maximum(2 * n - given - positives, 1)
    return _nearest(thresholds, present + absent)


def _candidates(probabilities: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds between the probabilities that occur, the least of them, and 0.5, with how many are given and right from each
    on."""
    different = np.unique(probabilities)
    thresholds = np.unique(np.concatenate([[0.5], different[:1], (different[1:] + different[:-1]) / 2]))
    order = np.argsort(probabilities, kind="stable")
    below = np.searchsorted(probabilities[order], thresholds)
    hits_below = np.concatenate([[0], np.cumsum(true[order])])[below]
    return thresholds, true.sum() - hits_below, len(true) - below


def _nearest(thresholds: np.ndarray, quality: np.ndarray) -> float:
    """Of the best thresholds, the one nearest to 0.5."""
    best = thresholds[quality >= quality.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
