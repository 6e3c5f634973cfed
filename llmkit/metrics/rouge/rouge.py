"""ROUGE for `evaluate`."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmkit.evaluation.intervals import mean_metric
from llmkit.evaluation.rouge import rouge_l, rouge_n
from llmkit.metrics import face


class Rouge(face.Face):
    """ROUGE-1, -2 and -L (F1; lower case, no stemming, Han characters as words), with their intervals."""

    kinds = face.TEXTS

    def _compute(self, predictions: Any, references: Any, seed: int = 0) -> dict[str, Any]:
        pairs = list(zip(predictions, face.one_reference(references), strict=True))
        scores = {
            "rouge_1": [rouge_n(*pair, 1) for pair in pairs],
            "rouge_2": [rouge_n(*pair, 2) for pair in pairs],
            "rouge_l": [rouge_l(*pair) for pair in pairs],
        }
        return face.told([mean_metric(name, np.array(values), seed) for name, values in scores.items()])
