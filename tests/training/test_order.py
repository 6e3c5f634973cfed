from __future__ import annotations

import tracemalloc
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import default_data_collator

from llmkit.tasks.features import padding_waste
from llmkit.training.order import DIGEST, Digesting, LengthGrouped, OrderedSamples, chained, permute, sample_ids

seeds = st.integers(-5, 2**63)


def whole(n: int, seed: int, epoch: int) -> list[int]:
    return permute(np.arange(n), n, seed, epoch).tolist()


@given(st.integers(1, 3000), seeds, st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(whole(n, seed, epoch)) == list(range(n))


@given(st.integers(1, 3000), seeds, st.integers(0, 50), st.lists(st.integers(0, 10**9), max_size=20))
@settings(max_examples=100, deadline=None)
def test_an_index_goes_to_one_place_whoever_asks(n: int, seed: int, epoch: int, asked: list[int]) -> None:
    order = whole(n, seed, epoch)
    indices = np.array([index % n for index in asked], dtype=np.int64)
    assert permute(indices, n, seed, epoch).tolist() == [order[index] for index in indices]


@pytest.mark.parametrize("n", [50, 64, 1000])
def test_seeds_and_epochs_give_orders_of_their_own(n: int) -> None:
    orders = {tuple(whole(n, seed, epoch)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_every_order_of_few_samples_occurs() -> None:
    orders = {tuple(whole(3, seed, 0)) for seed in range(300)}
    assert orders == set(permutations(range(3)))


def test_the_order_looks_random() -> None:
    """Every sample takes every place about equally often (chi-squared), and neighbours do not stay neighbours."""
    n, keys = 20, 4000
    counts = np.zeros((n, n))
    for seed in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, seed, 0)] += 1
    expected = keys / n
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    freedom = (n - 1) ** 2
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5
    order = np.array(whole(3000, 0, 0))
    assert abs(np.corrcoef(np.arange(3000), order)[0, 1]) < 0.08
    assert (np.abs(np.diff(order)) == 1).sum() < 15


def test_a_million_million_samples_need_no_memory() -> None:
    n = 10**12
    tracemalloc.start()
    found = permute(np.array([0, 1, n // 2, n - 1]), n, 0, 0)
    first = sample_ids(0, 5000, n, 0).tolist()
    steps = sample_ids(10**9, 512, n, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert len(set(found.tolist())) == 4
    assert len(set(first)) == 5000
    assert all(0 <= index < n for index in [*found.tolist(), *first, *steps.tolist()])
    assert np.mean(first) == pytest.approx(n / 2, rel=0.05)


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 3), st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_steps_walk_through_epochs_that_each_hold_every_sample_once(n: int, batch: int, epochs: int, seed: int) -> None:
    steps = -(-n * (epochs + 1) // batch)
    ids = np.concatenate([sample_ids(step, batch, n, seed) for step in range(steps)])
    for epoch in range(epochs + 1):
        assert ids[epoch * n : (epoch + 1) * n].tolist() == whole(n, seed, epoch)


@given(
    st.integers(1, 500),
    st.integers(0, 40),
    st.sampled_from([(1, 24, 1), (24, 1, 1), (2, 3, 4), (4, 6, 1), (3, 2, 4), (2, 12, 1)]),
)
@settings(max_examples=150, deadline=None)
def test_a_step_holds_the_same_samples_whatever_the_split(n: int, step: int, split: tuple[int, int, int]) -> None:
    """As accelerate deals them out: micro-batch after micro-batch, to one rank after the other."""
    ranks, micro, accumulation = split
    dealt = sample_ids(step, 24, n, 7).reshape(accumulation, ranks, micro)
    fine = sample_ids(step * accumulation, ranks * micro, n, 7)
    assert dealt[0].reshape(-1).tolist() == fine.tolist()
    single = np.concatenate([sample_ids(24 * step + position, 1, n, 7) for position in range(24)])
    assert single.tolist() == dealt.reshape(-1).tolist()


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 120), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_grouping_by_length_moves_samples_only_within_stretches_of_steps(n: int, batch: int, steps: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 40, size=n)
    plain = OrderedSamples(Endless(), n, steps, batch, seed)
    grouped = LengthGrouped(plain, lengths)
    stretch = max(1, min(64, n // batch // 4))
    for start in range(0, steps, stretch):
        part = range(start, min(start + stretch, steps))
        theirs, ours = ([order.of_step(step) for step in part] for order in (plain, grouped))
        assert sorted(np.concatenate(ours).tolist()) == sorted(np.concatenate(theirs).tolist())
        bounds = sorted((int(lengths[ids].min()), int(lengths[ids].max())) for ids in ours)
        assert all(lower[1] <= upper[0] for lower, upper in pairwise(bounds)), "steps do not overlap in length"


def test_grouping_by_length_saves_padding_and_begins_anywhere() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=4000)
    plain = OrderedSamples(Endless(), 4000, 500, 16, 3)
    grouped = LengthGrouped(plain, lengths)
    waste = [padding_waste(lengths, [order.of_step(step) for step in range(500)]) for order in (plain, grouped)]
    assert waste[0] > 0.3 and waste[1] < 0.05
    again = LengthGrouped(OrderedSamples(Endless(), 4000, 500, 16, 3), lengths)
    assert [again.of_step(step).tolist() for step in (499, 130, 129)] == [
        grouped.of_step(step).tolist() for step in (499, 130, 129)
    ]
    assert len({tuple(grouped.of_step(step).tolist()) for step in range(500)}) == 500


def test_the_order_is_the_one_that_runs_were_made_with() -> None:
    """A change here changes every run that is resumed: raise the version of the stage with it."""
    assert whole(12, 0, 0) == [6, 0, 2, 1, 11, 9, 4, 10, 3, 5, 7, 8]
    assert whole(12, 1, 2) == [5, 2, 11, 6, 4, 3, 9, 1, 10, 7, 8, 0]


class Endless:
    """Samples that say which of them were read; more than any memory holds."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


def test_a_run_resumed_at_sample_10_to_the_9_reads_nothing_before_it() -> None:
    n, batch, step = 10**12, 512, 2_000_000
    samples = Endless()
    run = OrderedSamples(samples, n, steps=10**9, global_batch=batch, seed=3)  # type: ignore[arg-type]
    run.resume_at(step)
    got = run.__getitems__(list(range(batch)))
    assert got == sample_ids(step, batch, n, 3).tolist() == samples.read


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_the_digest_of_a_step_does_not_depend_on_how_it_is_shared_out(sizes: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    samples = [{"input_ids": torch.from_numpy(draw.integers(0, 9, 4))} for _ in range(sum(sizes))]
    whole = int(Digesting(default_data_collator)(samples)[DIGEST])
    order = [samples[index] for index in draw.permutation(len(samples))]
    parts, start = 0, 0
    for size in sizes:
        parts += int(Digesting(default_data_collator)(order[start : start + size])[DIGEST])
        start += size
    assert chained("", parts) == chained("", whole)
    changed = [{"input_ids": sample["input_ids"].clone()} for sample in samples]
    changed[0]["input_ids"][0] += 1
    assert chained("", int(Digesting(default_data_collator)(changed)[DIGEST])) != chained("", whole)
