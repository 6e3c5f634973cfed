from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.tokens.mixture import CYCLE, Mixture

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@given(WEIGHTS, st.integers(0, 3 * CYCLE))
@settings(max_examples=60, deadline=None)
def test_at_every_position_each_source_has_had_its_share(weights: list[float], position: int) -> None:
    mixture = Mixture(weights)
    counts = mixture.counts(position)
    assert sum(counts) == position
    for count, weight in zip(counts, weights, strict=True):
        share = weight / sum(weights)
        rounding = 1 + position / CYCLE  # shares are whole numbers of positions in a cycle
        assert abs(count - share * position) <= rounding + 0.5 + len(weights) / 2


@given(WEIGHTS)
@settings(max_examples=30, deadline=None)
def test_each_source_is_counted_through_without_a_gap_across_cycles(weights: list[float]) -> None:
    mixture = Mixture(weights)
    length = CYCLE + CYCLE // 3
    sources, numbers = mixture.at(np.arange(length))
    for source, count in enumerate(mixture.counts(length)):
        assert (numbers[sources == source] == np.arange(count)).all()


def test_shares_of_a_long_run_are_those_asked_for() -> None:
    mixture = Mixture([0.7, 0.2, 0.1])
    assert np.array(mixture.counts(10**12)) / 10**12 == pytest.approx([0.7, 0.2, 0.1], abs=1 / CYCLE)
    assert mixture.quotas.sum() == CYCLE


def test_a_position_far_off_costs_nothing_and_is_exact() -> None:
    mixture = Mixture([3, 1])
    sources, numbers = mixture.at(np.array([10**15, 10**15 + 1, 10**15 + 2, 10**15 + 3]))
    before = mixture.counts(10**15)
    assert sorted(sources.tolist()) == [0, 0, 0, 1]
    assert sorted(numbers[sources == 0].tolist()) == [before[0], before[0] + 1, before[0] + 2]
    assert numbers[sources == 1].tolist() == [before[1]]


def test_only_the_ratio_of_weights_counts() -> None:
    assert (Mixture([1, 3]).sources == Mixture([0.25, 0.75]).sources).all()


def test_a_weight_that_gives_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one part in 65,536"):
        Mixture([1, 1e-9])
