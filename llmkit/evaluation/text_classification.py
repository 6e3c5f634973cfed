"""The evaluation of text classifiers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmkit.errors import DataError
from llmkit.evaluation import baselines as simple
from llmkit.evaluation.classification import confusion_matrix
from llmkit.evaluation.classification import measure as measure_confusion
from llmkit.evaluation.measured import Baseline, Measured, Predictions
from llmkit.tasks.tables import Split
from llmkit.tasks.text_classification import Example, TextClassification


def adapt(task: TextClassification, test: list[Example], split: Split) -> None:
    """Name the model's classes as the test set does, and refuse labels that it cannot predict."""
    task.labels = name_classes(task.labels, test, split)
    task.check(test, "test")


def measure(task: TextClassification, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    """Accuracy, and precision, recall and F1 of the classes, from the confusion matrix."""
    numbers = {label: index for index, label in enumerate(task.labels)}
    true = np.array([numbers[example.label] for example in test])
    predicted = np.array([numbers[row["prediction"]] for row in predictions])
    confusion = confusion_matrix(true, predicted, len(task.labels))
    metrics = measure_confusion(confusion, task.labels)
    headline = [
        metric
        for metric in metrics
        if (metric.name, metric.average, metric.label) in (("accuracy", None, None), ("f1", "macro", None))
    ]
    record = {"labels": task.labels, "confusion": confusion.tolist()}
    return Measured(metrics, headline, (true == predicted).astype(float), "accuracy", record)


def baselines(task: TextClassification, train: list[Example], test: list[Example], seed: int) -> Iterator[Baseline]:
    """The majority class, and TF-IDF with logistic regression, where the training examples are known."""
    if train:
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
    used = {example.label for example in test}
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
