"""The words of a text, as overlap, baselines and ROUGE count them.

A word is a run of letters and digits; of scripts without spaces between words (Han, kana, Thai) each character is one.
Punctuation, underscores and everything else stand between words. `words` gives the words of one text as strings; `Words`
gives those of many texts as numbers, without a loop over words, for what has to read whole corpora.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""The Han characters, as they stand between the brackets of a regular expression."""

_UNSPACED = f"\u3040-\u30ff{HAN}\u0e00-\u0e7f"
WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")

_BETWEEN, _LETTER, _WHOLE = 0, 1, 2
_CODES, _LAST_LETTER = 0x110000, 0x40000  # Unicode's code points; there are no letters from the second on
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


def normalised(text: str) -> str:
    """A text in which compatibility forms (wide letters, ligatures) and letter case make no difference."""
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """The words of a text, as they stand there; of a text of signs alone, an emoji say, the signs."""
    return WORD.findall(text) or text.split()


class Words:
    """The words of several normalised texts, one after the other.

    Attributes:
        texts: the texts, normalised and joined.
        starts, ends: where each word stands in them, in characters; int64 of shape [words].
        of: the number of the text that each word belongs to; int64 of shape [words].
        hashes: of each word, uint64 of shape [words]; equal words have equal ones.
    """

    def __init__(self, texts: Sequence[str]):
        pieces = [normalised(text) for text in texts]
        self.texts = "\n".join(pieces)  # no word and no n-gram goes over the line end between two texts
        codes = np.frombuffer(self.texts.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        kinds = np.zeros(len(codes) + 2, dtype=np.uint8)
        np.take(character_kinds(), codes, out=kinds[1:-1])
        here = kinds[1:-1]
        self.starts = np.flatnonzero((here == _WHOLE) | ((here == _LETTER) & (kinds[:-2] != _LETTER)))
        self.ends = np.flatnonzero((here == _WHOLE) | ((here == _LETTER) & (kinds[2:] != _LETTER))) + 1
        firsts = np.cumsum([0, *(len(piece) + 1 for piece in pieces[:-1])]) if pieces else np.zeros(0, dtype=np.int64)
        self.of = np.repeat(np.arange(len(pieces)), np.diff(np.searchsorted(self.starts, [*firsts, len(codes) + 1])))
        self.hashes = mixed(_spans(codes.astype(np.uint64), self.starts, self.ends))

    def __len__(self) -> int:
        return len(self.starts)

    def grams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Runs of n words within one text: the number of the first word of each, and its hash; [n-grams] both."""
        firsts = np.arange(max(0, len(self) - n + 1))
        firsts = firsts[self.of[firsts] == self.of[firsts + n - 1]]
        return firsts, mixed(_spans(self.hashes, firsts, firsts + n) + np.uint64(n))

    def passage(self, first: int, last: int) -> str:
        """The text from a word to another."""
        return self.texts[self.starts[first] : self.ends[last]]


@cache
def character_kinds() -> np.ndarray:
    """What each code point is, uint8: between words, a letter (or digit) of one, or a word by itself."""
    kinds = np.zeros(_CODES, dtype=np.uint8)
    kinds[[code for code in range(_LAST_LETTER) if chr(code).isalnum()]] = _LETTER
    for first, last in re.findall("(.)-(.)", _UNSPACED):
        kinds[ord(first) : ord(last) + 1] = _WHOLE
    return kinds


@cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the base from 0 to 2^bits, and of its inverse, modulo 2^64."""
    found = []
    for base in (BASE, pow(BASE, -1, 1 << 64)):
        factors = np.full((1 << bits) + 1, base, dtype=np.uint64)
        factors[0] = 1
        found.append(np.cumprod(factors, dtype=np.uint64))
    return found[0], found[1]


def _spans(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A hash of each span of values: a polynomial modulo 2^64, the same wherever the span stands (Karp and Rabin 1987).

    All are had from one running sum, whatever their lengths.
    """
    powers, inverses = _powers(max(1, len(values)).bit_length())
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return (sums[ends] - sums[starts]) * inverses[starts]


def mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of a hash made to depend on all (the finaliser of SplitMix64: Steele et al. 2014, OOPSLA)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))
