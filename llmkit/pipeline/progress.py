"""How far long work is, for who waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tqdm import tqdm

ProgressT = TypeVar("ProgressT", bound="Progress")

_SAY_EVERY = 30.0  # seconds, where there is no terminal for a bar


class Progress:
    """A bar with rate and estimate on a terminal, a line now and then elsewhere."""

    def __init__(self, done: int, total: int, say: Callable[[str], None], what: str, unit: str):
        """Begin.

        Args:
            done, total: counted in `unit`.
            say: takes a line where there is no terminal.
            what: what is done, at the head of each line.
            unit: in the singular; `byte` is told in megabytes.
        """
        self._in_bytes = unit == "byte"
        scaled = {"unit": "B", "unit_scale": True} if self._in_bytes else {"unit": unit}
        self._bar = tqdm(desc=what, total=total, initial=done, disable=None, **scaled)
        self._what, self._unit, self._say = what, "MB" if self._in_bytes else f"{unit}s", say
        self._first, self._done, self._total = done, done, total
        self._start = self._said = time.monotonic()

    def __enter__(self: ProgressT) -> ProgressT:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, message: str) -> None:
        """A line of its own, beside the bar."""
        (self._say if self._bar.disable else self._bar.write)(f"{self._what}: {message}")

    def add(self, count: int, note: str = "") -> None:
        """Some more are done; a note stands beside the bar, or at the head of a line."""
        self._done += count
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._said > _SAY_EVERY:
            rate = (self._done - self._first) / (now - self._start)
            left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
            done = f"{self._number(self._done)} of {self._number(self._total)} {self._unit}"
            self.say(", ".join([*filter(None, [note]), done, f"{self._number(rate, 1)} {self._unit}/s", f"{left} left"]))
            self._said = now

    def _number(self, count: float, digits: int = 0) -> str:
        return f"{count / 1e6:,.1f}" if self._in_bytes else f"{count:,.{digits}f}"
