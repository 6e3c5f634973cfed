"""Stage `ablate`: did pretraining help? Light to import."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.config import option
from llmkit.training.finetune import FinetuneConfig, dataset_marks

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


@dataclass(kw_only=True)
class AblateConfig(FinetuneConfig):
    """Settings of the ablate stage: those of fine-tuning, and what both starts are measured on."""

    seeds: list[int] | None = option(factory=lambda: [0, 1, 2])
    """Both starts are trained once with each of these seeds: `0,1,2`. Which examples are held out depends on `seed`."""

    test_file: str | None = option(None, role="files")
    """Test examples: .csv, .tsv, .jsonl or .parquet, one a row. None: measured on the validation examples."""

    test_split: str | None = option(None)
    """Instead of a file: the split of the data set to measure on."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.model_type or self.random_start:
            yield "model_name_or_path: give a pretrained model; its random start follows from it"
        for name in ("peft", "freeze"):
            if getattr(self, name):
                yield f"{name}: leaves most weights as they are, and those of a random start are worth nothing; train all"
        if not self.seeds:
            yield "seeds: an interval needs two or more"
        if self.test_file and self.test_split:
            yield "test_file, test_split: give one of them"
        if self.test_split and not self.dataset_name:
            yield "test_split: goes with dataset_name"

    def raw_inputs(self) -> dict[str, str]:
        test = (self.test_split,) if self.test_split else ()
        return dataset_marks(self.dataset_name, ("train", "validation", *test))


def ablate(config: AblateConfig, workspace: Workspace) -> dict[str, Any]:
    """Fine-tune from the pretrained weights and from a random start, and compare; writes ablation.json.

    Returns:
        The difference of each metric with its interval.
    """
    from llmkit.evaluation.ablation import compare_starts

    return compare_starts(config, workspace)
