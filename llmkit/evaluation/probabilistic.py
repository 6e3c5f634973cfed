"""Metrics of class probabilities, with their intervals.

Shape: n examples, K classes, B bins of confidence.

A metric of examples has a slope for each of them: how it changes with the example's weight. The sum of their squares is the
variance that resampling would find (infinitesimal jackknife: Jaeckel 1972), without resampling.

- ROC-AUC (the share of pairs of a positive and a negative that are ranked rightly, ties half) has the score interval of
  Newcombe (2006, Statistics in Medicine 25), whose variance is that of Hanley and McNeil (1982), widened where the one of
  DeLong et al. (1988) is larger. It is defined for a perfect ranking too.
- PR-AUC is average precision: the mean, over positives, of the precision at their score. Its interval is that of its logit
  with Student's quantile for as many positives as there are; with fewer than about 20 of them it covers less than 95%.
- An average over classes combines their intervals (MOVER), with the correlation of the slopes.
- Log-loss (natural logarithm, probabilities cut off at 2.2e-16) and Brier's score (1950; the sum of squares over classes, half
  of it for two, as scikit-learn) are means, whose interval is Student's with the skewness taken out (Hall 1992, Journal of the
  Royal Statistical Society B 54).
- The expected calibration error is that of Guo et al. (2017): of the prediction alone, in 15 bins of equal width. It is too
  high in small samples, as noise of any sign adds to it. The interval holds the errors under which the one found would be no
  surprise: all bins' errors shrunk or stretched by one factor, with their noise (test inversion). It is widened to hold the
  value itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkit.evaluation.classification import PerClass, mover
from llmkit.evaluation.intervals import LEVEL, Method, Metric, quantile, wilson
from llmkit.evaluation.measured import Predictions

BINS = 15

_DRAWS = 1000
_LEAST = float(np.finfo(np.float64).eps)


def chances_of(labels: Sequence[str], predictions: Predictions) -> np.ndarray | None:
    """The probabilities of the classes, float64 of shape [n, K]; None where predictions have none, or not all are numbers."""
    columns = [f"probability_{label}" for label in labels]
    if not predictions or any(name not in predictions[0] for name in columns):
        return None
    chances = np.array([[row[name] for name in columns] for row in predictions], dtype=np.float64)
    return chances if np.isfinite(chances).all() else None


def measure(chances: np.ndarray, true: np.ndarray, predicted: np.ndarray, labels: list[str], seed: int) -> list[Metric]:
    """ROC-AUC, PR-AUC, log-loss, Brier's score and calibration error, for one class an example.

    Args:
        chances: float64 of shape [n, K].
        true, predicted: class numbers of shape [n].
        seed: of the noise that the interval of the calibration error is made with.
    """
    n, classes = chances.shape
    rows = np.arange(n)
    is_class = true[:, None] == np.arange(classes)
    found = ranking(chances, is_class, labels)
    if classes == 2:  # the ranking by one of two classes is that by the other, the other way round
        found = [metric for metric in found if metric.name != "roc_auc" or metric.label is None]
        found[0].average = None
    for name, values, most in (
        ("log_loss", log_losses(chances[rows, true]), math.inf),
        ("brier", brier_scores(chances, is_class), 2.0 if classes > 2 else 1.0),
    ):
        found.append(mean_metric(name, values, most))
    found.append(Reliability.of(chances[rows, predicted], predicted == true).error(seed))
    return found


def ranking(chances: np.ndarray, is_class: np.ndarray, labels: list[str]) -> list[Metric]:
    """ROC-AUC and PR-AUC: of each class against the rest, and averages over the classes that some examples have, and not all.

    Args:
        chances: float64 of shape [n, K].
        is_class: which classes the examples have, bool of shape [n, K].
    """
    n, positives = len(chances), is_class.sum(axis=0)
    defined = np.flatnonzero((positives > 0) & (positives < n)).tolist()
    found = []
    measures: tuple[tuple[str, Callable[..., Any], Callable[..., Any], Method], ...] = (
        ("roc_auc", roc_auc, auc_limits, "score"),
        ("pr_auc", average_precision, precision_limits, "logit"),
    )
    for name, rate, limits, method in measures:
        rates = [rate(chances[:, k], is_class[:, k]) for k in defined]
        ends = [limits(*of, int(positives[k]), n - int(positives[k])) for k, of in zip(defined, rates, strict=True)]
        if rates:
            low, high = np.array(ends).T
            per_class = PerClass(np.array([value for value, _ in rates]), low, high, positives[defined])
            correlation = _correlation(np.stack([slopes for _, slopes in rates]))
            macro = mover(per_class, np.full(len(rates), 1 / len(rates)), correlation, 0.0)
            found.append(Metric(name, *macro, n, method if len(rates) == 1 else "mover", average="macro"))
        else:
            found.append(Metric(name, None, None, None, n, "none", average="macro"))
        of_label = dict(zip(defined, zip(rates, ends, strict=True), strict=True))
        for k, label in enumerate(labels):
            metric = Metric(name, None, None, None, int(positives[k]), method, label=label)
            if k in of_label:
                (metric.value, _), (metric.low, metric.high) = of_label[k]
            found.append(metric)
    return found


def _correlation(slopes: np.ndarray) -> np.ndarray:
    """Of the rows of slopes of shape [K, n]; those of a row that does not vary are uncorrelated with the others."""
    products = slopes @ slopes.T
    norms = np.sqrt(np.diagonal(products))
    scale = np.outer(norms, norms)
    correlation = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(correlation, 1.0)
    return correlation


# --------------------------------------------------------------------------------------------------------------------
# Rankings


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The area under the ROC curve, and its slopes.

    Args:
        scores: float64 of shape [n].
        positive: bool of shape [n], with both values.
    """
    from scipy.stats import rankdata

    ranks, m = rankdata(scores), int(positive.sum())
    rest = len(scores) - m
    value = float((ranks[positive].sum() - m * (m + 1) / 2) / (m * rest))
    slopes = np.empty(len(scores))
    slopes[positive] = ((ranks[positive] - rankdata(scores[positive])) / rest - value) / m
    slopes[~positive] = (1 - (ranks[~positive] - rankdata(scores[~positive])) / m - value) / rest
    return value, slopes


