"""Records of web archives to rows: pages become documents, all else is set aside with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from llmkit.corpus.documents import Document
from llmkit.corpus.encoding import declared_in_html, decode
from llmkit.corpus.extract import extract, robots_tokens
from llmkit.corpus.readers.http import LONGEST_BODY, BadMessage, Response, TooLong, decoded_body, parse_response
from llmkit.corpus.readers.rows import Progress, ReadOptions, Row, aside, bad
from llmkit.corpus.readers.unit import Unit
from llmkit.corpus.readers.warc import Record, read_records

HTML_TYPES = ("text/html", "application/xhtml+xml")
_AUTHORITY = re.compile(r"[A-Za-z][\w+.-]*://(?:[^/?#@]*@)?(\[[^]/?#]*\]|[^/?#:]*)")
_UNKNOWN_TYPES = ("", "application/octet-stream", "application/x-unknown-content-type", "unknown/unknown", "*/*")
_HTML = re.compile(
    rb"\s*(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html|head|body|title|h1|div|p|table|script)[\s>]", re.I | re.S
)


_as_json = json.JSONEncoder(ensure_ascii=False).encode


class _Aside(Exception):
    """A record that is to be set aside; says why, by one of a few rules, and what was seen."""

    def __init__(self, rule: str, detail: object = ""):
        super().__init__(rule, str(detail))


def read_archive(unit: Unit, options: ReadOptions, progress: Progress) -> Iterator[Row]:
    """One row for each record of a WARC, WET or WAT file.

    Text comes from `conversion` records (WET), and from `response` records with status 200 that hold HTML or plain text.
    Other records are rows that are `expected` to be no document.
    """
    for record in read_records(unit, progress):
        if record.problem:
            if record.too_long:
                yield aside(unit, record.place, _shown(record), "record too long", record.problem)
            else:
                yield bad(unit, record.place, _shown(record), record.problem)
            continue
        try:
            yield _document(unit, record, options)
        except _Aside as found:
            yield aside(unit, record.place, "", *found.args)
        except BadMessage as failure:
            yield bad(unit, record.place, _shown(record), f"http: {failure}")


def _shown(record: Record) -> str:
    lines = "".join(f"{name}: {value}\n" for name, value in record.headers.items())
    return lines + record.content[:2000].decode("utf-8", "backslashreplace")


def _document(unit: Unit, record: Record, options: ReadOptions) -> Document:
    kind = record.headers.get("warc-type", "").lower()
    if kind == "conversion":
        text, metadata = _converted(record)
    elif kind == "response":
        text, metadata = _responded(record, options)
    else:
        raise _Aside("warc record type", kind or "none")
    return Document(text, f"{unit.name}:{record.place}", unit.name, _as_json(metadata))


def _about(record: Record) -> dict[str, Any]:
    url = record.headers.get("warc-target-uri", "").removeprefix("<").removesuffix(">")
    about = {"url": url, "date": record.headers.get("warc-date", ""), "host": _host(url)}
    if "warc-truncated" in record.headers:
        about["truncated"] = record.headers["warc-truncated"]
    return about


def _host(url: str) -> str:
    found = _AUTHORITY.match(url)
    return found[1].strip("[]").lower() if found else ""


def _converted(record: Record) -> tuple[str, dict[str, Any]]:
    media_type, _, rest = record.headers.get("content-type", "text/plain").partition(";")
    text, charset = decode(record.content, rest.rpartition("charset=")[2].strip() or "utf-8")
    about = {**_about(record), "content_type": media_type.strip(), "charset": charset}
    if language := record.headers.get("warc-identified-content-language"):
        about["declared_language"] = language
    return text, about


def _responded(record: Record, options: ReadOptions) -> tuple[str, dict[str, Any]]:
    media_type = record.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/http":
        raise _Aside("warc content type", media_type or "none")
    response = parse_response(record.content)
    if response.status != 200:
        raise _Aside("http status", response.status)
    identified = record.headers.get("warc-identified-payload-type", "").partition(";")[0].strip().lower()
    if not _may_be_text(identified or response.media_type):
        raise _Aside("media type", identified or response.media_type)
    try:
        body = decoded_body(response)
    except TooLong:
        raise _Aside("body too long", f"more than {LONGEST_BODY:,} bytes") from None
    media_type = _media_type(identified or response.media_type, body)
    about = {**_about(record), "content_type": media_type, "status": response.status}
    opt_out = _header_signals(response)
    if media_type == "text/plain":
        text, about["charset"] = decode(body, response.charset)
    else:
        html, about["charset"] = decode(body, response.charset, declared_in_html(body))
        page = extract(html, options.extractor, about["url"])
        text, opt_out = page.text, sorted({*opt_out, *page.opt_out})
        said = {"title": page.title, "declared_language": page.language}
        about.update({name: value for name, value in said.items() if value})
    if opt_out:
        about["opt_out"] = opt_out
    return text, about


def _may_be_text(media_type: str) -> bool:
    return media_type in HTML_TYPES or media_type == "text/plain" or media_type in _UNKNOWN_TYPES


def _media_type(declared: str, body: bytes) -> str:
    """What the body is: as declared, or where that says nothing, as its first bytes show.

    Raises:
        _Aside: it is neither a page nor text.
    """
    head = body[:1024]
    binary = b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if binary or head.startswith((b"%PDF-", b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"PK\x03\x04", b"\x1f\x8b")):
        raise _Aside("binary body", declared)
    if declared not in _UNKNOWN_TYPES:
        return declared
    if _HTML.match(body.removeprefix(b"\xef\xbb\xbf")[:4096]):
        return "text/html"
    raise _Aside("media type", declared or "none")


def _header_signals(response: Response) -> list[str]:
    found = robots_tokens(response.headers.get("x-robots-tag", ""))
    if response.headers.get("tdm-reservation", "").strip().startswith("1"):
        found.append("tdm-reservation")
    return sorted(set(found))
