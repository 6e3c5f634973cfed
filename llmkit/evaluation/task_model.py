"""The evaluation of a task model, whatever its task. `evaluate.py` holds the settings and stays light to import."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import torch
from transformers.utils.logging import disable_progress_bar

from llmkit.config import Source, resolve
from llmkit.errors import ColumnError, LLMKitError
from llmkit.evaluation import gate, leakage, resumed
from llmkit.evaluation.intervals import LEVEL, Metric
from llmkit.evaluation.measured import Measured, evaluation_of
from llmkit.evaluation.sections import Evaluated, sections
from llmkit.evaluation.seeds import TestSet, measure_seeds, seeds_of
from llmkit.evaluation.selfcheck import summary as selfchecked
from llmkit.pipeline.artefact import Artefact, enclosing
from llmkit.tasks.base import Task, conflicting, digest, repeated, seen
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.multiple_choice import CHOICES
from llmkit.tasks.registry import SECTION, task_class
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Split, pick_column, read_dataset, read_table, source_name
from llmkit.training.examples import Examples, load_examples
from llmkit.training.finetune import FinetuneConfig
from llmkit.training.hardware import use_cpu_well
from llmkit.training.seeds import in_words

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.evaluation.quantize import QuantizeConfig
    from llmkit.pipeline.stage import Workspace


def evaluate_task_model(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure a task model; see `evaluate.evaluate`."""
    disable_progress_bar()
    if not torch.accelerator.is_available():
        use_cpu_well(config.cpu_threads or torch.get_num_threads())
    finetuned = finetuned_artefact(config.model_name_or_path)
    task, model, tokenizer = load_task_model(config.model_name_or_path, config.task)
    evaluation = evaluation_of(task)
    data = test_split(config)
    is_asked = bool(config.task) or hasattr(model.config, SECTION)
    if not is_asked and any(name in data.rows[0].values for name in CHOICES):
        raise ColumnError("test_file: its rows have choices, and the model has learned no task; give --task multiple-choice")
    for name in config.slice_by:  # a wrong one is refused before anything is predicted
        pick_column(data.rows, name, (), "slice_by")
    try:
        test = task.read(data.rows, columns_of(config, finetuned))
    except ColumnError as failure:
        if is_asked:
            raise
        words = f"{config.model_name_or_path!r} has learned no task of llmkit and is taken for {task.name.replace('-', ' ')}"
        raise ColumnError(f"model_name_or_path: {words}, but {failure}; fine-tune it, or name its --task") from failure
    evaluation.adapt(task, test, data)
    if config.gate:  # what one example gives has the same metrics as all, and a wrong name is told before the long work
        one = evaluation.measure(task, test[:1], list(task.predict(model, tokenizer, test[:1], 1)), config.seed)
        gate.check_names(config.gate, [metric.key for metric in one.metrics if metric.label is None])
    predictions = resumed.predict(config, task, model, tokenizer, test, workspace)
    measured = evaluation.measure(task, test, predictions, config.seed)
    result: dict[str, Any] = {
        "task": task.name,
        "dataset": source_name(config.test_file or config.dataset_name or ""),
        "dataset_revision": data.revision,
        "split": config.dataset_split if config.dataset_name else "test",
        "n": len(test),
        "interval": LEVEL,
        "seed": config.seed,
        "metrics": [metric.as_dict() for metric in measured.metrics],
        "headline": [metric.key for metric in measured.headline],
        "value_is": measured.metric,
        "lower_is_better": measured.lower_is_better,
        "perfect": measured.perfect,
        **measured.record,
        "texts_with_several_labels": conflicting(test),
        "repeated_texts": repeated(test),
        "overlap": None,
        "baselines": [],
        "comparison": [],
    }
    if cut := sum(row.get("tokens_cut", 0) > 0 for row in predictions):
        result["prompts_cut"] = cut
    trained_on, reason = _training_examples(finetuned)
    if trained_on is None:
        result["overlap_unknown"] = reason
    else:
        result["overlap"] = _overlap(test, trained_on, measured, config.seed)
    if not config.baselines:
        result["baselines_left_out"] = "the setting `baselines` is off"
    else:
        _add_baselines(result, task, trained_on.train if trained_on else [], test, measured, config.seed)
        if not result["baselines"]:
            result["baselines_left_out"] = reason
    evaluated = Evaluated(
        config, task, model, tokenizer, data, test, predictions, measured, finetuned, trained_on, dict(measured.columns)
    )
    result |= sections(evaluated)
    if seeds := seeds_of(config.model_name_or_path, finetuned):
        columns = columns_of(config, finetuned)
        on = TestSet(data, columns, config.task, config.per_device_eval_batch_size, config.seed)
        result["seeds"], mean_values = measure_seeds(Path(config.model_name_or_path), seeds, measured, on)
        evaluated.columns["mean_over_seeds"] = mean_values.tolist()
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (workspace.directory / "metrics.json").write_text(text + "\n", encoding="utf-8")
    _write_predictions(workspace.directory / "predictions.parquet", evaluated)
    for line in _summary(measured, result):
        workspace.say(line)
    overall = {metric.key: with_interval(metric) for metric in measured.metrics if metric.label is None}
    over_seeds = {"seeds": result["seeds"]} if seeds else {}
    return {"task": task.name, "n": len(test), **overall, **over_seeds}


