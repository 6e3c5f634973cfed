"""Quality filters as a step of preprocessing: measure a batch, then judge it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmkit.corpus.batch import Batch
from llmkit.corpus.quality.lines import LineRules
from llmkit.corpus.quality.measure import measure_packed, packed
from llmkit.corpus.quality.rules import Rule, Thresholds, judge, line_rules_of, problems, rules_of
from llmkit.corpus.quality.words import DEFINITIONS
from llmkit.errors import ConfigError


class Quality:
    """Signals of documents, and rules over them.

    Filters after c4 are measured of the lines that C4 leaves, those before it of the whole text, as in FineWeb's pipeline.
    Thresholds can be tried on stored signals without measuring again; only c4's settings `line_...` change what is measured.

    Raises:
        ConfigError: there are no such filters, rules or words.
    """

    def __init__(self, filters: Sequence[str], thresholds: Thresholds | None = None, words: str = "unicode-run-1"):
        found = problems(filters, thresholds)
        if words not in DEFINITIONS:
            found.append(f"there is no definition of words {words!r}; there are {', '.join(DEFINITIONS)}")
        if found:
            raise ConfigError(found)
        self.filters, self.words = tuple(filters), words
        self.rules: list[Rule] = rules_of(filters, thresholds, words)
        self.lines: LineRules = line_rules_of(thresholds)

    def __call__(self, batch: Batch) -> None:
        """Measure the documents that are kept so far, and take out what C4 removes of those that its rules will keep."""
        kept = list(batch.kept())
        texts = [batch.texts[number] for number in kept]
        measured = measure_packed(packed(texts), self.words, self.filters, self.lines)
        for name, values in measured.signals.items():
            column = np.full(len(batch), np.nan)
            column[kept] = values
            batch.signals[name] = column
        if measured.texts is not None:
            upto = self.filters[: self.filters.index("c4") + 1]
            numbers, _ = judge([rule for rule in self.rules if rule.name.partition(".")[0] in upto], measured.signals)
            for number, rule, text in zip(kept, numbers.tolist(), measured.texts, strict=True):
                if rule < 0:
                    batch.texts[number] = text

    def judge(self, batch: Batch) -> None:
        """Reject what fails, by the signals alone: each document by the first rule that it fails, with the value seen."""
        numbers, values = judge(self.rules, batch.signals)
        for number in np.flatnonzero(numbers >= 0).tolist():
            batch.reject(number, self.rules[numbers[number]].name, float(values[number]))
