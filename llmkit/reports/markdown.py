"""Texts and tables in Markdown, safe whatever the data holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmkit.reports import words
from llmkit.reports.facts import Score


def with_interval(score: Score | None) -> str:
    if score is None or score.value is None:
        return words.MISSING
    between = words.interval(score.low, score.high)
    return words.score(score.value) + (f" ({between})" if between else "")


def pairs(named: Sequence[tuple[str, str]], as_code: bool = False) -> str:
    """A list of names with their values."""
    return "\n".join(f"- {f'`{code(name)}`' if as_code else safe(name)}: {safe(text)}" for name, text in named)


def items(texts: Sequence[str]) -> str:
    return "\n".join(f"- {safe(text)}" for text in texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell if cell == "---" else safe(cell) for cell in line) + " |" for line in lines)


def safe(text: str) -> str:
    """Text on one line that neither Markdown nor HTML takes for a sign of its own."""
    line = " ".join(words.clean(str(text)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", line)


def code(text: str) -> str:
    """Text between backticks, which cannot be escaped there."""
    return " ".join(words.clean(str(text)).split()).replace("`", "'").replace("|", "/")
