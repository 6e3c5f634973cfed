"""The statistics of a comparison: against their definitions, by simulation, and by the laws that they obey."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmkit.evaluation.comparison import (
    bootstrap_cells,
    compare_accuracy,
    compare_means,
    compare_seeds,
    detectable_mean,
    detectable_share,
    half_width,
    holm,
    sentence,
    standard_error,
)
from llmkit.evaluation.intervals import bootstrap
from llmkit.evaluation.seeds import two_way


def test_holm_on_a_worked_example() -> None:
    """Four tests: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not become smaller than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """Marcus, Peritz and Gabriel 1976: a test is rejected where each set that it belongs to is, by the smallest p in it."""
    everyone = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(everyone, size)]
    smallest = {chosen: min(1.0, len(chosen) * min(p_values[place] for place in chosen)) for chosen in sets}
    expected = [max(smallest[chosen] for chosen in sets if place in chosen) for place in everyone]
    assert holm(p_values) == pytest.approx(expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_shares_that_change_places_change_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = np.array(pairs).T
    there, back = compare_accuracy(ours, theirs, "it"), compare_accuracy(theirs, ours, "it")
    assert there.difference == -back.difference and there.p_value == back.p_value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    same = compare_accuracy(ours, ours, "it")
    assert (same.difference, same.p_value) == (0, 1) and not same.is_clear


numbers = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.integers(0, 5)), min_size=2, max_size=30)


@given(numbers, st.booleans())
@settings(max_examples=40, deadline=None)
def test_means_that_change_places_change_the_sign(rows: list[tuple[float, float, int]], grouped: bool) -> None:
    ours, theirs, groups = (np.array(column) for column in zip(*rows, strict=True))
    within = groups if grouped else None
    there, back = (compare_means(*pair, "it", "f1", 0, within) for pair in ((ours, theirs), (theirs, ours)))
    assert there.difference == pytest.approx(-back.difference) and there.p_value == back.p_value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    same = compare_means(ours, ours, "it", "f1", 0, within)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1) and not same.is_clear


@given(numbers, st.tuples(st.floats(0, 3), st.integers(2, 6)), st.tuples(st.floats(0, 3), st.integers(2, 6)))
@settings(max_examples=40, deadline=None)
def test_seeds_that_change_places_change_the_sign(
    rows: list[Any], first: tuple[float, int], second: tuple[float, int]
) -> None:
    ours, theirs, groups = (np.array(column) for column in zip(*rows, strict=True))
    there = compare_seeds(ours, theirs, "it", "f1", [first, second], groups)
    back = compare_seeds(theirs, ours, "it", "f1", [second, first], groups)
    assert there.difference == pytest.approx(-back.difference) and there.p_value == pytest.approx(back.p_value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert compare_seeds(ours, ours, "it", "f1", [first, second], groups).p_value == 1


@given(numbers)
@settings(max_examples=40, deadline=None)
def test_without_luck_in_training_the_interval_is_that_of_the_paired_t_test(rows: list[Any]) -> None:
    ours, theirs, _ = (np.array(column) for column in zip(*rows, strict=True))
    found = compare_seeds(ours, theirs, "it", "f1", [(0.0, 3), (0.0, 3)])
    if np.ptp(ours - theirs) > 1e-6:
        expected = stats.ttest_rel(ours, theirs)
        assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-9)


