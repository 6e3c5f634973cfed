"""E-mail and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

# The usual part of RFC 5322, and a domain whose last label is letters (RFC 3696, section 2).
_LOCAL_END = re.compile(r"[A-Za-z0-9_+%\-](?:[A-Za-z0-9._+%\-]{0,63})\Z")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\-_]*[A-Za-z0-9])")
_FILES = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|css|js|html?)$", re.I)  # logo@2x.png
_USER_OF_URL = re.compile(r"://[!-.0-~]*\Z")  # https://user:password@host
_REMOTE_PATH = re.compile(r":[\w.~\-]*/")  # git@github.com:owner/name
_LONGEST_LOCAL = 64

_V4_HINT = re.compile(r"\.[0-9]{1,3}\.[0-9]")
_V4 = re.compile(r"(?<![A-Za-z0-9_.\-])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_]|\.[0-9])")
_V6_HINT = re.compile(":[0-9A-Fa-f]{0,4}:")
_V6 = re.compile(r"(?<![A-Za-z0-9_.:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![A-Za-z0-9_:]|\.[0-9])")
_VERSION = re.compile(
    r"(?:(?<![A-Za-z])(?:version|ver\.?|release|firmware|build|driver|kernel|revision|section|chapter|clause)|§|版本号?|固件|章|节)"
    r"(?: (?:number|no\.))?[ :：是为#]*$",
    re.I,
)
_CONTEXT = 24


def emails(text: str) -> Iterator[tuple[int, int]]:
    """Where e-mail addresses stand."""
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL_END.search(text[max(0, at - _LONGEST_LOCAL) : at]) if domain else None
        if domain and local and ".." not in local[0] and not local[0].endswith("."):
            start = at - len(local[0])
            part_of_more = _USER_OF_URL.search(text, max(0, start - _LONGEST_LOCAL), start) or _REMOTE_PATH.match(
                text, domain.end()
            )
            if not part_of_more and not _FILES.search(domain[0]):
                yield start, domain.end()
        at = text.find("@", at + 1)


def ip_addresses(text: str) -> Iterator[tuple[int, int]]:
    """Where public addresses stand: those of private networks, of documentation and of one machine alone say nothing."""
    if _V4_HINT.search(text):
        for match in _V4.finditer(text):
            octets = match[0].split(".")
            looks_like_version = all(len(octet) == 1 for octet in octets) or _VERSION.search(
                text, max(0, match.start() - _CONTEXT), match.start()
            )
            if not looks_like_version and _is_public(match[0]):
                yield match.span()
    if _V6_HINT.search(text):
        for match in _V6.finditer(text):
            if sum(char.isdigit() for char in match[0]) >= 2 and _is_public(match[0]):
                yield match.span()


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
