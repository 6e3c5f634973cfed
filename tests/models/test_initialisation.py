"""The standard deviations of made weights, measured by kind: a rule that is written down and never applied is found here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from llmkit.errors import ConfigError
from llmkit.models.causal import new_causal_model

STD, LAYERS = 0.05, 4
_SHARED = {
    "vocab_size": 600,
    "hidden_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "initializer_range": STD,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_LLAMA = {**_SHARED, "num_key_value_heads": 2, "intermediate_size": 128}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 32},
    "gpt2": {**_SHARED, "n_positions": 64},
    "mixtral": {**_LLAMA, "num_local_experts": 4},
    "gpt_neox": {**_SHARED, "intermediate_size": 128},
}
RESIDUAL = (
    "o_proj.weight",
    "down_proj.weight",
    "experts.down_proj",
    "c_proj.weight",
    "attention.dense.weight",
    "4h_to_h.weight",
)
# Shares of the standard deviation: what cutting a normal at three of them leaves.
_KEPT = {"normal": 1.0, "uniform": 1.0, "truncated_normal": 0.98658}


def make(model_type: str, initialisation: str = "default", depth_scaled: bool = False, seed: int = 0, **more: Any) -> Any:
    config = CONFIG_MAPPING[model_type](**{**CONFIGS[model_type], **more})
    return new_causal_model(config, seed, initialisation, depth_scaled)


def deviations(model: Any) -> dict[str, float]:
    """Root mean square of each matrix; a padding row is none of it."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            values = weight.detach()
            rows = values[values.abs().sum(-1) > 0] if values.ndim == 2 else values
            found[name] = float(rows.square().mean().sqrt())
    return found


@pytest.mark.parametrize("depth_scaled", [False, True])
@pytest.mark.parametrize("distribution", _KEPT)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_matrix_has_the_deviation_of_its_kind(model_type: str, distribution: str, depth_scaled: bool) -> None:
    model = make(model_type, distribution, depth_scaled)
    found = deviations(model)
    assert sum(name.endswith(RESIDUAL) for name in found) == 2 * LAYERS
    for name, deviation in found.items():
        smaller = 1 / math.sqrt(2 * LAYERS) if depth_scaled and name.endswith(RESIDUAL) else 1.0
        assert deviation == pytest.approx(STD * smaller * _KEPT[distribution], rel=0.08), name
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.zeros_like(weight) if name.endswith("bias") else torch.ones_like(weight)), name


def test_the_shapes_differ_where_the_deviation_is_the_same() -> None:
    largest = {
        kind: float(make("llama", kind).lm_head.weight.detach().abs().max()) / STD
        for kind in ("normal", "uniform", "truncated_normal")
    }
    assert largest["uniform"] == pytest.approx(math.sqrt(3), rel=1e-3)
    assert 2.9 < largest["truncated_normal"] <= 3.0 < largest["normal"]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_depth_scaling_alone_leaves_all_else_as_the_architecture_has_it(model_type: str) -> None:
    plain, scaled = make(model_type).state_dict(), make(model_type, depth_scaled=True).state_dict()
    for name, weight in plain.items():
        assert torch.equal(weight, scaled[name]) != name.endswith(RESIDUAL), name
    for name, deviation in deviations(make(model_type, depth_scaled=True)).items():
        if name.endswith(RESIDUAL):  # also GPT-2's, which are small already: they are not scaled twice
            assert deviation == pytest.approx(STD / math.sqrt(2 * LAYERS), rel=0.05)


def test_gpt2_scales_with_depth_by_itself_unless_a_distribution_is_asked_for() -> None:
    name = "transformer.h.0.mlp.c_proj.weight"
    assert deviations(make("gpt2"))[name] == pytest.approx(STD / math.sqrt(2 * LAYERS), rel=0.05)
    assert deviations(make("gpt2", "normal"))[name] == pytest.approx(STD, rel=0.05)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (make("llama", "uniform", True, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tied_embeddings_are_drawn_once_and_the_padding_row_stays_zero() -> None:
    model = make("llama", "truncated_normal", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert float(model.model.embed_tokens.weight[2].detach().abs().sum()) == 0
    assert deviations(model)["model.embed_tokens.weight"] == pytest.approx(STD * _KEPT["truncated_normal"], rel=0.03)


@pytest.mark.parametrize(
    ("initialisation", "depth_scaled", "said"),
    [
        ("normal", False, "mamba draws A_log, conv1d in a way of its own"),
        ("default", True, "2 residual projections found in mamba"),
    ],
)
def test_an_architecture_that_the_rules_do_not_fit_is_refused(initialisation: str, depth_scaled: bool, said: str) -> None:
    config = CONFIG_MAPPING["mamba"](hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=8)
    with pytest.raises(ConfigError, match=said):
        new_causal_model(config, 0, initialisation, depth_scaled)
