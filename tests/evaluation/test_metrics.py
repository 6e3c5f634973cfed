from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, matthews_corrcoef
from sklearn.metrics import confusion_matrix as reference_confusion
from sklearn.metrics import precision_recall_fscore_support as reference_scores

from llmkit.evaluation.classification import confusion_matrix, measure
from llmkit.evaluation.comparison import compare_accuracy
from llmkit.evaluation.intervals import Metric, wilson


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
    """Averages are over the classes that have examples; what is undefined has no value."""
    true, predicted, classes = data
    names = [f"label{number}" for number in range(classes)]
    confusion = confusion_matrix(true, predicted, classes)
    assert confusion.tolist() == reference_confusion(true, predicted, labels=range(classes)).tolist()
    metrics = measure(confusion, names)
    found = by_key(metrics)
    assert len(found) == len(metrics) == 2 + 3 * (3 + classes)
    assert found["accuracy", ""].value == pytest.approx(accuracy_score(true, predicted))
    present = np.unique(true)
    for average in ("macro", "micro", "weighted"):
        # For scikit-learn micro averages would be over the predictions of the present classes alone.
        labels = range(classes) if average == "micro" else present
        reference = reference_scores(true, predicted, labels=labels, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), reference, strict=False):
            assert found[name, average].value == pytest.approx(value)
            assert found[name, average].n == len(true)
    per_class = reference_scores(true, predicted, labels=range(classes), average=None, zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), per_class, strict=False):
        for index, label in enumerate(names):
            metric = found[name, f"class {label}"]
            among = predicted if name == "precision" else true
            assert metric.n == (among == index).sum()
            if index in present or (name == "precision" and metric.n):
                assert metric.value == pytest.approx(values[index])
            else:
                assert (metric.value, metric.low, metric.high) == (None, None, None)
    if len(present) > 1:
        assert found["mcc", ""].value == pytest.approx(matthews_corrcoef(true, predicted), abs=1e-12)
    else:
        assert found["mcc", ""].value is found["mcc", ""].low is found["mcc", ""].high is None
    for metric in metrics:
        if metric.name == "mcc" and metric.value is not None:
            assert -1 <= metric.low <= metric.value <= metric.high <= 1  # type: ignore[operator]
            assert metric.low < metric.high  # type: ignore[operator]
        elif metric.value is not None:
            assert metric.low is not None and metric.high is not None
            assert 0 <= metric.low <= metric.value + 1e-12 and metric.value - 1e-12 <= metric.high <= 1
            assert metric.low < metric.high, "no test set is large enough to be certain"


@given(st.integers(0, 400), st.integers(1, 400))
@example(0, 10)
@example(10, 10)
@settings(max_examples=200, deadline=None)
def test_wilson_is_that_of_scipy(hits: int, n: int) -> None:
    hits = min(hits, n)
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(hits, n)[0] <= hits / n <= wilson(hits, n)[1]


def test_nothing_counted_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


CONFUSION = np.array([[40, 8, 2], [5, 30, 10], [1, 4, 50]])


def test_with_many_examples_the_intervals_are_those_of_resampled_examples() -> None:
    """Where a bootstrap is to be trusted, in the middle and with much data, ours says the same."""
    confusion = CONFUSION * 20
    cells = confusion.reshape(-1) / confusion.sum()
    drawn = np.random.default_rng(1).multinomial(confusion.sum(), cells, size=4000).reshape(-1, 3, 3)
    found = by_key(measure(confusion, ["a", "b", "c"]))
    for key, values in population_scores(drawn).items():
        if key[1] == "class":
            continue
        expected = np.quantile(values, [0.025, 0.975])
        assert (found[key].low, found[key].high) == pytest.approx(expected, abs=0.002), key


