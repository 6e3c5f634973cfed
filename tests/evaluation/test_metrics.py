from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score
from sklearn.metrics import confusion_matrix as reference_confusion
from sklearn.metrics import precision_recall_fscore_support as reference_scores

from llmkit.evaluation.classification import Metric, compare_accuracy, confusion_matrix, draws_of, measure, scores, wilson


@st.composite
def labelled(draw: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """True and predicted classes; some classes may not occur on one side or on both."""
    classes = draw(st.integers(2, 6))
    pairs = draw(st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60))
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]), classes


def by_key(metrics: list[Metric]) -> dict[tuple[str, str], Metric]:
    return {(metric.name, metric.average or (f"class {metric.label}" if metric.label else "")): metric for metric in metrics}


@given(labelled())
@settings(max_examples=150, deadline=None)
def test_every_metric_is_the_one_of_scikit_learn(data: tuple[np.ndarray, np.ndarray, int]) -> None:
    true, predicted, classes = data
    labels = list(range(classes))
    confusion = confusion_matrix(true, predicted, classes)
    assert confusion.tolist() == reference_confusion(true, predicted, labels=labels).tolist()
    found = scores(confusion)
    assert found["accuracy", ""] == pytest.approx(accuracy_score(true, predicted))
    names = ("precision", "recall", "f1")
    for average in ("macro", "micro", "weighted"):
        reference = reference_scores(true, predicted, labels=labels, average=average, zero_division=0)
        for name, value in zip(names, reference, strict=False):
            assert found[name, average] == pytest.approx(value)
    per_class = reference_scores(true, predicted, labels=labels, average=None, zero_division=0)
    for name, values in zip(names, per_class, strict=False):
        assert found[name, "class"].tolist() == pytest.approx(values.tolist())


@given(labelled())
@settings(max_examples=15, deadline=None)
def test_the_report_holds_every_metric_once_with_its_interval_around_it(data: tuple[np.ndarray, np.ndarray, int]) -> None:
    true, predicted, classes = data
    names = [f"label{number}" for number in range(classes)]
    confusion = confusion_matrix(true, predicted, classes)
    metrics = measure(confusion, names, seed=0)
    found = by_key(metrics)
    assert len(found) == len(metrics) == 1 + 3 * (3 + classes)
    values = scores(confusion)
    for (name, average), metric in found.items():
        if metric.label:
            index = names.index(metric.label)
            assert metric.value == pytest.approx(values[name, "class"][index])
            among = predicted if name == "precision" else true
            assert metric.n == int((among == index).sum())
        else:
            assert metric.value == pytest.approx(values[name, average])
            assert metric.n == len(true)
        assert 0 <= metric.low <= metric.high <= 1
        if metric.method == "wilson" and metric.n:
            assert metric.low - 1e-12 <= metric.value <= metric.high + 1e-12


@given(st.integers(0, 400), st.integers(1, 400))
@example(0, 10)
@example(10, 10)
@settings(max_examples=200, deadline=None)
def test_wilson_is_the_formula_of_1927(hits: int, n: int) -> None:
    hits = min(hits, n)
    z = stats.norm.ppf(0.975)
    share = hits / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert wilson(hits, n) == pytest.approx((max(0.0, centre - half), min(1.0, centre + half)), abs=1e-9)


def test_nothing_counted_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


CONFUSION = np.array([[40, 8, 2], [5, 30, 10], [1, 4, 50]])


def test_drawing_matrices_is_resampling_examples() -> None:
    """Percentiles of our bootstrap against a brute-force one that draws examples with replacement."""
    cells = np.repeat(np.arange(9), CONFUSION.reshape(-1))
    generator = np.random.default_rng(1)
    brute = np.stack([np.bincount(generator.choice(cells, len(cells)), minlength=9).reshape(3, 3) for _ in range(8000)])
    ours = draws_of(CONFUSION, seed=0)
    assert (ours.sum(axis=(1, 2)) == CONFUSION.sum()).all()
    for key in (("f1", "macro"), ("precision", "weighted"), ("recall", "macro"), ("accuracy", "")):
        expected, found = (np.quantile(scores(drawn)[key], [0.025, 0.5, 0.975]) for drawn in (brute, ours))
        assert found == pytest.approx(expected, abs=0.004), key
    found = by_key(measure(CONFUSION, ["a", "b", "c"], seed=0))["f1", "macro"]
    assert (found.low, found.high) == pytest.approx(np.quantile(scores(brute)["f1", "macro"], [0.025, 0.975]), abs=0.004)


