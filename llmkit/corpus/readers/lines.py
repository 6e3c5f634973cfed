"""Bytes to lines of text, each with its number, its problem where it has one, and a bounded length."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmkit.corpus.readers.streams import DAMAGED
from llmkit.corpus.readers.unit import Unit

LONGEST_ROW = 64 << 20
"""Bytes of one JSON or CSV row; a longer one is a broken file rather than a document."""


@dataclass(slots=True)
class Line:
    """A line of a file, or a piece of one longer than the limit."""

    number: int
    text: str
    problem: str | None = None
    piece: int = 0
    ends: bool = True
    offset: int = 0
    """The byte at which the line, or the piece, begins."""


def lines(stream: io.BufferedIOBase, encoding: str, limit: int, unit: Unit, stop: int | None = None) -> Iterator[Line]:
    """The lines of a stream that begins at the start of a unit, up to the first that begins at `stop` or later.

    One of more than `limit` bytes comes in pieces, cut between characters. What cannot be decoded comes with its problem
    and with escapes in place of the wrong bytes. Where a compressed file is damaged, the last line has the problem and no
    text.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    number, piece, offset = unit.rows_before + 1, 0, unit.start
    while stop is None or offset < stop or piece:
        try:
            raw = stream.readline(limit)
        except DAMAGED as failure:
            yield Line(number, "", f"the file is cut short or damaged: {failure}", piece, True, offset)
            return
        pending = decoder.getstate()[0]  # the first bytes of a character that the last cut fell into
        if not raw and not pending:
            return
        ends = raw.endswith(b"\n") or len(raw) < limit
        problem = None
        try:
            text = decoder.decode(raw, final=ends)
        except UnicodeDecodeError as failure:
            problem = _not_decodable(pending + raw, offset - len(pending), failure, encoding)
            text = (pending + raw).decode(encoding, "backslashreplace")
            decoder.reset()
        if offset == 0:
            text = text.removeprefix("\ufeff")
        yield Line(number, text, problem, piece, ends, offset)
        offset += len(raw)
        number, piece = (number + 1, 0) if ends else (number, piece + 1)


def _not_decodable(data: bytes, offset: int, failure: UnicodeDecodeError, encoding: str) -> str:
    byte = f"byte {offset + failure.start:,} (0x{data[failure.start]:02x})"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"not {encoding} at {byte}: this is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"
    others = [other for other in ("utf-8", "gb18030", "latin-1") if codecs.lookup(other) != codecs.lookup(encoding)]
    return f"not {encoding} at {byte}; if the file is in another encoding, say so: --encoding {' or '.join(others)}"


def rows_as_lines(stream: io.BufferedIOBase, encoding: str, unit: Unit) -> Iterator[Line]:
    """Lines that must be whole to be of use."""
    for line in lines(stream, encoding, LONGEST_ROW, unit):
        if line.piece == 0 and not line.ends:
            yield replace(line, problem=f"longer than {LONGEST_ROW:,} bytes")
        elif line.piece == 0 or not line.text:
            yield line
