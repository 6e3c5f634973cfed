"""Text files to rows: whole, or cut by paragraph or line."""

from __future__ import annotations

import io
from collections.abc import Iterator

from llmkit.corpus.documents import Document
from llmkit.corpus.readers.lines import Line, lines
from llmkit.corpus.readers.rows import ReadOptions, Row, bad
from llmkit.corpus.readers.unit import Unit


def read_text(unit: Unit, stream: io.BufferedIOBase, encoding: str, options: ReadOptions) -> Iterator[Row]:
    """Text by document, paragraph (blank lines between) or line, in parts of at most `max_document_chars`."""
    sample_by = "document" if unit.kind == ".md" else options.sample_by
    limit = options.max_document_chars
    rows = TextRows(unit)
    seen = False
    for line in lines(stream, encoding, 4 * limit, unit, unit.stop):
        seen = True
        if sample_by == "paragraph" and line.piece == 0 and line.ends and not line.problem and not line.text.strip():
            yield from rows.finish()
            continue
        if rows.characters + len(line.text) > limit:
            yield from rows.finish()
        for start in range(0, max(len(line.text), 1), limit):
            if start:
                yield from rows.finish()
            rows.add(line, line.text[start : start + limit])
        if sample_by == "line" and line.ends:
            yield from rows.finish()
    yield from rows.finish()
    if not seen:
        yield Document("", f"{unit.name}:1", unit.name)


class TextRows:
    """Puts lines together to rows, each named after the line it begins on."""

    def __init__(self, unit: Unit):
        self._unit = unit
        self._parts: list[str] = []
        self._place = ""
        self._problem = ""
        self._last_line = self._cuts = 0
        self.characters = 0

    def add(self, line: Line, text: str) -> None:
        if not self._parts:
            self._cuts = self._cuts + 1 if line.number == self._last_line else 0
            self._place = f"{line.number}.{self._cuts}" if self._cuts else str(line.number)
            self._last_line = line.number
        if line.problem and not self._problem:
            self._problem = f"line {line.number}: {line.problem}"
        self._parts.append(text)
        self.characters += len(text)

    def finish(self) -> Iterator[Row]:
        if self._parts:
            text = "".join(self._parts)
            if self._problem:
                yield bad(self._unit, self._place, text, self._problem)
            else:
                yield Document(text, f"{self._unit.name}:{self._place}", self._unit.name)
        self._parts, self._problem, self.characters = [], "", 0
