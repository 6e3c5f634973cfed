"""A stage: a function from settings and earlier artefacts to one new artefact, run so that it is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import importlib
import json
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from llmkit.config import FieldSpec, Resolved, StageConfig, fields_of, flat
from llmkit.errors import ArtefactError, DataError, LLMKitError
from llmkit.pipeline import lock, ranks
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
from llmkit.pipeline.ranks import dimension, launch_id, rank
from llmkit.resources import display

_ATTEMPT = ".attempt.json"
_FAILURE = ".failure.json"

_PAUSE = 0.05  # seconds between two looks at what the main process does

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
    resumes: bool = False
    """Whether it resumes what an earlier attempt left though it is not launched."""
    checkpoints: str | None = None
    """Pattern of what an unfinished run has reached. A run that has reached something is not thrown away unasked."""
    scratch: tuple[str, ...] = ()
    """Patterns of what only a resume needs; removed once the manifest is written, and no part of the result."""
    default_recipe: str | None = None
    """The shipped settings that serve when none are given."""
    prepare: str | None = None
    """`module:function` that makes missing inputs first; takes settings and the runs directory, returns settings."""
    show: str | None = None
    """`module:function` that shows the result instead, where no `--output_dir` is given; takes settings, returns the exit
    code."""
    check: str | None = None
    """`module:function` that holds a result against the settings, also one that was there already; takes settings and the
    artefact, says what it finds, returns the exit code."""
    page: str | None = None
    """`module:function` that writes pages about a result into its directory before it is committed; takes the directory, the
    settings and the metrics."""
    plan: str | None = None
    """`module:function` that says what the stage would do, for `--dry_run`; takes settings, returns text, writes nothing."""

    @property
    def goes_on(self) -> bool:
        """Whether it resumes what an earlier attempt left."""
        return self.launched or self.resumes

    @cached_property
    def config_class(self) -> type[StageConfig]:
        return load_target(self.config)

    def show_result(self, config: StageConfig) -> int:
        """Call `show`."""
        assert self.show is not None
        return load_target(self.show)(config)

    def check_result(self, config: StageConfig, artefact: Artefact) -> int:
        """Call `check`, if there is one."""
        return load_target(self.check)(config, artefact) if self.check else 0

    def ports(self) -> dict[str, FieldSpec]:
        """The settings that take an earlier stage's artefact."""
        return {name: spec for name, spec in fields_of(self.config_class).items() if spec.role == "artefact"}


def load_target(target: str) -> Any:
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


def identify(
    stage: Stage,
    config: StageConfig,
    hashes: FileHashes,
    planned: dict[str, str] | None = None,
    processes: int = 1,
) -> Identity:
    """Compute the fingerprint of a stage's result without making it.

    Args:
        planned: fingerprints of inputs that are still to be made, by port (a pipeline knows them beforehand).
        processes: how many have samples of their own; counts only for a stage that is launched.

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
            port_marks[name] = _content(named_files(value, name, spec.kinds), hashes, raw)
        else:
            for port, place in _places(name, value).items():
                artefact = enclosing(Path(place)) if Path(place).exists() else None
                if artefact is not None:
                    manifest = artefact.manifest
                    inputs[port] = InputRecord(manifest.stage, manifest.fingerprint, manifest.digest, str(artefact.directory))
                    inside = Path(place).resolve().relative_to(artefact.directory)  # a checkpoint within it, say
                    port_marks[port] = manifest.fingerprint if inside == Path() else f"{manifest.fingerprint}/{inside}"
                elif Path(place).is_dir():  # a model from elsewhere
                    port_marks[port] = _content(named_files(place, name), hashes, raw)
                elif spec.made_by or is_path(place):
                    raise DataError(f"{name}: there is no directory {place!r} (looked in {Path.cwd()})")
                else:  # the name of a hub repository
                    settings[port] = place
            if isinstance(value, dict) and value:
                settings[name] = list(value.values())
    for name, (patterns, kinds) in config.file_inputs().items():
        port_marks[name] = _content(named_files(patterns, name, kinds), hashes, raw)
    for name, mark in config.raw_inputs().items():
        raw.append(FileRecord(name, Path(name).stat().st_size if Path(name).is_file() else 0, mark))
        port_marks[f"raw:{name}"] = mark
    settings.update(config.result_settings(processes if stage.launched else 1))
    content = {"stage": stage.name, "version": stage.version, "settings": settings, "inputs": port_marks}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return Identity(hashlib.sha256(text.encode()).hexdigest(), settings, inputs, raw)


def _places(name: str, value: Any) -> dict[str, str]:
    """The artefacts that a setting names, by port: one, or each of a list or of a mapping's keys, numbered in their order."""
    if isinstance(value, (dict, list)):
        return {f"{name}.{number}": place for number, place in enumerate(value)}
    return {name: value}


