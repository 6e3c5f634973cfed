"""A metric with its interval, and the intervals that every task uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

LEVEL = 0.95

RESAMPLES = 2000

Method = Literal[
    "wilson",
    "wilson over contexts",
    "mover",
    "fisher",
    "score",
    "logit",
    "normal",
    "skewness-corrected t",
    "test inversion",
    "bootstrap",
    "cluster bootstrap",
    "none",
]
"""How an interval came about; `_methods` in llmkit/reports/page.py explains each."""

_NO_WIDTH = 1e-9  # of an interval, beside its ends: what is left of adding up the same numbers in another order


@dataclass
class Metric:
    """A number with its interval, the number of examples behind it, and how the interval was made."""

    name: str
    value: float | None
    """None where it is undefined: recall and F1 of a class without examples."""
    low: float | None
    high: float | None
    n: int
    method: Method
    average: str | None = None
    label: str | None = None

    @property
    def key(self) -> str:
        """Its name in manifests and tables."""
        return self.name if self.average is None else f"{self.name}_{self.average}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantile(level: float) -> float:
    """How many standard deviations from the mean of a normal distribution its middle part of that share ends."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share; [0, 1] where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    z, share = quantile(level), hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def bootstrap(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    groups: np.ndarray | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """The percentile interval of a statistic of sums over examples (Efron 1979), by resampling whole groups of them.

    Each resample draws as many groups as there are, with replacement; what it costs depends on the number of groups and
    sums, and not on what an example was.

    Args:
        sums: what is added up, float64 of shape [examples, quantities]: for a mean, the values and ones.
        statistic: from totals of shape [resamples, quantities] to values of shape [resamples].
        groups: the number of the group that each example belongs to, int64 of shape [examples]: questions about one text, say,
            are not independent. None: each is a group by itself.
    """
    if groups is not None:
        grouped = np.zeros((int(groups.max()) + 1, sums.shape[1]))
        np.add.at(grouped, groups, sums)
        sums = grouped[np.bincount(groups) > 0]
    generator = np.random.default_rng(seed)
    n = len(sums)
    values = np.empty(resamples)
    at_once = max(1, 4_000_000 // n)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        draws = generator.multinomial(n, np.full(n, 1 / n), size=count)
        values[start : start + count] = statistic(draws @ sums)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def independent(n: int, groups: np.ndarray | None) -> int:
    """How many independent examples, or groups of them, there are among n."""
    return n if groups is None else len(np.unique(groups))


def mean_metric(
    name: str, values: np.ndarray, seed: int, groups: np.ndarray | None = None, perfect: float | None = 1.0
) -> Metric:
    """The mean of a value per example, float64 of shape [examples], with the interval of `resampled`.

    Args:
        perfect: the upper end of the scale, whose lower end is 0; None: it has no upper end.
    """
    sums = np.stack([values, np.ones(len(values))], axis=1)
    return resampled(name, float(values.mean()), sums, lambda totals: totals[:, 0] / totals[:, 1], seed, groups, perfect)


def resampled(
    name: str,
    value: float,
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    groups: np.ndarray | None = None,
    perfect: float | None = None,
    average: str | None = None,
) -> Metric:
    """A statistic of sums over examples with its interval by `bootstrap`, which takes the same arguments.

    Resampling would take for certain what one group says, or all of them alike: that has no interval. But a share at an end of
    its scale has Wilson's, over groups.

    Args:
        value: the statistic of all examples.
        perfect: the upper end of the scale of a share, whose lower end is 0 and which is there only where all examples are;
            None: it is no share.
    """
    n, count = len(sums), independent(len(sums), groups)
    if perfect is not None and value in (0.0, perfect):
        low, high = (perfect * end for end in wilson(count if value else 0, count))
        return Metric(name, value, low, high, n, "wilson" if groups is None else "wilson over contexts", average)
    low, high = bootstrap(sums, statistic, seed, groups) if count > 1 else (value, value)
    if high - low <= _NO_WIDTH * max(abs(low), abs(high)):
        return Metric(name, value, None, None, n, "none", average)
    return Metric(name, value, low, high, n, "bootstrap" if groups is None else "cluster bootstrap", average)
