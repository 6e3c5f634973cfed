"""What long work on single examples has reached, on disk, so that a run that was killed goes on where it stopped.

It is kept under a record of the job: the model's bytes, the input, the settings and the code. What another job has left is
never gone on with, so weights that changed at one path do not find the predictions of the old ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from llmkit.errors import ArtefactError, ConfigError
from llmkit.pipeline.artefact import MANIFEST, sha256_of, sync
from llmkit.pipeline.stage import is_path
from llmkit.resources import PACKAGE, display
from llmkit.tasks.writers import plain

JOB, PREDICTED, TABLE, ASIDE = "job.json", "predictions.jsonl", "table", "aside"

_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")


class Predicted:
    """What is predicted so far, on disk."""

    def __init__(self, partial: Path):
        self._directory, self._job, self._lines = partial, partial / JOB, partial / PREDICTED
        self._first: dict[str, Any] = {}

    def _begun(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._job.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def is_forced(self, job: dict[str, Any]) -> bool:
        """Whether this very job was begun to replace a file that is there."""
        begun = self._begun()
        return begun is not None and begun["forced"] and begun["job"] == job

    def refuse_another(self, job: dict[str, Any], output: Path) -> None:
        """Refuse to go on with what another job has predicted.

        Raises:
            ArtefactError: there is some.
        """
        begun = self._begun()
        if begun is not None and begun["job"] != job and self._whole()[1]:
            raise ArtefactError(
                f"{display(output)} was begun with another job, which differs in {differences(begun['job'], job)}; take "
                f"another --output, or begin anew with --force"
            )

    def begin(self, job: dict[str, Any], force: bool) -> int:
        """Go on with a job, or begin it anew. On disk it is there with its first chunk: what fails before is in nobody's way.

        Returns:
            The number of rows that are predicted already.
        """
        begun = self._begun()
        if begun is None or begun["job"] != job or force:
            self.remove()
        self._first = {"job": job, "forced": force}
        size, rows = self._whole()
        if self._lines.exists():
            os.truncate(self._lines, size)
        return rows

    def _whole(self) -> tuple[int, int]:
        """The bytes of all whole chunks, and their rows; the last one may have been cut short."""
        size = rows = 0
        with contextlib.suppress(FileNotFoundError, ValueError), self._lines.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    rows += len(json.loads(line))
                    size += len(line)
        return size, rows

    def append(self, predicted: Sequence[Any]) -> None:
        """Put the next chunk on disk."""
        if not self._job.exists():
            write_whole(self._job, self._first, self._directory)
        with self._lines.open("ab") as file:
            file.write(json.dumps(predicted, default=plain).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync(self._directory)

    def rows(self) -> Iterator[Any]:
        """All of it, row by row."""
        with self._lines.open("rb") as file:
            for line in file:
                yield from json.loads(line)

    def remove(self) -> None:
        """Forget all; the job first, without which the rest is nothing."""
        for path in (self._job, self._lines, self._directory / TABLE, self._directory / ASIDE):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def no_terminal() -> Iterator[None]:
    """While it lasts, a task draws no bar of its own for each chunk."""

    class Plain(io.TextIOBase):
        def write(self, text: str) -> int:
            return stream.write(text)

        def flush(self) -> None:
            stream.flush()

    stream = sys.stderr
    with contextlib.redirect_stderr(Plain()):
        yield


def write_whole(path: Path, values: dict[str, Any], partial: Path) -> None:
    """Write a JSON file so that it is there whole or not at all; what a kill leaves lies in `partial`."""
    aside = partial / ASIDE
    aside.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(aside)
    os.replace(aside, path)


@cache
def code_digest() -> str:
    """One sha256 of the Python source of llmkit and of the versions of what computes for it."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    for name in ("torch", "transformers", "tokenizers"):
        digest.update(f"{name} {metadata.version(name)}\0".encode())
    return digest.hexdigest()


def model_files(name: str) -> dict[str, str]:
    """The sha256 of each file of a model's directory that can change what it says; of a hub model, its commit.

    Raises:
        ConfigError: there is no such directory, or it cannot be read.
    """
    directory = Path(name)
    if is_path(name) and not directory.is_dir():
        raise ConfigError([f"model_name_or_path: there is no directory {name!r} (looked in {Path.cwd()})"])
    if directory.is_dir():
        try:
            files = sorted(path for path in directory.iterdir() if path.suffix in _MODEL_FILES and path.name != MANIFEST)
            return {path.name: sha256_of(path) for path in files}
        except OSError as failure:
            raise ConfigError([f"model_name_or_path: {name!r} cannot be read: {failure}"]) from None
    from transformers import AutoConfig

    with contextlib.suppress(OSError, ValueError):  # whoever loads the model says what is wrong with it
        return {name: str(getattr(AutoConfig.from_pretrained(name), "_commit_hash", None))}
    return {name: ""}


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In what two jobs differ, in words."""
    words = []
    if old["model"] != new["model"]:
        names = [name for name in {**old["model"], **new["model"]} if old["model"].get(name) != new["model"].get(name)]
        words.append(f"the model ({', '.join(names)})")
    if old["input"] != new["input"]:
        words.append("the input")
    if old["llmkit"] != new["llmkit"]:
        words.append(f"the version of llmkit ({old['llmkit']} there, {new['llmkit']} now)")
    there, now = old["settings"], new["settings"]
    words += [
        f"{key} ({there.get(key)} there, {now.get(key)} now)" for key in {**there, **now} if there.get(key) != now.get(key)
    ]
    return ", ".join(words)
