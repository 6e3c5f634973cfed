"""What a corpus is made of, counted part by part in bounded memory.

The parts may be any partition of the documents, and be merged in any order: the figures are the same. What would take
unbounded memory is sampled by the hashes of ids, and says so (`sketches`, `vocabulary`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmkit.corpus.statistics.characters import count_characters
from llmkit.corpus.statistics.examples import EXCERPT, Example, Examples
from llmkit.corpus.statistics.sketches import Amounts, levels_of
from llmkit.corpus.statistics.vocabulary import Overlap, Vocabulary, batches
from llmkit.corpus.words import Words

__all__ = ["COLUMNS", "GROUPS", "Statistics"]

FORMAT = 1
GROUPS = ("split", "source", "language", "domain", "year", "length", "license", "opt_out")
"""What documents are counted by. A length is the binary logarithm of the characters, rounded down."""
COLUMNS = ("documents", "bytes", "characters", "words", "removed_documents", "removed_bytes")
"""The amounts of each; a removed document has only the last two."""
NAMES = 10_000
"""Names of a group that are counted exactly; with more of them, a sample of the documents is (`sketches.Amounts`)."""

_PII = "pii_"
_DATE = re.compile(r"([12]\d{3})(?:-?([01]\d)(?:-?([0-3]\d))?)?(?!\d)")  # 2021, 2021-03, 2021-03-04, 20210304; no Unix time
_HOST = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]/?#]*\]|[^:/?#\[]*)", re.IGNORECASE)  # RFC 3986, appendix B
_LICENSE_KEYS = ("license", "licence")
_LONGEST_NAME = 200


class Statistics:
    """Amounts by split, source, language, domain, year, length and license; what was removed; characters and words.

    Of the metadata count: `language`; `host` or `url`; `date` or `year`; `license` or `licence`; `opt_out`.
    """

    def __init__(self) -> None:
        self.groups = {name: Amounts(NAMES, len(COLUMNS)) for name in GROUPS}
        self.rules = Amounts(NAMES, 2)
        """Documents and bytes by the rule that removed them."""
        self.examples = Examples()
        self.characters: Counter[str] = Counter()
        """Characters of the kept documents by script or class."""
        self.pii: dict[str, list[int]] = {}
        """By type: how often it was found in kept documents, and in how many of them."""
        self.dates: tuple[str, str] | None = None
        """The first and the last date of a kept document."""
        self.vocabulary, self.overlap = Vocabulary(), Overlap()

    def add_rows(
        self,
        texts: Sequence[str],
        ids: Sequence[str],
        sources: Sequence[str],
        metadata: Sequence[str],
        splits: Sequence[str],
        rules: Sequence[str],
        values: Sequence[str],
        signals: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add kept and removed documents; all is of shape [documents].

        Args:
            metadata: JSON objects.
            splits: the split of each, "" where it was removed.
            rules: the rule that removed it, "" where it was kept.
            values: what that rule saw.
            signals: measurements by name; those that begin with `pii_` are counts, and are added up.
        """
        kept = [number for number, rule in enumerate(rules) if not rule]
        removed = [number for number, rule in enumerate(rules) if rule]
        counted = {name: np.asarray(found)[kept] for name, found in (signals or {}).items() if name.startswith(_PII)}
        texts_, ids_, sources_, metadata_, splits_ = _chosen(kept, texts, ids, sources, metadata, splits)
        self.add(texts_, ids_, sources_, metadata_, splits_, counted)
        texts_, ids_, sources_, metadata_, rules_, values_ = _chosen(removed, texts, ids, sources, metadata, rules, values)
        self.add_rejected(texts_, ids_, sources_, metadata_, rules_, values_)

    def add(
        self,
        texts: Sequence[str],
        ids: Sequence[str],
        sources: Sequence[str],
        metadata: Sequence[str],
        splits: Sequence[str],
        signals: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add documents that are kept; as `add_rows`."""
        hashes = _hashes(ids)
        amounts = np.zeros((len(texts), len(COLUMNS)), dtype=np.int64)
        amounts[:, 0] = 1
        amounts[:, 1] = [_bytes(text) for text in texts]
        amounts[:, 2] = [len(text) for text in texts]
        words = amounts[:, 3]
        for numbers, pieces in batches(texts):
            found = Words(pieces)
            self.vocabulary.add(found, hashes[numbers], words[numbers])
            self.overlap.add(found, [sources[number] for number in numbers])
            words[numbers] += np.bincount(found.of, minlength=len(pieces))
            self.characters += count_characters(pieces)
        facts = [_facts(one) for one in metadata]
        self._count(amounts, hashes, texts, sources, facts, splits)
        dates = [found["date"] for found in facts if found["date"]]
        self._widen(*dates)
        for name, values in (signals or {}).items():
            if name.startswith(_PII):
                self._found(name.removeprefix(_PII), int(np.nansum(values)), int(np.nansum(values > 0)))

    def add_rejected(
        self,
        texts: Sequence[str],
        ids: Sequence[str],
        sources: Sequence[str],
        metadata: Sequence[str],
        rules: Sequence[str],
        values: Sequence[str],
    ) -> None:
        """Add documents that were removed; as `add_rows`."""
        hashes = _hashes(ids)
        amounts = np.zeros((len(texts), len(COLUMNS)), dtype=np.int64)
        amounts[:, 4] = 1
        amounts[:, 5] = [_bytes(text) for text in texts]
        self._count(amounts, hashes, texts, sources, [_facts(one) for one in metadata], [""] * len(texts))
        self.rules.add(rules, levels_of(hashes), amounts[:, 4:])
        for number, (rule, mark) in enumerate(zip(rules, hashes.tolist(), strict=True)):
            if self.examples.wants(rule, mark):
                text = texts[number]
                example = Example(mark, ids[number], sources[number], str(values[number]), text[:EXCERPT], len(text))
                self.examples.add(rule, example)

    def _count(
        self,
        amounts: np.ndarray,
        hashes: np.ndarray,
        texts: Sequence[str],
        sources: Sequence[str],
        facts: Sequence[dict[str, str]],
        splits: Sequence[str],
    ) -> None:
        levels = levels_of(hashes)
        names: dict[str, list[str]] = {name: [found[name] for found in facts] for name in GROUPS if name not in _GIVEN}
        names |= {"split": list(splits), "source": list(sources)}
        names["length"] = [str(len(text).bit_length() - 1) if text else "" for text in texts]
        for name, group in self.groups.items():
            group.add(names[name], levels, amounts)

    def _widen(self, *dates: str) -> None:
        if dates:
            every = [*dates, *(self.dates or ())]
            self.dates = min(every), max(every)

    def _found(self, kind: str, count: int, documents: int) -> None:
        before = self.pii.get(kind, [0, 0])
        self.pii[kind] = [before[0] + count, before[1] + documents]

    def merge(self, other: Statistics) -> None:
        """Add the figures of other documents."""
        for name, group in self.groups.items():
            group.merge(other.groups[name])
        self.rules.merge(other.rules)
        self.examples.merge(other.examples)
        self.characters += other.characters
        for kind, (count, documents) in other.pii.items():
            self._found(kind, count, documents)
        self._widen(*(other.dates or ()))
        self.vocabulary.merge(other.vocabulary)
        self.overlap.merge(other.overlap)

    def to_json(self) -> dict[str, Any]:
        """All figures, sorted, so that equal ones give equal text."""
        return {
            "format": FORMAT,
            "columns": list(COLUMNS),
            "groups": {name: group.to_json() for name, group in self.groups.items()},
            "rules": self.rules.to_json(),
            "examples": self.examples.to_json(),
            "characters": dict(sorted(self.characters.items())),
            "pii": dict(sorted(self.pii.items())),
            "dates": list(self.dates) if self.dates else None,
            "vocabulary": self.vocabulary.to_json(),
            "overlap": self.overlap.to_json(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Statistics:
        made = cls()
        made.groups = {name: Amounts.from_json(NAMES, len(COLUMNS), values["groups"][name]) for name in GROUPS}
        made.rules = Amounts.from_json(NAMES, 2, values["rules"])
        made.examples = Examples.from_json(values["examples"])
        made.characters = Counter(values["characters"])
        made.pii = {kind: list(found) for kind, found in values["pii"].items()}
        made.dates = (values["dates"][0], values["dates"][1]) if values["dates"] else None
        made.vocabulary = Vocabulary.from_json(values["vocabulary"])
        made.overlap = Overlap.from_json(values["overlap"])
        return made


_GIVEN = ("split", "source", "length")


def _chosen(numbers: list[int], *columns: Sequence[str]) -> list[list[str]]:
    return [[column[number] for number in numbers] for column in columns]


def _hashes(ids: Sequence[str]) -> np.ndarray:
    """Of the ids of documents, uint64 of shape [documents]."""
    found = (hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest() for id in ids)
    return np.frombuffer(b"".join(found), dtype=">u8").astype(np.uint64)


def _facts(metadata: str) -> dict[str, str]:
    """What the metadata of a document says of it, "" where it says nothing."""
    values = json.loads(metadata) if metadata not in ("", "{}") else {}
    date = _DATE.match(str(values.get("date") or ""))
    year = date or _DATE.match(str(values.get("year") or ""))
    return {
        "language": _name(values, ("language",)),
        "domain": _domain(values),
        "year": year[1] if year else "",
        "date": "-".join(filter(None, date.groups())) if date else "",
        "license": _name(values, _LICENSE_KEYS),
        "opt_out": _name(values, ("opt_out",)),
    }


def _name(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    found: Iterator[Any] = (values[key] for key in keys if values.get(key) not in (None, ""))
    value = next(found, "")
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True))[:_LONGEST_NAME]


def _domain(values: Mapping[str, Any]) -> str:
    host = str(values.get("host") or "")
    if not host and values.get("url"):
        found = _HOST.match(str(values["url"]))
        host = found[1] if found else ""
    return host.lower().removeprefix("www.")[:_LONGEST_NAME]


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
