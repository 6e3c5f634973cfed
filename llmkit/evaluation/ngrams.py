"""A trigram model of tokens: what a language model has to beat to be worth its weights.

Interpolated Kneser-Ney smoothing with one discount an order (Kneser and Ney 1995; Chen and Goodman 1998, section 2.7), in
arrays: millions of tokens are counted in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_TOKENS = 2_000_000
"""Training tokens that are counted at most."""


@dataclass
class _Table:
    """Numbers by key."""

    keys: np.ndarray
    """Sorted, int64."""
    values: np.ndarray

    @classmethod
    def summed(cls, keys: np.ndarray, values: np.ndarray) -> _Table:
        """The sums of the values of each key."""
        found, places = np.unique(keys, return_inverse=True)
        return cls(found, np.bincount(places, weights=values))

    def of(self, keys: np.ndarray) -> np.ndarray:
        """The values of keys; 0 where there is none."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.values[places], 0.0)


class Trigrams:
    """Probabilities of a token after two others."""

    def __init__(self, tokens: np.ndarray, vocab_size: int, end: int):
        """Count.

        Args:
            tokens: int64 of shape [tokens], documents one after the other.
            vocab_size: tokens that there are, below 2^21.
            end: the token that ends documents, and that stands twice before each.
        """
        self.vocab_size, self.end = vocab_size, end
        before, last = self._contexts(tokens)
        seen, counts = np.unique((before * vocab_size + last) * vocab_size + tokens, return_counts=True)
        # Of pairs and single tokens it counts after how many different ones they have been seen.
        pairs, pair_counts = np.unique(seen % vocab_size**2, return_counts=True)
        singles = np.bincount(pairs % vocab_size, minlength=vocab_size)
        self._orders = [self._order(seen, counts), self._order(pairs, pair_counts)]
        discount = _discount(singles)
        reserved = discount * (singles > 0).sum() / singles.sum()
        self._singles = np.maximum(singles - discount, 0) / singles.sum() + reserved / vocab_size

    def _contexts(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two tokens before each; nothing is seen of another document."""
        last = np.concatenate([[self.end], tokens[:-1]])
        before = np.concatenate([[self.end], last[:-1]])
        return np.where(last == self.end, self.end, before), last

    def _order(self, keys: np.ndarray, counts: np.ndarray) -> tuple[_Table, _Table, _Table]:
        """Discounted counts, and of each context the sum of counts and what it reserves for the order below."""
        discount, contexts = _discount(counts), keys // self.vocab_size
        kept = _Table(keys, np.maximum(counts - discount, 0))
        return kept, _Table.summed(contexts, counts), _Table.summed(contexts, np.full(len(keys), discount))

    def probabilities(self, before: np.ndarray, last: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of tokens after pairs of others; all int64 of one shape."""
        found = self._singles[tokens]
        contexts = (before * self.vocab_size + last, last)
        for context, (kept, totals, reserved) in reversed(list(zip(contexts, self._orders, strict=True))):
            total = totals.of(context)
            here = (kept.of(context * self.vocab_size + tokens) + reserved.of(context) * found) / np.maximum(total, 1)
            found = np.where(total > 0, here, found)  # a context that was never seen says nothing
        return found

    def losses(self, document: np.ndarray) -> np.ndarray:
        """The negative log-likelihood of each token of a document, float64 of shape [tokens]."""
        return -np.log(self.probabilities(*self._contexts(document), document))


def _discount(counts: np.ndarray) -> float:
    """Ney, Essen and Kneser 1994, from how many occur once and twice; never nothing, so that no token is impossible."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return min(max(once / (once + 2 * twice) if once else 0.0, 0.1), 0.9)
