"""What swapped words change: see `llmkit.evaluation.swaps`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.reports import words

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "Bias probe"
_FEW = 50
_SHOWN = 10


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    """What the template needs."""
    flips = [(row["list"], flip) for row in found["lists"] for flip in row.get("examples", [])]
    return {
        "verdict": verdict(found),
        "rows": found["lists"],
        "flips": flips[:_SHOWN],
        "drawn": found["made"] > found["tried"],
    }


def verdict(found: dict[str, Any]) -> str:
    """The finding in a sentence."""
    if not found["tried"]:
        return "No test example has a word of the lists, so nothing was swapped."
    made = words.count(found["tried"], "swapped text")
    if not found["flips"]:
        furthest = max(found["lists"], key=lambda row: row.get("shift", {}).get("mean", 0.0))
        shift = words.score(furthest["shift"]["mean"])
        return f"Over {made}, the number moved furthest where {furthest['list']} was swapped: by {shift} in the mean."
    flips = sum(row["flips"]["examples"] for row in found["lists"] if "flips" in row)
    return f"Of {made}, {words.count(flips, 'prediction') if flips else 'no prediction'} changed."


def limits(found: dict[str, Any]) -> Iterator[str]:
    """What the probe does not show."""
    yield (
        "The bias probe swaps words of short hand-written lists in English and Chinese, and counts what changes. It knows two "
        "genders, a few names and a few places; bias that shows in other words, dialects, groups or languages is not seen. "
        "That nothing changes does not show that a model is fair, and a change tells that the words matter, not which way."
    )
    few = [row["list"] for row in found["lists"] if row["affected"] < _FEW]
    if few:
        yield f"Fewer than {_FEW} test examples have words of these lists, so little is known of them: {words.listing(few)}."


def markdown(found: dict[str, Any]) -> list[str]:
    """For the model card."""
    return [verdict(found)]