def population_scores(cells: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """The true values of all metrics where cells of shape [..., K, K] are the probabilities, or counts of many examples."""
    cells = cells / cells.sum(axis=(-2, -1), keepdims=True)
    hits, support, predicted = np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(axis=-1), cells.sum(axis=-2)
    found: dict[tuple[str, str], np.ndarray] = {}
    for name, values in (
        ("precision", hits / predicted),
        ("recall", hits / support),
        ("f1", 2 * hits / (support + predicted)),
    ):
        found |= {
            (name, "class"): values,
            (name, "macro"): values.mean(axis=-1),
            (name, "weighted"): (values * support).sum(axis=-1),
        }
    above = hits.sum(axis=-1) - (support * predicted).sum(axis=-1)
    below = np.sqrt((1 - (support**2).sum(axis=-1)) * (1 - (predicted**2).sum(axis=-1)))
    found["mcc", ""] = above / below
    return found


def population(shares: list[float], recalls: list[float]) -> np.ndarray:
    """Cell probabilities of classes with these shares and recalls, with the mistakes spread over the other classes."""
    classes = len(shares)
    cells = np.outer(np.array(shares) * (1 - np.array(recalls)) / (classes - 1), np.ones(classes))
    np.fill_diagonal(cells, np.array(shares) * recalls)
    return cells


@pytest.mark.parametrize("n", [50, 100, 250])
@pytest.mark.parametrize(
    "cells",
    [
        population([0.5, 0.5], [0.9, 0.9]),
        population([0.5, 0.5], [0.985, 0.985]),
        population([0.9, 0.1], [0.97, 0.6]),
        population([0.4, 0.35, 0.25], [0.97, 0.98, 0.96]),
        population([0.3, 0.3, 0.2, 0.1, 0.06, 0.04], [0.9, 0.9, 0.7, 0.6, 0.5, 0.4]),
    ],
    ids=["two", "two, nearly perfect", "a rare class", "three, nearly perfect", "six"],
)
def test_95_percent_intervals_hold_the_truth_about_95_times_in_100(cells: np.ndarray, n: int) -> None:
    """500 test sets each; the bootstrap's intervals held the truth in as little as 40 of 100 of the nearly perfect ones."""
    names = [str(number) for number in range(len(cells))]
    truth = population_scores(cells)
    generator = np.random.default_rng(0)
    held: dict[tuple[str, str], list[bool]] = {}
    for _ in range(500):
        confusion = generator.multinomial(n, cells.reshape(-1)).reshape(cells.shape)
        for metric in measure(confusion, names):
            if metric.value is None or metric.name == "accuracy" or metric.average == "micro":
                continue
            if metric.label is None:
                key = (metric.name, metric.average or "")
                true = truth[key]
            else:
                key, true = (metric.name, "class"), truth[metric.name, "class"][int(metric.label)]
            held.setdefault(key, []).append(bool(metric.low <= true <= metric.high))
    shares = {key: float(np.mean(values)) for key, values in held.items()}
    assert min(shares.values()) >= 0.87, shares


def test_a_perfect_score_is_not_certain() -> None:
    found = by_key(measure(np.diag([30, 20]), ["a", "b"]))
    assert found["mcc", ""].value == found["mcc", ""].high == 1 and 0.7 < found.pop(("mcc", "")).low < 0.9  # type: ignore
    for metric in found.values():
        assert metric.value == metric.high == 1
        assert metric.low == wilson(metric.n, metric.n)[0] or 0.9 < metric.low < 0.96  # type: ignore[operator]
    assert found["f1", "macro"].low < 0.955 and found["precision", "weighted"].low < 0.955  # type: ignore[operator]


def test_averages_are_over_the_classes_with_examples() -> None:
    found = by_key(measure(np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]]), ["a", "b", "c"]))
    assert found["f1", "class c"].value is found["recall", "class c"].value is found["precision", "class c"].value is None
    assert found["recall", "macro"].value == pytest.approx(0.9)
    predicted = by_key(measure(np.array([[8, 0, 2], [0, 10, 0], [0, 0, 0]]), ["a", "b", "c"]))
    assert (predicted["precision", "class c"].value, predicted["f1", "class c"].value) == (0, None)
    assert predicted["precision", "macro"].value == 1


def right(n: int, *wrong: int) -> np.ndarray:
    found = np.ones(n, dtype=bool)
    found[list(wrong)] = False
    return found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_mcnemar_is_the_exact_binomial_test_of_the_examples_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    fixed, broken = pairs.count((True, False)), pairs.count((False, True))
    found = compare_accuracy(ours, theirs, "it")
    assert found.difference == pytest.approx(ours.mean() - theirs.mean())
    expected = stats.binomtest(fixed, fixed + broken, 0.5).pvalue if fixed + broken else 1.0
    assert found.p_value == pytest.approx(expected)
    assert found.low <= found.high


def test_identical_predictions_do_not_differ_as_far_as_one_can_tell() -> None:
    found = compare_accuracy(right(50, 1, 2), right(50, 1, 2), "it")
    assert (found.difference, found.p_value) == (0, 1)
    assert -0.06 < found.low < -0.04 and found.high == -found.low
    assert found.sentence.startswith("No evidence of a difference from it: +0.0 points")


def test_predictions_that_always_differ_are_told_apart_and_named_rightly() -> None:
    better = compare_accuracy(right(100), right(100, *range(30)), "it")
    worse = compare_accuracy(right(100, *range(30)), right(100), "it")
    assert better.sentence.startswith("Better than it: +30.0 points (+")
    assert worse.sentence.startswith("Worse than it: -30.0 points (-")
    assert better.p_value == worse.p_value < 1e-6
    assert 0.2 < better.low < better.difference == 0.3 < better.high < 0.4


def test_a_slight_difference_is_not_claimed() -> None:
    found = compare_accuracy(right(100, 0, 1, 2), right(100, 3, 4, 5, 6), "it")
    assert found.sentence.startswith("No evidence of a difference from it: +1.0 points")
    assert found.low < 0 < found.high


@pytest.mark.parametrize("n", [50, 250])
@pytest.mark.parametrize(("fixed", "broken"), [(0.1, 0.02), (0.02, 0.0), (0.0, 0.0), (0.3, 0.2)])
def test_the_interval_of_a_difference_holds_the_truth(n: int, fixed: float, broken: float) -> None:
    generator = np.random.default_rng(3)
    held = []
    for counts in generator.multinomial(n, [fixed, broken, 1 - fixed - broken], size=500):
        pairs = np.repeat([[True, False], [False, True], [True, True]], counts, axis=0)
        found = compare_accuracy(pairs[:, 0], pairs[:, 1], "it")
        held.append(found.low <= fixed - broken <= found.high)
    assert np.mean(held) >= 0.92


def test_many_classes_are_measured_in_little_memory() -> None:
    import tracemalloc

    generator = np.random.default_rng(0)
    true = generator.integers(0, 150, 3000)
    predicted = np.where(generator.random(3000) < 0.7, true, generator.integers(0, 150, 3000))
    tracemalloc.start()
    metrics = measure(confusion_matrix(true, predicted, 150), [str(number) for number in range(150)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(metrics) == 2 + 3 * 153
    assert peak < 500e6
