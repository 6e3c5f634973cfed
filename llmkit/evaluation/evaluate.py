"""Stage `evaluate`: a task model and a test set to metrics, predictions and baselines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.config import StageConfig, option
from llmkit.training.finetune import dataset_marks, source_problems

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


@dataclass(kw_only=True)
class EvaluateConfig(StageConfig):
    """Settings of the evaluate stage."""

    model_name_or_path: str = option(role="artefact")
    """Classifier to measure: the directory of a `finetune` result, or any text classification model of transformers."""

    test_file: str | None = option(None, role="files")
    """Test examples: .csv, .tsv, .jsonl or .parquet with a column of texts and one of labels."""

    dataset_name: str | None = option(None)
    """Instead of a file: `llmkit/reviews` (embedded), or the name or directory of a data set that `datasets` can load."""

    dataset_config_name: str | None = option(None)
    """Configuration of that data set."""

    dataset_revision: str | None = option(None)
    """Commit, branch or tag of that data set on the hub; None: its newest."""

    dataset_split: str = option("test")
    """Split of that data set."""

    text_column: str | None = option(None)
    """Column of texts; None: as in fine-tuning, or found by its name."""

    label_column: str | None = option(None)
    """Column of labels; None: as in fine-tuning, or found by its name."""

    per_device_eval_batch_size: int = option(64)
    """Examples computed at once."""

    baselines: bool = option(True)
    """Measure the baselines too; they learn from the examples that a `finetune` result was trained on."""

    seed: int = option(0)
    """Seed of the baseline's cross-validation."""

    def problems(self) -> Iterable[str]:
        yield from source_problems(self, "test_file")
        if self.per_device_eval_batch_size < 1:
            yield f"per_device_eval_batch_size: is {self.per_device_eval_batch_size}, must be at least 1"

    def raw_inputs(self) -> dict[str, str]:
        return dataset_marks(self.dataset_name, (self.dataset_split,))


def evaluate(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure the classifier; writes metrics.json and predictions.parquet.

    Returns:
        The headline metrics with their intervals.
    """
    from llmkit.evaluation.classifier import evaluate_classifier

    return evaluate_classifier(config, workspace)
