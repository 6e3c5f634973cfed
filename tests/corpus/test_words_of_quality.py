"""What the quality filters take for a word."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.quality.characters import UNSPACED, WORD, classes, unspaced_letters
from llmkit.corpus.quality.words import pattern, spacy_sentences, spans, split

SPACED = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]+")


def test_a_word_is_a_run_of_letters_and_digits_or_of_signs() -> None:
    assert split("Don't stop_here, co-op: 3.14 -- (so...)") == [
        *("Don't", "stop_here", ",", "co-op", ":", "3", ".", "14", "--", "(", "so", "...)"),
    ]


def test_of_scripts_without_spaces_each_letter_is_one_with_its_marks() -> None:
    assert split("今天7:30，カナabc") == ["今", "天", "7", ":", "30", "，", "カ", "ナ", "abc"]
    assert split("กี่ดำ") == ["กี่", "ด", "ำ"]
    assert split("・你") == ["・", "你"]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_elsewhere_the_default_is_the_regular_expression_that_it_is_named_after(text: str) -> None:
    marks = {char for char in text if classes()[ord(char)] & UNSPACED}
    if not marks:
        assert split(text) == SPACED.findall(text)
    assert "".join(split(text)) == "".join(text.split())


def test_the_table_of_characters_is_what_python_says_of_them() -> None:
    table = classes()
    for code in [*range(0x3000), *range(0x4DB0, 0x4E10), *range(0xFF00, 0x10100), 0x1F600, 0x20000, 0xE0001, 0x10FFFF]:
        char = chr(code)
        assert bool(table[code] & WORD) == bool(re.match(r"\w", char))
        assert bool(table[code] & 2) == char.isspace() == bool(re.match(r"\s", char))
        assert bool(table[code] & 4) == char.isalpha()
        assert bool(table[code] & 64) == (len(f"a{char}b".splitlines()) == 2)
        assert bool(table[code] & 128) == bool(re.match(r"\d", char))
    assert {"字", "カ", "々", "ก", "ក"} <= unspaced_letters() and not {"a", "ж", "한", "・", "๑"} & unspaced_letters()


def test_words_by_white_space_are_what_stands_between() -> None:
    assert split(" a,b\u3000c\n", "whitespace-1") == ["a,b", "c"]


def test_spacy_words_have_no_white_space_and_stand_in_bytes_where_they_are() -> None:
    pytest.importorskip("spacy")
    texts = ["Don't go\n\n to  U.S. cafés…", "", "你好 🙂 ok", "a \ud800 b"]
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    found, offsets = spans(texts, encoded)
    joined = b"".join(encoded)
    for number, text in enumerate(texts):
        here = [
            joined[start:end].decode("utf-8", "surrogatepass") for start, end in found[offsets[number] : offsets[number + 1]]
        ]
        assert here == split(text, "spacy") and all(word == word.strip() != "" for word in here)
    assert split(texts[0], "spacy") == ["Do", "n't", "go", "to", "U.S.", "cafés", "…"]


def test_spacy_counts_sentences_and_one_in_nothing() -> None:
    pytest.importorskip("spacy")
    assert [spacy_sentences(line) for line in ("One. Two! Three?", "Mr. X came.", "")] == [3, 1, 1]


def test_the_pattern_takes_no_time_on_long_runs() -> None:
    assert [len(found) for found in pattern().findall("a" * 200_000 + "-" * 200_000)] == [200_000, 200_000]
