"""Gradients and training state that are divided among processes as DTensors (FSDP2, tensor parallel, both)."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from llmkit.pipeline.ranks import dimension

if TYPE_CHECKING:
    from transformers.distributed import DistributedConfig

Tensors = dict[str, torch.Tensor]
States = dict[str, dict[str, Any]]


def distributed_config() -> dict[str, DistributedConfig]:
    """What `from_pretrained` is told so that it divides a model as this launch wants it; nothing where it is not to."""
    tensor, shard, replicate = map(dimension, ("tensor", "shard", "replicate"))
    if tensor == 1 or os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG") != "true":
        return {}
    from transformers.distributed import DistributedConfig

    _sum_each_gradient_once()
    return {"distributed_config": DistributedConfig(tp_size=tensor, fsdp_size=shard, dp_replicate_size=replicate)}


def _sum_each_gradient_once() -> None:
    """Sum the gradients of weights that every tensor rank has for its own heads, such as Qwen3's norms of queries and keys.

    transformers 5.23 sums `grad` after each backward pass, and so the gradients of earlier micro-batches again. Here each
    gradient is summed before it is added to them; `llmkit verify` showed the difference.
    """
    from transformers.distributed.tensor_parallel import ReplicatedWithGradAllReduce

    def install_forward(_: Any, module: torch.nn.Module, mesh: Any) -> torch.nn.Module:
        forward = module.forward
        hooked: dict[str, torch.nn.Parameter] = {}

        def summed(gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            torch.distributed.all_reduce(gradient, group=mesh.get_group())
            return gradient

        def hooked_forward(*arguments: Any, **options: Any) -> Any:
            if torch.is_grad_enabled():  # before the first pass the weights are not loaded yet
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.requires_grad and hooked.get(name) is not parameter:
                        parameter.register_hook(summed)
                        hooked[name] = parameter
            return forward(*arguments, **options)

        module.forward = hooked_forward
        return module

    ReplicatedWithGradAllReduce.install_forward = install_forward


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


def save_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Write weights and optimizer state, each process what it holds (torch.distributed.checkpoint).

    Tensors are kept by name and as parts of whole ones, so that a layout that divides them otherwise can read them.
    """
    weights, state = get_state_dict(model, optimizer)
    with _quiet():
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=directory)


def load_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Read what `save_state` wrote into a model and an optimizer, whole or divided in whatever way."""
    weights, state = get_state_dict(model, optimizer)
    with _quiet():
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=directory)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


def load_weights(model: torch.nn.Module, directory: Path) -> None:
    """Read the weights alone of what `save_state` wrote."""
    weights = get_model_state_dict(model)
    with _quiet():
        dcp.load({"model": weights}, checkpoint_id=directory)
    set_model_state_dict(model, weights)


def whole_state(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, States]:
    """Weights and optimizer state of a checkpoint whose layout has everything in every process, by the names of parameters.

    torch keeps the state of such an optimizer by the positions of its parameters; ours has the same parameters at the same
    positions, and knows their names.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    states: States = {}
    for written, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for position, parameter in zip(written["params"], ours["params"], strict=True):
            states[names[id(parameter)]] = saved["state"][position]
    return whole_weights(checkpoint), states


def whole_weights(checkpoint: Path) -> Tensors:
    """The weights of a model repository by their names."""
    weights: Tensors = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def load_named(model: torch.nn.Module, optimizer: torch.optim.Optimizer, weights: Tensors, states: States) -> None:
    """Put weights and optimizer state that are known by name into a model and its optimizer, whole or divided in whatever way.

    Args:
        weights, states: whole tensors, in any shape with the right number of elements. Weights that are tied to others may
            be missing.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def shaped(name: str, value: Any) -> Any:
        return value.reshape(shapes[name]) if torch.is_tensor(value) and value.dim() else value

    whole = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, {name: shaped(name, value) for name, value in weights.items()}, options=whole)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups]
    of_parameters = {
        name: {key: shaped(name, value) for key, value in state.items()} for name, state in states.items() if name in shapes
    }
    state = {"state": of_parameters, "param_groups": groups}
    set_optimizer_state_dict(model, optimizer, state, options=whole)  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of a process that stands alone, which a checkpoint may be read by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