def finetuned_artefact(name: str) -> Artefact | None:
    """The `finetune` result that a model is, or the one, or the `ablate` result, that it lies in."""
    artefact = enclosing(Path(name)) if Path(name).exists() else None
    if artefact is not None and artefact.manifest.stage == "quantize":
        artefact = artefact.input("model_name_or_path")
    return artefact if artefact is not None and artefact.manifest.stage in ("finetune", "ablate") else None


def _finetune_config(finetuned: Artefact) -> FinetuneConfig:
    only_theirs = ("test_file", "test_split")  # of `ablate`
    settings = {name: value for name, value in finetuned.manifest.config.items() if name not in only_theirs}
    return resolve(FinetuneConfig, [Source(settings, {})]).config


def columns_of(config: Columns, finetuned: Artefact | None) -> Columns:
    """The columns that are named, and those of the fine-tuning where they are not."""
    trained: Columns = _finetune_config(finetuned) if finetuned else Columns()
    names = Columns.__dataclass_fields__
    return Columns(**{name: getattr(config, name) or getattr(trained, name) for name in names})


def test_split(config: EvaluateConfig | QuantizeConfig) -> Split:
    """The examples that settings name."""
    if config.test_file:
        return Split(read_table(config.test_file))
    return read_dataset(config.dataset_name or "", config.dataset_config_name, config.dataset_split, config.dataset_revision)


def _training_examples(finetuned: Artefact | None) -> tuple[Examples | None, str]:
    """The very examples that the model was trained and validated on, or why they cannot be had."""
    if finetuned is None:
        return None, "the model is not a result of `llmkit finetune`, so its training examples are not known"
    mend = "; put it back and evaluate again with --force"
    try:
        settings = _finetune_config(finetuned)
        found = load_examples(settings, task_class(settings.task).of_config(settings))
    except LLMKitError as failure:
        return None, f"the training data cannot be read again ({failure}){mend}"
    recorded = finetuned.manifest.metrics
    for name, examples in (("train", found.train), ("validation", found.validation)):
        if recorded.get(name, {}).get("sha256") != digest(examples):
            return None, f"the {name} examples are not those whose sha256 the model's manifest records{mend}"
    return found, ""


def _overlap(test: list[Any], trained_on: Examples, measured: Measured, seed: int) -> dict[str, Any]:
    """Test examples whose input the model has met before, and the result on the others."""
    in_train, in_validation = seen(test, trained_on.train), seen(test, trained_on.validation)
    new = ~(in_train | in_validation)
    return {
        "train": {"examples": int(in_train.sum()), "share": float(in_train.mean())},
        "validation": {"examples": int(in_validation.sum()), "share": float(in_validation.mean())},
        "either": {"examples": len(test) - int(new.sum()), "share": float(1 - new.mean())},
        "without": measured.mean(new, seed).as_dict(),
    }


