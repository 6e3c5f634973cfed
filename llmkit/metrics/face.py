"""What the modules for `evaluate` have in common.

They import this module and not the class: `evaluate` takes the first metric that it finds among a module's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from llmkit.evaluation.classification import confusion_matrix, measure
from llmkit.evaluation.intervals import Metric

_CITATION = "llmkit; the definitions and their sources stand in its docs/metrics.md"


class Face(evaluate.Metric):
    """A metric as `evaluate` knows it."""

    kinds: ClassVar[Sequence[dict[str, Any]]]
    """What `compute` takes: one or several alternatives of features by name."""

    def _info(self) -> Any:
        features = [datasets.Features(kind) for kind in self.kinds]
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation=_CITATION,
            inputs_description="",
            features=features if len(features) > 1 else features[0],
        )


def told(metrics: Sequence[Metric], scale: float = 1.0) -> dict[str, Any]:
    """Metrics of the same examples, each with its limits, and their number."""
    found: dict[str, Any] = {}
    for metric in metrics:
        key = metric.name if metric.label is None else f"{metric.label}_{metric.name}"
        for ending, value in (("", metric.value), ("_low", metric.low), ("_high", metric.high)):
            found[key + ending] = None if value is None else scale * value
    return found | {"n": metrics[0].n}


_VALUES = ("int64", "string")

LABELS = [{name: datasets.Value(kind) for name in ("predictions", "references")} for kind in _VALUES]
"""A class an example, as a number or a name."""

TEXTS = [
    {"predictions": datasets.Value("string"), "references": datasets.Value("string")},
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))},
]
"""Texts, and of each one reference, which may stand in a list of its own."""


def of_labels(predictions: Sequence[Any], references: Sequence[Any]) -> list[Metric]:
    """What `llmkit evaluate` finds for these classes."""
    classes = sorted({*predictions, *references})
    numbers = {value: number for number, value in enumerate(classes)}
    true, said = (np.array([numbers[value] for value in values]) for values in (references, predictions))
    return measure(confusion_matrix(true, said, len(classes)), [str(value) for value in classes])


def averaged(name: str, predictions: Sequence[Any], references: Sequence[Any], average: str | None, pos_label: Any) -> Any:
    """A metric of classes: of one class for `binary`, as scikit-learn has it, or an average.

    Raises:
        ValueError: `binary` for more than two classes, or an average that there is not.
    """
    found = [metric for metric in of_labels(predictions, references) if metric.name == name]
    if average == "binary":
        labels = [metric.label for metric in found if metric.label is not None]
        if len(labels) > 2:
            raise ValueError(f"average='binary' is for two classes, and there are {len(labels)}: take 'macro' or another")
        chosen = [metric for metric in found if metric.label == str(pos_label)]
        if not chosen:
            raise ValueError(f"pos_label={pos_label!r} is none of the classes {', '.join(map(str, labels))}")
        chosen[0].label = None
    else:
        chosen = [metric for metric in found if metric.average == average and metric.label is None]
        if not chosen:
            raise ValueError(f"average={average!r} is none of 'binary', 'macro', 'micro' and 'weighted'")
    return told(chosen[:1])


def one_reference(references: Sequence[Any]) -> list[str]:
    """Each reference as a text.

    Raises:
        ValueError: there are several for one text.
    """
    if any(not isinstance(item, str) and len(item) != 1 for item in references):
        raise ValueError("a text has one reference; intervals over several are not made here")
    return [item if isinstance(item, str) else item[0] for item in references]
