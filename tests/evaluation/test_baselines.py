from __future__ import annotations

import numpy as np
import pytest

from llmkit.evaluation.baselines import majority, tfidf
from llmkit.tasks.text_classification import Example


def examples(pairs: list[tuple[str, str]]) -> list[Example]:
    return [Example(id=str(number), text=text, label=label, place="") for number, (text, label) in enumerate(pairs)]


def accuracy(predictions: list[dict[str, str]], test: list[Example]) -> float:
    return float(np.mean([guess["prediction"] == item.label for guess, item in zip(predictions, test, strict=True)]))


GOOD = ("味道真好", "非常喜欢", "很满意", "值得再来")
BAD = ("味道太差", "非常失望", "很糟糕", "不会再来")
SUBJECTS = ("这家店的面", "那本小说", "昨天的电影", "新买的鞋子", "酒店的房间", "老师的课", "外卖的汤", "楼下的咖啡")


def chinese(part: slice) -> list[Example]:
    """Unsegmented Chinese: no text is seen in both parts, what decides is inside a run of characters."""
    pairs = []
    for words, label in ((GOOD, "good"), (BAD, "bad")):
        pairs += [(f"{subject}{word}。", label) for subject in SUBJECTS[part] for word in words]
    return examples(pairs)


def test_the_majority_class_is_the_most_frequent_of_training_and_the_first_by_name_among_equals() -> None:
    train = examples([("a", "x"), ("b", "y"), ("c", "y")])
    test = examples([("d", "x"), ("e", "x")])
    found = majority(train, test)
    assert found.predictions == [{"prediction": "y"}] * 2
    assert "'y'" in found.detail
    assert majority(train[:2], test).predictions == [{"prediction": "x"}] * 2


def test_tfidf_beats_the_majority_on_unsegmented_chinese() -> None:
    train, test = chinese(slice(0, 5)), chinese(slice(5, 8))
    found = tfidf(train, test, seed=0)
    assert accuracy(majority(train, test).predictions, test) == 0.5
    assert accuracy(found.predictions, test) > 0.9


def test_tfidf_learns_words_and_pairs_of_words() -> None:
    pairs = [
        (f"{thing} was {'not ' if no else ''}{word}", "good" if (word == "fine") != no else "bad")
        for thing in ("it", "lunch", "that", "the room", "her song", "our trip")
        for word in ("fine", "dull")
        for no in (False, True)
    ]
    train, test = examples(pairs[:16]), examples(pairs[16:])
    assert accuracy(tfidf(train, test, seed=0).predictions, test) == 1.0


def test_tfidf_says_how_its_strength_was_chosen() -> None:
    found = tfidf(chinese(slice(0, 5)), chinese(slice(5, 6)), seed=0)
    assert "by 5-fold cross-validation" in found.detail
    assert "the same 40 examples" in found.detail
    alone = tfidf(examples([("good", "x"), ("bad", "y")]), examples([("good", "x")]), seed=0)
    assert "C = 1," in alone.detail
    assert alone.predictions == [{"prediction": "x"}]


@pytest.mark.parametrize("text", ["👍", "!!!", "…"])
def test_texts_without_a_single_word_are_no_crash(text: str) -> None:
    train = examples([(text, "x"), (text * 2, "y"), (text, "x"), (text * 2, "y"), (text, "x")])
    found = tfidf(train, train, seed=0)
    assert {row["prediction"] for row in found.predictions} <= {"x", "y"}


def test_the_same_seed_gives_the_same_predictions() -> None:
    train, test = chinese(slice(0, 4)), chinese(slice(4, 8))
    assert tfidf(train, test, seed=3) == tfidf(train, test, seed=3)
