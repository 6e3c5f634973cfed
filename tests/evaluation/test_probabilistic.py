"""Metrics of probabilities: values against scikit-learn, intervals against a simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from llmkit.evaluation import probabilistic
from llmkit.evaluation.calibration import risk_coverage
from llmkit.evaluation.classification import confusion_matrix, matthews
from llmkit.evaluation.intervals import Metric
from llmkit.evaluation.probabilistic import Reliability, chances_of, measure, ranking
from llmkit.evaluation.selfcheck import calibration_error, difference


@st.composite
def judged(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, and true classes of which some may not occur."""
    classes = draw(st.integers(2, 6))
    rows = draw(
        st.lists(
            st.tuples(st.lists(st.integers(0, 3), min_size=classes, max_size=classes), st.integers(0, classes - 1)),
            min_size=1,
            max_size=40,
        )
    )
    weights = np.array([row for row, _ in rows], dtype=np.float64) + 1e-3
    return weights / weights.sum(axis=1, keepdims=True), np.array([true for _, true in rows])


def by_key(found: list[Metric]) -> dict[tuple[str, str | None], Metric]:
    return {(metric.key, metric.label): metric for metric in found}


@given(judged())
@example((np.full((2, 2), 0.5), np.array([0, 1])))  # found to be calibrated exactly
@settings(max_examples=150, deadline=None)
def test_every_metric_of_probabilities_is_the_one_of_scikit_learn(data: tuple[np.ndarray, np.ndarray]) -> None:
    chances, true = data
    n, classes = chances.shape
    labels = [str(number) for number in range(classes)]
    found = by_key(measure(chances, true, chances.argmax(axis=1), labels, 0))
    losses = reference.log_loss(true, chances, labels=range(classes))
    assert found["log_loss", None].value == pytest.approx(losses, rel=1e-9, abs=1e-12)
    brier = reference.brier_score_loss(true, chances if classes > 2 else chances[:, 1], labels=range(classes))
    assert found["brier", None].value == pytest.approx(brier, rel=1e-9, abs=1e-12)
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == true
    assert found["ece", None].value == pytest.approx(calibration_error(confidence.tolist(), right.tolist()), abs=1e-12)
    for name, score in (("roc_auc", reference.roc_auc_score), ("pr_auc", reference.average_precision_score)):
        expected = []
        for k, label in enumerate(labels):
            is_class = true == k
            metric = found.get((name, label))
            if not 0 < is_class.sum() < n:
                assert metric is None or metric.value is metric.low is metric.high is None
                continue
            expected.append(float(score(is_class, chances[:, k])))
            if metric is not None:
                assert metric.value == pytest.approx(expected[-1], rel=1e-9)
        overall = found[(name if (name, classes) == ("roc_auc", 2) else f"{name}_macro"), None]
        assert overall.value == (pytest.approx(np.mean(expected), rel=1e-9) if expected else None)
    for metric in found.values():
        if metric.low is not None and metric.high is not None and metric.value is not None:
            assert 0 <= metric.low <= metric.value + 1e-12 and metric.value <= metric.high + 1e-12
            if not metric.name.endswith("_auc"):  # what ranks nothing, or little, does not vary
                assert metric.low < metric.high, "no test set is large enough to be certain"


