"""The expected numbers are worked out by hand from the definitions of SQuAD and CMRC 2018."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.tasks.answer_scores import best_threshold, is_chinese, normalised_answer, score, segments


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        # Articles, case and punctuation go: "sargasso sea" twice.
        ("the Sargasso Sea", ["Sargasso sea."], 1, 1),
        # Bags {in, 1859} and {1859}: precision 1/2, recall 1, F1 = 2 * 1/2 / (3/2) = 2/3.
        ("in 1859", ["1859"], 0, 2 / 3),
        # The best over the answers: {santa, clara, california} against {levis, stadium} shares nothing; against
        # {santa, clara} 2 words: precision 2/3, recall 1, F1 = 4/5.
        ("Santa Clara, California", ["Levi's Stadium", "Santa Clara"], 0, 4 / 5),
        # A bag counts: "new york new" against "new york" shares 2 of 3 and 2 of 2: F1 = 4/5.
        ("New York, new", ["New York"], 0, 4 / 5),
        # Punctuation is taken out without a blank in its place: "1,000" is "1000", "co-op" is "coop".
        ("1,000 co-op", ["1000 coop"], 1, 1),
        # Exact match and F1 may have their best at different answers, and no word in common is 0.
        ("red", ["blue", "green"], 0, 0),
        # No answer: both agree, or nothing is right.
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        # An answer that is nothing but an article is no answer (evaluate-v2.0.py leaves it out).
        ("the", ["a"], 1, 1),
        ("Paris", ["the", "Paris"], 1, 1),
    ],
)
def test_english_answers_are_scored_by_the_definition_of_squad(
    prediction: str, answers: list[str], exact: float, f1: float
) -> None:
    assert score(prediction, answers, chinese=False) == (exact, pytest.approx(f1))


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("马尾藻海", ["马尾藻海。"], 1, 1),
        # 3 characters of 4 in one piece, 3 of 3: precision 3/4, recall 1, F1 = 6/7.
        ("在北京市", ["北京市"], 0, 6 / 7),
        # One piece counts, not the bag: 北…京 has pieces of 1; precision 1/3, recall 1/2, F1 = 2 * 1/6 / (5/6) = 2/5.
        ("北方京", ["北京"], 0, 2 / 5),
        # Words of other scripts are one segment each: [1999, 年] against [1999, 年, 5, 月]: precision 1, recall 1/2, F1 = 2/3.
        ("1999年", ["1999年5月"], 0, 2 / 3),
        # Punctuation of the list goes before counting, so that pieces join over it; case makes no difference.
        ("《红楼梦》，ABC", ["红楼梦abc"], 1, 1),
        ("上海", ["北京"], 0, 0),
        ("", [], 1, 1),
        ("北京", [], 0, 0),
        ("", ["北京"], 0, 0),
    ],
)
def test_chinese_answers_are_scored_by_the_definition_of_cmrc_2018(
    prediction: str, answers: list[str], exact: float, f1: float
) -> None:
    assert score(prediction, answers, chinese=True) == (exact, pytest.approx(f1))


def test_segments_are_han_characters_and_words() -> None:
    assert segments("GPT-2 有 1.5 亿个参数") == ["gpt2", "有", "1.5", "亿", "个", "参", "数"]
    assert segments("。，") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("谁写了它？", True),
        ("DNA是什么？", True),
        ("What does 道 mean?", False),
        ("Who?", False),
        ("1999?", False),
        ("", False),
    ],
)
def test_the_script_of_a_question_decides_which_definition_holds(text: str, expected: bool) -> None:
    assert is_chinese(text) is expected


def test_normalising_takes_out_what_squad_takes_out() -> None:
    assert normalised_answer(" The  man-made,  AN\tanswer\nthere: a theory ") == "manmade answer there theory"


questions = st.lists(
    st.tuples(st.integers(-6, 6), st.floats(0, 1), st.sampled_from([0.0, 1.0])).map(
        lambda item: (float(item[0]), 0.0 if item[2] else item[1], item[2])
    ),
    min_size=1,
    max_size=30,
)


@given(questions)
@settings(max_examples=300, deadline=None)
def test_the_threshold_is_the_best_that_there_is(found: list[tuple[float, float, float]]) -> None:
    differences, answered, abstained = (np.array(column) for column in zip(*found, strict=True))

    def mean(threshold: float) -> float:
        return float(np.where(differences <= threshold, answered, abstained).mean())

    chosen = best_threshold(differences, answered, abstained)
    assert mean(chosen) == pytest.approx(max(mean(limit) for limit in [-np.inf, *differences]))
    assert np.abs(differences - chosen).min() >= 0.5, "it lies between differences, so that rounding decides nothing"
