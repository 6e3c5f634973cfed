"""What an evaluation finds beside its metrics.

Each part is a module of this package of the name it has in metrics.json, with a function `section` that takes an `Evaluated`
and gives what it found as JSON has it, or None where it has nothing to say. The report shows a part by the module of the same
name in `llmkit.reports.sections`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.evaluation.measured import Measured, Predictions, evaluation_of
from llmkit.tasks.base import Task
from llmkit.tasks.tables import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.pipeline.artefact import Artefact
    from llmkit.training.examples import Examples

SECTIONS: tuple[str, ...] = ("calibration", "discrimination", "leakage", "slices", "swaps", "lexicon", "selfcheck")
"""In the order in which they are computed."""


@dataclass
class Evaluated:
    """A model, what it was measured on, and what came out."""

    config: EvaluateConfig
    task: Task[Any]
    model: Any
    tokenizer: Any
    data: Split
    """The rows of the test set, in the order of `test`, with all their columns."""
    test: list[Any]
    predictions: Predictions
    measured: Measured
    finetuned: Artefact | None
    """The `finetune` (or `ablate`) result that the model is."""
    trained_on: Examples | None
    """The very examples that the model was trained and validated on, where they are known."""
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns of predictions.parquet, which sections may add to; one value for each test example."""

    def predict(self, examples: list[Any]) -> Predictions:
        """What the model gives for other examples of its task."""
        return list(self.task.predict(self.model, self.tokenizer, examples, self.config.per_device_eval_batch_size))

    @cached_property
    def on_validation(self) -> Predictions | None:
        """What it gives for its validation examples, where they are known: what is fitted is fitted on these alone."""
        return self.predict(self.trained_on.validation) if self.trained_on and self.trained_on.validation else None

    def measure(self, chosen: np.ndarray) -> Measured:
        """The metrics of some of the test examples, bool of shape [examples]."""
        places = np.flatnonzero(chosen).tolist()
        test, predictions = [self.test[place] for place in places], [self.predictions[place] for place in places]
        return evaluation_of(self.task).measure(self.task, test, predictions, self.config.seed)


def sections(evaluated: Evaluated) -> dict[str, Any]:
    """What all parts found, by name."""
    found = {name: importlib.import_module(f"llmkit.evaluation.{name}").section(evaluated) for name in SECTIONS}
    return {name: part for name, part in found.items() if part is not None}
