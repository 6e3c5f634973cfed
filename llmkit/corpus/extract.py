"""The main text of a web page, with what the page says of itself.

`resiliparse` is fast: https://resiliparse.chatnoir.eu (Bevendorff et al. 2018). Its rules alone keep captions, buttons and
lines to share or subscribe, and lose lists that have links or stand high in the page; what is done here about both, and
what it gains, is measured by benchmarks/extraction.py. `trafilatura` (Barbaresi 2021,
https://aclanthology.org/2021.acl-demo.15) is a little more exact and several times slower. `plain` keeps all visible text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from llmkit.corpus.encoding import declared_in_html, decode
from llmkit.errors import DataError

Extractor = Literal["resiliparse", "trafilatura", "plain"]

_ARTICLE = ('[itemprop~="articleBody"]', "article", "main")
"""Where an article stands, the most exact first."""
_FURNITURE = [
    *("figcaption", "form", "button", '[rel="tag"]', '[id*="comment"]'),
    *('[class*="caption"]', '[class*="share"]', '[class*="related"]', '[class*="newsletter"]', '[class*="comment"]'),
    *('[class*="promo"]', '[class*="byline"]', '[class*="cookie"]', '[class*="breadcrumb"]', '[class*="subscribe"]'),
    '[class*="social"]',
]
"""Parts of a page that are seldom its text."""
_SURELY_TEXT = 1000
_LEAST_SHARE = 0.25
"""Where fewer characters, and less than this share of the page's main text, are left, the article was not there."""
_DEEP = "<div>" * 4
"""Lists less than three elements below the body pass for menus in resiliparse, and are left out."""
_ROBOTS = ("noai", "noimageai", "noindex")
_DEEPEST = 256
"""Levels of elements; resiliparse takes time by the square of the depth, and a page of 100,000 levels takes hours."""
_TAG = re.compile(
    r"<(?:script|style)\b.*?(?:</(?:script|style)|\Z)|<!--.*?(?:-->|\Z)|<(/?)([a-z][a-z0-9]*)", re.IGNORECASE | re.DOTALL
)
_NOT_NESTED = {
    *("", "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"),
    *("p", "li", "dt", "dd", "tr", "td", "th", "tbody", "thead", "tfoot", "option", "rt", "rp"),
}
"""Elements without an end, and those whose end need not be written."""
# Of what resiliparse has written, in which all elements are closed.
_ITEM = re.compile(r"<li\b[^>]*>.*?</li>", re.DOTALL)
_LINK = re.compile(r"<a\s[^>]*>(.*?)</a>", re.DOTALL)
_LINK_TAG = re.compile(r"<a\s[^>]*>|</a>")
_MARKUP = re.compile(r"<[^>]*>")
_LONE = re.compile(
    r">(?:\s|&nbsp;)*(?:[^\W\x00-\u07ff]|[–—‘’“”„…€\u3001-\u3003\u3008-\u3011\u3014-\u301f！（），．：；？～])"
    r"(?=(?:\s|&nbsp;)*<)"
)
"""A letter or mark of three bytes between two tags, such as `的` between links; resiliparse takes them for ornaments."""
_HELD = "\ufdd0"  # put beside it, so that it is not alone; no character (Unicode 23.7)
_CELLS = re.compile(r"(?<=\S)(?:\t\t)+")


@dataclass(slots=True)
class Extracted:
    """What a page holds."""

    text: str
    title: str = ""
    language: str = ""
    """As the page declares it, such as `en-GB`; empty where it does not."""
    opt_out: list[str] = field(default_factory=list)
    """Signals against reuse, sorted: `noai`, `noimageai`, `noindex`, `tdm-reservation`
    (https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240202/)."""


