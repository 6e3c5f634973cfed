"""What reading gives: a `Document` or a `BadRow` for every row, and the settings that decide which."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from llmkit.corpus.documents import Document
from llmkit.corpus.extract import Extractor
from llmkit.corpus.readers.unit import Unit, printable

SampleBy = Literal["document", "paragraph", "line"]
Markup = Literal["none", "wikitext"]
Progress = Callable[[int], None]
"""Called with the number of bytes of raw files (or the like) that were read since the last call."""

_USUAL_NAMES = ("text", "content", "document", "body", "article", "sentence", "code", "markdown")
_LONGEST_DETAIL = 100

SET_ASIDE = (
    *("warc record type", "warc content type", "record too long", "http status", "media type", "binary body", "body too long"),
    *("wiki namespace", "wiki redirect", "wiki content model", "wiki page without text"),
    "no Python source",
)
"""Why a row can be expected to be no document."""


@dataclass(slots=True)
class BadRow:
    """A row that is no document.

    Most are faults: broken JSON, bytes that are not text, a record cut short. Others are `expected`: by what they are,
    records of a web archive that hold a request or an image, they can be no document. Those are kept in sight and
    counted, but are no fault of the data, and do not count towards the share of bad rows that stops a run.
    """

    text: str
    """What can be shown of it."""
    id: str
    source: str
    reason: str
    place: str
    """Where a person finds it: path and line."""
    expected: bool = False
    detail: str = ""
    """Of an expected one, whose `reason` is one of `SET_ASIDE`, what was seen: `302` for `http status`, say."""


Row = Document | BadRow


@dataclass
class ReadOptions:
    """How files become rows; the settings of the same names in `PreprocessConfig`."""

    text_column: str = "text"
    sample_by: SampleBy = "document"
    encoding: str = "utf-8"
    """Of text, JSON and CSV; `auto` finds it out for each file from its first MiB."""
    max_document_chars: int = 1_000_000
    markup: Markup = "none"
    """`wikitext`: .txt and .tokens files are made of articles that begin with ` = Title = `."""
    extractor: Extractor = "resiliparse"
    """What finds the text of a web page."""


def bad(unit: Unit, line: int | str, text: str, reason: str) -> BadRow:
    return BadRow(printable(text), f"{unit.name}:{line}", unit.name, printable(reason), f"{unit.shown}:{line}")


def aside(unit: Unit, place: str, text: str, reason: str, detail: str = "") -> BadRow:
    """A row that is expected to be no document."""
    found = bad(unit, place, text, reason)
    found.expected, found.detail = True, printable(detail[:_LONGEST_DETAIL])
    return found


def row(unit: Unit, line: int, values: dict[str, Any], column: str, raw: str | None = None) -> Row:
    """A row of named values as a document; what stands beside the text becomes its metadata."""
    text = values.get(column)
    if isinstance(text, str):
        return Document(text, f"{unit.name}:{line}", unit.name, metadata(values, column))
    if column in values:
        reason = f"{column!r} is {'empty (null)' if text is None else type(text).__name__}, not text"
    else:
        reason = no_column(column, values)
    return bad(unit, line, metadata(values) if raw is None else raw, reason)


def metadata(values: dict[str, Any], column: str | None = None) -> str:
    try:
        rest = {str(key): _plain(value) for key, value in values.items() if key != column}
        return printable(json.dumps(rest, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        return '{"llmkit": "nested too deeply to be kept"}'


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


def no_column(column: str, columns: Iterable[str]) -> str:
    names = [str(name) for name in columns]
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5) or [name for name in _USUAL_NAMES if name in names]
    hint = f"; did you mean --text_column {near[0]}?" if near else ""
    return f"has no {column!r}; has {', '.join(map(repr, names)) or 'nothing'}{hint}"
