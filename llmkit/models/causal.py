"""A causal language model from `model_type` and `config_overrides`."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmkit.errors import ConfigError
from llmkit.models.initialisation import initialise

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

# A model's context length has one name per family; these are the ones that set the size of a table or a mask.
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


def causal_config(
    model_type: str, overrides: dict[str, Any], tokenizer: PreTrainedTokenizerFast, block_size: int
) -> PretrainedConfig:
    """A model config of any causal architecture, with vocabulary and special tokens from the tokenizer.

    Args:
        overrides: fields of that architecture's config class, such as `hidden_size`.
        block_size: length of a training sample in tokens; the context length, where `overrides` does not set it.

    Raises:
        ConfigError: no such causal architecture, no such field, or values that the architecture refuses.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = difflib.get_close_matches(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError([f"model_type: transformers knows no causal language model {model_type!r}{hint}"])
    config_class = CONFIG_MAPPING[model_type]
    own_names = config_class().to_dict()
    known = {*own_names, *config_class.attribute_map, *_read_undeclared(config_class)}
    problems = []
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"config_overrides: {config_class.__name__} has no field {key!r}{hint}")
    if problems:
        raise ConfigError(problems)
    values = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **{name: block_size for name in _CONTEXT_NAMES if name in own_names},
        **{config_class.attribute_map.get(name, name): value for name, value in overrides.items()},
    }
    try:
        config = config_class(**values)
    except Exception as failure:
        raise ConfigError([f"config_overrides: {config_class.__name__} refuses them: {failure}"]) from failure
    check_config(config, tokenizer, block_size)
    return config


def _read_undeclared(config_class: type[PretrainedConfig]) -> set[str]:
    """Fields that a model reads though its config class does not declare them, such as `head_dim` of Qwen3-MoE."""
    source = inspect.getsource(sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__module__])
    return set(re.findall(r'getattr\(\s*(?:self\.)?config,\s*"(\w+)"', source))


def check_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, block_size: int) -> None:
    """Refuse a config that cannot train on samples of `block_size` tokens of this tokenizer.

    Raises:
        ConfigError: naming all that is wrong.
    """
    problems = []
    if config.vocab_size < len(tokenizer):
        problems.append(f"vocab_size: the model has {config.vocab_size}, the tokenizer needs {len(tokenizer)}")
    for name in _CONTEXT_NAMES:
        context = getattr(config, name, None)
        if isinstance(context, int) and context < block_size:
            problems.append(f"block_size: {block_size} is more than the model's {name} of {context}")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            problems.append(f"config_overrides: {name} is {value}, must be at least 1")
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    own_head_width = getattr(config, "head_dim", None)
    if heads and width and not own_head_width and width % heads:
        problems.append(f"config_overrides: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    groups = getattr(config, "num_key_value_heads", None)
    if heads and groups and heads % groups:
        problems.append(f"config_overrides: num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
    if problems:
        raise ConfigError(problems)


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as failure:
            raise ConfigError([f"config_overrides: {type(config).__name__} gives no model: {failure}"]) from failure
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