def _content(files: dict[Path, str], hashes: FileHashes, raw: list[FileRecord]) -> list[list[str]]:
    """What counts of input files: what each is called and holds, and not where all of them lie. Recorded in `raw` too."""
    records = [hashes.record(path) for path in files]
    raw += records
    return [[name, record.sha256] for name, record in zip(files.values(), records, strict=True)]


def is_path(name: str) -> bool:
    """Whether a name that is not there was meant as a path: a hub repository is `name` or `owner/name`, nothing longer."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


def expand(patterns: str | list[str], name: str) -> list[Path]:
    """The files that paths, directories and glob patterns name, sorted within each, none twice; hidden ones only by path.

    Raises:
        DataError: one of them names no file.
    """
    return list(named_files(patterns, name))


def named_files(patterns: str | list[str], name: str, kinds: tuple[str, ...] = ()) -> dict[Path, str]:
    """The files of `expand`, each with what it is called in its directory, or below the part of its pattern without `*`.

    Args:
        kinds: the endings that count in a directory or behind a pattern; empty for all.

    Raises:
        DataError: as `expand`.
    """
    found: dict[Path, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            root, below = path, path.rglob("*")
        elif path.exists():
            found.setdefault(path, path.name)
            continue
        else:
            root = Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), path.parts))
            anchor = Path(path.anchor or ".")
            below = anchor.glob(str(path.relative_to(path.anchor)) if path.anchor else str(path))
        names = {item: item.relative_to(root) for item in sorted(below) if item.is_file()}
        files = {item: inside.as_posix() for item, inside in names.items() if not _is_hidden(inside)}
        if not files:
            kind = "an empty directory" if path.is_dir() else "no file, directory or pattern with files"
            raise DataError(f"{name}: {pattern!r} is {kind} (looked in {Path.cwd()})")
        files = {item: inside for item, inside in files.items() if not kinds or inside.lower().endswith(kinds)}
        if not files:
            raise DataError(f"{name}: none of the files of {pattern!r} can be read; known are {', '.join(kinds)}")
        for item, inside in files.items():
            found.setdefault(item, inside)
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_fresh(existing: Artefact | None, identity: Identity) -> bool:
    """Whether an artefact is what the settings and inputs would give, whole and made from inputs as they are now."""
    if existing is None or existing.manifest.fingerprint != identity.fingerprint or existing.damaged():
        return False
    recorded = existing.manifest.inputs
    return all(port not in recorded or recorded[port].digest == record.digest for port, record in identity.inputs.items())


# --------------------------------------------------------------------------------------------------------------------
# Running one


def data_ranks() -> int:
    """How many ranks have samples of their own: those that divide a model, and not the data, have the same ones."""
    together = math.prod(map(dimension, ("tensor", "context", "sequence", "pipeline")))
    return max(1, rank()[1] // together)


@dataclass
class Attempt:
    """What a `.partial` directory is to become. It is the first that llmkit writes there, and the last that it removes."""

    stage: str
    fingerprint: str
    """Empty while the directory is emptied: what is in it then is not to be gone on with."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """The digest of each input."""
    forced: bool
    """Whether it replaces a result although that is there."""
    command: str
    """Goes on with it."""
    launch: str | None = None
    """The launch whose ranks are at work on it; None until they may begin."""

    @classmethod
    def peek(cls, partial: Path) -> Attempt | None:
        """The attempt in a directory, or None where there is none."""
        try:
            return cls(**json.loads((partial / _ATTEMPT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, partial: Path) -> None:
        write_synced(partial / _ATTEMPT, json.dumps(asdict(self), default=str))

    def is_at(self, identity: Identity) -> bool:
        """Whether it would make this very result."""
        inputs = {port: record.digest for port, record in identity.inputs.items()}
        return self.fingerprint == identity.fingerprint and self.inputs == inputs


def partial_of(output: Path) -> Path:
    """Where a result is written until it is complete."""
    return output.with_name(output.name + ".partial")


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
        force: run although the result is there, replace a result of other settings, and discard what is unfinished.
        layout: the accelerate config it runs under, for the record.
        wait: wait for another process that is making the same result, instead of giving up.

    Raises:
        ArtefactError: the output holds someone else's files, or a result or an unfinished run of other settings.
        LockedError: another process is writing the same result.
    """
    this_rank = rank()[0]
    hashes = FileHashes(output.parent / ".hashes.json")
    try:
        identity = identify(stage, resolved.config, hashes, processes=data_ranks())
    except LLMKitError as failure:
        if stage.launched:
            ranks.agree(output, problem=str(failure))
        raise
    if stage.launched:
        ranks.agree(output, settings=identity.settings, fingerprint=identity.fingerprint)
    force = force and not ranks.started_again()  # what this launch has begun is gone on with
    if this_rank != 0:
        return _run_beside_main(stage, resolved, output, identity, force)
    existing = _ready_made(stage, output, identity, force)
    hashes.save()
    if existing is not None:
        print(f"{stage.name}: already there, nothing to do: {display(output)}")
        return existing
    partial = partial_of(output)
    _check_partial(partial)
    with writing(partial, stage.name), lock.hold(partial, wait=wait):
        existing = _ready_made(stage, output, identity, force)  # another process may have made a result while we waited
        if existing is not None:
            return existing
        if not force and _is_finished(partial, identity):
            print(f"{stage.name}: an earlier run had finished all but the last step: {display(output)}")
            publish(partial, output, stage.scratch)
            return Artefact(output, Manifest.from_json((output / MANIFEST).read_text(encoding="utf-8")))
        _prepare(stage, resolved, output, identity, force, layout)
        return _run_main(stage, resolved, output, partial, identity, layout)


