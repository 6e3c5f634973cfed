from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.samples import IGNORED, TokenBlocks
from llmkit.tokens.shards import TokenStream

EOS = 7


class Plain:
    """A stream of the numbers 100, 101, ..., so that a token tells its position."""

    index = SimpleNamespace(eos_token_id=EOS)

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, stop: int) -> Any:
        return np.arange(100 + start, 100 + min(stop, self.length), dtype=np.int64)


def blocks_of(length: int, block_size: int) -> TokenBlocks:
    return TokenBlocks(Plain(length), block_size)  # type: ignore[arg-type]


@given(st.integers(1, 400), st.integers(2, 60))
@example(2, 2)
@example(33, 33)
@example(34, 33)
@settings(max_examples=300, deadline=None)
def test_every_token_but_the_first_is_a_target_exactly_once(length: int, block_size: int) -> None:
    blocks = blocks_of(length, block_size)
    targets, context = [], []
    for index in range(len(blocks)):
        sample = blocks[index]
        for position in range(1, block_size):
            target = int(sample["labels"][position])
            if target != IGNORED:
                targets.append(target)
                context.append(int(sample["input_ids"][position - 1]))
    assert targets == list(range(101, 100 + length))
    assert context == [target - 1 for target in targets], "each is predicted from the token before it"


@given(st.integers(2, 400), st.integers(2, 60))
@settings(max_examples=300, deadline=None)
def test_blocks_have_one_shape_and_the_last_is_filled_with_eos_that_is_not_learned(length: int, block_size: int) -> None:
    blocks = blocks_of(length, block_size)
    for index in range(len(blocks)):
        sample = blocks[index]
        assert sample["input_ids"].shape == sample["labels"].shape == (block_size,)
        assert sample["input_ids"].dtype == sample["labels"].dtype
        filled = sample["labels"] == IGNORED
        assert bool((sample["input_ids"][filled] == EOS).all())
        assert bool((sample["input_ids"][~filled] == sample["labels"][~filled]).all())
        assert not bool(filled[0])
        assert index == len(blocks) - 1 or not bool(filled.any())
        assert bool((~filled[1:]).any()), "no block without a target"


def test_a_stream_of_one_token_has_no_samples() -> None:
    assert len(blocks_of(1, 8)) == 0


def test_real_shards_give_the_whole_corpus_as_targets(tokens: Artefact) -> None:
    stream = TokenStream(tokens.directory, "train")
    blocks = TokenBlocks(stream, 32)
    learned = np.concatenate([blocks[index]["labels"][1:].numpy() for index in range(len(blocks))])
    assert learned[learned != IGNORED].tolist() == stream.read(1, len(stream)).tolist()


@given(st.integers(2, 200), st.integers(2, 30), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_filling_up_adds_only_blocks_without_targets(length: int, block_size: int, multiple: int) -> None:
    plain, filled = blocks_of(length, block_size), blocks_of(length, block_size)
    filled.fill_up_to_multiple(multiple)
    assert len(filled) % multiple == 0
    assert 0 <= len(filled) - len(plain) < multiple
    for index in range(len(plain), len(filled)):
        assert bool((filled[index]["labels"][1:] == IGNORED).all()), "position 0 is never a target"
        assert bool((filled[index]["input_ids"][1:] == EOS).all())
