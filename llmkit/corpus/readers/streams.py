"""Files as streams of bytes: decompressed, counted, bounded."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmkit.corpus.readers.rows import Progress
from llmkit.corpus.readers.unit import Unit
from llmkit.errors import DataError

COMPRESSIONS = (".gz", ".zst", ".bz2")
DAMAGED = (OSError, EOFError, zlib.error)
"""What a cut or damaged compressed file raises while it is read."""

BOMB_BYTES = 1 << 30
BOMB_RATIO = 200
"""A stretch of `BOMB_BYTES` that was more than `BOMB_RATIO` times smaller on disk is refused. Text compresses to a third or
a tenth; only a file made for it, or one of zeros, goes further over so long a stretch."""

_BUFFER = 1 << 20


class _CountedFile(io.FileIO):
    """A file that reports how much of it was read."""

    def __init__(self, path: str, progress: Progress):
        super().__init__(path)
        self._progress = progress

    def readinto(self, buffer: Any) -> int | None:
        size = super().readinto(buffer)
        self._progress(size or 0)
        return size


class BombGuard:
    """Watches how much comes out of a decompressor for what goes in.

    Raises:
        OSError: it is out of all proportion.
    """

    def __init__(self) -> None:
        self._taken = self._given = 0

    def check(self, taken: int, given: int) -> None:
        """Called with the bytes that went in and came out, counted from the beginning."""
        if given - self._given < BOMB_BYTES:
            return
        if (given - self._given) > BOMB_RATIO * (taken - self._taken):
            raise OSError(
                f"{given - self._given:,} bytes come out of {taken - self._taken:,}, more than {BOMB_RATIO} times as many"
            )
        self._taken, self._given = taken, given


class _Decompressed(io.RawIOBase):
    """What a decompressor gives, while it is in proportion to what it takes."""

    def __init__(self, read: Callable[[int], bytes], source: io.BufferedReader):
        self._read, self._source = read, source
        self._given = 0
        self._guard = BombGuard()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        self._given += len(data)
        self._guard.check(self._source.tell(), self._given)
        buffer[: len(data)] = data
        return len(data)


class _AsUtf8(io.RawIOBase):
    """A stream in UTF-16 or UTF-32, in which no byte is the end of a line, as UTF-8."""

    def __init__(self, stream: io.BufferedIOBase, encoding: str):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._pending = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and not self._ended:
            data = self._stream.read(_BUFFER // 16)
            self._ended = not data
            try:
                # A lone surrogate becomes bytes that are not UTF-8, which the lines then report.
                self._pending = self._decoder.decode(data, final=self._ended).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self._pending, self._ended = b"\xff", True
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size


@contextmanager
def open_raw(unit: Unit, progress: Progress) -> Iterator[Any]:
    """The bytes on disk, from the unit's start, as an `io.BufferedReader`.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        counted = _CountedFile(unit.path, progress)
    except OSError as failure:
        raise DataError(f"{unit.shown} cannot be read: {failure.strerror}") from None
    with io.BufferedReader(counted, _BUFFER) as raw:
        raw.seek(unit.start)
        yield raw


@contextmanager
def open_stream(unit: Unit, progress: Progress) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, decompressed, from the unit's start.

    Raises:
        DataError: the file cannot be opened.
    """
    with open_raw(unit, progress) as raw:
        if not unit.compression:
            yield raw
            return
        decompressed = _Decompressed(_decompressor(raw, unit.compression), raw)
        with io.BufferedReader(decompressed, _BUFFER // 16) as stream:
            yield stream


def _decompressor(raw: Any, compression: str) -> Callable[[int], bytes]:
    """Reads what it can of a damaged file before it raises; hence `read1` and small buffers."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw).read1
    if compression == ".bz2":
        return bz2.BZ2File(raw).read1
    import pyarrow

    read: Callable[[int], bytes] = pyarrow.CompressedInputStream(raw, "zstd").read
    return read


@contextmanager
def open_text(unit: Unit, encoding: str, progress: Progress) -> Iterator[tuple[io.BufferedIOBase, str]]:
    """The bytes of a file and the encoding in which they are to be read; `auto` is found out from the first MiB."""
    if encoding == "auto":
        from llmkit.corpus.encoding import detect

        encoding = detect(first_bytes(unit), cut=True)
    with open_stream(unit, progress) as stream:
        if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
            yield io.BufferedReader(_AsUtf8(stream, encoding), _BUFFER // 16), "utf-8"
        else:
            yield stream, encoding


def first_bytes(unit: Unit, size: int = _BUFFER) -> bytes:
    """The beginning of a file; of a damaged one, what can be had."""
    parts: list[bytes] = []
    whole = Unit(unit.path, unit.name, unit.kind, unit.compression)
    with open_stream(whole, lambda count: None) as stream:
        try:
            while size and (data := stream.read1(size)):
                parts.append(data)
                size -= len(data)
        except DAMAGED:
            pass
    return b"".join(parts)
