"""ROC-AUC for `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from llmkit.evaluation.probabilistic import ranking
from llmkit.metrics import face


class RocAuc(face.Face):
    """The area under the ROC curve with its interval, from a score for class 1, or a probability for each class (then the mean
    over classes, each against the rest)."""

    kinds = [
        {"prediction_scores": datasets.Value("float64"), "references": datasets.Value("int64")},
        {"prediction_scores": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")},
    ]

    def _compute(self, prediction_scores: Any, references: Any) -> dict[str, Any]:
        scores, true = np.array(prediction_scores, dtype=np.float64), np.array(references)
        scores = scores.reshape(len(scores), -1)
        if scores.shape[1] == 2:  # ranking by the one is ranking by the other, the other way round
            scores = scores[:, 1:]
        classes = [1] if scores.shape[1] == 1 else list(range(scores.shape[1]))
        found = ranking(scores, true[:, None] == classes, [str(number) for number in classes])
        return face.told([found[0]])
