"""The evaluation of translations: BLEU, chrF and TER by sacrebleu, with the signatures that say how they were computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from llmkit.evaluation.intervals import Metric, resampled
from llmkit.evaluation.measured import Baseline, Measured, Predictions
from llmkit.tasks.tables import Split
from llmkit.tasks.translation import Example, Translation
from llmkit.tasks.translation_metrics import bleu, chrf, language_for, statistics, ter, value


def adapt(task: Translation, test: list[Example], split: Split) -> None:
    """Nothing of a test set has to be known to a translator."""


def measure(task: Translation, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    """Corpus metrics with bootstrap intervals (Koehn 2004), and the chrF of each text, by which systems are compared."""
    texts, references = [str(row["prediction"]) for row in predictions], [example.translation for example in test]
    language = language_for(task.target_lang, references)
    found: list[Metric] = []
    signatures = {}
    for name, metric in (("bleu", bleu(language)), ("chrf", chrf()), ("ter", ter(language))):
        counts = statistics(metric, texts, references)
        found.append(corpus_metric(name, metric, counts, seed))
        signatures[name] = str(metric.get_signature())
        if name == "chrf":
            of_texts = np.array([value(metric, row) for row in counts])
    return Measured(
        found, found[:2], of_texts, "chrF of a text", {"signatures": signatures}, {"chrf": of_texts.tolist()}, perfect=100.0
    )


def corpus_metric(name: str, metric: Any, counts: np.ndarray, seed: int) -> Metric:
    """A metric of sacrebleu with its interval, from what it counts in texts, float64 of shape [texts, counts]."""

    def of_totals(totals: np.ndarray) -> np.ndarray:
        return np.array([value(metric, row) for row in totals])

    return resampled(name, value(metric, counts.sum(axis=0)), counts, of_totals, seed)


def baselines(task: Translation, train: list[Example], test: list[Example], seed: int) -> Iterator[Baseline]:
    """The source as it is: between languages of one script, names and numbers alone give it something."""
    copies = [{"prediction": example.source} for example in test]
    yield Baseline("source copied", "the text is left as it is", copies)
