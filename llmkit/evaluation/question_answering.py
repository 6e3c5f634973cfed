"""The evaluation of extractive question answering."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from llmkit.evaluation.intervals import Metric, mean_metric
from llmkit.evaluation.measured import Baseline, Measured, Predictions
from llmkit.tasks.answer_scores import is_chinese, normalised_answer, segments
from llmkit.tasks.question_answering import Example, QuestionAnswering
from llmkit.tasks.tables import Split

_SENTENCE = re.compile(r"[^.!?。！？]+(?:[.!?。！？]+(?=\s|$)|[。！？]+|[.!?]+)*")


def adapt(task: QuestionAnswering, test: list[Example], split: Split) -> None:
    """Any test set of questions fits any model."""


def measure(task: QuestionAnswering, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    """Exact match and F1, from 0 to 1, of all questions and of those with (HasAns) and without an answer (NoAns).

    Questions about one context are no independent examples: intervals are made by resampling contexts.
    """
    scores = np.array([example.score(row["prediction"]) for example, row in zip(test, predictions, strict=True)])
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(task.group(example), len(numbers)) for example in test])
    has_answer = np.array([bool(example.answers) for example in test])
    given_none = np.array([not row["prediction"] for row in predictions])
    parts: list[tuple[str | None, np.ndarray]] = [(None, np.ones(len(test), dtype=bool))]
    if not has_answer.all():
        parts += [("HasAns", has_answer), ("NoAns", ~has_answer)]
    metrics: list[Metric] = []
    for label, chosen in parts:
        for index, name in ((1, "f1"), (0, "exact_match")):
            if chosen.any():
                metrics.append(mean_score(name, scores[chosen, index], seed, groups[chosen], label))
    record = {
        "contexts": len(numbers),
        "without_answer": int((~has_answer).sum()),
        "null_score_diff_threshold": task.threshold,
        "answered": {
            "with_answer": {"answered": int((has_answer & ~given_none).sum()), "not": int((has_answer & given_none).sum())},
            "without_answer": {
                "answered": int((~has_answer & ~given_none).sum()),
                "not": int((~has_answer & given_none).sum()),
            },
        },
    }
    columns = {
        "exact_match": scores[:, 0].tolist(),
        "f1": scores[:, 1].tolist(),
        # Where in the input the context begins, and where in the context the answers are: the report marks them.
        "context_start": [len(example.input()) - len(example.context) for example in test],
        "answer_spans": [[[start, start + len(text)] for text, start in example.answers] for example in test],
    }
    return Measured(metrics, metrics[:2], scores[:, 1], "f1", record, columns, groups)


def mean_score(name: str, values: np.ndarray, seed: int, groups: np.ndarray, label: str | None) -> Metric:
    """The mean of a score, which is 1 at most, over examples of some kind."""
    metric = mean_metric(name, values, seed, groups)
    metric.label = label
    return metric


def baselines(task: QuestionAnswering, train: list[Example], test: list[Example], seed: int) -> Iterator[Baseline]:
    """The first sentence, the sentence that is most like the question, and never an answer."""
    sentences = [_sentences(example.context) for example in test]
    yield _baseline("first sentence", "the first sentence of the context", [found[0] for found in sentences])
    chosen = [
        max(found, key=lambda sentence: _overlap(example.question, sentence))
        for example, found in zip(test, sentences, strict=True)
    ]
    yield _baseline("lexical overlap", "the sentence that has most of the question's words, the first of equals", chosen)
    if not all(example.answers for example in test):
        yield _baseline("always no answer", "no question is answered", [""] * len(test))


def _baseline(name: str, detail: str, texts: list[str]) -> Baseline:
    return Baseline(name, detail, [{"prediction": text} for text in texts])


def _sentences(context: str) -> list[str]:
    return [text.strip() for text in _SENTENCE.findall(context) if text.strip()] or [context]


def _overlap(question: str, sentence: str) -> int:
    words = segments if is_chinese(question) else lambda text: normalised_answer(text).split()
    return len(set(words(question)) & set(words(sentence)))
