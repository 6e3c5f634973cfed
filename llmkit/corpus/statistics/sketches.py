"""Figures about a stream that take bounded memory and can be added up in any order, with always the same result.

Samples are nested: what has level l is in the samples of one in 2^0, 2^1, ... 2^l (Gibbons and Tirthapura 2001, "Estimating
simple functions on the union of data streams"). The level is the number of zero bits at the end of a hash.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVELS = 40
"""Levels are below this."""


def levels_of(hashes: np.ndarray) -> np.ndarray:
    """The level of each hash, int64 of the same shape."""
    marked = hashes | np.uint64(1 << (LEVELS - 1))
    return np.log2((marked & (~marked + np.uint64(1))).astype(np.float64)).astype(np.int64)


class Distinct:
    """An estimate of how many different hashes there were, and a sample of them: the k smallest.

    Bar-Yossef et al. 2002; the estimate and its standard error of 1 / sqrt(k - 2) are those of Beyer et al. 2007.
    """

    def __init__(self, k: int):
        self._k = k
        self._smallest = np.zeros(0, dtype=np.uint64)
        self._pending: list[np.ndarray] = []
        self.limit = np.uint64(2**64 - 1)
        """Hashes above it need not be added."""

    def add(self, hashes: np.ndarray) -> None:
        """Add uint64 hashes, of any shape."""
        self._pending.append(hashes[hashes <= self.limit])
        if sum(map(len, self._pending)) > 2 * self._k:
            self._settle()

    def _settle(self) -> None:
        if self._pending:
            values = np.sort(np.concatenate([self._smallest, *self._pending]))  # much faster than np.unique here
            is_new = np.ones(len(values), dtype=bool)
            np.not_equal(values[1:], values[:-1], out=is_new[1:])
            self._smallest = values[is_new][: self._k]
            self._pending = []
        if len(self._smallest) == self._k:
            self.limit = self._smallest[-1]

    def values(self) -> np.ndarray:
        """The sample, sorted: uint64 of shape [k], or of all hashes where they are fewer."""
        self._settle()
        return self._smallest

    def is_exact(self) -> bool:
        return len(self.values()) < self._k

    def estimate(self) -> float:
        values = self.values()
        return float(len(values)) if self.is_exact() else (self._k - 1) / ((float(values[-1]) + 1) / 2**64)

    def merge(self, other: Distinct) -> None:
        self.add(other.values())

    def to_json(self) -> str:
        return packed(self.values())

    @classmethod
    def from_json(cls, k: int, text: str) -> Distinct:
        made = cls(k)
        made.add(unpacked(text, np.uint64))
        return made


class Amounts:
    """Amounts of documents by name: exact while there are at most `bound` names, then of a sample of the documents.

    The sample is that of the lowest level at which at most `bound` names are left, whatever the order of adding.
    """

    def __init__(self, bound: int, width: int):
        self._bound, self._width = bound, width
        self._places: dict[tuple[str, int], int] = {}
        self._table = np.zeros((0, width), dtype=np.int64)
        self.level = 0
        """Counted is one document in 2^level."""

    def add(self, names: Sequence[str], levels: np.ndarray, amounts: np.ndarray) -> None:
        """Add documents.

        Args:
            names: of each; shape [documents].
            levels: of each document's hash, int64 of shape [documents].
            amounts: int64 of shape [documents, width].
        """
        sampled = [(name, level) for name, level in zip(names, levels.tolist(), strict=True) if level >= self.level]
        places = [self._places.setdefault(key, len(self._places)) for key in sampled]
        if len(self._places) > len(self._table):
            self._table = np.concatenate([self._table, np.zeros((2 * len(self._places), self._width), dtype=np.int64)])
        np.add.at(self._table, places, amounts[levels >= self.level])
        self._shrink()

    def _shrink(self) -> None:
        while len({name for name, _ in self._places}) > self._bound:
            self.level += 1
            self._drop_below()

    def _drop_below(self) -> None:
        kept = [key for key in self._places if key[1] >= self.level]
        self._table = self._table[[self._places[key] for key in kept]]
        self._places = {key: place for place, key in enumerate(kept)}

    def totals(self) -> dict[str, list[int]]:
        """The amounts by name, in the sample; sorted by name."""
        found: dict[str, np.ndarray] = {}
        for (name, _), place in self._places.items():
            found[name] = found.get(name, 0) + self._table[place]
        return {name: found[name].tolist() for name in sorted(found)}

    def merge(self, other: Amounts) -> None:
        self.level = max(self.level, other.level)
        keys = list(other._places)
        table = other._table[list(other._places.values())]
        self._drop_below()
        self.add([name for name, _ in keys], np.array([level for _, level in keys], dtype=np.int64), table)

    def to_json(self) -> dict[str, Any]:
        names: dict[str, dict[str, list[int]]] = {}
        for name, level in sorted(self._places):
            names.setdefault(name, {})[str(level)] = self._table[self._places[name, level]].tolist()
        return {"level": self.level, "names": names}

    @classmethod
    def from_json(cls, bound: int, width: int, values: dict[str, Any]) -> Amounts:
        made = cls(bound, width)
        made.level = values["level"]
        rows = [(name, int(level), row) for name, by in values["names"].items() for level, row in by.items()]
        table = np.array([row for _, _, row in rows], dtype=np.int64).reshape(len(rows), width)
        made.add([name for name, _, _ in rows], np.array([level for _, level, _ in rows], dtype=np.int64), table)
        return made


def packed(values: np.ndarray) -> str:
    """An array of numbers as text: little-endian, in base 64."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def unpacked(text: str, kind: type) -> np.ndarray:
    little = np.dtype(kind).newbyteorder("<")
    return np.frombuffer(base64.b64decode(text), dtype=little).astype(kind)
