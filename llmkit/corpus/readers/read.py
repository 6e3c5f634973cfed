"""Units to rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from llmkit.corpus.readers.archive import read_archive
from llmkit.corpus.readers.files import Found
from llmkit.corpus.readers.html import read_html
from llmkit.corpus.readers.mediawiki import read_mediawiki
from llmkit.corpus.readers.parquet import read_parquet
from llmkit.corpus.readers.rows import Progress, ReadOptions, Row
from llmkit.corpus.readers.streams import open_stream, open_text
from llmkit.corpus.readers.tables import read_csv, read_json
from llmkit.corpus.readers.text import read_text
from llmkit.corpus.readers.unit import Unit
from llmkit.corpus.readers.wikitext import is_wikitext, read_wikitext

_TEXT: dict[str, Callable[[Unit, io.BufferedIOBase, str, ReadOptions], Iterator[Row]]] = {
    ".txt": read_text,
    ".tokens": read_text,
    ".md": read_text,
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
}
_BYTES: dict[str, Callable[[Unit, io.BufferedIOBase, ReadOptions], Iterator[Row]]] = {
    ".html": read_html,
    ".htm": read_html,
    ".xml": read_mediawiki,
}


def read(unit: Unit, options: ReadOptions, progress: Progress) -> Iterator[Row]:
    """The rows of a unit, in the file's order.

    The rows of all units of a file, one unit after the other, are those of the file read whole.

    Raises:
        DataError: the file cannot be opened, or cannot be what its name says.
    """
    if unit.kind == ".parquet":
        yield from read_parquet(unit, options, progress)
    elif unit.kind in (".warc", ".wet", ".wat"):
        yield from read_archive(unit, options, progress)
    elif unit.kind in _BYTES:
        with open_stream(unit, progress) as stream:
            yield from _BYTES[unit.kind](unit, stream, options)
    else:
        reader = read_wikitext if is_wikitext(unit.kind, options) else _TEXT[unit.kind]
        with open_text(unit, options.encoding, progress) as (stream, encoding):
            yield from reader(unit, stream, encoding, options)


class FileReader:
    """The rows of files, one file after the other."""

    def __init__(self, found: Found, options: ReadOptions):
        self._files = found.files
        self._options = options
        self.skipped = found.skipped
        self.size = sum(file.path.stat().st_size for file in self._files)

    def describe(self) -> str:
        more = f" and {len(self._files) - 1:,} more files" if len(self._files) > 1 else ""
        return f"{self._files[0].shown}{more}"

    def rows(self, progress: Progress) -> Iterator[Row]:
        for file in self._files:
            yield from read(file.whole(), self._options, progress)
