from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmkit.corpus.normalise import normalise

# Texts made of what normalisation is about, beside any other character.
AWKWARD = st.sampled_from([*"\r\n\t\v\f\x00\x1c\x85\u2028\u2029\ufeff\u200b\u200d\u3000 aé中กข", "e\u0301", "\n\n\n\n"])
TEXTS = st.lists(AWKWARD | st.characters(exclude_categories=["Cs"]), max_size=40).map("".join)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("one\r\ntwo\rthree\x85four\u2028five\ffive", "one\ntwo\nthree\nfour\nfive\nfive"),
        ("cafe\u0301", "café"),
        ("e\ufeff\u0301", "é"),
        ("a\x00b\x07c\x9b\td", "abc\td"),
        ("one  \ntwo\t\u3000\n", "one\ntwo"),
        ("a\n\n\n\n\n\nb\n\n\nc", "a\n\n\nb\n\n\nc"),
        ("a\n \n\t\n \n \nb", "a\n\n\nb"),
        ("\ufeff你好\u200b世界", "你好世界"),
        ("\u3000\u3000第一段\n\u3000\u3000第二段", "\u3000\u3000第一段\n\u3000\u3000第二段"),
        ("    indented\n        more", "    indented\n        more"),
        ("ไทย\u200b\u200bไทย\u200b", "ไทย\u200bไทย"),
        ("👨\u200d👩 می\u200cخواهم", "👨\u200d👩 می\u200cخواهم"),
        (" \n\t\n", ""),
    ],
)
def test_what_it_does(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@given(TEXTS)
@example("ก\u200b\u200b\ufeff\u200bก")
def test_twice_is_the_same_as_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)


@given(TEXTS)
def test_visible_characters_stay(text: str) -> None:
    def visible(string: str) -> list[str]:
        decomposed = unicodedata.normalize("NFD", string)
        kept = [c for c in decomposed if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf")]
        return sorted(kept)

    assert visible(normalise(text)) == visible(text)
