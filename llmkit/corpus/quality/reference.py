"""What the compiled pass computes, in plain Python: slow, easy to read, and tested to give identical numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from math import nan

import numpy as np

from llmkit.corpus.quality.characters import SYMBOLS, TERMINALS, unspaced_letters
from llmkit.corpus.quality.lines import (
    CLOSING,
    CURLY,
    JAVASCRIPT,
    LOREM,
    POLICIES,
    UNSPACED_POLICIES,
    LineRules,
)
from llmkit.corpus.quality.lines import TERMINALS as LINE_TERMINALS
from llmkit.corpus.quality.measure import SETS, STOP_WORDS, UNSPACED_STOP_WORDS
from llmkit.corpus.quality.words import spacy_sentences, split

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_BETWEEN_WORDS = re.compile(r"\W+(?=\w)")
_SENTENCE_END = re.compile(rf"[{re.escape(''.join(sorted(TERMINALS - set('.?!'))))}]|[.?!].*\s", re.DOTALL)
_ELLIPSIS_RUN = re.compile(r"…+|\.{3,}|。{3,}")

Signals = dict[str, float]


def measure(
    texts: Sequence[str], words: str = "unicode-run-1", filters: Sequence[str] = SETS, lines: LineRules | None = None
) -> dict[str, np.ndarray]:
    """As `llmkit.corpus.quality.measure.measure`."""
    found = [measure_text(text, words, filters, lines or LineRules()) for text in texts]
    return {name: np.array([signals[name] for signals in found], dtype=np.float64) for name in found[0]} if found else {}


def measure_text(text: str, words: str, filters: Sequence[str], rules: LineRules) -> Signals:
    """The signals of one text."""
    letters = [char for char in text if char.isalpha()]
    share = _ratio(sum(char in unspaced_letters() for char in letters), len(letters))
    signals: Signals = {"characters": len(text), "unspaced_share": 0.0 if not letters else share}
    unspaced = words == "unicode-run-1" and signals["unspaced_share"] > 0.5
    for name in filters:
        if name == "c4":
            text, found = clean(text, words, unspaced, rules)
            signals |= found
        else:
            signals |= _MEASURES[name](text, split(text, words), unspaced)
    return signals


def repetition(text: str, words: list[str], unspaced: bool) -> Signals:
    """How much of the text is there more than once."""
    found: Signals = {}
    for name, parts in (("paragraph", re.split(r"\n{2,}", text.strip())), ("line", re.split(r"\n+", text))):
        count, characters = duplicates(parts)
        found[f"duplicate_{name}_fraction"] = count / len(parts)
        found[f"duplicate_{name}_character_fraction"] = _ratio(characters, len(text))
    for n, length in zip((2, 3, 4), (3, 5, 6) if unspaced else (2, 3, 4), strict=True):
        grams = Counter(tuple(words[start : start + length]) for start in range(len(words) - length + 1))
        top, count = grams.most_common(1)[0] if grams else ((), 0)
        characters = len(("" if unspaced else " ").join(top)) * count
        found[f"top_{n}_gram_character_fraction"] = _ratio(characters, len(text))
    for n, length in zip(range(5, 11), (8, 10, 11, 13, 14, 16) if unspaced else range(5, 11), strict=True):
        found[f"duplicate_{n}_gram_character_fraction"] = _ratio(duplicate_characters(words, length), len(text))
    return found


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood there before already, and their characters."""
    repeated = [part for number, part in enumerate(parts) if part in parts[:number]]
    return len(repeated), sum(map(len, repeated))


def duplicate_characters(words: list[str], n: int) -> int:
    """The characters of n-grams that stood there before already; none counts twice."""
    seen, number, characters = set(), 0, 0
    while number <= len(words) - n:
        gram = tuple(words[number : number + n])
        characters += sum(map(len, gram)) if gram in seen else 0
        number += n if gram in seen else 1
        seen.add(gram)
    return characters


