"""F1 for `evaluate`."""

from __future__ import annotations

from typing import Any

from llmkit.metrics import face


class F1(face.Face):
    """F1 with its interval, of one class or as an average over the classes that have examples."""

    kinds = face.LABELS

    def _compute(self, predictions: Any, references: Any, average: str = "binary", pos_label: Any = 1) -> dict[str, Any]:
        return face.averaged("f1", predictions, references, average, pos_label)
