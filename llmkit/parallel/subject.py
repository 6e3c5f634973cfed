"""A launch that is checked, and what can be wrong with one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmkit.errors import ArtefactError, ConfigError
from llmkit.parallel.architecture import Architecture, of_directory, parameters_in, read_architecture
from llmkit.parallel.layout import Layout
from llmkit.parallel.machine import Machine
from llmkit.tokens.shards import Index
from llmkit.training.arguments import TrainingConfig
from llmkit.training.pretrain import PREPARED_VOCABULARY, PretrainConfig


@dataclass(frozen=True)
class Problem:
    """Something that would go wrong."""

    what: str
    remedy: str = ""
    """Empty where `what` says it."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


@dataclass(frozen=True)
class Subject:
    """What is checked."""

    stage: str
    config: TrainingConfig
    layout: Layout
    machine: Machine
    output: Path
    """Where the result goes."""

    @property
    def where(self) -> str:
        """How the layout is called in a sentence."""
        return self.layout.path.name

    @cached_property
    def processes(self) -> int:
        return self.layout.process_count(self.machine.gpus)

    @cached_property
    def data_ranks(self) -> int | None:
        """Processes with samples of their own; None where the dimensions do not fit, which is a problem of its own."""
        try:
            return self.layout.data_ranks(self.processes)
        except ConfigError:
            return None

    @property
    def batch(self) -> tuple[int, int, int] | None:
        """Samples that a process computes at once, batches that it accumulates, and processes with samples of their own.

        None where they do not add up.
        """
        if self.data_ranks is None:
            return None
        try:
            return (*self.config.batch_layout(self.data_ranks), self.data_ranks)
        except ConfigError:
            return None

    @property
    def on_cpu(self) -> bool:
        asked = self.layout.use_cpu or bool(self.config.training_arguments.get("use_cpu"))
        return asked or not self.machine.gpus

    @cached_property
    def indexes(self) -> dict[str, Index]:
        """The token shards that are there and can be read, by directory."""
        if not isinstance(self.config, PretrainConfig):
            return {}
        return {place: Index.load(Path(place)) for place in self.config.sources() if _has_index(Path(place))}

    @cached_property
    def vocabulary(self) -> int:
        """Tokens of the tokenizer, made or still to be made; 0 where it is that of a model."""
        if not isinstance(self.config, PretrainConfig):
            return 0
        if self.config.sources():
            return max((index.vocab_size for index in self.indexes.values()), default=0)
        return self.config.vocab_size or PREPARED_VOCABULARY

    @cached_property
    def base_model(self) -> Path | None:
        """The model that is trained on, where it lies on this machine."""
        name = getattr(self.config, "model_name_or_path", None)
        return Path(name) if name and Path(name).is_dir() else None

    @cached_property
    def architecture(self) -> Architecture | None:
        """Of the model that is trained; None where transformers, or this machine, does not have it."""
        if self.base_model is not None:
            return of_directory(self.base_model)
        if not isinstance(self.config, PretrainConfig) or self.config.model_name_or_path:
            return None
        found = read_architecture(self.config.model_type or "llama")
        if found is None:
            return None
        length = {} if not found.context else {"max_position_embeddings": self.config.block_size}
        return found.with_values({**length, "vocab_size": self.vocabulary, **self.config.config_overrides})

    @cached_property
    def parameters(self) -> int:
        """Of the model, about; 0 where that is not known."""
        if self.base_model is not None:
            return parameters_in(self.base_model)
        if self.architecture is None or self.unknown_overrides:
            return 0
        return self.architecture.parameters(self.architecture.number("vocab_size"))

    @property
    def unknown_overrides(self) -> list[str]:
        """Fields given for a new model that its architecture does not have."""
        given, model = getattr(self.config, "config_overrides", {}), self.architecture
        return [key for key in given if key not in model.known] if model else []

    @property
    def fast_precision(self) -> str | None:
        """What the hardware computes fast, and settings that say nothing get: bf16 or no; None where that is not known."""
        fast = self.machine.bf16_on_cpu if self.on_cpu else self.machine.bf16_on_gpu
        return None if fast is None else "bf16" if fast else "no"

    @property
    def precision(self) -> str | None:
        """What the settings ask for: bf16, fp16 or no; None where they leave it to the hardware."""
        return "bf16" if self.config.bf16 else "fp16" if self.config.fp16 else "no" if self.config.bf16 is False else None


def _has_index(directory: Path) -> bool:
    try:
        Index.load(directory)
    except ArtefactError:
        return False
    return True


def counted(count: int, thing: str) -> str:
    """`1 process`, `2 processes`."""
    return f"1 {thing}" if count == 1 else f"{count} {thing}{'es' if thing.endswith('s') else 's'}"
