from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, precision_score, recall_score

from llmkit.evaluation.baselines import most_frequent_set, tfidf_several
from llmkit.evaluation.multi_label import measure
from llmkit.evaluation.text_classification import baselines
from llmkit.evaluation.text_classification import measure as measure_task
from llmkit.tasks.labels import MULTI
from llmkit.tasks.text_classification import Example, TextClassification

LABELS = ["a", "b", "c"]
sets = arrays(np.bool_, (25, 3))


def keyed(true: np.ndarray, given: np.ndarray) -> dict[tuple[Any, ...], Any]:
    return {(metric.name, metric.average, metric.label): metric for metric in measure(true, given, LABELS, seed=0)}


@given(sets, sets)
@settings(max_examples=25, deadline=None)
def test_every_metric_is_the_one_of_scikit_learn(true: np.ndarray, given: np.ndarray) -> None:
    found = keyed(true, given)
    present = true.any(axis=0)
    for name, of in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name, "micro", None].value == pytest.approx(of(true, given, average="micro", zero_division=0))
        if present.any():
            macro = of(true, given, average="macro", labels=np.flatnonzero(present), zero_division=0)
            assert found[name, "macro", None].value == pytest.approx(macro)
        per_class = of(true, given, average=None, zero_division=0)
        for index, label in enumerate(LABELS):
            value = found[name, None, label].value
            assert value == pytest.approx(per_class[index]) if present[index] else value in (None, 0.0)
    samples = found["f1", "samples", None].value
    assert samples == pytest.approx(f1_score(true, given, average="samples", zero_division=1.0))
    assert found["exact_match", None, None].value == (true == given).all(axis=1).mean()
    for metric in found.values():
        assert metric.low is None or 0 <= metric.low <= metric.value + 1e-9 <= metric.high + 2e-9 <= 1 + 3e-9


def test_of_how_texts_differ_one_says_nothing() -> None:
    found = keyed(np.array([[True, False, True]]), np.array([[True, True, False]]))
    for average in ("micro", "macro", "samples"):
        metric = found["f1", average, None]
        assert metric.value == pytest.approx(0.5) and (metric.low, metric.high, metric.method) == (None, None, "none")


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = {"micro": 0, "macro": 0}
    # Of a label that half of the texts have and that is got right with 0.8: F1 = 0.8; labels of a text depend on each other.
    for _ in range(30):
        base = generator.random((60, 1)) < 0.5
        true = base ^ (generator.random((60, 3)) < 0.1)
        given = true ^ (generator.random((60, 3)) < 0.2)
        found = keyed(true, given)
        for average in held:
            metric = found["f1", average, None]
            held[average] += metric.low <= 0.8 <= metric.high
    assert min(held.values()) >= 25


def examples(pairs: list[tuple[str, list[str]]]) -> list[Example]:
    return [Example(id=str(number), place="", text=text, label=label) for number, (text, label) in enumerate(pairs)]


WORDS = {"a": "apple", "b": "boat", "c": "cloud"}


def of_words(count: int, seed: int) -> list[Example]:
    generator = np.random.default_rng(seed)
    drawn = [[name for name in LABELS if generator.random() < 0.5] for _ in range(count)]
    return examples(
        [(f"{' '.join(WORDS[name] for name in names)} number {index}", names) for index, names in enumerate(drawn)]
    )


def test_baselines_of_several_labels_and_the_model_against_them() -> None:
    train, test = of_words(60, 0), of_words(40, 1)
    task = TextClassification(LABELS, MULTI)
    assert most_frequent_set(examples([("x", ["a"]), ("y", []), ("z", [])]), test).predictions[0] == {"prediction": []}
    most, linear = baselines(task, train, test, seed=0)
    assert tfidf_several(train, test, 0).predictions == linear.predictions
    found = [measure_task(task, test, baseline.predictions, 0) for baseline in (most, linear)]
    assert found[1].headline[1].value > 0.9
    assert (
        found[1]
        .against(found[0], "the most frequent", 0)
        .sentence.startswith("Better than the most frequent in f1_samples: +")
    )


def test_a_label_that_some_folds_have_not_is_no_crash() -> None:
    train = [*of_words(30, 0), *examples([("rare thing", ["rare"])])]
    (first, *_) = tfidf_several(train, train[-1:], 0).predictions
    assert set(first["prediction"]) <= {"a", "b", "c", "rare"}
