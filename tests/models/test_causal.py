from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.errors import ConfigError
from llmkit.models.causal import causal_config, causal_skeleton, new_causal_model, parameter_counts
from llmkit.models.sizing import describe_parameters
from llmkit.pipeline.artefact import Artefact

BLOCK = 24
_SHARED = {"hidden_size": 32, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_SHARED, **_HEADS, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen3": {**_SHARED, **_HEADS, "intermediate_size": 64, "head_dim": 16},
    "mamba": {**_SHARED, "state_size": 8},
    "mixtral": {**_SHARED, **_HEADS, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **_SHARED,
        **_HEADS,
        "head_dim": 8,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
    },
}


@pytest.fixture(scope="module")
def loaded(tokenizer: Artefact) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer.directory)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, loaded: Any) -> Any:
    return new_causal_model(causal_config(request.param, ARCHITECTURES[request.param], loaded, BLOCK), seed=3)


@pytest.fixture(scope="module")
def batch(loaded: Any) -> torch.Tensor:
    ids = loaded.encode("Return the value of the first argument, and the rest. " * 8)
    return torch.tensor(ids[: 4 * BLOCK]).view(4, BLOCK)


def build(model_type: str, overrides: dict[str, Any], tokenizer: Any, block_size: int = BLOCK) -> Any:
    return new_causal_model(causal_config(model_type, overrides, tokenizer, block_size), seed=0)


def test_vocabulary_and_special_tokens_come_from_the_tokenizer(model: Any, loaded: Any) -> None:
    config = model.config
    assert config.vocab_size == len(loaded) == model.get_input_embeddings().num_embeddings
    assert model(torch.tensor([[1, 2]])).logits.shape[-1] == len(loaded)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        loaded.bos_token_id,
        loaded.eos_token_id,
        loaded.pad_token_id,
    )


def test_weights_are_float32(model: Any) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_one_step_of_training_lowers_the_loss(model: Any, batch: torch.Tensor) -> None:
    model.eval()  # GPT-2 has dropout
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(input_ids=batch, labels=batch).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after = model(input_ids=batch, labels=batch).loss
    assert after.item() < before.item() - 0.01


def test_a_new_model_knows_nothing(model: Any, batch: torch.Tensor, loaded: Any) -> None:
    with torch.no_grad():
        loss = float(model.eval()(input_ids=batch, labels=batch).loss)
    assert loss == pytest.approx(torch.log(torch.tensor(float(len(loaded)))).item(), abs=0.5)


def test_saved_and_loaded_it_gives_the_same_logits(model: Any, batch: torch.Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).logits, again.eval()(batch).logits)


