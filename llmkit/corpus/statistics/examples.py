"""A few examples of what each rule removed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PER_RULE = 5
EXCERPT = 300
"""Characters of an example."""


@dataclass(frozen=True, order=True)
class Example:
    """A removed document, or its beginning."""

    mark: int
    """The hash of its id: of all, the examples with the smallest are kept."""
    id: str
    source: str
    value: str
    """What the rule saw."""
    text: str
    characters: int
    """Of the whole document."""


class Examples:
    """The examples of each rule."""

    def __init__(self) -> None:
        self._by_rule: dict[str, list[Example]] = {}

    def wants(self, rule: str, mark: int) -> bool:
        """Whether a document with that hash would be among the examples."""
        found = self._by_rule.get(rule, [])
        return len(found) < PER_RULE or mark <= found[-1].mark

    def add(self, rule: str, example: Example) -> None:
        self._by_rule[rule] = sorted([*self._by_rule.get(rule, []), example])[:PER_RULE]

    def of(self, rule: str) -> list[Example]:
        return self._by_rule.get(rule, [])

    def merge(self, other: Examples) -> None:
        for rule, found in other._by_rule.items():
            for example in found:
                self.add(rule, example)

    def to_json(self) -> dict[str, Any]:
        return {rule: [asdict(example) for example in self._by_rule[rule]] for rule in sorted(self._by_rule)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Examples:
        made = cls()
        made._by_rule = {rule: [Example(**example) for example in found] for rule, found in values.items()}
        return made
