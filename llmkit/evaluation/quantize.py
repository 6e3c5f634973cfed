"""Stage `quantize`: a classifier to one with int8 weights for CPUs, its accuracy beside the original's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.config import StageConfig, option
from llmkit.tasks.settings import Columns
from llmkit.training.finetune import dataset_marks, source_problems

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


@dataclass(kw_only=True)
class QuantizeConfig(Columns, StageConfig):
    """Settings of the quantize stage."""

    model_name_or_path: str = option(role="artefact")
    """Classifier to quantise: the directory of a `finetune` result, or any text classifier of transformers."""

    test_file: str | None = option(None, role="files")
    """Examples that both are measured on: .csv, .tsv, .jsonl or .parquet, one a row. Without any, nothing is measured."""

    dataset_name: str | None = option(None)
    """Instead of a file: `llmkit/reviews` (embedded), or the name or directory of a data set that `datasets` can load."""

    dataset_config_name: str | None = option(None)
    """Configuration of that data set."""

    dataset_revision: str | None = option(None)
    """Commit, branch or tag of that data set on the hub; None: its newest."""

    dataset_split: str = option("test")
    """Split of that data set."""

    per_device_eval_batch_size: int = option(64)
    """Examples computed at once."""

    seed: int = option(0)
    """Seed of resampling."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.test_file or self.dataset_name:
            yield from source_problems(self, "test_file")
        if self.per_device_eval_batch_size < 1:
            yield f"per_device_eval_batch_size: is {self.per_device_eval_batch_size}, must be at least 1"

    def raw_inputs(self) -> dict[str, str]:
        return dataset_marks(self.dataset_name, (self.dataset_split,))


def quantize(config: QuantizeConfig, workspace: Workspace) -> dict[str, Any]:
    """Quantise the classifier; the workspace becomes a directory that `llmkit evaluate` and `predict` take.

    Returns:
        Sizes, and both models' metrics and speed on the test examples.
    """
    from llmkit.evaluation.quantized import quantize_task_model

    return quantize_task_model(config, workspace)
