"""What this machine has for a launch, found without importing torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llmkit.parallel.launch import gpu_count

PACKAGES = (
    "deepspeed",
    "liger_kernel",
    "bitsandbytes",
    "flash_attn",
    "galore_torch",
    "apollo_torch",
    "torchao",
    "apex",
    "schedulefree",
    "transformer_engine",
)
"""What some settings need and a plain installation has not; names as they are imported."""


@dataclass(frozen=True)
class Machine:
    """What a check asks of a machine."""

    gpus: int
    gpu_memory: int | None
    """Bytes of the smallest GPU; None where there is none, or its driver does not say."""
    memory: int
    """Bytes of main memory."""
    bf16_on_cpu: bool | None
    """Whether the processor computes bfloat16 and need not emulate it; None where that is not known."""
    bf16_on_gpu: bool | None
    """Whether all GPUs do; None where there is none, or that is not known."""
    free_disk: int
    """Bytes free where the result goes."""
    can_write: bool
    """Whether a directory can be made where the result goes."""
    taken_ports: frozenset[int]
    """Those of the ports asked for that another process listens on."""
    packages: frozenset[str]
    """Those of `PACKAGES` that are installed."""

    @classmethod
    def at_hand(cls, output: Path, port: int | None) -> Machine:
        """This machine.

        Args:
            output: where the result goes.
            port: one that a launch would listen on.
        """
        gpus = gpu_count()
        gpu_memory, bf16_on_gpu = _of_gpus() if gpus else (None, None)
        place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
        return cls(
            gpus=gpus,
            gpu_memory=gpu_memory,
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            bf16_on_cpu=_cpu_has_bf16(),
            bf16_on_gpu=bf16_on_gpu,
            free_disk=shutil.disk_usage(place).free,
            can_write=place.is_dir() and os.access(place, os.W_OK | os.X_OK),
            taken_ports=frozenset([port] if port and _is_taken(port) else []),
            packages=frozenset(name for name in PACKAGES if importlib.util.find_spec(name) is not None),
        )


def _of_gpus() -> tuple[int | None, bool | None]:
    """Bytes of the smallest GPU, and whether all compute bfloat16 (from compute capability 8.0, Ampere, on)."""
    query = ["nvidia-smi", "--query-gpu=memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
        found = [(int(memory) << 20, float(capability)) for memory, capability in (line.split(",") for line in lines)]
        return min(memory for memory, _ in found), all(capability >= 8.0 for _, capability in found)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, None


def _cpu_has_bf16() -> bool | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    return bool({"avx512_bf16", "amx_tile"} & set(text.split()))


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
