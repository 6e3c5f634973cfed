"""What the hardware at hand does well."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmkit.errors import ConfigError
from llmkit.training.cpu_ranks import needs_a_device, stand_in_for_devices

if TYPE_CHECKING:
    from llmkit.training.arguments import TrainingConfig

# Names of malloc.h for mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def on_cpu(config: TrainingConfig) -> bool:
    """Whether training runs on the CPU: asked for, or because there is no accelerator."""
    return bool(config.training_arguments.get("use_cpu")) or not torch.accelerator.is_available()


def set_up(config: TrainingConfig) -> None:
    """Set this process up for the hardware that it trains on; before any model is made or saved."""
    if on_cpu(config):
        use_cpu_well(config.cpu_threads)
        if needs_a_device():
            stand_in_for_devices()


def use_cpu_well(threads: int | None) -> None:
    """Set this process up for training on the CPU.

    `accelerate launch` starts a CPU process with one thread (OMP_NUM_THREADS=1); here it gets its share of the cores. And
    glibc gives the memory of large activations back to the system after every step, to be cleared anew for the next; told to
    keep it, a step of a small model takes 0.6 of the processor time (benchmarks/LOG.md).

    Args:
        threads: threads of this process; None shares the cores among the processes on this machine.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, usable_cores() // processes))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which accelerate imports where it finds it, warns otherwise
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc; musl has none
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: those it may run on, or fewer where its container has a smaller share of their time.

    Args:
        quota: `cpu.max` of control groups, version 2 (Linux, Documentation/admin-guide/cgroup-v2.rst): microseconds of time,
            or max, in a period of so many microseconds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        time, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if time == "max" else max(1, min(cores, int(time) // int(period)))


def has_fast_bf16(cpu: bool) -> bool:
    """Whether bfloat16 is computed by the hardware, not emulated."""
    if cpu:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def precision(config: TrainingConfig, layout_precision: str | None) -> dict[str, Any]:
    """The `bf16` and `fp16` arguments of transformers.

    Args:
        layout_precision: `mixed_precision` of the accelerate config, or None where it says none.

    Raises:
        ConfigError: settings and layout ask for different precisions, or one that needs a GPU without one.
    """
    cpu = on_cpu(config)
    asked = "bf16" if config.bf16 else "fp16" if config.fp16 else "no" if config.bf16 is False else None
    # accelerate says "no" both when a layout asks for float32 and when it says nothing, so "no" decides nothing.
    named = layout_precision if layout_precision in ("bf16", "fp16", "fp8") else None
    if asked and named and asked != named:
        raise ConfigError(
            [f"bf16, fp16: the settings ask for {asked!r}, the accelerate config for {named!r}; set it in one place"]
        )
    chosen = asked or named or ("bf16" if has_fast_bf16(cpu) else "no")
    if chosen in ("fp16", "fp8") and cpu:
        raise ConfigError([f"{chosen}: {'float16' if chosen == 'fp16' else 'FP8'} training needs a GPU; on a CPU use bf16"])
    # FP8 has no argument in transformers: with neither of these, accelerate takes what its config says.
    return {"bf16": chosen == "bf16", "fp16": chosen == "fp16"}
