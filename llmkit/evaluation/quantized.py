"""Quantisation proper, with what it costs. `quantize.py` holds its settings and stays light to import."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.logging import disable_progress_bar

from llmkit.errors import ConfigError
from llmkit.evaluation.measured import Measured, evaluation_of
from llmkit.evaluation.task_model import columns_of, finetuned_artefact, test_split, with_interval
from llmkit.models import int8
from llmkit.tasks.base import Task
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.registry import SECTION

if TYPE_CHECKING:
    from llmkit.evaluation.quantize import QuantizeConfig
    from llmkit.pipeline.stage import Workspace

_RUNS = 2
"""The first warms up caches and memory; the faster one counts."""


def quantize_task_model(config: QuantizeConfig, workspace: Workspace) -> dict[str, Any]:
    """Quantise a classifier; see `quantize.quantize`."""
    disable_progress_bar()
    name = config.model_name_or_path
    task, model, tokenizer = load_task_model(name)
    if task.name != "text-classification":
        raise ConfigError([f"model_name_or_path: {name!r} is a model for {task.name}; only text classifiers are quantised"])
    if getattr(model.config, SECTION, {}).get("quantization"):
        raise ConfigError([f"model_name_or_path: {name!r} is quantised already"])
    model = model.to("cpu")
    test: list[Any] = []
    if config.test_file or config.dataset_name:
        data = test_split(config)
        test = task.read(data.rows, columns_of(config, finetuned_artefact(name)))
        evaluation_of(task).adapt(task, test, data)
    original = _tried(task, model, tokenizer, test, config) if test else None
    bytes_before = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    layers = int8.quantise(model)
    if not layers:
        raise ConfigError([f"model_name_or_path: {model.config.model_type} has no linear layers that could be quantised"])
    task.note(model)
    getattr(model.config, SECTION)["quantization"] = "int8"
    int8.save(model, workspace.directory)
    tokenizer.save_pretrained(workspace.directory)
    bytes_after = (workspace.directory / int8.FILE).stat().st_size
    metrics: dict[str, Any] = {
        "task": task.name,
        "int8_layers": len(layers),
        "weight_bytes": {"original": bytes_before, "int8": bytes_after, "ratio": bytes_after / bytes_before},
    }
    workspace.say(f"{len(layers)} linear layers in int8: {bytes_before:,} bytes of weights became {bytes_after:,}")
    if original is not None:
        metrics |= _beside(original, _tried(task, model, tokenizer, test, config), config, workspace)
    return metrics


class _Trial:
    """A model on the test examples."""

    def __init__(self, predictions: list[dict[str, Any]], measured: Measured, seconds: float):
        self.predictions, self.measured, self.seconds = predictions, measured, seconds


def _tried(task: Task[Any], model: Any, tokenizer: Any, test: list[Any], config: QuantizeConfig) -> _Trial:
    seconds, predictions = float("inf"), []
    for _ in range(_RUNS):
        start = time.perf_counter()
        predictions = list(task.predict(model, tokenizer, test, config.per_device_eval_batch_size))
        seconds = min(seconds, time.perf_counter() - start)
    return _Trial(predictions, evaluation_of(task).measure(task, test, predictions, config.seed), seconds)


def _beside(original: _Trial, quantised: _Trial, config: QuantizeConfig, workspace: Workspace) -> dict[str, Any]:
    n = len(original.predictions)
    comparison = quantised.measured.against(original.measured, "the original", config.seed)
    pairs = zip(original.predictions, quantised.predictions, strict=True)
    for before, after in zip(original.measured.headline, quantised.measured.headline, strict=True):
        if before.value is not None and after.value is not None:
            workspace.say(f"{before.key}: {after.value:.3f}, the original {before.value:.3f}")
    workspace.say(
        f"{original.seconds / quantised.seconds:.2f} times as fast on {torch.get_num_threads()} threads. {comparison.sentence}"
    )
    return {
        "n": n,
        **{
            kind: {metric.key: with_interval(metric) for metric in trial.measured.metrics if metric.label is None}
            for kind, trial in (("original", original), ("int8", quantised))
        },
        "comparison": asdict(comparison),
        "equal_predictions": sum(first["prediction"] == second["prediction"] for first, second in pairs) / n,
        "examples_per_second": {"original": n / original.seconds, "int8": n / quantised.seconds},
        "speed_ratio": original.seconds / quantised.seconds,
        "threads": torch.get_num_threads(),
    }
