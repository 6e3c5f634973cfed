"""The launch layouts that `llmkit plan` compares: those of `accelerate_configs/`, in every size that is possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.parallel.layout import Layout, layout_of
from llmkit.parallel.memory import Architecture


@dataclass(frozen=True)
class Cluster:
    """The devices of a launch."""

    gpus: int
    """Of each machine."""
    machines: int

    @property
    def processes(self) -> int:
        return self.gpus * self.machines


@dataclass(frozen=True)
class Candidate:
    """A layout by name, with the accelerate config that gives it; without one, it is not possible."""

    name: str
    layout: Layout | None
    reason: str = ""
    """Why it is not possible."""


_FSDP = {
    "fsdp_version": 2,
    "fsdp_reshard_after_forward": True,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": False,
}


def candidates(model: Architecture, cluster: Cluster, block_size: int) -> Iterator[Candidate]:
    """Every layout for a model on a cluster.

    Args:
        block_size: tokens of a sample, which context parallelism divides.
    """

    def made(name: str, kind: str, **settings: Any) -> Candidate:
        return Candidate(name, layout_of(config_of(cluster, kind, **settings), Path(name)))

    processes = cluster.processes
    if processes == 1:
        yield made("single", "NO")
        yield made("zero3_offload", "DEEPSPEED", deepspeed_config=_deepspeed(3, "cpu"))
        return
    yield made("ddp", "MULTI_GPU")
    for stage in (1, 2, 3):
        yield made(f"zero{stage}", "DEEPSPEED", deepspeed_config=_deepspeed(stage))
    yield made("zero3_offload", "DEEPSPEED", deepspeed_config=_deepspeed(3, "cpu"))
    yield made("fsdp2", "FSDP", fsdp_config=_FSDP)
    yield made("fsdp2_offload", "FSDP", fsdp_config={**_FSDP, "fsdp_offload_params": True})
    for shard in _divisors(processes):
        if 1 < shard < processes:
            parallel = _sizes(dp_replicate=processes // shard, dp_shard=shard)
            yield made("hsdp", "FSDP", fsdp_config=_FSDP, parallelism_config=parallel)
    yield from _tensor(model, cluster, made)
    stages = [size for size in _divisors(processes) if 1 < size <= model.num_hidden_layers]
    for size in stages:
        yield made("pp", "MEGATRON_LM", megatron_lm_config={"megatron_lm_pp_degree": size})
    if not stages:
        yield Candidate("pp", None, f"{model.num_hidden_layers} layers cannot be cut into a divisor of {processes} stages")
    cuts = [size for size in _divisors(processes) if size > 1 and block_size % (2 * size) == 0]
    for size in cuts:
        parallel = {**_sizes(dp_shard=processes // size, cp=size), "parallelism_config_cp_comm_strategy": "allgather"}
        yield made("cp", "FSDP", fsdp_config=_FSDP, parallelism_config=parallel)
    if not cuts:
        yield Candidate("cp", None, f"block_size {block_size:,} is no multiple of twice a divisor of {processes}")


def _tensor(model: Architecture, cluster: Cluster, made: Any) -> Iterator[Candidate]:
    """Tensor parallel, inside a machine, and with FSDP2 between the groups."""
    if not model.has_tensor_plan:
        yield Candidate("tp", None, f"transformers has no tensor parallel plan for {model.model_type}")
        return
    divided = {
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
    }
    for size in _divisors(cluster.gpus):
        rest = {name: value for name, value in divided.items() if value % size}
        name = "tp" if size == cluster.processes else "fsdp2_tp"
        if size == 1:
            continue
        if rest:
            named = ", ".join(f"{key} {value:,}" for key, value in rest.items())
            yield Candidate(name, None, f"{size} processes do not divide {named}")
        elif size == cluster.processes:
            yield made("tp", "MULTI_GPU", parallelism_config=_sizes(tp=size))
        else:
            parallel = _sizes(dp_shard=cluster.processes // size, tp=size)
            yield made("fsdp2_tp", "MULTI_GPU", parallelism_config=parallel)


def config_of(cluster: Cluster, kind: str, **settings: Any) -> dict[str, Any]:
    """An accelerate config for all devices of a cluster."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "num_machines": cluster.machines,
        "machine_rank": 0,
        "main_process_port": 0 if cluster.machines == 1 else 29500,
        "num_processes": cluster.processes,
        **settings,
    }


def _deepspeed(stage: int, offload: str = "none") -> dict[str, Any]:
    settings: dict[str, Any] = {"zero_stage": stage, "zero3_init_flag": False}
    if stage == 3:
        settings["zero3_save_16bit_model"] = True
    return {**settings, "offload_optimizer_device": offload, "offload_param_device": offload}


def _sizes(**sizes: int) -> dict[str, Any]:
    return {f"parallelism_config_{name}_size": size for name, size in sizes.items()}


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
