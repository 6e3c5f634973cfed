"""Windows over documents that are longer than what a model reads at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Windows:
    """What a model reads at once, and what of it is scored: every token of every document once.

    A document of n tokens is x[0], the token that documents begin after, and its own tokens x[1] to x[n]. A window is what the
    model reads, x[start:stop], and predicts x[first] to x[stop] of it.
    """

    document: np.ndarray
    """int64 of shape [windows], as the others."""
    start: np.ndarray
    stop: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens that the model reads."""
        return self.stop - self.start

    @property
    def targets(self) -> np.ndarray:
        """Tokens that are scored."""
        return self.stop - self.first + 1

    def taken(self, order: np.ndarray) -> Windows:
        """Some of them, in an order."""
        return Windows(self.document[order], self.start[order], self.stop[order], self.first[order])


def plan_windows(lengths: np.ndarray, context: int, stride: int) -> Windows:
    """Windows over documents.

    The first one of a document scores all that it reads; each further one begins `stride` tokens later and scores what no
    window before it has. So a token has all of the document before it in view, or at least `context - stride` tokens of it.
    The last window ends where the document does, and reads no more than its place asks for.

    Args:
        lengths: tokens of each document, int64 of shape [documents]; an empty one has no window.
        context: tokens that the model reads at most.
        stride: tokens between the beginnings of two windows, at most `context`.
    """
    more = np.maximum(0, -(-(lengths - context) // stride))
    counts = np.where(lengths > 0, 1 + more, 0)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * stride
    stop = np.minimum(start + context, lengths[document])
    first = np.where(number == 0, 1, start - stride + context + 1)
    return Windows(document, start, stop, first)
