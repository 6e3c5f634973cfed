"""The state of an optimizer by the names of the parameters, so that it can be loaded where they are divided otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmkit.errors import ArtefactError

_FILE = "optimizer-{}.pt"


def save(optimizer: Any, model: torch.nn.Module, directory: Path, part: int) -> None:
    """Write the state of the parameters that this process has, and the settings of their groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {}
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            state[names[id(parameter)]] = {"state": dict(optimizer.state.get(parameter, {})), "group": settings}
    torch.save(state, directory / _FILE.format(part))


def read(checkpoint: Path) -> dict[str, Any]:
    """All parts together, by the names of the parameters; empty where the checkpoint has none."""
    state: dict[str, Any] = {}
    for path in sorted(checkpoint.glob(_FILE.format("*"))):
        state.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    return state


def load(optimizer: Any, model: torch.nn.Module, state: dict[str, Any], other_names: Mapping[str, str] | None = None) -> None:
    """Take the state of the parameters that this process has.

    Args:
        other_names: what tied parameters are called elsewhere.

    Raises:
        ArtefactError: a parameter is not in it.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    states: dict[int, dict[str, Any]] = {}
    groups = []
    for group in optimizer.param_groups:
        positions = []
        for parameter in group["params"]:
            name = names[id(parameter)]
            found = state.get(name, state.get((other_names or {}).get(name, name)))
            if found is None:
                raise ArtefactError(f"the checkpoint has no optimizer state of {name}; was it made of another model?")
            positions.append(len(states))
            states[len(states)] = found["state"]
        groups.append({**found["group"], "params": positions})
    optimizer.load_state_dict({"state": {key: value for key, value in states.items() if value}, "param_groups": groups})
