"""Stage `evaluate`: a task model and a test set to metrics, predictions and baselines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.config import StageConfig, option
from llmkit.evaluation import gate
from llmkit.tasks.registry import TaskName
from llmkit.tasks.settings import Columns
from llmkit.training.finetune import dataset_marks, source_problems

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


@dataclass(kw_only=True)
class EvaluateConfig(Columns, StageConfig):
    """Settings of the evaluate stage."""

    model_name_or_path: str = option(role="artefact")
    """Model to measure: the directory of a `finetune` result, or any model of transformers with the head of a task."""

    task: TaskName | None = option(None)
    """Its task; None: as its config says."""

    test_file: str | None = option(None, role="files")
    """Test examples: .csv, .tsv, .jsonl or .parquet, one a row."""

    dataset_name: str | None = option(None)
    """Instead of a file: the name or directory of a data set that `datasets` can load, or an embedded one, such as
    `llmkit/reviews`."""

    dataset_config_name: str | None = option(None)
    """Configuration of that data set."""

    dataset_revision: str | None = option(None)
    """Commit, branch or tag of that data set on the hub; None: its newest."""

    dataset_split: str = option("test")
    """Split of that data set."""

    per_device_eval_batch_size: int = option(64)
    """Examples computed at once."""

    baselines: bool = option(True)
    """Measure the baselines too; they learn from the examples that a `finetune` result was trained on."""

    selfcheck: bool = option(False)
    """Compare every metric with its reference (scikit-learn, scipy, sacrebleu, the definition of SQuAD), and count predictions
    that change with the batch size; a metric that differs ends the evaluation."""
    leakage: bool = option(True)
    """Look for the n-grams of test examples in what the model was trained on: its pretraining corpus and its fine-tuning
    examples, as the lineage has them. Takes about a minute for 2 GB of text."""

    slice_by: list[str] = option(factory=list)
    """Further columns of the test set by which its examples are sliced: numbers are cut into quarters, others may have up to
    20 values."""

    bias_probe: bool = option(True)
    """Swap words for gender, names, places and nationalities in test examples, and count what changes; at most 500 further
    predictions, by classifiers and question answerers."""

    seed: int = option(0)
    """Seed of resampling, of the baselines, and of what is drawn for the bias probe."""

    gate: list[str] | None = option(None, identity=False)
    """Conditions such as "accuracy>=0.8" or "ter<=60", in quotes: >= holds for the lower end of the 95% interval, <= for its
    upper end. Where one is not met, the result is kept all the same, and the exit code is 1."""

    def problems(self) -> Iterable[str]:
        yield from gate.problems(self.gate or [])
        yield from source_problems(self, "test_file")
        if self.per_device_eval_batch_size < 1:
            yield f"per_device_eval_batch_size: is {self.per_device_eval_batch_size}, must be at least 1"

    def raw_inputs(self) -> dict[str, str]:
        return dataset_marks(self.dataset_name, (self.dataset_split,))


def evaluate(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure the model; writes metrics.json and predictions.parquet.

    Returns:
        The headline metrics with their intervals.
    """
    from llmkit.evaluation.task_model import evaluate_task_model

    return evaluate_task_model(config, workspace)
