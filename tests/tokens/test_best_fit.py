from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.tokens.best_fit import best_fit_decreasing


def free_space_one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """What best-fit decreasing leaves free, by its definition: piece after piece, into the fullest row that takes it."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, space in enumerate(free) if space >= length]
        if not fitting:
            free.append(capacity)
            fitting = [len(free) - 1]
        free[min(fitting, key=free.__getitem__)] -= length
    return sorted(free)


@given(
    st.integers(1, 24).flatmap(lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=80)))
)
@settings(max_examples=400, deadline=None)
def test_rows_are_those_of_placing_the_pieces_one_by_one(given_rows: tuple[int, list[int]]) -> None:
    capacity, lengths = given_rows
    row_of = best_fit_decreasing(np.array(lengths, dtype=np.int32), capacity)
    used = np.bincount(row_of, weights=lengths).astype(int) if lengths else np.empty(0, dtype=int)
    assert (used > 0).all(), "rows are numbered without a gap"
    assert sorted((capacity - used).tolist()) == free_space_one_by_one(lengths, capacity)


def test_a_million_documents_fill_their_rows() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1, 1_000_000).clip(1, 2048).astype(np.int32)
    row_of = best_fit_decreasing(lengths, 2048)
    used = np.bincount(row_of, weights=lengths)
    assert used.max() <= 2048
    assert used.sum() == lengths.sum()
    assert len(used) == -(-int(lengths.sum()) // 2048) or 1 - used.mean() / 2048 < 0.001
    assert (best_fit_decreasing(lengths, 2048) == row_of).all()
