"""What characters a corpus is written in: the letters of each script, digits, signs, white space."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

_SCRIPTS = {"CJK": "Han", "IDEOGRAPHIC": "Han", "HIRAGANA": "kana", "KATAKANA": "kana", "KATAKANA-HIRAGANA": "kana"}
_NO_SCRIPT = {"COMBINING", "MODIFIER", "VARIATION", "ENCLOSED", "MUSICAL", "MATHEMATICAL", "SUPERSCRIPT"}
_OTHER_LETTERS = "other letters and marks"
_CLASSES = {"N": "digits", "P": "punctuation and symbols", "S": "punctuation and symbols", "Z": "white space"}


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """Characters by script or class."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    counts = np.bincount(codes)
    found: Counter[str] = Counter()
    for code in np.flatnonzero(counts).tolist():
        found[kind_of(chr(code))] += int(counts[code])
    return found


@lru_cache(maxsize=1 << 16)
def kind_of(char: str) -> str:
    """The script of a letter or mark (as its Unicode name begins), or what else the character is.

    Compatibility forms count as what they stand for, wide letters as letters.
    """
    if char in "\t\n\r":
        return "white space"
    plain = unicodedata.normalize("NFKC", char)[0]
    category = unicodedata.category(plain)
    if category[0] not in "LM":
        return _CLASSES.get(category[0], "control and unassigned characters")
    first = unicodedata.name(plain, "COMBINING").split(" ")[0]
    return _OTHER_LETTERS if first in _NO_SCRIPT else _SCRIPTS.get(first, first.capitalize())
