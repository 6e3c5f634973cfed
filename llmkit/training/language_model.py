"""Pretraining proper. `pretrain.py` holds its settings and stays light to import."""

from __future__ import annotations

import math
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, default_data_collator
from transformers.utils.logging import disable_progress_bar

from llmkit.errors import ArtefactError, ConfigError, DataError
from llmkit.models.causal import causal_config, check_config, new_causal_model, parameter_counts
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.samples import TokenBlocks
from llmkit.tokens.shards import TokenStream, data_fingerprint, tokenizer_hash
from llmkit.training.card import settings_table, write_card
from llmkit.training.losses import set_up_loss
from llmkit.training.order import OrderedSamples
from llmkit.training.throughput import flops_per_token, matrix_parameters
from llmkit.training.trainer import LLMKitTrainer, describe_run, samples_per_step, training_arguments

if TYPE_CHECKING:
    from transformers import TrainerState

    from llmkit.pipeline.stage import Workspace
    from llmkit.training.pretrain import PretrainConfig

_SEED_MODEL = "seed-model"

# Facts of one execution. They stay in the manifest: in the card they would give equal results different bytes.
_OF_THE_MOMENT = {"threads", "processes", "device", "layout"}

_USE = """```python
from transformers import pipeline

generate = pipeline("text-generation", model="PATH_OF_THIS_DIRECTORY")
print(generate("Return the", max_new_tokens=40)[0]["generated_text"])
```"""


def train_language_model(config: PretrainConfig, workspace: Workspace) -> dict[str, Any]:
    """Train on token shards; see `pretrain.pretrain`."""
    assert config.tokens is not None, "the stage's `prepare` makes missing token shards"
    disable_progress_bar()  # of loading and writing weights: they take no time, and a log file fills up with them
    directory = workspace.directory
    tokens = Artefact.open(config.tokens, "tokenize")
    tokenizer = AutoTokenizer.from_pretrained(tokens.directory / "tokenizer")
    train_set, validation_set = _sample_sets(config, tokens)
    seed_model = _seed_model(config, workspace, tokenizer)
    # After the seed model and before the one that is trained: under ZeRO-3 this changes how transformers creates models.
    arguments = training_arguments(
        config,
        directory,
        eval_strategy="steps" if validation_set else "no",
        eval_steps=config.eval_steps,
        save_steps=config.save_steps,
    )
    per_step = samples_per_step(arguments)
    if config.max_steps < 0:
        arguments.max_steps = math.ceil(config.num_train_epochs * len(train_set) / per_step)
    if validation_set:
        validation_set.fill_up_to_multiple(arguments.eval_batch_size * arguments.world_size)
    model = _load(config, seed_model)
    check_config(model.config, tokenizer, config.block_size)
    if arguments.ddp_find_unused_parameters is None:  # only experts may get no token of a batch; looking for them costs time
        arguments.ddp_find_unused_parameters = any("expert" in name for name, _ in model.named_parameters())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    set_up_loss(model, config.loss_chunk_size, arguments)
    counts = parameter_counts(model)
    targets = _target_count(validation_set)
    trainer = LLMKitTrainer(
        workspace=workspace,
        data=data_fingerprint(tokens.directory),
        keep=config.save_total_limit,
        permanent_steps=config.save_permanent_steps,
        write_card=partial(_write_checkpoint_card, model.config.model_type),
        max_skipped_steps=config.max_skipped_steps,
        items_per_sample=train_set.stride,
        items="tokens",
        flops_per_item=flops_per_token(matrix_parameters(model), model.config, config.block_size),
        targets_per_sample=targets / len(validation_set) if validation_set else None,
        model=model,
        args=arguments,
        train_dataset=OrderedSamples(train_set, len(train_set), arguments.max_steps, per_step, config.seed),
        eval_dataset=validation_set,
        data_collator=default_data_collator,  # samples are of one length; the tokenizer's would look for what to fill up
        processing_class=tokenizer,
    )
    workspace.say(
        f"{model.config.model_type} with {counts['total']:,} parameters, {len(train_set):,} samples of "
        f"{config.block_size} tokens, {per_step:,} a step"
    )
    trainer.run(config.resume)
    metrics: dict[str, Any] = {**describe_run(trainer), "parameters": counts}
    learned = metrics["steps"] * metrics["samples_per_step"] * train_set.stride
    metrics["tokens_learned"] = learned
    metrics["data_chain"] = trainer.data_chain
    metrics["epochs"] = learned / max(1, _target_count(train_set))
    metrics["throughput"] = trainer.throughput.described()
    if validation_set:
        loss = trainer.final_evaluation()["eval_loss"]
        metrics["validation"] = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss / math.log(2) * targets / validation_set.stream.text_bytes,
            "tokens": targets,
        }
        workspace.say(f"validation loss {loss:.4f}, {metrics['validation']['bits_per_byte']:.4f} bits per byte")
    trainer.save_model(str(directory))
    if workspace.is_main:
        _describe(model.config.model_type, directory, tokens, metrics)
    return metrics


