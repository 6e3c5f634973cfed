"""Stage `finetune`: a base model and labelled examples to a task model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.config import FieldSpec, option
from llmkit.tasks.registry import TaskName
from llmkit.tasks.settings import (
    Columns,
    QuestionAnsweringSettings,
    TextGenerationSettings,
    TranslationSettings,
    WritingSettings,
)
from llmkit.tasks.tables import EMBEDDED, embedded_file
from llmkit.training.adaptation import AdaptationSettings
from llmkit.training.arguments import TrainingConfig

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


_OF_THE_ENGINE = {
    "eval_strategy": "fine-tuning evaluates and saves after each epoch, or every `eval_steps` steps",
    "evaluation_strategy": "fine-tuning evaluates and saves after each epoch, or every `eval_steps` steps",
    "save_strategy": "fine-tuning saves whenever it evaluates; see `eval_steps`",
    "save_steps": "fine-tuning saves whenever it evaluates; see `eval_steps`",
    "load_best_model_at_end": "the best checkpoint is always the result; see `metric_for_best_model`",
    "greater_is_better": "it follows from `metric_for_best_model`",
}


@dataclass(kw_only=True)
class FinetuneConfig(
    Columns,
    QuestionAnsweringSettings,
    WritingSettings,
    TranslationSettings,
    TextGenerationSettings,
    AdaptationSettings,
    TrainingConfig,
):
    """Settings of the finetune stage."""

    renamed: ClassVar = {**TrainingConfig.renamed, **_OF_THE_ENGINE}

    @classmethod
    def further_settings(cls) -> dict[str, FieldSpec]:
        return {name: spec for name, spec in super().further_settings().items() if name not in _OF_THE_ENGINE}

    model_name_or_path: str | None = option(None, role="artefact")
    """Base model: the directory of a `pretrain` result, or any local or hub model, encoder or decoder."""

    model_type: str | None = option(None)
    """Instead of a base model: the architecture of a new one with random weights, by its name in transformers."""

    config_overrides: dict[str, Any] = option(factory=dict)
    """Fields of that architecture's config class, such as `hidden_size`."""

    tokenizer: str | None = option(None, role="artefact")
    """Tokenizer of a new model: the directory of a `tokenizer` result, or any local or hub one. None: one is trained on the
    training examples."""

    vocab_size: int | None = option(None)
    """Size of the tokenizer that is trained on the training examples; None: 8192."""

    task: TaskName = option("text-classification")
    """What the model is to learn."""

    train_file: str | None = option(None, role="files")
    """Training examples: .csv, .tsv, .jsonl or .parquet, one a row, or the .json of SQuAD."""

    validation_file: str | None = option(None, role="files")
    """Validation examples; without it, and without a validation split of the data set, a share of training is held out."""

    dataset_name: str | None = option(None)
    """Instead of files: the name or directory of a data set that `datasets` can load, or an embedded one: `llmkit/reviews`,
    `llmkit/passages`, `llmkit/pairs` or `llmkit/instructions`."""

    dataset_config_name: str | None = option(None)
    """Configuration of that data set."""

    dataset_revision: str | None = option(None)
    """Commit, branch or tag of that data set on the hub; None: its newest."""

    validation_fraction: float = option(0.1)
    """Share of the training examples held out where there is no validation set; of classes, the same share of each."""

    max_length: int | None = option(None)
    """Longest input in tokens; longer texts are cut, and contexts of questions divided. None: what the model takes; of
    question answering at most 384."""

    max_train_samples: int | None = option(None)
    """Use only this many training examples, drawn by the seed."""

    attn_implementation: str | None = option(None)
    """Attention kernel; None: the best that transformers finds."""

    metric_for_best_model: str | None = option(None)
    """The checkpoint with the best value of this on the validation set is the result: `loss`, or a metric of the task. None:
    the first metric of the task, macro F1 for classes."""

    eval_steps: int | None = option(None)
    """Steps between two evaluations, each with a checkpoint; None: one after each epoch."""

    early_stopping_patience: int | None = option(None)
    """End after so many evaluations without a better value; None: never."""

    train_sampling_strategy: Literal["random", "group_by_length"] = option("group_by_length")
    """Which examples make up a step: random ones, or random ones of like length, so that little is computed on padding."""

    # Fine-tuning takes small steps, and few of them: the defaults of Devlin et al. 2019 (appendix A.3).
    learning_rate: float = option(5e-5)
    """Peak learning rate."""

    num_train_epochs: float = option(3.0)
    """Passes over the training examples; `max_steps` overrides it."""

    per_device_train_batch_size: int = option(16)
    """Examples that one process computes at once."""

    per_device_eval_batch_size: int = option(64)
    """Examples that one process evaluates at once."""

    lr_scheduler_type: str = option("linear")
    """The learning rate after warm-up: linear or cosine decay, constant, wsd (constant, then a decay at the end), or any other
    name that transformers has."""

    warmup_steps: float | str = option(0.1)
    """Steps in which the learning rate rises to its peak; a value below 1 is a share of all steps, and `0.5 epochs` a length
    as well."""

    weight_decay: float = option(0.01)
    """Decoupled weight decay, on matrices and embeddings; biases and norms have none."""

    adam_beta2: float = option(0.999)
    """Decay of AdamW's second moment."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        yield from source_problems(self, "train_file")
        yield from self._start_problems()
        for name in ("warmup_steps", "decay_steps"):
            if "tokens" in str(getattr(self, name)):
                yield f"{name}: examples are learned here, and not tokens; give steps, a share of them, or epochs"
        if self.validation_file and not self.train_file:
            yield "validation_file: goes with train_file"
        if not 0 < self.validation_fraction < 1:
            yield f"validation_fraction: is {self.validation_fraction}, must lie between 0 and 1"
        for name in ("max_length", "max_train_samples", "eval_steps", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: is {value}, must be at least 1"

    def _start_problems(self) -> Iterable[str]:
        if bool(self.model_name_or_path) == bool(self.model_type):
            yield "--model_name_or_path is missing: give a base model, or the --model_type of a new one"
        for name in ("config_overrides", "tokenizer", "vocab_size"):
            if getattr(self, name) and not self.model_type:
                yield f"{name}: goes with model_type"
        if self.tokenizer and self.vocab_size:
            yield "vocab_size: is that of the tokenizer; give one of the two"

    def raw_inputs(self) -> dict[str, str]:
        return dataset_marks(self.dataset_name, ("train", "validation"))


def source_problems(config: Any, file_setting: str) -> Iterable[str]:
    """What is wrong with the settings that say where examples come from."""
    name = config.dataset_name
    if bool(getattr(config, file_setting)) == bool(name):
        yield f"{file_setting}, dataset_name: give one of them ({', '.join(EMBEDDED)} are embedded)"
    if name and Path(name).is_file():
        yield f"dataset_name: {name!r} is a file; give it as --{file_setting}"
    for setting in ("dataset_config_name", "dataset_revision"):
        if getattr(config, setting) and not name:
            yield f"{setting}: goes with dataset_name"
    if config.dataset_revision and name and _is_here(name):
        yield f"dataset_revision: {name!r} is not on the hub, so it has no revisions"


def _is_here(dataset_name: str) -> bool:
    return dataset_name in EMBEDDED or Path(dataset_name).is_dir()


def dataset_marks(dataset_name: str | None, splits: tuple[str, ...]) -> dict[str, str]:
    """The sha256 of the files behind a data set that lies on this machine.

    Of an embedded one these are the splits that are read. Of a directory they are all files: only `datasets` knows
    which of them make up a split.
    """
    from llmkit.pipeline.artefact import sha256_of

    if dataset_name is None or not _is_here(dataset_name):
        return {}
    if dataset_name in EMBEDDED:
        files = [embedded_file(dataset_name, split) for split in splits]
    else:
        root = Path(dataset_name)
        found = sorted(path for path in root.rglob("*") if path.is_file())
        files = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return {str(path): sha256_of(path) for path in files}


def finetune(config: FinetuneConfig, workspace: Workspace) -> dict[str, Any]:
    """Train a task model; the workspace becomes a Hugging Face model repository.

    Returns:
        Example counts, what was validated on and with what result, and layout.
    """
    from llmkit.training.finetuning import train_task

    return train_task(config, workspace)
