"""The embedded reviews: hand-written, of the sizes that are documented, and clean across splits."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

import pytest

from llmkit.resources import PACKAGE
from llmkit.tasks.tables import read_dataset

SPLITS = {"train": 822, "validation": 198, "test": 252}
LABELS = {"negative", "neutral", "positive"}
HAN = re.compile(r"[\u3400-\u9fff]")


@pytest.fixture(scope="module")
def reviews() -> dict[str, list[dict[str, Any]]]:
    return {split: [row.values for row in read_dataset("llmkit/reviews", None, split).rows] for split in SPLITS}


@pytest.fixture(scope="module")
def everything(reviews: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(split, review) for split, found in reviews.items() for review in found]


def normalised(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def grams(text: str, size: int) -> frozenset[str]:
    plain = normalised(text)
    return frozenset(plain[start : start + size] for start in range(max(1, len(plain) - size + 1)))


def test_the_splits_have_their_fixed_sizes(reviews: dict[str, list[dict[str, Any]]]) -> None:
    assert {split: len(found) for split, found in reviews.items()} == SPLITS
    assert sum(SPLITS.values()) >= 1200


def test_every_review_has_a_text_a_label_a_language_a_subject_and_an_id_of_its_own(
    everything: list[tuple[str, dict[str, Any]]],
) -> None:
    assert all(set(review) == {"id", "text", "label", "language", "subject"} for _, review in everything)
    assert all(
        isinstance(value, str) and value.strip() == value != "" for _, review in everything for value in review.values()
    )
    assert {review["label"] for _, review in everything} == LABELS
    assert len({review["id"] for _, review in everything}) == len(everything)
    assert all(review["text"] == unicodedata.normalize("NFC", review["text"]) for _, review in everything)


def test_a_third_is_chinese_and_each_is_in_the_language_that_it_says(everything: list[tuple[str, dict[str, Any]]]) -> None:
    languages = Counter(review["language"] for _, review in everything)
    assert set(languages) == {"en", "zh"}
    assert languages["zh"] / len(everything) == pytest.approx(1 / 3, abs=0.04)
    for _, review in everything:
        assert bool(HAN.search(review["text"])) == (review["language"] == "zh"), review["id"]


def test_there_are_at_least_twelve_subjects_of_equal_size_in_a_language(everything: list[tuple[str, dict[str, Any]]]) -> None:
    subjects = Counter((review["language"], review["subject"]) for _, review in everything)
    assert len({subject for _, subject in subjects}) >= 12
    assert {count for (language, _), count in subjects.items() if language == "en"} == {70}
    assert {count for (language, _), count in subjects.items() if language == "zh"} == {72}


def test_the_card_tells_the_counts_that_are_there(reviews: dict[str, list[dict[str, Any]]]) -> None:
    card = (PACKAGE / "data" / "reviews" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w*) *\| (\w+) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\| *(\d+) *\|$", card, flags=re.MULTILINE)
    assert len(rows) == 7
    for language, label, *told in rows:
        counts = [
            sum(
                review["language"] in (language or review["language"]) and label in (review["label"], "all")
                for review in found
            )
            for found in reviews.values()
        ]
        assert [int(number) for number in told] == [*counts, sum(counts)], (language, label)


def test_every_split_holds_every_label_of_every_language_in_like_shares(
    reviews: dict[str, list[dict[str, Any]]], everything: list[tuple[str, dict[str, Any]]]
) -> None:
    whole = Counter((review["language"], review["label"]) for _, review in everything)
    for split, found in reviews.items():
        here = Counter((review["language"], review["label"]) for review in found)
        for kind, count in whole.items():
            assert here[kind] / len(found) == pytest.approx(count / len(everything), abs=0.05), (split, kind)


def test_no_label_is_a_majority(everything: list[tuple[str, dict[str, Any]]]) -> None:
    labels = Counter(review["label"] for _, review in everything)
    assert max(labels.values()) / len(everything) < 0.45


def test_no_text_stands_there_twice(everything: list[tuple[str, dict[str, Any]]]) -> None:
    seen: dict[str, str] = {}
    for _, review in everything:
        twin = seen.setdefault(normalised(review["text"]), review["id"])
        assert twin == review["id"], f"{twin} and {review['id']} are the same text"


@pytest.mark.parametrize(("language", "size"), [("en", 5), ("zh", 3)])
def test_no_review_is_like_one_of_another_split(
    everything: list[tuple[str, dict[str, Any]]], near_copies: Any, language: str, size: int
) -> None:
    """Jaccard similarity of character n-grams below 0.3, found through the n-grams that two reviews share."""
    found = [
        (split, review["id"], grams(review["text"], size)) for split, review in everything if review["language"] == language
    ]
    assert not near_copies(found)


def test_the_measure_of_likeness_finds_a_copy_with_a_word_changed() -> None:
    one, two = (
        grams(f"The soup was cold when it came, and the waiter {word} about it.", 5) for word in ("shrugged", "laughed")
    )
    assert len(one & two) / len(one | two) > 0.3
    chinese, other = (
        grams("汤端上来的时候已经凉了，服务员只是笑笑。", 3),
        grams("汤端上来的时候已经凉了，服务员还在看手机。", 3),
    )
    assert len(chinese & other) / len(chinese | other) > 0.3
