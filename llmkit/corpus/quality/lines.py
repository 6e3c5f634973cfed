"""The lines that C4 removes (Raffel et al. 2020, JMLR 21:140, section 2.2), and what it looks for in them.

These settings change texts, and with them what is measured later: they belong to measuring and not to judging.
"""

from __future__ import annotations

from dataclasses import dataclass

TERMINALS = (".", "?", "!", '"', "'")
"""A kept line ends with one of these, and not with an ellipsis of three full stops."""

CLOSING = ('"', "'", "…", "”", "’", "」", "』")
"""Where the script has no spaces, a line may also end with one of these, or with any end of a sentence."""

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
UNSPACED_POLICIES = ("隐私政策", "隱私政策", "隱私權政策", "使用条款", "使用條款", "服务条款", "服務條款")
JAVASCRIPT, LOREM, CURLY = "javascript", "lorem ipsum", "{"


@dataclass(frozen=True)
class LineRules:
    """Which lines go; None switches a rule off."""

    line_min_words: float | None = 3
    """Fewest words between white space that a line has."""
    line_unspaced_min_words: float | None = 5
    """Fewest letters and digits that a line has in a text whose script has no spaces: three words of 1.6 characters."""
    line_max_word_length: float | None = 1000
    """Characters of the longest word between white space; not where the script has no spaces."""
    line_terminal: float | None = 1
    """1: a line has to end as a sentence."""
    line_javascript: float | None = 0
    """0: no line may mention JavaScript."""
    line_policy: float | None = 0
    """0: no line may mention terms of use, privacy or cookie policies."""
    line_citations: float | None = 0
    """0: marks of citations, such as [12], [edit] and [citation needed], are taken out of lines."""


FIXED = {"line_terminal": 1, "line_javascript": 0, "line_policy": 0, "line_citations": 0}
"""Rules that are on or off, and have no threshold to choose."""
