"""The models of several seeds on one test set: what training leaves to luck, and what the choice of examples does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.evaluation.comparison import half_width, standard_error
from llmkit.evaluation.intervals import independent
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

    def measure(self, directory: Path) -> Measured:
        """A model on them."""
        task, model, tokenizer = load_task_model(str(directory), self.task_name)
        evaluation = evaluation_of(task)
        test = task.read(self.data.rows, self.columns)
        evaluation.adapt(task, test, self.data)
        return evaluation.measure(task, test, list(task.predict(model, tokenizer, test, self.batch_size)), self.seed)

    def headline(self, directory: Path) -> dict[str, float]:
        """The headline of a model on them."""
        return headline(self.measure(directory))


def measure_seeds(result: Path, seeds: list[int], first: Measured, test: TestSet) -> tuple[dict[str, Any], np.ndarray]:
    """What the models of all seeds have in common on the test set.

    Args:
        first: the first of them, which is measured already.

    Returns:
        `of`, the seeds; under `metrics` of each metric what `training.seeds.over_seeds` gives; under `value` what
        `two_way` gives, with the name of the value as `of` and its interval within what values can be. And the value of each
        example in the mean over seeds, float64 of shape [examples].
    """
    every = [first, *(test.measure(seed_directory(result, seed, seeds)) for seed in seeds[1:])]
    told = [headline(measured) for measured in every]
    common = [name for name in told[0] if all(name in found for found in told)]  # where it is undefined for none
    metrics = over_seeds(seeds, {name: [found[name] for found in told] for name in common})
    values = np.stack([measured.values for measured in every])
    apart = two_way(values, first.groups)
    if not first.lower_is_better:
        apart |= {"low": max(0.0, apart["low"]), "high": min(first.perfect, apart["high"])}
    found = {"of": first.metric, **apart}
    return {"of": seeds, "metrics": metrics, "value": {**found, "sentence": _sentence(found)}}, values.mean(axis=0)


def two_way(values: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
    """The mean of a value over seeds and examples, both of which are a choice among many.

    Value = mean + seed + example + rest, each of the last three random. Means of seeds vary by the variance of the seeds
    themselves, and by that of the rest, of which only so many examples were seen. The components are those of the method of
    moments (Searle, Casella and McCulloch 1992, Variance Components, chapter 4; a negative one is 0), with sums of groups in
    the place of examples where those are not independent. The interval combines those of both choices
    (`comparison.half_width`).

    Args:
        values: float64 of shape [seeds, examples], two seeds or more.
        groups: the number of the group that each example belongs to; None: each is a group by itself.

    Returns:
        `mean`, and its 95% interval `low` to `high` over examples and seeds; `sd`, the standard deviation between the means of
        the seeds; `sd_sampling`, as much of it as examples alone would give to seeds that are all equally good; and
        `sd_training`, what is beyond that. The squares of these two add up to that of the first, where it is the larger.
    """
    seeds, n = values.shape
    of_seeds, of_examples, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    rest = values - of_seeds[:, None] - of_examples + mean
    examples = standard_error(of_examples, groups) ** 2
    seen = float(of_seeds.var(ddof=1))
    explained = sum(standard_error(row, groups) ** 2 for row in rest) / (seeds - 1)
    beyond = max(0.0, seen - explained)
    half = half_width([(examples, independent(n, groups) - 1), (beyond / seeds, seeds - 1)])
    return {
        "mean": float(mean),
        "low": float(mean) - half,
        "high": float(mean) + half,
        "sd": float(np.sqrt(seen)),
        "sd_sampling": float(np.sqrt(explained)),
        "sd_training": float(np.sqrt(beyond)),
    }


def _sentence(found: dict[str, Any]) -> str:
    """What varies more, training or the choice of examples, for the page and the terminal."""
    start = f"Over seeds and examples {found['of']} is {found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    spread = f"the means of the seeds have a standard deviation of {found['sd']:.3f}"
    if found["sd_training"]:
        return (
            f"{start}: {spread}; the choice of examples alone would give them {found['sd_sampling']:.3f}, and the luck of "
            f"training {found['sd_training']:.3f} (in squares they add up)."
        )
    return f"{start}: {spread}, no more than the choice of examples gives ({found['sd_sampling']:.3f})."
