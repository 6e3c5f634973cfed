"""Two systems on the same examples.

A difference is claimed only where its interval leaves out zero and the test agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmkit.evaluation.intervals import LEVEL, RESAMPLES, bootstrap, independent, quantile

POWER = 0.8
"""The chance of being shown that the smallest difference worth speaking of has."""


@dataclass
class Comparison:
    """The difference of a metric between two systems."""

    baseline: str
    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    sentence: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether interval and test agree that there is a difference."""
        return self.p_value < 1 - LEVEL and (self.low > 0 or self.high < 0)


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
    found = Comparison(baseline, metric, difference, low, high, p_value)
    return replace(found, sentence=sentence(found, n, in_points=True))


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
    found = Comparison(baseline, metric, difference, low, high, (extreme + 1) / (flips + 1))
    return replace(found, sentence=sentence(found, n, lower_is_better))


def compare_seeds(
    values: np.ndarray,
    baseline_values: np.ndarray,
    baseline: str,
    metric: str,
    training: Sequence[tuple[float, int]],
    groups: np.ndarray | None = None,
    lower_is_better: bool = False,
) -> Comparison:
    """Pair two systems that were trained with several seeds each: the mean difference over examples and seeds.

    It varies by the choice of examples and by both trainings, and its interval is of both (`half_width`). The p-value is the
    level at which the interval would end at zero.

    Args:
        values, baseline_values: the mean over seeds of each example, float64 of shape [n].
        training: of both, the standard deviation that training leaves to luck, and the number of seeds.
    """
    differences = values - baseline_values
    n, difference = len(differences), float(differences.mean())
    freedom = independent(n, groups) - 1
    parts = [(standard_error(differences, groups) ** 2, freedom), *((sd**2 / seeds, seeds - 1) for sd, seeds in training)]
    half = half_width(parts)
    found = Comparison(baseline, metric, difference, difference - half, difference + half, _level_of(abs(difference), parts))
    return replace(found, sentence=sentence(found, n, lower_is_better))


def half_width(parts: Sequence[tuple[float, int]], alpha: float = 1 - LEVEL) -> float:
    """Half the interval of a sum of independent terms (MOVER: Zou and Donner 2008, Statistics in Medicine 27): the root of the
    sum of the squares of their own, which are Student's.

    Args:
        parts: of each the variance of its mean, and the degrees of freedom of that.
    """
    from scipy import stats

    return math.sqrt(sum(variance * float(stats.t.isf(alpha / 2, freedom)) ** 2 for variance, freedom in parts if variance))


