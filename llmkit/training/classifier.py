"""Fine-tuning proper. `finetune.py` holds its settings and stays light to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from transformers.utils.logging import disable_progress_bar

from llmkit.errors import DataError
from llmkit.models.causal import parameter_counts
from llmkit.tasks import text_classification as task
from llmkit.tasks.tables import REVIEWS, read_dataset, read_table
from llmkit.training.card import settings_table, write_card
from llmkit.training.trainer import LLMKitTrainer, describe_run, last_checkpoint, training_arguments

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace
    from llmkit.training.finetune import FinetuneConfig


def load_examples(config: FinetuneConfig) -> tuple[list[task.Example], list[task.Example]]:
    """Training and validation examples.

    Raises:
        DataError: see `tables.read_table` and `text_classification.examples`; or there is too little to hold out.
    """
    held_out = None
    if config.train_file:
        rows = read_table(config.train_file)
        held_out = read_table(config.validation_file) if config.validation_file else None
    else:
        rows = read_dataset(config.dataset_name or REVIEWS, config.dataset_config_name, "train")
        if config.dataset_name == REVIEWS:
            held_out = read_dataset(REVIEWS, None, "validation")
    train = task.examples(rows, config.text_column, config.label_column)
    if held_out is None:
        train, validation = task.hold_out(train, config.validation_fraction, config.seed)
        if not validation:
            raise DataError(
                f"{len(train)} training examples, one of each label, leave none to hold out for validation; "
                f"add examples, or give --validation_file"
            )
    else:
        validation = task.examples(held_out, config.text_column, config.label_column)
    if config.max_train_samples is not None and config.max_train_samples < len(train):
        chosen = np.random.default_rng(config.seed).permutation(len(train))[: config.max_train_samples]
        train = [train[index] for index in sorted(chosen)]
    return train, validation


def train_classifier(config: FinetuneConfig, workspace: Workspace) -> dict[str, Any]:
    """Fine-tune a classifier; see `finetune.finetune`."""
    disable_progress_bar()
    directory = workspace.directory
    train, validation = load_examples(config)
    labels = task.label_names(train)
    task.check_labels(validation, labels, "validation")
    tokenizer = task.load_tokenizer(config.model_name_or_path)
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
    model = task.load_model(config.model_name_or_path, labels, tokenizer, config.seed, config.attn_implementation)
    max_length = task.context_length(model, tokenizer, config.max_length)
    tokenizer.model_max_length = max_length
    train_set = task.Features(train, tokenizer, labels, max_length)
    workspace.say(
        f"{len(train):,} training and {len(validation):,} validation examples, labels {', '.join(labels)}; "
        f"{train_set.truncated} training texts cut at {max_length} tokens"
    )
    trainer = LLMKitTrainer(
        workspace=workspace,
        items="examples",
        model=model,
        args=arguments,
        train_dataset=cast(Any, train_set),
        eval_dataset=cast(Any, task.Features(validation, tokenizer, labels, max_length)),
        processing_class=tokenizer,
        data_collator=task.collator(tokenizer),
        compute_metrics=task.compute_metrics,
    )
    checkpoint = last_checkpoint(directory)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    measured = trainer.final_evaluation()
    metrics = {
        **describe_run(trainer),
        "parameters": parameter_counts(model),
        "labels": labels,
        "train": {"examples": len(train), "labels": task.label_counts(train, labels), "truncated": train_set.truncated},
        "validation": {
            "examples": len(validation),
            **{name.removeprefix("eval_"): measured[name] for name in ("eval_loss", "eval_accuracy", "eval_f1_macro")},
        },
        "best_step": trainer.state.best_global_step,
        "max_length": max_length,
    }
    trainer.save_model(str(directory))
    if workspace.is_main:
        _describe(config, directory, metrics)
    workspace.say(f"validation accuracy {measured['eval_accuracy']:.3f}, macro F1 {measured['eval_f1_macro']:.3f}")
    return metrics


def _describe(config: FinetuneConfig, directory: Path, metrics: dict[str, Any]) -> None:
    data = config.dataset_name or Path(config.train_file or "").name
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
        f"`{Path(config.model_name_or_path).name}`.",
        "How to use it": "```python\nfrom transformers import pipeline\n\n"
        'classify = pipeline("text-classification", model="PATH_OF_THIS_DIRECTORY")\n'
        'print(classify("Not a single dull minute."))\n```',
        "Validation": settings_table(metrics["validation"]),
        "Training": settings_table({"data": data, "examples": metrics["train"]["examples"], "steps": metrics["steps"]}),
        "Limits": "Measured on the validation set that chose the checkpoint, so a little too good; `llmkit evaluate` measures "
        "on a test set.",
    }
    write_card(directory, front, "Text classifier", sections)
