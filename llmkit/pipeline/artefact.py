"""Artefacts: directories with a manifest, complete or absent.

A stage writes into `<name>.partial`; when everything is written, each file is synced, the manifest is written last, and the
directory is renamed. What has no manifest does not exist, so a kill at any instant leaves nothing that claims to be complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from llmkit import __version__
from llmkit.errors import ArtefactError, DataError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SETTINGS = "llmkit.yaml"
LEDGER = "metrics.jsonl"
SAMPLES = "samples.jsonl"
DUMPS = "dumps"

_JUST_NOW = 2_000_000_000  # nanoseconds; the coarsest clock of a common file system has steps of 2 s

# Files and directories that tell how a result came about (transformers puts TensorBoard's into `runs`). They hold times and
# origins, so two identical results differ in them.
_RECORDS = {SETTINGS, LEDGER, SAMPLES, DUMPS, "runs"}

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "deepspeed", "numpy", "pyarrow", "scikit-learn")


@dataclass
class FileRecord:
    """A file of an artefact, or a raw input."""

    path: str
    size: int
    sha256: str


@dataclass
class InputRecord:
    """An earlier artefact that this one was made from."""

    stage: str
    fingerprint: str
    digest: str
    path: str
    """Relative to the artefact that uses it, so that a whole `runs/` can be moved."""


@dataclass
class Manifest:
    """What an artefact is, and everything it was made from."""

    stage: str
    stage_version: int
    fingerprint: str
    config: dict[str, Any]
    origins: dict[str, str]
    inputs: dict[str, InputRecord]
    raw_inputs: list[FileRecord]
    files: list[FileRecord]
    metrics: dict[str, Any]
    environment: dict[str, Any]
    command: str
    created: str
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    """What of the config, and of the number of processes, decides the result; the fingerprint covers it."""
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """One hash of all content: equal digests mean equal bytes (records of how it was made left out)."""
        content = (record for record in self.files if not _RECORDS.intersection(record.path.split("/")))
        parts = sorted(f"{record.path}\0{record.sha256}" for record in content)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        values = json.loads(text)
        values["inputs"] = {port: InputRecord(**record) for port, record in values["inputs"].items()}
        for key in ("raw_inputs", "files"):
            values[key] = [FileRecord(**record) for record in values[key]]
        return cls(**values)


@dataclass
class Artefact:
    """A complete directory and its manifest."""

    directory: Path
    manifest: Manifest

    @classmethod
    def peek(cls, directory: Path) -> Artefact | None:
        """The artefact in a directory, or None where there is none."""
        path = directory / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as failure:
            raise ArtefactError(f"{path} cannot be read: {failure.strerror}") from None
        except UnicodeDecodeError:
            text = ""
        try:
            return cls(directory, Manifest.from_json(text))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ArtefactError(
                f"{path} is not a manifest of llmkit (schema {SCHEMA_VERSION}); was it edited? "
                f"If nothing in {directory} is needed, delete it"
            ) from None

    @classmethod
    def open(cls, directory: str | Path, stage: str) -> Artefact:
        """The artefact in a directory, which must be a result of `stage` with all its files.

        Raises:
            ArtefactError: nothing complete is there, it is another stage's, or files are missing.
        """
        directory = Path(directory)
        artefact = cls.peek(directory)
        if artefact is None:
            raise ArtefactError(
                f"{directory} holds no finished result of llmkit (no {MANIFEST}); make it with `llmkit {stage}`"
            )
        if artefact.manifest.stage != stage:
            raise ArtefactError(f"{directory} is a result of {artefact.manifest.stage!r}; a result of {stage!r} is needed")
        damaged = artefact.damaged()
        if damaged:
            raise ArtefactError(f"{directory} is damaged: {damaged[0]}; make it again with --force")
        return artefact

    def damaged(self, hashes: bool = False) -> list[str]:
        """What is wrong with the files: missing or of another size, and with `hashes` also of other content."""
        wrong = []
        for record in self.manifest.files:
            path = self.directory / record.path
            if not path.is_file():
                wrong.append(f"{record.path} is missing")
            elif path.stat().st_size != record.size:
                wrong.append(f"{record.path} has {path.stat().st_size:,} bytes, the manifest says {record.size:,}")
            elif hashes and sha256_of(path) != record.sha256:
                wrong.append(f"{record.path} has another sha256 than the manifest says")
        return wrong

    def changed(self, ending: str) -> dict[str, str]:
        """Files of that ending that are not what the manifest says, with the sha256 that they have now. Only files that were
        written after the manifest are read."""
        made = (self.directory / MANIFEST).stat().st_mtime_ns
        found = {}
        for record in self.manifest.files:
            path = self.directory / record.path
            if record.path.endswith(ending) and path.is_file() and path.stat().st_mtime_ns > made:
                sha256 = sha256_of(path)
                if sha256 != record.sha256:
                    found[record.path] = sha256
        return found

    def input(self, port: str) -> Artefact | None:
        """The earlier artefact at an input, or None where it is no longer there or has changed since."""
        record = self.manifest.inputs.get(port)
        if record is None:
            return None
        artefact = Artefact.peek((self.directory.resolve() / record.path).resolve())
        return artefact if artefact and artefact.manifest.digest == record.digest else None


def enclosing(path: Path) -> Artefact | None:
    """The artefact that a file or directory belongs to: the nearest directory above with a manifest."""
    path = path.resolve()
    for directory in (path, *path.parents):
        try:
            artefact = Artefact.peek(directory)
        except ArtefactError:  # somebody else's manifest.json, of a web page, say
            continue
        if artefact:
            return artefact
    return None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        if sys.version_info >= (3, 11):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return _sha256_blocks(file)


def _sha256_blocks(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@dataclass
class FileHashes:
    """sha256 of raw files, remembered by path, size, times and inode, so that a check of freshness is instant.

    A file that was written just now is hashed again each time: another write may leave all of these as they are.
    """

    cache: Path
    _known: dict[str, list[Any]] = field(default_factory=dict)
    _changed: bool = False

    def __post_init__(self) -> None:
        try:
            known = json.loads(self.cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        self._known = known if isinstance(known, dict) else {}

    def record(self, path: Path) -> FileRecord:
        try:
            status = path.stat()
            key = str(path.resolve())
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            known = self._known.get(key)
            if known is None or known[:-1] != stamp:
                known = [*stamp, sha256_of(path)]
                if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _JUST_NOW:
                    self._known[key] = known
                    self._changed = True
        except OSError as failure:
            raise DataError(f"{path} cannot be read: {failure.strerror}") from None
        return FileRecord(str(path), status.st_size, known[-1])

    def save(self) -> None:
        """Keep what was learned; where that is not possible it is learned again next time."""
        if not self._changed:
            return
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            write_synced(self.cache, json.dumps(self._known))
        except OSError:
            pass


def write_synced(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Force a file or a directory's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def environment() -> dict[str, Any]:
    """Versions, commit and hardware. Imports nothing heavy: GPUs are named only where torch is already at work."""
    versions = {"llmkit": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {"machine": platform.machine(), "cpu": _cpu_name(), "cpu_cores": os.cpu_count()}
    with contextlib.suppress(ValueError, OSError, AttributeError):
        hardware["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"versions": versions, "hardware": hardware, "git_commit": _git_commit(), "platform": platform.platform()}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


@cache
def _git_commit() -> str | None:
    """The commit of the llmkit checkout, with `-dirty` where files differ from it; None for an installed wheel.

    It is asked for once: the code that this process runs is that of its start.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
