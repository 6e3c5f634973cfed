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
from llmkit.errors import ConfigError, DataError, LLMKitError
from llmkit.evaluation import baselines
from llmkit.evaluation.classification import LEVEL, Metric, compare_accuracy, confusion_matrix, measure, wilson
from llmkit.pipeline.artefact import Artefact, enclosing
from llmkit.tasks import text_classification as task
from llmkit.tasks.tables import Split, read_dataset, read_table, source_name
from llmkit.training.classifier import Examples, load_examples
from llmkit.training.finetune import FinetuneConfig

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.pipeline.stage import Workspace


def evaluate_classifier(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure a classifier; see `evaluate.evaluate`."""
    disable_progress_bar()
    finetuned = _finetuned(config.model_name_or_path)
    test, data = _test_examples(config, finetuned)
    tokenizer = task.load_tokenizer(config.model_name_or_path)
    model, labels = _load(config.model_name_or_path)
    labels = name_classes(labels, test, data)
    task.check_labels(test, labels, "test")
    max_length = task.context_length(model, tokenizer, None)
    chances = predict(model, tokenizer, task.Features(test, tokenizer, labels, max_length), config.per_device_eval_batch_size)
    numbers = {label: index for index, label in enumerate(labels)}
    true = np.array([numbers[example.label] for example in test])
    predicted = chances.argmax(axis=1)
    confusion = confusion_matrix(true, predicted, len(labels))
    metrics = measure(confusion, labels)
    result: dict[str, Any] = {
        "task": "text-classification",
        "dataset": source_name(config.test_file or config.dataset_name or ""),
        "dataset_revision": data.revision,
        "split": config.dataset_split if config.dataset_name else "test",
        "n": len(test),
        "labels": labels,
        "interval": LEVEL,
        "seed": config.seed,
        "metrics": [metric.as_dict() for metric in metrics],
        "confusion": confusion.tolist(),
        "texts_with_several_labels": task.conflicting(test),
        "overlap": None,
        "baselines": [],
        "comparison": [],
    }
    trained_on, reason = _training_examples(finetuned)
    if trained_on is None:
        result["overlap_unknown"] = result["baselines_left_out"] = reason
    else:
        result["overlap"] = _overlap(test, trained_on, true == predicted)
        if config.baselines:
            _add_baselines(result, trained_on.train, test, true, predicted, config.seed)
        else:
            result["baselines_left_out"] = "the setting `baselines` is off"
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


def _test_examples(config: EvaluateConfig, finetuned: Artefact | None) -> tuple[list[task.Example], Split]:
    if config.test_file:
        data = Split(read_table(config.test_file))
    else:
        data = read_dataset(
            config.dataset_name or "", config.dataset_config_name, config.dataset_split, config.dataset_revision
        )
    trained = _finetune_config(finetuned) if finetuned else None
    text_column = config.text_column or (trained.text_column if trained else None)
    label_column = config.label_column or (trained.label_column if trained else None)
    return task.examples(data.rows, text_column, label_column), data


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


def name_classes(labels: list[str], test: list[task.Example], data: Split) -> list[str]:
    """The model's classes under the names that the test set uses.

    Many a classifier was saved without names; transformers then calls its classes LABEL_0, LABEL_1 and so on. They are what
    their numbers say, if the test set has numbers, or names in a known order.

    Raises:
        DataError: the model has only numbers, and the test set does not say which name belongs to which.
    """
    numbers = [str(index) for index in range(len(labels))]
    used = {example.label for example in test}
    if labels != [f"LABEL_{number}" for number in numbers] or used <= set(labels):
        return labels
    if used <= set(numbers):
        return numbers
    known = [names for names in data.classes.values() if used <= set(names) and len(names) == len(labels)]
    if len(known) == 1:
        return known[0]
    raise DataError(
        f"the model's classes have no names, only LABEL_0 to LABEL_{len(labels) - 1}, and the test labels are "
        f"{', '.join(sorted(used))}: which is which? Give test labels from 0 to {len(labels) - 1}, or set `id2label` and "
        f"`label2id` in the model's config.json"
    )


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


def _training_examples(finetuned: Artefact | None) -> tuple[Examples | None, str]:
    """The very examples that the model was trained and validated on, or why they cannot be had."""
    if finetuned is None:
        return None, "the model is not a result of `llmkit finetune`, so its training examples are not known"
    mend = "; put it back and evaluate again with --force"
    try:
        found = load_examples(_finetune_config(finetuned))
    except LLMKitError as failure:
        return None, f"the training data cannot be read again ({failure}){mend}"
    recorded = finetuned.manifest.metrics
    for name, examples in (("train", found.train), ("validation", found.validation)):
        if recorded.get(name, {}).get("sha256") != task.digest(examples):
            return None, f"the {name} examples are not those whose sha256 the model's manifest records{mend}"
    return found, ""


def _overlap(test: list[task.Example], trained_on: Examples, right: np.ndarray) -> dict[str, Any]:
    """Test examples whose text the model has met before, and the accuracy on the others."""
    in_train, in_validation = task.seen(test, trained_on.train), task.seen(test, trained_on.validation)
    new = ~(in_train | in_validation)
    n, hits = int(new.sum()), int(right[new].sum())
    without = Metric("accuracy", hits / n if n else None, *wilson(hits, n), n, "wilson")
    return {
        "train": {"examples": int(in_train.sum()), "share": float(in_train.mean())},
        "validation": {"examples": int(in_validation.sum()), "share": float(in_validation.mean())},
        "either": {"examples": len(test) - n, "share": float(1 - new.mean())},
        "accuracy_without": without.as_dict(),
    }


def _add_baselines(
    result: dict[str, Any],
    train: list[task.Example],
    test: list[task.Example],
    true: np.ndarray,
    predicted: np.ndarray,
    seed: int,
) -> None:
    labels = result["labels"]
    numbers = {label: index for index, label in enumerate(labels)}
    for baseline in (baselines.majority(train, test), baselines.tfidf(train, test, seed)):
        guessed = np.array([numbers[label] for label in baseline.predictions])
        metrics = measure(confusion_matrix(true, guessed, len(labels)), labels)
        entry = {"name": baseline.name, "detail": baseline.detail, "metrics": [metric.as_dict() for metric in metrics]}
        result["baselines"].append(entry)
        result["comparison"].append(asdict(compare_accuracy(predicted == true, guessed == true, baseline.name)))


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


def _with_interval(metric: Metric) -> dict[str, float | None]:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def summary(metrics: list[Metric], result: dict[str, Any]) -> list[str]:
    """The result in a few lines for a terminal."""
    lines = [f"{result['dataset']} ({result['split']}), n = {result['n']}, 95% intervals:"]
    for metric in metrics:
        if (metric.name, metric.average, metric.label) in (("accuracy", None, None), ("f1", "macro", None)):
            lines.append(f"  {_key(metric):10} {metric.value:.3f}  ({metric.low:.3f} to {metric.high:.3f})")
    lines += [f"  {item['sentence']}" for item in result["comparison"]]
    overlap = result["overlap"]
    if overlap is not None and overlap["either"]["examples"]:
        without = overlap["accuracy_without"]
        rest = f"accuracy on the others {without['value']:.3f}" if without["n"] else "there are no others"
        counts = f"{overlap['train']['examples']} test texts are also in training, {overlap['validation']['examples']}"
        lines.append(f"  warning: {counts} in validation; {rest}")
    if "baselines_left_out" in result:
        lines.append(f"  no baselines: {result['baselines_left_out']}")
    return lines
