"""The embedded passages: answers stand where they say, sizes are those that are documented, splits are clean."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from typing import Any

import pytest

from llmkit.resources import PACKAGE

HERE = PACKAGE / "data" / "passages"
QUESTIONS = {"train": 305, "validation": 89, "test": 138}
PASSAGES = {"train": 51, "validation": 14, "test": 21}
LANGUAGES = ("en", "zh")
HAN = re.compile(r"[\u3400-\u9fff]")
WORDS = {
    "en": ["who", "what", "when", "where", "why", "how many", "how much", "how long", "how", "which"],
    "zh": ["谁", "什么", "什么时候", "哪里", "为什么", "多少", "怎么", "哪", "几"],
}
GRAM = {"en": 5, "zh": 3}


@pytest.fixture(scope="module")
def questions() -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (HERE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in QUESTIONS
    }


@pytest.fixture(scope="module")
def everything(questions: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(split, question) for split, found in questions.items() for question in found]


@pytest.fixture(scope="module")
def passages(everything: list[tuple[str, dict[str, Any]]]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The questions of each passage, with their split."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for split, question in everything:
        found[question["context"]].append((split, question))
    return dict(found)


def answerable(question: dict[str, Any]) -> bool:
    return bool(question["answers"]["text"])


def length(text: str, language: str) -> int:
    """Words of English, characters of Chinese."""
    return len(text.split()) if language == "en" else len(text)


def asks(question: dict[str, Any], word: str) -> bool:
    if question["language"] == "zh":
        return word in question["question"]
    return re.search(rf"\b{word}\b", question["question"].casefold()) is not None


def normalised(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def grams(text: str, size: int) -> frozenset[str]:
    plain = normalised(text)
    return frozenset(plain[start : start + size] for start in range(max(1, len(plain) - size + 1)))


def likeness(one: frozenset[str], two: frozenset[str]) -> float:
    return len(one & two) / len(one | two)


def test_the_splits_have_their_fixed_sizes(
    questions: dict[str, list[dict[str, Any]]], passages: dict[str, list[tuple[str, dict[str, Any]]]]
) -> None:
    assert {split: len(found) for split, found in questions.items()} == QUESTIONS
    assert Counter(found[0][0] for found in passages.values()) == PASSAGES
    assert sum(QUESTIONS.values()) >= 310
    assert sum(PASSAGES.values()) >= 62


def test_every_question_has_all_its_fields_and_an_id_of_its_own(everything: list[tuple[str, dict[str, Any]]]) -> None:
    for _, question in everything:
        assert list(question) == ["id", "title", "context", "question", "answers", "language", "subject"]
        assert list(question["answers"]) == ["text", "answer_start"]
        texts = [value for value in question.values() if isinstance(value, str)] + question["answers"]["text"]
        assert len(texts) == 6 + len(question["answers"]["text"]), question["id"]
        for text in texts:
            assert isinstance(text, str)
            assert text.strip() == text != "", question["id"]
            assert text == unicodedata.normalize("NFC", text), question["id"]
            assert re.search(r"[^\S ]|  ", text) is None, question["id"]
        assert question["question"].endswith("?" if question["language"] == "en" else "？"), question["id"]
        assert re.fullmatch(rf"{question['language']}(-[a-z]+)+-\d+", question["id"])
    assert len({question["id"] for _, question in everything}) == len(everything)


def test_a_third_is_chinese_and_each_is_in_the_language_that_it_says(everything: list[tuple[str, dict[str, Any]]]) -> None:
    languages = Counter(question["language"] for _, question in everything)
    assert set(languages) == set(LANGUAGES)
    assert languages["zh"] / len(everything) == pytest.approx(1 / 3, abs=0.04)
    for _, question in everything:
        for key in ("title", "context", "question"):
            assert bool(HAN.search(question[key])) == (question["language"] == "zh"), question["id"]
        if question["language"] == "zh":
            assert re.search(r"[,;?!()]", question["context"] + question["question"]) is None, question["id"]


def test_there_are_at_least_twelve_subjects_and_both_languages_have_them_all(
    passages: dict[str, list[tuple[str, dict[str, Any]]]],
) -> None:
    subjects = {
        language: Counter(found[0][1]["subject"] for found in passages.values() if found[0][1]["language"] == language)
        for language in LANGUAGES
    }
    assert len(subjects["en"]) >= 12
    assert set(subjects["en"]) == set(subjects["zh"])
    assert max(subjects["en"].values()) / sum(subjects["en"].values()) < 0.15, "no subject dominates"


def test_a_passage_is_short_but_for_one_in_each_split_of_a_language(
    passages: dict[str, list[tuple[str, dict[str, Any]]]],
) -> None:
    short, long = {"en": (60, 160), "zh": (120, 300)}, {"en": (300, 400), "zh": (600, 800)}
    longer = []
    for context, found in passages.items():
        split, question = found[0]
        language = question["language"]
        size = length(context, language)
        if size > short[language][1]:
            longer.append((language, split))
            assert long[language][0] <= size <= long[language][1], question["id"]
        else:
            assert size >= short[language][0], question["id"]
    assert sorted(longer) == sorted((language, split) for language in LANGUAGES for split in QUESTIONS)


def test_every_passage_has_at_least_five_questions_in_one_split(
    passages: dict[str, list[tuple[str, dict[str, Any]]]],
) -> None:
    for found in passages.values():
        name = found[0][1]["id"]
        assert len(found) >= 5, name
        assert len({split for split, _ in found}) == 1, name
        assert len({(question["title"], question["subject"]) for _, question in found}) == 1, name
        stem = name.rpartition("-")[0]
        assert [question["id"] for _, question in found] == [f"{stem}-{number}" for number in range(1, len(found) + 1)]
    assert len({found[0][1]["title"] for found in passages.values()}) == len(passages)


def test_no_question_stands_there_twice(everything: list[tuple[str, dict[str, Any]]]) -> None:
    seen: dict[str, str] = {}
    for _, question in everything:
        twin = seen.setdefault(normalised(question["question"]), question["id"])
        assert twin == question["id"], f"{twin} and {question['id']} are the same question"


def test_every_answer_is_a_short_span_that_stands_where_it_says(everything: list[tuple[str, dict[str, Any]]]) -> None:
    most = {"en": 12, "zh": 20}
    for _, question in everything:
        context, language = question["context"], question["language"]
        texts, starts = question["answers"]["text"], question["answers"]["answer_start"]
        assert len(texts) == len(starts) <= 2, question["id"]
        assert len(set(zip(texts, starts, strict=True))) == len(texts), question["id"]
        assert len(set(texts)) == len(texts), question["id"]
        for text, start in zip(texts, starts, strict=True):
            assert type(start) is int
            assert start >= 0
            assert context[start : start + len(text)] == text, question["id"]
            assert 1 <= length(text, language) <= most[language], question["id"]
            assert text[-1] not in ".,;:!?。，；：！？、", question["id"]
            if language == "en":
                assert re.compile(rf"(?<!\w){re.escape(text)}(?!\w)").match(context, start), question["id"]


def test_a_good_fifth_cannot_be_answered_in_every_split_of_every_language(
    questions: dict[str, list[dict[str, Any]]], passages: dict[str, list[tuple[str, dict[str, Any]]]]
) -> None:
    for split, found in questions.items():
        for language in LANGUAGES:
            here = [question for question in found if question["language"] == language]
            share = sum(not answerable(question) for question in here) / len(here)
            assert 0.20 <= share <= 0.25, (split, language, share)
    counts = Counter(sum(not answerable(question) for _, question in found) for found in passages.values())
    assert set(counts) == {0, 1, 2, 3}, "the number of them must not be the same in every passage"


def test_the_questions_use_every_question_word_and_none_gives_away_whether_there_is_an_answer(
    everything: list[tuple[str, dict[str, Any]]],
) -> None:
    for language, words in WORDS.items():
        for word in words:
            here = [question for _, question in everything if question["language"] == language and asks(question, word)]
            assert len(here) >= 6, word
            if len(here) >= 10:
                share = sum(not answerable(question) for question in here) / len(here)
                assert 0 < share <= 0.5, (word, share)


def test_answers_stand_in_every_third_of_their_passages(everything: list[tuple[str, dict[str, Any]]]) -> None:
    thirds = Counter(
        (question["language"], 3 * question["answers"]["answer_start"][0] // len(question["context"]))
        for _, question in everything
        if answerable(question)
    )
    for language in LANGUAGES:
        total = sum(thirds[language, third] for third in range(3))
        assert set(thirds) == {(name, third) for name in LANGUAGES for third in range(3)}
        for third in range(3):
            assert 0.27 <= thirds[language, third] / total <= 0.40, (language, third)


def test_the_number_of_a_question_does_not_tell_where_its_answer_is(
    everything: list[tuple[str, dict[str, Any]]],
) -> None:
    """Questions are in an order of their own: the first is not always about the first sentence."""
    for number in range(1, 6):
        here = [question for _, question in everything if question["id"].endswith(f"-{number}")]
        found = [
            question["answers"]["answer_start"][0] / len(question["context"]) for question in here if answerable(question)
        ]
        assert 0.30 <= sum(found) / len(found) <= 0.70, number
        assert 0.10 <= 1 - len(found) / len(here) <= 0.35, number


def test_many_questions_do_not_repeat_the_words_around_their_answer(everything: list[tuple[str, dict[str, Any]]]) -> None:
    """Half of the questions and more share less than 40% of their n-grams with the passage."""
    for language in LANGUAGES:
        size = GRAM[language]
        shares = []
        for _, question in everything:
            if question["language"] == language and answerable(question):
                pieces = grams(question["question"], size)
                shares.append(len(pieces & grams(question["context"], size)) / len(pieces))
        assert sum(share < 0.4 for share in shares) / len(shares) > 0.5, language


def test_the_card_tells_the_counts_that_are_there(questions: dict[str, list[dict[str, Any]]]) -> None:
    card = (HERE / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w*) *\| ([\w ]+?) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\|$", card, flags=re.MULTILINE)
    assert len(rows) == 8
    for language, kind, *told in rows:
        counts = []
        for found in questions.values():
            here = [question for question in found if question["language"] == (language or question["language"])]
            counts.append(
                {
                    "passages": len({question["context"] for question in here}),
                    "with an answer": sum(answerable(question) for question in here),
                    "without an answer": sum(not answerable(question) for question in here),
                    "all questions": len(here),
                }[kind]
            )
        assert [int(number) for number in told] == [*counts, sum(counts)], (language, kind)
    total = sum(len(found) for found in questions.values())
    assert card.count(f"{total} questions") >= 1
    assert card.count(f"{total} 个问题") == 1


@pytest.mark.parametrize("key", ["context", "question"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_like_something_of_another_split(
    everything: list[tuple[str, dict[str, Any]]], near_copies: Any, language: str, key: str
) -> None:
    """Jaccard similarity of character n-grams below 0.3, for passages and for questions."""
    found: dict[str, tuple[str, str, frozenset[str]]] = {}
    for split, question in everything:
        if question["language"] == language:
            found[question[key]] = (split, question["id"], grams(question[key], GRAM[language]))
    assert not near_copies(list(found.values()))


def test_the_measure_of_likeness_finds_a_copy_with_a_word_changed() -> None:
    one, two = (grams(f"How many bicycles can the {word} take on a Sunday?", GRAM["en"]) for word in ("boat", "train"))
    assert likeness(one, two) > 0.3
    chinese, other = (grams(f"末班{word}几点从县城汽车站开出？", GRAM["zh"]) for word in ("车", "客车"))
    assert likeness(chinese, other) > 0.3
