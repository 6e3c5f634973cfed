"""A bias probe: test examples in which words for gender, names, places and nationalities are swapped, predicted again.

What a text is to be classified as does not depend on whether it speaks of him or of her, so only the listed words are changed
(counterfactuals, as in Garg et al. 2019, AIES). The lists lie in llmkit/data/swaps with a card that says how they were made.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.evaluation.intervals import mean_metric, wilson
from llmkit.resources import PACKAGE
from llmkit.tasks.labels import REGRESSION

if TYPE_CHECKING:
    from llmkit.evaluation.sections import Evaluated

MOST = 500
"""Swapped examples that are predicted; of more they are drawn by the seed."""
_SHOWN = 5  # flips of each list
_FEWEST = 5  # texts, independent of each other, whose mean has an interval
_SHOWN_CHARACTERS = 300

# Where a word of Latin letters ends; a Han character beside it does not go on with it.
_LETTER = "A-Za-z0-9_\u00c0-\u024f"


@dataclass
class WordList:
    """Pairs of words, each of which is put in the other's place."""

    name: str
    pattern: re.Pattern[str]
    partners: dict[str, str]
    """What stands for what the pattern finds; words that stay (其他 holds 他 and means others) are their own."""
    skipped: re.Pattern[str] | None
    """Texts with one of these are left as they are: nobody can tell whether `her` is `his` or `him`."""

    def swap(self, text: str) -> tuple[str, Counter[str]]:
        """The text with all words of the list swapped, and how often each was; nothing where it is left as it is."""
        replaced: Counter[str] = Counter()
        if self.skipped is not None and self.skipped.search(text):
            return text, replaced

        def partner(found: re.Match[str]) -> str:
            other = self.partners[found[0]]
            if other != found[0]:
                replaced[f"{found[0]} → {other}"] += 1
            return other

        return self.pattern.sub(partner, text), replaced


@cache
def word_lists() -> list[WordList]:
    """The lists that travel with llmkit."""
    rows = [json.loads(line) for line in (PACKAGE / "data" / "swaps" / "swaps.jsonl").read_text(encoding="utf-8").splitlines()]
    return [_list(name, [row for row in rows if row["list"] == name]) for name in dict.fromkeys(row["list"] for row in rows)]


def _list(name: str, rows: list[dict[str, Any]]) -> WordList:
    partners: dict[str, str] = {}
    for row in rows:
        pairs = [(row["keep"], row["keep"])] if "keep" in row else [(row["a"], row["b"])] if "a" in row else []
        if pairs and not row.get("one_way"):
            pairs += [(second, first) for first, second in pairs]
        partners |= {form: other for pair in pairs for form, other in _forms(*pair)}
    skipped = [form for row in rows if "skip" in row for form, _ in _forms(row["skip"], row["skip"])]
    return WordList(name, _any_of(partners), partners, _any_of(skipped) if skipped else None)


def _forms(word: str, other: str) -> list[tuple[str, str]]:
    """A word as it may be written, with its partner written likewise; names keep their capital."""
    return [
        (word, other),
        (word.capitalize(), other.capitalize()) if word.islower() else (word, other),
        (word.upper(), other.upper()),
    ]


def _any_of(words: Any) -> re.Pattern[str]:
    """The longest of the words that stands somewhere; those of Latin letters only as whole words."""
    longest = sorted(words, key=lambda word: (-len(word), word))
    latin = "|".join(re.escape(word) for word in longest if re.match(f"[{_LETTER}]", word))
    others = "|".join(re.escape(word) for word in longest if not re.match(f"[{_LETTER}]", word))
    return re.compile(
        "|".join([*([f"(?<![{_LETTER}])(?:{latin})(?![{_LETTER}])"] if latin else []), *([others] if others else [])])
    )


@dataclass
class Swapped:
    """A test example with the words of a list swapped."""

    words: WordList
    index: int
    """The number of the example."""
    example: Any
    replaced: str
    """What was swapped, in words."""


