"""N-grams that a few texts share with many.

The few (an evaluation set) are kept as hashes of their n-grams; the many (a corpus) go by, a bounded number at once, so that
memory does not grow with them. Letter case, width of letters, punctuation and spacing make no difference.

n is 13, as in GPT-3's search for contamination (Brown et al. 2020, appendix C). A text with fewer words is looked for as a
whole, if it has 8 at least: below that, chance finds too much (the same source). So is every n-gram that stands in more than
ten of the texts themselves: it is the wording of a form that they are written in, an instruction say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llmkit.corpus.words import Words

Name = TypeVar("Name", int, str)

N = 13
"""Words of an n-gram."""
LEAST = 8
"""A text with fewer words is not looked for."""
_OF_A_FORM = 10
"""An n-gram in more texts than this is of a form."""
_CHARACTERS = 1 << 17
"""Characters that are read at once."""


@dataclass
class Match:
    """A text that shares an n-gram with the many."""

    text: int
    """Its number."""
    share: float
    """The share of its n-grams that was found."""
    gram: str
    """The first of them, normalised."""
    found_in: str
    """Where that was met first."""


class Overlap:
    """The n-grams of some texts, to be looked for in others."""

    def __init__(self, texts: Sequence[str], n: int = N, least: int = LEAST):
        self._texts = texts
        self.searched = np.zeros(len(texts), dtype=bool)
        """Whether each text is long enough to be looked for, bool of shape [texts]."""
        kinds = (np.int64, np.int64, np.int64, np.uint64, np.uint64)
        of, firsts, spans, hashes, heads = [[np.zeros(0, dtype=kind)] for kind in kinds]
        self.head = min(n, least)
        """Words with which every n-gram begins, at least."""
        for batch in _batches(enumerate(texts)):
            numbers, words = np.array([number for number, _ in batch]), Words([text for _, text in batch])
            counts = np.bincount(words.of, minlength=len(batch))
            lengths = np.where(counts >= least, np.minimum(counts, n), 0)
            self.searched[numbers] = lengths > 0
            for length in np.unique(lengths[lengths > 0]).tolist():
                first, found = words.grams(length)
                own = lengths[words.of[first]] == length
                text = words.of[first[own]]
                of.append(numbers[text])
                firsts.append(first[own] - np.searchsorted(words.of, text))
                spans.append(np.full(len(text), length))
                hashes.append(found[own])
                places, head = words.grams(self.head)
                heads.append(head[np.searchsorted(places, first[own])])
        self._of, self._firsts, self._spans = np.concatenate(of), np.concatenate(firsts), np.concatenate(spans)
        self.heads = np.unique(np.concatenate(heads))
        """The hashes (`Words.grams`) of these words; where none stands, there is no n-gram. uint64 of shape [heads]."""
        self._lengths = np.unique(self._spans).tolist()
        self._known, self._example, self._number = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
        holders = np.unique(self._number * len(texts) + self._of) // max(1, len(texts))
        self._is_own = np.bincount(holders, minlength=len(self._known)) <= _OF_A_FORM
        bits = max(20, len(self._known).bit_length() + 3)  # seven of eight unknown ones need no search
        self._filter, self._shift = np.zeros(1 << bits, dtype=bool), np.uint64(64 - bits)
        self._filter[self._known >> self._shift] = True

    def search(self, documents: Iterable[tuple[str, str]]) -> list[Match]:
        """The texts that share an n-gram with documents, the largest share first.

        Args:
            documents: the id and the text of each.
        """
        places = np.full(len(self._known), -1, dtype=np.int64)
        names: list[str] = []
        for batch in _batches(documents):
            many = Words([text for _, text in batch])
            for length in self._lengths:
                known, first = self._met(many, length)
                new, where = np.unique(known, return_index=True)
                owner = many.of[first[where]]
                for gram, document in zip(new.tolist(), owner.tolist(), strict=True):
                    if places[gram] < 0:
                        places[gram] = len(names)
                        names.append(batch[document][0])
        return self._matches(places, names)

    def holders(self, documents: Sequence[str]) -> list[tuple[int, int, str]]:
        """The documents that share an n-gram with the texts: of each its number, that of a text, and the n-gram, normalised.

        It is the first in the document, and the longest of those that begin there.
        """
        found: list[tuple[int, int, str]] = []
        for batch in _batches(enumerate(documents)):
            many = Words([text for _, text in batch])
            met: dict[int, tuple[int, int, int]] = {}  # by document: where the n-gram begins, less its length, which it is
            for length in self._lengths:
                known, first = self._met(many, length)
                own = self._is_own[known]
                owners, where = np.unique(many.of[first[own]], return_index=True)
                starts, grams = first[own][where].tolist(), known[own][where].tolist()
                for owner, start, gram in zip(owners.tolist(), starts, grams, strict=True):
                    met[owner] = min(met.get(owner, (start, 0, gram)), (start, -length, gram))
            for owner, (start, length, gram) in sorted(met.items()):
                passage = " ".join(many.passage(start, start - length - 1).split())
                found.append((batch[owner][0], int(self._of[self._example[gram]]), passage))
        return found

    def _met(self, many: Words, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Which known n-grams of a length stand in documents, and at which words they begin; [places] both, in order."""
        first, hashes = many.grams(length)
        likely = np.flatnonzero(self._filter[hashes >> self._shift])
        at = np.searchsorted(self._known, hashes[likely])
        at[at == len(self._known)] = 0
        is_known = self._known[at] == hashes[likely]
        return at[is_known], first[likely[is_known]]

    def _matches(self, places: np.ndarray, names: list[str]) -> list[Match]:
        found = (places[self._number] >= 0) & self._is_own[self._number]
        total = np.bincount(self._of, minlength=len(self.searched))
        shares = np.bincount(self._of, weights=found, minlength=len(self.searched)) / np.maximum(total, 1)
        matches = []
        there = np.flatnonzero(found)
        for text, place in zip(*np.unique(self._of[there], return_index=True), strict=True):
            gram = there[place]
            first = int(self._firsts[gram])
            passage = " ".join(Words([self._texts[text]]).passage(first, first + int(self._spans[gram]) - 1).split())
            matches.append(Match(int(text), float(shares[text]), passage, names[places[self._number[gram]]]))
        return sorted(matches, key=lambda match: (-match.share, match.text))


def _batches(documents: Iterable[tuple[Name, str]]) -> Iterator[list[tuple[Name, str]]]:
    """Documents of at least so many characters together."""
    batch: list[tuple[Name, str]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
