"""Bytes of unknown encoding to text, as browsers do it: mark, declaration, then detection.

Names of encodings mean what they mean on the web (https://encoding.spec.whatwg.org/#names-and-labels): GB2312 and GBK are
read as GB18030, Latin-1 and ASCII as Windows-1252. Against that specification, text that is valid UTF-8 is UTF-8 even
where it is declared to be something else, unless that may be an accident.
"""

from __future__ import annotations

import codecs
import re
from functools import cache
from typing import Any

from llmkit.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, with whose mark it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_READ_AS = {
    **dict.fromkeys(("gbk", "gb2312", "cp936", "hz-gb-2312"), "gb18030"),
    **{"shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs", "cp1252": "cp1252", "iso8859-11": "cp874"},
}
_META = re.compile(rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)|<\?xml\s[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", re.I)
_META_BYTES = 4096
"""The specification looks at 1,024 bytes; many pages have their declaration later."""
_SURE_CHARACTERS = 8
"""Characters of two bytes and more after which valid UTF-8 is no accident: text in GBK passes for it with a chance of about
one in five for each."""
_SINGLE_BYTE = ("utf-8", "cp125", "cp874", "cp866", "iso8859", "koi8", "mac")
"""And encodings in which valid UTF-8 is no sensible text at all."""
_MULTI_BYTE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")
_SAMPLE = 1 << 20


def decode(data: bytes, *declared: str | None) -> tuple[str, str]:
    """The text of some bytes, without a byte order mark, and the name of the encoding it was in.

    Never fails: what the encoding has no meaning for becomes U+FFFD.

    Args:
        declared: the encodings that whoever sent them named, in a header or in the page itself; the first that exists counts.

    Raises:
        DataError: the encoding has to be found out, and resiliparse is not installed.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace"), name
    named = next(filter(None, map(_named, filter(None, declared))), None)
    utf8 = _as_utf8(data)
    if utf8 is not None and (named is None or named.startswith(_SINGLE_BYTE) or data.isascii() or _is_sure(data)):
        return utf8, "utf-8"
    for guess in (named, "utf-8" if utf8 is not None else None, None if named else _detected(data)):
        if guess and (strict := _strictly(data, guess)) is not None:
            return strict, guess
    # Declared wrongly, or damaged in places: the declaration stands where nearly all of it can be read.
    name = named or _detected(data)
    text = data.decode(name, "replace")
    if named and text.count("\ufffd") > len(text) // 100:
        name = _detected(data)
        text = _strictly(data, name) or data.decode(name, "replace")
    return text, name


def detect(data: bytes, cut: bool = False) -> str:
    """The Python name of the encoding that some bytes are in.

    Args:
        cut: they are the beginning of a file, and may end inside a character.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return {"utf-8": "utf-8"}.get(name, name.rpartition("-")[0])
    if _as_utf8(data, final=not cut) is not None:
        return "utf-8"
    return _detected(data)


def declared_in_html(html: bytes) -> str | None:
    """The encoding that a page names in its first bytes."""
    found = _META.search(html, 0, _META_BYTES)
    if not found:
        return None
    name = (found[1] or found[2]).decode("ascii", "replace")
    # Whoever reads this declaration byte by byte cannot be reading UTF-16.
    return "utf-8" if name.lower().startswith("utf-16") else name


def _is_sure(data: bytes) -> bool:
    return any(number == _SURE_CHARACTERS for number, _ in enumerate(_MULTI_BYTE.finditer(data), start=1))


def _as_utf8(data: bytes, final: bool = True) -> str | None:
    try:
        return codecs.utf_8_decode(data, "strict", final)[0]
    except UnicodeDecodeError:
        return None


@cache
def _named(label: str) -> str | None:
    """The Python codec for a name as the web uses it."""
    label = label.strip().lower()
    if label in ("utf-8", "utf8", "unicode-1-1-utf-8"):
        return "utf-8"
    if label in ("latin-1", "latin1", "iso-8859-1", "iso8859-1", "us-ascii", "ascii", "windows-1252"):
        return "cp1252"
    if label in ("gb2312", "gbk", "gb18030", "x-gbk", "cp936", "gb_2312-80", "chinese"):
        return "gb18030"
    found = _resiliparse().map_encoding_to_html5(label, fallback_utf8=False)
    return _READ_AS.get(found, found) if found else None


def _detected(data: bytes) -> str:
    found = _resiliparse().detect_encoding(data, max_len=_SAMPLE)
    return _READ_AS.get(found, found)


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        if encoding == "cp1252":  # five bytes without a meaning are control characters on the web
            return codecs.charmap_decode(data, "strict", _windows_1252())[0]
        return None


@cache
def _windows_1252() -> str:
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(256))


def _resiliparse() -> Any:
    try:
        from resiliparse.parse import encoding
    except ImportError:
        raise DataError('finding out an encoding needs resiliparse: pip install "llmkit[corpus]"') from None
    return encoding
