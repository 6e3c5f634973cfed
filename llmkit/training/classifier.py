"""Fine-tuning proper. `finetune.py` holds its settings and stays light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from transformers.utils.logging import disable_progress_bar

from llmkit.errors import ConfigError, DataError
from llmkit.models.causal import parameter_counts
from llmkit.pipeline.artefact import enclosing
from llmkit.pipeline.ranks import dimension, rank
from llmkit.tasks import text_classification as task
from llmkit.tasks.tables import REVIEWS, read_dataset, read_table, source_name, validation_split
from llmkit.training.card import settings_table, write_card
from llmkit.training.hardware import set_up
from llmkit.training.instability import UpdateGuard
from llmkit.training.pipeline_parallel import pipeline_degree
from llmkit.training.schedules import RunLength, schedule_of
from llmkit.training.seed_model import seed_model
from llmkit.training.shards import distributed_config
from llmkit.training.trainer import LLMKitTrainer, describe_run, samples_per_step, training_arguments

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace
    from llmkit.training.finetune import FinetuneConfig


@dataclass
class Examples:
    """What a classifier learns from and is validated on."""

    train: list[task.Example]
    validation: list[task.Example]
    validation_from: str
    """Where the validation examples come from, in words."""
    revision: str | None = None
    """The commit of a data set of the hub."""


def load_examples(config: FinetuneConfig) -> Examples:
    """Training and validation examples.

    Raises:
        DataError: see `tables.read_table` and `text_classification.examples`; or there is too little to hold out.
    """
    held_out, source, revision = None, "", None
    if config.train_file:
        rows = read_table(config.train_file)
        if config.validation_file:
            held_out, source = read_table(config.validation_file), Path(config.validation_file).name
    else:
        data = (config.dataset_name or REVIEWS, config.dataset_config_name)
        training = read_dataset(*data, "train", config.dataset_revision)
        rows, revision = training.rows, training.revision
        split = validation_split(*data, config.dataset_revision)
        if split is not None:
            held_out = read_dataset(*data, split, config.dataset_revision).rows
            source = f"split {split} of {source_name(data[0])}"
    train = task.examples(rows, config.text_column, config.label_column)
    if held_out is None:
        source = f"held out, {config.validation_fraction:.0%} of the training examples"
        train, validation = task.hold_out(train, config.validation_fraction, config.seed)
        if not validation:
            raise DataError(
                f"{len(train)} training examples, no two different texts of one label, leave none to hold out for "
                f"validation; add examples, or give --validation_file"
            )
    else:
        validation = task.examples(held_out, config.text_column, config.label_column)
    if config.max_train_samples is not None and config.max_train_samples < len(train):
        chosen = np.random.default_rng(config.seed).permutation(len(train))[: config.max_train_samples]
        train = [train[index] for index in sorted(chosen)]
    return Examples(train, validation, source, revision)


def train_classifier(config: FinetuneConfig, workspace: Workspace) -> dict[str, Any]:
    """Fine-tune a classifier; see `finetune.finetune`."""
    if dimension("context") > 1:
        raise ConfigError(["accelerate_config: context parallel divides texts, and a text has one label; take another layout"])
    set_up(config)
    if pipeline_degree() > 1:
        raise ConfigError(["accelerate_config: only pretraining has a pipeline; take another layout, such as fsdp2"])
    disable_progress_bar()
    directory = workspace.directory
    data = load_examples(config)
    train, validation = data.train, data.validation
    labels = task.label_names(train)
    task.check_labels(validation, labels, "validation")
    tokenizer = task.load_tokenizer(config.model_name_or_path)
    base, new = _start(config, workspace, labels, tokenizer)
    best = config.metric_for_best_model
    arguments = training_arguments(
        config,
        directory,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=best,
        greater_is_better=best != "loss",
    )
    model, missing = task.load_model(base, labels, tokenizer, config.seed, config.attn_implementation, **distributed_config())
    new += missing
    max_length = task.context_length(model, tokenizer, config.max_length)
    tokenizer.model_max_length = max_length
    train_set = task.Features(train, tokenizer, labels, max_length)
    workspace.say(
        f"{len(train):,} training examples and {len(validation):,} for validation ({data.validation_from}), "
        f"labels {', '.join(labels)}; {train_set.truncated} training texts cut at {max_length} tokens"
    )
    if new:
        more = f" and {len(new) - 4} more" if len(new) > 4 else ""
        workspace.say(f"all weights are those of the base model, except for new ones: {', '.join(new[:4])}{more}")
    overlap, conflicting = int(task.seen(validation, train).sum()), task.conflicting(train)
    if overlap:
        workspace.say(
            f"warning: {overlap:,} validation examples ({overlap / len(validation):.1%}) have a text that is also in training"
        )
    if conflicting:
        workspace.say(f"warning: {conflicting:,} texts stand in training with more than one label")
    trainer = LLMKitTrainer(
        workspace=workspace,
        data=train_set.fingerprint(),
        keep=config.save_total_limit,
        guard=UpdateGuard.of(config),
        schedule=lambda steps: schedule_of(config, RunLength(steps, math.ceil(len(train) / samples_per_step(arguments)))),
        items="examples",
        model=model,
        args=arguments,
        train_dataset=cast(Any, train_set),
        eval_dataset=cast(Any, task.Features(validation, tokenizer, labels, max_length)),
        processing_class=tokenizer,
        data_collator=task.collator(tokenizer),
        compute_metrics=task.compute_metrics,
        compute_loss_func=task.loss,
    )
    trainer.run(config.resume)
    measured = trainer.final_evaluation()
    metrics = {
        **describe_run(trainer),
        "parameters": parameter_counts(model),
        "labels": labels,
        "train": {
            "examples": len(train),
            "labels": task.label_counts(train, labels),
            "truncated": train_set.truncated,
            "texts_with_several_labels": conflicting,
            "sha256": task.digest(train),
        },
        "validation": {
            "from": data.validation_from,
            "examples": len(validation),
            "also_in_training": overlap,
            "also_in_training_share": overlap / len(validation),
            "sha256": task.digest(validation),
            **{name.removeprefix("eval_"): measured[name] for name in ("eval_loss", "eval_accuracy", "eval_f1_macro")},
        },
        "best_step": trainer.state.best_global_step,
        "max_length": max_length,
    }
    if data.revision:
        metrics["dataset_revision"] = data.revision
    trainer.save_model(str(directory))
    if workspace.is_main:
        _describe(config, directory, metrics)
    workspace.say(f"validation accuracy {measured['eval_accuracy']:.3f}, macro F1 {measured['eval_f1_macro']:.3f}")
    return metrics


def _start(config: FinetuneConfig, workspace: Workspace, labels: list[str], tokenizer: Any) -> tuple[str, list[str]]:
    """The model that training starts from, and which of its weights are new; on several ranks a seed model with a head.

    Before the arguments of training: under ZeRO-3 they change how transformers creates models.
    """
    if rank()[1] == 1:
        return config.model_name_or_path, []
    new: list[str] = []

    def with_head() -> Any:
        model, missing = task.load_model(config.model_name_or_path, labels, tokenizer, config.seed, config.attn_implementation)
        new.extend(missing)
        return model

    return str(seed_model(workspace, with_head)), new


def _describe(config: FinetuneConfig, directory: Path, metrics: dict[str, Any]) -> None:
    data = source_name(config.train_file or config.dataset_name or "")
    accuracy, macro = metrics["validation"]["accuracy"], metrics["validation"]["f1_macro"]
    front = {
        "library_name": "transformers",
        "pipeline_tag": config.task,
        "tags": ["llmkit"],
        "model-index": [
            {
                "name": "text classifier",
                "results": [
                    {
                        "task": {"type": config.task},
                        "dataset": {"name": data, "type": data, "split": "validation"},
                        "metrics": [
                            {"type": "accuracy", "value": accuracy},
                            {"type": "f1", "value": macro, "name": "F1 macro"},
                        ],
                    }
                ],
            }
        ],
    }
    sections = {
        "What it is": f"A text classifier with the labels {', '.join(metrics['labels'])}, fine-tuned with llmkit from "
        f"`{_base_model(config.model_name_or_path)}`.",
        "How to use it": "```python\nfrom transformers import pipeline\n\n"
        'classify = pipeline("text-classification", model="PATH_OF_THIS_DIRECTORY")\n'
        'print(classify("Not a single dull minute."))\n```',
        "Validation": settings_table(metrics["validation"]),
        "Training": settings_table({"data": data, "examples": metrics["train"]["examples"], "steps": metrics["steps"]}),
        "Limits": "Measured on the validation set that chose the checkpoint, so a little too good; `llmkit evaluate` measures "
        "on a test set.",
    }
    write_card(directory, front, "Text classifier", sections)


def _base_model(name: str) -> str:
    if not Path(name).exists():
        return name
    artefact = enclosing(Path(name))
    return f"{artefact.manifest.stage} {artefact.manifest.fingerprint[:12]}" if artefact else Path(name).name
