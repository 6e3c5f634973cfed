"""Which node of how many this is, and where they meet: from options, from what a scheduler sets, or from the layout."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.errors import ConfigError

PORT = 29500
WAIT = "LLMKIT_NODE_WAIT"
RESTARTS = "LLMKIT_NODE_RESTARTS"

# Where each is looked for, in this order: what torchrun itself reads, what many schedulers and scripts set, Slurm (in a step
# that `srun` started), SkyPilot, an indexed Job of Kubernetes.
_VARIABLES = {
    "num_machines": ("PET_NNODES", "NNODES", "SLURM_STEP_NUM_NODES", "SKYPILOT_NUM_NODES"),
    "machine_rank": ("PET_NODE_RANK", "NODE_RANK", "SLURM_NODEID", "SKYPILOT_NODE_RANK", "JOB_COMPLETION_INDEX"),
    "main_process_ip": ("PET_MASTER_ADDR", "MASTER_ADDR", "SLURM_STEP_NODELIST", "SKYPILOT_NODE_IPS"),
    "main_process_port": ("PET_MASTER_PORT", "MASTER_PORT"),
}


@dataclass(frozen=True)
class Nodes:
    """The nodes of a launch, as this one sees them."""

    count: int
    rank: int
    address: str
    """Of the node of rank 0, where all nodes meet."""
    port: int
    wait: int
    """Seconds that a node waits for the others, at the start and after one was lost."""
    restarts: int
    """How often the processes are started again after one of them was killed or crashed."""

    @property
    def place(self) -> str:
        return f"{self.address}:{self.port}"


def node_count(settings: Mapping[str, Any]) -> int:
    """How many nodes a launch has. Without any word of a scheduler, as many as the layout says.

    Args:
        settings: the accelerate config.

    Raises:
        ConfigError: a variable that should hold a number does not.
    """
    problems: list[str] = []
    count = _number("num_machines", {}, settings, problems, 1)
    if problems:
        raise ConfigError(problems, "environment")
    return count


def read_nodes(settings: Mapping[str, Any], options: Mapping[str, Any]) -> Nodes:
    """The nodes of a launch.

    Args:
        settings: the accelerate config.
        options: of `accelerate launch`, where they were given; they win over variables, and those over the config.

    Raises:
        ConfigError: a number is none, or with several nodes the rank or the address is missing.
    """
    problems: list[str] = []
    count = _number("num_machines", options, settings, problems, 1)
    rank = _number("machine_rank", options, {} if count > 1 else settings, problems, -1 if count > 1 else 0)
    port = _number("main_process_port", options, settings, problems, 0) or PORT
    address = str(_found("main_process_ip", options, settings) or "")
    wait, restarts = (_whole(os.environ.get(name), name, problems, usual) for name, usual in ((WAIT, 600), (RESTARTS, 3)))
    if count > 1 and not problems:
        if not 0 <= rank < count:
            which = "not said" if rank == -1 else str(rank)
            problems.append(
                f"the rank of this node among {count} is {which}: set NODE_RANK, or --machine_rank, from 0 to {count - 1}"
            )
        if not address:
            problems.append(
                f"the address of the first of the {count} nodes is not said: set MASTER_ADDR, or --main_process_ip, on all "
                f"nodes to the same"
            )
    if problems:
        raise ConfigError(problems, "launch over several nodes")
    return Nodes(count, rank, address, port, wait, restarts)


def _number(name: str, options: Mapping[str, Any], settings: Mapping[str, Any], problems: list[str], usual: int) -> int:
    return _whole(_found(name, options, settings), name, problems, usual)


def _whole(value: Any, name: str, problems: list[str], usual: int) -> int:
    try:
        return usual if value in (None, "") else int(value)
    except ValueError:
        problems.append(f"{name} is {value!r}, which is no whole number")
        return usual


def _found(name: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    if options.get(name) is not None:
        return options[name]
    variable = next((variable for variable in _VARIABLES[name] if os.environ.get(variable)), None)
    if variable is None:
        return settings.get(name)
    value = os.environ[variable]
    return _first_host(value) if name == "main_process_ip" else value


def _first_host(listed: str) -> str:
    """The first of the hosts that Slurm (`node[03-05,9]`) or SkyPilot (one a line) lists."""
    first = listed.split()[0]
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^]]*])?([^\[,]*)", first)
    assert found is not None  # each part may be empty
    return "".join(part or "" for part in found.groups())
