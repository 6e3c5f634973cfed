"""What would go wrong with a launch, found before it is made: settings, layout, model, data and machine against each other.

Each check is a small generator of problems over one `Subject`. None of them imports torch, builds a model or starts a process.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

from llmkit import resources
from llmkit.config import Resolved, accepted, parse_arguments, read_settings_file
from llmkit.errors import ArtefactError, ConfigError, DataError, LLMKitError
from llmkit.parallel.architecture import Architecture, causal_types, of_directory, parameters_in, read_architecture
from llmkit.parallel.launch import default_layout
from llmkit.parallel.layout import Layout, read_layout
from llmkit.parallel.machine import Machine
from llmkit.pipeline.stage import expand, is_path, partial_of
from llmkit.stages import STAGES, take_options
from llmkit.tokens.shards import INDEX, Index, tokenizer_hash
from llmkit.training.arguments import TrainingConfig
from llmkit.training.pretrain import PREPARED_VOCABULARY, PretrainConfig

USAGE = """usage: llmkit check RECIPE [--accelerate_config NAME] [--json FILE] [--key value ...]

What would go wrong with a launch, all at once, before anything is launched.

  RECIPE  (path or shipped name, such as pretrain/quickstart; or a stage: pretrain, finetune)
      The settings; those on the command line win over them.
  --accelerate_config NAME  (path or shipped name; default: one process, or ddp where there are several GPUs)
      Launch layout.
  --output_dir DIRECTORY, --runs_dir DIRECTORY  (path; default runs)
      Where the result would go.
  --json FILE
      The answer for a program.

Exit code: 0 when nothing is wrong, 1 when something is, 2 when it cannot be checked."""


@dataclass(frozen=True)
class Problem:
    """Something that would go wrong."""

    what: str
    remedy: str = ""
    """Empty where `what` says it."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


@dataclass(frozen=True)
class Subject:
    """What is checked."""

    stage: str
    config: TrainingConfig
    layout: Layout
    machine: Machine
    output: Path
    """Where the result goes."""

    @property
    def where(self) -> str:
        """How the layout is called in a sentence."""
        return self.layout.path.name

    @cached_property
    def processes(self) -> int:
        return self.layout.process_count(self.machine.gpus)

    @cached_property
    def data_ranks(self) -> int | None:
        """Processes with samples of their own; None where the dimensions do not fit, which is a problem of its own."""
        try:
            return self.layout.data_ranks(self.processes)
        except ConfigError:
            return None

    @property
    def on_cpu(self) -> bool:
        asked = self.layout.use_cpu or bool(self.config.training_arguments.get("use_cpu"))
        return asked or not self.machine.gpus

    @cached_property
    def indexes(self) -> dict[str, Index]:
        """The token shards that are there and can be read, by directory."""
        if not isinstance(self.config, PretrainConfig):
            return {}
        return {place: Index.load(Path(place)) for place in self.config.sources() if _has_index(Path(place))}

    @cached_property
    def vocabulary(self) -> int:
        """Tokens of the tokenizer, made or still to be made; 0 where it is that of a model."""
        if not isinstance(self.config, PretrainConfig):
            return 0
        if self.config.sources():
            return max((index.vocab_size for index in self.indexes.values()), default=0)
        return self.config.vocab_size or PREPARED_VOCABULARY

    @cached_property
    def base_model(self) -> Path | None:
        """The model that is trained on, where it lies on this machine."""
        name = getattr(self.config, "model_name_or_path", None)
        return Path(name) if name and Path(name).is_dir() else None

    @cached_property
    def architecture(self) -> Architecture | None:
        """Of the model that is trained; None where transformers, or this machine, does not have it."""
        if self.base_model is not None:
            return of_directory(self.base_model)
        if not isinstance(self.config, PretrainConfig) or self.config.model_name_or_path:
            return None
        found = read_architecture(self.config.model_type or "llama")
        if found is None:
            return None
        length = {} if not found.context else {"max_position_embeddings": self.config.block_size}
        return found.with_values({**length, "vocab_size": self.vocabulary, **self.config.config_overrides})

    @cached_property
    def parameters(self) -> int:
        """Of the model, about; 0 where that is not known."""
        if self.base_model is not None:
            return parameters_in(self.base_model)
        if self.architecture is None or self.unknown_overrides:
            return 0
        return self.architecture.parameters(self.architecture.number("vocab_size"))

    @property
    def unknown_overrides(self) -> list[str]:
        """Fields given for a new model that its architecture does not have."""
        given, model = getattr(self.config, "config_overrides", {}), self.architecture
        return [key for key in given if key not in model.known] if model else []

    @cached_property
    def precision(self) -> str | None:
        """What the settings ask for: bf16, fp16 or no; None where they leave it to the hardware."""
        return "bf16" if self.config.bf16 else "fp16" if self.config.fp16 else "no" if self.config.bf16 is False else None

    @cached_property
    def deepspeed(self) -> dict[str, Any]:
        """The settings of DeepSpeed as its JSON has them, also where they stand in the accelerate config."""
        return _deepspeed_settings(self.layout)