def test_the_same_seed_gives_the_same_intervals_and_another_others() -> None:
    first, same, other = (by_key(measure(CONFUSION, ["a", "b", "c"], seed))["f1", "macro"] for seed in (0, 0, 1))
    assert (first.low, first.high) == (same.low, same.high) != (other.low, other.high)
    assert (first.low, first.high) == pytest.approx((other.low, other.high), abs=0.01)


@pytest.mark.slow
def test_95_percent_intervals_hold_the_truth_95_times_in_100() -> None:
    """1,000 test sets of 300 examples from a known distribution; the standard error of such a share is 0.7 points."""
    cells = np.array([0.30, 0.05, 0.02, 0.06, 0.20, 0.07, 0.02, 0.05, 0.23]).reshape(3, 3)
    truth = {key: float(scores(cells)[key]) for key in (("accuracy", ""), ("f1", "macro"), ("precision", "weighted"))}
    held = dict.fromkeys(truth, 0)
    generator = np.random.default_rng(0)
    for number in range(1000):
        confusion = generator.multinomial(300, cells.reshape(-1)).reshape(3, 3)
        low, high = wilson(int(np.trace(confusion)), 300)
        held["accuracy", ""] += low <= truth["accuracy", ""] <= high
        drawn = scores(draws_of(confusion, seed=number, count=1000))
        for key in (("f1", "macro"), ("precision", "weighted")):
            low, high = np.quantile(drawn[key], [0.025, 0.975])
            held[key] += low <= truth[key] <= high
    for key, count in held.items():
        assert 930 <= count <= 975, key


def right(n: int, *wrong: int) -> np.ndarray:
    found = np.ones(n, dtype=bool)
    found[list(wrong)] = False
    return found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_mcnemar_is_the_exact_binomial_test_of_the_examples_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    fixed, broken = pairs.count((True, False)), pairs.count((False, True))
    found = compare_accuracy(ours, theirs, "it", seed=0)
    assert found.difference == pytest.approx(ours.mean() - theirs.mean())
    expected = stats.binomtest(fixed, fixed + broken, 0.5).pvalue if fixed + broken else 1.0
    assert found.p_value == pytest.approx(expected)
    assert found.low <= found.high


def test_identical_predictions_do_not_differ() -> None:
    found = compare_accuracy(right(50, 1, 2), right(50, 1, 2), "it", seed=0)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.sentence.startswith("No clear difference from it: +0.0 points")


def test_predictions_that_always_differ_are_told_apart_and_named_rightly() -> None:
    better = compare_accuracy(right(100), right(100, *range(30)), "it", seed=0)
    worse = compare_accuracy(right(100, *range(30)), right(100), "it", seed=0)
    assert better.sentence.startswith("Better than it by 30.0 points (+")
    assert worse.sentence.startswith("Worse than it by 30.0 points (-")
    assert better.p_value == worse.p_value < 1e-6
    assert 0.2 < better.low < better.difference == 0.3 < better.high < 0.4


def test_a_slight_difference_is_not_claimed() -> None:
    found = compare_accuracy(right(100, 0, 1, 2), right(100, 3, 4, 5, 6), "it", seed=0)
    assert found.sentence.startswith("No clear difference from it: +1.0 points")
    assert found.low < 0 < found.high


def test_the_interval_of_a_difference_is_that_of_resampled_pairs() -> None:
    generator = np.random.default_rng(3)
    ours, theirs = generator.random(200) < 0.8, generator.random(200) < 0.7
    picks = generator.integers(0, 200, (8000, 200))
    expected = np.quantile(ours[picks].mean(1) - theirs[picks].mean(1), [0.025, 0.975])
    found = compare_accuracy(ours, theirs, "it", seed=0)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.006)


def test_many_classes_are_measured_in_little_memory() -> None:
    import tracemalloc

    generator = np.random.default_rng(0)
    true = generator.integers(0, 150, 3000)
    predicted = np.where(generator.random(3000) < 0.7, true, generator.integers(0, 150, 3000))
    tracemalloc.start()
    metrics = measure(confusion_matrix(true, predicted, 150), [str(number) for number in range(150)], seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(metrics) == 1 + 3 * 153
    assert peak < 500e6
