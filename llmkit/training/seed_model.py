"""The weights that training starts from, on disk, so that every launch layout starts from the same ones.

Layouts that divide a model differ in when they draw random numbers, and some cannot start from a config at all. So one process
makes the model, whole and in float32, and all load what it wrote.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace

_NAME = "seed-model"


def seed_model(workspace: Workspace, make: Callable[[], Any]) -> Path:
    """Where the model lies that training starts from.

    The main process writes it, and the others wait for the file: there is no process group yet.

    Args:
        make: gives the model; called by the main process, unless an earlier attempt has written it.
    """
    place = workspace.directory / _NAME
    if workspace.is_main and not place.exists():
        aside = workspace.directory / f".{_NAME}"
        shutil.rmtree(aside, ignore_errors=True)
        make().save_pretrained(aside)
        os.replace(aside, place)
    while not place.exists():  # if the main process fails, the launcher ends this one
        time.sleep(0.05)
    return place
