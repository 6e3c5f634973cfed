"""Stage `generate`: a causal language model and prompts to text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmkit.config import StageConfig, option

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace

_GREEDY = "write `--temperature 0`, which takes the most likely token each time"


@dataclass(kw_only=True)
class GenerateConfig(StageConfig):
    """Settings of the generate stage; names are those of `transformers.GenerationConfig`."""

    renamed: ClassVar = {
        "greedy": _GREEDY,
        "do_sample": _GREEDY,
        "max_length": "write `max_new_tokens`, which does not count the prompt",
        "input": "write `prompt_file`",
        "output": "write `--output_dir`; the texts are in generations.jsonl there",
    }

    model_name_or_path: str = option(role="artefact")
    """Model that goes on writing: the directory of a `pretrain` result or of a checkpoint in it, or any causal language model
    of transformers."""

    prompt: list[str] | None = option(None)
    """Beginnings of text. An empty one lets the model begin a document by itself."""

    prompt_file: str | None = option(None, role="files")
    """Instead: a .txt file with a prompt a line, or .jsonl, .csv, .tsv or .parquet with a column `prompt` or `text`."""

    max_new_tokens: int = option(100)
    """Longest continuation in tokens; the model's context length may end it earlier."""

    temperature: float = option(0.8)
    """Logits are divided by this before sampling: below 1 likely tokens become more likely. 0 takes the most likely one."""

    top_p: float = option(0.95)
    """Sample from the fewest tokens that together have this probability (Holtzman et al. 2020); 1 keeps all."""

    top_k: int | None = option(None)
    """Sample from this many most likely tokens; None: no limit."""

    num_return_sequences: int = option(1)
    """Continuations of each prompt."""

    seed: int = option(0)
    """Seed of the sampling. A text depends on it, on its prompt and its number, and not on what else is generated."""

    def problems(self) -> Iterable[str]:
        if self.prompt is not None and self.prompt_file is not None:
            yield "prompt: prompts are given, and a prompt_file; give one of the two"
        for name in ("max_new_tokens", "num_return_sequences", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: is {value}, must be at least 1"
        if not 0 <= self.temperature < float("inf"):
            yield f"temperature: is {self.temperature}, must be at least 0"
        if not 0 < self.top_p <= 1:
            yield f"top_p: is {self.top_p}, must be above 0 and at most 1"
        if self.temperature == 0 and self.num_return_sequences > 1:
            yield "num_return_sequences: with temperature 0 all would be the same"


def generate(config: GenerateConfig, workspace: Workspace) -> dict[str, Any]:
    """Generate; writes generations.jsonl.

    Returns:
        Number of texts and tokens, and the first few texts.
    """
    from llmkit.tasks.generation import write_generations

    return write_generations(config, workspace)


def show(config: GenerateConfig) -> int:
    """Generate and print each text while it comes; prompts may also come from a pipe, one a line.

    Returns:
        The exit code.
    """
    from llmkit.tasks.generation import stream

    return stream(config)
