"""HTTP responses as archives keep them (RFC 9112): status, headers, and the body decoded."""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from typing import Any

from llmkit.corpus.readers.warc import parse_headers
from llmkit.errors import DataError

LONGEST_BODY = 64 << 20
"""Bytes of a decoded body; more come out of a bomb, or are no page."""

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?\s+(\d{3})\b")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


class BadMessage(ValueError):
    """A message that cannot be read; says why."""


class TooLong(ValueError):
    """A body that is, or becomes, longer than `LONGEST_BODY`."""


@dataclass(slots=True)
class Response:
    """A response; `body` as it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        found = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", self.headers.get("content-type", ""), re.IGNORECASE)
        return found[1] if found else None


def parse_response(content: bytes) -> Response:
    """The response in the content of a record.

    Raises:
        BadMessage: it is none.
    """
    status = _STATUS.match(content)
    if not status:
        raise BadMessage("does not begin with an HTTP status line")
    end = _HEADER_END.search(content)
    if not end:
        raise BadMessage("the HTTP header does not end")
    return Response(int(status[1]), parse_headers(content[: end.start()]), content[end.end() :])


def decoded_body(response: Response) -> bytes:
    """The body without chunks and compression.

    Archives often keep a body decoded and its headers as they were; so a body that is not what they say is taken as it is,
    and one that is, and is broken, is an error.

    Raises:
        BadMessage: it is damaged or cut short.
        TooLong: it expands beyond bounds.
    """
    body = response.body
    if "chunked" in response.headers.get("transfer-encoding", "").lower() and _CHUNK.match(body):
        body = _without_chunks(body)
    for coding in reversed(response.headers.get("content-encoding", "").lower().split(",")):
        body = _decompressed(body, coding.strip())
    if len(body) > LONGEST_BODY:
        raise TooLong
    return body


def _without_chunks(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while (head := _CHUNK.match(body, at)) is not None:
        size = int(head[1], 16)
        if not size:
            return b"".join(parts)
        part = body[head.end() : head.end() + size]
        if len(part) < size:
            raise BadMessage("the body is cut short in a chunk")
        parts.append(part)
        at = head.end() + size
        at += 2 if body[at : at + 2] == b"\r\n" else body[at : at + 1] == b"\n"
    raise BadMessage("the body has no last chunk" if at == len(body) else "the body has a broken chunk")


def _decompressed(body: bytes, coding: str) -> bytes:
    if coding in ("gzip", "x-gzip"):
        return _inflated(body, 31) if body.startswith(b"\x1f\x8b") else body
    if coding == "deflate":  # with or without the header of zlib: servers differ
        is_zlib = body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0
        try:
            return _inflated(body, 15 if is_zlib else -15)
        except BadMessage:
            if _looks_like_text(body):
                return body
            raise
    if coding in ("br", "zstd"):
        if _looks_like_text(body):
            return body
        return _streamed(body, coding)
    return body


def _inflated(body: bytes, bits: int) -> bytes:
    inflater = zlib.decompressobj(bits)
    try:
        data = inflater.decompress(body, LONGEST_BODY + 1)
    except zlib.error as failure:
        raise BadMessage(f"the body is damaged: {failure}") from None
    if len(data) > LONGEST_BODY:
        raise TooLong
    if not inflater.eof:
        raise BadMessage("the compressed body is cut short")
    return data


def _streamed(body: bytes, coding: str) -> bytes:
    try:
        data = _reader(body, coding).read(LONGEST_BODY + 1)
    except (OSError, EOFError, ValueError) as failure:
        raise BadMessage(f"the body is damaged: {failure}") from None
    if len(data) > LONGEST_BODY:
        raise TooLong
    return bytes(data)


def _reader(body: bytes, coding: str) -> Any:
    if coding == "zstd":
        import pyarrow

        return pyarrow.CompressedInputStream(io.BytesIO(body), "zstd")
    try:
        from fastwarc.stream_io import BrotliReader
    except ImportError:
        raise DataError('pages compressed with Brotli need fastwarc: pip install "llmkit[corpus]"') from None
    return BrotliReader(io.BytesIO(body))


def _looks_like_text(body: bytes) -> bool:
    """Whether the first bytes are text, as those of compressed data hardly are."""
    head = body[:256]
    return bool(head) and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head) and not _has_broken_utf8(head)


def _has_broken_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as failure:
        return failure.start < len(head) - 3
    return False
