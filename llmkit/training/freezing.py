"""Weights that stay as they are: those of embeddings, of the lowest layers, or of modules by name."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from llmkit.errors import ConfigError

_LAYERS = re.compile(r"layers:(\d+)")


def freeze(model: nn.Module, patterns: list[str]) -> str:
    """Take weights out of training.

    Args:
        patterns: see the setting `freeze`.

    Returns:
        What is frozen, in a sentence.

    Raises:
        ConfigError: a pattern names nothing, there are fewer layers, or nothing would be left to train.
    """
    problems = []
    for pattern in patterns:
        modules = _matching(model, pattern)
        if isinstance(modules, str):
            problems.append(f"freeze: {modules}")
        else:
            for module in modules:
                module.requires_grad_(False)
    if problems:
        raise ConfigError(problems)
    trained = trained_parameters(model)
    if not trained:
        raise ConfigError([f"freeze: {', '.join(patterns)} leaves no weights to train"])
    return f"frozen: {', '.join(patterns)}; {told(model)}"


def _size(parameter: Any) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 a parameter is empty in this process


def trained_parameters(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(_size(parameter) for parameter in model.parameters() if parameter.requires_grad)


def told(model: nn.Module) -> str:
    """How many parameters are trained, in words."""
    trained, total = trained_parameters(model), sum(map(_size, model.parameters()))
    return f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})"


def _matching(model: nn.Module, pattern: str) -> list[nn.Module] | str:
    """The modules that a pattern names, or why there are none."""
    if pattern == "embeddings":
        return [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if match := _LAYERS.fullmatch(pattern):
        count, stacks = int(match[1]), _stacks(model)
        lowest = min((len(stack) for stack in stacks), default=0)
        if not 1 <= count <= lowest:
            return f"{pattern}: the model has {lowest} layers"
        return [layer for stack in stacks for layer in stack[:count]]
    found = [module for name, module in model.named_modules() if name and fnmatchcase(name, pattern)]
    if not any(True for module in found for _ in module.parameters()):
        names = [
            name for name, module in model.named_modules() if name and any(True for _ in module.parameters(recurse=False))
        ]
        return f"no module of the model with weights is called {pattern!r}; there are {', '.join(names[:4])}, ..."
    return found


def _stacks(model: nn.Module) -> list[nn.ModuleList]:
    """The lists of layers, of an encoder and a decoder each one; lists within a layer are left out."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [stack for name, stack in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return [stack for stack in outer if len({type(layer) for layer in stack}) == 1]
