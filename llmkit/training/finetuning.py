"""Fine-tuning proper, of any task. `finetune.py` holds its settings and stays light to import."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from transformers import AutoConfig, EarlyStoppingCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from llmkit import __version__
from llmkit.errors import ConfigError
from llmkit.models.causal import parameter_counts
from llmkit.models.custom import custom_config, default_config, new_model
from llmkit.models.masking import check_document_masking
from llmkit.pipeline.artefact import enclosing
from llmkit.pipeline.ranks import dimension, rank
from llmkit.tasks.base import Example, Task, conflicting, context_length, digest, seen
from llmkit.tasks.features import Features, cached, padding_waste
from llmkit.tasks.language import LanguageTask, packed
from llmkit.tasks.registry import task_class
from llmkit.tasks.tables import source_name
from llmkit.training.card import settings_table, write_card
from llmkit.training.distillation import Distillation, Teacher, load_teacher
from llmkit.training.examples import Examples, load_examples
from llmkit.training.freezing import freeze, trained_parameters
from llmkit.training.hardware import on_cpu, set_up
from llmkit.training.instability import UpdateGuard
from llmkit.training.lora import adapted, check_lora
from llmkit.training.order import BalancedSamples, LengthGrouped, OrderedSamples
from llmkit.training.pipeline_parallel import pipeline_degree
from llmkit.training.schedules import RunLength, schedule_of
from llmkit.training.search import searched
from llmkit.training.seed_model import made_once
from llmkit.training.seeds import train_seeds
from llmkit.training.shards import distributed_config
from llmkit.training.trainer import LLMKitTrainer, describe_run, samples_per_step, training_arguments
from llmkit.training.written import WrittenMetrics

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace
    from llmkit.training.finetune import FinetuneConfig

_NEVER = 2**62
_FEATURES = ".features"
_TOKENIZER = "seed-tokenizer"
_NEW_WEIGHTS = "new-weights.json"
_VOCABULARY = 8192
_CONTEXT = 512


def train_task(config: FinetuneConfig, workspace: Workspace) -> dict[str, Any]:
    """Fine-tune a model for a task; see `finetune.finetune`."""
    if config.search_trials:
        chosen, search = searched(config, workspace)
        return {**train_task(chosen, workspace), "search": search}
    prepared = prepare(config, workspace)
    return (train_seeds if config.seeds else train)(config, workspace, prepared)


def train(config: FinetuneConfig, workspace: Workspace, prepared: Prepared) -> dict[str, Any]:
    """Train one model."""
    trainer = new_trainer(config, workspace, prepared)
    trainer.run(config.resume)
    metrics = finish(config, workspace, prepared, trainer)
    trainer.accelerator.free_memory()  # for a next one
    return metrics


@dataclass
class Prepared:
    """All that a training needs that does not change while it goes on."""

    task: Task[Any]
    data: Examples
    tokenizer: Any
    start: str
    """The model that training starts from."""
    new_weights: list[str]
    """Those of its weights that no base model has given, where that is known already."""
    max_length: int
    train: Features
    validation: Features
    teacher: Teacher | None = None


def prepare(config: FinetuneConfig, workspace: Workspace) -> Prepared:
    """Read and check the data, make the features, and the model that training starts from."""
    if dimension("context") > 1:
        raise ConfigError(
            ["accelerate_config: context parallel divides texts, and a task takes them whole; take another layout"]
        )
    set_up(config)
    if pipeline_degree() > 1:
        raise ConfigError(["accelerate_config: only pretraining has a pipeline; take another layout, such as fsdp2"])
    if config.peft:
        check_lora(config)
    disable_progress_bar()
    task = task_class(config.task).of_config(config)
    data = load_examples(config, task)
    found = list(task.learn(data.train))
    task.check(data.validation, "validation")
    _check_metric(config, task)
    tokenizer = task.load_tokenizer(config.model_name_or_path or _tokenizer_of(config, workspace, data.train))
    first = config.seeds[0] if config.seeds else config.seed
    start, new = start_of(replace(config, seed=first), workspace, task, tokenizer)
    model_config = _config_of(start, task)
    max_length = task.adapt_to(model_config, context_length(model_config, tokenizer, config.max_length))
    if not isinstance(task, LanguageTask):  # of one that writes it is no limit: a prompt alone may be as long
        tokenizer.model_max_length = max_length
    teacher = load_teacher(config, task, tokenizer, max_length) if config.teacher else None
    train, validation = (
        features_of(task, examples, tokenizer, max_length, workspace) for examples in (data.train, data.validation)
    )
    workspace.say(
        f"{len(data.train):,} training examples and {len(data.validation):,} for validation ({data.validation_from})"
    )
    for sentence in found:
        workspace.say(sentence)
    workspace.say(f"{train.facts.get('truncated', 0)} training texts cut at {max_length} tokens")
    for kind, made in (("training", train), ("validation", validation)):
        if set_aside := made.facts.get("set_aside"):
            workspace.say(
                f"warning: {set_aside:,} {kind} examples set aside: within {max_length} tokens nothing is to be learned"
            )
    if isinstance(task, LanguageTask):
        _warn_of_cuts(task, model_config, tokenizer, data.validation, workspace)
    _warn_of_copies(data, workspace)
    if config.packing:
        how = (tokenizer, config.seed, config.attn_implementation)
        check_document_masking(task.load_model(start, *how)[0], "packing")
        train = packed(train, max_length)
        workspace.say(f"packed into {len(train):,} rows")
    return Prepared(task, data, tokenizer, start, new, max_length, train, validation, teacher)


def _config_of(start: str, task: Task[Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(start)
    except (OSError, ValueError) as failure:
        raise ConfigError([f"model_name_or_path: {start!r} gives no model for {task.name}: {failure}"]) from failure


def _check_metric(config: FinetuneConfig, task: Task[Any]) -> None:
    wanted = config.metric_for_best_model
    if wanted is not None and wanted not in (*task.metrics, "loss"):
        raise ConfigError([f"metric_for_best_model: {wanted!r} is not one of {', '.join(task.metrics)}, loss"])


def _warn_of_cuts(
    task: LanguageTask[Any], model_config: Any, tokenizer: Any, validation: list[Any], workspace: Workspace
) -> None:
    """Say of how many of the validation examples that the model writes answers to it does not read all."""
    asked = task.samples_written(validation)
    longest, answer = task.room(model_config, tokenizer)
    if cut := sum(len(task.prompt(example, tokenizer)) > longest for example in asked):
        workspace.say(
            f"warning: {cut:,} of {len(asked):,} validation prompts are cut to {longest:,} tokens when the model writes, so "
            f"that an answer of {answer:,} has room"
        )


def _warn_of_copies(data: Examples, workspace: Workspace) -> None:
    copies = seen(data.validation, data.train)
    if copies.any():
        places = [example.place for example, is_copy in zip(data.validation, copies, strict=True) if is_copy]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        workspace.say(
            f"warning: {len(places):,} validation examples ({copies.mean():.1%}) have a text that is also in training: "
            f"{', '.join(places[:3])}{more}"
        )
    if several := conflicting(data.train):
        workspace.say(f"warning: texts that stand in training with more than one label or target: {several:,}")


def features_of(task: Task[Any], data: list[Any], tokenizer: Any, max_length: int, workspace: Workspace) -> Features:
    """The features of examples, made once for equal examples, tokenizer and settings, by whichever stage comes first."""
    key = {
        "llmkit": __version__,
        "examples": digest(data),
        "task": {"name": task.name, "head": task.head(), **task.stored()},
        "tokenizer": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer),
        "special_tokens": tokenizer.special_tokens_map,
        "truncation_side": tokenizer.truncation_side,
        "model_inputs": tokenizer.model_input_names,
        "chat_template": tokenizer.chat_template,
        "max_length": max_length,
    }
    features = cached(workspace.directory.parent / _FEATURES, key, lambda: task.features(data, tokenizer, max_length))
    if tokenizer.is_fast:  # it keeps how it was last called, and would be saved with it, or not, by what was kept from before
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return features


def _tokenizer_of(config: FinetuneConfig, workspace: Workspace, train: list[Example]) -> str:
    """The tokenizer of a new model: the one that is named, or one that is trained on the training examples."""
    if config.tokenizer:
        return config.tokenizer

    def write(place: Path) -> None:
        from llmkit.tokens.algorithms import build_and_train
        from llmkit.tokens.train_tokenizer import TokenizerConfig

        settings = TokenizerConfig(corpus="of training examples", vocab_size=config.vocab_size or _VOCABULARY)
        texts = (text for example in train for text in (example.input(), example.target()) if isinstance(text, str))
        build_and_train(settings, texts).save_pretrained(str(place))

    return str(made_once(workspace, _TOKENIZER, write))


def start_of(config: FinetuneConfig, workspace: Workspace, task: Task[Any], tokenizer: Any) -> tuple[str, list[str]]:
    """The model that training starts from, and which of its weights are new; on several ranks a seed model with a head.

    Before the arguments of training: under ZeRO-3 they change how transformers creates models.
    """
    if config.model_name_or_path and not config.random_start and rank()[1] == 1:
        return config.model_name_or_path, []

    def with_head() -> tuple[Any, list[str]]:
        if config.random_start:
            base = _config_of(config.model_name_or_path or "", task)
            base.update({**task.head(), "pad_token_id": tokenizer.pad_token_id})
            return new_model(base, config.seed, task.auto_class_of(base)), []
        if config.model_name_or_path:
            how = (tokenizer, config.seed, config.attn_implementation)
            return task.load_model(config.model_name_or_path, *how)
        default = default_config(config.model_type or "")
        auto_class = task.auto_class_of(default)
        if default.is_encoder_decoder and auto_class == "AutoModelForSequenceClassification":
            raise ConfigError(
                [
                    f"model_type: a classifier of {config.model_type} looks at one EOS that ends each text, which a new "
                    "tokenizer does not put there; take an encoder, such as bert, or a causal model, such as llama"
                ]
            )
        model_config = custom_config(
            config.model_type or "",
            config.config_overrides,
            tokenizer,
            config.max_length or _context_of(config),
            auto_class,
            {**task.head(), **task.new_config(tokenizer, default)},
        )
        return new_model(model_config, config.seed, auto_class), []

    def write(place: Path) -> None:
        model, new = with_head()
        model.save_pretrained(place)
        (place / _NEW_WEIGHTS).write_text(json.dumps(new), encoding="utf-8")

    place = made_once(workspace, f"{config.seed}-seed-model", write)
    return str(place), json.loads((place / _NEW_WEIGHTS).read_text(encoding="utf-8"))


def _context_of(config: FinetuneConfig) -> int:
    """The context of a new model, where no `max_length` is given."""
    asked = (config.config_overrides.get(name) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return min((value for value in asked if isinstance(value, int) and value > 0), default=_CONTEXT)


class _AtIntervals(TrainerCallback):
    """Evaluates and saves at the end of each interval, an epoch say, whose ends need not be those of steps, and of the run."""

    def __init__(self, steps: float):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if math.floor(step / self.steps) > math.floor((step - 1) / self.steps) or step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def usual_learning_rate(config: FinetuneConfig, model_config: Any) -> float:
    """The peak learning rate where none is set: what Devlin et al. 2019 found for a width of 768, less for wider models.

    That it falls with the width is the rule for Adam of Yang et al. 2021 (muP). Random weights have a longer way to go, and
    the factor of low-rank updates is that of Schulman et al. 2025 (LoRA Without Regret).
    """
    width = getattr(model_config.get_text_config(), "hidden_size", None) or 768
    factor = 10.0 if config.peft else 5.0 if config.model_type or config.random_start else 1.0
    return 5e-5 * 768 / width * factor


def new_trainer(config: FinetuneConfig, workspace: Workspace, prepared: Prepared) -> LLMKitTrainer:
    """All that a run needs, before its first step."""
    task, tokenizer = prepared.task, prepared.tokenizer
    best = config.metric_for_best_model or next(iter(task.metrics))
    rate = config.learning_rate or usual_learning_rate(config, _config_of(prepared.start, task))
    arguments = training_arguments(
        config,
        workspace.directory,
        learning_rate=rate,
        eval_strategy="steps",
        eval_steps=_NEVER,  # `_AtIntervals` says when
        save_strategy="steps",
        save_steps=_NEVER,
        load_best_model_at_end=True,
        metric_for_best_model=best,
        greater_is_better=task.metrics.get(best, False),
        label_names=["labels"],  # of every task; Trainer would look for those of the model's own loss
    )
    per_step = samples_per_step(arguments)
    if config.max_steps < 0:
        arguments.max_steps = math.ceil(config.num_train_epochs * len(prepared.train) / per_step)
    how = (tokenizer, config.seed, config.attn_implementation)
    model, missing = task.load_model(prepared.start, *how, **distributed_config())
    task.note(model)
    new = prepared.new_weights + missing
    if new:
        more = f" and {len(new) - 4} more" if len(new) > 4 else ""
        workspace.say(f"all weights are those of the base model, except for new ones: {', '.join(new[:4])}{more}")
    adapter = adapted(model, new, config)
    if adapter is not None:
        workspace.say(str(adapter))
    elif config.freeze:
        workspace.say(freeze(model, config.freeze))
    distillation = None
    if prepared.teacher is not None:
        how_much = (config.distillation_temperature, config.distillation_alpha)
        distillation = Distillation(prepared.teacher, task.loss, *how_much)
    samples, run = cast(Any, prepared.train), (arguments.max_steps, per_step, config.seed)
    groups = task.sampling_groups(prepared.data.train)
    ordered = BalancedSamples(samples, groups, *run) if groups else OrderedSamples(samples, len(samples), *run)
    if config.train_sampling_strategy == "group_by_length":
        ordered = LengthGrouped(ordered, prepared.train.lengths())
    waste = _padding_waste(config, prepared.train, ordered, arguments)
    items = "rows" if config.packing else "examples"
    workspace.say(
        f"{arguments.max_steps:,} steps of {per_step:,} {items} at a peak learning rate of {rate:.2g}; {waste:.1%} of what is "
        f"computed is padding"
    )
    steps_per_epoch = len(prepared.train) / per_step
    written = None
    if isinstance(task, LanguageTask) and (asked := task.samples_written(prepared.data.validation)):
        written = WrittenMetrics(task, tokenizer, asked, config.per_device_eval_batch_size)
    trainer = LLMKitTrainer(
        workspace=workspace,
        data=prepared.train.fingerprint(),
        keep=config.save_total_limit,
        guard=UpdateGuard.of(config),
        schedule=lambda steps: schedule_of(config, RunLength(steps, steps_per_epoch)),
        items=items,
        adapter=adapter,
        distillation=distillation,
        model=model,
        args=arguments,
        train_dataset=ordered,
        eval_dataset=prepared.validation,
        processing_class=tokenizer,
        data_collator=task.collator(tokenizer, _multiple(config)),
        compute_metrics=task.compute_metrics(prepared.data.validation, prepared.validation),
        compute_loss_func=distillation.loss if distillation else task.loss,
        preprocess_logits_for_metrics=task.summary,
        targets_per_sample=task.targets_per_example(prepared.validation),
        further_metrics=written,
    )
    if trainer.is_fsdp_enabled and model.config.is_encoder_decoder:
        raise ConfigError(
            [
                f"accelerate_config: FSDP cannot divide the embeddings that encoder and decoder of {model.config.model_type} "
                f"share; take another layout, such as zero3"
            ]
        )
    trainer.add_callback(_AtIntervals(config.eval_steps or steps_per_epoch))
    if config.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(config.early_stopping_patience))
    return trainer


def _multiple(config: FinetuneConfig) -> int:
    """What the lengths of batches are multiples of: matrix units want 8, and a processor computes them for nothing."""
    return 1 if on_cpu(config) else 8


def _padding_waste(config: FinetuneConfig, features: Features, ordered: OrderedSamples, arguments: Any) -> float:
    """The share of what is computed that is padding, of the first steps of a run."""
    lengths, at_once = features.lengths(), arguments.per_device_train_batch_size
    steps = [ordered.of_step(step) for step in range(min(ordered.steps, 256))]
    batches = [batch for step in steps for batch in np.split(step, range(at_once, len(step), at_once))]
    return padding_waste(lengths, batches, _multiple(config))


def finish(config: FinetuneConfig, workspace: Workspace, prepared: Prepared, trainer: LLMKitTrainer) -> dict[str, Any]:
    """Measure, save and describe the trained model."""
    task, data = prepared.task, prepared.data
    measured = trainer.final_evaluation()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    tuned: dict[str, Any] = {}
    if task.tunes:
        prediction = trainer.predict(prepared.validation)
        tuned = task.tune(prediction, data.validation, prepared.validation)
        task.note(model)
    metrics = {
        **describe_run(trainer),
        "task": task.name,
        "parameters": trainer.adapter.parameters if trainer.adapter else parameter_counts(model),
        "trained_parameters": trained_parameters(model),
        **task.described(),
        "train": {
            "examples": len(data.train),
            "truncated": 0,
            **prepared.train.facts,
            "texts_with_several_labels": conflicting(data.train),
            "sha256": digest(data.train),
            **task.facts(data.train),
        },
        "validation": {
            "from": data.validation_from,
            "examples": len(data.validation),
            **prepared.validation.facts,
            "also_in_training": (copies := int(seen(data.validation, data.train).sum())),
            "also_in_training_share": copies / len(data.validation),
            "sha256": digest(data.validation),
            "loss": measured["eval_loss"],
            **{name: measured[f"eval_{name}"] for name in task.metrics},
        },
        "padding": _padding_waste(config, prepared.train, trainer.train_dataset, trainer.args),
        "best_step": trainer.state.best_global_step,
        "max_length": prepared.max_length,
        "data_chain": trainer.data_chain,
    }
    if tuned:
        metrics["tuned"] = tuned
    if data.revision:
        metrics["dataset_revision"] = data.revision
    trainer.save_model(str(workspace.directory))
    if workspace.is_main:
        _describe(config, task, workspace.directory, metrics)
    shown = ", ".join(f"{name} {measured[f'eval_{name}']:.3f}" for name in task.metrics)
    workspace.say(f"validation: {shown}")
    return metrics


def _describe(config: FinetuneConfig, task: Task[Any], directory: Path, metrics: dict[str, Any]) -> None:
    data = source_name(config.train_file or config.dataset_name or "")
    front = {
        "library_name": "transformers",
        "pipeline_tag": config.task,
        "tags": ["llmkit"],
        "model-index": [
            {
                "name": task.title.lower(),
                "results": [
                    {
                        "task": {"type": config.task},
                        "dataset": {"name": data, "type": data, "split": "validation"},
                        "metrics": [{"type": name, "value": metrics["validation"][name]} for name in task.metrics],
                    }
                ],
            }
        ],
    }
    origin = f"from `{_base_model(config.model_name_or_path)}`" if config.model_name_or_path else "from random weights"
    sections = {
        "What it is": f"{task.what_it_is()}, fine-tuned with llmkit {origin}.{_means(config)}",
        "How to use it": f"```python\n{task.usage}\n```",
        "Validation": settings_table(metrics["validation"]),
        "Training": settings_table({"data": data, "examples": metrics["train"]["examples"], "steps": metrics["steps"]}),
        "Limits": "Measured on the validation set that chose the checkpoint, so a little too good; `llmkit evaluate` measures "
        "on a test set.",
    }
    write_card(directory, front, task.title, sections)


def _means(config: FinetuneConfig) -> str:
    """What of it was trained, and from what it learned beside the examples, in sentences."""
    means = ""
    if config.peft:
        means += f" Low-rank updates (LoRA) of rank {config.lora_r} were trained and added to its weights; see `adapter/`."
    if config.freeze:
        means += f" Not trained were: {', '.join(config.freeze)}."
    if config.teacher:
        means += f" It was distilled from `{_base_model(config.teacher)}`."
    return means


def _base_model(name: str) -> str:
    if not Path(name).exists():
        return name
    artefact = enclosing(Path(name))
    return f"{artefact.manifest.stage} {artefact.manifest.fingerprint[:12]}" if artefact else Path(name).name