def extract(html: str | bytes, extractor: Extractor = "resiliparse", url: str | None = None) -> Extracted:
    """The text of a page: paragraphs and headings, lists with bullets, tables with tabs between cells, code as it stands.

    Args:
        html: bytes are decoded as the page declares, or as they look.
        url: where the page comes from, which helps trafilatura.

    Raises:
        DataError: the extractor is not installed.
    """
    if isinstance(html, bytes):
        html, _ = decode(html, declared_in_html(html))
    tree = _parsed(html)
    title = " ".join((tree.title or "").split())
    language, opt_out = _declared(tree)
    if extractor == "trafilatura":
        text = _by_trafilatura(html, url)
    elif extractor == "plain" or _is_too_deep(html):
        text = _by_resiliparse(tree, main_content=False)
    else:
        text = _main_text(tree)
    return Extracted(_CELLS.sub(lambda found: "\t" * (len(found[0]) // 2), text).strip("\n"), title, language, opt_out)


def robots_tokens(value: str) -> list[str]:
    """Of the directives in a robots header or meta element, those that are signals against reuse.

    They are given as a list with commas, or for one robot: `noindex, noai`, `googlebot: none`.
    """
    found = {part.rpartition(":")[2].strip().lower() for part in value.split(",")}
    return [name for name in _ROBOTS if name in found or (name == "noindex" and "none" in found)]


def _parsed(html: str) -> Any:
    try:
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise DataError('web pages need resiliparse: pip install "llmkit[corpus]"') from None
    return HTMLTree.parse(html)


def _declared(tree: Any) -> tuple[str, list[str]]:
    """The language and the signals against reuse that a page declares."""
    root = tree.document.query_selector("html")
    language = (root.getattr("lang") or root.getattr("xml:lang") or "") if root else ""
    signals: set[str] = set()
    for meta in tree.head.query_selector_all("meta[name]") if tree.head else ():
        name, content = (meta.getattr("name") or "").strip().lower(), meta.getattr("content") or ""
        if name == "robots":
            signals.update(robots_tokens(content))
        elif name == "tdm-reservation" and content.strip() == "1":
            signals.add(name)
    return language.strip()[:35], sorted(signals)


def _main_text(tree: Any) -> str:
    """The article where the page marks one, else what is not furniture; all of the main text where that leaves too little."""
    if tree.body is None:
        return _by_resiliparse(tree, main_content=True)
    article = next((found for selector in _ARTICLE if (found := _largest(tree, selector)) is not None), tree.body)
    text = _by_resiliparse(_deep(article), main_content=True, skip_elements=_FURNITURE)
    if len(text) >= _SURELY_TEXT:
        return text
    for skipped in (_FURNITURE, None):
        whole = _by_resiliparse(_deep(tree.body), main_content=True, skip_elements=skipped)
        if len(text) < _LEAST_SHARE * len(whole):
            text = whole
    return text


def _is_too_deep(html: str) -> bool:
    """Whether elements stand in each other beyond `_DEEPEST`; those without an end tag count to the end of the page."""
    import numpy as np

    marks = np.frombuffer(html.encode("utf-8", "replace") + b"<", dtype=np.uint8)
    after = marks[np.flatnonzero(marks[:-1] == ord("<")) + 1]
    steps = np.where(after == ord("/"), -1, (after | 32 >= ord("a")) & (after | 32 <= ord("z")))
    if not len(steps) or np.cumsum(steps).max() <= _DEEPEST:
        return False
    depth = 0
    for end, name in _TAG.findall(html):
        if name.lower() not in _NOT_NESTED:
            depth = max(0, depth - 1) if end else depth + 1
            if depth > _DEEPEST:
                return True
    return False


def _deep(element: Any) -> str:
    """A part of a page so far down that its lists pass for text, without the links in lists of text, and no character alone.

    resiliparse takes lists with some links for menus; those whose items are mostly not links are none.
    """
    html = _LONE.sub(rf"\g<0>{_HELD}", element.html)
    return f"<html><body>{_DEEP}{_ITEM.sub(_without_links, html)}"


def _without_links(item: re.Match[str]) -> str:
    source = item[0]
    linked = sum(len(_MARKUP.sub("", link)) for link in _LINK.findall(source))
    return _LINK_TAG.sub("", source) if 2 * linked < len(_MARKUP.sub("", source).strip()) else source


def _largest(tree: Any, selector: str) -> Any:
    found = tree.document.query_selector_all(selector)
    return max(found, key=lambda element: len(element.text)) if found else None


def _by_resiliparse(page: Any, **settings: Any) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(page, preserve_formatting=True, alt_texts=False, links=False, **settings)
    return text.replace(_HELD, "")


def _by_trafilatura(html: str, url: str | None) -> str:
    try:
        import trafilatura
    except ImportError as missing:
        raise DataError(f'extractor: trafilatura cannot be imported ({missing}): pip install "llmkit[trafilatura]"') from None
    return trafilatura.extract(html, url=url, include_comments=False, include_tables=True, favor_precision=True) or ""
