"""FSDP, tensor and context parallelism on CPU ranks, so that a layout can be tried and tested where there is no GPU.

torch computes all of them over gloo. accelerate and transformers allow them for accelerators only; what is in the way is set
aside here, in one place, and only on a machine without one. Nothing of this runs where there is a GPU.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, Shard

from llmkit.pipeline.ranks import dimension

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

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
    CPUOffloadPolicy.__init__.__defaults__ = (False,)
    training_args.is_torch_bf16_gpu_available = torch.cpu._is_avx512_bf16_supported
    if dimension("context") > 1:
        _let_attention_go_round()


def _let_attention_go_round() -> None:
    """Give torch's ring attention the attention kernel of CPUs: it knows those of CUDA only, and all have the same form."""
    # Private to torch, and without types that could be met.
    ring_attention: Any = import_module("torch.distributed.tensor.experimental._context_parallel._attention")
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

    def backward_by_name(**given: Any) -> Any:
        names = ("grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal")
        return backward(*(given[name] for name in names), scale=given.get("scale"))

    @torch.no_grad()
    def attend(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[DTensor, ...]:
        query, key, value, *rest = given
        mesh = query.device_mesh
        dropout = rest[0] if rest else named.get("dropout_p", 0.0)
        causal = rest[1] if len(rest) > 1 else named.get("is_causal", False)
        output, normaliser, *_ = ring_attention._templated_ring_attention(
            mesh.get_group(),
            2,
            forward,
            *(part.to_local() for part in (query, key, value)),
            is_causal=causal,
            dropout_p=dropout,
            scale=named.get("scale"),
        )
        return _along_length(output, mesh), _along_length(normaliser, mesh)

    @torch.no_grad()
    def attend_backward(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[DTensor, ...]:
        mesh = given[1].device_mesh
        gradient, query, key, value, output, normaliser = (_local(part) for part in given[:6])
        gradients = ring_attention._templated_ring_attention_backward(
            mesh.get_group(),
            2,
            backward_by_name,
            grad_out=gradient,
            grad_out_name="grad_out",
            query=query,
            key=key,
            value=value,
            out=output,
            logsumexp=normaliser,
            dropout_p=given[6],
            is_causal=given[7],
            scale=named.get("scale"),
        )
        return tuple(_along_length(part, mesh) for part in gradients[:3])

    ring_attention.custom_ops.update({forward: attend, backward: attend_backward})


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _along_length(part: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    """A part of a tensor [batch, heads, length, ...] as one that is divided along its length."""
    return DTensor.from_local(part, mesh, (Shard(2),), run_check=False)
