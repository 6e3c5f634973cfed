"""What a pretraining would do: sizes and why, settings, parameters by part, steps and tokens. Nothing is made or written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config import Resolved
from llmkit.errors import ConfigError
from llmkit.models.causal import causal_config, causal_skeleton, parameter_counts
from llmkit.models.sizing import describe_parameters, describe_ratio
from llmkit.tokens.shards import Index
from llmkit.training.pretrain import PREPARED_VOCABULARY, PretrainConfig, sizing_of, tokens_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class _TokenizerToBe:
    """Stands for a tokenizer that is still to be trained: nothing but its size counts for the model."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return self.vocab_size


def plan_pretraining(resolved: Resolved[PretrainConfig]) -> str:
    """The plan as text.

    Raises:
        ConfigError: the settings give no model.
    """
    config = resolved.config
    values = resolved.as_dict()
    lines = []
    sized = sizing_of({name: value for name, value in values.items() if not _is_derived(resolved, name)})
    if sized is not None:
        lines += ["sizes, and why:", *(f"  {rule}" for rule in sized.derivation), ""]
    lines.append("settings that are not the default:")
    lines += [f"  {name}: {values[name]}  # from {origin}" for name, origin in resolved.origins.items() if origin != "default"]
    lines.append("")
    counts = parameter_counts(causal_skeleton(model_config(config)))
    lines.append(f"model: {describe_parameters(counts)}")
    lines += _budget(config, counts["active"])
    lines.append("nothing was made; the same command without --dry_run does it")
    return "\n".join(lines)


def _is_derived(resolved: Resolved[PretrainConfig], name: str) -> bool:
    """Whether a value is not set, but the default or what the size decided."""
    origin = resolved.origins[name]
    return origin == "default" or (origin.startswith(("num_params ", "depth ")) and "changed by" not in origin)


def model_config(config: PretrainConfig) -> PretrainedConfig:
    """The config of the model that is trained.

    Raises:
        ConfigError: the settings give no model.
    """
    from transformers import AutoConfig, AutoTokenizer

    if config.model_name_or_path:
        try:
            return AutoConfig.from_pretrained(config.model_name_or_path)
        except (OSError, ValueError) as failure:
            raise ConfigError([f"model_name_or_path: transformers reads no config there: {failure}"]) from failure
    tokenizer: Any = _TokenizerToBe(config.vocab_size or PREPARED_VOCABULARY)
    if config.tokens is not None:
        tokenizer = AutoTokenizer.from_pretrained(Path(config.tokens) / "tokenizer")
    return causal_config(config.model_type or "llama", config.config_overrides, tokenizer, config.block_size)


def _budget(config: PretrainConfig, parameters: int) -> list[str]:
    """Steps and tokens of one process, whose number only counts where no `global_batch_size` is set."""
    at_once, accumulated = config.batch_layout(1)
    samples = at_once * accumulated
    per_step = samples * (config.block_size - 1)  # the first token of a sample is not learned
    have = Index.load(Path(config.tokens)).tokens("train") if config.tokens is not None else None
    if config.max_tokens is not None:
        steps = math.ceil(tokens_of(config.max_tokens) / per_step)
    elif config.max_steps > 0:
        steps = config.max_steps
    elif have is not None:
        steps = math.ceil(config.num_train_epochs * have / per_step)
    else:
        return [f"steps: as many as {config.num_train_epochs:g} passes over the corpus have, which is not prepared yet"]
    tokens = steps * per_step
    lines = [
        f"steps: {steps:,} of {samples:,} samples of {config.block_size:,} tokens",
        f"data: {describe_ratio(tokens, parameters)}",
    ]
    if have:
        lines.append(f"the token shards have {have:,} training tokens: {tokens / have:.3g} passes")
    return lines
