"""What each character is to the quality filters, as one table of bits that compiled code can look up."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np

WORD, SPACE, LETTER, SYMBOL, TERMINAL, UNSPACED, LINE_END, DIGIT = (1 << bit for bit in range(8))
"""Bits of the table: `\\w`, `\\s`, str.isalpha, signs that make no word, ends of sentences, scripts without spaces between
words, where str.splitlines splits, `\\d`."""

_CODES, _LAST_LETTER = 0x110000, 0x40000  # Unicode's code points; there are no letters from the second on

_SYMBOLS = (
    "0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 3008-300d 3010-3011 "
    "ff01 ff05 ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e"
)
_TERMINALS = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 17d9-17da "
    "1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 "
    "3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f "
    "ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 "
    "1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c "
    "11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"
)
# Thai and Lao, Tibetan, Myanmar, Khmer, Han with kana and Bopomofo, Han extensions, half-width kana, Han of the other planes.
_UNSPACED = (
    "e00-eff f00-fff 1000-109f 1780-17ff 3005-3007 3040-30ff 3100-312f 31a0-31bf 31f0-31ff 3400-4dbf 4e00-9fff f900-faff "
    + ("ff66-ff9f 16fe0-16fff 1b000-1b16f 20000-3ffff")
)


def _characters(ranges: str) -> list[str]:
    """The characters of ranges of code points, written in hexadecimal."""
    found = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        found += [chr(code) for code in range(int(first, 16), int(last or first, 16) + 1)]
    return found


LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""Where str.splitlines splits."""

SYMBOLS = frozenset(_characters(f"{_SYMBOLS} {_TERMINALS}"))
"""A word of these alone is none to Gopher's count of words: the signs and controls that FineWeb's pipeline (Penedo et al.
2024) takes for punctuation, and the ends of sentences."""

TERMINALS = frozenset(_characters(_TERMINALS))
"""The characters with the property Sentence_Terminal of Unicode 15, and three of Khmer, as FineWeb's pipeline takes them."""


@cache
def unspaced_letters() -> frozenset[str]:
    """The letters of scripts that put no spaces between words: Han, kana, Thai, Khmer, ..."""
    return frozenset(char for char in _characters(_UNSPACED) if char.isalnum() and not char.isdecimal())


@cache
def unspaced_marks() -> frozenset[str]:
    """The vowel and tone marks written on those letters."""
    return frozenset(char for char in _characters(_UNSPACED) if unicodedata.category(char)[0] == "M" and not char.isalnum())


@cache
def classes() -> np.ndarray:
    """The bits of every code point, uint8 of shape [0x110000]."""
    table = np.zeros(_CODES, dtype=np.uint8)
    letters = [chr(code) for code in range(_LAST_LETTER)]
    table[:_LAST_LETTER] = [
        (WORD if char.isalnum() else 0)
        | (LETTER if char.isalpha() else 0)
        | (DIGIT if char.isdecimal() else 0)
        | (SPACE if char.isspace() else 0)
        for char in letters
    ]
    for bit, characters in (
        (WORD, "_"),
        (SYMBOL, SYMBOLS),
        (TERMINAL, TERMINALS),
        (UNSPACED, unspaced_letters() | unspaced_marks()),
        (LINE_END, LINE_ENDS),
    ):
        table[[ord(char) for char in characters]] |= bit
    table.setflags(write=False)
    return table
