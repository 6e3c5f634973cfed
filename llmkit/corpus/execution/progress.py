"""How far the tasks are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from llmkit.corpus.execution.tasks import Task

_SAY_EVERY = 30.0  # seconds, where there is no terminal for a bar


class Progress:
    """A bar over bytes with rate and estimate on a terminal, a line now and then elsewhere."""

    def __init__(self, tasks: Sequence[Task], missing: Sequence[Task], describe: str, say: Callable[[str], None]):
        """Begin; all tasks but the missing ones are done."""
        self._what, self._say = describe or "tasks", say
        self._tasks, self._done = len(tasks), len(tasks) - len(missing)
        total = sum(task.size for task in tasks)
        first = total - sum(task.size for task in missing)
        self._bar = tqdm(desc=self._what, total=total, initial=first, unit="B", unit_scale=True, disable=None)
        self._bytes, self._first, self._total = first, first, total
        self._start = self._said = time.monotonic()
        if self._done:
            self.say(f"{self._done:,} of {self._tasks:,} tasks are done already")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, message: str) -> None:
        """A line of its own, beside the bar."""
        (self._say if self._bar.disable else self._bar.write)(f"{self._what}: {message}")

    def add(self, task: Task) -> None:
        """A task is done."""
        self._done += 1
        self._bytes += task.size
        self._bar.set_postfix_str(f"{self._done:,} of {self._tasks:,} tasks", refresh=False)
        self._bar.update(task.size)
        now = time.monotonic()
        if self._bar.disable and now - self._said > _SAY_EVERY:
            rate = (self._bytes - self._first) / (now - self._start)
            left = tqdm.format_interval((self._total - self._bytes) / rate) if rate else "?"
            done = f"{self._done:,} of {self._tasks:,} tasks, {_megabytes(self._bytes)} of {_megabytes(self._total)} MB"
            self._say(f"{self._what}: {done}, {_megabytes(rate)} MB/s, {left} left")
            self._said = now


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f}"
