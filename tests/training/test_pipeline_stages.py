"""Which models can be cut into stages, and that their stages compute what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.training.pipeline_parallel import idle_share
from llmkit.training.pipeline_stages import cut, keep_only, layers_of_stages

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}


def model_of(kind: str, **fields: Any) -> Any:
    config = AutoConfig.for_model(kind)
    for name, value in {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, **fields}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:4]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@given(layers=st.integers(1, 200), stages=st.integers(1, 64))
def test_layers_are_divided_evenly_and_in_order(layers: int, stages: int) -> None:
    parts = layers_of_stages(layers, stages)
    assert [number for part in parts for number in part] == list(range(layers))
    assert len(parts) == stages
    sizes = [len(part) for part in parts]
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox", "olmo2"])
@pytest.mark.parametrize("stages", [2, 3])
def test_stages_one_after_the_other_are_the_model(kind: str, stages: int) -> None:
    model = model_of(kind).eval()
    ids = torch.randint(64, (2, 16))
    expected = model(ids, labels=ids)
    parts = cut(model, stages)
    hidden: torch.Tensor = ids
    for part in parts[:-1]:
        hidden = part.eval()(hidden)
    assert torch.equal(parts[-1].eval()(hidden), expected.logits)
    parts[-1].targets = 30
    torch.testing.assert_close(parts[-1](hidden, ids), expected.loss)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_processes_together_keep_every_parameter_once_under_its_name(kind: str) -> None:
    names = [name for name, _ in model_of(kind).named_parameters()]
    kept: list[str] = []
    for position in (0, 1):
        model = model_of(kind)
        keep_only(model, cut(model, 4)[position::2])
        kept += [name for name, _ in model.named_parameters()]
    tied = ["lm_head.weight"] if kind == "gpt2" else []  # on the first and on the last
    assert sorted(kept) == sorted([*names, *tied])


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("mixtral", {}, "mixtral has experts"),
        ("gemma2", {}, "the layers of this gemma2 are of several kinds"),
        ("opt", {}, "opt is no plain stack of decoder layers"),
        ("granite", {"embedding_multiplier": 12.0}, "granite does more between its layers than hand hidden states on"),
        ("llama", {"num_hidden_layers": 2}, "2 layers cannot be divided among 3 stages"),
    ],
)
def test_what_cannot_be_cut_is_refused(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cut(model_of(kind, **fields), 3)


def test_the_share_of_waiting_is_that_of_the_schedule() -> None:
    assert idle_share(1, 7) == 0
    assert idle_share(4, 4) == 3 / 7
    assert idle_share(4, 4, parts=2) == 3 / 11