def auc_limits(value: float, slopes: np.ndarray, positives: int, negatives: int) -> tuple[float, float]:
    """The limits of an area under the ROC curve."""
    from scipy.optimize import brentq

    z, half = quantile(LEVEL), (positives + negatives) / 2 - 1

    def variance(area: float) -> float:
        spread = 1 + half * ((1 - area) / (2 - area) + area / (1 + area))
        return area * (1 - area) * spread / (positives * negatives)

    assumed = variance(value)
    wider = max(1.0, float(slopes @ slopes) / assumed) if assumed > 0 else 1.0

    def excess(area: float) -> float:
        return (area - value) ** 2 - z * z * wider * variance(area)

    least, most = 1e-12, 1 - 1e-12  # at 0 and 1 themselves nothing varies
    low = 0.0 if value == 0 else float(brentq(excess, 0.0, min(value, most)))
    return low, 1.0 if value == 1 else float(brentq(excess, max(value, least), 1.0))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean precision at the scores of the positives, and its slopes.

    Args:
        scores: float64 of shape [n].
        positive: bool of shape [n], with at least one that is true.
    """
    return mean_rate(scores, positive, positive)


def mean_rate(scores: np.ndarray, hits: np.ndarray, counted: np.ndarray) -> tuple[float, np.ndarray]:
    """At the score of each counted example the share of hits among those of at least that score: the mean, and its slopes.

    Args:
        scores: float64 of shape [n].
        hits, counted: bool of shape [n].
    """
    order = np.argsort(-scores, kind="stable")
    falling = -scores[order]
    first, last = (np.searchsorted(falling, falling, side=side) for side in ("left", "right"))
    hit, weight = hits[order].astype(np.float64), counted[order].astype(np.float64)
    above, among = np.cumsum(hit)[last - 1], last.astype(np.float64)
    rate, total = above / among, weight.sum()
    value = float((weight * rate).sum() / total)
    # The example counts itself, and is among those that the rates at its own and all lower scores are shares of.
    grown = np.cumsum((weight / among)[::-1])[::-1][first]
    thinned = np.cumsum((weight * rate / among)[::-1])[::-1][first]
    slopes = np.empty(len(scores))
    slopes[order] = (weight * (rate - value) + hit * grown - thinned) / total
    return value, slopes


def precision_limits(value: float, slopes: np.ndarray, positives: int, negatives: int) -> tuple[float, float]:
    """The limits of an average precision; of a perfect one those of a share of the positives."""
    if value >= 1 or positives < 2:
        return wilson(positives, positives)[0] if value >= 1 else 0.0, 1.0
    return logit_limits(value, float(slopes @ slopes), positives)


def logit_limits(value: float, variance: float, n: int) -> tuple[float, float]:
    """The interval of a share's logit, in the middle of [0, 1], with Student's quantile for n examples."""
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(variance) / (value * (1 - value))
    odds = value / (1 - value)
    low, high = odds * math.exp(-min(half, 700.0)), odds * math.exp(min(half, 700.0))
    return low / (1 + low), 1 / (1 + 1 / high)


# --------------------------------------------------------------------------------------------------------------------
# Means


def log_losses(chances: np.ndarray) -> np.ndarray:
    """What the probability of the true class costs, float64 of the same shape."""
    return -np.log(np.clip(chances, _LEAST, 1 - _LEAST))


def brier_scores(chances: np.ndarray, is_class: np.ndarray) -> np.ndarray:
    """Brier's score of each example, float64 of shape [n], from two arrays of shape [n, K]."""
    return ((chances - is_class) ** 2).sum(axis=1) / (2 if chances.shape[1] == 2 else 1)


