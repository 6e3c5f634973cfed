"""One spelling for one text: newlines, Unicode form, invisible characters and white space."""

from __future__ import annotations

import re
import unicodedata

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# Control characters except newline and tab; the byte order mark, which means nothing inside a text.
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
# A zero-width space separates words in Thai, Lao, Tibetan, Burmese and Khmer and stays between two of their letters.
# Zero-width joiners and non-joiners are spelling (Persian, Indic scripts, emoji) and always stay.
_UNSPACED = "[\u0e00-\u109f\u1780-\u17ff]"
_ZERO_WIDTH = re.compile(f"(?<!{_UNSPACED})\u200b+|\u200b+(?!{_UNSPACED}|\u200b)")
_MANY_BLANK_LINES = re.compile("\n{4,}")


def normalise(text: str) -> str:
    """The text with Unix newlines, in Unicode NFC, without control characters, trailing white space and long gaps.

    At most two blank lines follow each other and none stand at the ends; indentation stays. Twice is the same as once.
    """
    text = _LINE_ENDS.sub("\n", text)
    # Before NFC, since what is removed may stand between a letter and its accent.
    text = _REMOVED.sub("", text)
    if "\u200b" in text:
        text = _ZERO_WIDTH.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return _MANY_BLANK_LINES.sub("\n\n\n", text).strip("\n")
