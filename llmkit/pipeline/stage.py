"""A stage: a function from settings and earlier artefacts to one new artefact, run so that it is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import importlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from llmkit.config import FieldSpec, Resolved, StageConfig, accepted, fields_of, flat
from llmkit.errors import ArtefactError, DataError, LLMKitError
from llmkit.pipeline import lock
from llmkit.pipeline.artefact import (
    MANIFEST,
    SETTINGS,
    Artefact,
    FileHashes,
    FileRecord,
    InputRecord,
    Manifest,
    enclosing,
    environment,
    sha256_of,
    sync,
    write_synced,
)
from llmkit.resources import display

_ATTEMPT = ".attempt.json"
_FAILURE = ".failure.json"

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENAMETOOLONG}
_FULL_BELOW = 1 << 20  # bytes free; torch reports a full disk as a RuntimeError that does not say so


@dataclass(frozen=True)
class Stage:
    """What is known of a stage without importing anything heavy."""

    name: str
    summary: str
    """One line for `llmkit --help`."""
    config: str
    """`module:Class` of its settings."""
    function: str
    """`module:function`; called with the settings and a `Workspace`, returns the metrics for the manifest."""
    next: str
    """The command that a person would type next; `{output}` is filled in."""
    version: int = 1
    """Raised when the same settings and inputs give other bytes than before."""
    launched: bool = False
    """Whether it is started by `accelerate launch`, and resumes what an earlier attempt left."""
    scratch: tuple[str, ...] = ()
    """Patterns of what only a resume needs; removed once the manifest is written, and no part of the result."""
    default_recipe: str | None = None
    """The shipped settings that serve when none are given."""
    prepare: str | None = None
    """`module:function` that makes missing inputs first; takes settings and the runs directory, returns settings."""

    @cached_property
    def config_class(self) -> type[StageConfig]:
        return _load(self.config)

    def ports(self) -> dict[str, FieldSpec]:
        """The settings that take an earlier stage's artefact."""
        return {name: spec for name, spec in fields_of(self.config_class).items() if spec.role == "artefact"}


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass
class Workspace:
    """Where a stage writes. On several ranks all see the same directory, and only the main process commits it."""

    directory: Path
    is_main: bool = True
    say: Callable[[str], None] = print


@dataclass
class Identity:
    """What a result depends on: equal fingerprints mean the same settings, inputs and stage version."""

    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, InputRecord] = field(default_factory=dict)
    raw_inputs: list[FileRecord] = field(default_factory=list)


def identify(stage: Stage, config: StageConfig, hashes: FileHashes, planned: dict[str, str] | None = None) -> Identity:
    """Compute the fingerprint of a stage's result without making it.

    Args:
        planned: fingerprints of inputs that are still to be made, by port (a pipeline knows them beforehand).

    Raises:
        DataError: an input file is missing.
    """
    settings: dict[str, Any] = {}
    inputs: dict[str, InputRecord] = {}
    raw: list[FileRecord] = []
    port_marks: dict[str, Any] = {}
    values = flat(config)
    specs = fields_of(stage.config_class)
    further = stage.config_class.further_settings()
    for name, value in values.items():
        spec = specs.get(name) or further[name]
        if planned and name in planned:
            port_marks[name] = planned[name]
        elif spec.role == "setting":
            if spec.identity:
                settings[name] = value
        elif value is None:
            continue
        elif spec.role == "files":
            records = [hashes.record(path) for path in expand(value, name)]
            raw += records
            port_marks[name] = [record.sha256 for record in records]
        else:
            artefact = enclosing(Path(value)) if Path(value).exists() else None
            if artefact is not None:
                manifest = artefact.manifest
                inputs[name] = InputRecord(manifest.stage, manifest.fingerprint, manifest.digest, str(artefact.directory))
                inside = Path(value).resolve().relative_to(artefact.directory)  # a checkpoint within it, say
                port_marks[name] = manifest.fingerprint if inside == Path() else f"{manifest.fingerprint}/{inside}"
            elif Path(value).is_dir():  # a model from elsewhere
                records = [hashes.record(path) for path in expand([value], name)]
                raw += records
                port_marks[name] = [record.sha256 for record in records]
            elif spec.made_by or _is_path(value):
                raise DataError(f"{name}: there is no directory {value!r} (looked in {Path.cwd()})")
            else:  # the name of a hub repository
                settings[name] = value
    for name, mark in config.raw_inputs().items():
        raw.append(FileRecord(name, Path(name).stat().st_size if Path(name).is_file() else 0, mark))
        port_marks[f"raw:{name}"] = mark
    content = {"stage": stage.name, "version": stage.version, "settings": settings, "inputs": port_marks}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return Identity(hashlib.sha256(text.encode()).hexdigest(), settings, inputs, raw)


