"""Which texts were seen before: the memory of exact deduplication."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path

_WORDS = 3  # of 64 bits a slot: the digest, and one more than the place of the id (0: the slot is free)


class FirstSeen:
    """Digests of texts with the id of the first document of each.

    A hash table of 24 bytes a slot, at most two thirds full: 36 to 72 bytes a document however long its id is. The ids
    lie in a file without a name, and are read again only for a duplicate.
    """

    def __init__(self, directory: Path):
        self._slots = array("Q", bytes(8 * _WORDS * 1024))
        self._used = 0
        self._ids = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed with the object
        self._end = 0

    def __len__(self) -> int:
        return self._used

    def get(self, digest: bytes) -> str | None:
        """The id remembered for a digest of 16 bytes."""
        place = self._slots[self._find(digest) + 2]
        if not place:
            return None
        self._ids.flush()
        size = int.from_bytes(os.pread(self._ids.fileno(), 4, place - 1), "little")
        return os.pread(self._ids.fileno(), size, place + 3).decode()

    def add(self, digest: bytes, id: str) -> None:
        """Remember a digest that was not seen before."""
        if 3 * (self._used + 1) > 2 * (len(self._slots) // _WORDS):
            self._grow()
        slot = self._find(digest)
        self._slots[slot], self._slots[slot + 1] = _halves(digest)
        self._slots[slot + 2] = self._end + 1
        self._used += 1
        name = id.encode()
        self._end += self._ids.write(len(name).to_bytes(4, "little") + name)

    def _find(self, digest: bytes) -> int:
        """Where the digest stands, or where it would."""
        first, second = _halves(digest)
        slots = self._slots
        size = len(slots) // _WORDS
        index = first % size
        while slots[_WORDS * index + 2] and (slots[_WORDS * index], slots[_WORDS * index + 1]) != (first, second):
            index = (index + 1) % size
        return _WORDS * index

    def _grow(self) -> None:
        old, self._slots = self._slots, array("Q", bytes(2 * 8 * len(self._slots)))
        size = len(self._slots) // _WORDS
        for start in range(0, len(old), _WORDS):
            if old[start + 2]:
                index = old[start] % size
                while self._slots[_WORDS * index + 2]:
                    index = (index + 1) % size
                self._slots[_WORDS * index : _WORDS * index + _WORDS] = old[start : start + _WORDS]

    def close(self) -> None:
        self._ids.close()


def _halves(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
