"""The models of several seeds on one test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.evaluation.measured import Measured, evaluation_of
from llmkit.tasks.loading import load_task_model
from llmkit.training.seeds import over_seeds, seed_directory

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact
    from llmkit.tasks.settings import Columns
    from llmkit.tasks.tables import Split


def seeds_of(name: str, finetuned: Artefact | None) -> list[int]:
    """The seeds of a `finetune` result that has several, where it is measured as a whole, and not one model of it."""
    if finetuned is None or Path(name).resolve() != finetuned.directory.resolve():
        return []
    return list(finetuned.manifest.metrics.get("seeds", {}).get("of", []))


def headline(measured: Measured) -> dict[str, float]:
    """The metrics that are told first, by name; those that are undefined left out."""
    return {metric.key: metric.value for metric in measured.headline if metric.value is not None}


@dataclass
class TestSet:
    """Test examples, and how models are measured on them."""

    data: Split
    columns: Columns
    task_name: str | None
    """None: as the config of a model says."""
    batch_size: int
    seed: int
    """Of resampling."""

    def headline(self, directory: Path) -> dict[str, float]:
        """The headline of a model on them."""
        task, model, tokenizer = load_task_model(str(directory), self.task_name)
        evaluation = evaluation_of(task)
        test = task.read(self.data.rows, self.columns)
        evaluation.adapt(task, test, self.data)
        return headline(evaluation.measure(task, test, list(task.predict(model, tokenizer, test, self.batch_size)), self.seed))


def measure_seeds(result: Path, seeds: list[int], first: dict[str, float], test: TestSet) -> dict[str, Any]:
    """What the models of all seeds have in common on the test set.

    Args:
        first: the headline of the first, which is measured already.

    Returns:
        `of`, the seeds, and under `metrics` of each metric what `training.seeds.over_seeds` gives.
    """
    others = [test.headline(seed_directory(result, seed, seeds)) for seed in seeds[1:]]
    common = [name for name in first if all(name in found for found in others)]  # where it is undefined for none
    values = {name: [first[name], *(found[name] for found in others)] for name in common}
    return {"of": seeds, "metrics": over_seeds(seeds, values)}
