"""MCC for `evaluate`."""

from __future__ import annotations

from typing import Any

from llmkit.metrics import face


class MCC(face.Face):
    """Matthews' correlation coefficient with its interval."""

    kinds = face.LABELS

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return face.told([metric for metric in face.of_labels(predictions, references) if metric.name == "mcc"])
