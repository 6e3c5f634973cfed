"""Stage `pretrain`: token shards to a causal language model of a custom config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.config import option
from llmkit.training.arguments import TrainingConfig

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of the pretrain stage."""

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

    model_type: str = option("llama")
    """Architecture: any causal one that transformers knows, such as llama, gpt2, qwen3, mamba, mixtral."""

    config_overrides: dict[str, Any] = option(factory=dict)
    """Fields of the architecture's config class: {hidden_size: 256, num_hidden_layers: 4}. The vocabulary and the special
    tokens come from the tokenizer."""

    block_size: int = option(512)
    """Length of a training sample in tokens."""

    attn_implementation: str | None = option(None)
    """Attention kernel: sdpa, eager, flash_attention_2, ... None: the best that transformers finds."""

    eval_steps: int = option(200)
    """Steps between two evaluations on the validation data; the end is always evaluated."""

    save_steps: int = option(200, identity=False)
    """Steps between two checkpoints. A killed run goes on from the newest."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        for name in ("eval_steps", "save_steps"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"
        if self.block_size < 2:
            yield f"block_size: is {self.block_size}, must be at least 2: a token is predicted from the one before it"
        if self.tokens and (self.train_file or self.dataset_name):
            yield "tokens: token shards are given, and a corpus to make them from too; give one of the two"


def pretrain(config: PretrainConfig, workspace: Workspace) -> dict[str, Any]:
    """Train the model; the workspace becomes a Hugging Face model repository.

    Returns:
        Final losses, perplexity, bits per byte, parameter and token counts, throughput and layout.
    """
    from llmkit.training.language_model import train_language_model

    return train_language_model(config, workspace)
