"""Training settings: the ones llmkit has an opinion on, and every other field of `transformers.TrainingArguments`.

The fields of the installed transformers are read from its source, so that a typo is answered in a moment and not after the
seconds that importing torch takes.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmkit.config import FieldSpec, StageConfig, option
from llmkit.errors import ConfigError
from llmkit.training import schedules

# What transformers 5 renamed or dropped from TrainingArguments and its relatives (MIGRATION_GUIDE_V5.md of transformers).
RENAMED = {
    "warmup_ratio": "write `warmup_steps`; a value below 1 is a share of all steps",
    "evaluation_strategy": "write `eval_strategy`",
    "overwrite_output_dir": "use `--force`, which replaces a finished result",
    "logging_dir": "training logs are in metrics.jsonl beside the model; for others see `report_to`",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "no_cuda": "write `use_cpu`",
    "use_mps_device": "the device is found by itself",
    "save_safetensors": "weights are always safetensors",
    "per_gpu_train_batch_size": "write `per_device_train_batch_size`",
    "per_gpu_eval_batch_size": "write `per_device_eval_batch_size`",
    "fp16_backend": "write `fp16`",
    "half_precision_backend": "write `fp16` or `bf16`",
    "fp16_opt_level": "write `fp16`; apex is gone",
    "adafactor": "write `optim: adafactor`",
    "include_tokens_per_second": "throughput is in the metrics of every run",
    "push_to_hub_model_id": "write `hub_model_id`",
    "push_to_hub_token": "log in with `hf auth login`; settings are saved beside the result, a token must not be",
    "torch_dtype": "weights are trained in float32; write `bf16` or `fp16` for mixed precision",
    "tokenizer_name": "write `tokenizer`",
    "jit_mode_eval": "write `torch_compile`",
    "dispatch_batches": "write `accelerator_config`",
    "split_batches": "write `accelerator_config`",
    "tpu_num_cores": "TPUs are not supported",
    "past_index": "dropped by transformers 5",
    "ray_scope": "dropped by transformers 5",
}

SCRATCH = ("checkpoint-*", ".writing", "*seed-model", "*seed-tokenizer", "nvme-offload", "training_args.bin", ".seeds.json")
"""What training leaves for a resume (and a pickle of transformers that says what llmkit.yaml says better), as patterns."""

# Fields of TrainingArguments that llmkit decides itself, and why.
_OURS = {
    "output_dir": "give `--output_dir` on the command line",
    "do_train": "the stage decides what is done",
    "do_eval": "the stage decides what is done",
    "do_predict": "the stage decides what is done",
    "resume_from_checkpoint": "write `resume`",
    "ignore_data_skip": "a resumed run goes on with the sample after the last one it learned",
    "data_seed": "write `seed`; the order of samples is a function of it",
    "dataloader_drop_last": "every sample is used",
    "auto_find_batch_size": "it would change the samples of a step; write `global_batch_size`",
    "average_tokens_across_devices": "every token weighs the same on all processes",
    "logging_nan_inf_filter": "a loss that is no number is shown as it is, and its update skipped",
    "hub_token": "log in with `hf auth login`; settings are saved beside the result, a token must not be",
    "local_rank": "the launcher sets it",
    "remove_unused_columns": "the stage knows its columns",
    "label_names": "the stage knows its columns",
    "save_on_each_node": "the nodes of a run share its directory",
}

# Fields that change how a run goes or what it tells, and not what it computes.
_WITHOUT_EFFECT = {
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "report_to",
    "run_name",
    "project",
    "logging_first_step",
    "logging_strategy",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "ddp_timeout",
    "ddp_backend",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "use_cpu",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "skip_memory_metrics",
    "debug",
}


@cache
def transformers_fields() -> dict[str, FieldSpec]:
    """The fields of the installed `transformers.TrainingArguments`, without importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    source = (Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            return {field.name: field for field in map(_field, node.body) if field and field.name not in _OURS}
    return {}


def _field(statement: ast.stmt) -> FieldSpec | None:
    if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
        return None
    name, annotation = statement.target.id, ast.unparse(statement.annotation)
    if name.startswith("_") or annotation.startswith("ClassVar"):
        return None
    identity = name not in _WITHOUT_EFFECT and not name.startswith("trackio")
    return FieldSpec(name, _type(annotation), default=None, doc="", identity=identity)


def _type(annotation: str) -> Any:
    """The declared type, as far as llmkit checks it; transformers checks the rest."""
    plain = {"bool": bool, "int": int, "float": float, "str": str}
    words = {word.strip() for word in annotation.split("|")}
    optional = "None" in words or annotation.startswith("Optional")
    known = [plain[word] for word in ("bool", "int", "float", "str") if word in words]
    if len(known) != len(words - {"None"}):
        return Any
    kind: Any = known[0]
    for other in known[1:]:
        kind = kind | other
    return kind | None if optional else kind


@dataclass(kw_only=True)
class TrainingConfig(StageConfig):
    """Settings that pretraining and fine-tuning share; names are those of transformers."""

    renamed: ClassVar = {**RENAMED, **_OURS}
    voids: ClassVar = {"lr_scheduler_type": ("decay_steps", "decay_type", "lr_scheduler_kwargs")}
    passed_on: ClassVar = "training_arguments"

    @classmethod
    def further_settings(cls) -> dict[str, FieldSpec]:
        return transformers_fields()

    learning_rate: float | None = option(3e-4)
    """Peak learning rate."""

    num_train_epochs: float = option(1.0)
    """Passes over the training data; `max_steps` overrides it."""

    max_steps: int = option(-1)
    """Optimizer steps; -1 leaves it to `num_train_epochs`."""

    global_batch_size: int | None = option(None, identity=False)
    """Samples of an optimizer step, on all processes: it stays the same on a laptop and a cluster. What one process cannot
    compute at once is accumulated. None: per_device_train_batch_size x gradient_accumulation_steps x processes."""

    per_device_train_batch_size: int = option(8, identity=False)
    """Samples that one process computes at once; with `global_batch_size`, at most so many."""

    per_device_eval_batch_size: int = option(16, identity=False)
    """Samples that one process evaluates at once."""

    gradient_accumulation_steps: int = option(1, identity=False)
    """Batches that are summed before an optimizer step, where `global_batch_size` does not say it."""

    optim: str = option("adamw_torch_fused")
    """Optimizer: muon (for hidden matrices, with AdamW for the rest), or any name that transformers has: adamw_torch_fused,
    adafactor, adamw_bnb_8bit, ..."""

    lr_scheduler_type: str = option("cosine")
    """The learning rate after warm-up: cosine or linear decay, constant, wsd (constant, then a decay at the end), or any other
    name that transformers has."""

    warmup_steps: float | str = option(0.05)
    """Steps in which the learning rate rises to its peak; a value below 1 is a share of all steps, and `10M tokens` or
    `0.5 epochs` are lengths as well."""

    decay_steps: float | str | None = option(None)
    """Steps of decay at the end of a wsd run, given like `warmup_steps`; None: a fifth of all."""

    decay_type: Literal["linear", "sqrt", "cosine"] | None = option(None)
    """Shape of that decay; None: sqrt, which is 1 - sqrt of the decay's share that has passed."""

    min_lr_ratio: float = option(0.0)
    """What linear, cosine and wsd decay to, as a share of the peak learning rate."""

    weight_decay: float = option(0.1)
    """Decoupled weight decay, on matrices and embeddings; biases and norms have none."""

    adam_beta2: float = option(0.95)
    """Decay of AdamW's second moment; 0.95 is usual for language models (Brown et al. 2020, appendix B)."""

    max_grad_norm: float = option(1.0)
    """Gradients are scaled down to this norm."""

    seed: int = option(0)
    """Seed of the initial weights, of the order of samples and of dropout."""

    bf16: bool | None = option(None)
    """Mixed precision in bfloat16. None: wherever the hardware has it (GPUs from Ampere on, CPUs with AVX512-BF16 or AMX)."""

    fp16: bool = option(False)
    """Mixed precision in float16 with loss scaling; needs a GPU."""

    logging_steps: int = option(10, identity=False)
    """Steps between two entries of the training loss in metrics.jsonl."""

    save_total_limit: int = option(2, identity=False)
    """Checkpoints kept while training goes on."""

    max_skipped_steps: int = option(10, identity=False)
    """Updates in a row that may be skipped, because a loss or a gradient is no number, before the run ends."""

    spike_sigma: float | None = option(6.0, identity=False)
    """A loss or gradient norm so many standard deviations above the mean of the last steps is a spike: it is recorded, with a
    dump of its samples. None: spikes are not looked for."""

    spike_window: int = option(128, identity=False)
    """Steps over which that mean and deviation are taken."""

    skip_spikes: bool = option(False)
    """Skip the update of a spike, as one whose gradient is no number (Team OLMo 2024)."""

    cpu_threads: int | None = option(None, identity=False)
    """Threads of a process that trains on the CPU. None: the cores, shared among the processes on this machine."""

    resume: str = option("auto", identity=False)
    """Where an unfinished run goes on. auto: at its newest checkpoint that is whole; never: at its start; or the path of a
    checkpoint."""

    training_arguments: dict[str, Any] = option(factory=dict)
    """Further fields of transformers.TrainingArguments."""

    def batch_layout(self, processes: int) -> tuple[int, int]:
        """Samples that a process computes at once, and batches that are accumulated.

        Raises:
            ConfigError: `global_batch_size` cannot be shared out evenly.
        """
        if self.global_batch_size is None:
            return self.per_device_train_batch_size, self.gradient_accumulation_steps
        each, rest = divmod(self.global_batch_size, processes)
        if rest or each == 0:
            raise ConfigError(
                [f"global_batch_size: {self.global_batch_size} samples cannot be shared by {processes} processes"]
            )
        at_once = max(size for size in range(1, min(each, self.per_device_train_batch_size) + 1) if each % size == 0)
        return at_once, each // at_once

    def result_settings(self, processes: int) -> dict[str, Any]:
        """The samples of a step decide the result; how they are shared out does not."""
        at_once, accumulated = self.batch_layout(processes)
        settings: dict[str, Any] = {"global_batch_size": at_once * accumulated * processes}
        if self.skip_spikes:
            settings |= {"spike_sigma": self.spike_sigma, "spike_window": self.spike_window}
        return settings

    def problems(self) -> Iterable[str]:
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_total_limit",
            "max_skipped_steps",
        ):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"
        if self.global_batch_size is not None and self.global_batch_size < 1:
            yield f"global_batch_size: is {self.global_batch_size}, must be at least 1"
        if self.global_batch_size is not None and self.gradient_accumulation_steps != 1:
            yield "gradient_accumulation_steps: follows from global_batch_size; give one of the two"
        if self.cpu_threads is not None and self.cpu_threads < 1:
            yield f"cpu_threads: is {self.cpu_threads}, must be at least 1"
        if self.spike_sigma is not None and self.spike_sigma <= 0:
            yield f"spike_sigma: is {self.spike_sigma}, must be above 0"
        if self.spike_window < 4:
            yield f"spike_window: is {self.spike_window}, must be at least 4: fewer steps have no deviation"
        if self.skip_spikes and self.spike_sigma is None:
            yield "skip_spikes: spikes are not looked for; set spike_sigma"
        if self.skip_spikes and self.fp16:
            yield "skip_spikes: float16 decides by its loss scale which updates are made; use bf16"
        yield from schedules.problems(self)
        if self.optim.endswith("_layerwise") or self.optim in ("lomo", "adalomo"):
            yield f"optim: {self.optim} updates during the backward pass, where nothing can be clipped, skipped or scheduled"
        if self.learning_rate is not None and self.learning_rate <= 0:
            yield f"learning_rate: is {self.learning_rate}, must be above 0"
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            yield "max_steps: no step would be made; set max_steps or num_train_epochs above 0"
        if self.bf16 and self.fp16:
            yield "bf16: mixed precision is either bf16 or fp16"
