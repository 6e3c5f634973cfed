"""MinHash: how alike two texts are, seen from a few numbers of each.

A text is the set of its runs of n words (shingles; Broder 1997, "On the resemblance and containment of documents"). The least
value of a random hash function over a set is the same for two sets with the probability of their Jaccard similarity. The
values are put together to bands; two texts are alike where all values of one band agree (Leskovec, Rajaraman and Ullman 2020,
"Mining of Massive Datasets", chapter 3).

The words are those of `llmkit.corpus.words`: letter case, width and punctuation make no difference, and each character of a
script without spaces is a word. A text of fewer than n words is one shingle as a whole; a text without words is like no other.

Hash functions: x -> a x + b modulo 2^64 with odd a (multiply-shift; Dietzfelbinger et al. 1997) of a shingle's hash, which is
mixed before, so that the functions start from random bits. The order of two values is decided by their high bits, which are
the good ones of this family.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.corpus.words import BASE, Words, character_kinds, mixed, normalised
from llmkit.errors import DataError

_CODES = 0x40000  # Unicode has no letters from here on
_HARD = 4
_NO_WORDS = 1
_PLACE = np.uint64(0x9E3779B97F4A7C15)


class MinHash:
    """The bands of texts.

    Args:
        settings: bands, rows, n-gram and seed.
    """

    def __init__(self, settings: DuplicateSettings):
        self._bands, self._rows, self._n = settings.bands, settings.rows, settings.ngram
        random = np.random.default_rng(settings.seed)
        drawn = random.integers(0, 1 << 64, size=(2, settings.bands * settings.rows), dtype=np.uint64)
        self._factors, self._terms = drawn[0] | np.uint64(1), drawn[1]
        self._powers = _powers(self._n)

    def bands(self, texts: Sequence[str]) -> np.ndarray:
        """A hash of each band of each text, uint64 of shape [texts, bands]; 0 for a text without words, and only there.

        Raises:
            DataError: numba is not installed.
        """
        return self._banded(*self.signatures(texts))

    def signatures(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The MinHash values, uint64 of shape [texts, functions], and which texts have words, bool of shape [texts]."""
        values, states = self._run(_encoded(texts), _folding())
        hard = np.flatnonzero(states > _NO_WORDS)
        if len(hard):
            pieces = _encoded([normalised(texts[number]) for number in hard.tolist()])
            values[hard], states[hard] = self._run(pieces, _as_they_are())
        return values, states == 0

    def plain(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What `signatures` gives, without numba and slowly: what its words mean."""
        words = Words(texts)
        counts = np.bincount(words.of, minlength=len(texts))
        values = np.full((len(texts), len(self._factors)), np.iinfo(np.uint64).max, dtype=np.uint64)
        for length in range(1, self._n + 1):
            first, hashes = words.grams(length)
            of = words.of[first]
            own = np.minimum(counts, self._n)[of] == length
            for number, value in zip(of[own].tolist(), hashes[own], strict=True):
                np.minimum(values[number], value * self._factors + self._terms, out=values[number])
        return values, counts > 0

    def _run(self, pieces: list[bytes], table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.empty((len(pieces), len(self._factors)), dtype=np.uint64)
        states = np.empty(len(pieces), dtype=np.uint8)
        text, ends = _joined(pieces)
        kernels().signatures(text, ends, table, self._factors, self._terms, self._powers, values, states)
        return values, states

    def _banded(self, values: np.ndarray, has_words: np.ndarray) -> np.ndarray:
        found = np.zeros((len(values), self._bands), dtype=np.uint64)
        for band in range(self._bands):
            column = found[:, band]
            column += np.uint64(band)
            for row in range(self._rows):
                column[:] = mixed((column + values[:, band * self._rows + row]) * _PLACE)
        return np.where(has_words[:, None], np.maximum(found, 1), np.uint64(0))


class Prefilter:
    """Tells fast in which texts a run of n words from a set stands.

    Args:
        hashes: of the runs (`Words.grams`), uint64, ascending.
        n: their words.
    """

    def __init__(self, hashes: np.ndarray, n: int):
        self._powers = _powers(n)
        bits = max(16, len(hashes).bit_length() + 6)  # 98 to 99 of 100 unknown ones need no search
        self._known, self._likely, self._shift = hashes, np.zeros(1 << (bits - 3), dtype=np.uint8), np.uint64(64 - bits)
        places = hashes >> self._shift
        np.bitwise_or.at(self._likely, places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8))

    def holders(self, texts: Sequence[str]) -> list[int]:
        """The numbers of those texts.

        Raises:
            DataError: numba is not installed.
        """
        states = self._run(_encoded(texts), _folding())
        hard = np.flatnonzero(states > 1)
        if len(hard):
            states[hard] = self._run(_encoded([normalised(texts[number]) for number in hard.tolist()]), _as_they_are())
        return np.flatnonzero(states).tolist()

    def _run(self, pieces: list[bytes], table: np.ndarray) -> np.ndarray:
        states = np.empty(len(pieces), dtype=np.uint8)
        kernels().begun(*_joined(pieces), table, self._powers, self._known, self._likely, self._shift, states)
        return states


def _powers(n: int) -> np.ndarray:
    """The powers of the base of polynomial hashes from 0 to n, and its inverse; uint64 of shape [n + 2]."""
    powers = [pow(BASE, exponent, 1 << 64) for exponent in range(n + 1)]
    return np.array([*powers, pow(BASE, -1, 1 << 64)], dtype=np.uint64)


def _encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def _joined(pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """All in one, uint8, and where each ends, int64."""
    return np.frombuffer(b"".join(pieces), dtype=np.uint8), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)


def kernels() -> Any:
    """The compiled loops.

    Raises:
        DataError: numba is not installed.
    """
    try:
        from llmkit.corpus.duplicates import kernels as found
    except ImportError as error:
        raise DataError('near deduplication and decontamination need numba: pip install "llmkit[corpus]"') from error
    return found


@cache
def _folding() -> np.ndarray:
    """What the kernel has to know of each character of a text as it stands, uint32: see there.

    Normalising by NFKC and folding case are a table for every character that does neither change the one before it nor become
    several. A text with any other is normalised as a whole, in Python.
    """
    kinds = character_kinds()
    hard = _joining()
    table = np.empty(_CODES, dtype=np.uint32)
    for code in range(_CODES):
        character = chr(code)
        folded = normalised(character)
        first = ord(unicodedata.normalize("NFKD", character)[0])
        if len(folded) == 1 and not hard[code] and not (first < _CODES and hard[first]):
            table[code] = (ord(folded) << 3) | int(kinds[ord(folded)])
        else:
            table[code] = (code << 3) | _HARD
    return table


@cache
def _as_they_are() -> np.ndarray:
    """The same table for a text that is normalised already."""
    codes = np.arange(_CODES, dtype=np.uint32)
    return (codes << np.uint32(3)) | character_kinds()[:_CODES]


def _joining() -> np.ndarray:
    """The characters that may join the one before them or change places with it in normalisation, bool by code point."""
    found = np.array([unicodedata.combining(chr(code)) > 0 for code in range(_CODES)])
    for code in range(_CODES):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found[int(parts[1], 16)] = True
    found[0x1161:0x11C3] = True  # the vowels and finals of Hangul, which are put together by rule
    return found
