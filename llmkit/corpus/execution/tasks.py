"""One task: a function called with a payload, whose result is a JSON file that is there whole or not at all.

Whoever carries tasks out, a process of this machine, of a Ray cluster or of a Slurm array, calls `Job.do`. What is done is
seen from the files alone, so that a killed run goes on where it stopped, under another executor too.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit import __version__
from llmkit.errors import DataError, LLMKitError
from llmkit.pipeline.artefact import write_synced
from llmkit.pipeline.stage import load_target

TRIES = 3
"""How often a task may lose its worker."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
ONE_THREAD = dict.fromkeys(_THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false"}
"""The environment of a worker: there is one on each core, so each has one thread (Arrow reads OMP_NUM_THREADS)."""


@dataclass(frozen=True)
class Task:
    """A piece of work that can be done again without harm."""

    name: str
    """Unique, and good as a file name: `clean-00012`."""
    payload: dict[str, Any]
    """What the function is called with: JSON. `inputs` in it, a path or several, is named where the task fails."""
    size: int = 1
    """Bytes of input, for the progress."""

    def about(self) -> str:
        """The task and its input, for a message."""
        inputs = self.payload.get("inputs", self.payload)
        words = ", ".join(map(str, inputs)) if isinstance(inputs, list) else str(inputs)
        return f"{self.name} ({words if len(words) <= 300 else words[:300] + ' ...'})"


@dataclass(frozen=True)
class Failure:
    """An exception on its way from a worker to the caller, as JSON: many exceptions do not survive a pickle."""

    kind: str
    """`module:class` of a LLMKitError; empty for others."""
    message: str
    state: dict[str, Any]
    traceback: str

    @staticmethod
    def of(failure: BaseException) -> Failure:
        kind, state = "", {}
        if isinstance(failure, LLMKitError):
            kind = f"{type(failure).__module__}:{type(failure).__qualname__}"
            state = {name: value for name, value in vars(failure).items() if _is_json(value)}
        return Failure(kind, str(failure), state, "".join(traceback.format_exception(failure)))

    def error(self, task: str) -> Exception:
        """The exception again: a LLMKitError of the same class with the same message, anything else with its traceback."""
        if not self.kind:
            return RuntimeError(f"task {task} failed:\n{self.traceback}")
        kind = load_target(self.kind)
        error = kind.__new__(kind)  # the constructors of the classes differ, and the message is made already
        error.args = (self.message,)
        vars(error).update(self.state)
        return error


@dataclass(frozen=True)
class Job:
    """A function to be called for tasks, and where their results lie."""

    function: str
    """`module:function`, called with the payload and the directory; what it returns is JSON."""
    directory: Path
    path: tuple[str, ...] = ()
    """Where the caller finds modules; for workers that are started by others, who look there last."""
    base: Path | None = None
    """Where relative paths of the caller begin; for the same."""

    def place(self, task: Task) -> Path:
        return self.directory / f"{task.name}.json"

    def result(self, task: Task) -> dict[str, Any] | None:
        """The result of a task; None where it is not done, or was done with another payload or version of llmkit."""
        try:
            record = json.loads(self.place(task).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record["result"] if isinstance(record, dict) and record.get("made_by") == self._made_by(task) else None

    def do(self, task: Task) -> None:
        """Do a task that is not done yet, and keep its result."""
        if self.result(task) is None:
            payload = json.loads(json.dumps(task.payload))  # the same, whoever calls
            result = load_target(self.function)(payload, self.directory)
            write_synced(self.place(task), json.dumps({"made_by": self._made_by(task), "result": result}))

    def attempt(self, task: Task) -> dict[str, Any] | None:
        """Do a task in a process of its own.

        Returns:
            None, or the fields of a `Failure`.
        """
        sys.path += [place for place in self.path if place not in sys.path]
        try:
            if self.base is not None:
                os.chdir(self.base)
            self.do(task)
        except BaseException as failure:
            return asdict(Failure.of(failure))
        return None

    def remove_leftovers(self, tasks: Sequence[Task]) -> None:
        """Remove what killed workers have left of results that they were writing."""
        names = {task.name for task in tasks}
        for path in self.directory.glob(".*.json.*"):
            if path.name[1:].split(".json.")[0] in names:
                path.unlink(missing_ok=True)

    def _made_by(self, task: Task) -> dict[str, str]:
        made_from = json.dumps([self.function, task.payload], sort_keys=True).encode()
        return {"payload": hashlib.sha256(made_from).hexdigest(), "llmkit": __version__}


class Deaths:
    """How often each task has lost its worker."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    def add(self, task: Task, how: str) -> None:
        """One more.

        Args:
            how: what is known of it: `killed by SIGKILL`.

        Raises:
            DataError: it is one too many.
        """
        self._of[task.name] += 1
        if self._of[task.name] >= TRIES:
            raise DataError(
                f"{task.about()} cannot be done: its worker died {TRIES} times, the last time {how}. A worker that is killed "
                f"without a message has mostly asked for more memory than there is: try fewer --workers, or a machine with "
                f"more memory. What is done already is kept"
            )


def _is_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False
