from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr, spearmanr

from llmkit.evaluation.baselines import mean
from llmkit.evaluation.regression import measure
from llmkit.evaluation.text_classification import baselines
from llmkit.evaluation.text_classification import measure as measure_task
from llmkit.tasks.labels import REGRESSION
from llmkit.tasks.text_classification import Example, TextClassification, correlations

numbers = arrays(np.float64, 20, elements=st.integers(-50, 50).map(float))


@given(numbers, numbers)
@settings(max_examples=25, deadline=None)
def test_every_metric_is_the_one_of_scipy_or_undefined(true: np.ndarray, predicted: np.ndarray) -> None:
    found = {metric.name: metric for metric in measure(true, predicted, seed=0)}
    varies = np.ptp(true) > 0 and np.ptp(predicted) > 0
    for name, of in (("pearson", pearsonr), ("spearman", spearmanr)):
        expected = pytest.approx(of(true, predicted).statistic, abs=1e-9) if varies else None
        assert found[name].value == expected
        assert correlations(predicted, true)[name] == (expected if varies else 0.0)
        if found[name].low is not None:
            assert varies and -1 <= found[name].low <= found[name].high <= 1
    assert found["mse"].value == pytest.approx(((true - predicted) ** 2).mean())
    assert found["mae"].value == pytest.approx(np.abs(true - predicted).mean())


def test_exact_predictions_are_not_taken_for_certain() -> None:
    for metric in measure(np.array([0.0, 1.0, 2.0, 4.0] * 5), np.array([0.0, 1.0, 2.0, 4.0] * 5), seed=0):
        assert metric.value in (pytest.approx(0), pytest.approx(1))
        assert (metric.low, metric.high, metric.method) == (None, None, "none")


def test_intervals_of_a_correlation_hold_it_about_as_often_as_they_say() -> None:
    generator, held = np.random.default_rng(0), 0
    for _ in range(30):
        x, noise = generator.normal(size=(2, 60))
        (pearson, *_) = measure(x, 0.6 * x + 0.8 * noise, seed=0)
        held += pearson.low <= 0.6 <= pearson.high
    assert held >= 25


def of_numbers(count: int, seed: int) -> list[Example]:
    generator = np.random.default_rng(seed)
    good, bad = generator.integers(0, 4, size=(2, count))
    return [
        Example(id=str(index), place="", text=f"{'good ' * g}{'bad ' * b}day", label=float(g - b) / 2)
        for index, (g, b) in enumerate(zip(good, bad, strict=True))
    ]


def test_an_error_that_is_smaller_is_better() -> None:
    train, test = of_numbers(80, 0), of_numbers(40, 1)
    task = TextClassification(["score"], REGRESSION)
    average, ridge = baselines(task, train, test, seed=0)
    assert average == mean(train, test)
    found = [measure_task(task, test, baseline.predictions, 0) for baseline in (average, ridge)]
    better = found[1].against(found[0], "the mean", 0)
    assert better.difference < 0
    assert better.sentence.startswith("Better than the mean in mse: -")
    assert found[0].against(found[1], "ridge", 0).sentence.startswith("Worse than ridge in mse: +")
    assert found[0].headline[0].value is None, "what is always the same correlates with nothing"
