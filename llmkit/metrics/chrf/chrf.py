"""ChrF for `evaluate`."""

from __future__ import annotations

from typing import Any

from llmkit.evaluation.translation import corpus_metric
from llmkit.metrics import face
from llmkit.tasks.translation_metrics import chrf, statistics


class ChrF(face.Face):
    """Corpus chrF2 with its interval and sacrebleu's signature."""

    kinds = face.TEXTS

    def _compute(self, predictions: Any, references: Any, seed: int = 0) -> dict[str, Any]:
        texts = face.one_reference(references)
        metric = chrf()
        found = corpus_metric("chrf", metric, statistics(metric, predictions, texts), seed)
        return face.told([found]) | {"signature": str(metric.get_signature())}