def test_a_token_sees_nothing_after_it(model: Any, batch: torch.Tensor) -> None:
    changed = batch.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 300
    with torch.no_grad():
        first, second = model.eval()(batch).logits, model.eval()(changed).logits
    assert torch.allclose(first[:, :-1], second[:, :-1], atol=1e-5)
    assert not torch.allclose(first[:, -1], second[:, -1], atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(loaded: Any) -> None:
    config = causal_config("llama", ARCHITECTURES["llama"], loaded, BLOCK)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, second, other = (new_causal_model(config, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_context_is_the_block_unless_an_override_says_more(loaded: Any) -> None:
    assert causal_config("llama", ARCHITECTURES["llama"], loaded, 77).max_position_embeddings == 77
    assert causal_config("gpt2", ARCHITECTURES["gpt2"], loaded, 77).n_positions == 77
    for name in ("n_positions", "max_position_embeddings"):
        assert causal_config("gpt2", {**ARCHITECTURES["gpt2"], name: 500}, loaded, 77).n_positions == 500
    longer = {**ARCHITECTURES["llama"], "max_position_embeddings": 500}
    assert causal_config("llama", longer, loaded, 77).max_position_embeddings == 500


@pytest.mark.parametrize(("model_type", "field"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_a_block_longer_than_the_context_is_refused(loaded: Any, model_type: str, field: str) -> None:
    with pytest.raises(ConfigError, match=f"block_size: 24 is more than the model's {field} of 23"):
        causal_config(model_type, {**ARCHITECTURES[model_type], field: 23}, loaded, BLOCK)


def test_names_that_an_architecture_maps_to_its_own_are_overrides_too(loaded: Any) -> None:
    config = causal_config("gpt2", {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}, loaded, BLOCK)
    assert (config.n_embd, config.n_layer) == (48, 3)


@pytest.mark.parametrize(("wrong", "right"), [("lama", "llama"), ("qwen-3", "qwen3"), ("gpt_2", "gpt2")])
def test_an_unknown_architecture_is_refused_with_the_nearest_name(loaded: Any, wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"no causal language model '{wrong}'.*{right}"):
        causal_config(wrong, {}, loaded, BLOCK)


def test_an_encoder_is_no_causal_architecture(loaded: Any) -> None:
    with pytest.raises(ConfigError, match="no causal language model 'vit'"):
        causal_config("vit", {}, loaded, BLOCK)


def test_every_unknown_override_is_named_with_the_nearest_at_once(loaded: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        causal_config("llama", {"hiden_size": 32, "num_layers": 2}, loaded, BLOCK)
    assert "no field 'hiden_size'; did you mean 'hidden_size'?" in str(refused.value)
    assert "no field 'num_layers'" in str(refused.value)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"hidden_size": 30, "num_attention_heads": 4}),
        ("gpt2", {"n_embd": 30, "n_head": 4}),
        ("llama", {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 3}),
        ("llama", {"hidden_size": 32, "num_attention_heads": 0}),
        ("llama", {"hidden_size": "wide"}),
        ("llama", {"hidden_size": 0}),
        ("llama", {"num_hidden_layers": -1}),
        ("llama", {"hidden_act": "gelo"}),
    ],
)
def test_sizes_that_give_no_model_are_refused_and_not_crashed_on(
    loaded: Any, model_type: str, overrides: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="config_overrides"):
        build(model_type, {**ARCHITECTURES[model_type], **overrides}, loaded)


def test_a_head_width_of_its_own_need_not_divide_the_hidden_size(loaded: Any) -> None:
    model = build("qwen3", {**ARCHITECTURES["qwen3"], "hidden_size": 30, "head_dim": 6}, loaded)
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, len(loaded))


def test_a_vocabulary_below_the_tokenizers_is_refused_and_one_above_is_padding(loaded: Any) -> None:
    with pytest.raises(ConfigError, match="vocab_size: the model has 500, the tokenizer needs 512"):
        causal_config("llama", {**ARCHITECTURES["llama"], "vocab_size": 500}, loaded, BLOCK)
    assert causal_config("llama", {**ARCHITECTURES["llama"], "vocab_size": 576}, loaded, BLOCK).vocab_size == 576


def test_shared_parameters_are_counted_once(loaded: Any) -> None:
    apart, tied = (
        parameter_counts(build("llama", {**ARCHITECTURES["llama"], "tie_word_embeddings": tie}, loaded))
        for tie in (False, True)
    )
    assert apart["embedding"] == tied["embedding"] == len(loaded) * 32
    assert apart["total"] - tied["total"] == len(loaded) * 32


def test_the_parts_of_a_model_add_up_and_are_where_they_belong(model: Any) -> None:
    counts = parameter_counts(model)
    assert sum(counts[part] for part in ("embedding", "attention", "mlp", "norm", "head", "other")) == counts["total"]
    assert counts["total"] == sum(weights.numel() for weights in model.parameters())
    assert counts == parameter_counts(causal_skeleton(model.config))
    if model.config.model_type != "mamba":
        assert counts["other"] == 0 and counts["attention"] and counts["mlp"] and counts["norm"]


def test_of_experts_a_token_uses_the_chosen_ones(loaded: Any) -> None:
    counts = parameter_counts(build("mixtral", ARCHITECTURES["mixtral"], loaded))
    assert counts["total"] - counts["active"] == 2 * 2 * (3 * 32 * 48)  # in each of two layers two of four experts rest
    assert "of which a token uses" in describe_parameters(counts)


def test_a_skeleton_of_any_size_takes_no_memory(loaded: Any) -> None:
    sizes = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672}
    skeleton = causal_skeleton(causal_config("llama", {**sizes, "num_key_value_heads": 8}, loaded, BLOCK))
    assert parameter_counts(skeleton)["total"] > 6e10
    assert {weights.device.type for weights in skeleton.parameters()} == {"meta"}
