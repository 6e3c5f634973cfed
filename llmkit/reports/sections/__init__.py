"""The parts of the page that show what `llmkit.evaluation.sections` found.

Each part is a module of this package of the name that it has in metrics.json, with

- `TITLE`, the heading;
- `context(found, told)`, what its template `<name>.html.j2` is given as `part`, beside `part.found`, `told` and `level`;
- `limits(found)`, sentences on what it does not show, for the last section of the page;
- `markdown(found)`, its lines on the model card; none leaves it out there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

SECTIONS: tuple[str, ...] = (
    "language_model",
    "slices",
    "calibration",
    "discrimination",
    "swaps",
    "lexicon",
    "leakage",
    "selfcheck",
)
"""In the order in which the page shows them."""


def present(told: Told) -> Iterator[tuple[str, Any, Any]]:
    """The parts that an evaluation has: name, module, and what was found."""
    for name in SECTIONS:
        found = told.record.get(name)
        if isinstance(found, dict):
            yield name, importlib.import_module(f"llmkit.reports.sections.{name}"), found


def contexts(told: Told) -> list[dict[str, Any]]:
    """What the page needs of each part."""
    return [
        {"name": name, "title": module.TITLE, "context": {"found": found, **module.context(found, told)}}
        for name, module, found in present(told)
    ]


def markdown(told: Told) -> list[str]:
    """The parts as sections of the model card."""
    written = [(module.TITLE, module.markdown(found)) for _, module, found in present(told)]
    return ["\n".join([f"## {title}", "", *lines]) for title, lines in written if lines]
