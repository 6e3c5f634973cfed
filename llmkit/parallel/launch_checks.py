"""What is wrong with settings, model, data and machine under a launch layout."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmkit.errors import ArtefactError, ConfigError, DataError
from llmkit.parallel.architecture import causal_types
from llmkit.parallel.layout import Layout
from llmkit.parallel.layout_checks import by_accelerate, deepspeed_settings, fsdp_values, name_in, nearest
from llmkit.parallel.subject import Problem, Subject, counted
from llmkit.pipeline.stage import expand, is_path, partial_of
from llmkit.tokens.shards import INDEX, tokenizer_hash
from llmkit.training.pretrain import PretrainConfig


def _precision(subject: Subject) -> Iterator[Problem]:
    """Precision that is set in two places, of which one would win in silence, or that the hardware does not have."""
    asked, named = subject.precision, subject.layout.precision
    if asked and named and asked != named:
        yield Problem(
            f"bf16, fp16: the settings ask for {asked!r}, the accelerate config for {named!r}",
            f"set it in one place: take mixed_precision out of {subject.where}, or bf16 and fp16 out of the settings",
        )
    if subject.on_cpu:
        if asked == "fp16" or named == "fp16":
            yield Problem("fp16: float16 training needs a GPU, and here it is a CPU", "take bf16, or bf16: false for float32")
        if named == "fp8":
            yield Problem(f"{subject.where}: mixed_precision fp8 needs a GPU with FP8, and here it is a CPU", "take bf16")


def _batches(subject: Subject) -> Iterator[Problem]:
    """The samples of a step against the processes that share them."""
    ranks, samples = subject.data_ranks, subject.config.global_batch_size
    if ranks is None or samples is None or subject.batch is not None:
        return
    below, above = samples // ranks * ranks, (samples // ranks + 1) * ranks
    yield Problem(
        f"global_batch_size: {samples} samples cannot be shared by {ranks} processes",
        f"set it to {f'{below} or ' if below else ''}{above}",
    )


def _engines(subject: Subject) -> Iterator[Problem]:
    """An engine that the settings name beside the layout."""
    for name in ("deepspeed", "fsdp"):
        if subject.config.training_arguments.get(name):
            yield Problem(
                f"{name}: the settings name an engine, and {subject.where} is the layout",
                f"take {name} out, and give an accelerate config for it as --accelerate_config",
            )


def _optimizers(subject: Subject) -> Iterator[Problem]:
    """What only works where a process has whole matrices and sees the gradient before the step."""
    engine = subject.layout.engine
    if subject.config.optim == "muon" and engine in ("deepspeed", "fsdp"):
        yield Problem(
            "optim: muon needs whole matrices on every process, and DeepSpeed and FSDP partition them",
            "take another layout, such as ddp, or another optimizer",
        )
    if subject.config.skip_spikes and engine == "deepspeed":
        yield Problem("skip_spikes: DeepSpeed makes its step before anybody sees the gradient", "use another layout")


_OF_OPTIMIZERS = {
    "bnb|8bit|paged|lion_|ademamix": "bitsandbytes",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "torch_4bit|torch_8bit": "torchao",
    "apex": "apex",
    "schedule_free": "schedulefree",
}


def _packages(subject: Subject) -> Iterator[Problem]:
    """Settings that need a package which is not installed."""
    config = subject.config
    wanted = {}
    if config.training_arguments.get("use_liger_kernel"):
        wanted["use_liger_kernel"] = ("liger_kernel", "pip install liger-kernel")
    if getattr(config, "attn_implementation", None) in ("flash_attention_2", "flash_attention_3"):
        wanted["attn_implementation"] = ("flash_attn", "pip install flash-attn, or take sdpa")
    found = [package for words, package in _OF_OPTIMIZERS.items() if re.search(words, config.optim)]
    if found:
        package = "torchao" if "torchao" in found else found[0]
        wanted["optim"] = (package, f"pip install {package.replace('_', '-')}, or take adamw_torch_fused")
    for setting, (package, remedy) in wanted.items():
        if package not in subject.machine.packages:
            value = config.optim if setting == "optim" else getattr(config, setting, None) or "true"
            yield Problem(f"{setting}: {value} needs {package}, which is not installed", remedy)


# --------------------------------------------------------------------------------------------------------------------
# Settings against DeepSpeed and FSDP


def _deepspeed(subject: Subject) -> Iterator[Problem]:
    """Values that DeepSpeed holds against the settings, and blocks that would take their place."""
    layout, config = subject.layout, subject.config
    if layout.engine != "deepspeed":
        return
    values = deepspeed_settings(layout)
    file = (layout.settings.get("deepspeed_config") or {}).get("deepspeed_config_file")
    follow = 'write "auto", which follows the settings' if file else "take it out: it then follows the settings"
    expected: dict[str, tuple[str, Any]] = {
        "gradient_clipping": ("max_grad_norm", config.max_grad_norm),
        "optimizer.params.lr": ("learning_rate", config.learning_rate),
        "optimizer.params.weight_decay": ("weight_decay", config.weight_decay),
        "scheduler.params.warmup_max_lr": ("learning_rate", config.learning_rate),
    }
    if subject.batch is not None:
        at_once, accumulated, ranks = subject.batch
        expected |= {
            "train_micro_batch_size_per_gpu": ("the samples that a process computes at once", at_once),
            "gradient_accumulation_steps": ("gradient_accumulation_steps", accumulated),
            "train_batch_size": ("the samples of a step", at_once * accumulated * ranks),
        }
        if file and "gradient_accumulation_steps" not in values:
            values = {**values, "gradient_accumulation_steps": 1}  # which is what accelerate fills in
    for key, (name, wanted) in expected.items():
        if key in values and values[key] != "auto" and wanted is not None and not _equal(values[key], wanted):
            yield Problem(f"{name_in(layout, key)} is {values[key]}, and {name} of the settings {wanted}", follow)
    for block, setting, said in (
        ("optimizer", "optim", config.optim),
        ("scheduler", "lr_scheduler_type", config.lr_scheduler_type),
    ):
        if any(key.startswith(f"{block}.") for key in values):
            yield Problem(
                f"{name_in(layout, block)} takes the place of {setting}, which is {said}", f"take the block {block} out"
            )
    for kind in ("bf16", "fp16"):
        enabled = values.get(f"{kind}.enabled")
        if isinstance(enabled, bool):
            asked = subject.precision or subject.fast_precision
            if asked is not None and enabled != (asked == kind):
                by = "ask for" if subject.precision else "leave it to the hardware, which gives"
                yield Problem(
                    f"{name_in(layout, kind + '.enabled')} is {str(enabled).lower()}, and the settings {by} {_spoken(asked)}",
                    follow,
                )


def _spoken(precision: str) -> str:
    return "float32" if precision == "no" else precision


def _equal(left: Any, right: Any) -> bool:
    try:
        return math.isclose(float(left), float(right), rel_tol=1e-9)
    except (TypeError, ValueError):
        return left == right


def _fsdp(subject: Subject) -> Iterator[Problem]:
    """FSDP against model and settings."""
    if not by_accelerate(subject.layout):
        return
    values, model = fsdp_values(subject.layout), subject.architecture
    by_layer = str(values.get("auto_wrap_policy", "")).upper() == "TRANSFORMER_BASED_WRAP"
    named = [name.strip() for name in str(values.get("transformer_layer_cls_to_wrap") or "").split(",") if name.strip()]
    if by_layer and model is not None:
        layers = ",".join(model.layer_classes)
        for name in named:
            if name not in model.classes:
                yield Problem(
                    f"{subject.where}: fsdp_transformer_layer_cls_to_wrap: {name} is no class of {model.model_type}",
                    f"set it to {layers}" if layers else "name a class of its layers",
                )
        if not named and not layers:
            yield Problem(
                f"{subject.where}: fsdp_config: transformers does not say what the layers of {model.model_type} are",
                "set fsdp_transformer_layer_cls_to_wrap to their class",
            )
    recomputing = [
        name for name in ("gradient_checkpointing", "activation_checkpointing") if subject.config.training_arguments.get(name)
    ]
    if recomputing and str(values.get("activation_checkpointing", False)).lower() == "true":
        yield Problem(
            f"{recomputing[0]}: {subject.where} has fsdp_activation_checkpointing, and both would compute activations again",
            f"take {recomputing[0]} out",
        )


# --------------------------------------------------------------------------------------------------------------------
# The model and its data


def _model(subject: Subject) -> Iterator[Problem]:
    """A model that cannot be made or is not there."""
    config = subject.config
    name = getattr(config, "model_name_or_path", None)
    if name and subject.base_model is None and is_path(name):
        yield Problem(f"model_name_or_path: there is no directory {name!r}", "give that of a model, or its name on the hub")
    if not isinstance(config, PretrainConfig) or name:
        return
    kind = config.model_type or "llama"
    if kind not in causal_types():
        near = difflib.get_close_matches(kind, causal_types(), n=1, cutoff=0.5)
        yield Problem(
            f"model_type: transformers knows no causal language model {kind!r}", f"write {near[0]!r}" if near else "take llama"
        )
        return
    model = subject.architecture
    if model is None:
        return
    for key in subject.unknown_overrides:
        remedy = nearest(key, frozenset({**model.values, **model.names}) - set(subject.unknown_overrides))
        yield Problem(f"config_overrides: {kind} has no field {key!r}", remedy)
    width, heads, groups = (model.number("hidden_size"), model.number("num_attention_heads"), model.key_value_heads)
    if width and heads and not model.get("head_dim") and width % heads:
        yield Problem(
            f"config_overrides: hidden_size {width} is not a multiple of num_attention_heads {heads}",
            f"set hidden_size to {width // heads * heads or heads} or {(width // heads + 1) * heads}",
        )
    if heads and groups and heads % groups:
        fitting = max(size for size in range(1, min(groups, heads) + 1) if heads % size == 0)
        yield Problem(
            f"config_overrides: num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}",
            f"set num_key_value_heads to {fitting}",
        )


def _context(subject: Subject) -> Iterator[Problem]:
    """The length of a sample against what the model takes, and against the processes that share it."""
    config, model = subject.config, subject.architecture
    if not isinstance(config, PretrainConfig):
        wanted = getattr(config, "max_length", None)
        if wanted and model is not None and model.context and wanted > model.context:
            yield Problem(
                f"max_length: {wanted} is more than the model's context of {model.context} tokens",
                f"set it to {model.context}",
            )
        return
    if model is not None and model.context and model.context < config.block_size:
        yield Problem(
            f"block_size: {config.block_size} is more than the model's context of {model.context} tokens",
            f"set block_size to {model.context}, or give the model a longer context",
        )
    if subject.layout.context == 1:
        return
    if config.document_masking:
        yield Problem(
            f"document_masking: {subject.where} divides samples along their length, and attention then knows no documents",
            "set document_masking: false, or take a layout without context parallel",
        )
    if config.attn_implementation not in (None, "sdpa"):
        yield Problem(
            f"attn_implementation: {config.attn_implementation} cannot attend across processes, as {subject.where} asks for",
            "take sdpa",
        )
    pieces = 2 * subject.layout.context  # the causal mask is balanced by giving each process an early and a late piece
    if config.block_size % pieces:
        yield Problem(
            f"block_size: {config.block_size} tokens cannot be divided by 2 x {subject.layout.context} processes of a context",
            f"set block_size to {max(1, config.block_size // pieces) * pieces}",
        )


def _divisions(subject: Subject) -> Iterator[Problem]:
    """The model against the processes that divide it."""
    layout, model = subject.layout, subject.architecture
    if model is None:
        return
    if layout.tensor > 1:
        if not model.has_tensor_plan:
            yield Problem(
                f"{subject.where}: transformers has no tensor-parallel plan for {model.model_type}",
                "take a model_type that has one, such as llama or qwen3, or a layout without tensor parallel, such as fsdp2",
            )
        for name, size in (
            ("num_attention_heads", model.number("num_attention_heads")),
            ("num_key_value_heads", model.key_value_heads),
        ):
            if size and size % layout.tensor:
                yield Problem(
                    f"{name}: {size} cannot be divided among {layout.tensor} tensor-parallel processes",
                    f"make it a multiple of {layout.tensor}, or tensor parallel {_largest_divisor(size, layout.tensor)}",
                )
    layers = model.number("num_hidden_layers")
    if layers and layers < layout.pipeline:
        yield Problem(
            f"num_hidden_layers: {layers} layers cannot be divided among {layout.pipeline} pipeline stages",
            f"take at least {layout.pipeline} layers, or fewer stages",
        )


def _largest_divisor(size: int, most: int) -> int:
    return max(divisor for divisor in range(1, most + 1) if size % divisor == 0)


def _tokens(subject: Subject) -> Iterator[Problem]:
    """Token shards against their tokenizer, against each other and against the model."""
    config = subject.config
    if not isinstance(config, PretrainConfig):
        return
    for place in config.sources():
        if place not in subject.indexes:
            said = "there is no directory" if not Path(place).is_dir() else f"there is no {INDEX} that this llmkit reads in"
            yield Problem(f"tokens: {said} {place!r}", "make token shards with `llmkit tokenize`, and give its result")
    by_tokenizer = {index.tokenizer_sha256: place for place, index in reversed(subject.indexes.items())}
    if len(by_tokenizer) > 1:
        listed = ", ".join(f"{place} with {sha[:16]}" for sha, place in by_tokenizer.items())
        yield Problem(f"mixture: its token shards were written with several tokenizers: {listed}", "make them again with one")
    for place, index in subject.indexes.items():
        for holder, directory in (("its tokenizer", Path(place) / "tokenizer"), ("the model", subject.base_model)):
            if directory is None or not (directory / "tokenizer.json").is_file():
                continue
            try:
                found = tokenizer_hash(directory)
            except ArtefactError as failure:
                yield Problem(str(failure))
                continue
            if found != index.tokenizer_sha256:
                yield Problem(
                    f"{place} was written with another tokenizer than that of {holder}: its hash is "
                    f"{index.tokenizer_sha256[:16]}, that of {directory} is {found[:16]}",
                    f"make the shards again: llmkit tokenize --corpus DOCUMENTS --tokenizer {directory}",
                )
    model = subject.architecture
    size = model.number("vocab_size") if model else 0
    if size and subject.vocabulary and size < subject.vocabulary:
        name = "the model" if subject.base_model else "config_overrides.vocab_size"
        yield Problem(
            f"vocab_size: {name} has {size}, the tokenizer needs {subject.vocabulary}",
            "take the model's own tokenizer" if subject.base_model else f"set it to {subject.vocabulary}, or take it out",
        )


def _files(subject: Subject) -> Iterator[Problem]:
    """Texts and examples that are named and not there."""
    for name in ("train_file", "validation_file"):
        given = getattr(subject.config, name, None)
        if given:
            try:
                expand(given, name)
            except DataError as failure:
                yield Problem(str(failure), "give the path of a file or directory that is there")


# --------------------------------------------------------------------------------------------------------------------
# The machine


def _checkpoint_bytes(layout: Layout) -> int:
    """Bytes of a checkpoint for each parameter: weights for `from_pretrained` and two moments of AdamW, all in float32.

    What divides weights writes them once more, as each process has them, and ZeRO-1 and ZeRO-2 a whole copy beside that.
    """
    divided = layout.engine != "plain" or layout.tensor > 1
    return 12 + 4 * divided + 4 * (layout.engine == "deepspeed" and layout.zero_stage < 3)


def _disk(subject: Subject) -> Iterator[Problem]:
    """Room for the checkpoints that lie there at once, the model that a run starts from and the one that it makes."""
    if not subject.machine.can_write:
        yield Problem(
            f"{subject.output}: no directory can be made there", "give another --output_dir, or the right to write there"
        )
        return
    config = subject.config
    kept = config.save_total_limit + 1  # one is written before the oldest goes
    if isinstance(config, PretrainConfig) and config.max_steps > 0:
        kept = min(kept, math.ceil(config.max_steps / config.save_steps))
        kept += config.max_steps // config.save_permanent_steps if config.save_permanent_steps else 0
    of_one = subject.parameters * _checkpoint_bytes(subject.layout)
    needed = kept * of_one + 2 * 4 * subject.parameters
    partial = partial_of(subject.output)
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    if needed > subject.machine.free_disk + there:
        yield Problem(
            f"the disk of {subject.output} has {_gigabytes(subject.machine.free_disk)} free, and the run needs about "
            f"{_gigabytes(needed)}: {counted(kept, 'checkpoint')} of {_gigabytes(of_one)}, and the model",
            "make room, give an --output_dir on another disk, or set save_total_limit to 1",
        )


# Bytes that a training step surely needs no more than: of a parameter, of a token in a layer for each unit of its width and of
# its feed-forward part, of a logit, and of the buffers of any engine.
_MOST = {"parameter": 32, "width": 96, "inner": 24, "logit": 32, "buffers": 8 << 30}


def memory_problems(subject: Subject) -> Iterator[Problem]:
    """The memory of the fullest process, by the planner, against what this machine has.

    The planner imports torch, which takes seconds, so it is asked only where a bound that is surely too high does not fit.
    """
    config, layout, machine, batch = subject.config, subject.layout, subject.machine, subject.batch
    here = math.ceil(subject.processes / layout.machines)
    there = machine.memory // here if subject.on_cpu else machine.gpu_memory
    if not isinstance(config, PretrainConfig) or batch is None or there is None or _surely_fits(subject, batch[0], there):
        return
    if importlib.util.find_spec("llmkit.parallel.plan") is None:
        return
    plan = importlib.import_module("llmkit.parallel.plan")
    try:
        fullest = plan.memory_of(config, layout, subject.processes, on_cpu=subject.on_cpu).fullest
    except ConfigError:  # there are no formulas for the architecture, or what keeps the model from being made is said above
        return
    needed = fullest.total + (fullest.host if subject.on_cpu else 0)
    remedy = "lower per_device_train_batch_size, set gradient_checkpointing: true, or take a layout that fits by `llmkit plan`"
    if needed > there:
        device = f"its share of main memory, {_gigabytes(there)}" if subject.on_cpu else f"a GPU of {_gigabytes(there)}"
        yield Problem(f"a process needs about {_gigabytes(needed)}, more than {device}", remedy)
    if not subject.on_cpu and here * fullest.host > machine.memory:
        yield Problem(
            f"{counted(here, 'process')} offload about {_gigabytes(here * fullest.host)} to main memory, which has "
            f"{_gigabytes(machine.memory)}",
            remedy,
        )


def _surely_fits(subject: Subject, at_once: int, there: int) -> bool:
    model, config = subject.architecture, subject.config
    if model is None or not isinstance(config, PretrainConfig) or not subject.parameters:
        return True  # the planner would not know more
    width = model.number("hidden_size")
    inner = model.number("intermediate_size") or 4 * width
    layers = model.number("num_hidden_layers") * (_MOST["width"] * width + _MOST["inner"] * inner)
    of_token = layers + _MOST["logit"] * model.number("vocab_size")
    return _MOST["parameter"] * subject.parameters + at_once * config.block_size * of_token + _MOST["buffers"] <= there


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


CHECKS: tuple[Callable[[Subject], Iterator[Problem]], ...] = (
    _precision,
    _batches,
    _engines,
    _deepspeed,
    _fsdp,
    _optimizers,
    _model,
    _divisions,
    _context,
    _tokens,
    _files,
    _packages,
    _disk,
)
