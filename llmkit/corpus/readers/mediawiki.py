"""Dumps of MediaWiki (https://www.mediawiki.org/wiki/Help:Export) to rows: one for each page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from llmkit.corpus.documents import Document
from llmkit.corpus.readers.markup import plain_text
from llmkit.corpus.readers.rows import ReadOptions, Row, aside, bad
from llmkit.corpus.readers.streams import DAMAGED
from llmkit.corpus.readers.unit import Unit

LONGEST_PAGE = 64 << 20
"""Bytes of XML between the ends of two pages; a longer stretch is no dump of a wiki."""

_BLOCK = 1 << 16


def read_mediawiki(unit: Unit, stream: io.BufferedIOBase, options: ReadOptions) -> Iterator[Row]:
    """The articles of a dump, in its order, each as its newest revision there.

    Redirects and pages outside the namespace of articles are rows that are `expected` to be no document. Ids are those of
    the pages.
    """
    parser: Any = ElementTree.XMLPullParser(["start", "end"])
    pages = 0
    since = 0  # bytes since the last page
    parents: list[ElementTree.Element] = []
    try:
        while data := stream.read(_BLOCK):
            parser.feed(data)
            since += len(data)
            for event, element in parser.read_events():
                if event == "start":
                    parents.append(element)
                    continue
                parents.pop()
                if _name(element) == "page":
                    pages, since = pages + 1, 0
                    yield _row(unit, element, pages)
                    if parents:
                        parents[-1].remove(element)
            if since > LONGEST_PAGE:
                yield bad(unit, f"page {pages + 1}", "", f"no page ends within {LONGEST_PAGE:,} bytes; the rest is left out")
                return
        parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as failure:  # the last two where it declares a rare encoding
        yield bad(unit, f"page {pages + 1}", "", f"not XML from here on: {failure}")
    except DAMAGED as failure:
        yield bad(unit, f"page {pages + 1}", "", f"the file is cut short or damaged: {failure}")
    else:
        if not pages:
            yield bad(unit, "page 1", "", "holds no page; only XML dumps of MediaWiki are read")


def _name(element: ElementTree.Element) -> str:
    """The name without the namespace of the schema, which differs by version."""
    return element.tag.rpartition("}")[2]


def _row(unit: Unit, page: ElementTree.Element, number: int) -> Row:
    parts = {_name(part): part for part in page}  # of several revisions the last, which is the newest
    title = _text(parts.get("title"))
    place = _text(parts.get("id")) or f"page {number}"
    source = {_name(part): part for part in parts["revision"]} if "revision" in parts else {}
    text, model = source.get("text"), _text(source.get("model")) or "wikitext"
    if (namespace := _text(parts.get("ns")) or "0") != "0":
        return aside(unit, place, title, "wiki namespace", namespace)
    if (redirect := parts.get("redirect")) is not None:
        return aside(unit, place, title, "wiki redirect", redirect.get("title", ""))
    if model != "wikitext":
        return aside(unit, place, title, "wiki content model", model)
    if text is None or text.get("deleted"):
        return aside(unit, place, title, "wiki page without text")
    about = {"title": title, "date": _text(source.get("timestamp"))}
    metadata = json.dumps({name: value for name, value in about.items() if value}, ensure_ascii=False)
    return Document(plain_text(_text(text)), f"{unit.name}:{place}", unit.name, metadata)


def _text(element: ElementTree.Element | None) -> str:
    return (element.text or "") if element is not None else ""
