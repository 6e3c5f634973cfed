"""Optimizers: which one owns which parameter, where weight decay goes, and Muon.

Muon (Jordan et al. 2024) moves a matrix by its momentum with all singular values brought near 1. It is made for the hidden
matrices of a network; embeddings, the output head, norms and biases stay with AdamW (Loshchilov & Hutter 2019). An update that
is scaled by 0.2 sqrt(max(rows, columns)) has the size of AdamW's, so that one learning rate and one weight decay serve both
(Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmkit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

MUON = "muon"

# The state matrix of Mamba is the logarithm of rates of decay: pulled to 0, all rates would become 1 (Gu & Dao 2023).
_RATES = "A_log"


class Muon(torch.optim.Optimizer):
    """Muon for matrices and AdamW for other parameters, with the groups and the state of one optimizer.

    The first group is Muon's. A parameter without a gradient is left as it is, weight decay included.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ):
        """Set up.

        Args:
            matrices: parameters with two dimensions.
            others: groups for AdamW, each with its own `weight_decay`.
        """
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """The two work on our groups and our state, whoever changes or loads them."""
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, as any optimizer does."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss

    def name_of(self, group: dict[str, Any]) -> str:
        """Which of the two a group belongs to."""
        return "Muon" if group is self.param_groups[0] else "AdamW"


def undecayed_names(model: nn.Module) -> set[str]:
    """Parameters that are no matrices: vectors, numbers, and matrices of rates; to be asked before the model is wrapped."""
    shapes = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in model.named_parameters()}
    return {name for name, shape in shapes.items() if len(shape) < 2 or name.rpartition(".")[2] == _RATES}


def hidden_matrices(model: Any) -> set[str]:
    """The names of the weights that Muon is made for: two-dimensional, in the body of the model, and no table of embeddings.

    The body is what transformers calls the base model. Heads lie outside it, and a head that is tied is the table itself.
    Experts that are kept in one tensor of three dimensions are left to AdamW.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    body = {id(parameter) for parameter in model.base_model.parameters()} - tables
    return {
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in body and parameter.ndim == 2 and name.endswith(".weight")
    }


def muon(model: Any, decayed: Collection[str], arguments: TrainingArguments) -> Muon:
    """Muon for the hidden matrices of a model and AdamW for the rest.

    Args:
        decayed: names of the parameters that have weight decay.

    Raises:
        ConfigError: the model has no hidden matrices that are trained.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    hidden = hidden_matrices(model) & trained.keys()
    if not hidden:
        raise ConfigError([f"optim: {model.config.model_type} has no hidden matrices that muon could train; take another"])
    rest: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in trained.items():
        if name not in hidden:
            rest[name in decayed].append(parameter)
    return Muon(
        [trained[name] for name in trained if name in hidden],
        [
            {"params": parameters, "weight_decay": arguments.weight_decay if has_decay else 0.0}
            for has_decay, parameters in rest.items()
            if parameters
        ],
        lr=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )


@dataclass(frozen=True)
class Owner:
    """Who updates a parameter."""

    optimizer: str
    decayed: bool


def owners(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Owner]:
    """The owner of each parameter that is trained, by name, as the groups of the optimizer say it."""
    found = {}
    for group in optimizer.param_groups:
        name = optimizer.name_of(group) if isinstance(optimizer, Muon) else type(optimizer).__name__
        owner = Owner(name, bool(group.get("weight_decay")))
        found.update({id(parameter): owner for parameter in group["params"]})
    return {name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found}


def shares(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, int]]:
    """What each optimizer owns with and without weight decay: the number of tensors, and of parameters in them."""
    sizes = {name: getattr(parameter, "ds_numel", parameter.numel()) for name, parameter in model.named_parameters()}
    counted: dict[str, dict[str, int]] = {}
    for name, owner in owners(model, optimizer).items():
        count = counted.setdefault(
            f"{owner.optimizer} {'with' if owner.decayed else 'without'} weight decay", {"tensors": 0, "parameters": 0}
        )
        count["tensors"] += 1
        count["parameters"] += sizes[name]
    return counted
