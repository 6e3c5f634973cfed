"""How well the probabilities of a classifier set a class apart from the rest: ROC and precision-recall curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmkit.evaluation.probabilistic import chances_of
from llmkit.evaluation.sections import Evaluated
from llmkit.tasks.labels import MULTI, REGRESSION
from llmkit.tasks.text_classification import TextClassification

MAX_CLASSES = 10
"""The classes with most examples are shown."""

MAX_POINTS = 100


def section(evaluated: Evaluated) -> dict[str, Any] | None:
    """The curves of each class against the rest; of two exclusive classes those of the second.

    Returns:
        `curves`, for each class its `label`, `positives`, and `roc` (false positive rate, true positive rate, threshold) and
        `pr` (recall, precision, threshold), lists of at most `MAX_POINTS` points; `classes`, how many have curves.
    """
    task = evaluated.task
    if not isinstance(task, TextClassification) or task.kind == REGRESSION:
        return None
    chances = chances_of(task.labels, evaluated.predictions)
    if chances is None:
        return None
    targets = task.targets(evaluated.test)
    is_class = targets > 0 if task.kind == MULTI else targets[:, None] == np.arange(len(task.labels))
    positives = is_class.sum(axis=0)
    defined = [k for k in range(len(task.labels)) if 0 < positives[k] < len(is_class)]
    if task.kind != MULTI and len(task.labels) == 2:
        defined = defined[1:]
    if not defined:
        return None
    chosen = sorted(sorted(defined, key=lambda k: -positives[k])[:MAX_CLASSES])
    return {
        "classes": len(defined),
        "curves": [
            {"label": task.labels[k], "positives": int(positives[k]), **curves(chances[:, k], is_class[:, k])} for k in chosen
        ],
    }


def curves(scores: np.ndarray, positive: np.ndarray) -> dict[str, list[list[float]]]:
    """The ROC and the precision-recall curve of one class, thinned.

    Args:
        scores: float64 of shape [n].
        positive: bool of shape [n], with both values.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    is_last = np.append(falling[1:] < falling[:-1], True)
    hits, given = np.cumsum(positive[order])[is_last], np.flatnonzero(is_last) + 1
    total, rest, thresholds = int(positive.sum()), int((~positive).sum()), falling[is_last]
    false_rate, recall, precision = (given - hits) / rest, hits / total, hits / given
    roc = np.stack([np.append(0.0, false_rate), np.append(0.0, recall), np.append(1.0, thresholds)], axis=1)
    return {"roc": _thinned(roc), "pr": _thinned(np.stack([recall, precision, thresholds], axis=1))}


def _thinned(points: np.ndarray) -> list[list[float]]:
    """At most `MAX_POINTS` of the points of shape [points, 3], evenly along the curve of the first two, with its ends."""
    if len(points) > MAX_POINTS:
        way = np.append(0.0, np.cumsum(np.abs(np.diff(points[:, :2], axis=0)).sum(axis=1)))
        kept = np.searchsorted(way, np.linspace(0, way[-1], MAX_POINTS - 1))
        points = points[np.unique(np.append(kept, len(points) - 1))]
    return [[round(float(value), 5) for value in point] for point in points]
