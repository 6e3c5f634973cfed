"""The records of web archives: WARC 0.17 to 1.1 (ISO 28500), plain or gzip-compressed by record.

A record says how long it is, and a wrong length hides what follows it. So what stands after each record is looked at:
where neither a record nor the end follows, the length is wrong, the record is a fault, and reading goes on at the next
record that can be found. All bytes are thus read or told of.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmkit.corpus.readers.members import RECORD, Members, proven_member
from llmkit.corpus.readers.rows import Progress
from llmkit.corpus.readers.streams import DAMAGED, open_raw, open_stream
from llmkit.corpus.readers.unit import Unit
from llmkit.corpus.readers.window import Window

LONGEST_RECORD = 64 << 20
"""Bytes of a record's content; of a longer one only the header is kept."""

_LONGEST_HEADER = 1 << 20
_BLOCK = 1 << 20
_HEADER_END = re.compile(rb"\r?\n(?:\r?\n|(?=WARC/[0-9]\.[0-9]+\r?\n))")
"""An empty line; or none, where the next record begins in the middle of the header."""
_HEADER = re.compile(r"^([^:\s]+)[ \t]*:(.*)$", re.MULTILINE)
_NEXT = re.compile(rb"\n(?=WARC/[0-9]\.[0-9]+\r?\n)")
_NEXT_LONGEST = 32
_SHOWN = 2000  # bytes of what cannot be read


@dataclass(slots=True)
class Record:
    """A record, or what stands where one should."""

    place: str
    """The byte of the file at which it, or its gzip member, begins; `+n` after it for the n-th byte of the member."""
    headers: dict[str, str] = field(default_factory=dict)
    """By name in lower case."""
    content: bytes = b""
    problem: str = ""
    too_long: bool = False


def read_records(unit: Unit, progress: Progress) -> Iterator[Record]:
    """The records that begin in a unit."""
    if unit.compression == ".gz":
        yield from _compressed_records(unit, progress)
        return
    with open_stream(unit, progress) as stream:
        window = Window(lambda: stream.read1(_BLOCK), unit.start)
        while (record := _next_record(window, unit.stop)) is not None:
            yield record


def record_starts(unit: Unit) -> Iterator[int]:
    """The bytes of an uncompressed file at which records, or faults in their place, begin."""
    return (int(record.place) for record in read_records(unit, lambda count: None))


# --------------------------------------------------------------------------------------------------------------------
# One record


def _next_record(window: Window, stop: int | None = None, member_starts: list[int] | None = None) -> Record | None:
    """The next record of a stream; None at its end, or where the next begins at `stop` or later.

    Args:
        member_starts: of a compressed file, in the stream, sorted; a record may end there, whatever follows.
    """
    record = Record(str(window.position))
    try:
        window.skip_any(b"\r\n")
        record.place = str(window.position)
        if not window.ensure(1) or (stop is not None and window.position >= stop):
            return None
        _fill(record, window, member_starts or [])
    except DAMAGED as failure:
        record.problem = f"cut short or damaged: {failure}"
        window.end()
    return record


def _fill(record: Record, window: Window, member_starts: list[int]) -> None:
    if not window.starts_with(RECORD):
        record.content = window.peek(0, _SHOWN)
        record.problem = "no WARC record begins here"
        window.skip_to(_NEXT, _NEXT_LONGEST)
        return
    header = window.find(_HEADER_END, _LONGEST_HEADER)
    if header is None or window.peek(*header).count(b"\n") == 1:
        record.content = window.peek(0, min(header[0], _SHOWN) if header else _SHOWN)
        record.problem = "the header of the record does not end"
        window.skip(len(RECORD))
        window.skip_to(_NEXT, _NEXT_LONGEST)
        return
    record.headers = parse_headers(window.peek(0, header[0]))
    window.skip(header[1])
    value = record.headers.get("content-length", "")
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        record.problem = f"Content-Length is {value!r}, not a number" if value else "has no Content-Length"
        _skip_to_next(window)
    elif int(value) > LONGEST_RECORD:
        _pass_over(record, window, int(value))
    else:
        _take(record, window, int(value), member_starts)


def _skip_to_next(window: Window, limit: int | None = None) -> bool:
    """Move on from the end of a header to the next record, if there is one within the limit."""
    # It may begin at once; the line end before it is then that of the header.
    return window.starts_with(RECORD) or window.skip_to(_NEXT, _NEXT_LONGEST, limit)


def _take(record: Record, window: Window, length: int, member_starts: list[int]) -> None:
    at_hand = window.ensure(length)
    if at_hand >= length and _ends_well(window, length, member_starts):
        record.content = window.peek(0, length)
        window.skip(length)
        return
    record.content = window.peek(0, min(length, _SHOWN))
    before = window.position
    if not _skip_to_next(window) and at_hand < length:
        record.problem = f"cut short: {at_hand:,} of {length:,} bytes are there"
    else:
        record.problem = f"Content-Length is {length:,}, but the next record begins after {window.position - before:,} bytes"


