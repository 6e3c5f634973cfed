"""How well MinHash finds near duplicates: by its formula, and on a sample where all pairs can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmkit.corpus.duplicates.minhash import MinHash
from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.corpus.words import Words

MOST = 2000
"""Documents of a sample: all pairs of them are compared."""
_POINTS = 20
_AT_ONCE = 200


def collision_curve(bands: int, rows: int) -> list[dict[str, float]]:
    """With which `probability` two texts of a `jaccard` similarity s have a band in common: 1 - (1 - s^rows)^bands.

    (Leskovec, Rajaraman and Ullman 2020, section 3.4.2.)
    """
    similarities = [number / _POINTS for number in range(_POINTS + 1)]
    return [{"jaccard": value, "probability": 1 - (1 - value**rows) ** bands} for value in similarities]


def threshold(bands: int, rows: int) -> float:
    """The Jaccard similarity at which that probability is one half."""
    return float((1 - 0.5 ** (1 / bands)) ** (1 / rows))


def sample_quality(texts: Sequence[str], settings: DuplicateSettings) -> dict[str, Any]:
    """Recall and precision of the bands on all pairs of a sample, against exact Jaccard at `threshold`.

    Both are of pairs, before pairs are put together to components. A sample taken at random from a large corpus has few pairs
    that are alike; the more of them, the more the figures say. Texts beyond MOST are left out.

    Returns:
        `documents`, `threshold`, `pairs_alike` (Jaccard at the threshold or above), `pairs_found` (a band in common),
        `pairs_both`, `recall` and `precision` (None where nothing was alike or found), and `by_jaccard`: for each tenth of
        similarity from `low`, its `pairs` and how many were `found`. Pairs without a shingle in common are in none of them.

    Raises:
        DataError: numba is not installed.
    """
    texts = texts[:MOST]
    limit = threshold(settings.bands, settings.rows)
    bands = MinHash(settings).bands(texts)
    pairs, found = np.zeros(10, dtype=np.int64), np.zeros(10, dtype=np.int64)
    alike = both = in_all = 0
    for start, similarities in _jaccard(texts, settings.ngram):
        end = start + len(similarities)
        earlier = np.arange(len(texts))[None, :] < np.arange(start, end)[:, None]
        common = np.zeros(similarities.shape, dtype=bool)
        for band in range(settings.bands):
            common |= (bands[start:end, band, None] == bands[None, :, band]) & (bands[start:end, band, None] > 0)
        is_alike = earlier & (similarities >= limit)
        alike, in_all, both = (
            count + int(which.sum())
            for count, which in ((alike, is_alike), (in_all, earlier & common), (both, is_alike & common))
        )
        tenth = np.minimum((similarities * 10).astype(np.int64), 9)
        some = earlier & (similarities > 0)
        pairs += np.bincount(tenth[some], minlength=10)
        found += np.bincount(tenth[some & common], minlength=10)
    return {
        "documents": len(texts),
        "threshold": limit,
        "pairs_alike": alike,
        "pairs_found": in_all,
        "pairs_both": both,
        "recall": both / alike if alike else None,
        "precision": both / in_all if in_all else None,
        "by_jaccard": [{"low": number / 10, "pairs": int(pairs[number]), "found": int(found[number])} for number in range(10)],
    }


def _jaccard(texts: Sequence[str], n: int) -> list[tuple[int, np.ndarray]]:
    """The exact similarity of texts with all texts, some rows at once: the first's number, float64 of shape [rows, texts]."""
    from scipy.sparse import csr_array

    words = Words(texts)
    counts = np.bincount(words.of, minlength=len(texts))
    owners, shingles = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint64)]
    for length in range(1, n + 1):
        first, hashes = words.grams(length)
        of = words.of[first]
        own = np.minimum(counts, n)[of] == length
        owners.append(of[own])
        shingles.append(hashes[own])
    known, columns = np.unique(np.concatenate(shingles), return_inverse=True)
    cells = np.unique(np.stack([np.concatenate(owners), columns]), axis=1)
    shape = (len(texts), len(known))
    has = csr_array((np.ones(cells.shape[1]), (cells[0], cells[1])), shape=shape)
    sizes = np.bincount(cells[0], minlength=len(texts)).astype(float)
    rows = []
    for start in range(0, len(texts), _AT_ONCE):
        shared = (has[start : start + _AT_ONCE] @ has.T).toarray()
        union = sizes[start : start + _AT_ONCE, None] + sizes[None, :] - shared
        rows.append((start, shared / np.maximum(union, 1)))
    return rows
