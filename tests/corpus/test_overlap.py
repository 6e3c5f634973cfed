"""N-grams that a few texts share with many: found wherever they stand, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus import overlap
from llmkit.corpus.embedded import STDLIB, EmbeddedReader
from llmkit.corpus.overlap import LEAST, N, Overlap
from llmkit.corpus.words import WORD, Words, normalised, words
from llmkit.tasks.tables import EMBEDDED, read_dataset

few_words = st.lists(st.sampled_from(["red", "Blue", "GREEN", "红", "绿", "7", "ß"]), max_size=12)
separators = st.sampled_from([" ", "  ", ", ", " - ", ".\n", "!  ", "\u3000", " “", "_"])


@settings(deadline=None)  # the first call makes a table of all characters
@given(st.lists(st.text(max_size=30), max_size=3))
def test_words_are_those_of_the_regular_expression(texts: list[str]) -> None:
    found = Words(texts)
    cut = [found.texts[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    expected = [(number, word) for number, text in enumerate(texts) for word in WORD.findall(normalised(text))]
    assert list(zip(found.of.tolist(), cut, strict=True)) == expected
    by_word: dict[str, set[int]] = {}
    for word, value in zip(cut, found.hashes.tolist(), strict=True):
        by_word.setdefault(word, set()).add(value)
    assert all(len(values) == 1 for values in by_word.values()), "one word has one hash"
    assert len(set(found.hashes.tolist())) == len(by_word), "different words have different ones"


def test_words_are_runs_of_letters_and_digits_and_single_characters_of_scripts_without_spaces() -> None:
    assert words("Don't stop_here, 今天 at 7:30 カナ") == ["Don", "t", "stop", "here", "今", "天", "at", "7", "30", "カ", "ナ"]


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(normalised(text))
    return {tuple(found[start : start + n]) for start in range(len(found) - n + 1)}


@settings(deadline=None)
@given(st.lists(few_words, max_size=6), st.lists(few_words, max_size=6))
def test_what_is_found_is_what_sets_of_n_grams_share(few: list[list[str]], many: list[list[str]]) -> None:
    n, least = 3, 2
    texts, documents = [" ".join(item) for item in few], [" ".join(item) for item in many]
    searched = Overlap(texts, n, least)
    found = {match.text: match for match in searched.search((str(i), text) for i, text in enumerate(documents))}
    for number, text in enumerate(texts):
        length = min(n, len(words(normalised(text))))
        assert searched.searched[number] == (length >= least)
        own = grams(text, length) if length >= least else set()
        holders = {gram: [str(i) for i, other in enumerate(documents) if gram in grams(other, length)] for gram in own}
        shared = {gram: those for gram, those in holders.items() if those}
        assert (number in found) == bool(shared)
        if shared:
            match = found[number]
            assert match.found_in in shared[tuple(words(match.gram))]
            assert 0 < match.share <= 1 and (match.share == 1) == (set(shared) == own)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_shared_n_gram_is_found_wherever_it_stands_and_however_it_is_written(data: Any) -> None:
    pieces = data.draw(st.lists(st.from_regex("[a-z]{2,8}", fullmatch=True), min_size=N, max_size=N))

    def written(before: int, after: int) -> str:
        parts = [f"w{number}" for number in range(before)] + pieces + [f"v{number}" for number in range(after)]
        spelled = [data.draw(st.sampled_from([str.lower, str.upper, str.title, wide]))(part) for part in parts]
        return "".join(part + data.draw(separators) for part in spelled)

    text, document = (written(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))) for _ in range(2))
    (match,) = Overlap([text]).search([("other", "nothing of the kind"), ("this", document)])
    assert match.found_in == "this"


def wide(text: str) -> str:
    """In the wide letters of East Asian typography."""
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def test_an_n_gram_does_not_go_from_one_document_into_the_next() -> None:
    text = " ".join(f"word{number}" for number in range(N))
    half = text.split()
    documents = [("a", " ".join(half[:7])), ("b", " ".join(half[7:]))]
    assert Overlap([text]).search(documents) == []
    assert len(Overlap([text]).search([("whole", text)])) == 1


def test_a_corpus_is_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_CHARACTERS", 50)
    text = " ".join(f"word{number}" for number in range(20))
    documents = [(f"d{number}", f"filler {number} " * 5) for number in range(30)]
    documents[17] = ("d17", f"before {text} after")
    (match,) = Overlap(["short", text]).search(iter(documents))
    assert (match.text, match.share, match.found_in) == (1, 1.0, "d17")


def test_short_texts_are_looked_for_as_a_whole_and_very_short_ones_not_at_all() -> None:
    long, short = (" ".join(f"w{number}" for number in range(count)) for count in (LEAST, LEAST - 1))
    found = Overlap([long, short])
    assert found.searched.tolist() == [True, False]
    assert [match.text for match in found.search([("a", f"so {long} then"), ("b", f"so {short} then")])] == [0]


def test_nothing_is_found_in_nothing() -> None:
    assert Overlap([]).search([("a", "some words")]) == []
    assert Overlap(["", "!!!"]).search([("a", ""), ("b", "half of a pair: \ud800")]) == []
    assert Overlap(["some words"]).search([]) == []


def test_the_wording_of_a_form_does_not_count() -> None:
    form = "Classify the sentiment of the following sentence as positive or negative and say why:"
    texts = [f"{form} number {number}" for number in range(11)]
    assert Overlap(texts[:10]).search([("training", f"{form} something else")])
    assert Overlap(texts).search([("training", f"{form} something else")]) == []
    assert len(Overlap(texts).search([("training", texts[3])])) == 1, "what only one has counts all the same"


def embedded_texts(*splits: str) -> list[str]:
    found: list[str] = []
    for name in EMBEDDED:
        for split in splits:
            for row in read_dataset(name, None, split).rows:
                turns = [turn["content"] for turn in row.values.get("messages", [])]
                keys = ("text", "question", "context", "en", "zh")
                found += [row.values[key] for key in keys if isinstance(row.values.get(key), str)] + turns
    return list(dict.fromkeys(found))


@pytest.mark.slow
def test_there_is_no_false_alarm_on_the_embedded_corpus_and_data_sets() -> None:
    search = Overlap(embedded_texts("validation", "test"))
    assert search.searched.mean() > 0.8
    documents = [(document.id, document.text) for document in EmbeddedReader([STDLIB]).rows(lambda size: None)]
    assert len(documents) > 300
    assert search.search(documents) == []
    assert search.search((str(number), text) for number, text in enumerate(embedded_texts("train"))) == []