def _ends_well(window: Window, length: int, member_starts: list[int]) -> bool:
    """Whether after so many bytes the two line ends stand that end a record, or the next record, a member, or nothing."""
    tail = window.peek(length, length + 4 + len(RECORD))
    rest = tail.lstrip(b"\r\n")
    if not rest or rest.startswith(RECORD) or tail.startswith(b"\r\n\r\n"):
        return True
    end = window.position + length + len(tail) - len(rest)
    return end in member_starts[-4:]  # those few that have been read


def _pass_over(record: Record, window: Window, length: int) -> None:
    """Leave out a record that is too long, up to the next that is in sight, for its length may be wrong."""
    before = window.position
    record.too_long = True
    record.problem = f"longer than {LONGEST_RECORD:,} bytes"
    if _skip_to_next(window, length):
        record.too_long = False
        record.problem = f"Content-Length is {length:,}, but a record begins after {window.position - before:,} bytes"
    elif window.position - before < length:
        record.too_long = False
        record.problem = f"cut short: {window.position - before:,} of {length:,} bytes are there"


def parse_headers(block: bytes) -> dict[str, str]:
    """Header lines after a first line, by name in lower case; of a name that stands there twice, both, with a comma."""
    text = block.decode("utf-8", "replace")
    pairs = _HEADER.findall(text, text.find("\n") + 1)
    found = {name.lower(): value.strip() for name, value in pairs}
    if len(found) == len(pairs) and "\n " not in text and "\n\t" not in text:
        return found
    found, name = {}, ""
    for line in text.split("\n")[1:]:
        label, colon, value = line.partition(":")
        if line.startswith((" ", "\t")) and name:  # a folded line goes on with the one before
            found[name] += " " + line.strip()
        elif colon:
            name, value = label.strip().lower(), value.strip()
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


# --------------------------------------------------------------------------------------------------------------------
# Compressed files


def _compressed_records(unit: Unit, progress: Progress) -> Iterator[Record]:
    with open_raw(unit, progress) as stream:
        members = Members(stream, unit.start)
        run = _Run(members)
        while unit.stop is None or run.start < unit.stop:
            if run.opened:
                yield from run.records()
            elif shown := members.peek(_SHOWN):
                yield Record(str(run.start), content=shown, problem="no gzip member begins here")
            else:
                return
            if run.following is not None:
                run = run.following
                continue
            if run.damaged or not run.opened:
                after = proven_member(stream, run.failed_at + 1)
                if after is None:
                    return
                members.go_to(after)
            run = _Run(members)
        if run.start != unit.stop:
            yield Record(str(unit.stop), problem="the file was cut here, inside a record that holds an archive of its own")


class _Run:
    """A member that begins with a record, and those after it that do not: they go on with what it holds.

    Attributes:
        start: where it begins in the file.
        following: the run after it, where its first bytes have been read already.
        damaged: whether it ends in a member that is damaged, or cut short.
    """

    def __init__(self, members: Members, first: bytes = b"", failure: Exception | None = None, opened: bool = False):
        self._members, self._first, self._failure = members, first, failure
        self.opened = opened or members.open()
        self.start = self.failed_at = members.start if self.opened else members.offset
        self.following: _Run | None = None
        self.damaged = False
        self._positions, self._offsets = [0], [self.start]  # of its members, in its bytes and in the file
        self._given = 0

    def records(self) -> Iterator[Record]:
        window = Window(self._more)
        while (record := _next_record(window, member_starts=self._positions)) is not None:
            record.place = self._place(int(record.place))
            yield record

    def _place(self, position: int) -> str:
        member = bisect(self._positions, position) - 1
        inside = position - self._positions[member]
        return f"{self._offsets[member]}+{inside}" if inside else str(self._offsets[member])

    def _more(self) -> bytes:
        """The next bytes, which may be those of the next member."""
        try:
            if self._failure:
                raise self._failure
            data, self._first = self._first or self._members.piece(), b""
        except DAMAGED:
            self.damaged, self.failed_at = True, self._members.start
            raise
        while not data and self.following is None and self._members.open():
            data = self._begin_member()
        self._given += len(data)
        return data

    def _begin_member(self) -> bytes:
        failure: Exception | None = None
        first = b""
        try:
            first = self._members.first()
        except DAMAGED as error:  # of the next run, and no fault of this one
            failure = error
        if failure or first.startswith(RECORD):
            self.following = _Run(self._members, first, failure, opened=True)
            return b""
        self._positions.append(self._given)
        self._offsets.append(self._members.start)
        return first
