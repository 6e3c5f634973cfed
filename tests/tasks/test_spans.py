from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.tasks import spans
from llmkit.tasks.features import Features, Ragged
from llmkit.tasks.spans import Answers, Span, best_pairs, decode, probabilities


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.integers(1, 7),
    st.integers(1, 14),
    st.integers(0, 2**32 - 1),
    st.sampled_from([40, 4_000_000]),
)
@settings(max_examples=200, deadline=None)
def test_the_best_pairs_are_those_of_a_search_through_all(
    lengths: list[int], count: int, longest: int, seed: int, at_once: int
) -> None:
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    start, end = generator.normal(size=(2, offsets[-1])).astype(np.float32)
    allowed = generator.random(offsets[-1]) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_AT_ONCE", at_once)
        tokens, sums = best_pairs(start, end, allowed, offsets, count, longest)
    for window, length in enumerate(lengths):
        base = offsets[window]
        every = [
            (float(start[base + first] + end[base + last]), first, last)
            for first in range(length)
            for last in range(first, min(first + longest, length))
            if allowed[base + first] and allowed[base + last]
        ]
        every = sorted(every, reverse=True)[:count]
        assert sums[window, : len(every)].tolist() == [value for value, _, _ in every]
        assert tokens[window, : len(every)].tolist() == [[first, last] for _, first, last in every]
        assert np.isneginf(sums[window, len(every) :]).all()


@dataclass
class Text:
    context: str
    question: str = "?"
    answers: list[tuple[str, int]] = field(default_factory=list)


def window_features(places: list[list[tuple[int, int]]], examples: list[int]) -> Features:
    """Windows of a null slot and tokens with these characters."""
    begins, ends = ([[-1, *(place[side] for place in window)] for window in places] for side in (0, 1))
    return Features(
        {
            "char_start": Ragged.of(begins),
            "char_end": Ragged.of(ends),
            "example": np.array(examples),
            "null": np.zeros(len(places), dtype=np.int64),
        }
    )


def test_an_answer_is_the_best_over_the_windows_and_none_the_least() -> None:
    features = window_features([[(0, 3), (3, 7)], [(3, 7), (7, 9)]], [0, 0])
    start = np.array([5, 1, 2, 1, 4, 0], dtype=np.float32)
    end = np.array([5, 0, 3, 1, 4, 9], dtype=np.float32)
    (found,) = decode([Text("abc def g")], features, start, end, 2, 1)
    assert found.null == 2, "of 10 and 2"
    assert [(span.start, span.end, span.score) for span in found.spans] == [(8, 9, 9), (4, 7, 8)], "7 to 9 without the blank"
    assert found.difference == -7
    assert not found.is_none(-7) and found.is_none(-7.5) and not found.is_none(None)


def test_equal_pieces_of_overlapping_windows_are_one_answer() -> None:
    features = window_features([[(0, 1)], [(0, 1)]], [0, 0])
    (found,) = decode([Text("a")], features, np.array([0, 1, 0, 2.0]), np.zeros(4), 5, 3)
    assert [(span.start, span.end, span.score) for span in found.spans] == [(0, 1, 2)]


def test_a_window_without_a_token_of_the_context_has_no_answer_whatever_the_threshold() -> None:
    (found,) = decode([Text("\u200b")], window_features([[]], [0]), np.zeros(1), np.zeros(1), 3, 3)
    assert found.spans == [] and found.is_none(None) and found.is_none(1e9)
    assert probabilities(found, with_null=False)[1] == 1


def test_probabilities_are_shares_of_answers_and_of_none() -> None:
    shares, null = probabilities(Answers([Span(0, 1, np.log(3.0)), Span(1, 2, 0.0)], null=np.log(4.0)), with_null=True)
    assert shares.tolist() == pytest.approx([3 / 8, 1 / 8]) and null == pytest.approx(4 / 8)
    shares, null = probabilities(Answers([Span(0, 1, 1000.0), Span(1, 2, 1000.0)], null=0.0), with_null=False)
    assert shares.tolist() == pytest.approx([0.5, 0.5]) and null == 0
