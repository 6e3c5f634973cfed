"""Files to units of about equal size, so that one large file is read by many tasks.

A cut is made only where a reader that begins there can know nothing less than one that read all before it: between lines,
paragraphs, articles, records or row groups. What cannot be cut so (CSV, whose quotes may hold line ends; compressed
streams; documents) is one unit.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from llmkit.corpus.readers.files import InputFile
from llmkit.corpus.readers.members import proven_member
from llmkit.corpus.readers.parquet import open_parquet
from llmkit.corpus.readers.rows import ReadOptions
from llmkit.corpus.readers.streams import first_bytes, open_raw
from llmkit.corpus.readers.unit import Unit
from llmkit.corpus.readers.warc import record_starts
from llmkit.corpus.readers.wikitext import ARTICLE, is_wikitext

UNIT_BYTES = 64 << 20

_BLOCK = 1 << 20
_OVERLAP = 4096
_LINE, _PARAGRAPH = re.compile(rb"\n"), re.compile(rb"\n\r?\n")
# Encodings in which the byte 0x0a is always a line end, and none depends on what stands in earlier lines.
_BY_LINE = ("utf-8", "ascii", "gb18030", "gbk", "gb2312", "big5", "euc", "iso8859", "cp", "koi8", "shift_jis", "mac")


def units(files: Iterable[InputFile], options: ReadOptions, size: int = UNIT_BYTES) -> list[Unit]:
    """The units of files, in order: each of about `size` bytes, where its file can be cut there.

    Raises:
        DataError: a file cannot be opened.
    """
    return [unit for file in files for unit in _units_of(file.whole(), options, max(1, size))]


def _units_of(unit: Unit, options: ReadOptions, size: int) -> Iterator[Unit]:
    if unit.kind == ".parquet":
        yield from _row_groups(unit, size)
    elif unit.size <= size:
        yield unit
    elif unit.kind in (".warc", ".wet", ".wat") and unit.compression in ("", ".gz"):
        starts = _nearest(record_starts(unit), size) if not unit.compression else _members(unit, size)
        yield from _between(unit, starts, [])
    elif (boundary := _boundary(unit, options)) is not None:
        yield from _by_lines(unit, boundary, size)
    else:
        yield unit


def _between(unit: Unit, cuts: Iterable[int], rows_before: list[int]) -> Iterator[Unit]:
    """The file cut at some bytes."""
    starts = [0, *cuts]
    stops = [*starts[1:], unit.size]
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        last = number + 1 == len(starts)
        before = rows_before[number] if rows_before else 0
        yield replace(unit, start=start, stop=None if last else stop, rows_before=before, size=stop - start)


def _boundary(unit: Unit, options: ReadOptions) -> re.Pattern[bytes] | None:
    """What stands before each place where the file may be cut; None where it may not."""
    if unit.compression or unit.kind not in (".jsonl", ".json", ".txt", ".tokens"):
        return None
    encoding = options.encoding
    if encoding == "auto":
        from llmkit.corpus.encoding import detect

        encoding = detect(first_bytes(unit), cut=True)
    if not codecs.lookup(encoding).name.startswith(_BY_LINE):
        return None
    if unit.kind in (".jsonl", ".json"):
        return _LINE
    if is_wikitext(unit.kind, options):
        return ARTICLE
    return {"line": _LINE, "paragraph": _PARAGRAPH}.get(options.sample_by)


def _by_lines(unit: Unit, boundary: re.Pattern[bytes], size: int) -> Iterator[Unit]:
    with open_raw(unit, lambda count: None) as stream:
        cuts, rows_before = [0], [0]
        while (cut := _first_match(stream, boundary, cuts[-1] + size - 1, unit.size)) is not None:
            rows_before.append(rows_before[-1] + _newlines(stream, cuts[-1], cut))
            cuts.append(cut)
    yield from _between(unit, cuts[1:], rows_before)


def _first_match(stream: io.BufferedReader, boundary: re.Pattern[bytes], start: int, end: int) -> int | None:
    """Where the first match at or after a byte ends, before the end of the file."""
    stream.seek(start)
    window, begin = b"", start
    while data := stream.read(_BLOCK):
        window += data
        found = boundary.search(window)
        if found:
            return begin + found.end() if begin + found.end() < end else None
        begin += max(0, len(window) - _OVERLAP)
        window = window[-_OVERLAP:]
    return None


def _newlines(stream: io.BufferedReader, start: int, stop: int) -> int:
    stream.seek(start)
    count = 0
    while start < stop:
        data = stream.read(min(_BLOCK, stop - start))
        count += data.count(b"\n")
        start += len(data)
    return count


def _nearest(starts: Iterable[int], size: int) -> Iterator[int]:
    """Of the places where a file may be cut, the first after each `size` bytes."""
    last = 0
    for start in starts:
        if start - last >= size:
            yield start
            last = start


def _members(unit: Unit, size: int) -> Iterator[int]:
    with open_raw(unit, lambda count: None) as stream:
        last = 0
        while last + size < unit.size and (start := proven_member(stream, last + size, whole=True)) is not None:
            yield start
            last = start


def _row_groups(unit: Unit, size: int) -> Iterator[Unit]:
    with open_parquet(unit) as table:
        groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
        first = rows = rows_before = taken = 0
        for number, group in enumerate(groups):
            taken += sum(group.column(column).total_compressed_size for column in range(group.num_columns))
            rows += group.num_rows
            if taken >= size or number + 1 == len(groups):
                yield replace(unit, start=first, stop=number + 1, rows_before=rows_before, size=taken)
                first, rows_before, taken = number + 1, rows, 0
        if not groups:
            yield unit
