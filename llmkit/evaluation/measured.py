"""What the evaluation of every task gives, and what it needs of the single tasks.

A module for each task in this package has three functions of the same names: `adapt`, `measure` and `baselines`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llmkit.evaluation.comparison import Comparison, compare_accuracy, compare_means
from llmkit.evaluation.intervals import Metric, independent, mean_metric, wilson
from llmkit.tasks.base import Task
from llmkit.tasks.tables import Split

Predictions = Sequence[dict[str, Any]]
"""A row an example, as `Task.predict` gives them; `prediction` is what counts."""


@dataclass
class Measured:
    """Metrics of predictions, and how good each of them is."""

    metrics: list[Metric]
    headline: list[Metric]
    """Those of them that are told first."""
    values: np.ndarray
    """How good each prediction is by the first of the headline, float64 of shape [examples]; systems are compared by it."""
    metric: str
    """What those values are called when systems are compared."""
    record: dict[str, Any] = field(default_factory=dict)
    """What else belongs into metrics.json, a confusion matrix say."""
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns of predictions.parquet."""
    groups: np.ndarray | None = None
    """The number of the group that each example belongs to, int64 of shape [examples], where examples are not independent."""
    lower_is_better: bool = False
    """Whether `values` are errors."""
    perfect: float = 1.0
    """The value of a prediction that is wholly right, where values are no errors."""

    @property
    def is_share(self) -> bool:
        """Whether a prediction is either right or wrong, and each by itself."""
        is_scale = self.perfect == 1.0 and not self.lower_is_better
        return is_scale and self.groups is None and bool(np.isin(self.values, (0.0, 1.0)).all())

    @property
    def count(self) -> int:
        """How many independent examples, or groups of them, there are."""
        return independent(len(self.values), self.groups)

    def mean(self, chosen: np.ndarray, seed: int) -> Metric:
        """The mean value of some of the examples, given as bool of shape [examples]."""
        values, n = self.values[chosen], int(chosen.sum())
        if n == 0:
            return Metric(self.metric, None, None, None, 0, "none")
        if self.is_share:
            return Metric(self.metric, float(values.mean()), *wilson(int(values.sum()), n), n, "wilson")
        groups = None if self.groups is None else self.groups[chosen]
        return mean_metric(self.metric, values, seed, groups, None if self.lower_is_better else self.perfect)

    def are_shares(self, other: Measured) -> bool:
        """Whether this and another are compared as shares of right predictions."""
        return self.is_share and other.is_share

    def against(self, other: Measured, baseline: str, seed: int) -> Comparison:
        """How this differs from a baseline on the same examples."""
        if self.are_shares(other):
            return compare_accuracy(self.values > 0, other.values > 0, baseline, self.metric)
        return compare_means(self.values, other.values, baseline, self.metric, seed, self.groups, self.lower_is_better)


@dataclass
class Baseline:
    """What a model has to beat to be worth its weights, measured on the same examples."""

    name: str
    detail: str
    predictions: list[dict[str, Any]]


class TaskEvaluation(Protocol):
    """What a module of this package gives for its task."""

    def adapt(self, task: Task[Any], test: list[Any], split: Split) -> None:
        """Let the task of a model know what the test set says, class names say; refuse test examples that do not fit."""

    def measure(self, task: Task[Any], test: list[Any], predictions: Predictions, seed: int) -> Measured:
        """The metrics of predictions for test examples."""

    def baselines(self, task: Task[Any], train: list[Any], test: list[Any], seed: int) -> Iterator[Baseline]:
        """Baselines that cost little, some of which learn from the training examples (empty where they are not known)."""


def evaluation_of(task: Task[Any]) -> TaskEvaluation:
    """The module for a task."""
    module: Any = importlib.import_module(f"llmkit.evaluation.{task.name.replace('-', '_')}")
    return module
