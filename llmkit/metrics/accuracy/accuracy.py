"""Accuracy for `evaluate`."""

from __future__ import annotations

from typing import Any

from llmkit.metrics import face


class Accuracy(face.Face):
    """The share of predictions that are right, with Wilson's interval."""

    kinds = face.LABELS

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return face.told([metric for metric in face.of_labels(predictions, references) if metric.name == "accuracy"])
