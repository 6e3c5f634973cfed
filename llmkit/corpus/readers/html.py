"""Web pages in files of their own to rows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

from llmkit.corpus.documents import Document
from llmkit.corpus.encoding import declared_in_html, decode
from llmkit.corpus.extract import extract
from llmkit.corpus.readers.http import LONGEST_BODY
from llmkit.corpus.readers.rows import ReadOptions, Row, bad
from llmkit.corpus.readers.streams import DAMAGED
from llmkit.corpus.readers.unit import Unit


def read_html(unit: Unit, stream: io.BufferedIOBase, options: ReadOptions) -> Iterator[Row]:
    """The main text of a page as one document, in the encoding that the page itself names."""
    try:
        html = stream.read(LONGEST_BODY + 1)
    except DAMAGED as failure:
        yield bad(unit, 1, "", f"the file is cut short or damaged: {failure}")
        return
    if len(html) > LONGEST_BODY:
        yield bad(unit, 1, "", f"a page of more than {LONGEST_BODY:,} bytes")
        return
    text, charset = decode(html, declared_in_html(html))
    page = extract(text, options.extractor)
    about = {"charset": charset, "title": page.title, "declared_language": page.language, "opt_out": page.opt_out}
    metadata = json.dumps({name: value for name, value in about.items() if value}, ensure_ascii=False)
    yield Document(page.text, f"{unit.name}:1", unit.name, metadata)
