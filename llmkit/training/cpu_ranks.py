"""FSDP, tensor and context parallelism on CPU ranks, so that a layout can be tried and tested where there is no GPU.

torch computes all of them over gloo. accelerate and transformers allow them for accelerators only; what is in the way is set
aside here, in one place, and only on a machine without one. Nothing of this runs where there is a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import torch

_NEEDS_A_DEVICE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG")


def needs_a_device() -> bool:
    """Whether the layout of this launch is one that accelerate gives to accelerators only."""
    return "LOCAL_RANK" in os.environ and any(os.environ.get(name, "").lower() == "true" for name in _NEEDS_A_DEVICE)


def stand_in_for_devices() -> None:
    """Let the CPU ranks of this launch pass for devices; before accelerate looks at them."""
    from accelerate import state
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy
    from transformers import training_args

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)

    def gloo(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = gloo
    # Pinned memory serves copies to a device, and there is none.
    CPUOffloadPolicy.__init__.__defaults__ = (False,)  # type: ignore[misc]
    training_args.is_torch_bf16_gpu_available = torch.cpu._is_avx512_bf16_supported
