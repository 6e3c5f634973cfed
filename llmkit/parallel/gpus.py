"""What accelerators can do, as their vendors state it. Rates are per device; nothing here is measured."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from llmkit.errors import ConfigError


@dataclass(frozen=True)
class GPU:
    """A device, and the links that it usually has."""

    name: str
    bf16: float
    """Operations a second in bfloat16 with sums in float32, dense."""
    fp8: float | None
    """The same in 8 bits; None where it has none."""
    fp32: float
    """The same in float32 as transformers computes it: without TensorFloat-32."""
    bandwidth: float
    """Bytes a second of its memory."""
    memory: int
    """Gigabytes, of 2^30 bytes as memory chips are made; see `usable`."""
    link: float
    """Bytes a second in one direction to the devices of the same machine."""
    network: float
    """Bytes a second in one direction to other machines: that of the vendor's reference system."""
    source: str


_T, _G = 1e12, 1e9

GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("h100", 989.4 * _T, 1978.9 * _T, 67 * _T, 3350 * _G, 80, 450 * _G, 50 * _G,
            "NVIDIA H100 data sheet (SXM5); network: DGX H100 data sheet, 400 Gb/s a GPU"),
        GPU("h200", 989.4 * _T, 1978.9 * _T, 67 * _T, 4800 * _G, 141, 450 * _G, 50 * _G,
            "NVIDIA H200 data sheet (SXM5); network: DGX H200 data sheet, 400 Gb/s a GPU"),
        GPU("b200", 2250 * _T, 4500 * _T, 75 * _T, 7700 * _G, 180, 900 * _G, 50 * _G,
            "NVIDIA HGX B200 data sheet, an eighth of the board; network: DGX B200 data sheet, 400 Gb/s a GPU"),
        GPU("a100-80", 312 * _T, None, 19.5 * _T, 2039 * _G, 80, 300 * _G, 25 * _G,
            "NVIDIA A100 data sheet (SXM4 80GB); network: DGX A100 data sheet, 200 Gb/s a GPU"),
        GPU("a100-40", 312 * _T, None, 19.5 * _T, 1555 * _G, 40, 300 * _G, 25 * _G,
            "NVIDIA A100 data sheet (SXM4 40GB); network: DGX A100 data sheet, 200 Gb/s a GPU"),
        GPU("l40s", 362.05 * _T, 733 * _T, 91.6 * _T, 864 * _G, 48, 32 * _G, 25 * _G,
            "NVIDIA L40S data sheet; link: PCIe 4.0 x16; network: assumed, 200 Gb/s a GPU"),
        GPU("rtx-4090", 165.2 * _T, 330.3 * _T, 82.6 * _T, 1008 * _G, 24, 32 * _G, 3.125 * _G,
            "NVIDIA Ada architecture white paper; link: PCIe 4.0 x16; network: assumed, 25 Gb/s a GPU"),
        GPU("mi300x", 1307.4 * _T, 2614.9 * _T, 163.4 * _T, 5300 * _G, 192, 448 * _G, 50 * _G,
            "AMD Instinct MI300X data sheet; network: assumed, 400 Gb/s a GPU"),
    )
}  # fmt: skip


def gpu_of(name: str) -> GPU:
    """A GPU by its name.

    Raises:
        ConfigError: it is not in the table; no other is taken for it.
    """
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    if key in GPUS:
        return GPUS[key]
    near = [known for known in GPUS if known.startswith(key)] or difflib.get_close_matches(key, GPUS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(GPUS)}"
    raise ConfigError([f"--gpu: {name!r} is not in the table of GPUs; {hint}"], "command")


def memory_bytes(text: str) -> int:
    """`80GB`, `79.1GiB` or `24000MB` as bytes. A GB is 2^30 bytes: so vendors count the memory of a card.

    Raises:
        ConfigError: it is no amount of memory.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])i?B?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError([f"--gpu_memory: {text!r} is no amount of memory; write 80GB"], "command")
    return round(float(match[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[match[2].upper()])