def _add_baselines(
    result: dict[str, Any], task: Task[Any], train: list[Any], test: list[Any], measured: Measured, seed: int
) -> None:
    evaluation = evaluation_of(task)
    for baseline in evaluation.baselines(task, train, test, seed):
        theirs = evaluation.measure(task, test, baseline.predictions, seed)
        entry = {"name": baseline.name, "detail": baseline.detail, "metrics": [metric.as_dict() for metric in theirs.metrics]}
        result["baselines"].append(entry)
        if measured.count > 1:  # of what varies from one to the next, one says nothing
            result["comparison"].append(asdict(measured.against(theirs, baseline.name, seed)))


def _write_predictions(path: Path, evaluated: Evaluated) -> None:
    test, predictions = evaluated.test, evaluated.predictions
    columns: dict[str, Any] = {
        "id": [example.id for example in test],
        "text": [example.input() for example in test],
        "label": [_shown(example.target()) for example in test],
        "value": evaluated.measured.values,
    }
    if evaluated.measured.groups is not None:
        columns["group"] = evaluated.measured.groups
    columns |= {name: [row.get(name) for row in predictions] for name in predictions[0]}
    columns["prediction"] = [_shown(row["prediction"]) for row in predictions]
    pyarrow.parquet.write_table(pyarrow.table(columns | evaluated.columns), path, compression="zstd")


def _shown(target: Any) -> str:
    """A target or a prediction in one cell: several right answers, or labels, are set apart by bars."""
    if isinstance(target, dict) and isinstance(target.get("text"), list):  # answers, with their offsets
        target = list(dict.fromkeys(target["text"]))
    if isinstance(target, list) and all(isinstance(item, str) for item in target):
        return " | ".join(target)
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)


def with_interval(metric: Metric) -> dict[str, float | None]:
    """A metric for a manifest."""
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def _summary(measured: Measured, result: dict[str, Any]) -> list[str]:
    """The result in a few lines for a terminal."""
    lines = [f"{result['dataset']} ({result['split']}), n = {result['n']}, 95% intervals:"]
    for metric in measured.headline:
        told = "undefined" if metric.value is None else f"{metric.value:.3f}"
        told += "" if metric.low is None else f"  ({metric.low:.3f} to {metric.high:.3f})"
        lines.append(f"  {metric.key:10} {told}")
    for name, found in result.get("seeds", {}).get("metrics", {}).items():
        lines.append(f"  {name}, mean over {len(found['values'])} seeds: {in_words(found)}")
    if "seeds" in result:
        lines.append(f"  {result['seeds']['value']['sentence']}")
    lines += [f"  {item['sentence']}" for item in result["comparison"]]
    overlap = result["overlap"]
    if overlap is not None and overlap["either"]["examples"]:
        without = overlap["without"]
        rest = f"{without['name']} on the others {without['value']:.3f}" if without["n"] else "there are no others"
        counts = f"{overlap['train']['examples']} test texts are also in training, {overlap['validation']['examples']}"
        lines.append(f"  warning: {counts} in validation; {rest}")
    if "prompts_cut" in result:
        lines.append(f"  warning: {result['prompts_cut']} prompts were longer than the model has room for, and cut")
    if result["repeated_texts"]:
        lines.append(
            f"  warning: {result['repeated_texts']} test texts repeat earlier ones; intervals take all for independent"
        )
    if leaked := leakage.warning(result.get("leakage", {})):
        lines.append(leaked)
    if "baselines_left_out" in result:
        lines.append(f"  no baselines: {result['baselines_left_out']}")
    return [*lines, *(selfchecked(result["selfcheck"]) if "selfcheck" in result else [])]