def _is_path(name: str) -> bool:
    """Whether a name that is not there was meant as a path: a hub repository is `name` or `owner/name`, nothing longer."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


def expand(patterns: str | list[str], name: str) -> list[Path]:
    """The files that paths, directories and glob patterns name, sorted within each, none twice.

    Raises:
        DataError: one of them names no file.
    """
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file() and not item.name.startswith("."))
        elif path.exists():
            files = [path]
        else:
            anchor = Path(path.anchor or ".")
            relative = str(path.relative_to(path.anchor)) if path.anchor else str(path)
            files = sorted(item for item in anchor.glob(relative) if item.is_file())
        if not files:
            kind = "an empty directory" if path.is_dir() else "no file, directory or pattern with files"
            raise DataError(f"{name}: {pattern!r} is {kind} (looked in {Path.cwd()})")
        found.update(dict.fromkeys(files))
    return list(found)


def is_fresh(existing: Artefact | None, identity: Identity) -> bool:
    """Whether an artefact is what the settings and inputs would give, whole and made from inputs as they are now."""
    if existing is None or existing.manifest.fingerprint != identity.fingerprint or existing.damaged():
        return False
    recorded = existing.manifest.inputs
    return all(port not in recorded or recorded[port].digest == record.digest for port, record in identity.inputs.items())


# --------------------------------------------------------------------------------------------------------------------
# Running one


def rank() -> tuple[int, int]:
    """This process's rank and the number of ranks, as the launcher set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def run_stage(
    stage: Stage,
    resolved: Resolved[Any],
    output: Path,
    *,
    force: bool = False,
    layout: str | None = None,
    wait: bool = False,
) -> Artefact:
    """Run a stage, unless its result is there already, and commit its artefact.

    Every rank of a launch calls this; the main process prepares the directory and commits it.

    Args:
        output: the artefact's directory; what is written on the way lies in `<output>.partial`.
        force: run although the result is there, and replace a result of other settings.
        layout: the accelerate config it runs under, for the record.
        wait: wait for another process that is making the same result, instead of giving up.

    Raises:
        ArtefactError: the output holds someone else's files, or a result of other settings.
        LockedError: another process is writing the same result.
    """
    this_rank, ranks = rank()
    is_main = this_rank == 0
    say = print if is_main else _silent
    hashes = FileHashes(output.parent / ".hashes.json")
    identity = identify(stage, resolved.config, hashes)
    existing = _check_output(stage, output, identity, force)
    if is_main:
        hashes.save()
    if existing is not None and not force and is_fresh(existing, identity):
        say(f"{stage.name}: already there, nothing to do: {display(output)}")
        return existing
    partial = output.with_name(output.name + ".partial")
    if not is_main:
        _wait_for_main(partial, identity)
        _load(stage.function)(resolved.config, Workspace(partial, is_main=False, say=say))
        _barrier()
        return Artefact(output, Manifest.from_json((output / MANIFEST).read_text(encoding="utf-8")))
    with writing(partial, stage.name), lock.hold(partial, wait=wait, say=say):
        existing = Artefact.peek(output)  # another process may have finished it while we waited
        if existing is not None and not force and is_fresh(existing, identity):
            shutil.rmtree(partial, ignore_errors=True)
            return existing
        if ranks == 1 and not force and _is_finished(partial, identity):
            say(f"{stage.name}: an earlier run had finished all but the last step: {display(output)}")
            publish(partial, output, stage.scratch)
            return Artefact(output, Manifest.from_json((output / MANIFEST).read_text(encoding="utf-8")))
        _prepare(partial, identity, keep=stage.launched)
        return _run_main(stage, resolved, output, partial, identity, layout, distributed=ranks > 1)