def _load(config: PretrainConfig, place: Path | str) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(place, dtype="float32", attn_implementation=config.attn_implementation)
    except (OSError, ValueError, ImportError) as failure:
        keys = "model_name_or_path, attn_implementation" if config.model_name_or_path else "attn_implementation"
        raise ConfigError([f"{keys}: transformers gives no model: {failure}"]) from failure


def _sample_sets(config: PretrainConfig, tokens: Artefact) -> tuple[TokenBlocks, TokenBlocks | None]:
    train_set = TokenBlocks(TokenStream(tokens.directory, "train"), config.block_size)
    if len(train_set.stream) < config.block_size:
        raise DataError(
            f"the corpus has {len(train_set.stream):,} training tokens, fewer than one sample of {config.block_size}; "
            f"lower --block_size or add text"
        )
    if not tokens.manifest.metrics["validation"]["tokens"]:
        return train_set, None
    return train_set, TokenBlocks(TokenStream(tokens.directory, "validation"), config.block_size)


def _target_count(blocks: TokenBlocks | None) -> int:
    """Tokens that are learned in one pass: all but the first of the stream."""
    return len(blocks.stream) - 1 if blocks is not None else 0


def _seed_model(config: PretrainConfig, workspace: Workspace, tokenizer: Any) -> Path | str:
    """The model that training starts from, on disk, so that every launch layout starts from the same weights.

    The main process writes it, and the others wait for the file: there is no process group yet.
    """
    if config.model_name_or_path:
        _check_same_tokenizer(config)
        return config.model_name_or_path
    place = workspace.directory / _SEED_MODEL
    if workspace.is_main and not place.exists():
        model_config = causal_config(config.model_type or "llama", config.config_overrides, tokenizer, config.block_size)
        aside = workspace.directory / f".{_SEED_MODEL}"
        shutil.rmtree(aside, ignore_errors=True)
        new_causal_model(model_config, config.seed).save_pretrained(aside)
        os.replace(aside, place)
    while not place.exists():  # if the main process fails, the launcher ends this one
        time.sleep(0.05)
    return place


def _check_same_tokenizer(config: PretrainConfig) -> None:
    assert config.tokens is not None and config.model_name_or_path is not None
    directory = Path(config.model_name_or_path)
    if directory.is_dir():
        TokenStream(Path(config.tokens), "train", tokenizer_directory=directory)
        return
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(config.model_name_or_path, "tokenizer.json")
    except Exception as failure:
        raise ConfigError(
            [f"model_name_or_path: {config.model_name_or_path!r} is no directory, and the hub: {failure}"]
        ) from failure
    if tokenizer_hash(Path(file).parent) != TokenStream(Path(config.tokens), "train").index.tokenizer_sha256:
        raise ArtefactError(f"{config.tokens} was not written with the tokenizer of {config.model_name_or_path}")


def _describe(model_type: str, directory: Path, tokens: Artefact, metrics: dict[str, Any]) -> None:
    facts = {key: value for key, value in metrics.items() if not isinstance(value, dict) and key not in _OF_THE_MOMENT}
    sections = {
        "What it is": f"A causal language model (`{model_type}`, {metrics['parameters']['total']:,} parameters) "
        f"pretrained with llmkit on {tokens.manifest.metrics['train']['tokens']:,} tokens.",
        "How to use it": _USE,
        "Training": settings_table(facts),
        "Validation": settings_table(metrics["validation"]) if "validation" in metrics else "No validation text was held out.",
        "Where it comes from": f"Token shards `{tokens.manifest.fingerprint[:12]}`; `manifest.json` and `llmkit trace` lead "
        f"back to the raw bytes.",
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
