"""The members of a gzip file (RFC 1952), one after the other, with their offsets.

A web archive is compressed record by record, so that a member can be read without those before it.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

from llmkit.corpus.readers.streams import DAMAGED, BombGuard

MAGIC = b"\x1f\x8b\x08"
RECORD = b"WARC/"

_BLOCK = 1 << 20
_CHUNK = 16 << 10  # bytes; what lies behind the end of a member is copied, so that few are given at a time
_LONGEST_PROOF = 64 << 20


class Members:
    """Inflates the members of a file, from an offset on.

    Attributes:
        start: the offset of the open member.
    """

    def __init__(self, stream: io.BufferedReader, start: int):
        self._stream = stream
        self.go_to(start)

    def go_to(self, offset: int) -> None:
        self._stream.seek(offset)
        self._block, self._at, self._begin = memoryview(b""), 0, offset
        self._inflater = zlib.decompressobj(31)
        self._guard = BombGuard()
        self._given = 0
        self.start = offset

    @property
    def offset(self) -> int:
        """The byte of the file that is read next; at the end of a member, that after it."""
        return self._begin + self._at

    def peek(self, size: int) -> bytes:
        """The next bytes of the file as they are."""
        if self._at + size > len(self._block):
            rest = bytes(self._block[self._at :])
            self._begin, self._at = self.offset, 0
            self._block = memoryview(rest + self._stream.read(_BLOCK))
        return bytes(self._block[self._at : self._at + size])

    def open(self) -> bool:
        """Begin the next member, behind zeros that fill a block up; False where none begins here."""
        while self.peek(1) == b"\0":
            block = self.peek(_CHUNK)
            self._at += len(block) - len(block.lstrip(b"\0"))
        if self.peek(len(MAGIC)) != MAGIC:
            return False
        self._inflater = zlib.decompressobj(31)
        self.start = self.offset
        return True

    def piece(self) -> bytes:
        """The next bytes of the open member, at most 1 MiB; none at its end.

        Raises:
            OSError, EOFError, zlib.error: it is cut short, damaged, or made to expand without end.
        """
        inflater = self._inflater
        while not inflater.eof:
            data: Any = inflater.unconsumed_tail
            if not data:
                if not self.peek(1):
                    raise EOFError("the file ends inside a gzip member")
                data = self._block[self._at : self._at + _CHUNK]
                self._at += len(data)
            found = inflater.decompress(data, _BLOCK)
            if inflater.eof:
                self._at -= len(inflater.unused_data)
            if found:
                self._given += len(found)
                self._guard.check(self.offset, self._given)
                return found
        return b""

    def first(self) -> bytes:
        """The first bytes of the open member, enough to tell a record."""
        found = self.piece()
        while found and len(found) < len(RECORD) and (more := self.piece()):
            found += more
        return found


def proven_member(stream: io.BufferedReader, start: int, whole: bool = False) -> int | None:
    """The offset of the first member, at or after a byte, that holds a record; None where there is none.

    The three bytes a member begins with are found by chance, too: once in 16 MB. So the first bytes of each are inflated.
    An archive inside a record that its compressor stored as it is would still pass; whoever reads up to there finds out.

    Args:
        whole: the member must be sound to its end, and another or the end of the file must follow.
    """
    begin, window = start, b""
    while True:
        stream.seek(begin + len(window))
        data = stream.read(_BLOCK)
        if not data:
            return None
        window += data
        at = window.find(MAGIC)
        while at >= 0:
            if _proves(stream, begin + at, whole):
                return begin + at
            at = window.find(MAGIC, at + 1)
        begin += len(window) - min(len(window), len(MAGIC) - 1)
        window = window[-(len(MAGIC) - 1) :]


def _proves(stream: io.BufferedReader, offset: int, whole: bool) -> bool:
    members = Members(stream, offset)
    try:
        if not members.open() or not members.first().startswith(RECORD):
            return False
        taken = 0
        while whole and (piece := members.piece()):
            taken += len(piece)
            if taken > _LONGEST_PROOF:
                return False
        return not whole or members.peek(len(MAGIC)) in (MAGIC, b"")
    except DAMAGED:
        return False
