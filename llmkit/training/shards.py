"""Gradients and training state that are divided among processes as DTensors (FSDP2, tensor parallel, both)."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch.distributed.tensor import DTensor


def clip_shards(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip gradients of which some or all are divided, as `torch.nn.utils.clip_grad_norm_` clips whole ones.

    That function refuses gradients of several device meshes. So one norm is taken for each mesh, which is that of the whole
    gradients on it, and from those the norm of all.

    Returns:
        The norm of all before clipping, equal on every process.
    """
    of_mesh = defaultdict(list)
    for parameter in parameters:
        assert parameter.grad is not None
        of_mesh[parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None].append(parameter)
    norms = []
    for together in of_mesh.values():
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in together if parameter.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = torch.linalg.vector_norm(torch.stack(norms))
    for together in of_mesh.values():
        torch.nn.utils.clip_grads_with_norm_(together, max_norm, total)
    return total
