"""A causal language model from `model_type` and `config_overrides`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.models.custom import check_config as check_config
from llmkit.models.custom import custom_config, new_model
from llmkit.models.initialisation import initialise

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

_AUTO_CLASS = "AutoModelForCausalLM"


def causal_config(
    model_type: str, overrides: dict[str, Any], tokenizer: PreTrainedTokenizerFast, block_size: int
) -> PretrainedConfig:
    """A model config of any causal architecture; see `custom.custom_config`.

    Args:
        block_size: length of a training sample in tokens.
    """
    return custom_config(model_type, overrides, tokenizer, block_size, _AUTO_CLASS)


def new_causal_model(
    config: PretrainedConfig, seed: int, initialisation: str = "default", depth_scaled: bool = False
) -> PreTrainedModel:
    """A model with random weights in float32, the same for the same seed.

    Args:
        initialisation, depth_scaled: see `initialisation.initialise`. The default is the architecture's own of transformers:
            mostly normal with `initializer_range`, zeros for biases, ones for norms.

    Raises:
        ConfigError: the architecture refuses the config or the initialisation.
    """
    model = new_model(config, seed, _AUTO_CLASS)
    initialise(model, initialisation, depth_scaled, seed)
    return model


def causal_skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a config without memory for its weights, whatever its size.

    Raises:
        ConfigError: the architecture refuses the config.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as failure:
        raise ConfigError([f"config_overrides: {type(config).__name__} gives no model: {failure}"]) from failure


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameters: `total` (shared ones once), and the parts that add up to it.

    The parts are `embedding` (tables of tokens and positions), `attention`, `mlp` (experts and their routers with it), `norm`,
    `head` (an output layer with weights of its own) and `other`. `active` are those that a token goes through: of experts the
    chosen ones.
    """
    counts = dict.fromkeys(("total", "active", "embedding", "attention", "mlp", "norm", "head", "other"), 0)
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    experts = getattr(model.config, "num_local_experts", None) or getattr(model.config, "num_experts", None)
    chosen = getattr(model.config, "num_experts_per_tok", None)
    for name, parameter in model.named_parameters():
        module, size = modules[name.rpartition(".")[0]], _size(parameter)
        if isinstance(module, torch.nn.Embedding):
            part = "embedding"
        elif module is head:
            part = "head"
        elif "Norm" in type(module).__name__:
            part = "norm"
        elif re.search(r"attn|attention", name):
            part = "attention"
        elif re.search(r"mlp|feed_forward|ffn|expert|moe|\.fc[12]\.|intermediate|output\.dense", name):
            part = "mlp"
        else:
            part = "other"
        counts[part] += size
        counts["total"] += size
        counts["active"] += size * chosen // experts if experts and chosen and ".experts." in name else size
    return counts


def _size(parameter: torch.nn.Parameter) -> int:
    """The number of values of a parameter, also where ZeRO-3 leaves none of them in this process."""
    return getattr(parameter, "ds_numel", parameter.numel())
