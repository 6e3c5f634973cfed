"""Pretraining proper. `pretrain.py` holds its settings and stays light to import."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, default_data_collator
from transformers.utils.logging import disable_progress_bar

from llmkit.errors import ArtefactError, ConfigError, DataError
from llmkit.models.causal import causal_config, check_config, new_causal_model, parameter_counts
from llmkit.models.masking import check_document_masking
from llmkit.models.mup import apply_mup, lr_multipliers
from llmkit.models.sizing import describe_parameters, describe_ratio
from llmkit.pipeline.artefact import SAMPLES, Artefact
from llmkit.pipeline.ranks import dimension
from llmkit.pipeline.stage import data_ranks
from llmkit.tokens.mixture import Mixture
from llmkit.tokens.packing import packing_report
from llmkit.tokens.samples import JoinedSamples, PackedDocuments, TokenBlocks
from llmkit.tokens.shards import Index, TokenStream, data_fingerprint, tokenizer_hash
from llmkit.training.card import settings_table, write_card
from llmkit.training.hardware import set_up
from llmkit.training.instability import UpdateGuard
from llmkit.training.losses import set_up_loss
from llmkit.training.order import MixedSamples, OrderedSamples
from llmkit.training.pipeline_parallel import PipelineTrainer, pipeline_degree
from llmkit.training.pretrain import tokens_of
from llmkit.training.schedules import RunLength, schedule_of
from llmkit.training.seed_model import seed_model
from llmkit.training.shards import distributed_config
from llmkit.training.text_samples import TextSamples, samples_section
from llmkit.training.throughput import flops_per_token, matrix_parameters
from llmkit.training.trainer import LLMKitTrainer, describe_run, samples_per_step, training_arguments

if TYPE_CHECKING:
    from transformers import TrainerState

    from llmkit.pipeline.stage import Workspace
    from llmkit.training.pretrain import PretrainConfig

# Facts of one execution. They stay in the manifest: in the card they would give equal results different bytes.
_OF_THE_MOMENT = {"threads", "processes", "device", "layout"}

_USE = """```python
from transformers import pipeline

generate = pipeline("text-generation", model="PATH_OF_THIS_DIRECTORY")
print(generate("Return the", max_new_tokens=40)[0]["generated_text"])
```"""


def new_trainer(config: PretrainConfig, workspace: Workspace) -> tuple[LLMKitTrainer, list[Artefact], dict[str, Any]]:
    """All that a run needs, before its first step.

    Returns:
        The trainer, the token shards, and what is known of model and data beforehand, for the metrics.
    """
    assert config.sources(), "the stage's `prepare` makes missing token shards"
    set_up(config)
    disable_progress_bar()  # of loading and writing weights: they take no time, and a log file fills up with them
    directory = workspace.directory
    shards = [Artefact.open(place, "tokenize") for place in config.sources()]
    _check_one_tokenizer(shards)
    tokenizer = AutoTokenizer.from_pretrained(shards[0].directory / "tokenizer")
    train_set, validation_set = _sample_sets(config, shards)
    start = _seed_model(config, workspace, tokenizer)
    divides_context = dimension("context") > 1
    if config.document_masking:
        if divides_context:  # its attention is causal, whatever the mask
            raise ConfigError(["document_masking: context parallel has no mask of documents; take another layout"])
        check_document_masking(_load(config, start))
    # After the seed model and before the one that is trained: under ZeRO-3 this changes how transformers creates models.
    arguments = training_arguments(
        config,
        directory,
        eval_strategy="steps" if validation_set else "no",
        eval_steps=config.eval_steps,
        save_steps=config.save_steps,
    )
    per_step = samples_per_step(arguments)
    tokens_per_step = per_step * train_set.stride
    if config.max_tokens is not None:
        arguments.max_steps = math.ceil(tokens_of(config.max_tokens) / tokens_per_step)
    elif config.max_steps < 0:
        arguments.max_steps = math.ceil(config.num_train_epochs * len(train_set) / per_step)
    if validation_set:
        validation_set.fill_up_to_multiple(arguments.eval_batch_size * data_ranks())
    model = _load(config, start)
    check_config(model.config, tokenizer, config.block_size)
    if divides_context and not any(name.endswith("self_attn") for name, _ in model.named_modules()):
        # Modules of another name would keep a mask that accelerate takes from those, and compute something else.
        raise ConfigError(
            [f"accelerate_config: context parallel knows no attention of {model.config.model_type}; take another"]
        )
    if arguments.ddp_find_unused_parameters is None:  # only experts may get no token of a batch; looking for them costs time
        arguments.ddp_find_unused_parameters = any("expert" in name for name, _ in model.named_parameters())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    is_pipeline = pipeline_degree() > 1
    set_up_loss(model, 0 if config.z_loss or is_pipeline else config.loss_chunk_size, arguments)
    counts = parameter_counts(model)
    targets = validation_set.targets if validation_set else 0
    ordered = _in_order(config, train_set, arguments.max_steps, per_step)
    trainer_class = partial(PipelineTrainer, config=config) if is_pipeline else LLMKitTrainer
    trainer = trainer_class(
        workspace=workspace,
        data=data_fingerprint(*(item.directory for item in shards)),
        keep=config.save_total_limit,
        permanent_steps=config.save_permanent_steps,
        write_card=partial(_write_checkpoint_card, model.config.model_type),
        guard=UpdateGuard.of(config),
        schedule=lambda steps: schedule_of(config, RunLength(steps, len(train_set) / per_step, tokens_per_step)),
        z_loss=config.z_loss,
        lr_multipliers=lr_multipliers(model, config.mup_base_width) if config.mup_base_width is not None else None,
        items_per_sample=train_set.stride,
        items="tokens",
        flops_per_item=flops_per_token(matrix_parameters(model), model.config, config.block_size),
        targets_per_sample=targets / len(validation_set) if validation_set else None,
        model=model,
        args=arguments,
        train_dataset=ordered,
        eval_dataset=validation_set,
        data_collator=default_data_collator,  # that of tokenizers adds a mask, which hides where documents begin
        processing_class=tokenizer,
    )
    workspace.say(f"{model.config.model_type} with {describe_parameters(counts)}")
    workspace.say(f"{len(train_set):,} samples of {config.block_size} tokens, {per_step:,} a step")
    workspace.say(describe_ratio(arguments.max_steps * tokens_per_step, counts["active"]))
    facts = {"parameters": counts, **_packing(config, shards, train_set, ordered, workspace)}
    if isinstance(trainer, PipelineTrainer):
        facts["pipeline"] = trainer.described
    return trainer, shards, facts


def train_language_model(config: PretrainConfig, workspace: Workspace) -> dict[str, Any]:
    """Train on token shards; see `pretrain.pretrain`."""
    trainer, shards, facts = new_trainer(config, workspace)
    train_set, validation_set = trainer.train_dataset.samples, trainer.eval_dataset
    samples = TextSamples(
        workspace.directory / SAMPLES,
        trainer.processing_class,
        config.sample_prompts or [],
        config.sample_tokens,
        workspace.say,
        partitioned=trainer.has_partitioned_weights,
    )
    trainer.add_callback(samples)
    trainer.run(config.resume)
    metrics: dict[str, Any] = {**describe_run(trainer), **facts, "optimizer": trainer.optimizer_shares}
    metrics["epochs"] = metrics["steps"] * metrics["samples_per_step"] / len(train_set)
    metrics["tokens_learned"] = round(metrics["epochs"] * train_set.targets)
    metrics["tokens_per_parameter"] = metrics["tokens_learned"] / facts["parameters"]["active"]
    metrics["data_chain"] = trainer.data_chain
    metrics["throughput"] = trainer.throughput.described()
    if validation_set:
        loss = trainer.final_evaluation()["eval_loss"]
        metrics["validation"] = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": _bits_per_byte(loss, validation_set),
            "tokens": validation_set.targets,
        }
        workspace.say(f"validation loss {loss:.4f}, {metrics['validation']['bits_per_byte']:.4f} bits per byte")
    trainer.save_model(str(workspace.directory))
    if workspace.is_main:
        _describe(trainer.model.config.model_type, workspace.directory, shards, metrics, samples.last())
    return metrics


def _load(config: PretrainConfig, place: Path | str) -> Any:
    how = {"dtype": "float32", "attn_implementation": config.attn_implementation, **distributed_config()}
    try:
        return AutoModelForCausalLM.from_pretrained(place, **how)
    except (OSError, ValueError, ImportError) as failure:
        named = [name for name in ("model_name_or_path", "attn_implementation") if getattr(config, name)]
        keys = ", ".join([*named, "accelerate_config"] if distributed_config() else named or ["attn_implementation"])
        raise ConfigError([f"{keys}: transformers gives no model: {failure}"]) from failure


def _check_one_tokenizer(shards: list[Artefact]) -> None:
    first, *others = ((item.directory, Index.load(item.directory).tokenizer_sha256) for item in shards)
    for directory, found in others:
        if found != first[1]:
            raise ArtefactError(
                f"mixture: {first[0]} was written with the tokenizer {first[1][:16]}, {directory} with {found[:16]}; "
                f"make one of them again with `llmkit tokenize` and the tokenizer of the other"
            )


def _sample_sets(config: PretrainConfig, shards: list[Artefact]) -> tuple[JoinedSamples, JoinedSamples | None]:
    packing = PackedDocuments if config.packing == "best_fit" else TokenBlocks
    train, held_out = [], []
    for item in shards:
        stream = TokenStream(item.directory, "train")
        if len(stream) < config.block_size:
            raise DataError(
                f"the corpus has {len(stream):,} training tokens, fewer than one sample of {config.block_size}; "
                f"lower --block_size or add text ({item.directory})"
            )
        train.append(packing(stream, config.block_size, config.document_masking))
        if item.manifest.metrics["validation"]["tokens"]:
            # In blocks whatever the packing, so that the losses of runs that differ in it can be compared.
            stream = TokenStream(item.directory, "validation")
            held_out.append(TokenBlocks(stream, config.block_size, config.document_masking))
    return JoinedSamples(train), JoinedSamples(held_out) if held_out else None


def _in_order(config: PretrainConfig, train_set: JoinedSamples, steps: int, per_step: int) -> OrderedSamples:
    sizes = [len(samples) for samples in train_set.sources]
    if len(sizes) == 1:
        return OrderedSamples(train_set, sizes[0], steps, per_step, config.seed)
    try:
        mixture = Mixture(list(config.mixture.values()))
    except ValueError as failure:
        raise ConfigError([f"mixture: {failure}"]) from failure
    return MixedSamples(train_set, sizes, mixture, steps, per_step, config.seed)


def _packing(
    config: PretrainConfig, shards: list[Artefact], train_set: JoinedSamples, ordered: OrderedSamples, workspace: Workspace
) -> dict[str, Any]:
    """What the run will see of its corpus, or of each corpus of its mixture; said, and for the metrics."""
    if not isinstance(ordered, MixedSamples):
        report = packing_report(train_set.sources[0], len(ordered))
        workspace.say(report.line())
        return {"packing": asdict(report)}
    counts, total = ordered.mixture.counts(len(ordered)), sum(config.mixture.values())
    described = []
    for place, weight, item, samples, count in zip(
        config.mixture, config.mixture.values(), shards, train_set.sources, counts, strict=True
    ):
        report = packing_report(samples, count)
        workspace.say(f"{place}: {weight / total:.2%} of the samples asked, {count / len(ordered):.2%} given; {report.line()}")
        shares = {"asked_share": weight / total, "realised_share": count / len(ordered), "samples_in_run": count}
        described.append({"fingerprint": item.manifest.fingerprint, **shares, "packing": asdict(report)})
    return {"mixture": described}


def _bits_per_byte(loss: float, held_out: JoinedSamples) -> float:
    # With document masking, the first token of a document counts as much as the mean of the others.
    tokens = sum(len(samples.stream) - 1 for samples in held_out.sources)
    return loss / math.log(2) * tokens / sum(samples.stream.text_bytes for samples in held_out.sources)


def _seed_model(config: PretrainConfig, workspace: Workspace, tokenizer: Any) -> Path | str:
    """The model that training starts from: the one that is given, or a new one."""
    if config.model_name_or_path:
        _check_same_tokenizer(config)
        return config.model_name_or_path

    def new_model() -> Any:
        model_config = causal_config(config.model_type or "llama", config.config_overrides, tokenizer, config.block_size)
        model = new_causal_model(model_config, config.seed, config.initialisation, config.depth_scaled)
        if config.mup_base_width is not None:
            apply_mup(model, config.mup_base_width)
        return model

    return seed_model(workspace, new_model)


def _check_same_tokenizer(config: PretrainConfig) -> None:
    assert config.model_name_or_path is not None
    shards = next(iter(config.sources()))
    directory = Path(config.model_name_or_path)
    if directory.is_dir():
        TokenStream(Path(shards), "train", tokenizer_directory=directory)
        return
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(config.model_name_or_path, "tokenizer.json")
    except Exception as failure:
        raise ConfigError(
            [f"model_name_or_path: {config.model_name_or_path!r} is no directory, and the hub: {failure}"]
        ) from failure
    if tokenizer_hash(Path(file).parent) != Index.load(Path(shards)).tokenizer_sha256:
        raise ArtefactError(f"{shards} was not written with the tokenizer of {config.model_name_or_path}")


def _describe(
    model_type: str, directory: Path, shards: list[Artefact], metrics: dict[str, Any], samples: list[dict[str, Any]]
) -> None:
    facts = {key: value for key, value in metrics.items() if not isinstance(value, dict) and key not in _OF_THE_MOMENT}
    fingerprints = ", ".join(f"`{item.manifest.fingerprint[:12]}`" for item in shards)
    sections = {
        "What it is": f"A causal language model (`{model_type}`, {metrics['parameters']['total']:,} parameters) "
        f"pretrained with llmkit on {sum(item.manifest.metrics['train']['tokens'] for item in shards):,} tokens.",
        "How to use it": _USE,
        "Training": settings_table(facts),
        "Validation": settings_table(metrics["validation"]) if "validation" in metrics else "No validation text was held out.",
        **({"What it writes": samples_section(samples)} if samples else {}),
        "Where it comes from": f"Token shards {fingerprints}; `manifest.json` and `llmkit trace` lead back to the raw bytes.",
    }
    write_card(directory, _front_matter(model_type), f"{model_type} pretrained with llmkit", sections)


def _write_checkpoint_card(model_type: str, directory: Path, state: TrainerState) -> None:
    losses = {key: entry[key] for entry in state.log_history for key in ("loss", "eval_loss") if key in entry}
    sections = {
        "What it is": f"The state of a pretraining run with llmkit after step {state.global_step:,} of {state.max_steps:,}: a "
        f"causal language model (`{model_type}`), and beside it what the run needs to go on.",
        "How to use it": _USE,
        "Training so far": settings_table({"step": state.global_step, "epochs": state.epoch, **losses}),
    }
    write_card(directory, _front_matter(model_type), f"{model_type} at step {state.global_step:,}", sections)


def _front_matter(model_type: str) -> dict[str, Any]:
    return {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["llmkit", model_type]}
