"""Tasks of lm-evaluation-harness, an optional extra, whose results stand where those of llmkit do.

Its tasks are YAML files; with `include_path` they lie on this machine, and nothing is looked for elsewhere. Values are those
of the harness, and intervals are made of its standard errors. Where such an error is 0, a share has Wilson's interval, and
other metrics have none, since that documents did not differ proves nothing of the next.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import torch
from transformers.utils.logging import disable_progress_bar

from llmkit.errors import ConfigError, DataError
from llmkit.evaluation.intervals import LEVEL, Metric, quantile, wilson
from llmkit.evaluation.task_model import with_interval
from llmkit.tasks.generation import load
from llmkit.training.hardware import use_cpu_well

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.pipeline.stage import Workspace

_BOOTSTRAPS = 1000  # of metrics without a closed form; its own default takes minutes for F1

_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match")


def evaluate_with_lm_eval(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure a causal model on tasks of the harness; see `evaluate.evaluate`.

    Raises:
        ConfigError: the harness is not installed, or knows no such task.
        DataError: it cannot load the task or its data.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as failure:
        raise ConfigError([f"lm_eval: is not installed ({failure}); `pip install 'llmkit[lm_eval]'`"]) from failure
    disable_progress_bar()
    if not torch.accelerator.is_available():
        use_cpu_well(config.cpu_threads or torch.get_num_threads())
    settings = config.lm_eval_settings()
    manager = TaskManager(include_path=settings.get("include_path"), include_defaults="include_path" not in settings)
    names = config.lm_eval_tasks()
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        known = ", ".join(manager.all_tasks[:10])
        raise ConfigError([f"lm_eval: there is no task {', '.join(unknown)}; there are {known or 'none'}"])
    model, tokenizer = load(config.model_name_or_path)
    harness = HFLM(pretrained=model.float(), tokenizer=tokenizer, batch_size=config.per_device_eval_batch_size)
    try:
        found = simple_evaluate(
            harness,
            tasks=names,
            num_fewshot=int(settings["num_fewshot"]) if "num_fewshot" in settings else None,
            limit=int(settings["limit"]) if "limit" in settings else None,
            task_manager=manager,
            bootstrap_iters=_BOOTSTRAPS,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )
    except (OSError, ValueError, KeyError) as failure:
        raise DataError(f"lm_eval: {settings['tasks']} cannot be evaluated: {type(failure).__name__}: {failure}") from failure
    metrics = _metrics(found)
    rows = _rows(found)
    result = {
        "task": "lm-evaluation-harness",
        "dataset": settings["tasks"],
        "split": "test",
        "n": len(rows),
        "interval": LEVEL,
        "seed": config.seed,
        "metrics": [metric.as_dict() for metric in metrics],
        "headline": [metric.key for metric in metrics[:2]],
        "value_is": "value",
        "lower_is_better": False,
        "perfect": 1.0,
        "overlap": None,
        "baselines": [],
        "baselines_left_out": "tasks of lm-evaluation-harness have none",
        "comparison": [],
        "leakage_left_out": "documents of lm-evaluation-harness are not looked for in training texts",
        "lm_eval": {"version": found["lm_eval_version"], "versions": found["versions"], "n_shot": found["n-shot"]},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False, default=str)
    (workspace.directory / "metrics.json").write_text(text + "\n", encoding="utf-8")
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), workspace.directory / "predictions.parquet", compression="zstd"
    )
    workspace.say(f"{settings['tasks']}, n = {len(rows):,}, 95% intervals:")
    for metric in metrics:
        between = "" if metric.low is None else f"  ({metric.low:.3f} to {metric.high:.3f})"
        workspace.say(f"  {metric.key:20} {metric.value:.4f}{between}")
    return {"task": result["task"], "n": len(rows), **{metric.key: with_interval(metric) for metric in metrics}}


def _metrics(found: dict[str, Any]) -> list[Metric]:
    """The metrics of all tasks; of several, each with the name of its task."""
    metrics = []
    for task, values in found["results"].items():
        n = found["n-samples"].get(task, {}).get("effective", 0)  # a group of tasks has none of its own
        for key, value in values.items():
            name, comma, kind = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            named = name if kind == "none" else f"{name} ({kind})"
            named = named if len(found["results"]) == 1 else f"{task}: {named}"
            error = values.get(f"{name}_stderr,{kind}")
            is_known = isinstance(error, float) and math.isfinite(error)
            if is_known and error > 1e-12:
                low, high = value - quantile(LEVEL) * error, value + quantile(LEVEL) * error
                if name in _SHARES:
                    low, high = max(0.0, low), min(1.0, high)
                metrics.append(Metric(named, float(value), low, high, n, "normal"))
            elif is_known and name in _SHARES and n:
                metrics.append(Metric(named, float(value), *wilson(round(value * n), n), n, "wilson"))
            else:
                metrics.append(Metric(named, float(value), None, None, n, "none"))
    return metrics


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each document of each task, by the first of the filters that its answer went through."""
    rows = []
    for task, samples in found["samples"].items():
        firsts: dict[Any, dict[str, Any]] = {}
        for sample in samples:
            firsts.setdefault(sample["doc_id"], sample)
        for sample in firsts.values():
            share = next((sample[name] for name in _SHARES if name in sample), None)
            rows.append(
                {
                    "id": f"{task}/{sample['doc_id']}",
                    "text": str(next(iter(sample["arguments"]), [""])[0]),
                    "label": str(sample["target"]),
                    "prediction": json.dumps(sample["filtered_resps"], ensure_ascii=False, default=str),
                    "value": None if share is None else float(share),
                }
            )
    return rows
