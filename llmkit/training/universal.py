"""Checkpoints of ZeRO under another layout than the one that wrote them, by DeepSpeed's universal form of them.

DeepSpeed keeps optimizer state as flat pieces, as many as there were processes, and refuses to go on with another number. Its
universal form (Lian et al. 2024) has each parameter by name and whole; DeepSpeed reads it for another number of processes, and
we read it into any optimizer of torch.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

_FOLDER = "global_step_universal"


def make_universal(checkpoint: Path, place: Path) -> None:
    """Write the universal form of a checkpoint, as a checkpoint that DeepSpeed's own reader takes.

    Args:
        place: a directory to make; what is not DeepSpeed's is linked there from the checkpoint.
    """
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (written,) = checkpoint.glob("global_step*")
    for item in checkpoint.iterdir():
        if item != written and item.name != "latest":
            (place / item.name).symlink_to(item.resolve())
    asked = Namespace(
        input_folder=str(written),
        output_folder=str(place / _FOLDER),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # progress bars
        ds_to_universal.main(asked)
    (place / "latest_universal").write_text(_FOLDER, encoding="utf-8")


def named_state(place: Path) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Weights and optimizer state of a universal checkpoint, by the names of parameters; flat where ZeRO-3 wrote them.

    The count of steps is not in all of them, and left to the caller.
    """
    weights: dict[str, torch.Tensor] = {}
    states: dict[str, dict[str, Any]] = {}
    for folder in (place / _FOLDER / "zero").iterdir():
        if folder.is_dir():
            read = {file.stem: torch.load(file, map_location="cpu", weights_only=True) for file in folder.glob("*.pt")}
            tensors = {name: value["param"] if isinstance(value, dict) else value for name, value in read.items()}
            weights[folder.name] = tensors.pop("fp32")
            states[folder.name] = {name: value for name, value in tensors.items() if name != "step"}
    return weights, states


def beside(checkpoint: Path, run: Path) -> Path:
    """Where the universal form of a checkpoint lies while a run starts from it."""
    return run / f".universal-{checkpoint.name}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
