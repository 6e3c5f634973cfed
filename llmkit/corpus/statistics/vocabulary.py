"""How many words a corpus knows, how often it uses them, and how much its sources say the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkit.corpus.statistics.sketches import Distinct, levels_of, packed, unpacked
from llmkit.corpus.words import Words

PASSAGE = 1000
"""Words of a passage, the unit of sampling."""
GROWTH_SKETCH = 1024
"""Hashes kept of a level: a standard error of 3.1%."""
WORD_KINDS, WORDS_COUNTED = 1 << 14, 1 << 19
"""Different words, and words, whose frequencies are counted at most; of a larger corpus fewer passages are counted."""
SHINGLE = 5
"""Words of a shingle; two texts that share one share wording, and not just vocabulary."""
SOURCES, SOURCE_SKETCH = 32, 4096
"""Sources that are compared at most, and hashes kept of each."""
LEAST_COMPARED = 100
"""Two sources of which fewer shingles can be compared are not."""

_CHARACTERS = 1 << 17  # read at once: more leaves the processor's cache
_LONGEST = 1 << 20  # a longer text is read in pieces, and each of them is enough to be read by itself
_WORD_END = 1000
_PENDING = 1 << 18


@dataclass
class Usage:
    """How often words are used, in a sample of passages."""

    words: int
    kinds: int
    entropy: float
    """Bits a word, with the correction of Miller 1955 for the words that the sample lacks."""
    level: int
    """Counted was one passage in 2^level."""


class Vocabulary:
    """The words of texts: how many there are, how many different ones, how often each is used."""

    def __init__(self) -> None:
        self._words: dict[int, int] = {}
        self._distinct: dict[int, Distinct] = {}
        self._keys = np.zeros(0, dtype=np.uint64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._pending: list[np.ndarray] = []
        self._level = 0

    def add(self, words: Words, text_hashes: np.ndarray, before: np.ndarray) -> None:
        """Add the words of some texts.

        Args:
            text_hashes: of each text, uint64 of shape [texts]; they choose the passages that are sampled.
            before: words of each text that were added earlier, int64 of shape [texts].
        """
        if not len(words):
            return
        counts = np.bincount(words.of, minlength=len(before))
        passages = list(_passages(counts.tolist(), before.tolist()))
        texts, numbers, lengths = (np.array(column) for column in zip(*passages, strict=True))
        levels = levels_of(text_hashes[texts] + numbers.astype(np.uint64))
        self._grow(words.hashes, levels, lengths)
        sampled = np.repeat(levels >= self._level, lengths)
        marks = np.repeat(levels.astype(np.uint64), lengths)
        self._pending.append((words.hashes[sampled] >> np.uint64(32) << np.uint64(8)) | marks[sampled])
        if sum(map(len, self._pending)) > _PENDING:
            self._settle()

    def _grow(self, hashes: np.ndarray, levels: np.ndarray, lengths: np.ndarray) -> None:
        for level in np.unique(levels).tolist():
            self._words[level] = self._words.get(level, 0) + int(lengths[levels == level].sum())
            self._distinct.setdefault(level, Distinct(GROWTH_SKETCH))
        limits = np.array([self._distinct[level].limit for level in levels.tolist()], dtype=np.uint64)
        few = np.flatnonzero(hashes <= np.repeat(limits, lengths))
        few_levels = np.repeat(levels, lengths)[few]
        for level in np.unique(few_levels).tolist():
            self._distinct[level].add(hashes[few[few_levels == level]])

    def _settle(self) -> None:
        """Count what is pending; a key is half of a word's hash, and the level of its passage."""
        if not self._pending:
            return
        keys = np.sort(np.concatenate(self._pending))
        self._pending = []
        firsts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, dtype=np.int64)
        self._count(keys[firsts], np.diff(np.r_[firsts, len(keys)]))

    def _count(self, keys: np.ndarray, counts: np.ndarray) -> None:
        every, where = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        total = np.bincount(where, weights=np.concatenate([self._counts, counts]), minlength=len(every))
        self._keys, self._counts = every, total.astype(np.int64)
        self._sample()
        while len(np.unique(self._keys >> np.uint64(8))) > WORD_KINDS or self._counts.sum() > WORDS_COUNTED:
            self._level += 1
            self._sample()

    def _sample(self) -> None:
        kept = (self._keys & np.uint64(255)) >= self._level
        self._keys, self._counts = self._keys[kept], self._counts[kept]

    def words(self) -> int:
        return sum(self._words.values())

    def growth(self) -> list[tuple[int, int]]:
        """Words read and different words among them, of one passage in 2^l for falling l; an estimate from 1024 on."""
        points = []
        total, union = 0, Distinct(GROWTH_SKETCH)
        for level in sorted(self._words, reverse=True):
            total += self._words[level]
            union.merge(self._distinct[level])
            points.append((total, round(union.estimate())))
        return points

    def heaps(self) -> tuple[float, float] | None:
        """K and beta of Heaps' law, different words = K * words^beta, by least squares; None for too few points."""
        points = [(words, kinds) for words, kinds in self.growth() if words >= PASSAGE]
        if len(points) < 4:
            return None
        x, y = np.log(np.array(points, dtype=np.float64)).T
        beta, offset = np.polyfit(x, y, 1)
        return math.exp(offset), float(beta)

    def usage(self) -> Usage | None:
        """None where there are no words."""
        self._settle()
        if not len(self._keys):
            return None
        _, where = np.unique(self._keys >> np.uint64(8), return_inverse=True)
        counts = np.bincount(where, weights=self._counts)
        n, kinds = int(counts.sum()), len(counts)
        shares = counts / n
        nats = -math.fsum((shares * np.log(shares)).tolist()) + (kinds - 1) / (2 * n)
        return Usage(n, kinds, nats / math.log(2), self._level)

    def merge(self, other: Vocabulary) -> None:
        for level, count in other._words.items():
            self._words[level] = self._words.get(level, 0) + count
            self._distinct.setdefault(level, Distinct(GROWTH_SKETCH)).merge(other._distinct[level])
        other._settle()
        self._settle()
        self._level = max(self._level, other._level)
        self._count(other._keys, other._counts)

    def to_json(self) -> dict[str, Any]:
        self._settle()
        return {
            "levels": {
                str(level): {"words": self._words[level], "distinct": self._distinct[level].to_json()}
                for level in sorted(self._words)
            },
            "level": self._level,
            "keys": packed(self._keys),
            "counts": packed(self._counts.astype(np.uint32)),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Vocabulary:
        made = cls()
        for level, found in values["levels"].items():
            made._words[int(level)] = found["words"]
            made._distinct[int(level)] = Distinct.from_json(GROWTH_SKETCH, found["distinct"])
        made._level = values["level"]
        made._keys, made._counts = unpacked(values["keys"], np.uint64), unpacked(values["counts"], np.uint32).astype(np.int64)
        return made


class Overlap:
    """The shingles of each source, of which some are kept; of very many sources those whose names have the smallest hashes."""

    def __init__(self) -> None:
        self._sketches: dict[str, Distinct] = {}

    def add(self, words: Words, sources: Sequence[str]) -> None:
        """Add the shingles of some texts, whose sources are of shape [texts]."""
        names = {name: place for place, name in enumerate(self._admit(sources))}
        if not names or not len(words):
            return
        firsts, hashes = words.grams(SHINGLE)
        if len(set(sources)) == 1:
            self._sketches[sources[0]].add(hashes)
            return
        limits = np.array([self._sketches[name].limit for name in names], dtype=np.uint64)
        owners = np.array([names.get(name, -1) for name in sources])[words.of[firsts]]
        few = (owners >= 0) & (hashes <= limits[owners])
        hashes, owners = hashes[few], owners[few]
        for name, place in names.items():
            self._sketches[name].add(hashes[owners == place])

    def _admit(self, sources: Sequence[str]) -> list[str]:
        """Those of the sources that are compared."""
        wanted = set(sources)
        if not wanted <= self._sketches.keys():
            for name in wanted - self._sketches.keys():
                self._sketches[name] = Distinct(SOURCE_SKETCH)
            for name in sorted(self._sketches, key=_name_hash)[SOURCES:]:
                del self._sketches[name]
        return sorted(wanted & self._sketches.keys())

    def names(self) -> list[str]:
        return sorted(self._sketches)

    def share(self, source: str, other: str) -> tuple[float, int] | None:
        """The share of the different shingles of a source that also stand in another, and how many were compared for it.

        None where they are fewer than `LEAST_COMPARED`: then the other source is very much larger, or one is very small.
        """
        ours, theirs = self._sketches[source].values(), self._sketches[other].values()
        compared = ours[ours <= self._sketches[other].limit]
        if len(compared) < LEAST_COMPARED:
            return None
        return float(np.isin(compared, theirs, assume_unique=True).mean()), len(compared)

    def merge(self, other: Overlap) -> None:
        for name in self._admit(list(other._sketches)):
            self._sketches[name].merge(other._sketches[name])

    def to_json(self) -> dict[str, str]:
        return {name: self._sketches[name].to_json() for name in self.names()}

    @classmethod
    def from_json(cls, values: dict[str, str]) -> Overlap:
        made = cls()
        made._sketches = {name: Distinct.from_json(SOURCE_SKETCH, text) for name, text in values.items()}
        return made


def _name_hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _passages(counts: list[int], before: list[int]) -> Iterator[tuple[int, int, int]]:
    """The passages that texts, or pieces of them, are cut into: the text's number, the passage's number in it, its words."""
    for text, (count, place) in enumerate(zip(counts, before, strict=True)):
        end = place + count
        while place < end:
            number = place // PASSAGE
            after = min(end, (number + 1) * PASSAGE)
            yield text, number, after - place
            place = after


def batches(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Texts, long ones in pieces, so many together as are fast to read: their numbers, and the pieces."""
    numbers: list[int] = []
    pieces: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            numbers.append(number)
            pieces.append(piece)
            size += len(piece)
            if size >= _CHARACTERS:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
    if pieces:
        yield numbers, pieces


def _pieces(text: str) -> Iterator[str]:
    """The text, cut where it is longer than is good for memory: between words, where there is such a place."""
    start = 0
    while len(text) - start > _LONGEST:
        end = start + _LONGEST
        space = max(text.rfind(sign, end - _WORD_END, end) for sign in " \n")
        end = space if space > 0 else end
        yield text[start:end]
        start = end
    yield text[start:]
