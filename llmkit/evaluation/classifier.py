"""Evaluation proper. `evaluate.py` holds its settings and stays light to import."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.evaluation import baselines
from llmkit.evaluation.classification import LEVEL, Metric, compare_accuracy, confusion_matrix, measure
from llmkit.pipeline.artefact import Artefact, enclosing, sha256_of
from llmkit.tasks import text_classification as task
from llmkit.tasks.tables import read_dataset, read_table
from llmkit.training.classifier import load_examples
from llmkit.training.finetune import FinetuneConfig

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.pipeline.stage import Workspace


def evaluate_classifier(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure a classifier; see `evaluate.evaluate`."""
    disable_progress_bar()
    finetuned = _finetuned(config.model_name_or_path)
    test = _test_examples(config, finetuned)
    tokenizer = task.load_tokenizer(config.model_name_or_path)
    model, labels = _load(config.model_name_or_path)
    task.check_labels(test, labels, "test")
    max_length = task.context_length(model, tokenizer, None)
    chances = predict(model, tokenizer, task.Features(test, tokenizer, labels, max_length), config.per_device_eval_batch_size)
    numbers = {label: index for index, label in enumerate(labels)}
    true = np.array([numbers[example.label] for example in test])
    predicted = chances.argmax(axis=1)
    confusion = confusion_matrix(true, predicted, len(labels))
    metrics = measure(confusion, labels, config.seed)
    result: dict[str, Any] = {
        "task": "text-classification",
        "dataset": config.dataset_name or str(config.test_file),
        "split": config.dataset_split if config.dataset_name else "test",
        "n": len(test),
        "labels": labels,
        "interval": LEVEL,
        "seed": config.seed,
        "metrics": [metric.as_dict() for metric in metrics],
        "confusion": confusion.tolist(),
        "baselines": [],
        "comparison": [],
    }
    if config.baselines and finetuned is not None:
        changed = _changed_data(finetuned)
        if changed:
            workspace.say(f"baselines left out: {changed} is not there as it was when the model was trained")
        else:
            _add_baselines(result, finetuned, test, true, predicted, config.seed)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (workspace.directory / "metrics.json").write_text(text + "\n", encoding="utf-8")
    _write_predictions(workspace.directory / "predictions.parquet", test, labels, predicted, chances)
    for line in summary(metrics, result):
        workspace.say(line)
    return {"n": len(test), **{_key(metric): _with_interval(metric) for metric in metrics if metric.label is None}}


def _finetuned(name: str) -> Artefact | None:
    artefact = enclosing(Path(name)) if Path(name).exists() else None
    return artefact if artefact is not None and artefact.manifest.stage == "finetune" else None


def _finetune_config(finetuned: Artefact) -> FinetuneConfig:
    return resolve(FinetuneConfig, [Source(finetuned.manifest.config, {})]).config


def _test_examples(config: EvaluateConfig, finetuned: Artefact | None) -> list[task.Example]:
    if config.test_file:
        rows = read_table(config.test_file)
    else:
        rows = read_dataset(config.dataset_name or "", config.dataset_config_name, config.dataset_split)
    trained = _finetune_config(finetuned) if finetuned else None
    text_column = config.text_column or (trained.text_column if trained else None)
    label_column = config.label_column or (trained.label_column if trained else None)
    return task.examples(rows, text_column, label_column)


def _load(name: str) -> tuple[Any, list[str]]:
    from transformers import AutoModelForSequenceClassification

    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(name, dtype="float32", output_loading_info=True)
    except (OSError, ValueError) as failure:
        raise ConfigError([f"model_name_or_path: {name!r} gives no text classifier: {failure}"]) from failure
    if loading["missing_keys"]:  # transformers has filled them with random numbers
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError([f"model_name_or_path: {name!r} is no text classifier (it lacks {missing}); fine-tune it first"])
    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), labels


@torch.inference_mode()
def predict(model: Any, tokenizer: Any, features: task.Features, batch_size: int) -> np.ndarray:
    """Class probabilities, float64 of shape [examples, classes].

    Batches hold examples of like length, so that little is computed on padding; results come in the order of the examples.
    """
    order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]))
    collate = task.collator(tokenizer)
    logits: list[np.ndarray | None] = [None] * len(features)
    for start in tqdm(range(0, len(order), batch_size), desc="evaluate", unit="batch", disable=None):
        chosen = order[start : start + batch_size]
        batch = collate([{key: value for key, value in features[index].items() if key != "labels"} for index in chosen])
        output = model(**{key: value.to(model.device) for key, value in batch.items()}).logits.float().cpu().numpy()
        for index, row in zip(chosen, output, strict=True):
            logits[index] = row
    return task.probabilities(np.stack([row for row in logits if row is not None]))


def _changed_data(finetuned: Artefact) -> str | None:
    """The first file of the model's training data that is gone or changed: baselines must learn from the same data."""
    for record in finetuned.manifest.raw_inputs:
        path = Path(record.path)
        if record.size and not (path.is_file() and sha256_of(path) == record.sha256):
            return record.path
    return None


def _add_baselines(
    result: dict[str, Any], finetuned: Artefact, test: list[task.Example], true: np.ndarray, predicted: np.ndarray, seed: int
) -> None:
    train, _ = load_examples(_finetune_config(finetuned))
    labels = result["labels"]
    numbers = {label: index for index, label in enumerate(labels)}
    for baseline in (baselines.majority(train, test), baselines.tfidf(train, test, seed)):
        guessed = np.array([numbers[label] for label in baseline.predictions])
        metrics = measure(confusion_matrix(true, guessed, len(labels)), labels, seed)
        entry = {"name": baseline.name, "detail": baseline.detail, "metrics": [metric.as_dict() for metric in metrics]}
        result["baselines"].append(entry)
        result["comparison"].append(asdict(compare_accuracy(predicted == true, guessed == true, baseline.name, seed)))


def _write_predictions(
    path: Path, test: list[task.Example], labels: list[str], predicted: np.ndarray, chances: np.ndarray
) -> None:
    columns: dict[str, Any] = {
        "id": [example.id for example in test],
        "text": [example.text for example in test],
        "label": [example.label for example in test],
        "prediction": [labels[index] for index in predicted],
        "score": chances.max(axis=1),
    }
    columns.update({f"probability_{label}": chances[:, index] for index, label in enumerate(labels)})
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def _key(metric: Metric) -> str:
    return metric.name if metric.average is None else f"{metric.name}_{metric.average}"


def _with_interval(metric: Metric) -> dict[str, float]:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def summary(metrics: list[Metric], result: dict[str, Any]) -> list[str]:
    """The result in a few lines for a terminal."""
    lines = [f"{result['dataset']} ({result['split']}), n = {result['n']}, 95% intervals:"]
    for metric in metrics:
        if (metric.name, metric.average, metric.label) in (("accuracy", None, None), ("f1", "macro", None)):
            lines.append(f"  {_key(metric):10} {metric.value:.3f}  ({metric.low:.3f} to {metric.high:.3f})")
    return [*lines, *(f"  {item['sentence']}" for item in result["comparison"])]
