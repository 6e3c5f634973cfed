"""The rules of the quality filters: a signal, a bound and a threshold each, to be switched off and changed one by one.

A document is judged by the rules of its own script. Where most of its letters are of scripts without spaces between words
(Han, kana, Thai, Khmer, ...: the signal unspaced_share is above 0.5) the rules named `unspaced_...` take the place of those
that count words. Their thresholds are those of the papers at 1.6 characters to a word (Emerson 2005, the second bakeoff for
Chinese word segmentation: 1.65 in PKU's corpus); the mean length of words says nothing there and has no rule. Words by
whitespace-1 and spacy are there to compare with dolma and FineWeb, which have one set of rules for all: every document is
judged by that.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from llmkit.corpus.quality.lines import FIXED, LineRules
from llmkit.corpus.quality.signals import C4, FINEWEB, GOPHER, GOPHER_QUALITY, OWN

ANY, SPACED, UNSPACED = "any", "spaced", "unspaced"

Thresholds = Mapping[str, Mapping[str, "float | None"]]


@dataclass(frozen=True)
class Rule:
    """One rule: a document fails where its signal is below the least or above the most that is allowed.

    A signal that does not apply (NaN) fails no rule.
    """

    name: str
    """The set and the rule, such as gopher_quality.min_words."""
    signal: str
    bound: str
    """least or most."""
    threshold: float
    source: str
    script: str = ANY
    """Of which documents: any, spaced or unspaced."""

    def fails(self, signals: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which documents fail: bool of shape [documents]."""
        values = signals[self.signal]
        failing = values < self.threshold if self.bound == "least" else values > self.threshold
        if self.script != ANY:
            failing &= (signals["unspaced_share"] > 0.5) == (self.script == UNSPACED)
        return failing


def _repetition() -> list[Rule]:
    most = {
        "duplicate_paragraph_fraction": 0.3,
        "duplicate_paragraph_character_fraction": 0.2,
        "duplicate_line_fraction": 0.3,
        "duplicate_line_character_fraction": 0.2,
        **{f"top_{n}_gram_character_fraction": share for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))},
        **{f"duplicate_{n}_gram_character_fraction": (20 - n) / 100 for n in range(5, 11)},
    }
    rules = [Rule("min_characters", "characters", "least", 1, OWN)]
    return rules + [Rule(f"max_{signal}", signal, "most", share, GOPHER) for signal, share in most.items()]


def _quality() -> list[Rule]:
    source, own = GOPHER_QUALITY, f"{OWN}, from {GOPHER_QUALITY}"
    return [
        Rule("min_words", "words", "least", 50, source, SPACED),
        Rule("unspaced_min_words", "words", "least", 80, own, UNSPACED),
        Rule("max_words", "words", "most", 100_000, source, SPACED),
        Rule("unspaced_max_words", "words", "most", 160_000, own, UNSPACED),
        Rule("min_mean_word_length", "mean_word_length", "least", 3, source, SPACED),
        Rule("max_mean_word_length", "mean_word_length", "most", 10, source, SPACED),
        Rule("max_hash_ratio", "hash_ratio", "most", 0.1, source, SPACED),
        Rule("unspaced_max_hash_ratio", "hash_ratio", "most", 0.0625, own, UNSPACED),
        Rule("max_ellipsis_ratio", "ellipsis_ratio", "most", 0.1, source, SPACED),
        Rule("unspaced_max_ellipsis_ratio", "ellipsis_ratio", "most", 0.0625, own, UNSPACED),
        Rule("max_bullet_line_fraction", "bullet_line_fraction", "most", 0.9, source),
        Rule("max_ellipsis_line_fraction", "ellipsis_line_fraction", "most", 0.3, source),
        Rule("min_alphabetic_word_fraction", "alphabetic_word_fraction", "least", 0.8, source),
        Rule("min_stop_words", "stop_words", "least", 2, source),
    ]


def _c4() -> list[Rule]:
    return [
        Rule("max_lorem_ipsum_lines", "lorem_ipsum_lines", "most", 0, C4),
        Rule("max_curly_bracket_lines", "curly_bracket_lines", "most", 0, C4),
        Rule("min_sentences", "sentences", "least", 5, C4),
    ]


