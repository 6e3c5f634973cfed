"""A text cut into sentences: by rules for English and Chinese, by NLTK's Punkt, or by spaCy's sentencizer.

White space stays with the sentence before it, so that the sentences joined are the text again, whichever splitter made them.
A line end alone ends no sentence, since lines are wrapped within sentences; a blank line always does. Punkt knows only marks
with white space after them, and leaves Chinese in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from llmkit.corpus.words import HAN
from llmkit.errors import ConfigError, DataError

_CLOSING = "\"'”’»)\\]」』】）》〉"
# Runs are looked at from their start only: a long one that ends no sentence takes time by the square otherwise.
_CANDIDATE = re.compile(
    r"\n[^\S\n]*\n\s*"  # a blank line
    rf"|(?P<wide>[。！？；｡][。！？；｡…!?]*|…{{2,}}|(?<![!?])[!?]+(?=[{_CLOSING}]*[{HAN}]))[{_CLOSING}]*\s*"
    rf"|(?<![.!?…])(?P<mark>[.!?…]+)(?P<closed>[{_CLOSING}]*)\s+"
)
_SAID = re.compile(
    f"(?:(?![没沒不])[{HAN}]){{0,8}}?[说說道问問喊叫答嚷写寫][道着著]?[，。：:,！；]|的|是|这|這|等|一词|一詞|，|、|和|与|與"
)
_QUOTE_END = re.compile("[”’」』】）》〉\"')]+\\s*$")
_SHORT_BEFORE_DOTS = 4
_BLANK = re.compile(r"\n[^\S\n]*\n")
_DOTS = re.compile("…{2,}\\s*")

# What stands before a full stop that ends no sentence, or (the second group) only where the next word looks like a start.
_NEVER = frozenset(
    """
    mr mrs ms mx dr prof rev hon st mt ft gen col lt sgt capt cmdr adm gov sen rep pres supt fr messrs mme mlle e.g i.e
    eg ie cf viz vs v al fig figs eq eqs sec ch vol vols no nos pp p ed eds trans approx ca dept univ est tel ext ave
    blvd rd
    """.split()  # noqa: SIM905
)
_SELDOM = frozenset(
    """
    etc inc ltd co corp jr sr u.s u.k u.n u.s.a e.u a.m p.m am pm ph.d m.d b.a m.a b.c a.d d.c jan feb mar apr jun jul
    aug sep sept oct nov dec mon tue wed thu fri sat
    """.split()  # noqa: SIM905
)
_STARTERS = frozenset(
    """
    the a an this that these those he she it they we i you his her their our my its in on at as when while after before
    but and however there then if what who how why where no yes not for from with so all some many most one
    """.split()  # noqa: SIM905
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘—–]*$")
_NUMBERED = frozenset({"no", "nos", "p", "pp", "fig", "figs", "eq", "eqs", "sec", "ch", "vol", "vols", "ext"})
_LONGEST_WORD, _LONGEST_INDENT = 40, 40


def sentences(text: str, language: str = "en", splitter: Any = "rules") -> list[str]:
    """The sentences of a text with the white space after them; joined they are the text.

    Args:
        language: an ISO 639-1 code, for spaCy; the rules look at the characters themselves.
        splitter: `rules`, `nltk` (Punkt trained on the text itself), `spacy`, or what `punkt` has trained on more text.

    Raises:
        ConfigError: there is no such splitter.
        DataError: NLTK or spaCy is not installed.
    """
    if splitter == "rules":
        ends: Iterable[int] = _ends_by_rules(text)
    elif splitter == "nltk":
        ends = _ends_by_starts(start for start, _ in punkt([text]).span_tokenize(text))
    elif splitter == "spacy":
        ends = _ends_by_starts(sentence.start_char for sentence in _sentencizer(language[:2])(text).sents)
    elif hasattr(splitter, "span_tokenize"):
        ends = _ends_by_starts(start for start, _ in splitter.span_tokenize(text))
    else:
        raise ConfigError([f"sentences: there is no splitter {splitter!r}; there are rules, nltk, spacy and a trained Punkt"])
    return _cut(text, ends)


def punkt(texts: Iterable[str]) -> Any:
    """NLTK's Punkt (Kiss and Strunk 2006), trained on texts; nothing is downloaded.

    Raises:
        DataError: NLTK is not installed.
    """
    try:
        from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer
    except ImportError as error:
        raise DataError('the splitter nltk needs NLTK: pip install "llmkit[sentences]"') from error
    trainer = PunktTrainer()
    for text in texts:
        trainer.train(text, finalize=False)
    trainer.finalize_training()
    return PunktSentenceTokenizer(trainer.get_params())


@cache
def _sentencizer(language: str) -> Callable[[str], Any]:
    try:
        import spacy
    except ImportError as error:
        raise DataError('the splitter spacy needs spaCy: pip install "llmkit[sentences]"') from error
    pipeline = spacy.blank(language)
    pipeline.add_pipe("sentencizer")
    pipeline.max_length = 1 << 30  # the limit is for parsers, which need memory by the character
    return pipeline


def _cut(text: str, ends: Iterable[int]) -> list[str]:
    pieces, start = [], 0
    for end in [*ends, len(text)]:
        if end > start:
            pieces.append(text[start:end])
            start = end
    return pieces


def _ends_by_starts(starts: Iterable[int]) -> list[int]:
    """A sentence ends where the next starts; white space before the first belongs to it."""
    return sorted(starts)[1:]


def _ends_by_rules(text: str) -> Iterator[int]:
    start = 0
    for match in _CANDIDATE.finditer(text):
        if match["wide"]:
            ends = _ends_wide(text, match, start)
        else:
            ends = _BLANK.search(match[0]) is not None or _ends_spaced(text, match)
        if ends:
            start = match.end()
            yield start


def _ends_wide(text: str, match: re.Match[str], start: int) -> bool:
    """Whether a Chinese mark ends a sentence: not where the sentence goes on after the quotation that it ends."""
    if _BLANK.search(match[0]) or match.end() == len(text):
        return True
    if _DOTS.fullmatch(match[0]) and match.start() - start < _SHORT_BEFORE_DOTS:
        return False
    if text[match.end()] in "，、,：:；。！？）)":
        return False
    return not (_QUOTE_END.search(match[0]) and _SAID.match(text, match.end()))


def _ends_spaced(text: str, match: re.Match[str]) -> bool:
    """Whether a mark with white space after it ends a sentence."""
    after = _next_word(text, match.end())
    if not after or after[0].islower():
        return not after
    mark = match["mark"]
    if mark != "." or match["closed"]:
        return True
    before = _WORD_BEFORE.search(text, max(0, match.start() - _LONGEST_WORD), match.start())
    word = before[0] if before else ""
    lower = word.casefold()
    if lower in _NUMBERED:
        return not after[0].isdigit()
    if lower in _NEVER or (len(word) == 1 and word.isupper() and word.isascii() and word != "I"):
        return False
    if lower in _SELDOM or re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word):
        return after.casefold() in _STARTERS and after[0].isupper()
    numbers_an_item = word.isdigit() and len(word) <= 3 and _starts_line(text, match.start() - len(word))
    return not numbers_an_item


_NEXT = re.compile(r"\W{0,40}(\w{0,40})")


def _next_word(text: str, place: int) -> str:
    found = _NEXT.match(text, place)
    return found[1] if found else ""


def _starts_line(text: str, place: int) -> bool:
    before = text[max(0, place - _LONGEST_INDENT) : place].rstrip(" \t\u3000")
    return before.endswith("\n") or (not before and place <= _LONGEST_INDENT)