def test_intervals_and_p_values_of_means_are_those_of_scipy() -> None:
    generator = np.random.default_rng(9)
    ours, theirs = generator.beta(3, 1, 90), generator.beta(2, 1, 90)
    found = compare_means(ours, theirs, "it", "f1", 0)
    drawn = stats.bootstrap((ours - theirs,), np.mean, method="percentile", n_resamples=9999, rng=1)
    assert (found.low, found.high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.01)
    flipped = stats.permutation_test((ours - theirs,), np.mean, permutation_type="samples", n_resamples=9999, rng=1)
    assert found.p_value == pytest.approx(flipped.pvalue, abs=0.02)
    few = compare_means(ours[:9], theirs[:9], "it", "f1", 0)
    exact = stats.permutation_test((ours[:9] - theirs[:9],), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert few.p_value == pytest.approx(exact.pvalue, abs=0.03)


def right(generator: np.random.Generator, n: int, both: float, ours: float, theirs: float) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers: both are right on that share, and only one of them on those."""
    kind = generator.choice(4, size=n, p=[both, ours, theirs, 1 - both - ours - theirs])
    return np.isin(kind, (0, 1)), np.isin(kind, (0, 2))


def test_the_interval_of_a_paired_difference_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    found = [compare_accuracy(*right(generator, 200, 0.7, 0.13, 0.07), "it") for _ in range(1000)]
    assert 0.93 <= np.mean([item.low <= 0.06 <= item.high for item in found]) <= 0.97


@pytest.mark.slow
def test_so_does_the_bootstrap_interval_of_means() -> None:
    generator = np.random.default_rng(2)
    held = []
    for _ in range(1000):
        sums = np.stack([generator.exponential(0.1, 200) - 0.05, np.ones(200)], axis=1)
        low, high = bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 1], 0, resamples=400)
        held.append(low <= 0.05 <= high)
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(("n", "discordant"), [(200, 0.2), (500, 0.05), (60, 0.4)])
def test_the_smallest_difference_of_shares_is_found_four_times_in_five(n: int, discordant: float) -> None:
    difference = detectable_share(discordant, n)
    assert difference is not None and 0 < difference < 1
    discordant = max(discordant, difference)
    generator = np.random.default_rng(3)
    split = (0.5, (discordant + difference) / 2, (discordant - difference) / 2)
    found = [compare_accuracy(*right(generator, n, *split), "it").is_clear for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.035)


@pytest.mark.slow
def test_the_smallest_difference_of_means_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(4)
    difference = detectable_mean(0.3 / np.sqrt(150))
    assert difference == pytest.approx(2.8016 * 0.3 / np.sqrt(150), rel=1e-4)
    found = [compare_means(generator.normal(difference, 0.3, 150), np.zeros(150), "it", "f1", 0).is_clear for _ in range(250)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_what_so_few_could_not_show_is_said() -> None:
    assert detectable_share(0.5, 5) is None, "of 5 examples, all 5 on one side have p = 0.0625"
    assert detectable_share(0.0, 6) is not None
    assert detectable_mean(0.0) is None
    wide, narrow = detectable_share(0.2, 100, alpha=0.01), detectable_share(0.2, 100)
    assert wide is not None and narrow is not None and wide > narrow


def test_a_standard_error_of_groups_is_that_of_their_sums() -> None:
    values = np.random.default_rng(5).normal(size=60)
    assert standard_error(values) == pytest.approx(stats.sem(values))
    doubled, groups = np.repeat(values, 3), np.repeat(np.arange(60) * 2, 3)  # numbers may be left out
    assert standard_error(doubled, groups) == pytest.approx(stats.sem(values))


def test_drawing_cells_is_drawing_examples() -> None:
    generator = np.random.default_rng(6)
    counts, kinds = np.array([50, 30, 20]), np.array([[0.0, 1], [1, 1], [3, 1]])
    examples = np.repeat(kinds, counts, axis=0)
    means = [examples[generator.integers(0, 100, 100), 0].mean() for _ in range(4000)]
    low, high = bootstrap_cells(counts, kinds, lambda totals: totals[:, 0] / totals[:, 1], 0)
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_sentences_name_who_is_better(lower_is_better: bool) -> None:
    values = np.linspace(0, 1, 50)
    found = compare_means(values + 0.5, values, "runs/a", "mse", 0, lower_is_better=lower_is_better)
    kind = "worse" if lower_is_better else "better"
    told = sentence(found, 50, lower_is_better, subject="runs/b")
    assert told.startswith(f"runs/b is {kind} than runs/a in mse: +0.500 (+0.500 to +0.500, p = ")
    assert found.sentence.startswith(f"{kind.capitalize()} than runs/a in mse: +0.500")
    none = sentence(compare_means(values, values, "runs/a", "mse", 0), 50, subject="runs/b", p_is="p corrected for 2 tests")
    assert none == (
        "No evidence of a difference between runs/b and runs/a in mse: +0.000 (+0.000 to +0.000, p corrected for 2 tests = 1, "
        "n = 50)."
    )


# --------------------------------------------------------------------------------------------------------------------
# Seeds and examples


def drawn(generator: np.random.Generator, seeds: int, n: int, of_seeds: float, of_rest: float = 0.3) -> np.ndarray:
    """Values with mean 0.7 by the model of `two_way`."""
    parts = (generator.normal(0, of_seeds, (seeds, 1)), generator.normal(0, 0.3, (1, n)))
    return 0.7 + sum(parts) + generator.normal(0, of_rest, (seeds, n))


def test_the_parts_of_the_variance_are_those_of_an_analysis_of_variance() -> None:
    values = drawn(np.random.default_rng(0), 4, 50, 0.2)
    found = two_way(values)
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    of_rest, of_seeds = (rest**2).sum() / (3 * 49), 50 * values.mean(axis=1).var(ddof=1)
    assert found["sd_sampling"] ** 2 == pytest.approx(of_rest / 50)
    assert found["sd_training"] ** 2 == pytest.approx((of_seeds - of_rest) / 50)
    assert found["sd"] ** 2 == pytest.approx(found["sd_sampling"] ** 2 + found["sd_training"] ** 2)
    assert found["mean"] == pytest.approx(values.mean())


@pytest.mark.parametrize("of_seeds", [0.0, 0.03, 0.2])
def test_the_interval_over_seeds_and_examples_holds_the_truth_and_the_parts_are_right(of_seeds: float) -> None:
    generator = np.random.default_rng(7)
    found = [two_way(drawn(generator, 4, 200, of_seeds)) for _ in range(1000)]
    assert 0.93 <= np.mean([item["low"] <= 0.7 <= item["high"] for item in found]) <= 0.975
    assert np.mean([item["sd_sampling"] ** 2 for item in found]) == pytest.approx(0.3**2 / 200, rel=0.05)
    beyond = np.mean([item["sd"] ** 2 - item["sd_sampling"] ** 2 for item in found])
    assert beyond == pytest.approx(of_seeds**2, rel=0.1, abs=3e-5)


def test_groups_of_examples_are_one_choice_each() -> None:
    values = drawn(np.random.default_rng(8), 3, 40, 0.1)
    groups = np.repeat(np.arange(40), 5)
    assert two_way(np.repeat(values, 5, axis=1), groups) == pytest.approx(two_way(values))


def test_seeds_that_agree_in_all_leave_nothing_to_luck() -> None:
    found = two_way(np.repeat(np.array([[0.0, 1.0, 1.0, 1.0]]), 3, axis=0))
    assert found["sd"] == found["sd_sampling"] == found["sd_training"] == 0
    assert (found["mean"] - found["low"]) == pytest.approx(half_width([(stats.sem([0, 1, 1, 1]) ** 2, 3)]))