def section(evaluated: Evaluated) -> dict[str, Any] | None:
    """How often predictions change, and how far scores move, by list."""
    task = evaluated.task
    if not evaluated.config.bias_probe or task.name not in ("text-classification", "question-answering"):
        return None
    made = [
        swapped
        for words in word_lists()
        for index, example in enumerate(evaluated.test)
        if (swapped := _swapped(words, index, example)) is not None
    ]
    generator = np.random.default_rng(evaluated.config.seed)
    drawn = sorted(generator.choice(len(made), MOST, replace=False)) if len(made) > MOST else range(len(made))
    tried = [made[place] for place in drawn]
    after = evaluated.predict([item.example for item in tried]) if tried else []
    pairs = list(zip(tried, after, strict=True))
    lists = []
    for words in word_lists():
        affected = sum(item.words is words for item in made)
        lists.append(
            {"list": words.name, "affected": affected, **_found(evaluated, [p for p in pairs if p[0].words is words])}
        )
    has_flips = getattr(task, "kind", None) != REGRESSION
    return {"lists": lists, "most": MOST, "tried": len(tried), "made": len(made), "n": len(evaluated.test), "flips": has_flips}


def _swapped(words: WordList, index: int, example: Any) -> Swapped | None:
    replaced: Counter[str] = Counter()
    names = ("text", "text_pair", "question", "context")
    texts: dict[str, Any] = {name: text for name in names if (text := getattr(example, name, None)) is not None}
    if words.skipped is not None and any(map(words.skipped.search, texts.values())):
        return None  # half a swap, of the question and not of its context, would make another example of it
    for name, text in texts.items():
        texts[name], found = words.swap(text)
        replaced += found
    if not replaced:
        return None
    if hasattr(example, "answers"):
        texts["answers"] = []  # their offsets are others now, and a prediction needs none
    return Swapped(words, index, replace(example, **texts), ", ".join(sorted(replaced)))


def _found(evaluated: Evaluated, pairs: list[tuple[Swapped, dict[str, Any]]]) -> dict[str, Any]:
    """What the swaps of one list did."""
    n, flips = len(pairs), []
    shifts = np.zeros(n)
    for number, (item, after) in enumerate(pairs):
        before = evaluated.predictions[item.index]
        shifts[number] = _shift(before, after)
        expected = before["prediction"]
        if evaluated.task.name == "question-answering":
            expected = item.words.swap(expected)[0]
        if expected != after["prediction"]:
            flips.append((item, expected, after["prediction"]))
    found: dict[str, Any] = {"tried": n}
    if not n:
        return found
    groups = evaluated.measured.groups
    chosen = np.arange(n) if groups is None else groups[[item.index for item, _ in pairs]]
    independent = len(np.unique(chosen))
    if getattr(evaluated.task, "kind", None) != REGRESSION:
        low, high = wilson(round(len(flips) / n * independent), independent)
        found["flips"] = {"examples": len(flips), "share": len(flips) / n, "low": low, "high": high}
        found["examples"] = [_shown(*flip) for flip in flips[:_SHOWN]]
    metric = mean_metric("shift", shifts, evaluated.config.seed, chosen)
    limits = (metric.low, metric.high) if independent >= _FEWEST else (None, None)
    return found | {"shift": {"mean": metric.value, "low": limits[0], "high": limits[1], "most": float(shifts.max())}}


def _shift(before: dict[str, Any], after: dict[str, Any]) -> float:
    """How far the score moved: of classes the probability of what was predicted before, of several labels that of the label
    which moved most, of a number the number, of an answer its score."""
    prediction = before["prediction"]
    names = [name for name in before if name.startswith("probability_")]
    if names:
        chosen = [f"probability_{prediction}"] if isinstance(prediction, str) else names
        return float(max(abs(after[name] - before[name]) for name in chosen))
    name = "score" if "score" in before else "prediction"
    return float(abs(after[name] - before[name]))


def _shown(item: Swapped, before: Any, after: Any) -> dict[str, Any]:
    text = item.example.input()[:_SHOWN_CHARACTERS]
    return {"id": item.example.id, "replaced": item.replaced, "text": text, "before": before, "after": after}
