"""Simplified and traditional Chinese told apart, by the characters that only one of them has.

A character is simplified where GB 2312 (the mainland's standard) has it and Big5 (Taiwan's) has not, traditional the other way
round. Those in both are shared and say nothing. Python's codecs hold both standards, so that no table is needed.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

_FIRST, _LAST = 0x4E00, 0x9FFF  # the Han characters that either standard can have
_SIMPLIFIED, _TRADITIONAL = 1, 2


def simplified_share(text: str) -> float:
    """How many of the characters that tell the two apart are simplified, from 0 to 1; NaN where there is none."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    codes = codes[(codes >= _FIRST) & (codes <= _LAST)] - _FIRST
    counts = np.bincount(_kinds()[codes], minlength=3)
    told = int(counts[_SIMPLIFIED] + counts[_TRADITIONAL])
    return float(counts[_SIMPLIFIED] / told) if told else math.nan


def script(text: str) -> str:
    """`zh-hans` or `zh-hant` of a Chinese text; `zh-hans`, the more frequent, where nothing tells."""
    return "zh-hant" if simplified_share(text) < 0.5 else "zh-hans"


@cache
def _kinds() -> np.ndarray:
    """What each Han character is, uint8: shared or unknown, simplified, or traditional."""
    kinds = np.zeros(_LAST - _FIRST + 1, dtype=np.uint8)
    for place in range(len(kinds)):
        mainland, taiwan = (_has(codec, chr(_FIRST + place)) for codec in ("gb2312", "big5"))
        kinds[place] = _SIMPLIFIED * (mainland and not taiwan) + _TRADITIONAL * (taiwan and not mainland)
    return kinds


def _has(codec: str, char: str) -> bool:
    try:
        char.encode(codec)
    except UnicodeEncodeError:
        return False
    return True