def _ready_made(stage: Stage, output: Path, identity: Identity, force: bool) -> Artefact | None:
    """The result, where it is there and nothing asks for another; see `_check_output` for what it raises."""
    replaces = force or was_forced(stage, output, identity)
    existing = _check_output(stage, output, identity, replaces)
    return existing if existing is not None and not replaces and is_fresh(existing, identity) else None


def was_forced(stage: Stage, output: Path, identity: Identity) -> bool:
    """Whether a run with --force was stopped that can be gone on with; without --force, which would begin it again."""
    attempt = Attempt.peek(partial_of(output))
    return stage.goes_on and attempt is not None and attempt.forced and attempt.is_at(identity)


def _run_beside_main(stage: Stage, resolved: Resolved[Any], output: Path, identity: Identity, force: bool) -> Artefact:
    """Run a stage on a rank other than the first: when its main process has prepared the directory, and until it is committed.

    Nothing here has a limit of time, since the main process may wait for another run, or hash a large model for long. Where
    it fails, the launcher ends this rank, or on another node `ranks.pause` does.
    """
    partial = partial_of(output)
    while (existing := _ready_made(stage, output, identity, force)) is None:
        attempt = Attempt.peek(partial)
        if attempt is not None and attempt.launch == launch_id():
            break
        ranks.pause(_PAUSE)
    else:
        return existing
    if not attempt.is_at(identity):
        differing = _differences(attempt.settings, identity.settings)
        raise ArtefactError(f"rank {rank()[0]} would make another result than the main process: {differing}")
    directory = os.stat(partial)
    load_target(stage.function)(resolved.config, Workspace(partial, is_main=False, say=_silent))
    while not (output.exists() and os.path.samestat(directory, os.stat(output))):
        ranks.pause(_PAUSE)
    return Artefact(output, Manifest.from_json((output / MANIFEST).read_text(encoding="utf-8")))


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
) -> Artefact:
    started = time.monotonic()
    try:
        metrics = load_target(stage.function)(resolved.config, Workspace(partial))
        if stage.page:
            load_target(stage.page)(partial, resolved.as_dict(), metrics)
    except LLMKitError as failure:
        # A launcher between us and the runner hides the message; this file carries it.
        with contextlib.suppress(OSError):
            write_synced(partial / _FAILURE, json.dumps({"message": str(failure)}))
        raise
    return _commit(stage, resolved, output, partial, identity, metrics, layout, time.monotonic() - started)


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
        same_stage = existing.manifest.stage == stage.name
        differing = _differences(existing.manifest.settings, identity.settings) if same_stage else "its stage"
        raise ArtefactError(
            f"--output_dir {output} holds a result that differs in {differing}; "
            f"name another directory, or replace it with --force"
        )
    return existing


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = [f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in changed_settings(old, new)]
    return ", ".join(names) or "its inputs"


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The names of the settings in which two results differ."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _check_partial(partial: Path) -> None:
    """Refuse a directory that only looks like one of ours: at any instant, ours has one of the three files, or none at all."""
    try:
        names = set(os.listdir(partial))
    except OSError:  # it is not there; or it cannot be read, and who writes into it says so
        return
    if names and not names & {_ATTEMPT, lock.HOLDER, MANIFEST}:
        raise ArtefactError(f"{partial} holds files that llmkit did not write; move them, or name another --output_dir")


