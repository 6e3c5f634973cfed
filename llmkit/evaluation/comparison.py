"""Two systems on the same examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llmkit.evaluation.intervals import LEVEL, bootstrap, quantile


@dataclass
class Comparison:
    """The difference of a metric between two systems."""

    baseline: str
    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    sentence: str


def compare_accuracy(right: np.ndarray, baseline_right: np.ndarray, baseline: str, metric: str = "accuracy") -> Comparison:
    """Pair two classifiers on the same examples: difference in accuracy with its interval, and McNemar's exact test.

    The interval is that of Bonett and Price (2012, Journal of Educational and Behavioral Statistics 37): Wald's, with one
    example added on which only the one is right, and one on which only the other is.

    Args:
        right, baseline_right: whether each example was classified rightly, bool of shape [n].
    """
    from scipy import stats

    n = len(right)
    fixed, broken = int((right & ~baseline_right).sum()), int((~right & baseline_right).sum())
    difference = (fixed - broken) / n
    gained, lost = (fixed + 1) / (n + 2), (broken + 1) / (n + 2)
    half = quantile(LEVEL) * math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    low, high = max(-1.0, gained - lost - half), min(1.0, gained - lost + half)
    p_value = float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0
    points = f"{abs(difference) * 100:.1f} points ({low * 100:+.1f} to {high * 100:+.1f}, p = {p_value:.2g}, n = {n})"
    if p_value >= 1 - LEVEL or low <= 0 <= high:  # test and interval must agree before anything is claimed
        sentence = f"No clear difference from {baseline}: {'+' if difference >= 0 else '-'}{points}."
    else:
        sentence = f"{'Better' if difference > 0 else 'Worse'} than {baseline} by {points}."
    return Comparison(baseline, metric, difference, low, high, p_value, sentence)


def compare_means(
    values: np.ndarray,
    baseline_values: np.ndarray,
    baseline: str,
    metric: str,
    seed: int,
    groups: np.ndarray | None = None,
    lower_is_better: bool = False,
    weights: np.ndarray | None = None,
) -> Comparison:
    """Pair two systems on the same examples by a value per example: the mean difference with its bootstrap interval.

    The p-value is that of the sign-flip permutation test of the differences (Fisher 1935), by simulation.

    Args:
        values, baseline_values: float64 of shape [n].
        groups: the number of the group that each example belongs to; groups are resampled and flipped as a whole. None: each
            is a group by itself.
        weights: how much each value counts in the mean; None: all alike.
    """
    n = len(values)
    counted = np.ones(n) if weights is None else weights
    differences, whole = (values - baseline_values) * counted, float(counted.sum())
    difference = float(differences.sum() / whole)
    sums = np.stack([differences, counted], axis=1)
    low, high = bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 1], seed, groups)
    flipped = differences if groups is None else np.bincount(groups, weights=differences)
    generator, flips = np.random.default_rng(seed), 4000
    extreme = 0
    for start in range(0, flips, 500):
        signs = generator.integers(0, 2, size=(min(500, flips - start), len(flipped)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ flipped / whole) >= abs(difference) - 1e-12).sum())
    p_value = (extreme + 1) / (flips + 1)
    between = f"({low:+.3f} to {high:+.3f}, p = {p_value:.2g}, n = {n})"
    if p_value >= 1 - LEVEL or low <= 0 <= high:
        sentence = f"No clear difference from {baseline} in {metric}: {difference:+.3f} {between}."
    else:
        kind = "Better" if (difference > 0) != lower_is_better else "Worse"
        sentence = f"{kind} than {baseline} in {metric} by {abs(difference):.3f} {between}."
    return Comparison(baseline, metric, difference, low, high, p_value, sentence)
