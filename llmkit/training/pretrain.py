"""Stage `pretrain`: token shards to a causal language model of a custom config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmkit.config import FieldSpec, option
from llmkit.training.arguments import TrainingConfig

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace

# What only making token shards needs.
CORPUS_SETTINGS = ("train_file", "validation_file", "dataset_name", "dataset_config_name", "text_column", "vocab_size")

# Arguments of transformers that have no meaning where the order of samples and the time to save and evaluate are ours.
_ONE_ORDER = {
    "eval_strategy": "the validation data is evaluated every `eval_steps`",
    "save_strategy": "a checkpoint is written every `save_steps`",
    "train_sampling_strategy": "a run has one order of samples, by its `seed`",
    "load_best_model_at_end": "the last model is the result; its learning rate has decayed",
    "metric_for_best_model": "the last model is the result; its learning rate has decayed",
    "greater_is_better": "the last model is the result; its learning rate has decayed",
}


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of the pretrain stage."""

    renamed: ClassVar = {
        **TrainingConfig.renamed,
        **_ONE_ORDER,
        "evaluation_strategy": _ONE_ORDER["eval_strategy"],
        "group_by_length": _ONE_ORDER["train_sampling_strategy"],
    }
    voids: ClassVar = {"model_type": ("config_overrides",), "model_name_or_path": ("model_type", "config_overrides")}

    @classmethod
    def further_settings(cls) -> dict[str, FieldSpec]:
        return {name: spec for name, spec in super().further_settings().items() if name not in _ONE_ORDER}

    tokens: str | None = option(None, role="artefact", made_by=("tokenize",))
    """Token shards: the directory of a `tokenize` result. Without it, they are made from the corpus named below, or from the
    embedded one."""

    train_file: list[str] | None = option(None, identity=False)
    """Own corpus, where no token shards are given: files, directories or patterns of .txt, .md, .jsonl(.gz|.zst), .parquet,
    .csv."""

    validation_file: list[str] | None = option(None, identity=False)
    """Own validation corpus; without it a share of the documents is held out."""

    dataset_name: str | None = option(None, identity=False)
    """Corpus by the name or local path that `datasets` knows."""

    dataset_config_name: str | None = option(None, identity=False)
    """Configuration of that data set."""

    text_column: str | None = option(None, identity=False)
    """Column that holds the text; default `text`."""

    vocab_size: int | None = option(None, identity=False)
    """Vocabulary of the tokenizer that is trained where no token shards are given, in tokens."""

    model_name_or_path: str | None = option(None, role="artefact")
    """Go on training this model (its tokenizer must be the one of the token shards), instead of starting from random."""

    model_type: str | None = option(None)
    """Architecture: any causal one that transformers knows, such as llama (the default), gpt2, qwen3, mamba, mixtral."""

    config_overrides: dict[str, Any] = option(factory=dict)
    """Fields of the architecture's config class: {hidden_size: 256, num_hidden_layers: 4}. The vocabulary and the special
    tokens come from the tokenizer."""

    block_size: int = option(512)
    """Length of a training sample in tokens."""

    attn_implementation: str | None = option(None)
    """Attention kernel: sdpa, eager, flash_attention_2, ... None: the best that transformers finds."""

    loss_chunk_size: int | None = option(None)
    """Tokens whose logits are in memory at once; 0: those of a whole batch. None: 1024 on a CPU where the vocabulary is large
    (from 32,768 tokens on) and the architecture allows it, else 0."""

    eval_steps: int = option(200, identity=False)
    """Steps between two evaluations on the validation data; the end is always evaluated."""

    save_steps: int = option(200, identity=False)
    """Steps between two checkpoints. A killed run goes on from the newest."""

    save_permanent_steps: int | None = option(None, identity=False)
    """Steps between two checkpoints that are kept for good, in `checkpoints/` of the result; a multiple of `save_steps`."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        for name in ("eval_steps", "save_steps"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"
        if self.block_size < 2:
            yield f"block_size: is {self.block_size}, must be at least 2: a token is predicted from the one before it"
        if self.loss_chunk_size:
            if self.loss_chunk_size < 0:
                yield f"loss_chunk_size: is {self.loss_chunk_size}, must be at least 0"
            for name in ("label_smoothing_factor", "use_liger_kernel"):
                if self.training_arguments.get(name):
                    yield f"loss_chunk_size: {name} needs a loss of its own; give one of the two"
        if self.save_permanent_steps is not None and (
            self.save_permanent_steps < 1 or self.save_permanent_steps % self.save_steps
        ):
            yield f"save_permanent_steps: is {self.save_permanent_steps}, must be a multiple of save_steps, {self.save_steps}"
        of_a_corpus = [name for name in CORPUS_SETTINGS if getattr(self, name) is not None]
        if self.tokens and of_a_corpus:
            yield f"tokens: token shards are given, and {', '.join(of_a_corpus)} to make them with; give one of the two"
        given = [name for name in ("model_type", "config_overrides") if getattr(self, name)]
        if self.model_name_or_path and given:
            yield f"model_name_or_path: a model is given, and {', '.join(given)} for a new one; give one of the two"


def pretrain(config: PretrainConfig, workspace: Workspace) -> dict[str, Any]:
    """Train the model; the workspace becomes a Hugging Face model repository.

    Returns:
        Final losses, perplexity, bits per byte, parameter and token counts, throughput and layout.
    """
    from llmkit.training.language_model import train_language_model

    return train_language_model(config, workspace)