def quality(text: str, words: list[str], unspaced: bool) -> Signals:
    """What words and lines are made of."""
    real = [word for word in words if not SYMBOLS.issuperset(word)]
    lines = text.splitlines()
    ellipses = len(_ELLIPSIS_RUN.findall(text)) if unspaced else text.count("...") + text.count("…")
    bullets = tuple("•-・●·") if unspaced else ("•", "-")
    ends = ("...", "…", "。。。") if unspaced else ("...", "…")
    stops: float = len(set(words) & set(UNSPACED_STOP_WORDS if unspaced else STOP_WORDS))
    without_spaces = [char for char in text if char.isalpha() and char in unspaced_letters()]
    if unspaced and 2 * sum(char >= "\u3000" for char in without_spaces) < len(without_spaces):
        stops = nan
    return {
        "words": len(real),
        "mean_word_length": _ratio(sum(map(len, real)), len(real)),
        "hash_ratio": _ratio(text.count("#"), len(words)),
        "ellipsis_ratio": _ratio(ellipses, len(words)),
        "bullet_line_fraction": _ratio(sum(line.lstrip().startswith(bullets) for line in lines), len(lines)),
        "ellipsis_line_fraction": _ratio(sum(line.rstrip().endswith(ends) for line in lines), len(lines)),
        "alphabetic_word_fraction": _ratio(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "stop_words": stops,
    }


def line_quality(text: str, words: list[str], unspaced: bool) -> Signals:
    """What lines are like."""
    lines = [line for line in text.split("\n") if line.strip()]
    ends = (*TERMINALS, *CLOSING) if unspaced else tuple(TERMINALS)
    short = 8 if unspaced else 30
    return {
        "lines": len(lines),
        "punctuated_line_fraction": _ratio(sum(line.endswith(ends) for line in lines), len(lines)),
        "short_line_fraction": _ratio(sum(len(line) <= short for line in lines), len(lines)),
        "repeated_line_character_fraction": _ratio(duplicates(lines)[1], len(text.replace("\n", ""))),
        "newline_ratio": _ratio(text.count("\n"), len(words)),
    }


def clean(text: str, words: str, unspaced: bool, rules: LineRules) -> tuple[str, Signals]:
    """The text without the lines that C4 removes, and what was counted meanwhile."""
    kept: list[str] = []
    lorem = curly = 0
    for line in map(str.strip, text.splitlines()):
        parts = line.split()
        if not unspaced and rules.line_max_word_length is not None:
            longest = max(map(len, parts), default=0)
            if longest > rules.line_max_word_length:
                continue
        if rules.line_citations is not None:
            line = _CITATION.sub("", line)
        ends = (*LINE_TERMINALS, *TERMINALS, *CLOSING) if unspaced else LINE_TERMINALS
        if rules.line_terminal is not None and (not line.endswith(ends) or line.endswith("...")):
            continue
        length = sum(char.isalnum() or char == "_" for part in parts for char in part) if unspaced else len(parts)
        fewest = rules.line_unspaced_min_words if unspaced else rules.line_min_words
        if fewest is not None and length < fewest:
            continue
        lowered = line.lower()
        lorem += LOREM in lowered
        if rules.line_javascript is not None and JAVASCRIPT in lowered:
            continue
        curly += CURLY in line
        policies = POLICIES + UNSPACED_POLICIES if unspaced else POLICIES
        if rules.line_policy is not None and any(phrase in lowered for phrase in policies):
            continue
        kept.append(line)
    left = "\n".join(kept).strip()
    count = spacy_sentences if words == "spacy" else sentences
    found = {"lorem_ipsum_lines": lorem, "curly_bracket_lines": curly, "sentences": sum(map(count, kept))}
    return left, {**found, "kept_lines": len(kept)}


def sentences(line: str) -> int:
    """One, and one more for each word that follows the end of a sentence: a full stop only with a space between."""
    return 1 + sum(bool(_SENTENCE_END.search(between)) for between in _BETWEEN_WORDS.findall(line))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan


_MEASURES: dict[str, Callable[[str, list[str], bool], Signals]] = {
    "gopher_repetition": repetition,
    "gopher_quality": quality,
    "fineweb": line_quality,
}
