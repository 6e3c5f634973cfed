from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from llmkit.models import int8

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


def new(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**SHAPE, intermediate_size=64, num_labels=3)).eval()
    if kind == "llama":
        return LlamaForSequenceClassification(LlamaConfig(**SHAPE, intermediate_size=64, num_labels=3)).eval()
    shape = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
    return GPT2ForSequenceClassification(GPT2Config(**shape, num_labels=3)).eval()


@given(st.integers(2, 40), st.integers(1, 40), st.integers(1, 20), st.booleans(), st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_a_layer_is_near_its_original_and_rows_do_not_depend_on_each_other(
    inputs: int, outputs: int, rows: int, has_bias: bool, scale: float
) -> None:
    torch.manual_seed(inputs * 41 + outputs)
    layer = nn.Linear(inputs, outputs, bias=has_bias)
    given = scale * torch.randn(rows, inputs)
    quantised = int8.Int8Linear.of(layer)
    found = quantised(given)
    # Half a step of the weights and half a step of the activations, over all inputs.
    bound = inputs * given.abs().amax() * layer.weight.abs().amax() * 1.01 / 127
    assert (found - layer(given)).abs().max() <= bound
    torch.testing.assert_close(quantised(given[:1]), found[:1])
    zero = quantised(torch.zeros(2, inputs))
    torch.testing.assert_close(zero, layer(torch.zeros(2, inputs)))


def test_a_layer_of_gpt2_has_its_weight_turned() -> None:
    torch.manual_seed(0)
    layer, given = Conv1D(24, 16), torch.randn(5, 3, 16)
    assert (int8.Int8Linear.of(layer)(given) - layer(given)).abs().max() < 0.02 * layer(given).abs().max() + 1e-3


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_a_quantised_model_comes_back_as_it_was_and_transformers_refuses_it(kind: str, tmp_path: Path) -> None:
    model = new(kind)
    ids = torch.randint(1, 50, (4, 7))
    with torch.inference_mode():
        before = model(ids).logits
    heads = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name in ("classifier", "score")}
    names = int8.quantise(model)
    assert len(names) >= 8
    assert not set(names) & heads and all(type(model.get_submodule(name)) is nn.Linear for name in heads)
    with torch.inference_mode():
        after = model(ids).logits
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max() + 0.01
    int8.save(model, tmp_path)
    again = int8.load(tmp_path, "AutoModelForSequenceClassification").eval()
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, after)
    with pytest.raises(OSError, match="no file named"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    model = new("bert")
    int8.quantise(model)
    int8.save(model, tmp_path)
    BertConfig(**{**SHAPE, "hidden_size": 16}, intermediate_size=64, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not fit the config"):
        int8.load(tmp_path, "AutoModelForSequenceClassification")