# --------------------------------------------------------------------------------------------------------------------
# The layout by itself


@cache
def _launch_options() -> frozenset[str]:
    """The options of `accelerate launch`, which the blocks of an accelerate config set, read from its source."""
    return frozenset(re.findall(r'"--(\w+)"', _source_of_accelerate("commands/launch.py")))


@cache
def _layout_keys() -> frozenset[str]:
    """The keys of an accelerate config, read from the source of accelerate."""
    source = _source_of_accelerate("commands/config/config_args.py")
    return frozenset(re.findall(r"^    (\w+): ", source, re.MULTILINE)) | {"fp16", "dynamo_backend"}


def _source_of_accelerate(name: str) -> str:
    spec = importlib.util.find_spec("accelerate")
    if spec is None or spec.origin is None:
        return ""
    return (Path(spec.origin).parent / name).read_text(encoding="utf-8")


# How a block's keys are called as options, where they are written without the block's name.
_PREFIXES = {
    "fsdp_config": "fsdp_",
    "fp8_config": "fp8_",
    "dynamo_config": "dynamo_",
    "deepspeed_config": "",
    "parallelism_config": "",
}


def _layout_names(layout: Layout) -> Iterator[Problem]:
    """Keys that accelerate does not know: at the top it ends with them, inside a block it passes over them in silence."""
    for key, value in layout.settings.items():
        if key not in _layout_keys():
            yield Problem(
                f"{layout.path.name}: unknown key {key!r}, with which accelerate does not start", _nearest(key, _layout_keys())
            )
        prefix = _PREFIXES.get(key)
        if prefix is None or not isinstance(value, dict):
            continue
        for inner in value:
            name = inner if inner.startswith(prefix) else prefix + inner
            if name not in _launch_options():
                yield Problem(
                    f"{layout.path.name}: {key}: unknown key {inner!r}, over which accelerate passes in silence",
                    _nearest(name, _launch_options()),
                )


