"""Documents on their way through the stage `preprocess`, some hundreds at a time.

A step changes a batch in place: it rewrites texts, adds signals (one number a document), or rejects documents. Rejected ones
stay in the batch with their rule, so that none is lost; further steps pass them over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass
class Batch:
    """Some documents, column by column; all lists are as long as `texts`."""

    texts: list[str]
    ids: list[str]
    sources: list[str]
    metadata: list[dict[str, Any]]
    rules: list[str] = field(default_factory=list)
    """The rule that rejected each document; empty while it is kept."""
    values: list[Any] = field(default_factory=list)
    """What that rule saw, such as the number that was below its threshold; None where there is nothing to show."""
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    """Measurements by name, float64 of shape [documents], NaN where one does not apply."""

    def __post_init__(self) -> None:
        self.rules = self.rules or [""] * len(self.texts)
        self.values = self.values or [None] * len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def kept(self) -> Iterator[int]:
        """The numbers of the documents that no rule has rejected."""
        return (number for number, rule in enumerate(self.rules) if not rule)

    def reject(self, number: int, rule: str, value: Any = None) -> None:
        """Reject a document; the first rule that does so is the one that counts."""
        if not self.rules[number]:
            self.rules[number], self.values[number] = rule, value


class Step(Protocol):
    """What happens to a batch; made once a process, from settings."""

    def __call__(self, batch: Batch) -> None: ...
