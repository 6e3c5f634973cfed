"""A view that moves over a stream of bytes, so that records of any length are read with little memory."""

from __future__ import annotations

import re
from collections.abc import Callable

_FIRST_SEARCH = 2048


class Window:
    """The bytes of a stream from a position on.

    Attributes:
        position: how many bytes of the stream lie before it.
    """

    def __init__(self, more: Callable[[], bytes], position: int = 0):
        """Args: more: gives the next bytes of the stream, none at its end."""
        self._more = more
        self._data, self._at, self._ended = b"", 0, False
        self.position = position

    def ensure(self, size: int) -> int:
        """Have so many bytes at hand; returns how many there are, fewer only at the end of the stream."""
        at_hand = len(self._data) - self._at
        if at_hand < size and not self._ended:
            parts = [self._data[self._at :]]
            while at_hand < size and not self._ended:
                parts.append(self._more())
                at_hand += len(parts[-1])
                self._ended = not parts[-1]
            self._data, self._at = b"".join(parts), 0
        return at_hand

    def peek(self, start: int, stop: int) -> bytes:
        """The bytes between two places, counted from here; fewer at the end of the stream."""
        if len(self._data) - self._at < stop:
            self.ensure(stop)
        return self._data[self._at + start : self._at + stop]

    def skip(self, size: int) -> None:
        """Move on over bytes that are at hand."""
        self._at += size
        self.position += size

    def skip_any(self, characters: bytes) -> None:
        """Move on to the first byte that is none of these."""
        while (block := self.peek(0, 4)) and block[0] in characters:
            rest = len(block.lstrip(characters))
            self.skip(len(block) - rest)
            if rest:
                return

    def starts_with(self, mark: bytes) -> bool:
        if len(self._data) - self._at < len(mark):
            self.ensure(len(mark))
        return self._data.startswith(mark, self._at)

    def find(self, pattern: re.Pattern[bytes], limit: int) -> tuple[int, int] | None:
        """Where the first match begins and ends, counted from here, if it ends within so many bytes."""
        size = _FIRST_SEARCH
        while True:
            at_hand = self.ensure(min(size, limit))
            found = pattern.search(self._data, self._at, self._at + min(at_hand, limit))
            if found:
                return found.start() - self._at, found.end() - self._at
            if at_hand < size or size >= limit:
                return None
            size *= 4

    def skip_to(self, pattern: re.Pattern[bytes], longest: int, limit: int | None = None) -> bool:
        """Move on to the end of the first match, or over `limit` bytes, or to the end of the stream, whichever comes first.

        Args:
            longest: bytes that a match may have.

        Returns:
            whether there was a match.
        """
        left = limit
        while True:
            size = (1 << 20) if left is None else min(1 << 20, left)
            block = self.peek(0, size)
            found = pattern.search(block)
            if found:
                self.skip(found.end())
                return True
            if len(block) < size or size == left or not size:
                self.skip(len(block))
                return False
            self.skip(size - longest)
            left = None if left is None else left - (size - longest)

    def end(self) -> None:
        """Give up what is left, after the stream has raised an error."""
        self.skip(len(self._data) - self._at)
        self._ended = True
