"""A model from `model_type` and `config_overrides`, with any head."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import CONFIG_MAPPING

from llmkit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

# A model's context length has one name per family; these are the ones that set the size of a table or a mask.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
)
"""Architectures whose first position has the number after that of the padding token."""

_KINDS = {
    "AutoModelForCausalLM": "causal language model",
    "AutoModelForSequenceClassification": "text classifier",
    "AutoModelForQuestionAnswering": "model for extractive question answering",
    "AutoModelForSeq2SeqLM": "encoder-decoder",
}


def default_config(model_type: str) -> PretrainedConfig:
    """The config of an architecture with nothing but defaults; that of no architecture in particular for one that transformers
    does not know."""
    return CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING else transformers.PretrainedConfig()


def custom_config(
    model_type: str,
    overrides: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    block_size: int,
    auto_class: str,
    head: dict[str, Any] | None = None,
) -> PretrainedConfig:
    """A model config of any architecture, with vocabulary and special tokens from the tokenizer.

    Args:
        overrides: fields of that architecture's config class, such as `hidden_size`.
        block_size: longest input in tokens; the context length, where `overrides` does not set it.
        auto_class: the class of transformers that gives the model its head, such as `AutoModelForCausalLM`.
        head: further entries, those that shape its head say, which `overrides` may change.

    Raises:
        ConfigError: no such architecture with that head, no such field, or values that the architecture refuses.
    """
    mapping = getattr(transformers, auto_class)._model_mapping
    types = mapping._model_mapping
    if model_type not in types:
        near = difflib.get_close_matches(model_type, types, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        kind = _KINDS.get(auto_class, f"model for {auto_class}")
        raise ConfigError([f"model_type: transformers knows no {kind} {model_type!r}{hint}"])
    config_class = CONFIG_MAPPING[model_type]
    own_names = config_class().to_dict()
    known = {*own_names, *config_class.attribute_map, *_read_undeclared(config_class, mapping)}
    problems = []
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"config_overrides: {config_class.__name__} has no field {key!r}{hint}")
    if problems:
        raise ConfigError(problems)
    before = (tokenizer.pad_token_id or 0) + 1 if model_type in POSITIONS_AFTER_PADDING else 0
    values = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **{name: block_size + before for name in CONTEXT_NAMES if name in own_names},
        **(head or {}),
        **{config_class.attribute_map.get(name, name): value for name, value in overrides.items()},
    }
    try:
        config = config_class(**values)
    except Exception as failure:
        raise ConfigError([f"config_overrides: {config_class.__name__} refuses them: {failure}"]) from failure
    check_config(config, tokenizer, block_size)
    return config


def _read_undeclared(config_class: type[PretrainedConfig], mapping: Any) -> set[str]:
    """Fields that a model reads though its config class does not declare them, such as `head_dim` of Qwen3-MoE."""
    source = inspect.getsource(sys.modules[_first(mapping[config_class]).__module__])
    return set(re.findall(r'getattr\(\s*(?:self\.)?config,\s*"(\w+)"', source))


def _first(classes: Any) -> Any:
    return classes[0] if isinstance(classes, tuple) else classes


def check_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, block_size: int) -> None:
    """Refuse a config that cannot train on samples of `block_size` tokens of this tokenizer.

    Raises:
        ConfigError: naming all that is wrong.
    """
    problems = []
    if config.vocab_size < len(tokenizer):
        problems.append(f"vocab_size: the model has {config.vocab_size}, the tokenizer needs {len(tokenizer)}")
    for name in CONTEXT_NAMES:
        context = getattr(config, name, None)
        if isinstance(context, int) and 0 < context < block_size:  # XLNet's is -1: no limit
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


def new_model(config: PretrainedConfig, seed: int, auto_class: str) -> PreTrainedModel:
    """A model with the random weights of its architecture in float32, the same for the same seed.

    Raises:
        ConfigError: the architecture refuses the config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
        except Exception as failure:
            raise ConfigError([f"config_overrides: {type(config).__name__} gives no model: {failure}"]) from failure
