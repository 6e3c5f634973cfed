"""Stage `finetune`: a base model and labelled examples to a task model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.config import FieldSpec, option
from llmkit.training.arguments import RENAMED, TrainingConfig

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


_BY_EPOCH = (
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "load_best_model_at_end",
    "greater_is_better",
)


@dataclass(kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Settings of the finetune stage."""

    renamed: ClassVar = {**RENAMED, **dict.fromkeys(_BY_EPOCH, "fine-tuning evaluates and saves after each epoch")}

    @classmethod
    def further_settings(cls) -> dict[str, FieldSpec]:
        return {name: spec for name, spec in super().further_settings().items() if name not in _BY_EPOCH}

    model_name_or_path: str = option(role="artefact")
    """Base model: the directory of a `pretrain` result, or any local or hub model, encoder or decoder."""

    task: Literal["text-classification"] = option("text-classification")
    """What the model is to learn."""

    train_file: str | None = option(None, role="files")
    """Training examples: .csv, .tsv, .jsonl or .parquet with a column of texts and one of labels."""

    validation_file: str | None = option(None, role="files")
    """Validation examples; without it a share of the training examples is held out."""

    dataset_name: str | None = option(None)
    """Instead of files: `llmkit/reviews` (embedded), or a name or local path that `datasets` knows."""

    dataset_config_name: str | None = option(None)
    """Configuration of that data set."""

    text_column: str | None = option(None)
    """Column of texts; found by itself where it has a usual name (text, sentence, review, ...)."""

    label_column: str | None = option(None)
    """Column of labels; found by itself where it has a usual name (label, sentiment, ...)."""

    validation_fraction: float = option(0.1)
    """Share of the training examples held out where there is no validation set, the same share of each label."""

    max_length: int | None = option(None)
    """Longest input in tokens; longer texts are cut. None: what the model takes."""

    max_train_samples: int | None = option(None)
    """Use only this many training examples, drawn by the seed."""

    attn_implementation: str | None = option(None)
    """Attention kernel; None: the best that transformers finds."""

    metric_for_best_model: str = option("f1_macro")
    """The checkpoint with the best value of this on the validation set is kept: accuracy, f1_macro or loss."""

    # Fine-tuning takes small steps, and few of them: the defaults of Devlin et al. 2019 (appendix A.3).
    learning_rate: float = option(5e-5)
    """Peak learning rate of AdamW."""

    num_train_epochs: float = option(3.0)
    """Passes over the training examples; `max_steps` overrides it."""

    per_device_train_batch_size: int = option(16)
    """Examples that one process computes at once."""

    per_device_eval_batch_size: int = option(64)
    """Examples that one process evaluates at once."""

    lr_scheduler_type: str = option("linear")
    """Shape of the learning rate after warm-up, by transformers' name."""

    warmup_steps: float = option(0.1)
    """Steps in which the learning rate rises from 0; a value below 1 is a share of all steps."""

    weight_decay: float = option(0.01)
    """Decoupled weight decay of AdamW; biases and norms have none."""

    adam_beta2: float = option(0.999)
    """Decay of AdamW's second moment."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if bool(self.train_file) == bool(self.dataset_name):
            yield "train_file, dataset_name: give one of them (`--dataset_name llmkit/reviews` is embedded)"
        if self.validation_file and not self.train_file:
            yield "validation_file: goes with train_file"
        if not 0 < self.validation_fraction < 1:
            yield f"validation_fraction: is {self.validation_fraction}, must lie between 0 and 1"
        for name in ("max_length", "max_train_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: is {value}, must be at least 1"
        if self.metric_for_best_model not in ("accuracy", "f1_macro", "loss"):
            yield f"metric_for_best_model: {self.metric_for_best_model!r} is not one of accuracy, f1_macro, loss"

    def raw_inputs(self) -> dict[str, str]:
        return embedded_marks(self.dataset_name, ("train", "validation"))


def embedded_marks(dataset_name: str | None, splits: tuple[str, ...]) -> dict[str, str]:
    """The sha256 of the splits that are read of the embedded reviews."""
    from llmkit.pipeline.artefact import sha256_of
    from llmkit.tasks.tables import REVIEWS, reviews_file

    if dataset_name != REVIEWS:
        return {}
    return {str(reviews_file(split)): sha256_of(reviews_file(split)) for split in splits}


def finetune(config: FinetuneConfig, workspace: Workspace) -> dict[str, Any]:
    """Train the classifier; the workspace becomes a Hugging Face model repository.

    Returns:
        Labels, example counts, validation metrics of the best checkpoint, and layout.
    """
    from llmkit.training.classifier import train_classifier

    return train_classifier(config, workspace)