def _fineweb() -> list[Rule]:
    return [
        Rule("min_lines", "lines", "least", 1, FINEWEB),
        Rule("min_punctuated_line_fraction", "punctuated_line_fraction", "least", 0.12, FINEWEB),
        Rule("max_short_line_fraction", "short_line_fraction", "most", 0.67, FINEWEB),
        Rule("max_repeated_line_character_fraction", "repeated_line_character_fraction", "most", 0.01, FINEWEB),
        Rule("max_newline_ratio", "newline_ratio", "most", 0.3, FINEWEB, SPACED),
        Rule("unspaced_max_newline_ratio", "newline_ratio", "most", 0.1875, f"{OWN}, from {FINEWEB}", UNSPACED),
    ]


SETS: dict[str, list[Rule]] = {
    name: [replace(rule, name=f"{name}.{rule.name}") for rule in rules]
    for name, rules in (
        ("gopher_repetition", _repetition()),
        ("gopher_quality", _quality()),
        ("c4", _c4()),
        ("fineweb", _fineweb()),
    )
}
"""The rules of each set in the order in which they are tried."""


def rules_of(filters: Sequence[str], thresholds: Thresholds | None = None, words: str = "unicode-run-1") -> list[Rule]:
    """The rules of sets, in their order, with thresholds of one's own; None switches a rule off."""
    thresholds, chosen = thresholds or {}, []
    for name in filters:
        own = thresholds.get(name, {})
        for rule in SETS[name]:
            threshold = own.get(rule.name.partition(".")[2], rule.threshold)
            if threshold is not None and not (words != "unicode-run-1" and rule.script == UNSPACED):
                chosen.append(replace(rule, threshold=threshold, script=rule.script if words == "unicode-run-1" else ANY))
    return chosen


def line_rules_of(thresholds: Thresholds | None = None) -> LineRules:
    """What C4 removes from texts, with settings of one's own among the thresholds of c4."""
    own = (thresholds or {}).get("c4", {})
    return LineRules(**{name: value for name, value in own.items() if name in _line_names()})


def _line_names() -> list[str]:
    return [field.name for field in fields(LineRules)]


def problems(filters: Sequence[str], thresholds: Thresholds | None = None) -> list[str]:
    """What is wrong with settings, a sentence each."""
    found = [f"there are no quality filters {name!r}{_near(name, list(SETS))}" for name in filters if name not in SETS]
    found += [
        f"the quality filters {name!r} are given twice" for name in sorted(set(filters)) if list(filters).count(name) > 1
    ]
    for name, own in (thresholds or {}).items():
        if name not in SETS:
            found.append(
                f"thresholds are given for the quality filters {name!r}, which there are not{_near(name, list(SETS))}"
            )
            continue
        if name not in filters:
            found.append(f"thresholds are given for {name}, which is not among the filters")
        if not isinstance(own, Mapping):
            found.append(f"the thresholds of {name} are {own!r}; write {{{name}: {{min_...: 20}}}}, with rules of the set")
            continue
        known = [rule.name.partition(".")[2] for rule in SETS[name]] + (_line_names() if name == "c4" else [])
        for rule, value in own.items():
            if rule not in known:
                found.append(f"{name} has no rule {rule!r}{_near(rule, known)}")
            elif value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value != value):
                found.append(
                    f"the threshold {name}.{rule} is {value!r}; it has to be a number, or null to switch the rule off"
                )
            elif value is not None and rule in _line_names() and value < 0:
                found.append(f"{name}.{rule} is {value!r}; it cannot be below 0")
            elif value is not None and rule in FIXED and value != FIXED[rule]:
                found.append(f"{name}.{rule} is {value!r}; it can only be {FIXED[rule]}, or null to switch the rule off")
    return found


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def failing(rules: Sequence[Rule], signals: Mapping[str, np.ndarray]) -> np.ndarray:
    """What each rule alone would remove: bool of shape [rules, documents]."""
    documents = len(signals["characters"])
    return np.array([rule.fails(signals) for rule in rules], dtype=bool).reshape(len(rules), documents)


def judge(rules: Sequence[Rule], signals: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The first rule that each document fails, and what it saw.

    Returns:
        numbers: of the rules, -1 where none fails; int16 of shape [documents].
        values: of their signals, NaN where none fails; float64 of shape [documents].
    """
    documents = len(signals["characters"])
    numbers, values = np.full(documents, -1, dtype=np.int16), np.full(documents, np.nan)
    for number in reversed(range(len(rules))):
        fails = rules[number].fails(signals)
        numbers[fails], values[fails] = number, signals[rules[number].signal][fails]
    return numbers, values
