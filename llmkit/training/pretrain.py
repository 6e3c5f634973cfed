"""Stage `pretrain`: token shards to a causal language model of a custom config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.config import FieldSpec, option
from llmkit.errors import ConfigError
from llmkit.training.arguments import TrainingConfig
from llmkit.training.schedules import parse_length

if TYPE_CHECKING:
    from llmkit.models.sizing import Sizing
    from llmkit.pipeline.stage import Workspace

# What only making token shards needs.
CORPUS_SETTINGS = ("train_file", "validation_file", "dataset_name", "dataset_config_name", "text_column", "vocab_size")

PREPARED_VOCABULARY = 8192
"""Vocabulary of `recipes/tokenizer/small.yaml`, in tokens."""

# What only a model that starts from random has.
OF_A_NEW_MODEL = ("model_type", "config_overrides", "initialisation", "depth_scaled", "num_params", "depth")

# What the size of a model decides; an earlier source said it for another one.
_OF_A_SIZE = (
    "model_type",
    "config_overrides",
    "block_size",
    "global_batch_size",
    "learning_rate",
    "max_steps",
    "max_tokens",
    "num_train_epochs",
    "warmup_steps",
)

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
    voids: ClassVar = {
        **TrainingConfig.voids,
        "model_type": ("config_overrides",),
        "model_name_or_path": OF_A_NEW_MODEL,
        "max_steps": ("max_tokens",),
        "max_tokens": ("max_steps",),
        "num_params": (*_OF_A_SIZE, "depth"),
        "depth": (*_OF_A_SIZE, "num_params"),
    }

    @classmethod
    def further_settings(cls) -> dict[str, FieldSpec]:
        return {name: spec for name, spec in super().further_settings().items() if name not in _ONE_ORDER}

    tokens: str | None = option(None, role="artefact", made_by=("tokenize",))
    """Token shards: the directory of a `tokenize` result. Without it, they are made from the corpus named below, or from the
    embedded one."""

    mixture: dict[str, Any] = option(factory=dict, role="artefact", made_by=("tokenize",))
    """Several token shards in place of `tokens`, with the weight of each: {runs/web: 0.7, runs/books: 0.3}. A run takes its
    samples from them in these shares; a pass over the samples of all is an epoch. They must have one tokenizer."""

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

    num_params: str | None = option(None, identity=False)
    """Size a Llama-style model and its run by the number of parameters, such as 125M or 1.5B: architecture, sample length,
    batch, learning rate and steps follow from published rules (`--dry_run` prints them), except where they are set."""

    depth: int | None = option(None, identity=False)
    """The same from the number of layers."""

    initialisation: Literal["default", "normal", "uniform", "truncated_normal"] = option("default")
    """Distribution of a new model's matrices, of mean zero and with the config's `initializer_range` as standard deviation;
    the truncated normal ends at three of them. default: what transformers does for the architecture."""

    depth_scaled: bool = option(False)
    """Draw the matrices that write into the residual stream smaller by sqrt(2 x layers), as GPT-2 (which always does so with
    the default initialisation): the stream then does not grow with depth."""

    mup_base_width: int | None = option(None)
    """Width transfer (muP): the hidden size of the narrow model on which `learning_rate` and `initializer_range` were tuned,
    and whose heads are as wide as this model's. A model that is trained on has to have been made with it."""

    block_size: int = option(512)
    """Length of a training sample in tokens."""

    max_tokens: int | str | None = option(None)
    """Length of the run in tokens that are learned, such as 2e9 or 2B, rounded up to whole steps; in place of `max_steps`."""

    packing: Literal["concat", "best_fit"] = option("concat")
    """How documents become samples: `concat` cuts their stream into blocks; `best_fit` puts whole documents together that fill
    a sample, and cuts only those that are longer than one. Validation data is cut into blocks either way."""

    document_masking: bool = option(False)
    """Whether a token sees nothing but its own document: positions start again with each, attention does not cross, and the
    first token of a document is not learned."""

    attn_implementation: str | None = option(None)
    """Attention kernel: sdpa, eager, flash_attention_2, ... None: the best that transformers finds."""

    z_loss: float = option(0.0)
    """Weight of the mean of log(Z)^2 in the training loss (Chowdhery et al. 2022 take 1e-4); it keeps logits from drifting."""

    loss_chunk_size: int | None = option(None)
    """Tokens whose logits are in memory at once; 0: those of a whole batch. None: 1024 on a CPU where the vocabulary is large
    (from 32,768 tokens on), there is no `z_loss` and the architecture allows it, else 0."""

    pipeline_schedule: Literal["gpipe", "1f1b", "interleaved"] = option("1f1b", identity=False)
    """Order of forward and backward passes where the layers are divided among processes (layout pp): all forward first; in
    turn, which holds fewer activations; or in turn through several parts of the model on each process, which waits less."""

    pipeline_virtual_stages: int = option(2, identity=False)
    """Parts of the model that each process has under the interleaved schedule."""

    eval_steps: int = option(200, identity=False)
    """Steps between two evaluations on the validation data; the end is always evaluated."""

    sample_prompts: list[str] | None = option(factory=lambda: ["The", "Return the", "今天"], identity=False)
    """Prompts after which the model writes a text at each evaluation, into samples.jsonl; none: it writes none."""

    sample_tokens: int = option(40, identity=False)
    """Longest of these texts in tokens, without the prompt."""

    save_steps: int = option(200, identity=False)
    """Steps between two checkpoints. A killed run goes on from the newest."""

    save_permanent_steps: int | None = option(None, identity=False)
    """Steps between two checkpoints that are kept for good, in `checkpoints/` of the result; a multiple of `save_steps`."""

    @classmethod
    def derived(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """What `num_params` or `depth` decides of the model and its run."""
        sized = sizing_of(given)
        if sized is None:
            return {}, ""
        name = "num_params" if given.get("num_params") is not None else "depth"
        without = {"max_steps"} if given.get("max_tokens") is not None else set()
        return {key: value for key, value in sized.settings.items() if key not in without}, f"{name} {given[name]}"

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.learning_rate is None:
            yield "learning_rate: is none; give a number"
        if self.num_params is not None and self.depth is not None:
            yield "num_params: the size is given, and depth; give one of the two"
        if (self.num_params or self.depth) and self.model_type != "llama" and not self.model_name_or_path:
            yield f"model_type: num_params and depth give a llama, not {self.model_type}"
        for name in ("eval_steps", "save_steps", "sample_tokens", "pipeline_virtual_stages"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"
        if self.block_size < 2:
            yield f"block_size: is {self.block_size}, must be at least 2: a token is predicted from the one before it"
        if self.z_loss < 0:
            yield f"z_loss: is {self.z_loss}, must not be below 0"
        for name in ("use_liger_kernel", "loss_chunk_size"):
            if self.z_loss and (self.training_arguments.get(name) or getattr(self, name, None)):
                yield f"z_loss: is computed from the logits, which {name} never has in one piece; give one of the two"
        if self.max_tokens is not None:
            if self.max_steps > 0:
                yield "max_tokens: max_steps also says how long the run is; give one of the two"
            if tokens_of(self.max_tokens) < 1:
                yield f"max_tokens: {self.max_tokens!r} is no number of tokens; write 2e9 or 2B"
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
        if self.mup_base_width is not None and self.mup_base_width < 1:
            yield f"mup_base_width: is {self.mup_base_width}, must be at least 1"
        if self.mup_base_width is not None and not self.optim.startswith("adamw"):
            yield f"mup_base_width: its learning rates are those of Adam, and optim is {self.optim}"
        of_a_corpus = [name for name in CORPUS_SETTINGS if getattr(self, name) is not None]
        if self.tokens and of_a_corpus:
            yield f"tokens: token shards are given, and {', '.join(of_a_corpus)} to make them with; give one of the two"
        if self.mixture and (self.tokens or of_a_corpus):
            yield f"mixture: given together with {', '.join(['tokens'] if self.tokens else of_a_corpus)}; give one of the two"
        for place, weight in self.mixture.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                yield f"mixture: the weight of {place} is {weight!r}, must be a number above 0"
        given = [name for name in OF_A_NEW_MODEL if getattr(self, name) not in (None, {}, "default", False)]
        if self.model_name_or_path and given:
            yield f"model_name_or_path: a model is given, and {', '.join(given)} for a new one; give one of the two"

    def sources(self) -> dict[str, float]:
        """The token shards of the run, with their weights."""
        return {self.tokens: 1.0} if self.tokens else self.mixture


def tokens_of(number: int | str) -> float:
    """A number of tokens as `max_tokens` gives it: 2000000000 or 2B; 0 where it is none."""
    try:
        count, unit = parse_length(number)
    except ValueError:
        return 0
    return count if unit in ("steps", "tokens") else 0


def sizing_of(given: Mapping[str, Any]) -> Sizing | None:
    """What `num_params` or `depth` among the given settings decides; None without them.

    Raises:
        ConfigError: there is no model of that size, or the vocabulary is not known yet.
    """
    num_params, depth = given.get("num_params"), given.get("depth")
    if (num_params is None and depth is None) or given.get("model_name_or_path"):
        return None
    from llmkit.models.sizing import size

    if depth is not None and not 1 <= depth <= 200:
        raise ConfigError([f"depth: is {depth}, must be between 1 and 200"])
    return size(dict(given), *_vocabulary(given), num_params, depth)


def _vocabulary(given: Mapping[str, Any]) -> tuple[int, str]:
    """Tokens of the vocabulary, and where that is known from."""
    own = (given.get("config_overrides") or {}).get("vocab_size")
    if own is not None:
        return own, "config_overrides.vocab_size"
    if given.get("tokens") is None:
        if given.get("vocab_size") is not None:
            return given["vocab_size"], "vocab_size"
        return PREPARED_VOCABULARY, "assumed: that of the tokenizer made where no token shards are given"
    from llmkit.tokens.shards import INDEX, Index

    directory = Path(given["tokens"])
    if not (directory / INDEX).is_file():
        raise ConfigError(
            [
                "num_params, depth: the vocabulary is not known before the token shards are made; say how large it will be: "
                "config_overrides: {vocab_size: ...}"
            ]
        )
    return Index.load(directory).vocab_size, str(given["tokens"])


def pretrain(config: PretrainConfig, workspace: Workspace) -> dict[str, Any]:
    """Train the model; the workspace becomes a Hugging Face model repository.

    Returns:
        Final losses, perplexity, bits per byte, parameter and token counts, throughput and layout.
    """
    from llmkit.training.language_model import train_language_model

    return train_language_model(config, workspace)