@contextlib.contextmanager
def writing(directory: Path, who: str) -> Iterator[None]:
    """Turn what a disk refuses (full, read-only, not permitted) while `directory` is written into a user's error.

    Raises:
        ArtefactError: names the directory and the cause.
    """
    try:
        yield
    except Exception as failure:
        cause = _cannot_write(failure, directory)
        if cause is None:
            raise
        raise ArtefactError(
            f"{who}: cannot write {display(directory)}: {cause}. "
            f"Nothing that was finished is lost; mend it and run the same command again"
        ) from failure


def _is_finished(partial: Path, identity: Identity) -> bool:
    """Whether an earlier attempt was killed after its manifest was written and before its directory was renamed."""
    try:
        artefact = Artefact.peek(partial)
    except ArtefactError:
        return False
    return artefact is not None and is_fresh(artefact, identity) and not artefact.damaged(hashes=True)


def _cannot_write(failure: Exception, directory: Path) -> str | None:
    """Why the disk refused, if that is what happened. Some libraries say it only in the words of their own errors."""
    if isinstance(failure, OSError) and failure.errno in _DISK_ERRORS:
        return os.strerror(failure.errno)
    in_the_way = next((place for place in (directory, *directory.parents) if place.is_file()), None)
    if isinstance(failure, OSError) and failure.errno in (errno.EEXIST, errno.ENOTDIR) and in_the_way:
        return f"{in_the_way} is a file"
    if not isinstance(failure, LLMKitError) and "No space left on device" in str(failure):
        return os.strerror(errno.ENOSPC)
    place = next(parent for parent in (directory, *directory.parents) if parent.exists())
    wordless = isinstance(failure, RuntimeError) or (isinstance(failure, OSError) and failure.errno is None)
    if wordless and shutil.disk_usage(place).free < _FULL_BELOW:
        return os.strerror(errno.ENOSPC)
    return None


def _run_main(
    stage: Stage,
    resolved: Resolved[Any],
    output: Path,
    partial: Path,
    identity: Identity,
    layout: str | None,
    distributed: bool,
) -> Artefact:
    started = time.monotonic()
    try:
        metrics = _load(stage.function)(resolved.config, Workspace(partial))
    except LLMKitError as failure:
        # A launcher between us and the runner hides the message and the exit code; this file carries them.
        with contextlib.suppress(OSError):
            write_synced(partial / _FAILURE, json.dumps({"message": str(failure)}))
        raise
    header = f"Settings of `llmkit {stage.name}`, resolved; `--config` with this file gives the same result"
    write_synced(partial / SETTINGS, resolved.to_yaml(header))
    artefact = _commit(stage, resolved, output, partial, identity, metrics, layout, time.monotonic() - started)
    if distributed:
        _barrier()
    return artefact


def _silent(_: str) -> None:
    pass


def _check_output(stage: Stage, output: Path, identity: Identity, force: bool) -> Artefact | None:
    if output.is_file():
        raise ArtefactError(f"--output_dir {output} is a file; name a directory")
    existing = Artefact.peek(output)
    if existing is None:
        if output.is_dir() and any(output.iterdir()):
            raise ArtefactError(f"--output_dir {output} holds files that llmkit did not write; name another directory")
        return None
    if not force and existing.manifest.fingerprint != identity.fingerprint:
        differing = "its stage" if existing.manifest.stage != stage.name else _differences(stage, existing, identity)
        raise ArtefactError(
            f"--output_dir {output} holds a result that differs in {differing}; "
            f"name another directory, or replace it with --force"
        )
    return existing


def _differences(stage: Stage, existing: Artefact, identity: Identity) -> str:
    old, new = existing.manifest.config, identity.settings
    names = [f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in changed_settings(stage, old, new)]
    return ", ".join(names) or "its inputs"


