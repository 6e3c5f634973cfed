"""ROUGE-N and ROUGE-L (Lin 2004) of one text against one reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmkit.corpus.words import words as corpus_words


def words(text: str) -> list[str]:
    """The words that are compared: letter case makes no difference, and they are not stemmed."""
    return corpus_words(text.lower())


def rouge_n(text: str, reference: str, n: int) -> float:
    """F1 of the n-grams that two texts share, each counted as often as it is in both."""
    ours, theirs = (_grams(words(item), n) for item in (text, reference))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, of the whole texts (precision and recall weigh the same)."""
    ours, theirs = words(text), words(reference)
    return _f1(_longest_common(ours, theirs), len(ours), len(theirs))


def _grams(found: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(found[start : start + n]) for start in range(len(found) - n + 1))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if ours + theirs else 0.0


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0  # the length for one word less of both
        for column, other in enumerate(second, start=1):
            before, lengths[column] = (
                lengths[column],
                before + 1 if word == other else max(lengths[column], lengths[column - 1]),
            )
    return lengths[-1]
