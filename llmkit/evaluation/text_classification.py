"""The evaluation of text classifiers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmkit.errors import DataError
from llmkit.evaluation import baselines as simple
from llmkit.evaluation import multi_label, probabilistic, regression
from llmkit.evaluation.classification import confusion_matrix
from llmkit.evaluation.classification import measure as measure_confusion
from llmkit.evaluation.measured import Baseline, Measured, Predictions
from llmkit.tasks.labels import MULTI, REGRESSION, classes_of
from llmkit.tasks.tables import Split
from llmkit.tasks.text_classification import Example, TextClassification


def adapt(task: TextClassification, test: list[Example], split: Split) -> None:
    """Name the model's classes as the test set does, and refuse labels that it cannot predict."""
    if task.kind != REGRESSION:
        task.labels = name_classes(task.labels, test, split)
    task.check(test, "test")


def measure(task: TextClassification, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    """What suits the kind of labels: from the confusion matrix, from sets of labels, or from numbers; and from probabilities,
    where predictions have them."""
    return {MULTI: _several, REGRESSION: _numbers}.get(task.kind, _one)(task, test, predictions, seed)


def _one(task: TextClassification, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    numbers = {label: index for index, label in enumerate(task.labels)}
    true = np.array([numbers[str(example.label)] for example in test])
    predicted = np.array([numbers[row["prediction"]] for row in predictions])
    confusion = confusion_matrix(true, predicted, len(task.labels))
    metrics = measure_confusion(confusion, task.labels)
    chances = probabilistic.chances_of(task.labels, predictions)
    if chances is not None:
        metrics += probabilistic.measure(chances, true, predicted, task.labels, seed)
    headline = [metric for metric in metrics if metric.label is None and metric.key in ("accuracy", "f1_macro")]
    record = {"labels": task.labels, "confusion": confusion.tolist()}
    return Measured(metrics, headline, (true == predicted).astype(float), "accuracy", record)


def _several(task: TextClassification, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    true = task.targets(test) > 0
    given = np.array([[label in row["prediction"] for label in task.labels] for row in predictions])
    metrics = multi_label.measure(true, given, task.labels, seed)
    chances = probabilistic.chances_of(task.labels, predictions)
    if chances is not None:
        metrics += probabilistic.ranking(chances, true, task.labels)
    order = ("f1_samples", "f1_micro", "f1_macro", "exact_match")
    overall = {metric.key: metric for metric in metrics if metric.label is None}
    record = {"labels": task.labels, "thresholds": task.thresholds}
    return Measured(metrics, [overall[name] for name in order], multi_label.example_f1(true, given), "f1_samples", record)


def _numbers(task: TextClassification, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    true = task.targets(test).astype(np.float64)
    predicted = np.array([row["prediction"] for row in predictions], dtype=np.float64)
    metrics = regression.measure(true, predicted, seed)
    errors = (true - predicted) ** 2
    return Measured(metrics, metrics[:3], errors, "mse", lower_is_better=True)


def baselines(task: TextClassification, train: list[Example], test: list[Example], seed: int) -> Iterator[Baseline]:
    """What is most frequent in training (the mean, of numbers), and a linear model of TF-IDF, where the training examples are
    known."""
    if not train:
        return
    if task.kind == MULTI:
        yield simple.most_frequent_set(train, test)
        yield simple.tfidf_several(train, test, seed)
    elif task.kind == REGRESSION:
        yield simple.mean(train, test)
        yield simple.tfidf_ridge(train, test, seed)
    else:
        yield simple.majority(train, test)
        yield simple.tfidf(train, test, seed)


def name_classes(labels: list[str], test: list[Example], data: Split) -> list[str]:
    """The model's classes under the names that the test set uses.

    Many a classifier was saved without names; transformers then calls its classes LABEL_0, LABEL_1 and so on. They are what
    their numbers say, if the test set has numbers, or names in a known order.

    Raises:
        DataError: the model has only numbers, and the test set does not say which name belongs to which.
    """
    numbers = [str(index) for index in range(len(labels))]
    used = {name for example in test for name in classes_of(example.label)}
    if labels != [f"LABEL_{number}" for number in numbers] or used <= set(labels):
        return labels
    if used <= set(numbers):
        return numbers
    known = [names for names in data.classes.values() if used <= set(names) and len(names) == len(labels)]
    if len(known) == 1:
        return known[0]
    raise DataError(
        f"the model's classes have no names, only LABEL_0 to LABEL_{len(labels) - 1}, and the test labels are "
        f"{', '.join(sorted(used))}: which is which? Give test labels from 0 to {len(labels) - 1}, or set `id2label` and "
        f"`label2id` in the model's config.json"
    )
