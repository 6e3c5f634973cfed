"""Settings of the single tasks, for the stages and commands that take them. Light: imports no task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmkit.config import StageConfig, option
from llmkit.tasks.labels import ProblemType


@dataclass(kw_only=True)
class Columns:
    """Which columns of a table hold what; None: as in fine-tuning, or found by its usual names."""

    text_column: str | None = option(None)
    """Column of texts to classify; None: found by its name."""

    text_pair_column: str | None = option(None)
    """Column of second texts, where pairs are classified; None: found by its name, where both are usual ones, such as
    `sentence1` and `sentence2`."""

    label_column: str | None = option(None)
    """Column of labels; None: found by its name."""

    label_separator: str | None = option(None)
    """What stands between the labels of a text with several, where a table has them as one string, such as `|`."""


@dataclass(kw_only=True)
class ClassificationSettings(StageConfig):
    """Settings of a training of text classifiers."""

    task_name: ClassVar = "text-classification"

    problem_type: ProblemType | None = option(None)
    """What labels are: one class a text, any number of classes, or numbers; None: by the data, which is said."""

    class_weights: Literal["balanced"] | dict[str, Any] | None = option(None)
    """How much the examples of a class weigh: `balanced` gives each class the same sum, a mapping names weights of labels
    (others weigh 1). Only ratios matter. Of several labels a text, how much presence weighs against absence."""

    focal_gamma: float = option(0.0)
    """Exponent of the focal loss (Lin et al. 2017), by which easy examples count less; 0: the cross-entropy."""

    class_sampling: Literal["natural", "balanced"] = option("natural")
    """Which examples a run learns from: each equally often, or those of each class equally often."""

    tune_threshold: bool | None = option(None)
    """Choose by the validation examples from which probability on a label is given; of two classes, on the probability of the
    second. None: only for several labels a text."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.focal_gamma < 0:
            yield f"focal_gamma: is {self.focal_gamma}, must be at least 0"
        if isinstance(self.class_weights, dict):
            for label, weight in self.class_weights.items():
                if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                    yield f"class_weights: the weight of {label!r} is {weight!r}, must be a number above 0"
        if self.class_weights and self.class_sampling == "balanced":
            yield "class_sampling: balances the classes, and class_weights would do so once more; give one of them"
