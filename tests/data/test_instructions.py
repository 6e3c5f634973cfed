"""The embedded instructions: hand-written conversations, of the sizes that are documented, and clean across splits."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from llmkit.resources import PACKAGE

DIRECTORY = PACKAGE / "data" / "instructions"
SPLITS = {"train": 270, "validation": 40, "test": 50}
KINDS = {
    "clarification",
    "explanation",
    "extraction",
    "plan",
    "question",
    "reasoning",
    "rewrite",
    "summary",
    "translation",
    "writing",
}
HAN = re.compile(r"[\u3400-\u9fff]")
HALF_WIDTH = re.compile(r"[\u3400-\u9fff][,;:?!.()]|[,;:?!()][\u3400-\u9fff]")
TRADITIONAL = set("們這個來時說為對國學會後還過開關東車長門問間見貝馬鳥魚風飛電話語請讓誰書買賣錢點裡麼與樂歲應實頭")
LIST_ITEM = re.compile(r"^(- |\d+\. |[一二三四五]、)", re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?](?=[\"”’)]?(?:\s|$))|[。！？]")
NUMBER = r"\d+(?:\.\d+)?"
EQUATION = re.compile(rf"(?<![\d.])({NUMBER}(?:\s*[+−×÷]\s*{NUMBER})+)\s*=\s*({NUMBER})")

Conversation = dict[str, Any]


@pytest.fixture(scope="module")
def conversations() -> dict[str, list[Conversation]]:
    return {
        split: [json.loads(line) for line in (DIRECTORY / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def everything(conversations: dict[str, list[Conversation]]) -> list[tuple[str, Conversation]]:
    return [(split, conversation) for split, found in conversations.items() for conversation in found]


def said(conversation: Conversation, *roles: str) -> list[str]:
    """What the given roles say, in order; without roles, everything."""
    return [message["content"] for message in conversation["messages"] if not roles or message["role"] in roles]


def has_system(conversation: Conversation) -> bool:
    return bool(conversation["messages"][0]["role"] == "system")


def has_several_exchanges(conversation: Conversation) -> bool:
    return len(said(conversation, "user")) > 1


def normalised(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def grams(text: str, size: int) -> frozenset[str]:
    plain = normalised(text)
    return frozenset(plain[start : start + size] for start in range(max(1, len(plain) - size + 1)))


def similarity(one: frozenset[str], two: frozenset[str]) -> float:
    return len(one & two) / len(one | two)


def value(sum_of_products: str) -> Fraction:
    """What `2 + 3 × 4` comes to: products and quotients first, otherwise from left to right."""
    total = Fraction(0)
    for sign, term in re.findall(r"(^|[+−])([^+−]+)", sum_of_products.replace(" ", "")):
        first, *others = re.findall(rf"([×÷]?)({NUMBER})", term)
        result = Fraction(first[1])
        for operator, number in others:
            result = result * Fraction(number) if operator == "×" else result / Fraction(number)
        total += -result if sign == "−" else result
    return total


def equations(text: str) -> list[tuple[str, str]]:
    """The sums of a text with the results that it gives; currency signs and thousands separators are left out."""
    return EQUATION.findall(re.sub(r"[£$€]|(?<=\d),(?=\d{3})", "", text))


# --------------------------------------------------------------------------------------------------------------------
# Form


def test_the_splits_have_their_fixed_sizes(conversations: dict[str, list[Conversation]]) -> None:
    assert {split: len(found) for split, found in conversations.items()} == SPLITS
    assert sum(SPLITS.values()) >= 260
    assert SPLITS["test"] >= 40


def test_every_conversation_has_its_keys_and_an_id_of_its_own(everything: list[tuple[str, Conversation]]) -> None:
    for _, conversation in everything:
        assert list(conversation) == ["id", "messages", "language", "kind"]
        assert conversation["kind"] in KINDS
        assert re.fullmatch(rf"{conversation['language']}-{conversation['kind']}-\d\d", conversation["id"])
    assert len({conversation["id"] for _, conversation in everything}) == len(everything)


def test_roles_alternate_after_the_system_message_and_the_assistant_has_the_last_word(
    everything: list[tuple[str, Conversation]],
) -> None:
    for _, conversation in everything:
        assert all(list(message) == ["role", "content"] for message in conversation["messages"]), conversation["id"]
        roles = " ".join(message["role"] for message in conversation["messages"])
        assert re.fullmatch(r"(system )?user assistant( user assistant)*", roles), conversation["id"]


def test_no_content_is_empty_or_untidy(everything: list[tuple[str, Conversation]]) -> None:
    for _, conversation in everything:
        for text in said(conversation):
            assert isinstance(text, str) and text.strip() == text != "", conversation["id"]
            assert text == unicodedata.normalize("NFC", text), conversation["id"]
            assert not re.search(r"  | \n|\n\n|\t|\r", text), conversation["id"]


def test_answers_are_short(everything: list[tuple[str, Conversation]]) -> None:
    """At most five sentences or a list of five items, and never more than 400 characters."""
    for _, conversation in everything:
        for answer in said(conversation, "assistant"):
            assert len(answer) <= 400, conversation["id"]
            items = len(LIST_ITEM.findall(answer))
            assert items <= 5, conversation["id"]
            assert items or len(SENTENCE_END.findall(answer)) <= 5, conversation["id"]


def test_an_answer_in_json_can_be_parsed(everything: list[tuple[str, Conversation]]) -> None:
    objects = [json.loads(answer) for _, each in everything for answer in said(each, "assistant") if answer.startswith("{")]
    assert len(objects) >= 2
    assert all(isinstance(found, dict) and found for found in objects)


# --------------------------------------------------------------------------------------------------------------------
# Languages, kinds and shares


def test_a_third_is_chinese_and_each_is_in_the_language_that_it_says(everything: list[tuple[str, Conversation]]) -> None:
    languages = Counter(conversation["language"] for _, conversation in everything)
    assert set(languages) == {"en", "zh"}
    assert languages["zh"] / len(everything) == pytest.approx(1 / 3, abs=0.04)
    for _, conversation in everything:
        texts = said(conversation)
        if conversation["language"] == "zh":
            assert HAN.search(texts[0]), conversation["id"]
            assert conversation["kind"] == "translation" or all(HAN.search(text) for text in texts), conversation["id"]
        else:
            assert re.search(r"[A-Za-z]{2}", texts[0]), conversation["id"]
            assert conversation["kind"] == "translation" or not HAN.search("".join(texts)), conversation["id"]


def test_chinese_is_simplified_and_has_its_own_punctuation(everything: list[tuple[str, Conversation]]) -> None:
    for _, conversation in everything:
        for text in said(conversation):
            assert not TRADITIONAL.intersection(text), conversation["id"]
            if conversation["language"] == "zh":
                assert not HALF_WIDTH.search(text), conversation["id"]
                assert '"' not in text or text.startswith("{"), conversation["id"]


def test_every_kind_is_in_every_language_and_every_split(everything: list[tuple[str, Conversation]]) -> None:
    there = {(split, conversation["language"], conversation["kind"]) for split, conversation in everything}
    assert there == {(split, language, kind) for split in SPLITS for language in ("en", "zh") for kind in KINDS}
    sizes = Counter((conversation["language"], conversation["kind"]) for _, conversation in everything)
    assert set(sizes.values()) == {24, 12}
    assert all(count == (24 if language == "en" else 12) for (language, _), count in sizes.items())


@pytest.mark.parametrize("form", [has_system, has_several_exchanges])
def test_about_a_seventh_have_a_system_message_and_as_many_several_exchanges(
    form: Any, conversations: dict[str, list[Conversation]], everything: list[tuple[str, Conversation]]
) -> None:
    for language in ("en", "zh"):
        found = [form(conversation) for _, conversation in everything if conversation["language"] == language]
        assert sum(found) / len(found) == pytest.approx(0.15, abs=0.03), language
    for split, found_here in conversations.items():
        share = sum(form(conversation) for conversation in found_here) / len(found_here)
        assert share == pytest.approx(0.15, abs=0.06), split
    kinds = {(conversation["language"], conversation["kind"]) for _, conversation in everything if form(conversation)}
    assert len(kinds) == 2 * len(KINDS), "every kind has the form in both languages"


# --------------------------------------------------------------------------------------------------------------------
# The card


def test_the_card_tells_the_counts_that_are_there(conversations: dict[str, list[Conversation]]) -> None:
    card = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w*) *\| (\w+) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\|$", card, flags=re.MULTILINE)
    assert len(rows) == 2 * len(KINDS) + 1
    for language, kind, *told in rows:
        counts = [
            sum(each["language"] in (language or each["language"]) and kind in (each["kind"], "all") for each in found)
            for found in conversations.values()
        ]
        assert [int(number) for number in told] == [*counts, sum(counts)], (language, kind)


def test_the_card_tells_the_forms_and_the_lengths_that_are_there(everything: list[tuple[str, Conversation]]) -> None:
    card = " ".join((DIRECTORY / "README.md").read_text(encoding="utf-8").split())
    every = [conversation for _, conversation in everything]
    languages = Counter(conversation["language"] for conversation in every)
    systems, several = sum(map(has_system, every)), sum(map(has_several_exchanges, every))
    assert f"{len(every)} short conversations" in card
    assert f"{systems} conversations begin with a system message and {several} have more than one exchange" in card
    assert f"{len(every)} 段简短对话，英文 {languages['en']} 段，简体中文 {languages['zh']} 段" in card
    assert f"{systems} 段有系统消息，{several} 段不止一轮" in card
    assert f"its test split has {SPLITS['test']} conversations" in card
    for language, name in (("en", "English"), ("zh", "Chinese")):
        answers = [len(text) for each in every if each["language"] == language for text in said(each, "assistant")]
        assert f"{min(answers)} to {max(answers)} characters in {name}" in card


# --------------------------------------------------------------------------------------------------------------------
# Right sums


def test_the_sums_in_the_answers_are_right(everything: list[tuple[str, Conversation]]) -> None:
    checked = Counter[str]()
    for _, conversation in everything:
        for answer in said(conversation, "assistant"):
            found = equations(answer)
            assert answer.count("=") == len(found), f"{conversation['id']} has a sum that this test does not read"
            checked[conversation["kind"]] += len(found)
            for left, right in found:
                assert value(left) == Fraction(right), f"{conversation['id']}: {left} = {right}"
    assert checked["reasoning"] >= 60


def test_a_wrong_sum_would_be_found() -> None:
    assert equations("That is 2 × £1,200 = £2,400, and 5 − 0.5 × 3 = 3.5.") == [("2 × 1200", "2400"), ("5 − 0.5 × 3", "3.5")]
    assert value("5 − 0.5 × 3") == Fraction("3.5")
    assert value("60÷3×2") == 40
    assert value("120 + 135 − 110") == 145
    assert value("7 × 12") != 85


# --------------------------------------------------------------------------------------------------------------------
# Copies


def test_no_user_message_stands_there_twice(everything: list[tuple[str, Conversation]]) -> None:
    seen: dict[str, str] = {}
    for _, conversation in everything:
        for text in said(conversation, "user"):
            twin = seen.setdefault(normalised(text), conversation["id"])
            assert twin == conversation["id"], f"{twin} and {conversation['id']} have the same user message"


@pytest.mark.parametrize("roles", [("user",), ("assistant",)])
@pytest.mark.parametrize(("language", "size"), [("en", 5), ("zh", 3)])
def test_neither_side_is_like_one_of_another_split(
    everything: list[tuple[str, Conversation]], near_copies: Any, language: str, size: int, roles: tuple[str, ...]
) -> None:
    """Jaccard similarity of character n-grams below 0.3: of single user messages, and of all that a side says."""
    sides = [
        (split, conversation["id"], grams(text, size))
        for split, conversation in everything
        if conversation["language"] == language
        for text in {"\n".join(said(conversation, *roles)), *(said(conversation, *roles) if roles == ("user",) else ())}
    ]
    assert not near_copies(sides)


def test_the_measure_of_likeness_finds_a_copy_with_a_word_changed() -> None:
    one, two = (grams(f"A baker fills 7 trays with 12 {what} each. How many are that?", 5) for what in ("rolls", "buns"))
    assert similarity(one, two) > 0.3
    chinese, other = (grams(f"把这句话译成英文：我们明天{when}出发。", 3) for when in ("早上七点", "晚上八点"))
    assert similarity(chinese, other) > 0.3
