"""What a launch layout says: an accelerate config, read without accelerate.

A layout divides the processes of a launch among five dimensions, and their product is the number of processes:

    replicate   data parallel: every process has all weights, and samples of its own
    shard       data parallel with weights, gradients or optimizer state divided (FSDP, ZeRO)
    tensor      each matrix is divided; the processes compute the same samples together
    context     each sample is divided along its length
    pipeline    the layers are divided; samples pass through in micro-batches

Processes that differ only in tensor, context or pipeline have the same samples, so a step's samples are shared by
replicate x shard processes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmkit import resources
from llmkit.config import read_yaml
from llmkit.errors import ConfigError
from llmkit.parallel.nodes import node_count

Device = Literal["none", "cpu", "nvme"]

ONE_PROCESS = ("NO", False, "MULTI_CPU")
"""Kinds of layouts for which accelerate starts one process whatever their `num_processes`; a bare NO is false in YAML."""


@dataclass(frozen=True)
class Layout:
    """A launch layout, by what it divides."""

    path: Path
    settings: dict[str, Any]
    """The accelerate config as it is written."""
    engine: Literal["plain", "deepspeed", "fsdp", "pipeline"]
    """What divides the work: torch alone (one process, DDP, tensor parallel), DeepSpeed, FSDP2, or llmkit's pipeline."""
    processes: int | None
    """Of all machines; None: one a GPU."""
    machines: int
    """By the environment, where a scheduler says it, else by the file."""
    use_cpu: bool
    precision: str | None
    """`mixed_precision` as the file says it: no, fp16, bf16, fp8; None where it says nothing."""
    zero_stage: int
    """What is divided among the `shard` processes: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    offload_optimizer: Device
    offload_weights: Device
    replicate: int
    shard: int | None
    """None: as many as the other dimensions leave."""
    tensor: int
    context: int
    pipeline: int

    @property
    def is_single(self) -> bool:
        """Whether it is one process whatever the machine has."""
        return self.settings.get("distributed_type", "NO") in ONE_PROCESS

    @property
    def model_ranks(self) -> int:
        """Processes that compute the same samples together."""
        return self.tensor * self.context * self.pipeline

    def process_count(self, gpus: int) -> int:
        """Processes of a launch on machines with so many GPUs each.

        A layout that does not say it has one for each GPU, or without a GPU as many as its dimensions need, and at least two
        that show that it works. Each machine has as many.
        """
        if self.is_single:
            return 1
        needed = self.model_ranks * self.replicate * (self.shard or 1)
        if self.engine == "plain" and self.tensor > 1:
            return self.processes or needed  # accelerate has no tensor parallel groups that are merely copies of each other
        unit = math.lcm(needed, self.machines)
        most = 0 if self.use_cpu else gpus * self.machines
        fitting = most // unit * unit if most else 0  # of 6 GPUs, a layout of 4 uses 4
        return self.processes or fitting or (unit if unit > 1 else 2)

    def data_ranks(self, processes: int) -> int:
        """Processes with samples of their own.

        Raises:
            ConfigError: the dimensions do not divide the number of processes.
        """
        ranks, rest = divmod(processes, self.model_ranks)
        if rest or ranks == 0:
            raise ConfigError(
                [
                    f"{self.path.name}: {processes} processes cannot be divided by {self.model_ranks} (tensor {self.tensor} x "
                    f"context {self.context} x pipeline {self.pipeline}); start a multiple of it with num_processes"
                ]
            )
        return ranks

    def launch_options(self, processes: int) -> list[str]:
        """What `accelerate launch` is told beside the file: the processes, and the dimension that grows with them."""
        options = ["--num_processes", str(processes)]
        if self.engine == "fsdp" and self.settings.get("parallelism_config"):
            options += ["--parallelism_config_dp_shard_size", str(self.sizes(processes)["shard"])]
        return options

    def sizes(self, processes: int) -> dict[str, int]:
        """All dimensions for a number of processes; `replicate` and `shard` grow to fill them."""
        ranks = self.data_ranks(processes)
        if self.engine in ("deepspeed", "fsdp"):
            replicate = self.replicate
            shard = ranks // replicate
        else:
            replicate, shard = ranks, 1
        return {
            "replicate": replicate,
            "shard": shard,
            "tensor": self.tensor,
            "context": self.context,
            "pipeline": self.pipeline,
        }


def read_layout(name: str) -> Layout:
    """A shipped layout by name, or any accelerate config by path.

    Raises:
        ConfigError: there is no such file, or it is no accelerate config.
    """
    path = resources.find("accelerate_configs", name)
    return layout_of(read_yaml(path)[0], path)


def layout_of(settings: dict[str, Any], path: Path) -> Layout:
    """The layout that an accelerate config says.

    Args:
        path: of its file, for messages.

    Raises:
        ConfigError: a DeepSpeed file that it names cannot be read.
    """
    kind = settings.get("distributed_type", "NO")
    parallel = settings.get("parallelism_config") or {}
    size = {key.removeprefix("parallelism_config_").removesuffix("_size"): value for key, value in parallel.items()}
    pipeline = 1
    zero: int = 0
    optimizer: Device = "none"
    weights: Device = "none"
    shard: int | None = 1
    if kind == "DEEPSPEED":
        zero, optimizer, weights = _deepspeed(settings, path)
        shard = None
    elif kind == "FSDP":
        fsdp = settings.get("fsdp_config") or {}
        zero = 3 if fsdp.get("fsdp_reshard_after_forward", True) in (True, "true", "FULL_SHARD") else 2
        optimizer = weights = "cpu" if fsdp.get("fsdp_offload_params") else "none"
        shard = size.get("dp_shard") if parallel else None
    elif size.get("dp_shard", 1) > 1:  # transformers divides the model by itself, as FSDP2
        kind, zero, shard = "FSDP", 3, size["dp_shard"]
    elif kind == "MEGATRON_LM":
        pipeline = int((settings.get("megatron_lm_config") or {}).get("megatron_lm_pp_degree", 1))
    return Layout(
        path=path,
        settings=settings,
        engine="pipeline" if pipeline > 1 else {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}.get(kind, "plain"),  # type: ignore[arg-type]
        processes=None if settings.get("num_processes") == "auto" else settings.get("num_processes"),
        machines=node_count(settings),
        use_cpu=bool(settings.get("use_cpu")),
        precision={False: "no", None: None}.get(settings.get("mixed_precision"), settings.get("mixed_precision")),
        zero_stage=zero,
        offload_optimizer=optimizer,
        offload_weights=weights,
        replicate=size.get("dp_replicate", 1),
        shard=shard,
        tensor=size.get("tp", 1),
        context=size.get("cp", 1) * size.get("sp", 1),
        pipeline=pipeline,
    )


def _deepspeed(settings: dict[str, Any], path: Path) -> tuple[int, Any, Any]:
    given = settings.get("deepspeed_config") or {}
    file = given.get("deepspeed_config_file")
    if not file:
        return (
            int(given.get("zero_stage", 2)),
            given.get("offload_optimizer_device") or "none",
            given.get("offload_param_device") or "none",
        )
    try:
        zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {})
    except (OSError, ValueError) as failure:
        raise ConfigError([f"{path.name}: deepspeed_config_file: {failure}"]) from failure
    device = {key: (zero.get(key) or {}).get("device", "none") for key in ("offload_optimizer", "offload_param")}
    return int(zero.get("stage", 0)), device["offload_optimizer"], device["offload_param"]
