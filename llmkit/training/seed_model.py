"""The weights that training starts from, on disk, so that every launch layout starts from the same ones.

Layouts that divide a model differ in when they draw random numbers, and some cannot start from a config at all. So one process
makes the model, whole and in float32, and all load what it wrote.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.pipeline.ranks import pause

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace

_MODEL = "seed-model"


def seed_model(workspace: Workspace, make: Callable[[], Any]) -> Path:
    """Where the model lies that training starts from.

    Args:
        make: gives the model; called by the main process, unless an earlier attempt has written it.
    """
    return made_once(workspace, _MODEL, lambda place: make().save_pretrained(place))


def made_once(workspace: Workspace, name: str, write: Callable[[Path], Any]) -> Path:
    """Where something lies that the main process makes and all load.

    The main process writes it, and the others wait for the directory: there is no process group yet.

    Args:
        write: writes it into a directory; called by the main process, unless an earlier attempt has.
    """
    place = workspace.directory / name
    if workspace.is_main and not place.exists():
        aside = workspace.directory / f".{name}"
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        os.replace(aside, place)
    while not place.exists():  # if the main process fails, the launcher ends this one
        pause(0.05)
    return place
