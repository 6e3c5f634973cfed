"""What a word is: three definitions with names and versions. Which one is taken decides what the filters keep.

unicode-run-1: a run of letters and digits, with apostrophes and hyphens between them; or a run of other signs. Of scripts
    that put no spaces between words (Han, kana, Thai, ...) each letter with its marks is one. It is the default, and fast.
whitespace-1: what stands between white space, as dolma counts.
spacy: the tokens of spaCy's blank English tokenizer, as FineWeb's pipeline counts; some 50 times slower.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from llmkit.corpus.quality.characters import unspaced_letters, unspaced_marks
from llmkit.errors import DataError

_LONE = re.compile("[\ud800-\udfff]")  # halves of surrogate pairs, which spaCy cannot read

DEFINITIONS = ("unicode-run-1", "whitespace-1", "spacy")


def split(text: str, words: str = "unicode-run-1") -> list[str]:
    """The words of a text, by one of the definitions."""
    if words == "whitespace-1":
        return text.split()
    if words == "spacy":
        return [text[start:end] for start, end in _spacy_spans(text)]
    return [found.group() for found in pattern().finditer(text)]


@cache
def pattern() -> re.Pattern[str]:
    """unicode-run-1 as a regular expression."""
    letters, marks = _ranges(unspaced_letters()), _ranges(unspaced_marks())
    run = rf"[^\W{letters}]+"
    return re.compile(rf"[{letters}][{marks}]*|{run}(?:['\u2019-]{run})*|[^\w\s]+")


def _ranges(characters: frozenset[str]) -> str:
    """Characters as they stand between the brackets of a regular expression."""
    codes = np.array(sorted(map(ord, characters)))
    breaks = np.flatnonzero(np.diff(codes) > 1)
    firsts, lasts = codes[[0, *(breaks + 1)]], codes[[*breaks, len(codes) - 1]]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True))


def spans(texts: Sequence[str], encoded: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Where spaCy's words begin and end in the joined bytes of texts, and where those of each text begin.

    Returns:
        spans: int64 of shape [words, 2]; offsets: int64 of shape [texts + 1].
    """
    found, offsets, before = [np.zeros((0, 2), dtype=np.int64)], [0], 0
    for text, data in zip(texts, encoded, strict=True):
        here = np.array(_spacy_spans(text), dtype=np.int64).reshape(-1, 2)
        if len(data) != len(text):
            bytes_at = np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)
            here = np.append(bytes_at, len(data))[here]
        found.append(here + before)
        offsets.append(offsets[-1] + len(here))
        before += len(data)
    return np.concatenate(found), np.array(offsets, dtype=np.int64)


def spacy_sentences(line: str) -> int:
    """How many sentences spaCy's rule-based splitter finds in a line; in an empty one FineWeb's pipeline counts one."""
    language = _language(len(line))
    with language.memory_zone():
        return max(1, sum(1 for _ in language(_LONE.sub("\ufffd", line)).sents))


def _spacy_spans(text: str) -> list[tuple[int, int]]:
    """Where spaCy's words begin and end in a text, without white space."""
    language = _language(len(text))
    found = []
    with language.memory_zone():
        for token in language.tokenizer(_LONE.sub("\ufffd", text)):
            bare = token.text.strip()
            if bare:
                start = token.idx + token.text.index(bare)
                found.append((start, start + len(bare)))
    return found


def _language(length: int) -> Any:
    language = _blank()
    language.max_length = max(language.max_length, length + 1)
    return language


@cache
def _blank() -> Any:
    try:
        import spacy
    except ImportError as error:
        raise DataError('Words as spaCy has them need spaCy: pip install "llmkit[sentences]"') from error
    language = spacy.blank("en")
    language.add_pipe("sentencizer")
    return language
