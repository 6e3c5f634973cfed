"""How far the confidence of a classifier can be believed, and when it should rather not answer.

What is fitted is fitted on validation examples alone: the temperature (Guo et al. 2017), and the confidence from which on
predictions are right often enough. The test examples only show what came of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.evaluation import probabilistic
from llmkit.evaluation.intervals import Metric, wilson
from llmkit.evaluation.probabilistic import BINS, Reliability
from llmkit.evaluation.sections import Evaluated
from llmkit.tasks import temperature
from llmkit.tasks.base import digest, seen
from llmkit.tasks.labels import SINGLE
from llmkit.tasks.text_classification import TextClassification

FEWEST = 20
"""Validation examples that a fit needs."""

TARGETS = (0.9, 0.95)
"""The shares of right predictions for which a confidence is looked for."""

_COVERAGES = [step / 20 for step in range(20, 0, -1)]


def section(evaluated: Evaluated) -> dict[str, Any] | None:
    """Reliability before and after temperature scaling, coverage against accuracy, and when to answer; for classifiers of one
    class a text.

    Returns:
        `bins`, their number; `before` and `after` (None without a temperature), see `_reliability`; `temperature`, or
        `no_temperature`, the reason; `coverage` and `aurc`, see `risk_coverage`; and `abstention`, for each of `TARGETS` the
        `confidence` from which on the lower limit of accuracy is at least that on the validation examples (None where there
        is none), and what it gives on both splits.
    """
    task = evaluated.task
    if not isinstance(task, TextClassification) or task.kind != SINGLE:
        return None
    on_test = _Answers.of(task, evaluated.test, evaluated.predictions)
    if on_test is None:
        return None
    points, aurc = risk_coverage(on_test.confidence, on_test.right)
    found: dict[str, Any] = {
        "bins": BINS,
        "before": _reliability(on_test, evaluated.config.seed),
        "after": None,
        "temperature": None,
        "coverage": points,
        "aurc": aurc.as_dict(),
        "abstention": [],
    }
    fitted_on, reason, left_out = _validation(evaluated, task)
    if fitted_on is None:
        return found | {"no_temperature": reason}
    found["abstention"] = [abstention(target, fitted_on, on_test) for target in TARGETS]
    if fitted_on.right.all():
        return found | {"no_temperature": "all validation predictions are right, so that nothing bounds their confidence"}
    value = temperature.fit(fitted_on.chances, fitted_on.true)
    found["temperature"] = {
        "value": value,
        "fitted_on": "validation",
        "n": len(fitted_on.true),
        "sha256": digest(evaluated.trained_on.validation) if evaluated.trained_on else None,
        "left_out": left_out,
        "log_loss_before": temperature.log_loss(fitted_on.chances, fitted_on.true),
        "log_loss_after": temperature.log_loss(temperature.scaled(fitted_on.chances, value), fitted_on.true),
        "weights": temperature.weights_of(Path(evaluated.config.model_name_or_path)),
    }
    found["after"] = _reliability(on_test.at(value), evaluated.config.seed)
    return found


class _Answers:
    """Predictions with their probabilities, and the true classes.

    Attributes:
        chances: float64 of shape [examples, classes].
        true, predicted: class numbers of shape [examples].
    """

    def __init__(self, chances: np.ndarray, true: np.ndarray, predicted: np.ndarray):
        self.chances, self.true, self.predicted = chances, true, predicted
        self.confidence = chances[np.arange(len(true)), predicted]
        self.right = true == predicted

    @classmethod
    def of(cls, task: TextClassification, examples: list[Any], predictions: Any) -> _Answers | None:
        """None where predictions have no probabilities."""
        chances = probabilistic.chances_of(task.labels, predictions)
        if chances is None:
            return None
        numbers = {label: number for number, label in enumerate(task.labels)}
        return cls(chances, task.targets(examples), np.array([numbers[row["prediction"]] for row in predictions]))

    def at(self, value: float) -> _Answers:
        """The same predictions with the probabilities of a temperature."""
        return _Answers(temperature.scaled(self.chances, value), self.true, self.predicted)


def _validation(evaluated: Evaluated, task: TextClassification) -> tuple[_Answers | None, str, int]:
    """The validation predictions that are no test examples, or why there are none, and how many were left out."""
    if evaluated.trained_on is None:
        return None, "the validation examples of the model are not known", 0
    examples = evaluated.trained_on.validation
    if digest(examples) == digest(evaluated.test):
        return None, "the test examples are the validation examples, and what is fitted on them would flatter itself", 0
    kept = np.flatnonzero(~seen(examples, evaluated.test)).tolist()
    if len(kept) < FEWEST:
        what = f"{len(kept)} validation examples are no test examples, and {FEWEST} are needed"
        return None, what, len(examples) - len(kept)
    given = evaluated.on_validation or []
    answers = _Answers.of(task, [examples[index] for index in kept], [given[index] for index in kept])
    return answers, "validation predictions have no probabilities", len(examples) - len(kept)


def _reliability(answers: _Answers, seed: int) -> dict[str, Any]:
    """The calibration error, the log-loss, and the bins that hold predictions, with Wilson's interval of the share that is
    right."""
    bins = Reliability.of(answers.confidence, answers.right)
    losses = probabilistic.log_losses(answers.chances[np.arange(len(answers.true)), answers.true])
    shown = []
    for number in np.flatnonzero(bins.n).tolist():
        n, right = int(bins.n[number]), int(bins.right[number])
        low, high = wilson(right, n)
        shown.append(
            {
                "from": number / BINS,
                "to": (number + 1) / BINS,
                "n": n,
                "right": right,
                "confidence": float(bins.confidence[number] / n),
                "accuracy": right / n,
                "low": low,
                "high": high,
            }
        )
    return {
        "ece": bins.error(seed).as_dict(),
        "log_loss": probabilistic.mean_metric("log_loss", losses).as_dict(),
        "bins": shown,
    }


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[list[dict[str, Any]], Metric]:
    """Accuracy where the least sure predictions are withheld, and the area under the curve of errors against coverage.

    AURC (Geifman et al. 2019, ICLR) is the mean, over examples, of the share of errors among those that are at least as sure.
    Examples of equal confidence are answered all or none.

    Args:
        confidence: float64 of shape [n].
        right: bool of shape [n].
    """
    n = len(right)
    falling = np.sort(confidence)[::-1]
    points: list[dict[str, Any]] = []
    for coverage in _COVERAGES:
        threshold = float(falling[math.ceil(coverage * n) - 1])
        point = _answered(threshold, confidence, right)
        if not points or point["answered"] < points[-1]["answered"]:
            points.append({"confidence": threshold, **point})
    value, slopes = probabilistic.mean_rate(confidence, ~right, np.ones(n, dtype=bool))
    if n < 2 or not 0 < value < 1:
        low, high = wilson(int((~right).sum()), n)
        return points, Metric("aurc", value, low, high, n, "wilson")
    limits = probabilistic.logit_limits(value, float(slopes @ slopes), max(2, int((~right).sum())))
    return points, Metric("aurc", value, *limits, n, "logit")


def _answered(threshold: float, confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """What is answered from a confidence on, and the share of it that is right, with Wilson's interval."""
    chosen = confidence >= threshold
    n, hits = int(chosen.sum()), int(right[chosen].sum())
    low, high = wilson(hits, n)
    accuracy = hits / n if n else None
    return {"answered": n, "coverage": n / len(right), "right": hits, "accuracy": accuracy, "low": low, "high": high}


def abstention(target: float, fitted_on: Any, on_test: Any) -> dict[str, Any]:
    """The lowest confidence from which on the lower limit of accuracy is at least the target, and what it gives.

    Args:
        fitted_on, on_test: `confidence`, float64 of shape [examples], and `right`, bool of the same shape.
    """
    order = np.argsort(-fitted_on.confidence, kind="stable")
    falling, hits = fitted_on.confidence[order], np.cumsum(fitted_on.right[order])
    is_last = np.append(falling[1:] < falling[:-1], True)  # of those of equal confidence
    good = [place for place in np.flatnonzero(is_last).tolist() if wilson(int(hits[place]), place + 1)[0] >= target]
    if not good:
        return {"target": target, "confidence": None}
    threshold = float(falling[good[-1]])
    splits = {"validation": fitted_on, "test": on_test}
    return {
        "target": target,
        "confidence": threshold,
        **{name: _answered(threshold, split.confidence, split.right) for name, split in splits.items()},
    }