def _prepare(stage: Stage, resolved: Resolved[Any], output: Path, identity: Identity, force: bool, layout: str | None) -> None:
    """Empty the partial directory, unless an earlier attempt at the same result is to be resumed.

    Raises:
        ArtefactError: it holds what an attempt at another result has reached.
    """
    partial = partial_of(output)
    earlier = Attempt.peek(partial)
    is_same = earlier is not None and earlier.is_at(identity)
    if earlier is not None and earlier.fingerprint and not is_same and not force and _has_reached_something(stage, partial):
        raise ArtefactError(
            f"{partial} holds an unfinished run that differs in {_differences(earlier.settings, identity.settings)}; "
            f"go on with those settings, name another directory, or discard it with --force"
        )
    keep = is_same and stage.goes_on and not force
    words = ["llmkit", stage.name, "--config", str(partial / SETTINGS), "--output_dir", str(output)]
    attempt = Attempt(
        stage=stage.name,
        fingerprint=identity.fingerprint,
        settings=identity.settings,
        inputs={port: record.digest for port, record in identity.inputs.items()},
        forced=force or was_forced(stage, output, identity),
        command=shlex.join([*words, *_layout_words(layout)]),
    )
    (attempt if keep else replace(attempt, fingerprint="")).write(partial)
    for name in (_FAILURE, MANIFEST):
        (partial / name).unlink(missing_ok=True)
    for name in (_ATTEMPT, _FAILURE, MANIFEST, SETTINGS):  # half a file of ours, which a kill left
        for torn in partial.glob(f".{name}.*"):
            torn.unlink()
    if not keep:
        for item in partial.iterdir():
            if item.name not in (lock.HOLDER, _ATTEMPT):
                _remove(item)
    header = f"Settings of `llmkit {stage.name}`, resolved; `--config` with this file gives the same result"
    write_synced(partial / SETTINGS, resolved.to_yaml(header))
    replace(attempt, launch=launch_id()).write(partial)  # last: the other ranks begin when they see it


def _has_reached_something(stage: Stage, partial: Path) -> bool:
    return stage.checkpoints is not None and any([*partial.glob(stage.checkpoints), *partial.glob(MANIFEST)])


def _layout_words(layout: str | None) -> list[str]:
    return ["--accelerate_config", layout] if layout else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
        command=shlex.join(["llmkit", stage.name, "--config", str(output / SETTINGS), *_layout_words(layout)]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        settings=identity.settings,
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
    for path in sorted(partial.iterdir(), key=lambda item: item.name == _ATTEMPT):
        if _is_scratch(path, partial, scratch):
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
    path = partial_of(output) / _FAILURE
    try:
        return json.loads(path.read_text(encoding="utf-8"))["message"]
    except (OSError, ValueError, KeyError):
        return None


def forget_failure(output: Path) -> None:
    """Remove what an earlier attempt said, so that it is not taken for the words of the next one."""
    (partial_of(output) / _FAILURE).unlink(missing_ok=True)


def finished_line(stage: Stage, artefact: Artefact) -> str:
    """The last words of a stage: where its result is, and what to run next."""
    shown = display(artefact.directory)
    return f"{stage.name}: done in {artefact.manifest.seconds:.1f} s: {shown}\nnext: {stage.next.format(output=shown)}"
