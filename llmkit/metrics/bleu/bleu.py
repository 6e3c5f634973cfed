"""BLEU for `evaluate`."""

from __future__ import annotations

from typing import Any

from llmkit.evaluation.translation import corpus_metric
from llmkit.metrics import face
from llmkit.tasks.translation_metrics import bleu, language_for, statistics


class BLEU(face.Face):
    """Corpus BLEU with its interval and sacrebleu's signature; the tokenizer is that of the references' language."""

    kinds = face.TEXTS

    def _compute(self, predictions: Any, references: Any, language: str | None = None, seed: int = 0) -> dict[str, Any]:
        texts = face.one_reference(references)
        metric = bleu(language_for(language, texts))
        found = corpus_metric("bleu", metric, statistics(metric, predictions, texts), seed)
        return face.told([found]) | {"signature": str(metric.get_signature())}
