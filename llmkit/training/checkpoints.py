"""Checkpoints: complete or absent, proved to be readable, and found again.

A checkpoint is a directory `checkpoint-<step>` with a loadable model repository and, beside it, what a resume needs. It is
written aside (`.writing`), read back, synced and renamed. Its record, `checkpoint.json`, is the last file written: it lists
every other file with size and sha256, so that a torn or corrupt checkpoint is told from a whole one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import FileRecord, sha256_of, sync, write_synced

RECORD = "checkpoint.json"
WRITING = ".writing"
PERMANENT = "checkpoints"
SHARDS = "shards"
"""Weights and optimizer state of a layout that divides them as DTensors, for a resume."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class CheckpointRecord:
    """What `checkpoint.json` says."""

    step: int
    data: str
    """Fingerprint of the training data: a run must not go on with other data."""
    data_chain: str
    """Digest of the data learned so far, in its order; see `order.Digesting`."""
    samples_per_step: int
    processes: int
    kept_as: str = ""
    """How the state of weights and optimizer is kept: whole, shards, zero1, zero2, zero3 (by DeepSpeed) or stages; empty where
    an older llmkit did not say it."""
    files: list[FileRecord] = field(default_factory=list)

    @classmethod
    def load(cls, checkpoint: Path) -> CheckpointRecord:
        """Read the record.

        Raises:
            ArtefactError: there is none, or it is torn.
        """
        try:
            values = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
            return cls(**{**values, "files": [FileRecord(**file) for file in values["files"]]})
        except (OSError, ValueError, KeyError, TypeError) as failure:
            raise ArtefactError(f"{checkpoint} is no whole checkpoint: {RECORD}: {failure}") from None


def commit(written: Path, place: Path, record: CheckpointRecord, check: Callable[[Path], None]) -> None:
    """Give a checkpoint that was written aside its place, once it is on disk and proved to be readable.

    Args:
        check: raises if what was written is not what it should be.
    """
    check(written)
    for path in sorted(item for item in written.rglob("*") if item.is_file()):
        sync(path)
        record.files.append(FileRecord(path.relative_to(written).as_posix(), path.stat().st_size, sha256_of(path)))
    write_synced(written / RECORD, json.dumps(asdict(record), indent=1) + "\n")
    for path in [*(item for item in written.rglob("*") if item.is_dir()), written]:
        sync(path)
    place.parent.mkdir(exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(written, place)
    sync(place.parent)


def check_weights(checkpoint: Path, model: Any) -> None:
    """Read weights and config back, and compare the weights with those in memory, tensor by tensor.

    Args:
        model: None where no process has whole weights to compare with.

    Raises:
        ArtefactError: they differ, or cannot be read.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    AutoConfig.from_pretrained(checkpoint)
    live = model.state_dict() if model is not None else {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                read = tensors.get_tensor(name)
                if name in live and not torch.equal(read, live[name].detach().cpu().contiguous()):
                    raise ArtefactError(f"{file}: {name} is not on disk as it is in memory; is the disk sound?")


def problem_with(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None where every file is as it was written."""
    try:
        record = CheckpointRecord.load(checkpoint)
    except ArtefactError as failure:
        return str(failure)
    for file in record.files:
        path = checkpoint / file.path
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != file.size:
            return f"{path} has {path.stat().st_size:,} bytes, and was written with {file.size:,}"
        if sha256_of(path) != file.sha256:
            return f"{path} is not as it was written: its sha256 differs"
    return None


def all_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, whole or not."""
    found = [path for place in (directory, directory / PERMANENT) for path in place.glob("checkpoint-*") if step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps made before a checkpoint was written, by its name; -1 where that is no checkpoint's."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def to_resume(directory: Path, resume: str, data: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that a run goes on from, by the setting `resume`; None to start.

    Args:
        data: fingerprint of the training data.

    Raises:
        ArtefactError: the checkpoint asked for is not whole, or was made with other data (both fingerprints are named).
    """
    if resume == "never":
        return None
    if resume != "auto":
        asked = Path(resume)
        wrong = problem_with(asked)
        if wrong:
            raise ArtefactError(f"resume: {wrong}")
        _check_data(asked, data)
        return asked
    for checkpoint in all_checkpoints(directory):
        wrong = problem_with(checkpoint)
        if wrong is None:
            _check_data(checkpoint, data)
            say(f"going on from {checkpoint.name}: step {step_of(checkpoint):,}, every file as it was written")
            return checkpoint
        say(f"{checkpoint.name} is left out: {wrong}")
    return None


def _check_data(checkpoint: Path, data: str) -> None:
    record = CheckpointRecord.load(checkpoint)
    if record.data != data:
        raise ArtefactError(
            f"{checkpoint} was made with other training data: its fingerprint is {record.data[:16]}, that of the data now is "
            f"{data[:16]}; bring the old data back, or start anew with --resume never"
        )


def discard_after(directory: Path, step: int) -> None:
    """Set aside the checkpoints beyond the step that a run goes on from: they belong to a run that is not gone on with."""
    for checkpoint in all_checkpoints(directory):
        if step_of(checkpoint) > step:
            left = checkpoint.with_name(f"{checkpoint.name}.left")
            shutil.rmtree(left, ignore_errors=True)
            os.replace(checkpoint, left)


def rotate(directory: Path, keep: int, best: str | None) -> None:
    """Remove the oldest checkpoints, but never the newest, the best, or a permanent one."""
    found = [path for path in all_checkpoints(directory) if path.parent == directory]
    for checkpoint in found[keep:]:
        if best is None or checkpoint.name != Path(best).name:
            shutil.rmtree(checkpoint, ignore_errors=True)
