"""The state of an optimizer by the names of the parameters, in one file for each part of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmkit.errors import ArtefactError

_FILE = "optimizer-{}.pt"


def save(optimizer: Any, model: torch.nn.Module, directory: Path, part: int) -> None:
    """Write the state of the parameters that this process has."""
    state = {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}
    torch.save(state, directory / _FILE.format(part))


def read(checkpoint: Path) -> dict[str, Any]:
    """All parts together, by the names of the parameters; empty where the checkpoint has none."""
    state: dict[str, Any] = {}
    for path in sorted(checkpoint.glob(_FILE.format("*"))):
        state.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    return state


def load(optimizer: Any, model: torch.nn.Module, state: dict[str, Any], other_names: Mapping[str, str]) -> None:
    """Take the state of the parameters that this process has; settings of the optimizer stay as they are.

    Args:
        other_names: what tied parameters are called elsewhere.

    Raises:
        ArtefactError: a parameter is not in it.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = optimizer.state_dict()
    for group, positions in zip(optimizer.param_groups, own["param_groups"], strict=True):
        for parameter, position in zip(group["params"], positions["params"], strict=True):
            name = names[id(parameter)]
            found = state.get(name, state.get(other_names.get(name, name)))
            if found is None:
                raise ArtefactError(f"the checkpoint has no optimizer state of {name}; was it made of another model?")
            if found:
                own["state"][position] = found
    optimizer.load_state_dict(own)
