"""Both packings, with and without document masking, on tokens that each have a number of their own and so tell their place."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import ArtefactError
from llmkit.tokens.packing import packing_report
from llmkit.tokens.samples import IGNORED, PackedDocuments, PackedSamples, TokenBlocks
from llmkit.tokens.shards import Index, ShardWriter, TokenStream

FILL = 0  # of the samples; the documents' last tokens are numbers like all others

PACKINGS = pytest.mark.parametrize("packing", [TokenBlocks, PackedDocuments])
MASKING = pytest.mark.parametrize("masking", [False, True])
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@contextmanager
def stream_of(sizes: list[int], per_shard: int = 60) -> Iterator[tuple[TokenStream, list[list[int]]]]:
    numbers = iter(range(1, 1 << 16))
    documents = [[next(numbers) for _ in range(size)] for size in sizes]
    with tempfile.TemporaryDirectory() as place:
        with ShardWriter(Path(place), "train", "uint16", per_shard) as writer:
            for ids in documents:
                writer.add(ids, 0)
        Index("no tokenizer", FILL, 1 << 16, "uint16", {"train": writer.shards}).save(Path(place))
        yield TokenStream(Path(place), "train"), documents


def rows_of(samples: PackedSamples) -> list[dict[str, list[int]]]:
    return [{name: values.tolist() for name, values in samples[index].items()} for index in range(len(samples))]


@PACKINGS
@MASKING
@given(sizes=SIZES, block_size=st.integers(2, 30))
@settings(max_examples=100, deadline=None)
def test_no_token_is_dropped_and_each_that_can_be_learned_is_learned_once(
    packing: type[PackedSamples], masking: bool, sizes: list[int], block_size: int
) -> None:
    with stream_of(sizes) as (stream, documents):
        samples = packing(stream, block_size, masking)
        rows = rows_of(samples)
    everything = list(chain(*documents))
    first_of_document = {ids[0] for ids in documents}
    if len(everything) == 1 and packing is TokenBlocks:
        assert not rows, "one token has nothing to be learned from"
        return
    assert {token for row in rows for token in row["input_ids"]} - {FILL} == set(everything)
    targets = [token for row in rows for token in row["labels"][1:] if token != IGNORED]
    assert len(targets) == len(set(targets)) == samples.targets
    missing = set(everything) - set(targets)
    if masking:
        assert missing == first_of_document
    elif packing is TokenBlocks:
        assert missing == {everything[0]}
    else:
        assert missing == {row["input_ids"][0] for row in rows} & first_of_document


@PACKINGS
@MASKING
@given(sizes=SIZES, block_size=st.integers(2, 30))
@settings(max_examples=100, deadline=None)
def test_a_target_stands_behind_the_token_before_it_or_begins_a_document_behind_the_end_of_another(
    packing: type[PackedSamples], masking: bool, sizes: list[int], block_size: int
) -> None:
    with stream_of(sizes) as (stream, documents):
        rows = rows_of(packing(stream, block_size, masking))
    firsts, lasts = {ids[0] for ids in documents}, {ids[-1] for ids in documents}
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"]) == block_size
        for (before, here), label in zip(pairwise(row["input_ids"]), row["labels"][1:], strict=True):
            assert label in (here, IGNORED)
            if label != IGNORED:
                assert before == here - 1 or (not masking and before in lasts and here in firsts)


@PACKINGS
@given(sizes=SIZES, block_size=st.integers(2, 30))
@settings(max_examples=100, deadline=None)
def test_positions_start_again_with_each_document_and_where_the_filling_begins(
    packing: type[PackedSamples], sizes: list[int], block_size: int
) -> None:
    with stream_of(sizes) as (stream, documents):
        rows = rows_of(packing(stream, block_size, document_masking=True))
        assert all("position_ids" not in row for row in rows_of(packing(stream, block_size)))
    number = {token: place for place, ids in enumerate(documents) for token in ids} | {FILL: -1}
    for row in rows:
        expected = [0]
        for before, here in pairwise(row["input_ids"]):
            expected.append(expected[-1] + 1 if number[before] == number[here] else 0)
        assert row["position_ids"] == expected


@MASKING
@given(sizes=SIZES, block_size=st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_best_fit_cuts_no_document_that_fits_into_a_row(masking: bool, sizes: list[int], block_size: int) -> None:
    with stream_of(sizes) as (stream, documents):
        samples = PackedDocuments(stream, block_size, masking)
        rows = rows_of(samples)
        assert rows == rows_of(PackedDocuments(stream, block_size, masking)), "the same again"
    whole = {tuple(ids) for ids in documents if len(ids) <= block_size}
    for ids in whole:
        holding = [row["input_ids"] for row in rows if ids[0] in row["input_ids"]]
        assert len(holding) == 1
        place = holding[0].index(ids[0])
        assert tuple(holding[0][place : place + len(ids)]) == ids


def test_samples_do_not_depend_on_the_size_of_shards() -> None:
    sizes = np.random.default_rng(0).integers(1, 90, 200).tolist()
    for packing in (TokenBlocks, PackedDocuments):
        with stream_of(sizes, per_shard=100) as (cut, _), stream_of(sizes, per_shard=1 << 20) as (whole, _):
            assert len(cut.arrays) > 20
            assert rows_of(packing(cut, 32, document_masking=True)) == rows_of(packing(whole, 32, document_masking=True))


def test_blocks_that_fill_up_a_batch_have_no_target_with_masking_either() -> None:
    with stream_of([5, 6]) as (stream, _):
        samples = TokenBlocks(stream, 4, document_masking=True)
        before = len(samples)
        samples.fill_up_to_multiple(8)
        assert len(samples) == 8 > before
        assert all(set(row["labels"][1:]) == {IGNORED} for row in rows_of(samples)[before:])


def test_boundaries_that_are_missing_or_too_few_are_refused() -> None:
    with stream_of([3, 4]) as (stream, _):
        path = Path(stream.offsets[0].filename)
        np.save(path, np.asarray([0, 7]))
        with pytest.raises(ArtefactError, match="does not hold the boundaries of the 2 documents"):
            TokenStream(path.parent, "train")
        path.unlink()
        with pytest.raises(ArtefactError, match=r"train-00000\.offsets\.npy cannot be read"):
            TokenStream(path.parent, "train")


@PACKINGS
@MASKING
@given(sizes=SIZES, block_size=st.integers(2, 30), run=st.integers(1, 99))
@settings(max_examples=150, deadline=None)
def test_the_report_says_what_counting_sample_by_sample_says(
    packing: type[PackedSamples], masking: bool, sizes: list[int], block_size: int, run: int
) -> None:
    if sum(sizes) < 2:
        return
    with stream_of(sizes) as (stream, documents):
        samples = packing(stream, block_size, masking)
        report = packing_report(samples, run)
        rows = [[token for token in row["input_ids"] if token != FILL] for row in rows_of(samples)]
    number = {token: place for place, ids in enumerate(documents) for token in ids}
    held = sum(map(len, rows))
    assert report.tokens == sum(sizes)
    assert report.documents == len(sizes)
    assert report.documents_split == sum(not any(set(ids) <= set(row) for row in rows) for ids in documents)
    assert report.samples == len(rows)
    assert report.dropped == report.tokens - len({token for row in rows for token in row}) == 0
    assert report.crossing_share * held == pytest.approx(sum(len(row) for row in rows if len({number[t] for t in row}) > 1))
    assert report.padding_share == pytest.approx(1 - held / len(rows) / block_size)
    assert report.epochs == run / len(rows)
    assert ("masked" in report.line()) == masking


def test_a_token_that_no_row_holds_is_reported_as_dropped() -> None:
    with stream_of([5, 6, 7]) as (stream, _):
        samples = PackedDocuments(stream, 10)
        samples.lengths = samples.lengths - 1
        assert packing_report(samples, 1).dropped == 3
        blocks = TokenBlocks(stream, 10)
        blocks._blocks -= 1
        assert packing_report(blocks, 1).dropped == 18 - 10


def test_the_report_of_blocks_is_the_same_a_few_documents_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.random.default_rng(0).integers(1, 50, 300).tolist()
    with stream_of(sizes) as (stream, _):
        samples = TokenBlocks(stream, 16)
        whole = packing_report(samples, 1)
        monkeypatch.setattr("llmkit.tokens.shards._AT_ONCE", 2)
        assert packing_report(samples, 1) == whole