def mean_metric(name: str, values: np.ndarray, most: float = math.inf) -> Metric:
    """The mean of costs of shape [n], from 0 to `most`, with its interval; without one where they do not vary."""
    from scipy.stats import t

    n, mean, deviation = len(values), float(values.mean()), float(values.std())
    if n < 2 or deviation <= 1e-12 * abs(mean):
        return Metric(name, mean, None, None, n, "none")
    skewness = float((((values - mean) / deviation) ** 3).mean())
    reach = float(t.ppf((1 + LEVEL) / 2, n - 1)) / math.sqrt(n)

    def untransformed(standardised: float) -> float:
        if abs(skewness) < 1e-6:
            return standardised
        return 3 / skewness * (float(np.cbrt(1 + skewness * (standardised - skewness / (6 * n)))) - 1)

    low, high = mean - deviation * untransformed(reach), mean - deviation * untransformed(-reach)
    return Metric(name, mean, max(0.0, low), min(most, high), n, "skewness-corrected t")


# --------------------------------------------------------------------------------------------------------------------
# Calibration


@dataclass
class Reliability:
    """How often predictions of about the same confidence are right; all arrays of shape [B].

    Bin b holds the confidences above b / B up to (b + 1) / B, the first also 0.
    """

    n: np.ndarray
    right: np.ndarray
    confidence: np.ndarray
    """The sum of the confidences."""
    squares: np.ndarray
    """The sum of the squared differences of confidence and rightness."""

    @classmethod
    def of(cls, confidence: np.ndarray, right: np.ndarray) -> Reliability:
        """From the probability of each prediction, float64 of shape [n], and whether it is right, bool of shape [n]."""
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        sums = [np.bincount(bins, weights, BINS) for weights in (right, confidence, (confidence - right) ** 2)]
        return cls(np.bincount(bins, minlength=BINS), *sums)

    def error(self, seed: int) -> Metric:
        """The expected calibration error."""
        n = int(self.n.sum())
        gaps = (self.confidence - self.right) / n
        value = float(np.abs(gaps).sum())
        if n < 2:
            return Metric("ece", value, None, None, n, "none")
        used = self.n > 0
        # The variance of one toss of a coin more in each bin stands for what its predictions happen not to show.
        noise = np.sqrt(np.maximum((self.squares[used] + 0.25) / n - gaps[used] ** 2, 0) / n)
        drawn = np.random.default_rng(seed).standard_normal((_DRAWS, len(noise))) * noise
        if not value:  # what is found exactly is off by no more than noise gives
            high = float(np.quantile(np.abs(drawn).sum(axis=1), (1 + LEVEL) / 2))
            return Metric("ece", value, 0.0, min(1.0, high), n, "test inversion")
        factors = np.linspace(0, 3, 31)
        errors = np.stack([np.abs(drawn + factor * gaps[used]).sum(axis=1) for factor in factors])
        ends = np.quantile(errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
        # Quantiles rise with the factor; what is left of noise in them must not send a search the wrong way.
        least, most = np.maximum.accumulate(ends, axis=1)
        low, high = value * float(np.interp(value, most, factors)), value * float(np.interp(value, least, factors))
        return Metric("ece", value, min(low, value), min(1.0, max(high, value)), n, "test inversion")
