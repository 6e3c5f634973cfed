"""Temperature scaling (Guo et al. 2017): one number that makes the probabilities of a classifier as sure as they may be.

Logits divided by the temperature give each probability to the power of 1 / temperature, scaled to a sum of 1: the order of the
classes stays, and so do predictions. It is fitted by `llmkit evaluate` on validation examples, kept in its metrics.json (the
model's own files stay as they were made), and applied by `llmkit predict`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact, sha256_of

_LARGEST = 20.0


def fit(chances: np.ndarray, true: np.ndarray) -> float:
    """The temperature with the least log-loss, between 1/20 and 20.

    Args:
        chances: probabilities, float64 of shape [examples, classes].
        true: class numbers of shape [examples].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(scaled(chances, float(np.exp(log_temperature))), true)

    bound = float(np.log(_LARGEST))
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def scaled(chances: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at a temperature; of the shape they have, classes last."""
    relative = (chances / chances.max(axis=-1, keepdims=True)) ** (1 / temperature)
    return relative / relative.sum(axis=-1, keepdims=True)


def log_loss(chances: np.ndarray, true: np.ndarray) -> float:
    """The mean of minus the logarithm of the true class's probability; a probability of 0 counts as the least float."""
    of_true = chances[np.arange(len(true)), true]
    return float(-np.log(np.maximum(of_true, np.finfo(np.float64).tiny)).mean())


def calibrated(row: dict[str, Any], temperature: float) -> dict[str, Any]:
    """A prediction of a classifier of one class a text with its probabilities and its score at a temperature."""
    names = [name for name in row if name.startswith("probability_")]
    chances = scaled(np.array([row[name] for name in names]), temperature).tolist()
    changed = dict(zip(names, chances, strict=True))
    return row | changed | {"score": changed[f"probability_{row['prediction']}"]}


def weights_of(directory: Path) -> dict[str, str]:
    """The sha256 of each weight file of a model."""
    return {path.name: sha256_of(path) for path in sorted(directory.glob("*.safetensors"))}


def temperature_of(evaluation: str, model: str) -> float:
    """The temperature that an evaluation has fitted for a model.

    Args:
        evaluation: directory of the `evaluate` result.
        model: directory of the model that it is to be applied to.

    Raises:
        ArtefactError: there is no such evaluation.
        ConfigError: it has fitted none, or one for another model.
    """
    artefact = Artefact.open(evaluation, "evaluate")
    record = json.loads((artefact.directory / "metrics.json").read_text(encoding="utf-8"))
    found: Mapping[str, Any] = record.get("calibration") or {}
    fitted = found.get("temperature")
    if not fitted:
        reason = found.get("no_temperature") or "it is for classifiers of one class a text"
        raise ConfigError([f"calibration: {evaluation!r} has fitted no temperature: {reason}"])
    if not Path(model).is_dir() or fitted["weights"] != weights_of(Path(model)):
        raise ConfigError([f"calibration: {evaluation!r} is of a model with other weights than {model!r}"])
    return float(fitted["value"])
