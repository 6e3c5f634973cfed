"""Which documents to measure the quality of near deduplication on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmkit.corpus.duplicates.curve import MOST
from llmkit.corpus.duplicates.layout import Layout
from llmkit.corpus.words import mixed


def sample(directory: Path, count: int = MOST) -> list[tuple[int, int]]:
    """The part and the row of at most `count` documents, in order; the same however the corpus was cut.

    Half of them, where there are as many, are near duplicates with the documents that stay for them; the others are any. Where
    near duplicates are rare, a sample of any documents would have no two that are alike, and would say nothing. Of those that
    were found, though, more is seen than of those that were missed: recall on this sample is an upper bound, precision is not
    touched by it. Exact duplicates are not in the sample.

    Args:
        directory: where `decide` left its decisions.
    """
    layout = Layout.load(directory)
    of_pairs, of_any = np.zeros((0, 2), dtype=np.int64), np.zeros((0, 2), dtype=np.int64)
    for part, start in enumerate(layout.starts[:-1].tolist()):
        is_compared = layout.decided(part, "exact") < 0
        rows = np.flatnonzero(is_compared)
        near = np.flatnonzero(is_compared & (layout.decided(part, "rule") > 0))
        twins = np.asarray(layout.decided(part, "twin"))
        of_pairs = _lowest(np.concatenate([of_pairs, np.stack([start + near, twins[near]], axis=1)]), count // 4)
        of_any = _lowest(np.concatenate([of_any, np.stack([start + rows] * 2, axis=1)]), count)
    chosen = dict.fromkeys(of_pairs.ravel().tolist())
    for number in of_any[:, 0].tolist():
        if len(chosen) >= count:
            break
        chosen[number] = None
    numbers = np.array(sorted(chosen), dtype=np.int64)
    parts = np.searchsorted(layout.starts, numbers, side="right") - 1
    return list(zip(parts.tolist(), (numbers - layout.starts[parts]).tolist(), strict=True))


def _lowest(pairs: np.ndarray, count: int) -> np.ndarray:
    """The pairs whose first numbers come first in an order that is as good as random."""
    return pairs[np.argsort(mixed(pairs[:, 0].astype(np.uint64)), kind="stable")[:count]]
