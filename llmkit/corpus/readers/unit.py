"""The part of a file that one task reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.resources import display


def printable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Unit:
    """A file or a part of one: the rows that begin in it."""

    path: str
    """Absolute; a data set's name where it is one."""
    name: str
    """What the file is called in the corpus; ids begin with it."""
    kind: str
    """Its ending without that of the compression, `.jsonl` say."""
    compression: str = ""
    start: int = 0
    """The first byte; of Parquet, the first row group."""
    stop: int | None = None
    """The byte (row group) after the last; None at the end of the file."""
    rows_before: int = 0
    """Lines of the file before `start`; of Parquet, rows."""
    size: int = 0
    """Bytes on disk."""

    @property
    def shown(self) -> str:
        """The path as a person is shown it."""
        return printable(display(Path(self.path)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Unit:
        return cls(**values)
