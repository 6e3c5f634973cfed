"""The markup of MediaWiki (https://www.mediawiki.org/wiki/Help:Formatting) to plain text.

Only what can be known without the wiki's templates: templates, tables, files, categories and references are left out, links
and bold become their text, headings stay as lines, lists keep their bullets. A careful reading in a few passes, each linear
in the text, and no parser.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_ELEMENT = re.compile(
    r"<(/?)(pre|nowiki|code|syntaxhighlight|source|ref|gallery|math|chem|score|timeline|imagemap|templatedata|graph|mapframe)"
    r"\b[^<>]*?(/?)>",
    re.IGNORECASE,
)
_CODE = ("pre", "nowiki", "code", "syntaxhighlight", "source")
"""Elements whose content is kept as it stands; that of the others is left out."""
_LINE_BREAK = re.compile(r"<(?:br|/p|/div|/li|hr)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][a-z0-9]*\b[^<>]*>", re.IGNORECASE)
_BRACES = re.compile(r"\{\{|\}\}|^[ \t:]*\{\||^[ \t]*\|\}", re.MULTILINE)
_BRACKETS = re.compile(r"\[\[|\]\]")
_EXTERNAL = re.compile(r"\[(?:(?:https?:|ftp:)?//|mailto:)[^\s\[\]]+(?:[ \t]+([^\[\]\n]*))?\]")
_BOLD = re.compile(r"'{2,5}")
_BULLET = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
_SWITCH = re.compile(r"__[A-Z]{3,}__|-\{(?:([^{}|]*)\|)?([^{}]*)\}-")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_EMPTY_BRACKETS = re.compile(r"[ \t]?(?:\([ \t,;:]*\)|（[\s，；：]*）)")
_SPACES = re.compile(r"[ \t]{2,}")
_NAMESPACE = re.compile(r"\s*:?\s*([^:\[\]|]{1,30}):", re.DOTALL)
# Files and categories, whose links show nothing of the text; English is understood by all wikis, the others by their own.
_NOT_TEXT = {
    *("file", "image", "media", "category", "文件", "檔案", "图像", "圖像", "分类", "分類", "datei", "bild", "kategorie"),
    *("fichier", "catégorie", "archivo", "categoría", "файл", "категория", "ファイル", "画像"),
}
_LANGUAGE = re.compile(r"\s*[a-z]{2,3}(?:-[a-z]+)*:", re.DOTALL)
_VARIANT = re.compile(r"(?:^|;)\s*zh(?:-(?:hans|cn))?\s*:\s*([^;]*)")
_ANY_VARIANT = re.compile(r"(?:^|;)\s*zh(?:-[a-z]+)*\s*:\s*([^;]*)")
_SHOWS_NOTHING = {"H", "T", "-"}  # flags of a rule that is only told, of the title's, and of one that is taken back
_LONGEST_TITLE = 255  # bytes, in MediaWiki's database
_HOLE = "\x00"


def plain_text(source: str) -> str:
    """The text of a page's source."""
    kept: list[str] = []
    text = _COMMENT.sub("", source.replace(_HOLE, ""))
    text = "".join(_elements(text, kept))
    text = _without_nested(text)
    text = _links(text)
    text = _EXTERNAL.sub(lambda found: found[1] or "", text)
    text = _SWITCH.sub(lambda found: _variant(found[1] or "", found[2] or ""), text)
    text = _BOLD.sub(lambda found: "" if len(found[0]) != 4 else "'", text)
    text = html.unescape(_TAG.sub("", _LINE_BREAK.sub("\n", text)))
    text = "\n".join(_line(line) for line in text.split("\n"))
    text = _BULLET.sub(lambda found: f"{'  ' * (len(found[0].strip()) - 1)}• " if found[0][0] in "*#" else "", text)
    text = _EMPTY_BRACKETS.sub("", text)
    text = "\n".join(line.rstrip() if line.startswith("  ") else _SPACES.sub(" ", line).strip() for line in text.split("\n"))
    text = _BLANK_LINES.sub("\n\n", text).strip()
    return re.sub(f"{_HOLE}(\\d+){_HOLE}", lambda found: html.unescape(kept[int(found[1])]), text).strip("\n")


def _elements(text: str, kept: list[str]) -> Iterator[str]:
    """The text without the elements that are no text, and with holes for those that are code, whose content is kept."""
    at = 0
    opened: re.Match[str] | None = None
    for found in _ELEMENT.finditer(text):
        again = opened is not None and found[2].lower() == opened[2].lower()
        if not found[1] and (opened is None or (again and not found[3])):  # one that opens again was never closed
            yield text[at : found.start()]
            at = found.end() if found[3] else found.start()
            opened = None if found[3] else found
        elif opened is not None and again and found[1]:
            if opened[2].lower() in _CODE:
                kept.append(text[opened.end() : found.start()].strip("\n"))
                yield f"{_HOLE}{len(kept) - 1}{_HOLE}"
            at, opened = found.end(), None
    yield text[at:]


def _line(line: str) -> str:
    """A heading without its signs, and with empty lines around it; other lines as they are."""
    words = line.strip()
    level = min(6, len(words) - len(words.lstrip("=")), len(words) - len(words.rstrip("=")))
    title = words[level : len(words) - level].strip()
    return f"\n{title}\n" if level and title else line


def _variant(flags: str, words: str) -> str:
    """Of the spellings that Chinese pages give for one word (`zh-hans:...; zh-hant:...`), the simplified one, or the first."""
    if _SHOWS_NOTHING & {flag.strip() for flag in flags.split(";")}:
        return ""
    found = _VARIANT.search(words) or _ANY_VARIANT.search(words)
    return found[1].strip() if found else words


def _without_nested(text: str) -> str:
    """The text outside of templates and tables, however deep they stand in each other; what is not closed stays."""
    spans: list[tuple[int, int]] = []
    opened: list[tuple[str, int]] = []
    for found in _BRACES.finditer(text):
        sign = found[0].strip(" \t:")
        if sign in ("{{", "{|"):
            opened.append((sign, found.start()))
            continue
        opening = "{{" if sign == "}}" else "{|"
        if not any(kind == opening for kind, _ in opened[-8:]):
            continue
        while opened:
            kind, start = opened.pop()
            if kind == opening:
                spans.append((start, found.end()))
                break
    return "".join(_outside(text, spans))


def _outside(text: str, spans: list[tuple[int, int]]) -> Iterator[str]:
    at = 0
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= at:
            yield text[at:start]
        at = max(at, end)
    yield text[at:]


def _links(text: str) -> str:
    """The text with links as what they show; those to files and categories with what stands in them left out."""
    levels: list[list[str]] = [[]]
    at = 0
    for found in _BRACKETS.finditer(text):
        levels[-1].append(text[at : found.start()])
        at = found.end()
        if found[0] == "[[":
            levels.append([])
        elif len(levels) > 1:
            shown = _shown("".join(levels.pop()))
            levels[-1].append(shown)
        else:
            levels[-1].append("]]")
    levels[-1].append(text[at:])
    return "[[".join("".join(level) for level in levels)


def _shown(link: str) -> str:
    target, bar, rest = link.partition("|")
    namespace = _NAMESPACE.match(target)
    if namespace and namespace[1].strip().lower() in _NOT_TEXT and not target.lstrip().startswith(":"):
        return ""
    if not bar and _LANGUAGE.match(target):
        return ""
    if bar:
        if len(target) > _LONGEST_TITLE:
            return rest.rpartition("|")[2]
        return rest.rpartition("|")[2] or re.sub(r"\s*\(.*\)$", "", target.rpartition(":")[2])
    return target.lstrip(":").strip()