def _nearest(key: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"write {near[0]!r}" if near else "take it out"


def _dimensions(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """The product of the dimensions against the number of processes."""
    processes = layout.process_count(machine.gpus)
    parts = {
        "replicate": layout.replicate,
        "shard": layout.shard or 1,
        "tensor": layout.tensor,
        "context": layout.context,
        "pipeline": layout.pipeline,
    }
    product = math.prod(parts.values())
    if processes % product:
        said = " x ".join(f"{name} {size}" for name, size in parts.items() if size > 1)
        yield Problem(
            f"{layout.path.name}: {processes} processes cannot be divided by {product} ({said})",
            f"set num_processes to {max(1, processes // product) * product}, or make a dimension smaller",
        )


def _machines(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """What several machines need to find each other."""
    if layout.machines < 2:
        return
    wanted = {
        "main_process_ip": "the address of the machine with machine_rank 0, the same on all of them",
        "main_process_port": "a port that is free there, the same on all of them",
    }
    if layout.settings.get("rdzv_backend", "static") == "static":
        wanted["machine_rank"] = f"0 on the first machine, up to {layout.machines - 1} on the last"
    if layout.processes is None:
        wanted["num_processes"] = f"the processes of all {layout.machines} machines together"
    for key, meaning in wanted.items():
        if layout.settings.get(key) in (None, ""):
            yield Problem(
                f"{layout.path.name}: {key} is missing, and there are {layout.machines} machines", f"set it to {meaning}"
            )
    rank = layout.settings.get("machine_rank")
    if isinstance(rank, int) and not 0 <= rank < layout.machines:
        yield Problem(
            f"{layout.path.name}: machine_rank is {rank}, and there are {layout.machines} machines",
            f"give each its own rank from 0 to {layout.machines - 1}",
        )
    if layout.processes and layout.processes % layout.machines:
        yield Problem(
            f"{layout.path.name}: {layout.processes} processes cannot be shared by {layout.machines} machines",
            f"set num_processes to a multiple of {layout.machines}",
        )


def _gpus(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """Processes against GPUs, one for each."""
    here = math.ceil(layout.process_count(machine.gpus) / layout.machines)
    if machine.gpus and not layout.use_cpu and here > machine.gpus:
        yield Problem(
            f"{layout.path.name}: {here} processes on this machine, which has {machine.gpus} GPUs",
            f"set num_processes to {machine.gpus * layout.machines}, or take it out: it is then one a GPU",
        )


def _ports(layout: Layout, machine: Machine) -> Iterator[Problem]:
    port = layout.settings.get("main_process_port")
    if port in machine.taken_ports and not layout.settings.get("machine_rank"):
        yield Problem(
            f"{layout.path.name}: main_process_port {port} is taken by another process on this machine",
            "end that, or set another; 0 takes a free one, on one machine",
        )


def _engine(layout: Layout, machine: Machine) -> Iterator[Problem]:
    if layout.engine == "deepspeed" and "deepspeed" not in machine.packages:
        yield Problem(f"layout {layout.path.name!r} needs DeepSpeed", "pip install 'llmkit[deepspeed]'")
    if layout.precision == "fp8":
        backend = str((layout.settings.get("fp8_config") or {}).get("backend", "AO")).upper()
        package = {"TE": "transformer_engine", "AO": "torchao"}.get(backend)
        if package and package not in machine.packages:
            yield Problem(f"{layout.path.name}: mixed_precision fp8 needs {package}", f"install {package}, or set bf16")


# --------------------------------------------------------------------------------------------------------------------
# DeepSpeed

# What stands in an accelerate config, and where DeepSpeed's own JSON has it.
_IN_JSON = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
    "offload_optimizer_nvme_path": "zero_optimization.offload_optimizer.nvme_path",
    "offload_param_nvme_path": "zero_optimization.offload_param.nvme_path",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}


def _deepspeed_settings(layout: Layout) -> dict[str, Any]:
    """DeepSpeed's settings by dotted name, wherever they are written."""
    given = layout.settings.get("deepspeed_config") or {}
    if given.get("deepspeed_config_file"):
        return _dotted(json.loads(Path(given["deepspeed_config_file"]).read_text(encoding="utf-8")))
    return {inside: given[key] for key, inside in _IN_JSON.items() if given.get(key) is not None}


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _name_in(layout: Layout, dotted: str) -> str:
    """How a value of DeepSpeed is called where it is written, with the file."""
    given = layout.settings.get("deepspeed_config") or {}
    if given.get("deepspeed_config_file"):
        return f"{given['deepspeed_config_file']}: {dotted}"
    outside = next((key for key, inside in _IN_JSON.items() if inside == dotted), dotted)
    return f"{layout.path.name}: deepspeed_config: {outside}"


def _deepspeed_layout(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """What DeepSpeed refuses whatever the settings are."""
    if layout.engine != "deepspeed":
        return
    given = layout.settings.get("deepspeed_config") or {}
    file = given.get("deepspeed_config_file")
    values = _deepspeed_settings(layout)
    if file:
        twice = [key for key in _IN_JSON if key in given]
        twice += ["mixed_precision"] if layout.settings.get("mixed_precision") is not None else []
        for key in twice:
            yield Problem(
                f"{layout.path.name}: {key} stands beside deepspeed_config_file, and accelerate refuses to have both",
                f"take it out, and say it in {file}",
            )
        if not any(key.startswith("zero_optimization.") for key in values):
            yield Problem(f"{file}: there is no zero_optimization, which accelerate asks for", "add it with its stage")
    for part, device, lowest in (
        ("offload_optimizer", layout.offload_optimizer, 1),
        ("offload_param", layout.offload_weights, 3),
    ):
        name = _name_in(layout, f"zero_optimization.{part}.device")
        path = _name_in(layout, f"zero_optimization.{part}.nvme_path").rpartition(": ")[2]
        if device == "nvme" and values.get(f"zero_optimization.{part}.nvme_path") in (None, "none", ""):
            yield Problem(f"{name} is nvme, and {path} is not given", f"set {path} to a directory on the fast disk")
        if device != "none" and layout.zero_stage < lowest:
            yield Problem(
                f"{name} is {device}, and ZeRO stage {layout.zero_stage} has nothing to offload there",
                f"take stage {lowest} or higher, or set it to none",
            )
    gather = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    if layout.zero_stage == 3 and values.get(gather) not in (True, "true", "True"):
        yield Problem(
            f"{_name_in(layout, gather)} is not set, and without it no process can write the whole model", "set it to true"
        )


def _deepspeed(subject: Subject) -> Iterator[Problem]:
    """Values that DeepSpeed holds against the settings, and blocks that would take their place."""
    layout, config = subject.layout, subject.config
    if layout.engine != "deepspeed":
        return
    values = subject.deepspeed
    file = (layout.settings.get("deepspeed_config") or {}).get("deepspeed_config_file")
    follow = 'write "auto", which follows the settings' if file else "take it out: it then follows the settings"
    expected: dict[str, tuple[str, Any]] = {
        "gradient_clipping": ("max_grad_norm", config.max_grad_norm),
        "optimizer.params.lr": ("learning_rate", config.learning_rate),
        "optimizer.params.weight_decay": ("weight_decay", config.weight_decay),
        "scheduler.params.warmup_max_lr": ("learning_rate", config.learning_rate),
    }
    batch = _batch(subject)
    if batch is not None:
        at_once, accumulated, ranks = batch
        expected |= {
            "train_micro_batch_size_per_gpu": ("the samples that a process computes at once", at_once),
            "gradient_accumulation_steps": ("gradient_accumulation_steps", accumulated),
            "train_batch_size": ("the samples of a step", at_once * accumulated * ranks),
        }
        if file and "gradient_accumulation_steps" not in values:
            values = {**values, "gradient_accumulation_steps": 1}  # which is what accelerate fills in
    for key, (name, wanted) in expected.items():
        if key in values and values[key] != "auto" and not _equal(values[key], wanted):
            yield Problem(f"{_name_in(layout, key)} is {values[key]}, and {name} of the settings {wanted}", follow)
    for block, setting, said in (
        ("optimizer", "optim", config.optim),
        ("scheduler", "lr_scheduler_type", config.lr_scheduler_type),
    ):
        if any(key.startswith(f"{block}.") for key in values):
            yield Problem(
                f"{_name_in(layout, block)} takes the place of {setting}, which is {said}", f"take the block {block} out"
            )
    for kind in ("bf16", "fp16"):
        enabled = values.get(f"{kind}.enabled")
        if isinstance(enabled, bool):
            asked = subject.precision or _of_hardware(subject)
            if asked is not None and enabled != (asked == kind):
                by = "ask for" if subject.precision else "leave it to the hardware, which gives"
                yield Problem(
                    f"{_name_in(layout, kind + '.enabled')} is {str(enabled).lower()}, and the settings {by} {_spoken(asked)}",
                    follow,
                )


def _of_hardware(subject: Subject) -> str | None:
    fast = subject.machine.bf16_on_cpu if subject.on_cpu else subject.machine.bf16_on_gpu
    return None if fast is None else "bf16" if fast else "no"


def _spoken(precision: str) -> str:
    return "float32" if precision == "no" else precision


def _equal(left: Any, right: Any) -> bool:
    try:
        return math.isclose(float(left), float(right), rel_tol=1e-9)
    except (TypeError, ValueError):
        return left == right


# --------------------------------------------------------------------------------------------------------------------
# FSDP


def _fsdp_layout(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """What FSDP2 cannot do whatever the settings are."""
    if layout.engine != "fsdp":
        return
    values = _fsdp_values(layout)
    where = f"{layout.path.name}: fsdp_config:"
    version = str(values.get("version", 1))
    if version != "2":
        said = f"is {version}" if "version" in values else "is not given, and accelerate then takes 1"
        yield Problem(f"{where} fsdp_version {said}", "set it to 2; FSDP1 is going away in torch and transformers")
    reshard = values.get("reshard_after_forward", True)
    if version == "2" and str(reshard).lower() not in ("true", "false"):
        yield Problem(f"{where} fsdp_reshard_after_forward is {reshard}, a value of FSDP1", "set it to true or false")
    if version == "2" and values.get("forward_prefetch") is not None:
        yield Problem(f"{where} fsdp_forward_prefetch is a setting of FSDP1, which FSDP2 refuses", "take it out")
    if str(values.get("auto_wrap_policy", "NO_WRAP")).upper() == "NO_WRAP":
        yield Problem(
            f"{where} fsdp_auto_wrap_policy is not given, and the whole model would be gathered at once",
            "set it to TRANSFORMER_BASED_WRAP",
        )
    if str(values.get("state_dict_type", "FULL_STATE_DICT")).upper() != "FULL_STATE_DICT":
        yield Problem(
            f"{where} fsdp_state_dict_type is {values['state_dict_type']}, with which transformers saves no model",
            "set it to FULL_STATE_DICT",
        )


def _fsdp_values(layout: Layout) -> dict[str, Any]:
    """The block for FSDP, its keys without their common beginning."""
    given = layout.settings.get("fsdp_config") or {}
    return {key.removeprefix("fsdp_"): value for key, value in given.items()}


def _fsdp(subject: Subject) -> Iterator[Problem]:
    """FSDP against model and settings."""
    if subject.layout.engine != "fsdp":
        return
    values, model = _fsdp_values(subject.layout), subject.architecture
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
# Settings against the layout


def _precision(subject: Subject) -> Iterator[Problem]:
    """Precision that is set in two places, of which one would win in silence, or that the hardware does not have."""
    asked, named = subject.precision, subject.layout.precision
    if asked and named and asked != named:
        yield Problem(
            f"bf16, fp16: the settings ask for {asked!r}, the accelerate config for {named!r}",
            f"set it in one place: take mixed_precision out of {subject.where}, or bf16 and fp16 out of the settings",
        )
    elif named == "no" and asked is None and _of_hardware(subject) == "bf16":
        yield Problem(
            f"{subject.where}: mixed_precision is no, and the settings, which say nothing, take bf16, which this hardware has",
            "set bf16: false for float32, or take mixed_precision out",
        )
    if subject.on_cpu:
        if asked == "fp16" or named == "fp16":
            yield Problem("fp16: float16 training needs a GPU, and here it is a CPU", "take bf16, or bf16: false for float32")
        if named == "fp8":
            yield Problem(f"{subject.where}: mixed_precision fp8 needs a GPU with FP8, and here it is a CPU", "take bf16")


def _batch(subject: Subject) -> tuple[int, int, int] | None:
    """Samples that a process computes at once, batches that it accumulates, and processes with samples of their own."""
    if subject.data_ranks is None:
        return None
    try:
        return (*subject.config.batch_layout(subject.data_ranks), subject.data_ranks)
    except ConfigError:
        return None


def _batches(subject: Subject) -> Iterator[Problem]:
    """The samples of a step against the processes that share them."""
    ranks, samples = subject.data_ranks, subject.config.global_batch_size
    if ranks is None or samples is None or _batch(subject) is not None:
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
        remedy = _nearest(key, frozenset({**model.values, **model.names}) - set(subject.unknown_overrides))
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
    pieces = 2 * subject.layout.context  # the causal mask is balanced by giving each process an early and a late piece
    if subject.layout.context > 1 and config.block_size % pieces:
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


def _has_index(directory: Path) -> bool:
    try:
        Index.load(directory)
    except ArtefactError:
        return False
    return True


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
            found = tokenizer_hash(directory)
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

# Bytes of a checkpoint for each parameter: weights in float32 for from_pretrained, two moments of AdamW, and what an engine
# writes beside them: FSDP the weights once more, DeepSpeed the weights and its own float32 copy.
_CHECKPOINT_BYTES = {"plain": 12, "pipeline": 12, "fsdp": 16, "deepspeed": 20}


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
    of_one = subject.parameters * _CHECKPOINT_BYTES[subject.layout.engine]
    needed = kept * of_one + 2 * 4 * subject.parameters
    partial = partial_of(subject.output)
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    if needed > subject.machine.free_disk + there:
        yield Problem(
            f"the disk of {subject.output} has {_gigabytes(subject.machine.free_disk)} free, and the run needs about "
            f"{_gigabytes(needed)}: {_counted(kept, 'checkpoint')} of {_gigabytes(of_one)}, and the model",
            "make room, give an --output_dir on another disk, or set save_total_limit to 1",
        )


def _counted(count: int, thing: str) -> str:
    return f"1 {thing}" if count == 1 else f"{count} {thing}{'es' if thing.endswith('s') else 's'}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _memory_problems(subject: Subject) -> Iterator[Problem]:
    """The memory of the fullest process, by the planner, against what this machine has."""
    if importlib.util.find_spec("llmkit.parallel.plan") is None:
        return
    plan = importlib.import_module("llmkit.parallel.plan")
    needed = plan.memory_of(subject.config, subject.layout, subject.processes)
    here = math.ceil(subject.processes / subject.layout.machines)
    there = subject.machine.memory // here if subject.on_cpu else subject.machine.gpu_memory
    if there is not None and needed > there:
        device = f"its share of main memory, {_gigabytes(there)}" if subject.on_cpu else f"a GPU of {_gigabytes(there)}"
        yield Problem(
            f"a process needs about {_gigabytes(needed)}, more than {device}",
            "lower per_device_train_batch_size, set gradient_checkpointing: true, or take a layout that fits by `llmkit plan`",
        )


_OF_LAYOUT: tuple[Callable[[Layout, Machine], Iterator[Problem]], ...] = (
    lambda layout, machine: _layout_names(layout),
    _dimensions,
    _machines,
    _deepspeed_layout,
    _fsdp_layout,
    _engine,
    _gpus,
    _ports,
)
_OF_ALL: tuple[Callable[[Subject], Iterator[Problem]], ...] = (
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


def problems(subject: Subject) -> list[Problem]:
    """Everything that is wrong, in the order of the checks: the layout, the settings, the model, its data, the machine."""
    found = [problem for check in _OF_LAYOUT for problem in check(subject.layout, subject.machine)]
    found += [problem for check in _OF_ALL for problem in check(subject)]
    return list(dict.fromkeys(found))


def arithmetic(subject: Subject) -> str:
    """The samples of a step, in one line."""
    batch = _batch(subject)
    assert batch is not None, "a check says so before"
    at_once, accumulated, ranks = batch
    together = f", {subject.layout.model_ranks} to a model" if subject.layout.model_ranks > 1 else ""
    samples = f"{at_once} samples at once x {accumulated} accumulated x {ranks} data-parallel"
    return f"{_counted(subject.processes, 'process')}{together}; {samples} = {at_once * accumulated * ranks} samples a step"


# --------------------------------------------------------------------------------------------------------------------
# The command, and the launch


def refuse(stage: str, resolved: Resolved[Any], output: Path, layout: str) -> None:
    """Refuse a launch that would go wrong, before a process is started.

    Raises:
        ConfigError: with everything that is wrong.
    """
    found = read_layout(layout)
    # On one machine the launcher takes a free port, whatever the layout says.
    port = found.settings.get("main_process_port") if found.machines > 1 else None
    wrong = problems(Subject(stage, resolved.config, found, Machine.at_hand(output, port), output))
    if wrong:
        raise ConfigError([str(problem) for problem in wrong], f"launch of {stage} under {layout}")


def run(words: list[str]) -> int:
    """`llmkit check`: print what is wrong.

    Returns:
        0 when nothing is wrong, 1 when something is.

    Raises:
        LLMKitError: there is no such recipe, stage or layout.
    """
    if not words or "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    options, rest = take_options(words, ("output_dir", "runs_dir", "accelerate_config", "json"), ("force", "dry_run"))
    name, rest = _stage_of(rest)
    stage = STAGES[name]
    called = options.get("accelerate_config") or default_layout() or "single"
    layout = read_layout(called)
    output = Path(options.get("output_dir") or options.get("runs_dir") or "runs")
    machine = Machine.at_hand(output, layout.settings.get("main_process_port"))
    subject = None
    try:
        resolved = parse_arguments(stage.config_class, rest, stage.default_recipe)
        subject = Subject(name, cast(TrainingConfig, resolved.config), layout, machine, output)
        found = [*problems(subject), *_memory_problems(subject)]
    except ConfigError as failure:
        found = [Problem(sentence) for sentence in failure.problems]
        found += [problem for check in _OF_LAYOUT for problem in check(layout, machine)]
    title = f"{name} under {called}"
    if found:
        print(f"{title}: {_counted(len(found), 'problem')}")
        for problem in found:
            print(f"  - {problem.what}" + (f"\n      {problem.remedy}" if problem.remedy else ""))
        if subject is None:
            print("  The settings have to be right before they can be held against the layout, the model and the machine.")
    else:
        assert subject is not None
        print(f"nothing is wrong: {title}: {arithmetic(subject)}")
    if options.get("json"):
        answer = {"stage": name, "layout": called, "problems": [asdict(problem) for problem in found]}
        Path(options["json"]).write_text(json.dumps(answer, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if found else 0


def _stage_of(words: list[str]) -> tuple[str, list[str]]:
    """The stage that a command line is about, and its settings."""
    launched = [stage.name for stage in STAGES.values() if stage.launched]
    first, *rest = words
    if first in launched:
        return first, rest
    if first in STAGES or first.startswith("--"):
        raise LLMKitError(f"check: {first!r} is nothing that is launched; give a recipe, or one of {', '.join(launched)}")
    path = resources.find("recipes", first)
    if path.resolve().parent.name in launched:
        return path.resolve().parent.name, ["--config", first, *rest]
    keys = {key for source in read_settings_file(path) for key in source.values}
    unknown = {name: len(keys - accepted(STAGES[name].config_class).keys()) for name in launched}
    best = [name for name in launched if unknown[name] == min(unknown.values())]
    if len(best) > 1:
        raise LLMKitError(
            f"check: {first} could be settings of {' and of '.join(best)}; write llmkit check {best[0]} --config {first}"
        )
    return best[0], ["--config", first, *rest]
