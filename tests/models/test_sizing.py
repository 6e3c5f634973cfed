"""Sizing by one number: the laws that its models keep."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import ConfigError
from llmkit.models.sizing import Shape, describe_ratio, parse_count, shape_of_depth, shape_of_size, size

VOCABULARIES = (512, 8192, 32_768, 50_257, 131_072)
sizes = st.floats(6, 11).map(lambda power: int(10**power))


@settings(deadline=None, max_examples=300)
@given(sizes, st.sampled_from(VOCABULARIES))
def test_the_number_asked_for_is_hit(num_params: int, vocab_size: int) -> None:
    """Within 5%; small models, and those that are hardly more than their vocabulary, come in coarser steps."""
    try:
        shape = shape_of_size(num_params, vocab_size)
    except ValueError:
        assert num_params < 40 * vocab_size
        return
    fine = num_params > 512 * vocab_size
    tolerance = 0.05 if fine and num_params > 50_000_000 else 0.07 if fine and num_params > 5_000_000 else 0.3
    assert abs(shape.parameters / num_params - 1) <= tolerance


@settings(deadline=None, max_examples=300)
@given(sizes, st.sampled_from(VOCABULARIES))
def test_sizes_divide_as_they_must(num_params: int, vocab_size: int) -> None:
    try:
        shape = shape_of_size(num_params, vocab_size)
    except ValueError:
        return
    assert shape.hidden_size == shape.num_attention_heads * shape.head_width
    assert shape.num_attention_heads % shape.num_key_value_heads == 0
    assert shape.intermediate_size % 16 == 0
    assert 8 / 3 * 0.9 < shape.intermediate_size / shape.hidden_size < 8 / 3 * 1.1


@settings(deadline=None, max_examples=300)
@given(sizes, sizes, st.sampled_from(VOCABULARIES))
def test_a_larger_number_never_gives_a_smaller_model(one: int, other: int, vocab_size: int) -> None:
    try:
        small, large = (shape_of_size(count, vocab_size) for count in sorted((one, other)))
    except ValueError:
        return
    assert small.parameters <= large.parameters


def test_depth_gives_the_shapes_that_are_known_by_it() -> None:
    assert (shape_of_depth(12, 50_257).hidden_size, shape_of_depth(24, 50_257).hidden_size) == (768, 1536)
    assert shape_of_depth(32, 50_257).hidden_size == 4096
    counts = [shape_of_depth(depth, 8192).parameters for depth in range(1, 100)]
    assert counts == sorted(counts)


@pytest.mark.parametrize("shape", [Shape(500, 48, 3), Shape(500, 320, 2), Shape(500, 2560, 2)])
def test_the_formula_counts_what_transformers_makes(shape: Shape) -> None:
    from transformers import LlamaConfig

    from llmkit.models.causal import causal_skeleton, parameter_counts

    config = LlamaConfig(vocab_size=500, **shape.overrides())
    assert parameter_counts(causal_skeleton(config))["total"] == shape.parameters


@pytest.mark.parametrize(
    ("text", "count"), [("125M", 125_000_000), ("1.5B", 1_500_000_000), ("800k", 800_000), ("1_000", 1000), ("7", 7)]
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "-5M", "125MB", "1e9", "much", "_"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size; write 125M"):
        size({}, 512, "set", text)


def test_too_small_and_too_large_are_refused_with_the_limit() -> None:
    with pytest.raises(ConfigError, match="too few for a vocabulary of 131,072; the smallest model with it has 4,"):
        size({}, 131_072, "set", "1M")
    with pytest.raises(ConfigError, match="beyond the rules of sizing, which end at 400,000,000,000"):
        size({}, 512, "set", "2000B")


def test_the_run_is_what_the_rules_say() -> None:
    """DeepSeek LLM's rules by hand, for 125M: 1.5e18 operations give 256,000 tokens a batch and a rate of 1.7e-3."""
    sizing = size({}, 50_257, "set", "125M")
    values = sizing.settings
    assert values["learning_rate"] == pytest.approx(0.3118 * 1.54e18**-0.1250, rel=0.03)
    assert values["global_batch_size"] * values["block_size"] == 2 ** round(math.log2(0.2920 * 1.54e18**0.3271))
    tokens = values["max_steps"] * values["global_batch_size"] * values["block_size"]
    assert tokens == pytest.approx(20 * sizing.shape.parameters, rel=0.001)
    assert [line.partition(".")[0] for line in sizing.derivation] == [str(number) for number in range(1, 13)]


def test_rules_go_on_from_what_is_set() -> None:
    plain, given_batch = size({}, 8192, "set", "30M"), size({"global_batch_size": 7, "block_size": 100}, 8192, "set", "30M")
    assert not {"global_batch_size", "block_size"} & given_batch.settings.keys()
    assert given_batch.settings["max_steps"] == math.ceil(20 * plain.shape.parameters / 700)


@pytest.mark.parametrize(
    ("tokens", "said"), [(100, "more tokens would learn more"), (2000, "about what"), (9000, "used much")]
)
def test_the_ratio_of_tokens_to_parameters_says_what_it_means(tokens: int, said: str) -> None:
    assert said in describe_ratio(tokens, 100)
