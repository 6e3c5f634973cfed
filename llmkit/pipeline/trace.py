"""Trace a file or a number back to the raw bytes it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import MANIFEST, Artefact, FileRecord, enclosing, sha256_of
from llmkit.resources import display


def walk(artefact: Artefact, port: str = "", depth: int = 0, seen: set[str] | None = None) -> Iterator[tuple[int, str, Any]]:
    """An artefact and everything it was made from, nearest first, each once.

    Yields:
        Depth from the start, the port it goes in at, and the `Artefact` (or, where it is gone or was changed since, the
        `InputRecord` that names it).
    """
    seen = set() if seen is None else seen
    if artefact.manifest.fingerprint in seen:
        return
    seen.add(artefact.manifest.fingerprint)
    yield depth, port, artefact
    for name, record in artefact.manifest.inputs.items():
        earlier = artefact.input(name)
        if earlier is None:
            yield depth + 1, name, record
        else:
            yield from walk(earlier, name, depth + 1, seen)


def trace(target: Path, number: str | None = None, say: Callable[[str], None] = print) -> bool:
    """Print where a file, or a number of an artefact's metrics, came from.

    Returns:
        Whether all of it is there and as it was recorded.

    Raises:
        ArtefactError: the file belongs to no artefact, or the artefact has no such number.
    """
    if not target.exists():
        raise ArtefactError(f"{target} does not exist")
    artefact = enclosing(target)
    if artefact is None:
        raise ArtefactError(f"{target} lies in no result of llmkit: no {MANIFEST} in any directory above it")
    sound = _trace_target(target, artefact, say)
    if number is not None:
        say(f"{number} = {find_number(artefact, number)}  (recorded in {display(artefact.directory / MANIFEST)})")
    raw: dict[str, FileRecord] = {}
    for depth, port, node in walk(artefact):
        indent = "  " * depth
        if not isinstance(node, Artefact):
            say(f"{indent}{port}: {node.stage} {node.fingerprint[:12]} is gone or was made again since")
            sound = False
            continue
        manifest = node.manifest
        label = f"{port}: " if port else ""
        say(f"{indent}{label}{manifest.stage} {manifest.fingerprint[:12]}  {display(node.directory)}")
        say(f"{indent}  made {manifest.created} in {manifest.seconds:.1f} s; again with: {manifest.command}")
        for wrong in node.damaged(hashes=True):
            say(f"{indent}  DAMAGED: {wrong}")
            sound = False
        raw.update({record.path: record for record in manifest.raw_inputs})
    say("raw inputs:" if raw else "raw inputs: none")
    for record in raw.values():
        state = _state_of(record)
        sound = sound and state not in ("changed", "no longer there")
        say(f"  {record.path}  sha256 {record.sha256[:16]}  {state}")
    return sound


def _trace_target(target: Path, artefact: Artefact, say: Callable[[str], None]) -> bool:
    if target.is_dir() or target.name == MANIFEST:
        return True
    inside = target.resolve().relative_to(artefact.directory).as_posix()
    record = next((item for item in artefact.manifest.files if item.path == inside), None)
    if record is None:
        say(f"{target}: not a file that the stage wrote; its directory is")
        return False
    same = sha256_of(target) == record.sha256
    say(f"{target}: sha256 {record.sha256[:16]} {'as recorded' if same else 'is NOT that of the file: it was changed since'}")
    return same


def _state_of(record: FileRecord) -> str:
    path = Path(record.path)
    if not path.is_file():
        return "recorded by version" if record.size == 0 else "no longer there"
    return "as recorded" if sha256_of(path) == record.sha256 else "changed"


def find_number(artefact: Artefact, name: str) -> Any:
    """A value of the manifest's metrics by its dotted name (`test.accuracy`), or by its last part where that is unique."""
    values = dict(_leaves(artefact.manifest.metrics))
    if name in values:
        return values[name]
    matches = [key for key in values if key.split(".")[-1] == name]
    if len(matches) == 1:
        return values[matches[0]]
    listing = ", ".join(matches or values) or "none"
    raise ArtefactError(f"{artefact.manifest.stage} has no single number {name!r}; it has: {listing}")


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
