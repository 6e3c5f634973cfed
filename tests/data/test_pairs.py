"""The embedded sentence pairs: hand-written, of documented sizes, learnable from train, and clean across splits."""

from __future__ import annotations

import json
import re
import statistics
import unicodedata
from collections import Counter
from typing import Any

import pytest

from llmkit.resources import PACKAGE

SPLITS = {"train": 594, "validation": 66, "test": 110}
SUBJECTS = {
    "feelings",
    "food",
    "health",
    "home",
    "nature",
    "school",
    "shopping",
    "time",
    "travel",
    "weather",
    "work",
}
HOME = PACKAGE / "data" / "pairs"
LETTER = re.compile(r"[A-Za-z]+")
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
HAN = re.compile(r"[\u3400-\u9fff]")
ENGLISH = re.compile(r"""[A-Za-zÀ-ÿ0-9 ,.;:?!'"-]+""")
CHINESE = re.compile(r"[\u3400-\u9fffA-Za-z0-9，。？！；：、“”‘’（）《》·…—]+")


def words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def hans(text: str) -> list[str]:
    return HAN.findall(text)


def is_long(pair: dict[str, Any]) -> bool:
    return len(words(pair["en"])) >= 15


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (HOME / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def everything(pairs: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(split, pair) for split, found in pairs.items() for pair in found]


def normalised(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def grams(text: str, size: int) -> frozenset[str]:
    plain = normalised(text)
    return frozenset(plain[start : start + size] for start in range(max(1, len(plain) - size + 1)))


def test_the_splits_have_their_fixed_sizes(pairs: dict[str, list[dict[str, Any]]]) -> None:
    assert {split: len(found) for split, found in pairs.items()} == SPLITS
    whole = sum(SPLITS.values())
    assert whole >= 620
    assert SPLITS["test"] >= 90
    for split, share in {"train": 0.77, "validation": 0.08, "test": 0.15}.items():
        assert SPLITS[split] / whole == pytest.approx(share, abs=0.01), split


def test_every_pair_has_two_sides_a_subject_and_an_id_of_its_own(everything: list[tuple[str, dict[str, Any]]]) -> None:
    assert all(set(pair) == {"id", "en", "zh", "subject"} for _, pair in everything)
    assert all(isinstance(value, str) and value.strip() == value != "" for _, pair in everything for value in pair.values())
    assert all(re.fullmatch(rf"{pair['subject']}-\d{{3}}", pair["id"]) for _, pair in everything)
    assert len({pair["id"] for _, pair in everything}) == len(everything)
    assert all(value == unicodedata.normalize("NFC", value) for _, pair in everything for value in pair.values())


def test_each_side_is_written_in_its_own_script(everything: list[tuple[str, dict[str, Any]]]) -> None:
    for _, pair in everything:
        assert ENGLISH.fullmatch(pair["en"]) and LETTER.search(pair["en"]), pair["id"]
        assert CHINESE.fullmatch(pair["zh"]) and HAN.search(pair["zh"]), pair["id"]
        strays = set(LETTER.findall(pair["zh"])) - set(LETTER.findall(pair["en"]))
        assert not strays, f"{pair['id']}: {strays} stand in the Chinese side alone"


def test_both_sides_tell_ask_and_exclaim_alike(everything: list[tuple[str, dict[str, Any]]]) -> None:
    for _, pair in everything:
        assert ("?" in pair["en"]) == ("？" in pair["zh"]), pair["id"]
        assert ("!" in pair["en"]) == ("！" in pair["zh"]), pair["id"]
        assert ('"' in pair["en"]) == ("“" in pair["zh"]), pair["id"]
        assert pair["zh"].count("“") == pair["zh"].count("”") == pair["en"].count('"') / 2, pair["id"]
        assert re.search(r"[.?!]\"?\.?$", pair["en"]) and re.search(r"[。？！]”?$|”。$", pair["zh"]), pair["id"]


def test_the_lengths_of_the_two_sides_fit(everything: list[tuple[str, dict[str, Any]]]) -> None:
    ratios = {pair["id"]: len(hans(pair["zh"])) / len(words(pair["en"])) for _, pair in everything}
    assert min(ratios.values()) >= 0.5, min(ratios, key=lambda name: ratios[name])
    assert max(ratios.values()) <= 3.0, max(ratios, key=lambda name: ratios[name])
    assert 1.2 <= statistics.median(ratios.values()) <= 1.5


def test_most_sentences_are_short_and_about_a_sixth_is_long(pairs: dict[str, list[dict[str, Any]]]) -> None:
    lengths = [len(words(pair["en"])) for found in pairs.values() for pair in found]
    assert min(lengths) >= 3
    assert max(lengths) <= 25
    for split, found in pairs.items():
        assert sum(map(is_long, found)) / len(found) == pytest.approx(1 / 6, abs=0.05), split


def test_every_split_holds_every_subject_in_the_same_share(pairs: dict[str, list[dict[str, Any]]]) -> None:
    for split, found in pairs.items():
        counts = Counter(pair["subject"] for pair in found)
        assert set(counts) == SUBJECTS
        assert set(counts.values()) == {SPLITS[split] // len(SUBJECTS)}, split


def test_the_card_tells_the_counts_that_are_there(
    pairs: dict[str, list[dict[str, Any]]], everything: list[tuple[str, dict[str, Any]]]
) -> None:
    card = (HOME / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\|$", card, flags=re.MULTILINE)
    assert {subject for subject, *_ in rows} == {*SUBJECTS, "all", "long"}
    for subject, *told in rows:
        counts = [
            sum(subject in (pair["subject"], "all") or (subject == "long" and is_long(pair)) for pair in found)
            for found in pairs.values()
        ]
        assert [int(number) for number in told] == [*counts, sum(counts)], subject
    for key, count in (("en", words), ("zh", hans)):
        found = re.search(rf"^\| `{key}` .* (\d+) to (\d+) \D*\(median (\d+)\)", card, flags=re.MULTILINE)
        assert found, key
        lengths = [len(count(pair[key])) for _, pair in everything]
        assert [int(number) for number in found.groups()] == [min(lengths), max(lengths), statistics.median(lengths)], key
    numbers = {
        "questions": sum("?" in pair["en"] for _, pair in everything),
        "exclamations": sum("!" in pair["en"] for _, pair in everything),
        "different English words": len({word for _, pair in everything for word in words(pair["en"])}),
        "different Chinese characters": len({han for _, pair in everything for han in hans(pair["zh"])}),
        "sentence pairs": len(everything),
    }
    for what, number in numbers.items():
        assert f"{number:,} {what}" in card, what
    # The Chinese summary has the same totals.
    assert all(f"{number} 对" in card for number in (len(everything), *SPLITS.values()))


def test_the_words_of_validation_and_test_are_in_train(pairs: dict[str, list[dict[str, Any]]]) -> None:
    known_words = {word for pair in pairs["train"] for word in words(pair["en"])}
    known_hans = {han for pair in pairs["train"] for han in hans(pair["zh"])}
    for split in ("validation", "test"):
        english = [word for pair in pairs[split] for word in words(pair["en"])]
        chinese = [han for pair in pairs[split] for han in hans(pair["zh"])]
        assert sum(word in known_words for word in english) / len(english) >= 0.8, split
        assert sum(han in known_hans for han in chinese) / len(chinese) >= 0.85, split
        # Of the different ones, too: a few frequent words do not carry the share.
        assert len(known_hans.intersection(chinese)) / len(set(chinese)) >= 0.8, split


@pytest.mark.parametrize("side", ["en", "zh"])
def test_no_side_stands_there_twice(everything: list[tuple[str, dict[str, Any]]], side: str) -> None:
    seen: dict[str, str] = {}
    for _, pair in everything:
        twin = seen.setdefault(normalised(pair[side]), pair["id"])
        assert twin == pair["id"], f"{twin} and {pair['id']} have the same {side} side"


def test_no_sentence_is_a_filled_template(everything: list[tuple[str, dict[str, Any]]]) -> None:
    """No two English sides of one length differ in a single word, wherever they lie."""
    frames: dict[tuple[str, ...], str] = {}
    for _, pair in everything:
        found = words(pair["en"])
        for number in range(len(found)):
            frame = (*found[:number], "*", *found[number + 1 :])
            assert frames.setdefault(frame, pair["id"]) == pair["id"], f"{frames[frame]} and {pair['id']}: {' '.join(frame)}"


@pytest.mark.parametrize(("side", "size"), [("en", 5), ("zh", 3)])
def test_no_side_is_like_one_of_another_split(
    everything: list[tuple[str, dict[str, Any]]], near_copies: Any, side: str, size: int
) -> None:
    """Jaccard similarity of character n-grams below 0.3, found through the n-grams that two sides share."""
    found = [(split, pair["id"], grams(pair[side], size)) for split, pair in everything]
    assert not near_copies(found)


def test_the_measure_of_likeness_finds_a_copy_with_a_word_changed() -> None:
    one, two = (grams(f"My sister left her {thing} on the train yesterday.", 5) for thing in ("umbrella", "suitcase"))
    assert len(one & two) / len(one | two) > 0.3
    chinese, other = (grams(f"昨天我妹妹把{thing}忘在火车上了。", 3) for thing in ("雨伞", "行李箱"))
    assert len(chinese & other) / len(chinese | other) > 0.3