def changed_settings(stage: Stage, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The settings that make two results of a stage differ; inputs and what cannot change the bytes are left out."""
    specs = accepted(stage.config_class)
    matter = [key for key, spec in specs.items() if spec.role == "setting" and spec.identity]
    return [key for key in matter if old.get(key) != new.get(key)]


def _prepare(partial: Path, identity: Identity, keep: bool) -> None:
    """Empty the partial directory, unless an earlier attempt at the same result is to be resumed."""
    attempt = partial / _ATTEMPT
    try:
        same = json.loads(attempt.read_text(encoding="utf-8"))["fingerprint"] == identity.fingerprint
    except (OSError, ValueError, KeyError):
        same = False
    for name in (_FAILURE, MANIFEST):
        (partial / name).unlink(missing_ok=True)
    for name in (_ATTEMPT, _FAILURE, MANIFEST, SETTINGS):  # half a file of ours, which a kill left
        for torn in partial.glob(f".{name}.*"):
            torn.unlink()
    if not (same and keep):
        for item in partial.iterdir():
            if item.name != lock.HOLDER:
                _remove(item)
    # Written last: other ranks start when they see it.
    write_synced(attempt, json.dumps({"fingerprint": identity.fingerprint, "pid": os.getpid()}))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _wait_for_main(partial: Path, identity: Identity, timeout: float = 600.0) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            attempt = json.loads((partial / _ATTEMPT).read_text(encoding="utf-8"))
            if attempt["fingerprint"] == identity.fingerprint and lock.is_held(partial):
                return
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.05)
    raise ArtefactError(f"the main process did not prepare {partial} within {timeout:.0f} s")


def _barrier() -> None:
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def _commit(
    stage: Stage,
    resolved: Resolved[Any],
    output: Path,
    partial: Path,
    identity: Identity,
    metrics: dict[str, Any],
    layout: str | None,
    seconds: float,
) -> Artefact:
    # What a resume needs goes last: until the manifest is there, a kill must find it.
    files = []
    for path in sorted(item for item in partial.rglob("*") if item.is_file()):
        if _is_scratch(path, partial, stage.scratch):
            continue
        sync(path)
        files.append(FileRecord(path.relative_to(partial).as_posix(), path.stat().st_size, sha256_of(path)))
    inputs = {
        port: InputRecord(
            record.stage, record.fingerprint, record.digest, os.path.relpath(Path(record.path).resolve(), output.resolve())
        )
        for port, record in identity.inputs.items()
    }
    launch = ["--accelerate_config", layout] if layout else []
    manifest = Manifest(
        stage=stage.name,
        stage_version=stage.version,
        fingerprint=identity.fingerprint,
        config=resolved.as_dict(),
        origins=resolved.origins,
        inputs=inputs,
        raw_inputs=identity.raw_inputs,
        files=files,
        metrics=metrics,
        environment=environment(),
        command=shlex.join(["llmkit", stage.name, "--config", str(output / SETTINGS), *launch]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )
    write_synced(partial / MANIFEST, manifest.to_json())
    for directory in {path.parent for path in partial.rglob("*")}:
        sync(directory)
    publish(partial, output, stage.scratch)
    return Artefact(output, manifest)


def _is_scratch(path: Path, partial: Path, scratch: tuple[str, ...]) -> bool:
    top = path.relative_to(partial).parts[0]
    return top in (_ATTEMPT, _FAILURE, lock.HOLDER) or any(fnmatch.fnmatch(top, pattern) for pattern in scratch)


def publish(partial: Path, output: Path, scratch: tuple[str, ...] = ()) -> None:
    """Rename a finished partial directory to its place; what stood there goes only afterwards."""
    for path in [item for item in partial.iterdir() if _is_scratch(item, partial, scratch)]:
        _remove(path)
    if output.exists() and not any(output.iterdir()):
        output.rmdir()
    aside = output.with_name(f"{output.name}.replaced")
    if output.exists():
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier run that was killed
        os.replace(output, aside)
    os.replace(partial, output)
    sync(output.parent)
    shutil.rmtree(aside, ignore_errors=True)


def failure_message(output: Path) -> str | None:
    """What a launched stage said before it ended with a user's error, if it did."""
    path = output.with_name(output.name + ".partial") / _FAILURE
    try:
        return json.loads(path.read_text(encoding="utf-8"))["message"]
    except (OSError, ValueError, KeyError):
        return None


def forget_failure(output: Path) -> None:
    """Remove what an earlier attempt said, so that it is not taken for the words of the next one."""
    (output.with_name(output.name + ".partial") / _FAILURE).unlink(missing_ok=True)


def finished_line(stage: Stage, artefact: Artefact) -> str:
    """The last words of a stage: where its result is, and what to run next."""
    shown = display(artefact.directory)
    return f"{stage.name}: done in {artefact.manifest.seconds:.1f} s: {shown}\nnext: {stage.next.format(output=shown)}"
