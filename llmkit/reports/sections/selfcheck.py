"""Metrics beside their references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.reports import words

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "Self-check"


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    sources = list(dict.fromkeys(row["by"] for row in found["metrics"]))
    return {"largest": max((row["difference"] for row in found["metrics"]), default=0.0), "sources": words.listing(sources)}


def limits(found: dict[str, Any]) -> Iterator[str]:
    if found["without_reference"]:
        yield f"No second implementation was at hand to check {words.listing(found['without_reference'])}."


def markdown(found: dict[str, Any]) -> list[str]:
    return []
