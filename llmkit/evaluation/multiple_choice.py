"""The evaluation of multiple choice: accuracy by the likelihood of choices, as it is and by their length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmkit.evaluation.intervals import Metric, wilson
from llmkit.evaluation.measured import Baseline, Measured, Predictions
from llmkit.tasks.multiple_choice import Example, MultipleChoice
from llmkit.tasks.tables import Split

# What lm-evaluation-harness calls acc, acc_norm (by characters) and acc_bytes.
_METRICS = {"accuracy": "choice", "accuracy_norm": "choice_norm", "accuracy_bytes": "choice_bytes"}


def adapt(task: MultipleChoice, test: list[Example], split: Split) -> None:
    """Nothing of a test set has to be known to score its choices."""


def measure(task: MultipleChoice, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    """How often the right choice is the most likely one: by all of its tokens, a character, and a byte."""
    answers = np.array([example.answer for example in test])
    found, right = [], np.zeros(0)
    for name, column in _METRICS.items():
        if column not in predictions[0]:
            continue
        hits = answers == np.array([row[column] for row in predictions])
        right = hits if name == "accuracy" else right
        low, high = wilson(int(hits.sum()), len(hits))
        found.append(Metric(name, float(hits.mean()), low, high, len(hits), "wilson"))
    chance = float(np.mean([1 / len(example.choices) for example in test]))
    return Measured(found, found[:2], right.astype(np.float64), "accuracy", {"chance": chance})


def baselines(task: MultipleChoice, train: list[Example], test: list[Example], seed: int) -> Iterator[Baseline]:
    """A choice by lot, and the longest one."""
    generator = np.random.default_rng(seed)
    drawn = [int(generator.integers(len(example.choices))) for example in test]
    yield Baseline("by lot", f"drawn with seed {seed}", _given(test, drawn))
    longest = [max(range(len(example.choices)), key=lambda number: len(example.choices[number])) for example in test]
    yield Baseline("longest choice", "by characters, the first among equals", _given(test, longest))


def _given(test: list[Example], choices: list[int]) -> list[dict[str, object]]:
    return [{"prediction": example.choices[choice], "choice": choice} for example, choice in zip(test, choices, strict=True)]
