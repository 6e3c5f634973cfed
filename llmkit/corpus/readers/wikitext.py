"""WikiText (Merity et al. 2017, https://arxiv.org/abs/1609.07843) to rows: one for each article, in ordinary spelling.

The files hold Wikipedia articles in tokens with spaces between them: ` = Title = ` begins one, ` = = Heading = = ` a
section, and ` @-@ `, ` @,@ ` and ` @.@ ` stand for signs inside words and numbers.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

from llmkit.corpus.documents import Document
from llmkit.corpus.readers.lines import Line, lines
from llmkit.corpus.readers.rows import ReadOptions, Row
from llmkit.corpus.readers.text import TextRows
from llmkit.corpus.readers.unit import Unit

ARTICLE = re.compile(rb"\n[ \t]*\r?\n(?= = [^=\n][^\n]{0,1000} = ?\r?\n[ \t]*\r?\n)")
"""What stands before an article, in bytes; files may be cut behind it."""

_TITLE = re.compile(r" = ([^=\n].*) = ?\r?\n?")
_HEADING = re.compile(r" ((?:= ){2,})(.+?) (?:= ?)+")
_INSIDE = re.compile(r" @([-,.])@ ")
_BEFORE = re.compile(r" (?=[,.;:!?%)\]](?:[\s,.;:!?)\]\"]|$))")
_AFTER = re.compile(r"(?:(?<=\s)|^)([(\[$£€]) ")
_ENDING = re.compile(r"(?<=\w) (?='(?:s|t|re|ve|ll|d|m)\b)|(?<=\w) (?=n't\b)")
_QUOTED = re.compile(r'(?:(?<=[\s(\[])|^)" ([^"]*?) "(?=[\s,.;:!?)\]]|$)')
_LONGEST_TITLE = 4096


def is_wikitext(kind: str, options: ReadOptions) -> bool:
    return options.markup == "wikitext" and kind in (".txt", ".tokens")


def read_wikitext(unit: Unit, stream: io.BufferedIOBase, encoding: str, options: ReadOptions) -> Iterator[Row]:
    """The articles that begin in a unit, in parts of at most `max_document_chars`; what comes before the first is one, too."""
    limit = options.max_document_chars
    rows = _Articles(unit)
    after_blank = True
    for line, following in _pairs(lines(stream, encoding, max(4 * limit, _LONGEST_TITLE), unit, unit.stop)):
        title = _TITLE.fullmatch(line.text) if line.piece == 0 and line.ends and after_blank and _is_blank(following) else None
        if title or rows.characters + len(line.text) > limit:
            yield from rows.finish()
        if title:
            rows.title = title[1].strip()
        after_blank = _is_blank(line)
        for start in range(0, len(line.text), limit):
            if start:
                yield from rows.finish()
            rows.add(line, line.text[start : start + limit])
    yield from rows.finish()


class _Articles(TextRows):
    """Puts lines together to articles. Lines that say nothing are no row."""

    title = ""

    def finish(self) -> Iterator[Row]:
        for row in super().finish():
            if isinstance(row, Document):
                row.text = plain_text(row.text)
                row.metadata = json.dumps({"title": spelled(self.title)}, ensure_ascii=False) if self.title else "{}"
                if not row.text:
                    continue
            yield row


def _pairs(items: Iterator[Line]) -> Iterator[tuple[Line, Line | None]]:
    """Each line with the one after it."""
    before: Line | None = None
    for item in items:
        if before is not None:
            yield before, item
        before = item
    if before is not None:
        yield before, None


def _is_blank(line: Line | None) -> bool:
    return line is not None and line.piece == 0 and not line.problem and not line.text.strip(" \t\r\n")


def plain_text(text: str) -> str:
    """Lines of WikiText as they are written elsewhere: headings without signs, an empty line around each."""
    found: list[str] = []
    for line in text.split("\n"):
        heading = _HEADING.fullmatch(line.rstrip("\r")) or _TITLE.fullmatch(line)
        if heading:
            found += [*([""] if found and found[-1] else []), spelled(heading[heading.lastindex or 1]), ""]
        elif words := spelled(line.strip()):
            found.append(words)
    return "\n".join(found).strip("\n")


def spelled(line: str) -> str:
    """A line of tokens with the spaces put right that are not in doubt; `<unk>` stays."""
    line = _INSIDE.sub(r"\1", line)
    line = _ENDING.sub("", line)
    if line.count('"') % 2 == 0:  # else nobody knows which of them open and which close
        line = _QUOTED.sub(r'"\1"', line)
    line = _AFTER.sub(r"\1", line)
    return _BEFORE.sub("", line).strip()
