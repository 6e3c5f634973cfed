"""Classification metrics with confidence intervals, from the confusion matrix alone.

Shapes: K classes, B bootstrap draws. A confusion matrix has a row per true class and a column per predicted class.

Every metric here is a function of the K x K confusion counts, so the bootstrap draws whole matrices from the multinomial
distribution of the cells. That is the distribution that resampling examples gives, at a cost that does not grow with them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 10_000
_CELLS_AT_ONCE = 1 << 22


@dataclass
class Metric:
    """A number with its interval, the number of examples behind it, and how the interval was made."""

    name: str
    value: float
    low: float
    high: float
    n: int
    method: str
    average: str | None = None
    label: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of shape [K, K], from class numbers of shape [n]."""
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """A quotient that is 0 where nothing is divided, as scikit-learn's `zero_division=0`."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)


def scores(confusion: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """All metrics of matrices of shape [..., K, K].

    Returns:
        (metric, average) to values of shape [...]; the average is `class` for values of shape [..., K], empty for accuracy.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = support.sum(axis=-1)
    accuracy = _ratio(hits.sum(axis=-1), total)
    per_class = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
    }
    found = {("accuracy", ""): accuracy}
    for name, values in per_class.items():
        found[name, "class"] = values
        found[name, "macro"] = values.mean(axis=-1)
        found[name, "micro"] = accuracy  # one label an example: micro precision, recall and F1 are all the accuracy
        found[name, "weighted"] = _ratio((values * support).sum(axis=-1), total)
    return found


def wilson(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); [0, 1] where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def draws_of(confusion: np.ndarray, seed: int | np.random.Generator, count: int = DRAWS) -> np.ndarray:
    """Bootstrap draws of a confusion matrix, shape [B, K, K]."""
    n = int(confusion.sum())
    cells = confusion.reshape(-1) / n
    drawn = np.random.default_rng(seed).multinomial(n, cells, size=count)
    return drawn.reshape(count, *confusion.shape)


def _drawn_scores(confusion: np.ndarray, seed: int) -> dict[tuple[str, str], np.ndarray]:
    """`scores` of all bootstrap draws, made in portions: 10,000 matrices of 150 classes would fill gigabytes."""
    generator = np.random.default_rng(seed)
    portion = max(1, _CELLS_AT_ONCE // confusion.size)
    sizes = [min(portion, DRAWS - start) for start in range(0, DRAWS, portion)]
    parts = [scores(draws_of(confusion, generator, size)) for size in sizes]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def measure(confusion: np.ndarray, labels: list[str], seed: int) -> list[Metric]:
    """Accuracy, precision, recall and F1 (macro, micro, weighted and per class), each with its 95% interval.

    Proportions (accuracy, and precision and recall of a class) have Wilson's interval, the others the bootstrap's percentiles.
    """
    n = int(confusion.sum())
    values = scores(confusion)
    drawn = _drawn_scores(confusion, seed)
    tail = (1 - LEVEL) / 2
    hits, support, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

    def bootstrap(key: tuple[str, str], index: Any = ...) -> tuple[float, float]:
        low, high = np.quantile(drawn[key][index], [tail, 1 - tail], axis=0)
        return float(low), float(high)

    accuracy_interval = wilson(int(hits.sum()), n)
    found = [Metric("accuracy", float(values["accuracy", ""]), *accuracy_interval, n, "wilson")]
    for name in ("precision", "recall", "f1"):
        for average in ("macro", "weighted"):
            key = (name, average)
            found.append(Metric(name, float(values[key]), *bootstrap(key), n, "bootstrap", average=average))
        found.append(Metric(name, float(values[name, "micro"]), *accuracy_interval, n, "wilson", average="micro"))
        for index, label in enumerate(labels):
            value = float(values[name, "class"][index])
            if name == "f1":
                interval, method = bootstrap((name, "class"), (slice(None), index)), "bootstrap"
            else:
                among = int(predicted[index] if name == "precision" else support[index])
                interval, method = wilson(int(hits[index]), among), "wilson"
            among = int(predicted[index] if name == "precision" else support[index])
            found.append(Metric(name, value, *interval, among, method, label=label))
    return found


@dataclass
class Comparison:
    """Two classifiers on the same examples."""

    baseline: str
    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    sentence: str


def compare_accuracy(right: np.ndarray, baseline_right: np.ndarray, baseline: str, seed: int) -> Comparison:
    """Pair two classifiers on the same examples: difference in accuracy with its interval, and McNemar's exact test.

    Args:
        right, baseline_right: whether each example was classified rightly, bool of shape [n].
    """
    n = len(right)
    fixed, broken = int((right & ~baseline_right).sum()), int((~right & baseline_right).sum())
    difference = (fixed - broken) / n
    drawn = np.random.default_rng(seed).multinomial(n, [fixed / n, broken / n, 1 - (fixed + broken) / n], size=DRAWS)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [tail, 1 - tail])
    p_value = float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0
    points = f"{abs(difference) * 100:.1f} points ({low * 100:+.1f} to {high * 100:+.1f}, p = {p_value:.2g}, n = {n})"
    if p_value >= 1 - LEVEL or low <= 0 <= high:  # test and interval must agree before anything is claimed
        sentence = f"No clear difference from {baseline}: {'+' if difference >= 0 else '-'}{points}."
    else:
        sentence = f"{'Better' if difference > 0 else 'Worse'} than {baseline} by {points}."
    return Comparison(baseline, "accuracy", difference, float(low), float(high), p_value, sentence)
