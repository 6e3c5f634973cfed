from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmkit.evaluation.comparison import compare_means
from llmkit.evaluation.intervals import Metric
from llmkit.evaluation.question_answering import baselines, measure
from llmkit.tasks.question_answering import Example, QuestionAnswering

task = QuestionAnswering()

EELS = "Eels spawn in the Sargasso Sea. They live for 20 years, say. Nobody saw it!"
ROOFS = "屋顶是红色的。下雨的时候，孩子们在屋里看书。"


def asked(question: str, context: str, *answers: str) -> Example:
    found = [(answer, context.index(answer)) for answer in answers]
    return Example(id=question, place=question, question=question, context=context, answers=found)


TEST = [
    asked("Where do eels spawn?", EELS, "the Sargasso Sea", "Sargasso Sea"),
    asked("How long do they live?", EELS, "20 years"),
    asked("Who saw a whale?", EELS),
    asked("屋顶是什么颜色的？", ROOFS, "红色"),
]


def given(*texts: str) -> list[dict[str, Any]]:
    return [{"prediction": text} for text in texts]


def values(metrics: list[Metric]) -> dict[tuple[str, str | None], float | None]:
    return {(metric.name, metric.label): metric.value for metric in metrics}


def test_metrics_are_means_over_all_questions_and_over_those_with_and_without_an_answer() -> None:
    found = measure(task, TEST, given("Sargasso Sea", "for 20 years", "", "是红色"), seed=0)
    # F1: 1; 2 of 3 words right, 4/5; 1; 2 of 3 characters right, 4/5.
    assert values(found.metrics) == {
        ("f1", None): pytest.approx((1 + 0.8 + 1 + 0.8) / 4),
        ("exact_match", None): 0.5,
        ("f1", "HasAns"): pytest.approx((1 + 0.8 + 0.8) / 3),
        ("exact_match", "HasAns"): pytest.approx(1 / 3),
        ("f1", "NoAns"): 1.0,
        ("exact_match", "NoAns"): 1.0,
    }
    assert found.record["answered"] == {
        "with_answer": {"answered": 3, "not": 0},
        "without_answer": {"answered": 0, "not": 1},
    }
    assert [(metric.name, metric.label) for metric in found.headline] == [("f1", None), ("exact_match", None)]


def test_without_unanswerable_questions_there_is_one_set_of_metrics() -> None:
    assert len(measure(task, TEST[:2], given("", ""), seed=0).metrics) == 2


def test_questions_about_one_context_are_one_draw() -> None:
    test = [asked(f"Question {number}?", f"Context {number // 10}.", "Context") for number in range(100)]
    texts = ["Context" if number // 10 % 2 else "?" for number in range(100)]
    clustered = measure(task, test, given(*texts), seed=0).metrics[0]
    assert clustered.method == "cluster bootstrap"
    # Ten contexts of which half are right: a share of 10 draws, with a standard deviation of 0.158, and not of 100.
    assert clustered.high - clustered.low > 0.5


def test_what_is_always_wrong_is_not_certain() -> None:
    metric = measure(task, TEST[:3], given("x", "x", "x"), seed=0).metrics[0]
    assert (metric.value, metric.low) == (0.0, 0.0)
    assert metric.high > 0.5, "one context says little"


def test_groups_are_compared_as_a_whole() -> None:
    better, worse = np.array([1.0] * 10), np.zeros(10)
    groups = np.repeat([0, 1], 5)
    assert compare_means(better, worse, "b", "f1", 0).p_value < 0.01
    assert compare_means(better, worse, "b", "f1", 0, groups).p_value > 0.3, "two groups, four ways of signs"


def test_baselines_are_sentences_of_the_context_and_no_answer() -> None:
    found = {baseline.name: [row["prediction"] for row in baseline.predictions] for baseline in baselines(task, [], TEST, 0)}
    assert found == {
        "first sentence": ["Eels spawn in the Sargasso Sea."] * 3 + ["屋顶是红色的。"],
        "lexical overlap": [
            "Eels spawn in the Sargasso Sea.",
            "They live for 20 years, say.",
            "Nobody saw it!",
            "屋顶是红色的。",
        ],
        "always no answer": [""] * 4,
    }
    assert [baseline.name for baseline in baselines(task, [], TEST[:2], 0)] == ["first sentence", "lexical overlap"]


def test_a_context_of_signs_alone_is_a_sentence() -> None:
    assert next(iter(baselines(task, [], [asked("?", "...", "...")], 0))).predictions == given("...")
