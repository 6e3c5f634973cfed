"""Learning rates of their own for some parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def multiply_learning_rates(optimizer: Any, model: torch.nn.Module, multipliers: Mapping[str, float]) -> None:
    """Split the groups of a new optimizer, in place, by what the learning rate of their parameters is multiplied with.

    To be called before a scheduler reads the learning rates. Groups keep their order, and those of the unchanged learning
    rate, which is the one in the log, come first.

    Args:
        multipliers: by the names of the model's parameters; all of them.
    """
    factors = {id(parameter): multipliers[name] for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors[id(parameter)], []).append(parameter)
        for factor, parameters in by_factor.items():
            groups.append((factor, {**group, "params": parameters, "lr": group["lr"] * factor}))
    optimizer.param_groups[:] = [group for _, group in sorted(groups, key=lambda item: item[0] != 1.0)]