def _level_of(difference: float, parts: Sequence[tuple[float, int]]) -> float:
    """The alpha at which half the interval is the difference."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if half_width(parts, middle) > difference else (low, middle)
    return high if difference else 1.0


def seed_error(
    differences: np.ndarray,
    training: Sequence[tuple[float, int]],
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> float:
    """Standard error of a (weighted) mean difference over examples and seeds; see `compare_seeds`."""
    return math.sqrt(standard_error(differences, groups, weights) ** 2 + sum(sd**2 / seeds for sd, seeds in training))


def sentence(
    found: Comparison,
    n: int,
    lower_is_better: bool = False,
    in_points: bool = False,
    subject: str | None = None,
    p_is: str = "p",
) -> str:
    """What a comparison comes to.

    Args:
        in_points: whether it is one of shares, told in hundredths.
        subject: who is compared with the baseline; None: whom all is about.
        p_is: what the p-value is called.
    """
    scale, form = (100, ".1f") if in_points else (1, ".3f")
    low, high, difference = (format(scale * value, f"+{form}") for value in (found.low, found.high, found.difference))
    unit = " points" if in_points else ""
    told = f"({low} to {high}, {p_is} = {found.p_value:.2g}, n = {n})"
    scope = "" if in_points and subject is None else f" in {found.metric}"
    if not found.is_clear:
        whom = f"between {subject} and {found.baseline}" if subject else f"from {found.baseline}"
        return f"No evidence of a difference {whom}{scope}: {difference}{unit} {told}."
    kind = "better" if (found.difference > 0) != lower_is_better else "worse"
    who = f"{subject} is {kind}" if subject else kind.capitalize()
    return f"{who} than {found.baseline}{scope}: {difference}{unit} {told}."


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order (Holm 1979, Scandinavian Journal of Statistics 6).

    Whatever the tests have to do with each other, the chance of claiming a difference anywhere where there is none stays below
    the level that the corrected values are held against.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


# --------------------------------------------------------------------------------------------------------------------
# What could have been shown


def detectable_share(discordant: float, n: int, alpha: float = 1 - LEVEL, power: float = POWER) -> float | None:
    """The smallest difference of two shares that McNemar's exact test would find with that power (Duffy 1984, Biometrics 40).

    Args:
        discordant: the share of examples on which only one of the two is right. A larger difference needs a larger one.

    Returns:
        None where n examples could not show any difference.
    """
    if _mcnemar_power(1.0, 1.0, n, alpha) < power:
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        reached = _mcnemar_power(middle, max(discordant, middle), n, alpha) >= power
        low, high = (low, middle) if reached else (middle, high)
    return high


def _mcnemar_power(difference: float, discordant: float, n: int, alpha: float) -> float:
    """The chance that the test finds a difference: how many examples are discordant is binomial, and so is their split."""
    from scipy import stats

    counts = np.arange(n + 1)
    chances = stats.binom.pmf(counts, n, discordant)
    counts, chances = counts[chances > 1e-12], chances[chances > 1e-12]
    # The largest count of the rarer side that is still too uneven for chance; -1 where none is.
    bound = stats.binom.ppf(alpha / 2, counts, 0.5)
    bound -= stats.binom.cdf(bound, counts, 0.5) > alpha / 2
    share = (discordant + difference) / (2 * discordant)
    found = stats.binom.cdf(bound, counts, share) + stats.binom.cdf(bound, counts, 1 - share)
    return float(chances @ found)


def detectable_mean(error: float, alpha: float = 1 - LEVEL, power: float = POWER) -> float | None:
    """The smallest mean difference that would be found with that power (Bloom 1995, Evaluation Review 19): its standard error
    times the sum of the two quantiles of the normal distribution, 2.8 at 5% and 80%.

    Args:
        error: standard error of the mean difference.

    Returns:
        None where no difference varies, so that nothing is known of how they would.
    """
    return (quantile(1 - alpha) + quantile(2 * power - 1)) * error if error else None


def standard_error(values: np.ndarray, groups: np.ndarray | None = None, weights: np.ndarray | None = None) -> float:
    """Standard error of the (weighted) mean of values of shape [n], from the sums of groups (Liang and Zeger 1986)."""
    counted = np.ones(len(values)) if weights is None else weights
    rest = (values - np.average(values, weights=counted)) * counted
    if groups is not None:
        rest = np.bincount(groups, weights=rest)[np.bincount(groups) > 0]
    count = len(rest)
    return float(np.sqrt((rest**2).sum() * count / (count - 1)) / counted.sum()) if count > 1 else 0.0


def bootstrap_cells(
    counts: np.ndarray, sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> tuple[float, float]:
    """`intervals.bootstrap` where many examples are alike: each kind of them is a cell, and only their counts are drawn.

    Args:
        counts: how many examples are of each kind, int64 of shape [cells].
        sums: what an example of each kind adds up to, float64 of shape [cells, quantities].
        statistic: from totals of shape [resamples, quantities] to values of shape [resamples].
    """
    generator, n = np.random.default_rng(seed), int(counts.sum())
    values = np.empty(RESAMPLES)
    at_once = max(1, 4_000_000 // len(counts))
    for start in range(0, RESAMPLES, at_once):
        draws = generator.multinomial(n, counts / n, size=min(at_once, RESAMPLES - start))
        values[start : start + len(draws)] = statistic(draws @ sums)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
