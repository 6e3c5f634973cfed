"""What is wrong with a launch layout by itself, whatever is trained under it."""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from llmkit.parallel.layout import Layout
from llmkit.parallel.machine import Machine
from llmkit.parallel.subject import Problem


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


def _names(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """Keys that accelerate does not know: at the top it ends with them, inside a block it passes over them in silence."""
    for key, value in layout.settings.items():
        if key not in _layout_keys():
            yield Problem(
                f"{layout.path.name}: unknown key {key!r}, with which accelerate does not start", nearest(key, _layout_keys())
            )
        prefix = _PREFIXES.get(key)
        if prefix is None or not isinstance(value, dict):
            continue
        for inner in value:
            name = inner if inner.startswith(prefix) else prefix + inner
            if name not in _launch_options():
                yield Problem(
                    f"{layout.path.name}: {key}: unknown key {inner!r}, over which accelerate passes in silence",
                    nearest(name, _launch_options()),
                )


def nearest(key: str, known: Iterable[str]) -> str:
    """What to do about a key that is not among the known ones."""
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
            f"set num_processes to {machine.gpus * layout.machines}, and its dimensions to sizes that divide it",
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
        values = {key.removeprefix("fp8_"): value for key, value in (layout.settings.get("fp8_config") or {}).items()}
        serving = {"TE": ("transformer_engine",), "AO": ("torchao",)}
        packages = serving.get(str(values.get("backend")).upper(), ("transformer_engine", "torchao"))
        if not machine.packages.intersection(packages):
            named = " or ".join(packages)
            yield Problem(f"{layout.path.name}: mixed_precision fp8 needs {named}", "install it, or set bf16")


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


def deepspeed_settings(layout: Layout) -> dict[str, Any]:
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


def name_in(layout: Layout, dotted: str) -> str:
    """How a value of DeepSpeed is called where it is written, with the file."""
    given = layout.settings.get("deepspeed_config") or {}
    if given.get("deepspeed_config_file"):
        return f"{given['deepspeed_config_file']}: {dotted}"
    outside = next((key for key, inside in _IN_JSON.items() if inside == dotted), dotted)
    return f"{layout.path.name}: deepspeed_config: {outside}"


def _deepspeed(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """What DeepSpeed refuses whatever the settings are."""
    if layout.engine != "deepspeed":
        return
    given = layout.settings.get("deepspeed_config") or {}
    file = given.get("deepspeed_config_file")
    values = deepspeed_settings(layout)
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
        name = name_in(layout, f"zero_optimization.{part}.device")
        path = name_in(layout, f"zero_optimization.{part}.nvme_path").rpartition(": ")[2]
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
            f"{name_in(layout, gather)} is not set, and without it no process can write the whole model", "set it to true"
        )


# --------------------------------------------------------------------------------------------------------------------
# FSDP


def _fsdp(layout: Layout, machine: Machine) -> Iterator[Problem]:
    """What FSDP2 cannot do whatever the settings are."""
    if not by_accelerate(layout):
        return
    values = fsdp_values(layout)
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


def by_accelerate(layout: Layout) -> bool:
    """Whether FSDP is accelerate's, by its block of settings, and not what transformers does beside tensor parallel."""
    return layout.settings.get("distributed_type") == "FSDP"


def fsdp_values(layout: Layout) -> dict[str, Any]:
    """The block for FSDP, its keys without their common beginning."""
    given = layout.settings.get("fsdp_config") or {}
    return {key.removeprefix("fsdp_"): value for key, value in given.items()}


CHECKS: tuple[Callable[[Layout, Machine], Iterator[Problem]], ...] = (
    _names,
    _dimensions,
    _machines,
    _deepspeed,
    _fsdp,
    _engine,
    _gpus,
    _ports,
)