@given(judged(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_no_metric_depends_on_the_order_of_examples(data: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    chances, true = data
    labels = [str(number) for number in range(chances.shape[1])]
    order = np.random.default_rng(seed).permutation(len(true))
    first = measure(chances, true, chances.argmax(axis=1), labels, 0)
    second = measure(chances[order], true[order], chances[order].argmax(axis=1), labels, 0)
    for ours, theirs in zip(first, second, strict=True):
        assert (ours.value is None) == (theirs.value is None)
        if ours.value is not None and ours.low is not None and theirs.low is not None:
            assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-7)


@given(judged())
@settings(max_examples=40, deadline=None)
def test_slopes_say_how_a_metric_changes_when_an_example_counts_twice(data: tuple[np.ndarray, np.ndarray]) -> None:
    chances, true = data
    scores, positive = chances[:, 0], true == 0
    if not 0 < positive.sum() < len(true):
        return
    many = 400
    for rate in (probabilistic.roc_auc, probabilistic.average_precision):
        value, slopes = rate(scores, positive)
        assert abs(slopes.sum()) < 1e-9
        for place in range(min(3, len(true))):
            copies = np.repeat(np.arange(len(true)), many)
            more, _ = rate(scores[np.append(copies, place)], positive[np.append(copies, place)])
            assert (more - value) * many == pytest.approx(slopes[place], abs=0.03)


def test_a_perfect_ranking_is_not_certain_and_a_lone_positive_says_little() -> None:
    scores = np.linspace(0, 1, 40)
    found = by_key(
        ranking(np.stack([1 - scores, scores], axis=1), np.stack([scores < 0.5, scores >= 0.5], axis=1), ["a", "b"])
    )
    for metric in found.values():
        assert metric.value == metric.high == pytest.approx(1) and 0.75 < metric.low < 0.95  # type: ignore[operator]
    lone = by_key(ranking(scores[:, None], scores[:, None] == 1, ["a"]))
    assert lone["pr_auc", "a"].value == 1 and lone["pr_auc", "a"].low < 0.3  # type: ignore[operator]
    assert lone["roc_auc", "a"].low < 0.6  # type: ignore[operator]


def test_a_class_that_is_absent_is_undefined_and_averages_leave_it_out() -> None:
    chances = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1]])
    found = by_key(measure(chances, np.array([0, 1, 1, 0]), chances.argmax(axis=1), ["a", "b", "c"], 0))
    for name in ("roc_auc", "pr_auc"):
        assert found[name, "c"].value is found[name, "c"].low is found[name, "c"].high is None
        assert found[f"{name}_macro", None].value == pytest.approx(
            np.mean([found[name, label].value for label in "ab"])  # type: ignore[arg-type]
        )
    alone = by_key(measure(chances[:1], np.array([0]), np.array([0]), ["a", "b", "c"], 0))
    assert alone["roc_auc_macro", None].value is None
    assert alone["log_loss", None].value == pytest.approx(-math.log(0.7)) and alone["log_loss", None].low is None


def test_predictions_without_probabilities_have_no_metrics_of_them() -> None:
    assert chances_of(["a", "b"], [{"prediction": "a"}]) is None
    assert chances_of(["a"], [{"prediction": "a", "probability_a": math.nan}]) is None


# --------------------------------------------------------------------------------------------------------------------
# Coverage


def drawn(generator: np.random.Generator, n: int, classes: int, spread: float, power: float) -> tuple[np.ndarray, np.ndarray]:
    """True classes drawn from probabilities, and those probabilities to a power: too sure above 1, calibrated at 1."""
    logits = generator.normal(size=(n, classes)) * spread
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    true = np.minimum((chances.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1), classes - 1)
    said = chances**power
    return said / said.sum(axis=1, keepdims=True), true


def all_metrics(chances: np.ndarray, true: np.ndarray) -> dict[tuple[str, str | None], Metric]:
    predicted, classes = chances.argmax(axis=1), chances.shape[1]
    labels = [str(number) for number in range(classes)]
    _, aurc = risk_coverage(chances.max(axis=1), predicted == true)
    correlation = matthews(confusion_matrix(true, predicted, classes))
    return by_key([*measure(chances, true, predicted, labels, 0), correlation, aurc])


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "spread", "power"), [(2, 2.0, 1.4), (3, 2.0, 1.4)])
def test_95_percent_intervals_of_200_examples_hold_the_truth_in_93_to_97_percent(
    classes: int, spread: float, power: float
) -> None:
    """1,000 test sets of 200 examples; half a point more is left for the luck of the simulation itself."""
    generator = np.random.default_rng(4)
    truth = {key: metric.value for key, metric in all_metrics(*drawn(generator, 400_000, classes, spread, power)).items()}
    held = dict.fromkeys(truth, 0)
    for _ in range(1000):
        for key, metric in all_metrics(*drawn(generator, 200, classes, spread, power)).items():
            held[key] += metric.low <= truth[key] <= metric.high  # type: ignore[operator]
    shares = {key: count / 1000 for key, count in held.items()}
    assert len(shares) >= 9
    assert all(0.93 <= share <= 0.975 for share in shares.values()), shares


def test_the_interval_of_a_calibrated_model_s_error_reaches_down_to_nothing() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        chances, true = drawn(generator, 200, 3, 2.0, 1.0)
        found = Reliability.of(chances.max(axis=1), chances.argmax(axis=1) == true).error(0)
        held += found.low == 0
        assert found.value > 0.01  # type: ignore[operator]
    assert held >= 0.93 * 200


def test_a_difference_is_relative_and_undefined_equals_undefined() -> None:
    assert difference(None, None) == 0 and difference(None, 0.5) == math.inf
    assert difference(1.1, 1.0) == pytest.approx(0.1) and difference(1e-12, 0.0) == pytest.approx(1e-6)
